"""exfusion-compare: its statistics against scipy, and whole comparisons of tiny models that are stopped, go on and grow."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time
import xml.dom.minidom

import numpy
import pytest
import scipy.stats

from programs import checkpoints, rows, state, step_of, tensors, wait_for_step

RECIPE = """\
name: tiny
seed: 3
model: {arch: vit, dim: 16, depth: 2, heads: 2, patch: 7, image: 28, channels: 1, classes: 10, pool: token}
fusion: {experts: 2, init: independent}
data: {name: synthetic, train_samples: 320, test_samples: 256, validation: 64}
train: {steps: 120, global_batch: 32, threads: 1, eval_every_steps: 60}
optim: {lr: 0.003, schedule: {name: cosine, warmup_steps: 10}}
checkpoint: {every_steps: 20, every_epochs: 0}
"""


# ---- statistics


@pytest.fixture(scope="module")
def probe(bin_dir):
    """probe(questions): what lib/compare/statistics answers to each."""

    def ask(questions):
        text = "".join(json.dumps(question) + "\n" for question in questions)
        done = subprocess.run([bin_dir / "compare_probe"], input=text, capture_output=True, text=True, check=True, timeout=120)
        return [json.loads(line) for line in done.stdout.splitlines()]

    return ask


def samples():
    """Accuracies of two arms, paired: as continuous numbers, and as the multiples of 1 / 10000 that test sets give."""
    random = numpy.random.default_rng(5)
    for n in (2, 3, 5, 8, 12):
        base, arm = random.normal(0.86, 0.002, n), random.normal(0.862, 0.003, n)
        yield base, arm
        yield base.round(4), arm.round(4)


def test_intervals_and_p_values_are_scipys(probe):
    pairs = list(samples())
    answers = probe([{"differences": list(arm - base), "confidence": 0.95} for base, arm in pairs])
    for (base, arm), answer in zip(pairs, answers):
        test = scipy.stats.ttest_rel(arm, base)
        interval = test.confidence_interval(0.95)
        assert answer["t"] == pytest.approx([interval.low, interval.high], rel=1e-10, abs=1e-14)
        spread = scipy.stats.sem(arm - base)
        assert answer["t"] == pytest.approx(list(scipy.stats.t.interval(0.95, len(arm) - 1, answer["mean"], spread)), rel=1e-10, abs=1e-14)
        assert answer["deviation"] == pytest.approx((arm - base).std(ddof=1), rel=1e-12)


def test_the_permutation_test_is_scipys_exact_one(probe):
    pairs = [pair for pair in samples() if len(pair[0]) > 2]
    answers = probe([{"differences": list(arm - base), "confidence": 0.95} for base, arm in pairs])
    for (base, arm), answer in zip(pairs, answers):
        expected = scipy.stats.permutation_test((arm - base,), numpy.mean, permutation_type="samples", n_resamples=10**6)
        assert answer["sign_flip"] == pytest.approx(expected.pvalue, rel=1e-12)


def test_the_bootstrap_is_scipys_up_to_resampling(probe):
    differences = numpy.random.default_rng(1).normal(0.001, 0.002, 12)
    expected = scipy.stats.bootstrap((differences,), numpy.mean, n_resamples=20000, method="percentile",
                                     rng=numpy.random.default_rng(2)).confidence_interval
    [answer] = probe([{"differences": list(differences), "confidence": 0.95}])
    assert answer["bootstrap"] == pytest.approx([expected.low, expected.high], abs=0.05 * differences.std())


@pytest.mark.parametrize("n, effect, deviation", [(2, 0.003, 0.001), (5, 0.003, 0.003), (12, 0.003, 0.002), (30, 0.003, 0.006), (400, 0.003, 0.02)])
def test_power_is_that_of_the_noncentral_t(probe, n, effect, deviation):
    shift, critical = effect * numpy.sqrt(n) / deviation, scipy.stats.t.ppf(0.975, n - 1)
    expected = scipy.stats.nct.sf(critical, n - 1, shift) + scipy.stats.nct.cdf(-critical, n - 1, shift)
    [answer] = probe([{"n": n, "effect": effect, "deviation": deviation}])
    assert answer["power"] == pytest.approx(expected, rel=1e-8)


def test_holm_is_the_step_down_procedure(probe):
    for p in numpy.random.default_rng(3).uniform(0, 0.2, (20, 7)).round(3):
        [answer] = probe([{"p": list(p)}])
        for level in (0.01, 0.03, 0.05, 0.1, 0.2, 0.4):  # adjusted p <= level: just what the procedure rejects
            rejected = set()
            for rank, index in enumerate(numpy.argsort(p, kind="stable")):
                if p[index] > level / (len(p) - rank):
                    break
                rejected.add(int(index))
            assert {i for i, value in enumerate(answer["holm"]) if value <= level + 1e-12} == rejected


# ---- whole comparisons


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def compare(run, bin_dir, recipe):
    """compare(DIR, option, ...): exfusion-compare on the tiny recipe."""
    return lambda folder, *options, **more: run([bin_dir / "exfusion-compare", recipe, "-o", folder, *options], **more)


TWO_ARMS = ("--arms", "dense,static", "--seeds", 3)


@pytest.fixture(scope="module")
def finished(compare, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison") / "comparison"
    return folder, compare(folder, *TWO_ARMS, "--json", check=True)


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "copy", symlinks=True)


def report(folder):
    return json.loads((folder / "comparison.json").read_text())


def arms(folder, part="arms"):
    return {arm["name"]: arm for arm in report(folder)[part]}


def modified(folder):
    return {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.is_file()}


def refused(done, *words):
    assert done.returncode == 2 and done.stdout == "", done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("exfusion-compare: ")]
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]


def test_the_numbers_are_those_of_the_runs(finished):
    folder, done = finished
    found = report(folder)
    assert json.loads(done.stdout) == found
    assert found["seeds"] == [3, 4, 5] and found["dense"] == "dense" and found["tuning"] is None
    for arm in found["arms"]:
        for seed, accuracy in zip(found["seeds"], arm["accuracy"]):
            run = folder / "runs/steps" / arm["name"] / f"seed-{seed}"
            assert accuracy == state(run / "checkpoints/latest")["test_accuracy"]
            assert arm["steps"] == state(run / "checkpoints/latest")["step"] == 120
        assert arm["mean"] == pytest.approx(numpy.mean(arm["accuracy"]), abs=1e-15)
        assert arm["std"] == pytest.approx(numpy.std(arm["accuracy"], ddof=1), abs=1e-15)
        assert arm["lr"] == 0.003


def test_arms_train_what_they_say_on_the_same_data_order(finished):
    runs = finished[0] / "runs/steps"
    assert (runs / "static/seed-3/checkpoints/latest/experts.safetensors").exists()
    assert not (runs / "dense/seed-3/checkpoints/latest/experts.safetensors").exists()
    for seed in (3, 4, 5):
        assert f"seed: {seed}\n" in (runs / f"dense/seed-{seed}/recipe.yaml").read_text()
    first = {arm: rows(runs / arm / "seed-3") for arm in ("dense", "static")}
    assert (first["dense"]["train/lr"] == first["static"]["train/lr"]).all()


def test_the_difference_is_what_scipy_says(finished):
    dense, static = (arms(finished[0])[name] for name in ("dense", "static"))
    test = scipy.stats.ttest_rel(static["accuracy"], dense["accuracy"])
    interval = test.confidence_interval(0.95)
    assert static["difference_ci"] == pytest.approx([interval.low, interval.high], abs=1e-12)
    assert static["p"] == static["p_holm"]  # one arm is tested
    assert static["verdict"] == "cannot be decided with 3 seeds"
    assert dense["difference"] is None and dense["control"] is True


def test_the_report_reads_and_the_picture_is_well_formed(finished):
    text = (finished[0] / "comparison.md").read_text()
    assert "| static |" in text and "cannot be decided with 3 seeds" in text and "these were not tuned" in text
    picture = xml.dom.minidom.parse(str(finished[0] / "comparison.svg"))
    assert len([c for c in picture.getElementsByTagName("circle") if c.getAttribute("r") == "3.5"]) == 6


def test_progress_names_every_run(finished):
    lines = [line for line in finished[1].stderr.splitlines() if re.search(r"\[\d/6\] (dense|static) seed [345]: \d+\.\d\d % \(", line)]
    assert len(lines) == 6 and "left)" in lines[0]


def test_a_rerun_repeats_nothing(compare, copy):
    before, numbers = modified(copy), report(copy)
    done = compare(copy, *TWO_ARMS, check=True)
    assert modified(copy) == before
    assert report(copy)["arms"] == numbers["arms"]
    assert "6 runs, 6 of them finished before" in done.stderr


def test_arms_and_seeds_may_be_added(compare, copy):
    before = modified(copy)
    done = compare(copy, "--arms", "ema", "--seeds", 2, check=True)
    assert "9 runs, 6 of them finished before" in done.stderr
    found = arms(copy)
    assert list(found) == ["dense", "ema", "static"] and len(found["ema"]["accuracy"]) == 3
    assert {path: modified(copy)[path] for path in before} == before
    run = copy / "runs/steps/ema/seed-4"
    assert found["ema"]["accuracy"][1] == state(run / "checkpoints/latest")["ema_accuracy"] == rows(run)["ema/accuracy"][-1]


def test_another_comparison_is_refused_and_left_alone(compare, copy):
    before = (copy / "comparison.json").read_bytes()
    refused(compare(copy, *TWO_ARMS, "--set", "optim.lr=0.004"), "another comparison", "'  lr: 0.003'", "'  lr: 0.004'")
    refused(compare(copy, *TWO_ARMS, "--tune", "optim.lr=0.001,0.002"), "--tune was none")
    assert (copy / "comparison.json").read_bytes() == before


def test_a_folder_of_something_else_is_refused(compare, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    refused(compare(tmp_path, *TWO_ARMS), "holds no comparison")
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("options, word", [
    (["--arms", "dense,statik"], "did you mean 'static'"),
    (["--arms", "static,static"], "twice"),
    (["--arms", "static", "--tune", "optim.lr=fast,slow"], "'fast' is no number"),
    (["--arms", "static", "--tune", "optim.lr=0.001,0.002", "--set", "data.validation=0"], "data.validation"),
    (["--arms", "static", "--tune", "optim.rate=0.001,0.002"], "optim.rate"),
    (["--arms", "static", "--set", "fusion=none"], "no fusion section"),
    (["--arms", "static", "--seeds", "1"], "--seeds"),
    (["--arms", "static", "--match", "money"], "money"),
    (["--arms", "static", "--set", "optim.lr=-1"], "optim.lr"),
    (["--seeds", "3"], "--arms"),
])
def test_bad_input_is_one_line_and_leaves_nothing(compare, tmp_path, options, word):
    refused(compare(tmp_path / "new", *options), word)
    assert os.listdir(tmp_path) == []


def test_help_teaches_with_examples_and_names_every_arm(run, bin_dir):
    text = run([bin_dir / "exfusion-compare", "--help"], check=True).stdout
    assert text.count("exfusion-compare recipes/quickstart.yaml") == 2 and "--json" in text
    for arm in ("dense_lr_scaled", "memory_routed", "average"):
        assert arm in text


def test_values_are_chosen_on_held_out_images(compare, tmp_path):
    folder = tmp_path / "tuned"
    done = compare(folder, "--arms", "dense,static", "--seeds", 2, "--jobs", 2, "--set", "train.steps=12",
                   "--tune", "optim.lr=1e-4,3e-3,1e-2", "--match", "steps,flops,time", check=True)
    found = report(folder)
    tuning = found["tuning"]
    assert tuning["seeds"] == [1003] and tuning["held_out"] == 64 and not set(tuning["seeds"]) & set(found["seeds"])
    for arm in tuning["arms"]:
        means = []
        for value, trial in zip(("1e-4", "3e-3", "1e-2"), arm["trials"]):
            accuracies = [rows(folder / f"runs/tuning/{arm['name']}/optim.lr={value}/seed-{seed}")["validation/accuracy"][-1]
                          for seed in tuning["seeds"]]
            assert trial["value"] == float(value) and trial["accuracy"] == accuracies
            means.append(numpy.mean(accuracies))
        assert arm["chosen"] == (1e-4, 3e-3, 1e-2)[int(numpy.argmax(means))]
        assert arm["at_edge"] == (arm["chosen"] != 3e-3)
        used = rows(folder / f"runs/steps/{arm['name']}/seed-3")["train/lr"].max()
        assert used == arms(folder)[arm["name"]]["lr"] == arm["chosen"]
    assert "tuning: static takes optim.lr=" in done.stderr
    for part in ("flops_matched", "time_matched"):
        matched = arms(folder, part)
        assert matched["dense"]["equal_steps_run"] and matched["dense"]["accuracy"] == arms(folder)["dense"]["accuracy"]
        steps = matched["static"]["steps"]
        assert matched["static"]["equal_steps_run"] == (steps == 12)
        if steps != 12:
            run = rows(folder / f"runs/{part.split('_')[0]}/static/seed-3")
            assert run["train/step"][-1] == steps


def write_idx(folder, prefix, images, labels):
    header = b"\0\0\x08\x03" + numpy.array(images.shape, ">i4").tobytes()
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + numpy.array(labels.shape, ">i4").tobytes() + labels.tobytes())


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images whose brightness is their class."""
    folder, random = tmp_path_factory.mktemp("images"), numpy.random.default_rng(0)
    for prefix, count in (("train", 256), ("t10k", 200)):
        labels = random.integers(0, 10, count).astype("u1")
        noise = random.integers(0, 25, (count, 28, 28))
        write_idx(folder, prefix, (25 * labels[:, None, None] + noise).astype("u1"), labels)
    return folder


