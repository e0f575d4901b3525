"""exfusion-prune: what transformers makes of a pruned folder against the same model with those experts masked; our own models; bad input."""

import json
import shutil

import h5py
import numpy as np
import pytest

from programs import RECIPE, call, refused, tensors, write_recipe  # noqa: F401

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file  # noqa: E402

from tiny_mixtures import EXPERTS, TOP_K, make_mixture, routed_blocks, token_batch  # noqa: E402

FAMILIES = ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe"]


def saved(folder, name, dtype=torch.float32, shards=False, **changes):
    """A tiny model in a folder as the hub has them, with a tokenizer of sorts."""
    model = make_mixture(name, dtype, **changes)
    model.save_pretrained(folder, max_shard_size="20KB" if shards else "1GB")
    (folder / "tokenizer.json").write_text("{}")
    assert (folder / "model.safetensors.index.json").exists() == shards
    return model


def write_scores(path, layers, experts=EXPERTS, seed=0, name="man"):
    """exfusion-analyze's JSON, as far as it is read; returns the values."""
    rng = np.random.default_rng(seed)
    values = {layer: rng.normal(size=experts).round(3).tolist() for layer in layers}
    path.write_text(json.dumps({"layers": [{"layer": layer, "scores": {name: {"values": of_layer}}} for layer, of_layer in values.items()]}))
    return values


def highest(values, number):
    return {layer: sorted(sorted(range(len(of_layer)), key=lambda e: (of_layer[e], e))[-number:]) for layer, of_layer in values.items()}


def weights_of(folder):
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def logits(model, masked={}):
    """Logits of padded texts. `masked`: {layer: experts that stay}; the logits of the others are -inf inside the family's own router."""
    ids, mask = token_batch()
    plain = torch.nn.functional.linear
    offsets = {}
    for layer, kept in masked.items():
        offsets[routed_blocks(model)[layer].gate.weight] = torch.full((EXPERTS,), -torch.inf).index_fill(0, torch.tensor(kept), 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", lambda x, weight, bias=None: plain(x, weight, bias) + offsets.get(weight, 0.0))
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=mask).logits[mask.bool()]


@pytest.mark.parametrize("name, dtype, shards", [(name, torch.float32, False) for name in FAMILIES] + [
    ("olmoe", torch.bfloat16, True), ("mixtral", torch.bfloat16, False), ("qwen2_moe", torch.float32, True), ("qwen3_moe", torch.float16, True)])
def test_transformers_loads_a_model_that_equals_the_masked_one(call, tmp_path, name, dtype, shards):
    model = saved(tmp_path / "in", name, dtype, shards)
    values = write_scores(tmp_path / "scores.json", routed_blocks(model))
    done = call("prune", tmp_path / "in", "--score", "man", "--keep", 0.5, "--scores", tmp_path / "scores.json", "-o", tmp_path / "out", "--json", check=True)
    kept = highest(values, 3)
    assert json.loads(done.stdout)["kept"] == {str(layer): experts for layer, experts in kept.items()}
    pruned, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert pruned.config.num_experts == 3 and pruned.dtype == dtype
    assert all(block.gate.weight.shape[0] == 3 for block in routed_blocks(pruned).values())
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "in", dtype="auto").float().eval()
    expected = logits(model, masked=kept)
    assert (logits(pruned.float().eval()) - expected).abs().max() <= 1e-5
    assert (logits(model) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("shards", [False, True])
def test_what_remains_is_there_bit_for_bit(call, tmp_path, shards):
    saved(tmp_path / "in", "olmoe", torch.bfloat16, shards)
    kept = highest(write_scores(tmp_path / "scores.json", range(3)), 2)
    (tmp_path / "in" / "pytorch_model.bin").write_text("weights")
    (tmp_path / "in" / "original").mkdir()
    call("prune", tmp_path / "in", "--score", "man", "--keep", 0.3, "--scores", tmp_path / "scores.json", "-o", tmp_path / "out", check=True)
    before, after = weights_of(tmp_path / "in"), weights_of(tmp_path / "out")
    expected = {}
    for name, value in before.items():
        parts = name.split(".")
        experts = kept[int(parts[2])] if ".mlp." in name else None
        if ".mlp.experts." in name:
            if int(parts[5]) in experts:
                expected[".".join([*parts[:5], str(experts.index(int(parts[5]))), *parts[6:]])] = value
        else:
            expected[name] = value[experts] if name.endswith(".gate.weight") else value
    assert expected.keys() == after.keys()
    assert all(after[name].dtype == torch.bfloat16 and torch.equal(after[name].view(torch.int16), value.view(torch.int16)) for name, value in expected.items())
    before, after = (json.loads((tmp_path / place / "config.json").read_text()) for place in ("in", "out"))
    assert after == {**before, "num_experts": 2}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "generation_config.json", "config.json"} <= names and not names & {"pytorch_model.bin", "original"}
    if shards:
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == {name: path.name for path in (tmp_path / "out").glob("*.safetensors") for name in load_file(path)}
        assert index["metadata"] == {"total_parameters": sum(value.numel() for value in expected.values()),
                                     "total_size": sum(2 * value.numel() for value in expected.values())}


