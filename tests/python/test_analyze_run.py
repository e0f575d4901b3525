"""exfusion-analyze on runs and checkpoints: knock-outs and rank correlations against PyTorch on the stored weights; bad input."""

import json
import shutil

import h5py
import numpy
import pytest

from programs import call, checkpoints, refused, settings, tensors, write_recipe  # noqa: F401

torch = pytest.importorskip("torch")
stats = pytest.importorskip("scipy.stats")
F = torch.nn.functional

DIM, DEPTH, HEADS, CLASSES, BATCH = 16, 2, 2, 4, 16
BATCHES = 8
RECIPE = """\
name: watched
seed: 3
model: {arch: vit, dim: 16, depth: 2, heads: 2, patch: 4, image: 8, channels: 1, classes: 4, pool: token}
data: {name: hdf5, root: ROOT}
train: {steps: 9, global_batch: 32, threads: 1, eval_every_steps: 9}
optim: {lr: 0.02, schedule: {name: constant}}
checkpoint: {every_steps: 1, every_epochs: 0, keep: 20}
"""
FFN = "model.ffn={name: topk, experts: 4, top_k: 2, balance_loss: 0}"
FUSION = "fusion={experts: 3, weights: memory, momentum: 0.5, init: independent}"


def made_data(folder, seed):
    """Classes are patterns under noise."""
    rng = numpy.random.default_rng(seed)
    patterns = numpy.random.default_rng(0).uniform(40, 215, (CLASSES, 1, 8, 8))
    folder.mkdir()
    for name, count in (("train", 192), ("test", BATCH * BATCHES)):
        labels = rng.integers(0, CLASSES, count)
        images = numpy.clip(patterns[labels] + rng.normal(0, 90, (count, 1, 8, 8)), 0, 255)
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file.create_dataset("images", data=images, dtype="uint8")
            file.create_dataset("labels", data=labels, dtype="int64")
    return folder


@pytest.fixture(scope="module")
def runs(call, tmp_path_factory):
    """{kind: a finished run of nine steps with a checkpoint after each}, and the data."""
    place = tmp_path_factory.mktemp("runs")
    data = made_data(place / "data", 1)
    recipe = write_recipe(place, RECIPE.replace("ROOT", str(data)))
    for kind, sets in (("topk", [FFN]), ("memory", [FUSION]), ("dense", [])):
        call("train", recipe, "--out", place / kind, *(word for text in sets for word in ("--set", text)), check=True)
    return {"data": data, **{kind: place / kind for kind in ("topk", "memory", "dense")}}


@pytest.fixture(scope="module")
def reports(call, runs):
    """{kind: the JSON of the run}"""
    return {kind: json.loads(call("analyze", runs[kind], "--batches", BATCHES, "--json", env={"OMP_NUM_THREADS": "1"}, check=True).stdout)
            for kind in ("topk", "memory", "dense")}


# ---- the same in PyTorch, in double precision


def weights(run, file="model.safetensors"):
    return {name: torch.from_numpy(value).double() for name, value in tensors(checkpoints(run)[-1] / file).items()}


def held_out(runs):
    with h5py.File(runs["data"] / "test.h5") as file:
        return (torch.from_numpy(file["images"][:]).double() / 255 - 0.5) / 0.5, torch.from_numpy(file["labels"][:])


def mlp(x, w1, b1, w2, b2):
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


def logits(w, images, ffn):
    """ffn(block, input) -> output."""
    norm = lambda x, name: F.layer_norm(x, (DIM,), w[name + ".weight"], w[name + ".bias"], 1e-6)  # noqa: E731
    linear = lambda x, name: F.linear(x, w[name + ".weight"], w[name + ".bias"])  # noqa: E731
    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=4).flatten(2).transpose(1, 2)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1) + w["pos_embed"]
    for i in range(DEPTH):
        qkv = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").view(*x.shape[:2], 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
        x = x + linear(F.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(x.shape), f"blocks.{i}.attn.proj")
        x = x + ffn(i, norm(x, f"blocks.{i}.norm2"))
    return linear(norm(x[:, 0], "norm"), "head")


