"""exfusion-train, -eval and -export from outside: command lines, recipes, and the trained model in other people's programs."""

import gzip
import json
import os
import pathlib
import re

import numpy
import pytest

from programs import (RECIPE, call, checkpoints, crc32, finished, recipe, refused, rows, settings, state, tensors,
                      write_recipe)

PROGRAMS = ("train", "eval", "export", "upcycle", "compare")
FASHION_MNIST = pathlib.Path("/usr/share/datasets/fashion-mnist")


# ---- the command line


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_and_version_go_to_stdout(call, program):
    help_text = call(program, "--help", check=True)
    assert f"exfusion-{program}" in help_text.stdout and "--json" in help_text.stdout and help_text.stderr == ""
    version = call(program, "--version", check=True).stdout
    assert re.fullmatch(r"exfusion \d+\.\d+\.\d+, libtorch 2\.1\d\.\d\S*\n", version)


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_arguments_point_to_the_help(call, program):
    assert len(refused(call(program), "--help")) == 1


def test_list_names_every_choice(call):
    words = call("train", "--list", check=True).stdout.split()
    for word in ("vit", "fashion_mnist", "idx", "hdf5", "synthetic", "cosine", "linear", "constant", "wsd", "static", "learned", "memory", "topk", "smear", "ewa", "dense_gain"):
        assert word in words


@pytest.mark.parametrize("program, args, word", [
    ("train", ["a.yaml", "--nonsense"], "--nonsense"),
    ("train", ["a.yaml", "b.yaml"], "too many"),
    ("train", ["a.yaml", "--overw"], "--overw"),  # no abbreviations
    ("train", ["a.yaml", "--out"], "--out"),
    ("train", ["a.yaml", "--out", "x", "--out", "y"], "--out"),
    ("train", ["a.yaml", "--resume", "x"], "not both"),
    ("train", ["--resume", "x", "--out", "y"], "--out"),
    ("train", ["--resume", "x", "--overwrite"], "--overwrite"),
    ("eval", ["run", "--logit", "x"], "--logit"),
    ("eval", ["run", "other"], "too many"),
    ("eval", ["run", "--precision", "fp8"], "fp8"),
    ("eval", ["run", "--what", "newest"], "newest"),
    ("eval", ["run", "--threads", "0"], "--threads"),
    ("eval", ["run", "--threads", "two"], "two"),
    ("export", ["run", "-o", "x", "--to", "onnx"], "onnx"),
    ("export", ["run"], "-o"),
    ("export", ["run", "-o", "x", "--what", "newest"], "newest"),
])
def test_a_wrong_command_line_is_one_line_and_exit_2(call, tmp_path, program, args, word):
    assert len(refused(call(program, *args, cwd=tmp_path), word)) == 1
    assert os.listdir(tmp_path) == []


# ---- recipes


def test_a_missing_recipe_is_named(call, tmp_path):
    assert len(refused(call("train", tmp_path / "nothing.yaml"), "nothing.yaml", "no such file")) == 1


def test_all_problems_of_a_recipe_come_at_once_each_with_its_place(call, tmp_path):
    path = write_recipe(tmp_path, "name: tiny\n"
                                  "model: {arch: vit, dim: 16, depth: 2, heads: 3, patch: 7, image: 28}\n"
                                  "fusion: {expert: 4}\n"
                                  "data: {name: fashion_mnis}\n"
                                  "train: {steps: many, global_batch: 0}\n"
                                  "optim:\n"
                                  "  lr: fast\n")
    lines = refused(call("train", path, "--out", tmp_path / "run"))
    places = [re.match(rf"exfusion-train: {re.escape(str(path))}:(\d+):(\d+): ", line) for line in lines]
    assert all(places), lines
    assert [int(place[1]) for place in places] == [2, 3, 4, 5, 5, 7]
    assert int(places[-1][2]) == 7 and "did you mean 'fusion.experts'" in lines[1] and "fashion_mnist" in lines[2]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting, words", [
    ("fusion.expert=3", ["fusion.expert", "did you mean 'fusion.experts'"]),
    ("train.steps=many", ["train.steps", "many"]),
    ("train.steps=0", ["train.steps", "0"]),
    ("fusion.init=copy", ["never separate"]),
    ("fusion.layers=last:3", ["last:3"]),
    ("train.steps", ["key=value"]),
    ("=3", ["key"]),
    ("train.steps=[1", ["--set train.steps=[1"]),
    ("model.heads=3", ["heads"]),
    ("include=other.yaml", ["include"]),
])
def test_set_is_checked_as_the_recipe_is(call, recipe, tmp_path, setting, words):
    lines = refused(call("train", recipe, "--set", setting, "--out", tmp_path / "run"), *words)
    assert len(lines) == 1 and not (tmp_path / "run").exists()