def test_a_snapshot_of_the_hub_is_links(call, tmp_path):
    saved(tmp_path / "blobs", "mixtral", shards=True)
    (tmp_path / "snapshot").mkdir()
    for number, path in enumerate((tmp_path / "blobs").iterdir()):
        (tmp_path / "snapshot" / path.name).symlink_to(path.rename(path.with_name(str(number))))
    call("prune", tmp_path / "snapshot", "--score", "aimer", "--keep", 1, "-o", tmp_path / "new" / "out", check=True)
    before, after = weights_of(tmp_path / "snapshot"), weights_of(tmp_path / "new" / "out")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not any(path.is_symlink() for path in (tmp_path / "new" / "out").iterdir())


@pytest.mark.parametrize("score", ["aimer", "weight_norm", "router_norm"])
@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_scores_by_weights_are_numpys(call, tmp_path, name, score):
    model = saved(tmp_path / "in", name)
    values = {}
    for layer, block in routed_blocks(model).items():
        weights = np.concatenate([part.detach().double().numpy().reshape(EXPERTS, -1) for part in (block.experts.gate_up_proj, block.experts.down_proj)], 1)
        router = block.gate.weight.detach().double().numpy()
        values[layer] = {"aimer": -np.abs(weights).mean(1) / np.sqrt((weights**2).mean(1)), "weight_norm": np.linalg.norm(weights, axis=1),
                         "router_norm": np.linalg.norm(router, axis=1)}[score].tolist()
    done = call("prune", tmp_path / "in", "--score", score, "--keep", 0.5, "-o", tmp_path / "out", "--json", check=True)
    assert json.loads(done.stdout)["kept"] == {str(layer): experts for layer, experts in highest(values, 3).items()}


# Tokens as {expert: (gate, norm)}, and the expert that each criterion prunes: the frequent weak one or the rare strong one.
TOKENS = [{0: (.6, 1), 1: (.4, 3)}, {0: (.7, 1), 1: (.3, 3)}, {0: (.9, 1), 2: (.1, 8)}, {0: (.5, 1), 1: (.5, 3)}]
PRUNED = {"frequency": 2, "seer": 2, "ean": 0, "reap": 0, "man": 0, "msan": 0, "gate_norm": 2, "gate_norm_sq": 2, "s_011": 2, "s_022": 2}


@pytest.mark.parametrize("from_json", [False, True])
def test_every_criterion_prunes_the_expert_that_it_should(call, tmp_path, from_json):
    saved(tmp_path / "in", "olmoe", num_experts=3, num_hidden_layers=1)
    g, n = np.zeros((4, 3)), np.zeros((4, 3))
    for t, token in enumerate(TOKENS):
        for expert, (gate, norm) in token.items():
            g[t, expert], n[t, expert] = gate, norm
    scores = tmp_path / "trace.h5"
    with h5py.File(scores, "w") as file:
        file.attrs.update({"format": "exfusion-trace", "version": 1, "num_experts": 3, "top_k": 2})
        layer = file.create_group("layer_000")
        layer["tokens"] = np.ones(4, int)
        for field, value in (("count", (g > 0).astype(int)), ("sum_gate", g), ("sum_norm", n), ("sum_norm_sq", n**2), ("sum_gate_norm", g * n),
                             ("sum_gate_norm_sq", (g * n)**2)):
            layer[field] = value
    if from_json:
        text = call("analyze", scores, "--json", check=True).stdout
        scores = tmp_path / "analysis.json"
        scores.write_text(text)
    for score, expert in PRUNED.items():
        done = call("prune", tmp_path / "in", "--score", score, "--keep", 0.6, "--scores", scores, "-o", tmp_path / score, "--json", check=True)
        assert json.loads(done.stdout)["kept"]["0"] == [e for e in range(3) if e != expert], score


# ---- our own models

TOPK = RECIPE.replace("fusion: {experts: 3, weights: learned, lr: 0.05}\n", "").replace(
    "pool: token}", "pool: token, ffn: {name: topk, experts: 4, layers: 'last:1'}}")


@pytest.fixture(scope="module")
def own_run(call, tmp_path_factory):
    place = tmp_path_factory.mktemp("topk")
    call("train", write_recipe(place, TOPK), "--out", place / "run", check=True)
    return place / "run"


