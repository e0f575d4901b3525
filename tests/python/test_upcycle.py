"""Starting from trained models, and averages of checkpoints: against timm, torch and numpy, from outside."""

import json
import re
import shutil
import subprocess
import sys

import numpy
import pytest

from programs import RECIPE, call, checkpoints, crc32, refused, rows, settings, state, tensors, write_recipe

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402

DENSE = re.sub(r"fusion: .*\n", "", RECIPE).replace("ema: 0.9, ", "").replace("keep: 2", "keep: 9")
FFN = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")


@pytest.fixture(scope="module")
def source(call, tmp_path_factory):
    """A dense run with checkpoints at steps 2, 4 and 6 (and 3 if it was the best)."""
    place = tmp_path_factory.mktemp("source")
    call("train", write_recipe(place, DENSE), "--out", place / "run", check=True)
    return place / "run"


@pytest.fixture
def dense_recipe(tmp_path):
    return write_recipe(tmp_path, DENSE)


# ---- what is read


def vit(size, pool="token", channels=1, **more):
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(img_size=size, patch_size=4, in_chans=channels, num_classes=5, embed_dim=16, depth=2, num_heads=2,
                              global_pool=pool, class_token=pool == "token", **more)
    generator = torch.Generator().manual_seed(size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.7, generator=generator)
    return model