def test_a_gpu_that_is_not_there_is_one_line_and_exit_2(call, recipe, tmp_path):
    for args in (["--out", tmp_path / "run"], ["--dry-run"]):
        done = call("train", recipe, "--set", "train.device=cuda", *args, env={"CUDA_VISIBLE_DEVICES": ""})
        (line,) = refused(done, "train.device: cuda")
        assert "this build has no CUDA" in line or "no CUDA device found" in line
    assert not (tmp_path / "run").exists()
    call("train", recipe, "--set", "train.device=cuda", "--print-recipe", check=True)  # a recipe may be read anywhere


def test_a_printed_recipe_is_a_recipe(call, recipe, tmp_path):
    first = call("train", recipe, "--set", "fusion.temperature=2", "--print-recipe", check=True).stdout
    assert "temperature: 2" in first and "weight_decay" in first  # what was set, and a default
    again = tmp_path / "again.yaml"
    again.write_text(first, encoding="utf-8")
    assert call("train", again, "--print-recipe", check=True).stdout == first
    assert "fusion: none" in call("train", again, "--set", "fusion=none", "--print-recipe", check=True).stdout


def test_a_dry_run_describes_the_run_and_leaves_nothing(call, recipe, tmp_path):
    text = call("train", recipe, "--dry-run", cwd=tmp_path, check=True).stdout
    for words in ("M parameters", "2 of 2 FFNs with 3 experts", "images/s", "MB peak memory", "128 training, 32 held out, 64 test", "6 steps of 32"):
        assert words in text
    assert os.listdir(tmp_path) == [recipe.name]


# ---- dense and fused are the same files


def test_without_fusion_the_run_is_dense_and_its_model_has_the_same_tensors(call, recipe, finished, tmp_path):
    call("train", recipe, "--set", "fusion=none", "--set", "train.ema=0", "--out", tmp_path / "run", check=True)
    dense, fused = tmp_path / "run/checkpoints/latest", finished[0] / "checkpoints/latest"
    assert set(os.listdir(dense)) == {"model.safetensors", "optimizer.safetensors", "state.json"}
    assert not any(name.startswith(("fusion", "ema")) for name in rows(tmp_path / "run"))
    described = [{name: (value.shape, value.dtype) for name, value in tensors(checkpoint / "model.safetensors").items()}
                 for checkpoint in (dense, fused)]
    assert described[0] == described[1]


def test_experts_have_timm_names_and_sum_to_the_model(finished):
    checkpoint = finished[0] / "checkpoints/latest"
    experts, model = tensors(checkpoint / "experts.safetensors"), tensors(checkpoint / "model.safetensors")
    shapes = {"fc1.weight": (3, 64, 16), "fc1.bias": (3, 64), "fc2.weight": (3, 16, 64), "fc2.bias": (3, 16), "a": (3,)}
    assert {name: value.shape for name, value in experts.items()} == {
        f"blocks.{block}.mlp.{name}": shape for block in range(2) for name, shape in shapes.items()}
    for block in range(2):
        a = experts[f"blocks.{block}.mlp.a"]
        assert a.dtype == numpy.float32 and abs(a.sum() - 1) < 1e-6 and len(set(a)) == 3
        for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
            w = experts[f"blocks.{block}.mlp.{name}"]
            total = a[0] * w[0]
            for k in (1, 2):
                total = total + a[k] * w[k]  # fp32, in the order of k
            assert numpy.array_equal(total, model[f"blocks.{block}.mlp.{name}"])


