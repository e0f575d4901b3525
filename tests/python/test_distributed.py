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

from programs import call, checkpoints, last_row, settings, step_of, write_recipe  # noqa: F401 (call is a fixture)
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
    "torchrun, stopped": ("torchrun", "SIGSTOP", 1),  # killed ones: test_torchrun_starts_a_killed_run_anew
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


def kill_twice(call, program, recipe, folder):
    """A deterministic run under torchrun, and one that is left alone; (exit code, the first one's last words, all that it said)"""
    length = settings(dist__reduction="deterministic", train__steps=300, train__eval_every_steps=300, checkpoint__every_steps=25)
    run = folder / "run"
    with Command(*TORCHRUN, 2, "--max-restarts", 2, program, recipe, *length, "--out", run) as command:
        for rank, after in ((1, 0), (0, 100)):
            command.has_saved(run, after)
            os.kill(command.ranks[rank], signal.SIGKILL)
        call("train", recipe, *length, "--out", folder / "undisturbed", check=True)
        return command.wait(), command.errors(), command.text()


@pytest.fixture(scope="module")
def waits():
    """Threads for what mostly waits."""
    with concurrent.futures.ThreadPoolExecutor(len(DRILLS) + 1) as pool:
        yield pool


@pytest.fixture(scope="module")
def restarts(waits, call, bin_dir, recipe, tmp_path_factory):
    """(folder, future of what kill_twice() returns)"""
    folder = tmp_path_factory.mktemp("restarts")
    return folder, waits.submit(kill_twice, call, bin_dir / "exfusion-train", recipe, folder)


@pytest.fixture(scope="module")
def drills(waits, bin_dir, recipe, tmp_path_factory):
    """{name: (folder, future of what drill() returns)}"""
    place = tmp_path_factory.mktemp("drills")
    futures = {}
    # The longest first; one after the other, since before its fault a run takes all cores there are.
    for number, name in enumerate(sorted(DRILLS, key=lambda name: DRILLS[name][:2], reverse=True)):
        folder = place / str(number)
        futures[name] = (folder, waits.submit(drill, bin_dir / "exfusion-train", recipe, folder, *DRILLS[name]))
        deadline = time.monotonic() + 20
        while not checkpoints(folder) and time.monotonic() < deadline:
            time.sleep(0.05)
    return futures


@pytest.fixture(scope="module", autouse=True)
def start_drills(request):
    """They wait while other tests run; their own tests come last."""
    for name in ("restarts", "drills"):
        if any(name in item.fixturenames for item in request.session.items):
            request.getfixturevalue(name)


# The same model for any number of ranks.


