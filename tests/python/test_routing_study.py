"""experiments/routing_study: columns of a run, the tables and pictures of made-up results. The runs themselves take too long."""

import importlib
import json
import pathlib
import sys
import xml.dom.minidom

import h5py
import numpy
import pytest

stats = pytest.importorskip("scipy.stats")
STEPS, LAYERS, EXPERTS, BATCHES = [1, 2, 4], 2, 8, 6


@pytest.fixture(scope="module")
def study(repo):
    """The modules study, tables and pictures."""
    place = str(repo / "experiments/routing_study")
    sys.path.insert(0, place)
    yield importlib.import_module("study")
    sys.path.remove(place)
    for name in ("study", "tables", "pictures"):
        sys.modules.pop(name)


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    """metrics.h5 of a run with three rows."""
    path = tmp_path_factory.mktemp("run") / "metrics.h5"
    with h5py.File(path, "w") as file:
        for layer in range(LAYERS):
            for name, values in {"count": numpy.ones((3, BATCHES, EXPERTS)), "max_mean": numpy.full(3, 1.5), "step": numpy.array(STEPS, float)}.items():
                file[f"analysis/load/layer_{layer:03}/{name}"] = values
        file["experts/update_participation"] = numpy.ones((2, LAYERS))
    return path


def test_congestion_is_that_of_every_step_of_the_report(study):
    fields = dict.fromkeys(study.STEP_FIELDS, 1.0)
    by_quality = {"gamma_by_quality": {"q1": 2.0, "q2": 1.0}, "gamma_null_by_quality": {"q1": 3.0, "q2": 1.0}, "undefined": {}}
    training = [{"layers": [{"layer": 0, **fields, **by_quality}], "model": {"step": step, **fields}} for step in STEPS]
    found = study.congestion({"training": training})
    assert [at["step"] for at in found] == STEPS and found[0]["layers"] == [{**fields, "q1": 2.0, "null_q1": 3.0}]
    assert found[0]["gamma_ci"] == 1.0 and study.congestion({}) == []


def test_curves_have_every_number_of_a_layer(study, metrics):
    found = study.curves(metrics.parent)
    assert found["step"] == STEPS and found["load/max_mean"] == [[1.5] * LAYERS] * 3 and found["experts/update_participation"] == [[1.0] * LAYERS] * 2
    assert "load/count" not in found