# ---- the model elsewhere


@pytest.fixture(scope="module")
def fashion(call, tmp_path_factory):
    """A short run on Fashion-MNIST: images that Python can read by itself."""
    place = tmp_path_factory.mktemp("fashion")
    recipe = write_recipe(place, RECIPE.replace("name: synthetic, train_samples: 160, test_samples: 64, validation: 32",
                                                "name: fashion_mnist"))
    done = call("train", recipe, "--out", place / "run", "--json", *settings(train__steps=20, train__eval_every_steps=0),
                check=True)
    return place / "run", json.loads(done.stdout)


@pytest.fixture(scope="module")
def fashion_images():
    """The 10,000 test images of Fashion-MNIST as the model sees them, and their labels."""
    def read(name, header):
        with gzip.open(FASHION_MNIST / name) as file:
            return numpy.frombuffer(file.read(), numpy.uint8, offset=header)
    images = read("t10k-images-idx3-ubyte.gz", 16).reshape(10000, 1, 28, 28).astype("f4") / 255
    return (images - numpy.float32(0.2860)) / numpy.float32(0.3530), read("t10k-labels-idx1-ubyte.gz", 8).astype("i8")


def timm_logits(model, images):
    import torch

    torch.set_num_threads(1)  # for a model of this size more only wait for each other
    model.eval()
    with torch.no_grad():
        return torch.cat([model(part) for part in torch.from_numpy(images).split(1000)])


def test_the_export_gives_the_same_logits_in_timm(call, fashion, fashion_images, tmp_path):
    import timm
    import torch
    from safetensors.torch import load_file

    call("eval", fashion[0], "--logits", tmp_path / "logits.safetensors", "--json", check=True)
    written = tensors(tmp_path / "logits.safetensors")
    assert written["logits"].dtype == numpy.float32 and written["labels"].dtype == numpy.int64
    assert numpy.array_equal(written["labels"], fashion_images[1])
    ours = torch.from_numpy(written["logits"])

    folder = fashion[0] / "export"
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert (timm_logits(model, fashion_images[0]) - ours).abs().max() <= 1e-5
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["pretrained_cfg"]["mean"] == [0.286] and config["pretrained_cfg"]["std"] == [0.353]
    by_path = timm.create_model(config["architecture"], checkpoint_path=folder / "model.safetensors", **config["model_args"])
    by_path.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    assert torch.equal(timm_logits(by_path, fashion_images[0][:100]), timm_logits(model, fashion_images[0][:100]))

    call("eval", fashion[0], "--what", "ema", "--logits", tmp_path / "average.safetensors", check=True)
    model.load_state_dict(load_file(fashion[0] / "checkpoints/latest/ema.safetensors"), strict=True)
    average = torch.from_numpy(tensors(tmp_path / "average.safetensors")["logits"][:1000])
    assert (timm_logits(model, fashion_images[0][:1000]) - average).abs().max() <= 1e-5 < (average - ours[:1000]).abs().max()


def test_run_checkpoint_and_export_score_the_same(call, fashion, fashion_images, tmp_path):
    import torch

    def score(*args):
        done = call("eval", *args, "--json", "--threads", "1", check=True)
        result = json.loads(done.stdout)
        assert set(result) == {"accuracy", "loss", "samples", "samples_per_second"} and result.pop("samples_per_second") > 0
        return result

    logits = tmp_path / "logits.safetensors"
    found = score(fashion[0], "--logits", logits)
    assert found == score(fashion[0] / "checkpoints/latest") == score(fashion[0] / "export", "--data", "fashion_mnist")
    assert found["samples"] == 10000 and found["accuracy"] == fashion[1]["accuracy_fp32"]
    values, labels = torch.from_numpy(tensors(logits)["logits"]), torch.from_numpy(fashion_images[1])
    assert found["accuracy"] == (values.argmax(1) == labels).double().mean().item()
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(values.double(), labels).item(), rel=1e-5)
    score(fashion[0], "--precision", "bf16", "--logits", tmp_path / "bf16.safetensors")
    assert 0 < abs(tensors(tmp_path / "bf16.safetensors")["logits"] - values.numpy()).max() < 0.1


