"""What exfusion-train takes in memory, as the kernel counted it: a run that cannot fit, and recomputed activations."""

import os
import re
import subprocess

import pytest

from programs import call, recipe, rows, settings, write_recipe

# 24 blocks of 50 tokens for 128 images: activations are most of the memory.
DEEP = """\
model: {arch: vit, dim: 64, depth: 24, heads: 4, patch: 4, image: 28, channels: 1, classes: 10}
fusion: {experts: 2, weights: learned}
data: {name: synthetic, train_samples: 256, test_samples: 16}
train: {steps: 2, global_batch: 128, threads: 1}
"""


@pytest.mark.parametrize("option", ["--json", "--dry-run"])
def test_what_cannot_fit_is_refused_before_anything_of_it_exists(bin_dir, recipe, tmp_path, option):
    huge = settings(model__dim=8192, model__depth=12, model__heads=64, fusion__experts=64)
    with subprocess.Popen([bin_dir / "exfusion-train", recipe, "--out", tmp_path / "run", option, *huge], stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True) as process:
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 2 and said.count("\n") == 1, said
    for word in ["experts with moments 4.9 TB", "are available", "fewer fusion.experts", "shared_moments"]:
        assert word in said, said
    assert usage.ru_maxrss < 4e6  # kB, this Python's own among them; the weights alone would be 38 GB
    assert not (tmp_path / "run").exists()


def test_a_run_says_what_it_will_take(call, recipe, tmp_path):
    said = call("train", recipe, "--out", tmp_path / "run", check=True).stderr
    assert "of state: weights" in said.splitlines()[0], said


def test_recomputed_activations_take_less_memory_and_change_no_number(call, tmp_path):
    deep, peaks = write_recipe(tmp_path, DEEP), []
    for name in ("false", "true"):
        said = call("train", deep, "--out", tmp_path / name, *settings(train__recompute=name), check=True).stderr
        peaks.append(int(re.search(r"peak memory of the process (\d+) MB", said)[1]))
    kept, again = (rows(tmp_path / name) for name in ("false", "true"))
    assert (kept["train/loss"] == again["train/loss"]).all() and (kept["train/grad_norm"] == again["train/grad_norm"]).all()
    assert peaks[1] < 0.6 * peaks[0], peaks