@pytest.fixture(scope="module")
def alone(call, recipe, tmp_path_factory):
    """Deterministic on one rank."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    call("train", recipe, *settings(dist__reduction="deterministic"), "--out", folder, check=True)
    return folder


# Every number of ranks with every kind of shard: tests/train/ranks_test.cpp, ranks_checkpoint_test.cpp.
@pytest.mark.parametrize("ranks, shard", [(2, "none"), (2, "all"), (3, "experts")])
def test_deterministic_runs_have_the_same_bytes(ranks, shard, call, recipe, alone, tmp_path):
    call("train", recipe, "--nproc", ranks, *settings(dist__reduction="deterministic", dist__shard=shard), "--out", tmp_path / "run",
         check=True)
    for name in ("model.safetensors", "experts.safetensors", "optimizer.safetensors"):
        assert last(tmp_path / "run", name) == last(alone, name), name


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
    line, = command.errors()
    assert "stopped by signal 15 after step" in line and line.endswith(f"saved; go on with: exfusion-train --resume {folder} --nproc 2")
    assert is_valid(call, folder)


def test_a_second_ctrl_c_ends_all_ranks_at_once(program, recipe, tmp_path):
    """Between the two nothing is saved: a step takes long enough."""
    folder = tmp_path / "run"
    slow = settings(model__dim=128, model__depth=8, train__global_batch=192, train__steps=1000, train__eval_every_steps=1000)
    with Command(program, recipe, *slow, "--out", folder, "--nproc", 2) as command:
        while last_row(folder) == 0:
            assert command.process.poll() is None, command.text()
            time.sleep(0.02)
        command.process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        command.process.send_signal(signal.SIGINT)
        assert command.wait(10) == 130
    assert command.errors() == ["exfusion-train: stopped at once: the steps since the last checkpoint are lost; go on with: "
                                f"exfusion-train --resume {folder} --nproc 2"]
    assert checkpoints(folder) == []


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
        assert re.match(r"exfusion-train: lost rank 0 \(host \S+, pid \d+\): failed in [\w ]+ of step \d+: .*No space left on device",
                        ranks[1].errors()[-1]), ranks[1].text()
        assert "No space left on device" in ranks[0].errors()[-1] and "lost rank" not in ranks[0].text()
        (place / "filler").unlink()
        assert is_valid(call, place / "run")
    finally:
        subprocess.run(["umount", "-l", place], check=True)


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
    """data.root is the same word for both, and leads nowhere from the folder in which one was started."""
    (tmp_path / "images").symlink_to("/usr/share/datasets/fashion-mnist")
    (tmp_path / "elsewhere").mkdir()
    words = [program, repo / "recipes" / "quickstart.yaml", "--out", tmp_path / "run", *settings(data__root="images")]
    commands = [["env", "-C", tmp_path / ("elsewhere" if rank == culprit else "."), *words] for rank in range(2)]
    with by_hand(commands) as ranks:
        assert [one.wait(30) for one in ranks] == [2 if rank == culprit else 1 for rank in range(2)]
    assert len(ranks[culprit].errors()) == 1 and "images/train-images-idx3-ubyte" in ranks[culprit].errors()[0]
    said, = ranks[1 - culprit].errors()
    assert re.match(rf"exfusion-train: rank {culprit} on host \S+ could not start: images/train-images-idx3-ubyte", said)
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
    fused = bytes_of_steps("{experts: 16, weights: learned}")
    print(f"40 steps: dense {dense} bytes, 16 experts {fused} bytes, ratio {fused / dense:.4f}")
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


def test_torchrun_starts_a_killed_run_anew(restarts):
    """Killed twice, a deterministic run ends in the undisturbed run's bytes. The survivor says each time which rank was lost."""
    folder, future = restarts
    code, lines, text = future.result()
    assert code == 0, text
    words = [re.match(r"exfusion-train: lost rank (\d) \(host \S+, pid \d+\): last seen in [\w ]+ of step \d+", line) for line in lines]
    assert [found[1] for found in words] == ["1", "0"], lines
    for name in ("model.safetensors", "experts.safetensors", "optimizer.safetensors"):
        assert last(folder / "run", name) == last(folder / "undisturbed", name), name


@pytest.mark.parametrize("name", DRILLS)
def test_survivors_name_the_lost_rank(name, drills, call):
    folder, future = drills[name]
    culprit = DRILLS[name][2]
    code, seconds, ended, lines, left = future.result()
    print(name, [round(second, 1) for second in seconds], round(ended, 1), lines[:1])
    assert code != 0
    survivors = {0, 1, 2} - {culprit}
    if name.startswith("nproc"):  # each line once, with the ranks that say it
        said = [re.match(r"exfusion-train: ranks? ([\d, -]+): ", line)[1] for line in lines]
        assert {int(rank) for word in said for rank in re.findall(r"\d", word)} == survivors, lines
    else:
        assert len(lines) == len(survivors), lines
    for line in lines:
        assert re.findall(r"lost rank \d+", line) == [f"lost rank {culprit}"], line
        assert re.search(r"\(host \S+, pid \d+\): last seen in [\w ]+ of step \d+", line), line
    assert max(seconds) < 15
    # torchrun gives a stopped process 30 s to obey SIGTERM before it kills it.
    assert ended < (60 if name == "torchrun, stopped" else 30)
    assert left == []
    assert is_valid(call, folder)