def topk_ffn(w, counts=None, out=None):
    """`out` (block, expert) is taken out; counts[block] receives [images, tokens, N], who was chosen."""
    def ffn(i, x):
        p = f"blocks.{i}.mlp."
        scores = x @ w[p + "router.weight"].T
        chosen = torch.zeros_like(scores).scatter(-1, scores.topk(2).indices, 1.0)
        if counts is not None:
            counts[i] = chosen
        if out and out[0] == i:
            scores[..., out[1]] = -torch.inf
            chosen = torch.zeros_like(scores).scatter(-1, scores.topk(2).indices, 1.0)
        gates = scores.softmax(-1) * chosen
        gates = gates / gates.sum(-1, keepdim=True)
        each = [mlp(x, *(w[f"{p}experts.{name}"][k] for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"))) for k in range(4)]
        return sum(gates[..., k:k + 1] * each[k] for k in range(4))
    return ffn


def image_losses(w, images, labels, ffn):
    found = logits(w, images, ffn)
    return F.cross_entropy(found, labels, reduction="none").numpy(), (found.argmax(1) == labels).numpy().astype(float)


@pytest.fixture(scope="module")
def topk_changes(runs):
    """[block][expert] (loss, right answers) [images] without it, less those of the model; and who was chosen, [block][images, tokens, N]."""
    w, (images, labels), counts = weights(runs["topk"]), held_out(runs), {}
    loss, correct = image_losses(w, images, labels, topk_ffn(w, counts))
    changes = []
    for block in range(DEPTH):
        changes.append([])
        for expert in range(4):
            other = image_losses(w, images, labels, topk_ffn(w, out=(block, expert)))
            changes[block].append((other[0] - loss, other[1] - correct))
    return changes, counts


def test_a_top_k_expert_taken_out_costs_what_pytorch_says(reports, runs, topk_changes):
    labels = held_out(runs)[1].numpy()
    for block, layer in enumerate(reports["topk"]["layers"]):
        found = layer["knock_out"]
        for k in range(4):
            loss, correct = topk_changes[0][block][k]
            assert found["loss"][k] == pytest.approx(loss.mean(), abs=2e-6)
            assert found["accuracy"][k] == pytest.approx(correct.mean(), abs=1e-9)
            assert found["loss_by_class"][k] == pytest.approx([loss[labels == c].mean() for c in range(CLASSES)], abs=2e-6)
            assert found["loss_ci"][k][0] <= found["loss"][k] <= found["loss_ci"][k][1]
        assert layer["braess"]["share"] == pytest.approx(numpy.mean([change[0].mean() < 0 for change in topk_changes[0][block]]))
    assert max(abs(loss) for layer in reports["topk"]["layers"] for loss in layer["knock_out"]["loss"]) > 1e-3


def test_rank_correlations_are_scipys_between_disjoint_halves(reports, topk_changes):
    changes, counts = topk_changes
    even = (numpy.arange(BATCH * BATCHES) // BATCH) % 2 == 0
    rhos = []
    for block, layer in enumerate(reports["topk"]["layers"]):
        frequency = counts[block].numpy()[even].sum((0, 1))
        rhos.append(stats.spearmanr(frequency, [loss[~even].mean() for loss, _ in changes[block]])[0])
        found = layer["rank_correlations"]["frequency"]
        assert found["rho"] == pytest.approx(rhos[-1], abs=1e-9)
        assert found["ci"] is None or found["ci"][0] <= found["ci"][1]
        assert {"man", "reap", "msan", "taylor", "rsd"} <= set(layer["rank_correlations"])
    assert reports["topk"]["model"]["rank_correlations"]["frequency"]["rho"] == pytest.approx(numpy.mean(rhos), abs=1e-9)


def test_routing_is_that_of_the_stored_weights(reports, topk_changes):
    for block, layer in enumerate(reports["topk"]["layers"]):
        load = topk_changes[1][block].numpy().sum((0, 1))
        assert layer["imbalance"]["max_mean"] == pytest.approx(load.max() / load.mean(), rel=1e-9)
        for field in ("gamma_eff", "gamma_null", "gamma_excess", "heldout_l1", "scores", "lens", "interference", "interaction"):
            assert field in layer, field


def test_a_fused_expert_left_out_or_alone_costs_what_pytorch_says(reports, runs):
    w, experts, (images, labels) = weights(runs["memory"]), weights(runs["memory"], "experts.safetensors"), held_out(runs)
    names = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
    dense = lambda i, x: mlp(x, *(w[f"blocks.{i}.mlp.{name}"] for name in names))  # noqa: E731
    base = image_losses(w, images, labels, dense)[0]
    for block, layer in enumerate(reports["memory"]["layers"]):
        a = experts[f"blocks.{block}.mlp.a"]
        assert layer["fused"]["a"] == pytest.approx(a.tolist(), abs=1e-7)
        for k in range(3):
            def with_tensors(change):
                changed = [change(w[f"blocks.{block}.mlp.{name}"], experts[f"blocks.{block}.mlp.{name}"][k]) for name in names]
                return image_losses(w, images, labels, lambda i, x: mlp(x, *changed) if i == block else dense(i, x))[0] - base
            left_out = with_tensors(lambda whole, one: (whole - a[k] * one) / (1 - a[k]))
            assert layer["knock_out"]["loss"][k] == pytest.approx(left_out.mean(), abs=1e-5)
            assert layer["alone"]["loss"][k] == pytest.approx(with_tensors(lambda whole, one: one).mean(), abs=1e-5)
        assert len(layer["random_step"]["loss"]) == 20
        assert {"a", "share", "offset_norm", "virtual_load", "first_order", "alpha_saliency"} == set(layer["rank_correlations"])
    everywhere = [image_losses(w, images, labels, lambda i, x: mlp(x, *(experts[f"blocks.{i}.mlp.{name}"][k] for name in names)))[0] - base
                  for k in range(3)]
    assert reports["memory"]["model"]["alone"]["loss"] == pytest.approx([one.mean() for one in everywhere], abs=1e-5)


def nulls(value, path=""):
    if isinstance(value, dict):
        return {found for key, inner in value.items() if key != "undefined" for found in nulls(inner, f"{path}.{key}" if path else key)}
    return {path} if value is None else set()


@pytest.mark.parametrize("kind", ["topk", "memory", "dense"])
def test_a_report_holds_every_checkpoint_and_a_reason_for_every_null(reports, runs, kind):
    report = reports[kind]
    assert list(report) == ["layers", "model", "checkpoints"]
    assert [one["model"]["step"] for one in report["checkpoints"]] == list(range(1, 9)) and report["model"]["step"] == 9
    assert report["model"]["experts_kind"] == {"topk": "topk", "memory": "fused", "dense": "dense"}[kind]
    assert report["model"]["held_out"]["split"] == "test" and report["model"]["held_out"]["images"] == BATCH * BATCHES
    assert all("knock_out" not in layer for one in report["checkpoints"] for layer in one["layers"])
    assert [layer["layer"] for layer in report["layers"]] == [0, 1]
    for part in [*report["layers"], report["model"]]:
        assert nulls(part) <= set(part["undefined"])


def test_the_loss_is_that_of_the_program_that_evaluates(reports, runs, call):
    done = json.loads(call("eval", runs["topk"], "--json", "--threads", "1", check=True).stdout)
    found = reports["topk"]["model"]["held_out"]
    assert (found["loss"], found["accuracy"]) == pytest.approx((done["loss"], done["accuracy"]), rel=1e-5)


def test_phases_need_eight_points_and_have_them(reports):
    phases = reports["topk"]["model"]["phases"]
    assert phases["gamma_eff"]["steps"] == list(range(1, 10))
    assert phases["gamma_eff"]["breaks"] in (0, 1, 2) and len(phases["gamma_eff"]["slopes"]) == phases["gamma_eff"]["breaks"] + 1
    assert "functional_diversity" in reports["memory"]["model"]["phases"]


def test_congestion_has_intervals_at_every_step_that_the_run_logged(call, runs, tmp_path):
    recipe = write_recipe(tmp_path, RECIPE.replace("ROOT", str(runs["data"])).replace("keep: 20", "keep: 1"))
    call("train", recipe, "--out", tmp_path / "run", "--set", FFN, "--set",
         "analysis={groups: [load, congestion], every: [1, 4, 9], batches: 5, batch: 16}", check=True)
    report = json.loads(call("analyze", tmp_path / "run", "--groups", "congestion", "--json", "-o", tmp_path / "out", check=True).stdout)
    assert list(report) == ["layers", "model", "training"] and [at["model"]["step"] for at in report["training"]] == [1, 4, 9]
    with h5py.File(tmp_path / "run/metrics.h5") as file:
        logged = [{name: values[:] for name, values in file[f"analysis/congestion/layer_00{block}"].items()} for block in range(DEPTH)]
    known = 0
    for row, at in enumerate(report["training"]):
        for block, layer in enumerate(at["layers"]):
            for field, tolerance in (("gamma_eff", 1e-9), ("gamma_iv", 1e-9), ("sigma", 1e-9), ("gamma_null", 0.1), ("gamma_excess", 0.1)):
                value = logged[block][field][row]
                assert (layer[field] is None) == numpy.isnan(value), (field, at)
                assert layer[field] is None or layer[field] == pytest.approx(value, rel=1e-9, abs=tolerance), field
            assert layer["gamma_null"] is not None
            assert {"E3": 3, "E1'": 1}.get(layer["gamma_estimator"], -1) == numpy.nan_to_num(logged[block]["gamma_estimator"][row], nan=-1)
            if layer["gamma_ci"]:
                assert layer["gamma_ci"][0] <= layer["gamma_eff"] <= layer["gamma_ci"][1]
                known += 1
        assert nulls(at["model"]) == set(at["model"]["undefined"])
    assert known > 0
    assert "Congestion at the steps that the run itself analysed" in (tmp_path / "out/analysis.md").read_text()
    with h5py.File(tmp_path / "out/analysis.h5") as file:
        assert file["training/1/model/step"][()] == 4


def test_phases_take_the_rows_that_the_run_wrote(call, runs, tmp_path):
    recipe = write_recipe(tmp_path, RECIPE.replace("ROOT", str(runs["data"])).replace("keep: 20", "keep: 1"))
    call("train", recipe, "--out", tmp_path / "run", "--set", FFN, "--set",
         "analysis={groups: [congestion], every: [1, 2, 3, 4, 5, 6, 7, 8, 9], batches: 4, batch: 16}", check=True)
    model = json.loads(call("analyze", tmp_path / "run", "--groups", "congestion", "--json", check=True).stdout)["model"]
    with h5py.File(tmp_path / "run/metrics.h5") as file:
        values = numpy.nanmean([file[f"analysis/congestion/layer_00{i}/gamma_eff"][:] for i in range(DEPTH)], 0)
    assert len(values) == 9 and model["phases"]["gamma_eff"]["values"] == pytest.approx(values[numpy.isfinite(values)].tolist())
    assert set(model["phases"]["gamma_eff"]["steps"]) <= set(range(1, 10))


def test_one_checkpoint_some_groups_and_files(call, runs, tmp_path):
    checkpoint = checkpoints(runs["topk"])[4]
    done = call("analyze", checkpoint, "--groups", "load,causal", "--batches", "3", "--json", "-o", tmp_path / "out", check=True)
    report = json.loads(done.stdout)
    assert list(report) == ["layers", "model"] and report["model"]["step"] == 5
    assert report["model"]["held_out"]["batches"] == 3
    layer = report["layers"][0]
    assert "imbalance" in layer and "knock_out" in layer and "gamma_eff" not in layer and "scores" not in layer and "lens" not in layer
    assert layer["braess"]["share_ci"] is None and layer["undefined"]["braess.share_ci"] == "fewer than 4 batches"
    assert report["model"]["phases"]["max_mean"]["breaks"] is None
    assert json.loads((tmp_path / "out/analysis.json").read_text()) == report
    with h5py.File(tmp_path / "out/analysis.h5") as file:
        assert file["layer_000/knock_out/loss"][:] == pytest.approx(layer["knock_out"]["loss"])
    page = (tmp_path / "out/analysis.md").read_text()
    assert page.startswith("# Analysis of topk, step 5\n") and "taking an expert out costs" in page


def test_the_summary_of_a_run_speaks_in_sentences(call, runs, tmp_path):
    call("analyze", runs["memory"], "--batches", "4", "-o", tmp_path / "out", check=True)
    page = (tmp_path / "out/analysis.md").read_text()
    for words in ("# Analysis of memory, step 9", "random offsets show", "Random steps of the same size cost", "Rank correlation of each score",
                  "One expert alone costs", "## Over training", "kappa"):
        assert words in page, page
    with h5py.File(tmp_path / "out/analysis.h5") as file:
        assert file["checkpoints/0/model/step"][()] == 1


def test_a_link_to_a_checkpoint_has_the_runs_name(call, runs, tmp_path):
    call("analyze", runs["dense"] / "checkpoints/latest", "-o", tmp_path / "out", check=True)
    assert "# Analysis of dense, step 9\n" in (tmp_path / "out/analysis.md").read_text()


def test_the_data_may_be_elsewhere(call, runs, tmp_path):
    data = made_data(tmp_path / "moved", 2)
    report = json.loads(call("analyze", checkpoints(runs["dense"])[-1], "--data", f"root={data}", "--json", check=True).stdout)
    same = json.loads(call("analyze", checkpoints(runs["dense"])[-1], "--json", check=True).stdout)
    assert report["model"]["held_out"]["loss"] != same["model"]["held_out"]["loss"]
    refused(call("analyze", runs["dense"], "--data", f"root={tmp_path}/none", "--json"), f"{tmp_path}/none")
    for words in (["rot=x", "--data rot=x: ", "data.rot", "root"], ["foo", "--data foo: must be key=value"]):
        assert not any("--set" in line for line in refused(call("analyze", runs["dense"], "--data", words[0], "--json"), *words[1:]))


def test_bad_input_is_one_line(call, runs, tmp_path):
    def line(*args):
        return refused(call("analyze", *args, "--json"))[0]

    assert "neither a run" in line(tmp_path)
    assert "an exported model, which has neither a recipe nor held-out data" in line(runs["dense"] / "export")
    (tmp_path / "olmoe").mkdir()
    (tmp_path / "olmoe/config.json").write_text('{"model_type": "olmoe"}')
    assert "record a routing trace of it (experiments/hf_trace)" in line(tmp_path / "olmoe")
    (tmp_path / "upcycled").mkdir()
    (tmp_path / "upcycled/upcycle.json").write_text("{}")
    assert "give a run" in line(tmp_path / "upcycled")
    assert "no such file" in line(tmp_path / "none").lower()
    (tmp_path / "empty/checkpoints").mkdir(parents=True)
    assert "has no checkpoint" in line(tmp_path / "empty")
    assert "the model has no experts" in line(runs["dense"], "--groups", "fused")
    assert "the model has topk experts" in line(runs["topk"], "--groups", "fused")
    assert "the model has fused experts" in line(runs["memory"], "--groups", "congestion")
    assert "'lods': unknown; choose from load,congestion,fused,lens,scores,causal" in line(runs["topk"], "--groups", "load,lods")
    assert "no routing trace" in line(runs["topk"] / "metrics.h5")
    assert "--batches" in line(runs["topk"], "--batches", "1")
    (tmp_path / "counts.csv").write_text("layer,domain,expert,count\n0,0,0,1\n0,0,1,1\n")
    assert "--groups" in line(tmp_path / "counts.csv", "--groups", "load")


def test_a_damaged_metrics_file_is_named_before_the_work(call, runs, tmp_path):
    run = shutil.copytree(runs["dense"], tmp_path / "run", symlinks=True)
    (run / "metrics.h5").write_bytes((run / "metrics.h5").read_bytes()[:3000])
    assert "move it away" in refused(call("analyze", run, "--json"), "metrics.h5")[0]
    (run / "metrics.h5").unlink()
    call("analyze", run, "--json", check=True)


def test_damaged_checkpoints_are_named_and_passed_over(call, runs, tmp_path):
    run = shutil.copytree(runs["dense"], tmp_path / "run", symlinks=True)
    newest = checkpoints(run)[-1] / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    done = call("analyze", run, "--json", check=True)
    assert json.loads(done.stdout)["model"]["step"] == 8 and "step-00000009" in done.stderr
    refused(call("analyze", newest.parent, "--json"), "model.safetensors")