@pytest.fixture
def loaded(run, bin_dir, tmp_path):
    """loaded(state, size, pool, skip ...): the tensors that our model has after loading, and what was reported."""
    def load(values, size, *skip, pool="token", code=0):
        recipe, given, result = (tmp_path / name for name in ("model.yaml", "in.safetensors", "out.safetensors"))
        recipe.write_text(f"model: {{arch: vit, dim: 16, depth: 2, heads: 2, patch: 4, image: {size}, channels: 1, classes: 5, pool: {pool}}}\n")
        save_file({name: value.contiguous() for name, value in values.items()}, given)
        done = run([bin_dir / "weights_probe", recipe, given, result, *skip])
        assert done.returncode == code, done.stderr
        return (load_file(result) if code == 0 else None), done.stdout + done.stderr

    return load


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("old, new", [(28, 56), (28, 32), (56, 28), (64, 20), (28, 4), (4, 12)])
def test_position_embeddings_are_resized_as_timm_does(loaded, old, new, pool):
    from timm.layers import resample_abs_pos_embed

    values = vit(old, pool).state_dict()
    found, report = loaded(values, new, pool=pool)
    prefix = 1 if pool == "token" else 0
    expected = resample_abs_pos_embed(values["pos_embed"], [new // 4, new // 4], num_prefix_tokens=prefix)
    assert found["pos_embed"].shape == expected.shape
    assert (found["pos_embed"] - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert f"resized: pos_embed [1, {values['pos_embed'].shape[1]}, 16] -> [1, {expected.shape[1]}, 16]" in report
    others = set(values) - {"pos_embed"}
    assert all(torch.equal(found[name], values[name]) for name in others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_tensor_of_a_timm_model_is_taken_in_any_of_three_types(loaded, dtype):
    values = {name: value.to(dtype) for name, value in vit(28).state_dict().items()}
    found, report = loaded(values, 28)
    assert set(found) == set(values)
    assert all(torch.equal(found[name], values[name].float()) for name in values)
    assert f"{len(values)} tensors taken" in report


def test_timms_own_resizing_of_half_precision_is_ours(loaded):
    from timm.layers import resample_abs_pos_embed

    values = {name: value.half() for name, value in vit(28).state_dict().items()}
    found, _ = loaded(values, 40)
    expected = resample_abs_pos_embed(values["pos_embed"].float(), [10, 10], num_prefix_tokens=1)
    assert (found["pos_embed"] - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_what_does_not_fit_is_named_unless_it_is_skipped(loaded):
    values = vit(28, reg_tokens=2, qk_norm=True).state_dict()
    values.pop("norm.bias")
    _, message = loaded(values, 28, code=2)
    for word in ("'reg_token' does not", "'blocks.1.attn.q_norm.weight' does not", "'norm.bias' is missing",
                 "'pos_embed' has"):
        assert word in message
    skip = ["reg_token", "norm.bias", "pos_embed"] + [f"blocks.{i}.attn.{x}_norm." for i in range(2) for x in "qk"]
    found, report = loaded(values, 28, *skip)
    assert torch.equal(found["blocks.1.attn.qkv.weight"], values["blocks.1.attn.qkv.weight"])
    assert "own initial values: norm.bias" in report and "left out of the file: 'reg_token'" in report


@pytest.mark.parametrize("wrap", [lambda values: values, lambda values: {"state_dict": values, "epoch": torch.tensor(3)},
                                  lambda values: {"model": values}])
def test_the_documented_line_converts_pickled_weights(repo, loaded, tmp_path, wrap):
    line = next(line for line in (repo / "docs/upcycling.md").read_text().splitlines() if "torch.load" in line)
    code = re.fullmatch(r' *python -c "(.*)" weights.pth weights.safetensors', line)[1]
    values = vit(28).state_dict()
    torch.save(wrap(values), tmp_path / "weights.pth")
    subprocess.run([sys.executable, "-c", code, "weights.pth", "weights.safetensors"], cwd=tmp_path, check=True)
    found, _ = loaded(load_file(tmp_path / "weights.safetensors"), 28)
    assert all(torch.equal(found[name], values[name]) for name in values)


# ---- exfusion-upcycle


def fused(experts, ffn, name):
    """sum_k a_k W_k in fp32, in the order of k."""
    a, w = experts[f"{ffn}.a"], experts[f"{ffn}.{name}"]
    total = a[0] * w[0]
    for k in range(1, len(a)):
        total = total + a[k] * w[k]
    return total


def test_an_upcycled_folder_is_a_dense_model_for_timm_and_experts_for_us(call, source, tmp_path):
    import timm

    out = tmp_path / "a/drop"
    done = call("upcycle", source, "--experts", 4, "--init", "drop", "--drop-ratio", 0.25, "--seed", 7, "-o", out, "--json",
                check=True)
    ffns = ["blocks.0.mlp", "blocks.1.mlp"]
    assert json.loads(done.stdout) == {"from": str(checkpoints(source)[-1]), "out": str(out), "experts": 4, "init": "drop", "seed": 7,
                                       "ffns": ffns}
    model, experts = tensors(out / "model.safetensors"), tensors(out / "experts.safetensors")
    dense = tensors(source / "checkpoints/latest/model.safetensors")
    assert set(model) == set(dense) and set(experts) == {f"{ffn}.{name}" for ffn in ffns for name in (*FFN, "a")}
    for name, value in model.items():
        ffn, tensor = name[:12], name[13:]
        expected = fused(experts, ffn, tensor) if ffn in ffns else dense[name]
        assert numpy.array_equal(value, expected), name
    for ffn in ffns:
        same = [(experts[f"{ffn}.fc1.weight"][k] == dense[f"{ffn}.fc1.weight"]).all(1) for k in range(4)]
        assert [int(rows.sum()) for rows in same] == [48] * 4  # of 64 hidden units
        assert len({tuple(rows) for rows in same}) == 4

    record = json.loads((out / "upcycle.json").read_text())
    assert record["source"]["crc32"] == crc32(source / "checkpoints/latest/model.safetensors")
    for name, entry in record["files"].items():
        assert entry == {"size": (out / name).stat().st_size, "crc32": crc32(out / name)}

    network = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert all(numpy.array_equal(value.numpy(), model[name]) for name, value in network.state_dict().items())
    call("eval", out, "--data", "synthetic", "--threads", 1, "--logits", tmp_path / "logits.safetensors", check=True)

    call("upcycle", source, "--experts", 4, "--init", "drop", "--drop-ratio", 0.25, "--seed", 7, "-o", tmp_path / "again",
         check=True)
    for name in record["files"]:
        assert crc32(tmp_path / "again" / name) == crc32(out / name)


@pytest.mark.parametrize("init, n", [("copy", 4), ("split", 2), ("split", 4)])
def test_what_keeps_the_function_gives_the_sources_weights_back(call, source, tmp_path, init, n):
    call("upcycle", source, "--experts", n, "--init", init, "-o", tmp_path / "out", check=True)
    dense = tensors(source / "checkpoints/latest/model.safetensors")
    for name, value in tensors(tmp_path / "out/model.safetensors").items():
        assert numpy.array_equal(value, dense[name]), name


def test_only_the_chosen_blocks_get_experts(call, source, tmp_path):
    call("upcycle", source / "checkpoints/latest", "--experts", 2, "--init", "copy_noise", "--noise", 0.5, "--layers", "last:1",
         "-o", tmp_path / "out", check=True)
    assert {name[:12] for name in tensors(tmp_path / "out/experts.safetensors")} == {"blocks.1.mlp"}
    call("upcycle", source / "export", "--experts", 2, "--init", "split", "--layers", "[0]", "-o", tmp_path / "out", "--overwrite",
         check=True)
    assert {name[:12] for name in tensors(tmp_path / "out/experts.safetensors")} == {"blocks.0.mlp"}


@pytest.mark.parametrize("args, word", [
    (["--experts", "0", "--init", "drop"], "fusion.experts"),
    (["--experts", "99", "--init", "drop"], "[1, 64]"),
    (["--experts", "two", "--init", "drop"], "integer"),
    (["--experts", "2", "--init", "drops"], "did you mean 'drop'"),
    (["--experts", "2", "--init", "independent"], "choose copy"),
    (["--experts", "2", "--init", "drop", "--noise", "0.1"], "copy_noise"),
    (["--experts", "2", "--init", "split", "--permute"], "init: drop"),
    (["--experts", "2", "--init", "drop", "--drop-ratio", "2"], "drop_ratio"),
    (["--experts", "2", "--init", "drop", "--layers", "last:3"], "last:3"),
    (["--experts", "2", "--init", "drop", "--seed", "-1"], "seed"),
    (["--experts", "2"], "--init is missing"),
    (["--init", "drop"], "--experts is missing"),
])
def test_a_wrong_choice_is_one_line_and_exit_2(call, source, tmp_path, args, word):
    assert len(refused(call("upcycle", source, "-o", tmp_path / "out", *args), word)) == 1
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_no_source_or_no_target_are_left_alone(call, source, tmp_path):
    choice = ["--experts", 2, "--init", "drop"]
    refused(call("upcycle", tmp_path / "none", "-o", tmp_path / "out", *choice), "no such folder")
    refused(call("upcycle", source, *choice), "--out is missing")
    refused(call("upcycle", source, "-o", source, *choice), "exists")
    refused(call("upcycle", source, "-o", source, "--overwrite", *choice), "upcycle.json")
    assert (source / "recipe.yaml").exists() and list(tmp_path.iterdir()) == []


# ---- recipes


def start(folder):
    return json.loads((folder / "start.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("fusion", ["init: copy, weights: memory", "init: split", "init: split, experts: 3, weights: static"])
def test_an_upcycled_run_starts_as_its_source_bit_for_bit(call, source, dense_recipe, tmp_path, fusion):
    call("train", dense_recipe, "--out", tmp_path / "run", "--set", f"fusion={{from: {source}, {fusion}}}", check=True)
    record = start(tmp_path / "run")
    assert record["step_0"] == {"max_logit_difference": 0, "mean_kl": 0, "top1_agreement": 1}
    assert record["first_fusion"]["max_logit_difference"] <= 1e-5 and record["images"] == 64
    assert record["crc32"] == crc32(source / "checkpoints/latest/model.safetensors")
    log = (tmp_path / "run/train.log").read_text()
    assert "tensors taken" in log and "against its source" in log


def test_drop_says_how_far_it_is_from_its_source(call, source, dense_recipe, tmp_path):
    call("train", dense_recipe, "--out", tmp_path / "run", "--set", f"fusion={{from: {source}, init: drop}}", check=True)
    record = start(tmp_path / "run")
    assert record["step_0"] == record["first_fusion"] and record["step_0"]["max_logit_difference"] > 1e-4


def test_a_run_from_a_stored_folder_is_that_from_the_source(call, source, dense_recipe, tmp_path):
    call("upcycle", source, "--experts", 3, "--init", "drop", "--seed", 3, "-o", tmp_path / "up", check=True)
    call("train", dense_recipe, "--out", tmp_path / "a", "--set", f"fusion={{from: {source}, init: drop, experts: 3}}", check=True)
    call("train", dense_recipe, "--out", tmp_path / "b", "--set", f"fusion={{from: {tmp_path / 'up'}, experts: 3}}", check=True)
    for file in ("model.safetensors", "experts.safetensors"):
        assert crc32(tmp_path / "a/checkpoints/latest" / file) == crc32(tmp_path / "b/checkpoints/latest" / file)
    assert start(tmp_path / "b")["init"] == "stored" and start(tmp_path / "b")["step_0"]["max_logit_difference"] == 0


@pytest.mark.parametrize("kind", ["upcycled", "stored", "fine-tuned"])
def test_a_run_goes_on_without_its_source_and_bit_for_bit(call, source, dense_recipe, tmp_path, kind):
    own = tmp_path / "own"
    if kind == "stored":
        call("upcycle", source, "--experts", 2, "--init", "drop", "-o", own, check=True)
    else:
        shutil.copytree(source / "export", own)
    choice = {"upcycled": f"fusion={{from: {own}, init: drop, experts: 2}}", "stored": f"fusion={{from: {own}, experts: 2}}",
              "fine-tuned": f"init_from={own}"}[kind]
    call("train", dense_recipe, "--out", tmp_path / "whole", "--set", choice, check=True)
    call("train", dense_recipe, "--out", tmp_path / "cut", "--set", choice, check=True)
    shutil.rmtree(own)
    for checkpoint in checkpoints(tmp_path / "cut")[1:]:
        shutil.rmtree(checkpoint)
    call("train", "--resume", tmp_path / "cut", check=True)
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert crc32(tmp_path / "cut/checkpoints/latest" / file) == crc32(tmp_path / "whole/checkpoints/latest" / file)
    call("eval", tmp_path / "cut", check=True)
    shutil.rmtree(tmp_path / "cut/checkpoints")
    (tmp_path / "cut/checkpoints").mkdir()
    refused(call("train", "--resume", tmp_path / "cut"), "no such")


def test_fine_tuning_goes_on_where_the_source_stands(call, source, dense_recipe, tmp_path):
    call("train", dense_recipe, "--out", tmp_path / "run", "--set", f"init_from={source}", *settings(optim__lr=0, train__steps=1),
         check=True)
    dense = tensors(source / "checkpoints/latest/model.safetensors")
    found = tensors(tmp_path / "run/checkpoints/latest/model.safetensors")
    assert all(numpy.array_equal(found[name], dense[name]) for name in dense)
    assert rows(tmp_path / "run")["eval/accuracy"][-1] == rows(source)["eval/accuracy"][-1]
    assert not (tmp_path / "run/start.json").exists()


@pytest.mark.parametrize("choice, words", [
    (["init_from={source}", "model.dim=32"], ["'head.weight' is [10, 16], expected [10, 32]", "init_skip"]),
    (["init_from={source}", "init_skip=[heads.]"], ["init_skip names 'heads.'"]),
    (["init_from={source}", "model.heads=4"], ["2 attention heads"]),
    (["init_from={source}", "fusion={{from: {source}, init: drop}}"], ["one of them"]),
    (["init_from=nowhere"], ["nowhere", "no such"]),
    (["init_skip=[head.]"], ["init_from or fusion.from"]),
    (["fusion={{from: {source}}}"], ["fusion.init must say"]),
    (["fusion={{from: {source}, init: independent}}"], ["choose copy"]),
    (["fusion={{from: {source}, init: copy}}"], ["never separate"]),
])
def test_a_start_that_cannot_be_is_one_line_and_leaves_no_folder(call, source, dense_recipe, tmp_path, choice, words):
    sets = [word for text in choice for word in ("--set", text.format(source=source))]
    assert len(refused(call("train", dense_recipe, "--out", tmp_path / "run", *sets), *words)) == 1
    assert not (tmp_path / "run").exists()


# ---- averages of checkpoints


def mean(folders):
    """In double precision, oldest first, rounded once."""
    all_tensors = [tensors(folder / "model.safetensors") for folder in folders]
    means = {}
    for name in all_tensors[0]:
        total = all_tensors[0][name].astype("f8")
        for other in all_tensors[1:]:
            total = total + other[name]
        means[name] = (total / len(folders)).astype("f4")
    return means


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_average_is_numpys(call, source, tmp_path, count):
    done = call("export", source, "--average", count, "-o", tmp_path / "out", "--json", check=True)
    chosen = checkpoints(source)[-count:]
    found = tensors(tmp_path / "out/model.safetensors")
    for name, value in mean(chosen).items():
        assert numpy.array_equal(found[name], value), name
    result = json.loads(done.stdout)
    assert [member["step"] for member in result["average"]["checkpoints"]] == [state(folder)["step"] for folder in chosen]
    assert all(member["kept"] for member in result["average"]["checkpoints"])
    if count == 1:
        assert crc32(tmp_path / "out/model.safetensors") == crc32(source / "export/model.safetensors")
    else:
        assert f"average of {count}" in (tmp_path / "out/README.md").read_text()
        assert "not measured" in (tmp_path / "out/README.md").read_text()


def test_a_greedy_average_never_is_worse_on_the_held_out_images(call, source, tmp_path):
    done = call("export", source, "--average", 3, "--greedy", "-o", tmp_path / "out", "--json", check=True)
    result = json.loads(done.stdout)["average"]
    members = result["checkpoints"]
    assert len(members) == 3 and members[0]["kept"]
    assert result["validation_accuracy"] >= max(member["validation_accuracy"] for member in members)
    kept = [source / f"checkpoints/step-{member['step']:08d}" for member in members if member["kept"]]
    found = tensors(tmp_path / "out/model.safetensors")
    assert all(numpy.array_equal(found[name], value) for name, value in mean(kept).items())


def test_an_average_that_cannot_be_is_refused(call, source, dense_recipe, tmp_path):
    out = ["-o", tmp_path / "out"]
    count = len(checkpoints(source))
    refused(call("export", source, "--average", count + 1, *out), f"has {count} checkpoint", f"at least {count + 1}")
    refused(call("export", source, "--average", 0, *out), "at least 1")
    refused(call("export", source, "--greedy", *out), "--average")
    refused(call("export", source, "--average", 2, "--what", "best", *out), "--what")
    refused(call("export", source / "export", "--average", 1, *out), "not a run")
    call("train", dense_recipe, "--out", tmp_path / "plain", "--set", "data.validation=0", check=True)
    refused(call("export", tmp_path / "plain", "--average", 2, "--greedy", *out), "data.validation", "test set")
    assert not (tmp_path / "out").exists()