def test_an_average_is_scored_itself_and_what_is_dense_is_not_run(run, bin_dir, images, tmp_path):
    folder, recipe = tmp_path / "new", tmp_path / "recipe.yaml"
    recipe.write_text(re.sub("data: .*", f"data: {{name: idx, root: {images}}}", RECIPE))
    run([bin_dir / "exfusion-compare", recipe, "-o", folder, "--arms", "dense,learned,average,dense_lr_scaled", "--seeds", 2,
         "--set", "train.steps=50"], check=True)
    found = arms(folder)
    for seed, accuracy in zip((3, 4), found["average"]["accuracy"]):
        trained = folder / f"runs/steps/average/seed-{seed}"
        last = checkpoints(trained)[-5:]
        soup = tensors(trained.with_suffix(".soup") / "model.safetensors")
        members = [tensors(checkpoint / "model.safetensors") for checkpoint in last]
        assert [step_of(checkpoint) for checkpoint in last] == [46, 47, 48, 49, 50]
        for name, values in soup.items():
            numpy.testing.assert_allclose(values, numpy.mean([member[name].astype("f8") for member in members], axis=0), rtol=1e-6, atol=1e-8)
        assert accuracy == json.loads(trained.with_suffix(".soup.json").read_text())["accuracy"]
        assert accuracy > 0.15  # ten classes: it has learned something
    assert found["dense_lr_scaled"]["verdict"] == "identical to dense, not run"
    assert found["dense_lr_scaled"]["identical_to_dense"] and found["dense_lr_scaled"]["accuracy"] == [None, None]
    assert report(folder)["arms_tested"] == 2


