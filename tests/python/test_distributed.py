"""Runs of several ranks on one machine, from the recipe to the checkpoint: the same model for any number of ranks, signals, lost
ranks under --nproc and torchrun, starts that are refused, two hosts joined by a cable.

A run takes about a second; the ranks share the machine's cores. Drills of lost ranks run at once: nearly all of their time is waiting.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy
import pytest

from programs import call, checkpoints, settings, step_of, write_recipe  # noqa: F401 (call is a fixture)
from ranks import Command, alive, bare_environment, by_hand  # noqa: F401 (bare_environment is a fixture)

# 8 steps per epoch; leaves of 8 samples in deterministic runs: as many as the most ranks here.
RECIPE = """\
name: tiny
seed: 3
model: {arch: vit, dim: 16, depth: 2, heads: 2, patch: 7, image: 28, channels: 1, classes: 10, pool: token}
fusion: {experts: 3, weights: learned, lr: 0.05}
data: {name: synthetic, train_samples: 192, test_samples: 50}
train: {steps: 12, global_batch: 24, eval_every_steps: 12}
optim: {lr: 0.01, schedule: {name: cosine, warmup_steps: 2}}
checkpoint: {every_steps: 5, every_epochs: 0, keep: 2}
dist: {threads: 1}
"""
ENDLESS = settings(train__steps=10_000_000, train__eval_every_steps=10_000_000, checkpoint__every_steps=50)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--no-python", "--standalone", "--nproc-per-node"]


@pytest.fixture
def program(bin_dir):
    return bin_dir / "exfusion-train"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("recipe"), RECIPE)


def is_valid(call, folder):
    """The newest checkpoint has the bytes that it says, and exfusion-eval can use it."""
    done = call("eval", checkpoints(folder)[-1], "--json", check=True)
    return json.loads(done.stdout)["samples"] == 50


def last(folder, name):
    """A digest of the file in the last checkpoint: where bytes differ, nobody wants to read them."""
    return hashlib.sha256((folder / "checkpoints" / "latest" / name).read_bytes()).hexdigest()


# Drills of lost ranks.

DRILLS = {
    "nproc, killed": ("nproc", "SIGKILL", 2),
    "nproc, first killed": ("nproc", "SIGKILL", 0),
    "nproc, stopped": ("nproc", "SIGSTOP", 2),
    "nproc, first stopped": ("nproc", "SIGSTOP", 0),
    "torchrun, killed": ("torchrun", "SIGKILL", 2),
    "torchrun, first killed": ("torchrun", "SIGKILL", 0),
    "torchrun, stopped": ("torchrun", "SIGSTOP", 1),
}


def drill(program, recipe, folder, launcher, fault, culprit):
    """(exit code, seconds after the fault of: each survivor's last words, the launcher's end; those words, pids left over)"""
    start = [*TORCHRUN, 3] if launcher == "torchrun" else []
    with Command(*start, program, recipe, *ENDLESS, "--out", folder, *(["--nproc", 3] if not start else [])) as command:
        command.has_saved(folder)
        assert sorted(command.ranks) == [0, 1, 2]
        fault_at = time.monotonic()
        os.kill(command.ranks[culprit], getattr(signal, fault))
        code = command.wait()
        ended = time.monotonic() - fault_at
        left = [pid for pid in command.ranks.values() if alive(pid)]
        words = [(at - fault_at, line) for at, line in command.said if line.startswith("exfusion-train: ")]
        return code, [at for at, _ in words], ended, [line for _, line in words], left


@pytest.fixture(scope="module")
def drills(bin_dir, recipe, tmp_path_factory):
    """{name: (folder, future of what drill() returns)}"""
    place = tmp_path_factory.mktemp("drills")
    with concurrent.futures.ThreadPoolExecutor(len(DRILLS)) as pool:
        futures = {}
        # The longest first; one after the other, since before its fault a run takes all cores there are.
        for number, name in enumerate(sorted(DRILLS, key=lambda name: DRILLS[name][:2], reverse=True)):
            folder = place / str(number)
            futures[name] = (folder, pool.submit(drill, bin_dir / "exfusion-train", recipe, folder, *DRILLS[name]))
            deadline = time.monotonic() + 20
            while not checkpoints(folder) and time.monotonic() < deadline:
                time.sleep(0.05)
        yield futures


@pytest.fixture(scope="module", autouse=True)
def start_drills(request):
    """They wait while other tests run; their own tests come last."""
    if any("drills" in item.fixturenames for item in request.session.items):
        request.getfixturevalue("drills")


# The same model for any number of ranks.


@pytest.fixture(scope="module")
def alone(call, recipe, tmp_path_factory):
    """Deterministic on one rank."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    call("train", recipe, *settings(dist__reduction="deterministic"), "--out", folder, check=True)
    return folder


