"""Drills: a run that is killed at any point, or stopped, and resumed ends as the run that nobody disturbed, bit for bit; so does
one with another number of loader threads. The recipe has everything in it whose state or randomness could get lost."""

import json
import os
import random
import signal
import time

import numpy
import pytest

from programs import (call, checkpoints, last_row, rows, scalars, settings, started, step_of, tensors, wait_for_step,
                      write_recipe)

STEPS, EVERY = 30, 3
RECIPE = f"""\
name: drill
seed: 5
model: {{arch: vit, dim: 32, depth: 2, heads: 2, patch: 7, image: 28, channels: 1, classes: 10, pool: token, drop_path: 0.2}}
fusion: {{experts: 3, weights: learned, lr: 0.02}}
data:
  {{name: synthetic, train_samples: 576, test_samples: 64, validation: 64,
    augment: {{flip: 0.5, crop: 2, mixup: 0.3, cutmix: 0.5, erase: 0.3, smoothing: 0.1}}}}
train: {{steps: {STEPS}, global_batch: 64, ema: 0.9, threads: 1, eval_every_steps: 5}}
optim: {{lr: 0.003, schedule: {{name: cosine, warmup_steps: 3}}}}
checkpoint: {{every_steps: {EVERY}, every_epochs: 0, keep: 3}}
"""
TENSOR_FILES = ("model.safetensors", "experts.safetensors", "optimizer.safetensors", "ema.safetensors")

# What a chain of kills does before the run is left to finish: the n-th passage of a fault point (lib/io/files.cpp and
# lib/train/checkpoint.cpp), or TIMED: a moment after a random step. A checkpoint of this recipe passes checkpoint-file four
# times; file-written and file-renamed count recipe.yaml (twice in a new run), metrics.h5, each state.json, and two
# files of the export.
TIMED = "timed"
CHAINS = [
    ["checkpoint-file:1", TIMED, "folder-renamed:2"],  # the first: before any checkpoint is whole
    ["checkpoint-file:3", "checkpoint-file:8", TIMED],
    ["file-written:4", TIMED, "checkpoint-committed:1"],  # with the first state.json written and not yet renamed
    ["folder-synced:1", "file-renamed:4", TIMED],
    ["folder-renamed:1", TIMED, "folder-synced:2"],
    ["checkpoint-committed:1", "checkpoint-file:2", TIMED],  # before the links point at it
    [TIMED, "file-written:1", "file-written:2"],  # recipe.yaml and metrics.h5 of a resumed run
    [TIMED, TIMED, TIMED],
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("drill"), RECIPE)