def test_what_chooses_last_best_or_average(call, finished):
    def score(*args):
        result = json.loads(call("eval", *args, "--json", "--threads", "1", check=True).stdout)
        return result["accuracy"], result["loss"]

    folder, found = finished[0], rows(finished[0])
    assert score(folder) == score(folder, "--what", "last")
    assert score(folder, "--what", "best") == score(folder / "checkpoints/best")
    for what, group in (("last", "eval"), ("ema", "ema")):
        result = score(folder, "--what", what)
        assert result[0] == found[f"{group}/accuracy"][-1]
        assert result[1] == pytest.approx(found[f"{group}/loss"][-1], rel=1e-6)


def test_export_writes_the_chosen_model_with_a_card(call, finished, tmp_path):
    folder = finished[0]
    done = call("export", folder, "--to", "timm", "-o", tmp_path / "a/average", "--what", "ema", "--json", check=True)
    assert json.loads(done.stdout) == {"from": str(checkpoints(folder)[-1]), "what": "ema", "step": 6,
                                       "export": str(tmp_path / "a/average")}
    stored, average = tensors(tmp_path / "a/average/model.safetensors"), tensors(folder / "checkpoints/latest/ema.safetensors")
    assert set(stored) == set(average) and all(numpy.array_equal(stored[name], average[name]) for name in stored)
    card = (tmp_path / "a/average/README.md").read_text(encoding="utf-8")
    assert state(folder / "checkpoints/latest")["recipe_crc32"] in card and f"{rows(folder)['ema/accuracy'][-1]:.4f}" in card
    again = call("export", checkpoints(folder)[-1], "-o", tmp_path / "a/average", "--overwrite")
    assert again.returncode == 0, again.stderr
    assert crc32(tmp_path / "a/average/model.safetensors") == crc32(folder / "export/model.safetensors")


def test_bf16_runs_report_both_precisions(call, recipe, tmp_path):
    done = call("train", recipe, "--out", tmp_path / "run", "--json", *settings(train__precision="bf16", train__steps=2),
                check=True)
    again = call("eval", tmp_path / "run", "--json", "--threads", "1", check=True)
    assert json.loads(done.stdout)["accuracy_fp32"] == json.loads(again.stdout)["accuracy"]
    assert all(value.dtype == numpy.float32 for value in tensors(tmp_path / "run/export/model.safetensors").values())


def test_a_model_that_is_not_there_is_said_so(call, finished, recipe, tmp_path):
    refused(call("export", tmp_path, "-o", tmp_path / "x"), str(tmp_path), "neither a run")
    refused(call("export", tmp_path / "none", "-o", tmp_path / "x"), "no such folder")
    refused(call("export", finished[0], "-o", tmp_path), str(tmp_path), "exists")
    refused(call("export", finished[0], "-o", tmp_path, "--overwrite"), "config.json")
    refused(call("eval", tmp_path / "none"), "no such folder")
    refused(call("eval", finished[0] / "export"), "--data")
    refused(call("eval", finished[0] / "export", "--data", "mnist"), "mnist", "fashion_mnist")
    refused(call("eval", finished[0] / "export", "--data", "synthetic", "--what", "best"), "best")
    call("train", recipe, "--out", tmp_path / "plain", *settings(train__ema=0, train__steps=1), check=True)
    refused(call("eval", tmp_path / "plain", "--what", "ema"), "train.ema")
    refused(call("export", tmp_path / "plain", "-o", tmp_path / "x", "--what", "ema"), "train.ema")
    assert not (tmp_path / "x").exists()