def test_what_is_finished_is_not_repeated(study, tmp_path):
    made = []
    for _ in range(2):
        assert study.kept(tmp_path / "a.json", lambda: made.append(1) or {"a": 1}) == {"a": 1}
    assert made == [1] and [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_numbers_have_five_digits_and_no_nan(study):
    assert study.numbers({"a": [1.23456789, float("nan")], "b": numpy.array([2.0, numpy.inf]), "c": 3}) == {"a": [1.2346, None], "b": [2.0, None], "c": 3}


def test_student_is_scipys(study):
    values = [0.1, 0.4, -0.2, 0.3]
    middle, half = study.tables.student([*values, None])
    low, high = stats.t.interval(0.95, 3, loc=numpy.mean(values), scale=stats.sem(values))
    assert (middle - half, middle + half) == pytest.approx((low, high))
    assert study.tables.student([1.0]) == (1.0, None) and study.tables.student([]) == (None, None)


# ---- tables and pictures of made-up results


def fused_layer(number, rng):
    losses = {"loss": rng.normal(0, 1, 4).tolist(), "loss_ci": [[-1, 1]] * 4}
    return {"layer": number, "knock_out": losses, "alone": losses, "random_step": {"mean": 0.1, "sd": 0.1, "z": None}}


def sparse_layer(number, rng, excess):
    z = {"z": 4.0, "null_mean": 0.1}
    rank = {"rho": float(rng.uniform(-1, 1)), "ci": None}
    return {"layer": number, "gamma_eff": 3.0, "q1": 1.0, "temperature": 1.2, "gamma_ci": [1.0, 5.0], "gamma_null": 1.0, "gamma_excess": 2.0, "gamma_excess_ci": excess,
            "gamma_probe": None, "gamma_by_quality": dict.fromkeys(("q1", "q2", "q3", "q4"), 1.0),
            "gamma_null_by_quality": dict.fromkeys(("q1", "q2", "q3", "q4")),
            "heldout_l1": dict.fromkeys(("mfg", "softmax_t", "softmax_1", "mean_prob", "multi_type", "uniform", "half_vs_half"), 0.1),
            "multi_type": [{"types": 4, "improvement": 0.3, "improvement_random_partition": 0.0}],
            "imbalance": {"max_mean": 1.5}, "nmi": {"sqrt": 0.1}, "label_shuffle": z, "random_router": z,
            "knock_out": {"loss": rng.normal(0, 1, EXPERTS).tolist(), "loss_ci": [[0.1, 0.2]] * EXPERTS},
            "domains": {"n50": [2, 3], "exp_h": [4.0, 5.0], "max_specialisation": [0.5, 0.6]},
            "rank_correlations": {"frequency": rank, "msan": rank, "s_100": {"rho": None, "ci": None}}, "scores": {"frequency": [1.0] * EXPERTS, "msan": None}}


def made_run(arm, seed, tables):
    rng = numpy.random.default_rng(seed)
    rows = rng.uniform(0, 1, (len(STEPS), LAYERS)).tolist()
    rows[0][0] = None
    kinds = {"lens": ("cosine", "cosine_unrelated", "cosine_shuffled", "cosine_residual", "cosine_unrelated_residual", "cosine_shuffled_residual",
                      "output_ratio", "agreement", "divergence"), "interference": ("kappa",)}
    names = [f"{group}/{column}" for group, columns in kinds.items() for column in columns]
    names += ["load/max_mean", "load/cv", "load/dead", "congestion/sigma", "congestion/sigma_bias"]
    names += [f"fused/{column}" for column in ("nmi_sample", "nmi_random_mean", "nmi_random_z", "functional_diversity", "fusion_gap", "n_eff_a")]
    names += ["interference/kappa_of_expert", *(f"experts/{name}" for name in ("difference_ratio", "difference_cosine", "update_participation"))]
    curves = {"step": STEPS, **dict.fromkeys(names, rows), "experts/difference_predicted": [0.9] * 3, "gap/loss": [0.0], "validation/accuracy": [0.5, 0.8125 + seed / 100],
              "validation/loss": [1.0]}
    model = {"held_out": {"loss": 0.5, "images": 96.0, "batches": 6}, "braess": {"share": 0.2, "share_ci": [0.1, 0.3], "certain": 1},
             "interaction": {"contrast": 0.1, "p": 0.04}, "alone": {"loss": [1.0, 2.0]}, "rank_correlations": {"frequency": {"rho": 0.5, "ci": [0.1, 0.9]}},
             "lens_gates": {f"{what}_{way}": [1.0, 0.5] for what in ("loss", "accuracy") for way in ("as_is", "renormalised")},
             "phases": {name: {"steps": STEPS, "breaks": 1, "break_steps": [2.0], "slopes": [1.0, -1.0], "p": [0.01, 0.5], "best_by_bic": 2}
                        for name in ("gamma_eff", "max_mean")}}
    if arm in tables.SPARSE:
        layers = [sparse_layer(0, rng, [0.5, 3.0]), sparse_layer(1, rng, [-3.0, -0.5] if seed else None)]
    else:
        layers = [fused_layer(number, rng) for number in range(LAYERS)]
    point = {"gamma_eff": 3.0, "gamma_ci": [1.0, 5.0], "gamma_null": 1.0, "gamma_excess": 2.0, "gamma_excess_ci": [1.0, 3.0], "temperature": 1.2}
    nothing = dict.fromkeys(point)
    congestion = [{"step": 1, **nothing, "layers": layers}, {"step": 2, **point, "layers": layers}, {"step": 4, **point, "layers": layers}]
    return {"arm": arm, "seed": seed, "curves": curves, "congestion": congestion if arm in tables.SPARSE else [], "layers": layers, "model": model}


@pytest.fixture(scope="module")
def results(study):
    runs = [made_run(arm, seed, study.tables) for seed in range(2) for arm in study.ARMS]
    return json.loads(json.dumps({"epochs": 1.0, "seeds": 2, "experts": EXPERTS, "top_k": 2, "balance_loss": 0.01, "batches": 6, "batch": 16, "runs": runs}))


def test_the_page_has_every_arm_and_counts_what_is_claimed(study, results):
    page = study.tables.page(results)
    for words in ("| dense | 81.25, 82.25 | 81.75 |", "first: 1", "## D. Fused experts", "| RSD | - |"):
        assert words in page, words
    claims = study.tables.claims(results).splitlines()
    assert claims[2] == "| top-k, balance loss 0.01 | 2, 1 of 3 | 2, 1 of 3 | 2, 1 of 3 |"
    assert all(line.count("|") == lines[0].count("|") for lines in tables_of(page) for line in lines)


def tables_of(page):
    parts = [part.splitlines() for part in page.split("\n\n")]
    return [lines for lines in parts if lines[0].startswith("|")]


def test_a_study_of_one_seed_has_its_page_too(study, results):
    one = {**results, "seeds": 1, "runs": [run for run in results["runs"] if run["seed"] == 0]}
    assert "nan" not in study.tables.page(one)
    study.pictures.all_of(one)


def test_pictures_are_xml_without_numbers_that_are_none(study, results):
    for name, text in study.pictures.all_of(results).items():
        xml.dom.minidom.parseString(text)
        assert "nan" not in text and "None" not in text and text.count("<polyline") > 0, name


def test_the_written_results_are_those_of_the_numbers(study, repo):
    """results.md and the pictures are made from results.json, nothing in them by hand."""
    place = pathlib.Path(repo / "experiments/routing_study")
    results = json.loads((place / "results.json").read_text())
    assert (place / "results.md").read_text() == study.tables.page(results)
    for name, picture in study.pictures.all_of(results).items():
        assert (place / name).read_text() == picture