@pytest.fixture(scope="module")
def undisturbed(call, recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    call("train", recipe, "--out", folder, check=True)
    return folder


def differences(run, twin):
    """What tells the two runs apart, besides times."""
    found, last = [], checkpoints(run)[-1].name
    if not checkpoints(twin) or checkpoints(twin)[-1].name != last:
        return [f"the last checkpoint is {last}, not {checkpoints(twin)[-1:]}"]
    for name in [f"checkpoints/{last}/{name}" for name in (*TENSOR_FILES, "state.json")] + [
            f"export/{name}" for name in ("model.safetensors", "config.json", "README.md")]:
        if not (twin / name).is_file() or (run / name).read_bytes() != (twin / name).read_bytes():
            found.append(name)
    for link in ("latest", "best"):
        paths = [folder / f"checkpoints/{link}" for folder in (run, twin)]
        targets = [os.readlink(path) if path.is_symlink() else "absent" for path in paths]
        if targets[0] != targets[1] or not (paths[1] / "state.json").is_file():
            found.append(f"checkpoints/{link} is {targets[1]}, not {targets[0]}")
    expected, got = rows(run), rows(twin)
    found += [f"metrics.h5: {name}" for name in expected.keys() | got.keys()
              if name not in expected or name not in got or not numpy.array_equal(expected[name], got[name], equal_nan=True)]
    expected, got = scalars(run), scalars(twin)
    for tag in sorted(expected.keys() | got.keys()):
        same = expected.get(tag) == got.get(tag)
        if tag in ("train/step_time", "train/data_wait"):
            same = [step for step, _ in expected[tag]] == [step for step, _ in got.get(tag, [])]
        if not same:
            found.append(f"TensorBoard: {tag}")
    return found


def newest_step(folder):
    return step_of(checkpoints(folder)[-1]) if checkpoints(folder) else 0


def kill(bin_dir, arguments, folder, how, chance):
    """Starts the program and kills it; hands back its exit code (0 if it finished before the blow fell) and what it said."""
    if how != TIMED:
        with started(bin_dir, *arguments, env={"EXFUSION_FAULT": how}) as process:
            said = process.communicate(timeout=120)[1]
            return process.returncode, said
    before = newest_step(folder)
    with started(bin_dir, *arguments) as process:
        wait_for_step(process, folder, min(chance.randint(before + 1, before + 15), STEPS - 5))
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        said = process.communicate()[1]
        return process.returncode, said


@pytest.mark.parametrize("number", range(len(CHAINS)))
def test_killed_and_resumed_ends_bit_equal(bin_dir, call, recipe, undisturbed, tmp_path, number):
    chance, folder = random.Random(number), tmp_path / "run"
    arguments = [recipe, "--out", folder]
    for how in CHAINS[number]:
        code, said = kill(bin_dir, arguments, folder, how, chance)
        assert code == -signal.SIGKILL or (code == 0 and how == TIMED), f"{how}: exit code {code}: {said}"
        arguments = ["--resume", folder]
        assert newest_step(folder) >= last_row(folder) - EVERY  # no more than this is lost
        if code == 0:
            break
    call("train", *arguments, check=True)
    assert differences(undisturbed, folder) == []
    assert [path.name for path in (folder / "checkpoints").iterdir() if path.suffix] == []  # .tmp and .old


@pytest.mark.parametrize("again", [["--overwrite"], ["--resume", "auto"]])
def test_killed_before_the_recipe_is_written_can_start_again(call, recipe, undisturbed, tmp_path, again):
    folder = tmp_path / "run"
    assert call("train", recipe, "--out", folder, env={"EXFUSION_FAULT": "file-written:1"}).returncode == -signal.SIGKILL
    assert not (folder / "recipe.yaml").exists()
    call("train", recipe, "--out", folder, *again, check=True)
    assert differences(undisturbed, folder) == [] and not (tmp_path / "run.old").exists()


@pytest.mark.parametrize("fault", ["checkpoint-committed:1", "folder-synced:2", "folder-renamed:2"])
def test_killed_after_the_last_checkpoint_the_export_still_follows(call, recipe, tmp_path, fault):
    twins = tmp_path / "run", tmp_path / "twin"
    longer = settings(train__steps=5)
    for folder in twins:
        call("train", recipe, "--out", folder, *settings(train__steps=4), check=True)  # leaves an export of step 4
    call("train", "--resume", twins[0], *longer, check=True)
    assert call("train", "--resume", twins[1], *longer, env={"EXFUSION_FAULT": fault}).returncode == -signal.SIGKILL
    assert newest_step(twins[1]) == 5  # what was still to do is the export
    call("train", "--resume", twins[1], *longer, check=True)
    assert differences(*twins) == []


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_and_resumed_ends_bit_equal(bin_dir, call, recipe, undisturbed, tmp_path, number, code):
    folder = tmp_path / "run"
    with started(bin_dir, recipe, "--out", folder, "--json") as process:
        wait_for_step(process, folder, 4)
        process.send_signal(number)
        result, said = process.communicate(timeout=60)
        assert process.returncode == code, said
    assert json.loads(result) == {"run": str(folder), "steps": last_row(folder), "skipped": 0, "signal": number}
    assert newest_step(folder) == last_row(folder) >= 4  # nothing is lost
    call("train", "--resume", folder, check=True)
    assert differences(undisturbed, folder) == []


@pytest.mark.parametrize("workers", [2, 3])
def test_loader_threads_change_nothing(call, recipe, undisturbed, tmp_path, workers):
    call("train", recipe, "--out", tmp_path / "run", *settings(data__workers=workers), check=True)
    for name in TENSOR_FILES:
        assert (tmp_path / f"run/checkpoints/latest/{name}").read_bytes() == \
            (undisturbed / f"checkpoints/latest/{name}").read_bytes(), name


def test_the_same_recipe_gives_the_same_bits_and_another_seed_others(call, recipe, undisturbed, tmp_path):
    call("train", recipe, "--out", tmp_path / "same", check=True)
    assert differences(undisturbed, tmp_path / "same") == []
    call("train", recipe, "--out", tmp_path / "other", *settings(seed=6), check=True)
    assert {f"checkpoints/step-{STEPS:08d}/{name}" for name in TENSOR_FILES} <= set(differences(undisturbed, tmp_path / "other"))


def test_micro_batches_see_the_same_inputs(call, recipe, undisturbed, tmp_path):
    """Mixup, cutmix, erasing and drop path do not know how the batch is cut: what differs is the rounding of sums, which grows
    with the steps. Another draw in any step would show in its loss."""
    expected = rows(undisturbed)
    for micro in (16, 24):  # 24 does not divide 64
        folder = tmp_path / f"run{micro}"
        call("train", recipe, "--out", folder, *settings(train__micro_batch=micro), check=True)
        found = rows(folder)
        for column, tolerance in (("train/loss", 1e-6), ("train/grad_norm", 1e-5)):
            assert found[column][0] == pytest.approx(expected[column][0], rel=tolerance)
            assert numpy.allclose(found[column][:10], expected[column][:10], rtol=1e-4)
        record = json.loads((folder / "checkpoints/latest/state.json").read_text(encoding="utf-8"))
        assert record["micro_batch"] == micro


def test_resuming_with_the_same_threads_and_precision_in_bf16(bin_dir, call, recipe, tmp_path):
    twins = tmp_path / "run", tmp_path / "twin"
    changes = settings(train__precision="bf16", train__steps=9, train__micro_batch=32)
    call("train", recipe, "--out", twins[0], *changes, check=True)
    killed = call("train", recipe, "--out", twins[1], *changes, env={"EXFUSION_FAULT": "checkpoint-file:7"})
    assert killed.returncode == -signal.SIGKILL
    call("train", "--resume", twins[1], check=True)
    assert differences(*twins) == []
    experts = tensors(twins[1] / "checkpoints/latest/experts.safetensors")
    assert all(value.dtype == numpy.float32 for value in experts.values())