def evaluated(call, model, tmp_path):
    call("eval", model, "--data", "synthetic", "--logits", tmp_path / "logits.safetensors", "--threads", 1, check=True)
    return tensors(tmp_path / "logits.safetensors")["logits"]


def test_our_own_models_are_pruned_from_run_checkpoint_and_export(call, own_run, tmp_path):
    write_scores(tmp_path / "scores.json", [1], 4)
    found = []
    for number, source in enumerate((own_run, own_run / "checkpoints" / "latest", own_run / "export")):
        out = tmp_path / f"out{number}"
        call("prune", source, "--score", "man", "--scores", tmp_path / "scores.json", "--keep", 0.5, "-o", out, check=True)
        config = json.loads((out / "config.json").read_text())
        assert config["exfusion"]["ffn"]["experts"] == 2 and config["exfusion"]["ffn"]["layers"] == ["last:1"]
        assert tensors(out / "model.safetensors")["blocks.1.mlp.experts.fc1.weight"].shape[0] == 2
        found.append(evaluated(call, out, tmp_path))
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()
    whole = tmp_path / "whole"
    call("prune", own_run, "--score", "aimer", "--keep", 1, "-o", whole, check=True)
    assert (evaluated(call, whole, tmp_path) == evaluated(call, own_run / "export", tmp_path)).all()
    assert not (found[0] == evaluated(call, whole, tmp_path)).all()


# ---- bad input


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("olmoe") / "in"
    saved(folder, "olmoe")
    write_scores(folder.parent / "scores.json", range(3))
    return folder


@pytest.mark.parametrize("change, words", [
    ({"--score": "best"}, ["best", "msan", "aimer"]),
    ({"--score": None}, ["--score"]),
    ({"--keep": None}, ["--keep"]),
    ({"-o": None}, ["-o DIR"]),
    ({"--keep": "0"}, ["--keep 0"]),
    ({"--keep": "1.5"}, ["--keep 1.5"]),
    ({"--keep": "nan"}, ["--keep nan"]),
    ({"--keep": "half"}, ["--keep"]),
    ({"--keep": "0.1"}, ["--keep 0.1", "1 of 6 experts", "selects 2"]),
    ({"--scores": None}, ["--scores", "aimer"]),
    ({"--scores": "/nonexistent"}, ["/nonexistent", "no such file"]),
    ({"--score": "aimer"}, ["leave --scores out"]),
    ({"--score": "msan"}, ["layer 0", "msan"]),
    ({"--score": "taylor"}, ["layer 0", "taylor"]),
])
def test_bad_options_are_refused(call, model_folder, tmp_path, change, words):
    options = {"--score": "man", "--keep": "0.5", "--scores": model_folder.parent / "scores.json", "-o": tmp_path / "out", **change}
    done = call("prune", model_folder, *[word for name, value in options.items() if value is not None for word in (name, value)])
    assert len(refused(done, *words)) == 1
    assert not any(path.name.startswith("out") for path in tmp_path.iterdir())


@pytest.mark.parametrize("layers, experts, words", [([0, 1], EXPERTS, ["layers 0 1", "0 1 2"]), (range(3), EXPERTS + 1, ["7 experts", "has 6"]),
                                                    ([0, 1, 5], EXPERTS, ["0 1 5"])])
def test_scores_of_another_model_are_refused(call, model_folder, tmp_path, layers, experts, words):
    write_scores(tmp_path / "scores.json", layers, experts)
    done = call("prune", model_folder, "--score", "man", "--keep", "0.5", "--scores", tmp_path / "scores.json", "-o", tmp_path / "out")
    refused(done, *words)


@pytest.mark.parametrize("text, words", [("[]", ["not a JSON object"]), ("{}", ["layers must be a list"]), ("", ["not a JSON object"]),
                                         ('{"layers": [{"layer": 0, "scores": {"man": {"values": [1, null]}}}]}', ["layer 0: man holds something else than numbers"]),
                                         (None, ["not a regular file"])])
def test_files_that_hold_no_scores_are_refused(call, model_folder, tmp_path, text, words):
    file = tmp_path / "scores.json"
    file.mkdir() if text is None else file.write_text(text)
    refused(call("prune", model_folder, "--score", "man", "--keep", "0.5", "--scores", file, "-o", tmp_path / "out"), *words)


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: value for key, value in {**config, **changes}.items() if value is not None}))


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


EXPERT = "model.layers.1.mlp.experts.4.up_proj.weight"
GATE = "model.layers.1.mlp.gate.weight"


