"""What the tests of the programs share: a recipe that trains within a second, a process that is stopped on purpose, and a run's
folder as h5py, safetensors, TensorBoard and zlib see it."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
import zlib

import h5py
import pytest
import safetensors.numpy

# 4 steps per epoch; evaluations at steps 3 and 6; checkpoints at 2, 4, 6 and wherever an evaluation was the best so far.
RECIPE = """\
name: tiny
seed: 3
model: {arch: vit, dim: 16, depth: 2, heads: 2, patch: 7, image: 28, channels: 1, classes: 10, pool: token}
fusion: {experts: 3, weights: learned, lr: 0.05}
data: {name: synthetic, train_samples: 160, test_samples: 64, validation: 32}
train: {steps: 6, global_batch: 32, threads: 1, ema: 0.9, eval_every_steps: 3}
optim: {lr: 0.01, schedule: {name: cosine, warmup_steps: 2}}
checkpoint: {every_steps: 2, every_epochs: 0, keep: 2}
"""

TIMES = {"step_time", "data_wait", "seconds", "peak_memory", "samples_per_second"}  # columns of metrics.h5 that differ between a run and its twin


def write_recipe(folder, text=RECIPE):
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def settings(**values):
    """--set options; a name's double underscore stands for the dot."""
    return [word for key, value in values.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]


def checkpoints(folder):
    """The run's checkpoints under their final names, oldest first."""
    return sorted(path for path in (folder / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))


def step_of(checkpoint):
    return int(checkpoint.name.removeprefix("step-"))


def state(checkpoint):
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def tensors(path):
    return safetensors.numpy.load_file(path)


def crc32(path):
    return f"{zlib.crc32(path.read_bytes()):08x}"


def write_state(checkpoint, record):
    """Writes state.json with the checksum of its own that it should have: of the compact text without it, keys in order."""
    record = {key: value for key, value in record.items() if key != "crc32"}
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    record["crc32"] = f"{zlib.crc32(text.encode()):08x}"
    (checkpoint / "state.json").write_text(json.dumps(record), encoding="utf-8")


def sign(checkpoint):
    """Makes state.json agree with the files again, as nobody but a forger would."""
    changed = state(checkpoint)
    for name, entry in changed["files"].items():
        entry.update(size=(checkpoint / name).stat().st_size, crc32=crc32(checkpoint / name))
    write_state(checkpoint, changed)


def open_metrics(folder):
    return h5py.File(folder / "metrics.h5", "r", libver="latest", swmr=True)


def rows(folder):
    """{"train/loss": values ...} of every column that must not depend on when the run was interrupted."""
    with open_metrics(folder) as file:
        return {f"{group}/{column}": file[group][column][:]
                for group in file for column in file[group] if column not in TIMES}


def last_row(folder):
    """The newest step in metrics.h5, also while the run lives or after it was killed; 0 when there is none yet."""
    try:
        with open_metrics(folder) as file:
            return int(file["train/step"][:].max(initial=0))
    except OSError:
        return 0


def scalars(folder):
    """{"train/loss": [(step, value) ...] ...} as TensorBoard shows it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def refused(done, *words, code=2):
    """The program stopped with this code and said why, with each of `words`, in lines under its own name; returns those lines."""
    assert done.returncode == code, f"exit code {done.returncode}: {done.stderr}"
    assert done.stdout == "", done.stdout
    lines = [line for line in done.stderr.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]
    assert lines and all(re.match(r"exfusion-(train|eval|export|upcycle|compare|analyze|prune): \S", line) for line in lines), done.stderr
    for word in words:
        assert any(word in line for line in lines), f"'{word}' is not in {lines}"
    return lines


@contextlib.contextmanager
def started(bin_dir, *args, env=None):
    """exfusion-train as a process of its own; it does not outlive the block."""
    process = subprocess.Popen([bin_dir / "exfusion-train", *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, env={**os.environ, **(env or {})})
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_step(process, folder, step, timeout=60):
    """Returns once metrics.h5 shows the step, or the process has ended."""
    deadline = time.monotonic() + timeout
    while process.poll() is None and last_row(folder) < step:
        assert time.monotonic() < deadline, f"no step {step} in {folder}/metrics.h5 after {timeout} s"
        time.sleep(0.01)


# Fixtures: a test file imports those that it uses, and the ones that they use.


@pytest.fixture(scope="module")
def call(run, bin_dir):
    """call("train", args, ...): runs exfusion-train; further options go to run()."""
    return lambda name, *args, **options: run([bin_dir / f"exfusion-{name}", *args], **options)


@pytest.fixture(scope="module")
def finished(call, tmp_path_factory):
    """A finished run: its folder, and what was printed."""
    place = tmp_path_factory.mktemp("finished")
    done = call("train", write_recipe(place), "--out", place / "run", "--json", check=True)
    return place / "run", done


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path)


@pytest.fixture
def copy(finished, tmp_path):
    """The finished run, for tests that change it."""
    return shutil.copytree(finished[0], tmp_path / "run", symlinks=True)