# ---- failures and interruptions


@pytest.fixture
def started(bin_dir, recipe):
    """started(DIR, option, ...): exfusion-compare as a process that does not outlive the test."""
    processes = []

    def start(folder, *options):
        processes.append(subprocess.Popen([bin_dir / "exfusion-compare", recipe, "-o", folder, *map(str, options)],
                                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def children(process):
    return [int(word) for word in pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def gone(pid):
    status = pathlib.Path(f"/proc/{pid}/stat")
    return not status.exists() or ") Z " in status.read_text()


def accuracies(folder):
    return {name: arm["accuracy"][:2] for name, arm in arms(folder).items()}


ONE_SEED_LESS = ("--arms", "dense,static", "--seeds", 2)


def test_a_killed_child_is_named_and_the_next_call_goes_on(compare, started, finished, tmp_path):
    folder = tmp_path / "new"
    process = started(folder, *ONE_SEED_LESS)
    wait_for_step(process, folder / "runs/steps/dense/seed-3", 40)
    os.kill(children(process)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "dense seed 3 failed with exit code 137" in errors.splitlines()[-1]
    assert arms(folder)["dense"]["accuracy"][0] is None
    assert arms(folder)["dense"]["verdict"] == "not compared: 1 of 2 runs are missing"
    done = compare(folder, *ONE_SEED_LESS, check=True)
    assert "4 runs, 3 of them finished before" in done.stderr
    assert "step 40" not in (folder / "runs/steps/dense/seed-3.log").read_text()  # it did not start anew: no progress line
    assert accuracies(folder) == accuracies(finished[0])


def test_ctrl_c_saves_every_run_and_the_next_call_goes_on(compare, started, finished, tmp_path):
    folder = tmp_path / "new"
    process = started(folder, *ONE_SEED_LESS, "--jobs", 2)
    for arm in ("dense", "static"):
        wait_for_step(process, folder / f"runs/steps/{arm}/seed-3", 10)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "stopped by signal 2" in errors.splitlines()[-1]
    for arm in ("dense", "static"):
        assert (folder / f"runs/steps/{arm}/seed-3/checkpoints/latest/state.json").exists()
    assert not (folder / "comparison.json").exists()
    compare(folder, *ONE_SEED_LESS, check=True)
    assert accuracies(folder) == accuracies(finished[0])


def test_children_do_not_outlive_a_killed_comparison(compare, started, finished, tmp_path):
    folder = tmp_path / "new"
    process = started(folder, *ONE_SEED_LESS)
    wait_for_step(process, folder / "runs/steps/dense/seed-3", 10)
    [child] = children(process)
    process.kill()
    deadline = time.monotonic() + 30
    while not gone(child):
        assert time.monotonic() < deadline, "the child still runs"
        time.sleep(0.02)
    assert (folder / "runs/steps/dense/seed-3/checkpoints/latest/state.json").exists()
    compare(folder, *ONE_SEED_LESS, check=True)
    assert accuracies(folder) == accuracies(finished[0])


def test_a_run_that_cannot_start_leaves_the_others_as_they_are(compare, copy):
    shutil.rmtree(copy / "runs/steps/static/seed-4")
    (copy / "runs/steps/static/seed-4.json").unlink()
    (copy / "runs/steps/static/seed-4").write_text("in the way")
    before = arms(copy)
    done = compare(copy, *TWO_ARMS)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("exfusion-compare: 1 run failed")
    assert "static seed 4 failed" in done.stderr and "seed-4" in done.stderr
    after = arms(copy)
    assert after["dense"] == before["dense"]
    assert after["static"]["accuracy"] == [before["static"]["accuracy"][0], None, before["static"]["accuracy"][2]]
    assert "**Failed:** static seed 4" in (copy / "comparison.md").read_text()