@pytest.fixture(scope="module")
def shared(call, recipe, tmp_path_factory):
    """shared(ranks, shard): the folder of that deterministic run."""
    folders = {}

    def folder_of(ranks, shard):
        if (ranks, shard) not in folders:
            folder = tmp_path_factory.mktemp("shared") / "run"
            call("train", recipe, "--nproc", ranks, *settings(dist__reduction="deterministic", dist__shard=shard), "--out", folder,
                 check=True)
            folders[ranks, shard] = folder
        return folders[ranks, shard]

    return folder_of


@pytest.mark.parametrize("shard", ["none", "experts", "all"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_deterministic_models_have_the_same_bytes(ranks, shard, alone, shared):
    assert last(shared(ranks, shard), "model.safetensors") == last(alone, "model.safetensors")


@pytest.mark.parametrize("shard", ["none", "experts", "all"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_deterministic_experts_have_the_same_bytes(ranks, shard, alone, shared):
    for name in ("experts.safetensors", "optimizer.safetensors"):
        assert last(shared(ranks, shard), name) == last(alone, name), name


def test_fast_runs_have_the_same_losses(call, recipe, tmp_path):
    """At step 1 the rounding of a sum, later what training makes of it."""
    losses = []
    for ranks in (1, 2, 3):
        call("train", recipe, "--nproc", ranks, "--out", tmp_path / str(ranks), check=True)
        with h5py.File(tmp_path / str(ranks) / "metrics.h5") as metrics:
            losses.append(metrics["train/loss"][:])
    assert len(losses[0]) == 12
    for other in losses[1:]:
        assert numpy.abs(other - losses[0]).max() < 1e-5


# Signals.


@pytest.mark.parametrize("name, rank", [("SIGTERM", 1), ("SIGINT", 0)])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(name, rank, call, program, recipe, tmp_path):
    folder = tmp_path / "run"
    number = getattr(signal, name)
    with by_hand([[program, recipe, *ENDLESS, "--out", folder]] * 3) as ranks:
        ranks[0].has_saved(folder)
        ranks[rank].process.send_signal(number)
        assert [one.wait() for one in ranks] == [128 + number] * 3, [one.text() for one in ranks]
    step = step_of(checkpoints(folder)[-1])
    assert [one.errors() for one in ranks] == [
        [f"exfusion-train: stopped by signal {number.value} after step {step}, saved; go on with: exfusion-train --resume {folder}"], [], []]
    assert is_valid(call, folder)


def test_nproc_passes_signals_on(call, program, recipe, tmp_path):
    folder = tmp_path / "run"
    with Command(program, recipe, *ENDLESS, "--out", folder, "--nproc", 2) as command:
        command.has_saved(folder)
        command.process.send_signal(signal.SIGTERM)
        assert command.wait() == 143
    assert len(command.errors()) == 1 and "stopped by signal 15 after step" in command.errors()[0]
    assert is_valid(call, folder)


def test_a_full_disk_names_its_rank(call, program, recipe, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True).returncode != 0:
        pytest.skip("NOT TESTED: mounting a small tmpfs is not permitted here, so no disk can be full")
    try:
        with by_hand([[program, recipe, *ENDLESS, "--out", place / "run"], [program, recipe, *ENDLESS, "--out", tmp_path / "other"]]) as ranks:
            ranks[0].has_saved(place / "run")
            with contextlib.suppress(OSError), open(place / "filler", "wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))
            assert [one.wait() for one in ranks] == [1, 1], [one.text() for one in ranks]
        assert re.match(r"exfusion-train: lost rank 0 \(host \S+, pid \d+\): failed in \S+ of step \d+: .*No space left on device",
                        ranks[1].errors()[-1]), ranks[1].text()
        assert "No space left on device" in ranks[0].errors()[-1] and "lost rank" not in ranks[0].text()
        (place / "filler").unlink()
        assert is_valid(call, place / "run")
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_torchrun_starts_a_killed_run_anew(call, program, recipe, tmp_path):
    """Killed twice, a deterministic run ends in the undisturbed run's bytes."""
    length = settings(dist__reduction="deterministic", train__steps=600, train__eval_every_steps=600, checkpoint__every_steps=50)
    call("train", recipe, *length, "--out", tmp_path / "undisturbed", check=True)
    folder = tmp_path / "run"
    with Command(*TORCHRUN, 2, "--max-restarts", 2, program, recipe, *length, "--out", folder) as command:
        for rank, after in ((1, 0), (0, 200)):
            command.has_saved(folder, after)
            os.kill(command.ranks[rank], signal.SIGKILL)
        assert command.wait() == 0, command.text()
    for name in ("model.safetensors", "experts.safetensors", "optimizer.safetensors"):
        assert last(folder, name) == last(tmp_path / "undisturbed", name), name


# Starts.


@pytest.mark.parametrize("change, words", [({"seed": 9}, "in seed: it has 9, rank 0 has 3"),
                                           ({"optim__lr": 0.5}, "in recipe: it has lr: 0.5, rank 0 has lr: 0.01")])
def test_ranks_with_different_recipes_are_refused(change, words, program, recipe, tmp_path):
    command = [program, recipe, "--out", tmp_path / "run"]
    with by_hand([command, [*command, *settings(**change)]]) as ranks:
        assert [one.wait(30) for one in ranks] == [1, 1]
    for one in ranks:
        assert len(one.errors()) == 1 and re.search(rf"rank 1 on host \S+ differs .*{re.escape(words)}$", one.errors()[0])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("culprit", [0, 1])
def test_data_that_one_rank_lacks(culprit, program, repo, tmp_path):
    command = [program, repo / "recipes" / "quickstart.yaml", "--out", tmp_path / "run"]
    commands = [command, command]
    commands[culprit] = [*command, *settings(data__root="/nowhere")]
    with by_hand(commands) as ranks:
        assert [one.wait(30) for one in ranks] == [2 if rank == culprit else 1 for rank in range(2)]
    assert len(ranks[culprit].errors()) == 1 and "/nowhere/train-images-idx3-ubyte" in ranks[culprit].errors()[0]
    said, = ranks[1 - culprit].errors()
    assert re.match(rf"exfusion-train: rank {culprit} on host \S+ refused: /nowhere/train-images-idx3-ubyte", said)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_exists_is_refused_once(call, recipe, alone):
    done = call("train", recipe, "--nproc", 3, "--out", alone)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("exfusion-train: ")]
    assert lines == [f"exfusion-train: {alone}: exists; go on with --resume {alone}, or replace it with --overwrite"]


def test_resume_auto_starts_or_goes_on(call, recipe, tmp_path):
    folder = tmp_path / "run"
    command = [recipe, "--resume", "auto", "--out", folder, "--json"]
    assert json.loads(call("train", *command, check=True).stdout)["steps"] == 12
    undisturbed = last(folder, "model.safetensors")
    shutil.rmtree(folder / "checkpoints" / "step-00000012")
    again = call("train", *command, check=True)
    assert json.loads(again.stdout)["steps"] == 12 and [step_of(path) for path in checkpoints(folder)] == [10, 12]
    assert last(folder, "model.safetensors") == undisturbed
    other = call("train", *command, *settings(optim__lr=0.5))
    assert other.returncode == 2 and "a run of another recipe ('lr: 0.5' differs)" in other.stderr
    assert json.loads(call("train", *command, *settings(dist__timeout="1m"), check=True).stdout)["finished_before"]


# Two hosts.


def ip(*words):
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def hosts():
    """(address of the first, what starts a command on each, how many bytes the first has sent and received)"""
    names = [f"ranks-{os.getpid()}-{number}" for number in range(2)]
    made = []
    try:
        try:
            for name in names:
                ip("netns", "add", name)
                made.append(name)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("NOT TESTED: 'ip netns add' is not permitted here, so there are no two hosts")
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names):
            ip("-n", name, "address", "add", f"198.18.77.{number + 1}/30", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")

        def traffic():
            counted = json.loads(ip("-n", names[0], "-s", "-j", "link", "show", "dev", "cable"))[0]["stats64"]
            return counted["rx"]["bytes"] + counted["tx"]["bytes"]

        yield "198.18.77.1", [["ip", "netns", "exec", name] for name in names], traffic
    finally:
        for name in made:
            ip("netns", "del", name)


def test_fused_training_sends_what_dense_training_sends(hosts, program, recipe, tmp_path):
    address, before, traffic = hosts

    def bytes_of_steps(fusion):
        """Of 40 steps: two lengths of the run."""
        sent = []
        for steps in (5, 45):
            start = traffic()
            command = [program, recipe, "--set", f"fusion={fusion}", "--out", tmp_path / f"{len(list(tmp_path.iterdir()))}",
                       *settings(model__dim=64, train__steps=steps, train__eval_every_steps=steps)]
            with by_hand([command, command], address, before) as ranks:
                assert [one.wait() for one in ranks] == [0, 0], [one.text() for one in ranks]
            sent.append(traffic() - start)
        return sent[1] - sent[0]

    dense = bytes_of_steps("none")
    for experts in (4, 16):
        fused = bytes_of_steps(f"{{experts: {experts}, weights: learned}}")
        print(f"40 steps: dense {dense} bytes, {experts} experts {fused} bytes, ratio {fused / dense:.4f}")
        assert abs(fused / dense - 1) < 0.01


def test_two_hosts_with_folders_of_their_own(hosts, call, program, recipe, tmp_path):
    """As with disks of their own: the path of one is unknown to the other."""
    address, before, _ = hosts
    folders = [tmp_path / "first", tmp_path / "second"]
    with by_hand([[program, recipe, "--out", folder] for folder in folders], address, before) as ranks:
        assert [one.wait() for one in ranks] == [0, 0], [one.text() for one in ranks]
    assert f"{folders[0]}: not all ranks see this folder of rank 0; the others send their parts of a checkpoint to it" in ranks[0].text()
    assert is_valid(call, folders[0])
    assert checkpoints(folders[1]) == [] and (folders[1] / "train.rank-001.log").exists()


# The survivors of the drills.


@pytest.mark.parametrize("name", DRILLS)
def test_survivors_name_the_lost_rank(name, drills, call):
    folder, future = drills[name]
    culprit = DRILLS[name][2]
    code, seconds, ended, lines, left = future.result()
    print(name, [round(second, 1) for second in seconds], round(ended, 1), lines[:1])
    assert code != 0
    assert len(lines) == 2, lines
    for line in lines:
        assert re.findall(r"lost rank \d+", line) == [f"lost rank {culprit}"], line
        assert re.search(r"\(host \S+, pid \d+\): last seen in \S+ of step \d+", line), line
    assert max(seconds) < 15
    # torchrun gives a stopped process 30 s to obey SIGTERM before it kills it.
    assert ended < (60 if name == "torchrun, stopped" else 30)
    assert left == []
    assert is_valid(call, folder)
