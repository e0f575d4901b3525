"""The recipe's `analysis` section: rows of metrics.h5 and curves beside a training that does not notice."""

import shutil

import h5py
import numpy as np
import pytest

from programs import call, open_metrics, refused, scalars, settings, write_recipe

DUE = [1, 2, 4, 6]  # log2, and the last step
LAYERS = {"layer_000": 17, "layer_001": 1}  # tokens of an image that the loss sees: behind the last block, its class token
EXPERTS, CLASSES, BATCHES, BATCH = 3, 10, 2, 12  # 32 held-out images, of which 24 are looked at
ANALYSIS = ["--set", f"analysis={{groups: all, batches: {BATCHES}, batch: {BATCH}}}"]
# A dense run, and one whose FFNs route tokens.
KINDS = {"fused": {}, "dense": {"fusion": "none"}, "topk": {"fusion": "none", "model__ffn": "{name: topk, experts: 3}"}}


@pytest.fixture(scope="module", params=KINDS)
def runs(call, tmp_path_factory, request):
    """(kind, plain run, the same with analysis, what the second one printed)"""
    place = tmp_path_factory.mktemp(request.param)
    options = settings(**KINDS[request.param])
    call("train", write_recipe(place), "--out", place / "plain", *options, check=True)
    done = call("train", write_recipe(place), "--out", place / "analysed", *options, *ANALYSIS, check=True)
    return request.param, place / "plain", place / "analysed", done


def columns(folder):
    """{"fused/layer_000/nmi": values} of every column of /analysis."""
    found = {}
    with open_metrics(folder) as file:
        file["analysis"].visititems(lambda name, item: found.__setitem__(name, item[:]) if isinstance(item, h5py.Dataset) else None)
    return found


def test_training_ends_in_the_same_bytes(runs):
    _, plain, analysed, _ = runs
    for file in ["checkpoints/latest/model.safetensors", "checkpoints/latest/optimizer.safetensors", "export/model.safetensors"]:
        assert (plain / file).read_bytes() == (analysed / file).read_bytes(), file
    with open_metrics(plain) as before, open_metrics(analysed) as after:
        assert "analysis" not in before
        assert (before["train/loss"][:] == after["train/loss"][:]).all()


def test_each_due_step_has_a_row_in_each_group(runs):
    kind, _, analysed, done = runs
    found = columns(analysed)
    groups = {name.rpartition("/")[0] for name in found}
    expected = {f"interference/{layer}" for layer in LAYERS} | ({f"fused/{layer}" for layer in LAYERS} if kind == "fused" else set())
    assert expected <= groups
    for group in expected:
        assert found[f"{group}/step"].tolist() == DUE, group
    for name, values in found.items():
        assert len(values) == len(found[name.rpartition("/")[0] + "/step"]), name
    assert "analysis took" in done.stderr


def test_groups_that_do_not_apply_are_named(call, tmp_path):
    done = call("train", write_recipe(tmp_path), "--out", tmp_path / "run", *settings(fusion="none"), "--set", "analysis.groups=[load, scores]", check=True)
    assert "nothing of load, scores applies to this model" in done.stderr


def test_the_columns_hold_what_they_promise(runs):
    kind, _, analysed, _ = runs
    found = columns(analysed)
    for layer, seen in LAYERS.items():
        norms = found[f"interference/{layer}/class_gradient_norm"]
        assert norms.shape == (len(DUE), CLASSES) and np.nanmin(norms) > 0
        assert np.nanmax(found[f"interference/{layer}/kappa_biased"]) <= 1
        assert (f"interference/{layer}/kappa_of_expert" in found) == (kind == "topk")
        if kind != "fused":
            continue
        column = {name: found[f"fused/{layer}/{name}"] for name in
                  ["a", "share", "tokens", "ties", "load", "table", "class_tokens", "class_score", "score", "weight_cosine", "fusion_gap", "nmi"]}
        assert column["load"].shape == (len(DUE), BATCHES, EXPERTS) and column["table"].shape == (len(DUE), EXPERTS, CLASSES)
        assert (column["tokens"] == BATCH * seen).all()
        assert (column["load"].sum(2) + column["ties"] == column["tokens"]).all()
        assert (column["table"].sum(2) == column["load"].sum(1)).all()
        assert (column["class_tokens"].sum(1) == BATCHES * BATCH * seen).all()
        np.testing.assert_allclose(column["a"].sum(1), 1, atol=1e-6)
        np.testing.assert_allclose(column["share"].sum(1), 1, atol=1e-6)
        # Moving all experts by their weights moves nothing.
        scores = column["class_score"]
        assert np.abs(np.einsum("sn,snc->sc", column["a"], np.nan_to_num(scores))).max() < 1e-4 * np.nanmax(np.abs(scores))
        by_class = np.einsum("snc,sc->sn", np.nan_to_num(scores), column["class_tokens"])
        np.testing.assert_allclose(by_class, column["score"].sum(1), rtol=1e-6, atol=1e-9)
        assert (column["fusion_gap"] > 0).all() and ((0 < column["nmi"]) & (column["nmi"] < 1)).all()