@pytest.mark.parametrize("damage, words", [
    (lambda folder: edit_config(folder, model_type="llama"), ["llama", "olmoe"]),
    (lambda folder: edit_config(folder, num_experts=None), ["num_experts"]),
    (lambda folder: edit_config(folder, num_experts=7), ["6", "7"]),
    (lambda folder: edit_config(folder, num_experts=5), ["5"]),
    (lambda folder: edit_config(folder, num_experts=-1), ["num_experts"]),
    (lambda folder: edit_config(folder, num_experts=2**40), ["num_experts"]),
    (lambda folder: edit_config(folder, num_experts="six"), ["num_experts"]),
    (lambda folder: edit_config(folder, num_local_experts=4), ["num_local_experts"]),
    (lambda folder: edit_config(folder, num_experts_per_tok=9), ["num_experts_per_tok"]),
    (lambda folder: (folder / "config.json").write_text("[" * 10000), ["config.json"]),
    (lambda folder: (folder / "model.safetensors").unlink(), ["model.safetensors"]),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"\x10" * 20), ["model.safetensors"]),
    (lambda folder: edit_weights(folder, lambda w: w.pop(EXPERT)), ["layer 1", "17"]),
    (lambda folder: edit_weights(folder, lambda w: w.pop(GATE)), ["layer 1", "no router"]),
    (lambda folder: edit_weights(folder, lambda w: w.update({EXPERT: w[EXPERT][:, 1:].contiguous()})), ["experts.", "same shape"]),
    (lambda folder: edit_weights(folder, lambda w: w.update({GATE: w[GATE][1:].clone()})), ["gate", "rows"]),
    (lambda folder: edit_weights(folder, lambda w: w.update({EXPERT: w[EXPERT][0].clone()})), ["experts."]),
    (lambda folder: edit_weights(folder, lambda w: w.update({EXPERT + "_scale": w.pop(EXPERT)})), ["quantized"]),
    (lambda folder: edit_weights(folder, lambda w: w.update({EXPERT: w[EXPERT].to(torch.int8)})), [EXPERT, "of type I8", "quantized"]),
    (lambda folder: edit_weights(folder, lambda w: w.update({"lm_head.weight": w["lm_head.weight"].to(torch.float8_e4m3fn)})), ["lm_head", "F8_E4M3"]),
    (lambda folder: edit_weights(folder, lambda w: [w.pop(name) for name in list(w) if ".mlp." in name]), ["no tensors"]),
])
def test_damaged_models_are_refused(call, model_folder, tmp_path, damage, words):
    folder = shutil.copytree(model_folder, tmp_path / "in")
    damage(folder)
    done = call("prune", folder, "--score", "man", "--keep", "0.5", "--scores", model_folder.parent / "scores.json", "-o", tmp_path / "out")
    assert len(refused(done, *words)) == 1
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("damage, words", [
    (lambda map: map.update({"model.norm.weight": "../model-00001-of-00007.safetensors"}), ["weight_map", "no name"]),
    (lambda map: map.update({"model.norm.weight": "config.json"}), ["weight_map", "no name"]),
    (lambda map: map.update({"model.norm.weight": "model-00009.safetensors"}), ["model-00009", "no such file"]),
    (lambda map: map.update({"model.more.weight": map["model.norm.weight"]}), ["model.more.weight", "missing"]),
    (lambda map: map.pop("model.norm.weight"), ["model.norm.weight"]),
])
def test_a_damaged_index_is_refused(call, tmp_path, damage, words):
    saved(tmp_path / "in", "olmoe", shards=True)
    path = tmp_path / "in" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    damage(index["weight_map"])
    path.write_text(json.dumps(index))
    done = call("prune", tmp_path / "in", "--score", "weight_norm", "--keep", "0.5", "-o", tmp_path / "out")
    refused(done, *words)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_have_no_score(call, model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "in")
    edit_weights(folder, lambda weights: weights[EXPERT].fill_(torch.nan))
    refused(call("prune", folder, "--score", "aimer", "--keep", "0.5", "-o", tmp_path / "out"), "layer 1, expert 4", "not finite")


def test_a_folder_that_exists_is_left_alone(call, model_folder, own_run, tmp_path):
    (tmp_path / "out").mkdir()
    for source in (model_folder, own_run):
        refused(call("prune", source, "--score", "aimer", "--keep", "0.5", "-o", tmp_path / "out"), "exists")
    assert not list((tmp_path / "out").iterdir())


def test_other_models_are_refused(call, tmp_path):
    run = tmp_path / "run"
    call("train", write_recipe(tmp_path), "--out", run, check=True)
    refused(call("prune", run, "--score", "aimer", "--keep", "0.5", "-o", tmp_path / "out"), "dense", "topk")
    refused(call("prune", tmp_path / "none", "--score", "aimer", "--keep", "0.5", "-o", tmp_path / "out"), "none")