def test_the_headlines_are_curves(runs):
    kind, _, analysed, _ = runs
    curves, found = scalars(analysed), columns(analysed)
    name = "fused/layer_001/nmi" if kind == "fused" else "interference/layer_001/kappa"
    expected = [(step, pytest.approx(value, rel=1e-5)) for step, value in zip(DUE, found[name]) if np.isfinite(value)]
    assert curves.get(f"analysis/{name}", []) == expected


def test_a_resumed_run_has_the_same_rows(runs, call, tmp_path):
    kind, _, analysed, _ = runs
    options = [*settings(**KINDS[kind]), *ANALYSIS]
    call("train", write_recipe(tmp_path), "--out", tmp_path / "run", *options, *settings(train__steps=3, optim__schedule__warmup_steps=2), check=True)
    call("train", "--resume", tmp_path / "run", *settings(train__steps=6), check=True)
    resumed = columns(tmp_path / "run")
    assert resumed.keys() == columns(analysed).keys()
    steps = resumed["interference/layer_000/step"].tolist()
    assert steps == [1, 2, 3, 4, 6]  # 3 was the last one


def test_a_killed_run_ends_with_the_rows_of_one_that_was_not(runs, call, tmp_path):
    """The checkpoint of step 4 goes on, with the rows up to it."""
    _, _, analysed, _ = runs
    copy = shutil.copytree(analysed, tmp_path / "run", symlinks=True)
    for step in copy.glob("checkpoints/step-*6"):
        shutil.rmtree(step)
    for link in ["latest", "best"]:
        (copy / "checkpoints" / link).unlink(missing_ok=True)
    call("train", "--resume", copy, check=True)
    expected = columns(analysed)
    for name, values in columns(copy).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    assert (copy / "export/model.safetensors").read_bytes() == (analysed / "export/model.safetensors").read_bytes()


@pytest.mark.parametrize("shard", ["none", "experts"])
def test_ranks_write_rows_and_train_as_without(shard, call, tmp_path):
    options = ["--nproc", 2, *settings(dist__shard=shard)]
    environment = {"OMP_NUM_THREADS": "1"}
    call("train", write_recipe(tmp_path), "--out", tmp_path / "plain", *options, check=True, env=environment)
    call("train", write_recipe(tmp_path), "--out", tmp_path / "run", *options, *ANALYSIS, check=True, env=environment)
    assert (tmp_path / "plain/export/model.safetensors").read_bytes() == (tmp_path / "run/export/model.safetensors").read_bytes()
    found = columns(tmp_path / "run")
    assert found["fused/layer_000/step"].tolist() == found["interference/layer_000/step"].tolist() == DUE
    whole = shard == "none"
    assert np.isfinite(found["fused/layer_000/fusion_gap"]).all() == whole and (found["fused/layer_000/tokens"].sum() > 0) == whole


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [2, 3])
def test_rows_do_not_depend_on_the_number_of_ranks(kind, ranks, call, tmp_path):
    """Each rank looks at blocks of its own; there are two, so the third has none but the gates of the whole model."""
    options = [*settings(**KINDS[kind], dist__reduction="deterministic", dist__leaf_batch=4), *ANALYSIS]
    for count in [1, ranks]:
        call("train", write_recipe(tmp_path), "--out", tmp_path / str(count), "--nproc", count, *options, check=True, env={"OMP_NUM_THREADS": "1"})
    alone, together = columns(tmp_path / "1"), columns(tmp_path / str(ranks))
    assert alone.keys() == together.keys() and len(alone) > 5
    for name, values in alone.items():
        assert values.tobytes() == together[name].tobytes(), name


def test_constant_weights_are_said_at_the_start(call, tmp_path):
    done = call("train", write_recipe(tmp_path), "--out", tmp_path / "run", *settings(fusion__lr=0), check=True)
    assert done.stderr.count("the weights of the experts are constant") == 1


@pytest.mark.parametrize("lr, alarms", [(1e-9, 1), (0.5, 0)])
def test_experts_that_stay_where_they_started_raise_one_alarm(lr, alarms, call, tmp_path):
    """From step 100 on; checkpoints come at 20, 40, ..., 120."""
    done = call("train", write_recipe(tmp_path), "--out", tmp_path / "run",
                *settings(fusion__lr=lr, optim__lr=0.05, train__steps=125, train__eval_every_steps=60, checkpoint__every_steps=20), check=True)
    warnings = [line for line in done.stderr.splitlines() if "differ as at the start" in line]
    assert len(warnings) == alarms
    assert all("step 100: the experts of 2 of 2 FFNs" in line and "cos(D, D at the start) 1.000000" in line for line in warnings)


@pytest.mark.parametrize("analysis", ["{groups: [heat]}", "{every: never}", "{batch: 0}"])
def test_what_it_does_not_know_is_refused(call, tmp_path, analysis):
    refused(call("train", write_recipe(tmp_path), "--print-recipe", "--set", f"analysis={analysis}"), "analysis.")
