"""What the others say and do when one of three ranks is lost: dist_drill (tests/dist/drill.cpp) over TCP, one drill per fault.

All drills run at once: nearly all of their time is waiting.
"""

import concurrent.futures
import contextlib
import os
import re
import signal
import socket
import subprocess
import time

import pytest

RANKS = 3
LIMIT = 15.0  # seconds from the fault to the last survivor's end
PAUSE = 4.0
LONG, SHORT = 600_000, 8_000  # dist.timeout in ms: as by default, and that of a hang's drill

# name: (what happens, to which rank, timeout of a collective). "agent": the store is served by none of the ranks, as under torchrun.
DRILLS = {
    "killed": ("kill", 2, LONG),
    "killed, first": ("kill", 0, LONG),
    "stopped": ("stop", 2, LONG),
    "stopped, first": ("stop", 0, LONG),
    "killed, first, agent": ("kill", 0, LONG),
    "stopped, first, agent": ("stop", 0, LONG),
    "exception": ("throw", 1, LONG),
    "exception, first": ("throw", 0, LONG),
    "hang": ("hang", 1, SHORT),
    "hang, first": ("hang", 0, SHORT),
    "cut": ("cut", 2, LONG),
    "cut, first": ("cut", 0, LONG),
    "stopped, short timeout": ("stop", 2, SHORT),
    "paused": ("pause", 2, LONG),  # all of the rank stands still for PAUSE seconds, as on a machine with too much to do
    "paused, first": ("pause", 0, LONG),
    "late": ("late", 2, LONG),
    "late, first": ("late", 0, LONG),
}
BEARABLE = ("late", "pause")


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def may_cut():
    """Whether this machine lets us make a network namespace."""
    name = f"drill-{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("netns", "del", name)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


@contextlib.contextmanager
def network(name, cut_off):
    """Rank 0's address, what starts each rank, what cuts: rank `cut_off` is alone behind a pair of interfaces."""
    subnet = f"198.18.{os.getpid() % 250}"
    inner, outer = f"di{os.getpid()}", f"do{os.getpid()}"
    here, there = (f"{subnet}.{4 * cut_off + 1}", f"{subnet}.{4 * cut_off + 2}")
    ip("netns", "add", name)
    try:
        ip("link", "add", outer + str(cut_off), "type", "veth", "peer", "name", inner, "netns", name)
        ip("address", "add", f"{here}/30", "dev", outer + str(cut_off))
        ip("-n", name, "address", "add", f"{there}/30", "dev", inner)
        ip("link", "set", outer + str(cut_off), "up")
        ip("-n", name, "link", "set", inner, "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield (there if cut_off == 0 else here,
               [["ip", "netns", "exec", name] if rank == cut_off else [] for rank in range(RANKS)],
               lambda: ip("-n", name, "link", "set", inner, "down"))
    finally:
        ip("netns", "del", name)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def drill(program, folder, fault, culprit, timeout, address="127.0.0.1", before=([],) * RANKS, cut=None, store=None):
    """{rank: (exit code, seconds after the fault, last line of stderr)}; None for a code: it still ran."""
    own = fault if fault in ("throw", "hang", "late") else ""
    steps = 10 if fault in BEARABLE else 1_000_000
    port = store.port if store else free_port()
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True"} if store else {}
    folder.mkdir()
    ranks = []
    for rank in range(RANKS):
        env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(RANKS),
               "MASTER_ADDR": address, "MASTER_PORT": str(port), **agent}
        with open(folder / f"{rank}.err", "w", encoding="utf-8") as errors:
            ranks.append(subprocess.Popen([*before[rank], program, str(timeout), str(steps), own if rank == culprit else ""],
                                          stdout=subprocess.PIPE, stderr=errors, text=True, env=env))
    ends = {}
    try:
        for rank, process in enumerate(ranks):
            assert process.stdout.readline() == "runs\n", (folder / f"{rank}.err").read_text(encoding="utf-8")
        if fault in ("kill", "stop"):
            ranks[culprit].send_signal(signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
        elif fault == "cut":
            cut()
        elif fault == "pause":
            ranks[culprit].send_signal(signal.SIGSTOP)
            time.sleep(PAUSE)
            ranks[culprit].send_signal(signal.SIGCONT)
        start = time.monotonic()
        while len(ends) < RANKS and time.monotonic() < start + LIMIT + 10.0:
            for rank, process in enumerate(ranks):
                if rank not in ends and process.poll() is not None:
                    ends[rank] = (process.returncode, time.monotonic() - start)
            if fault == "stop" and len(ends) == RANKS - 1:
                break  # a stopped rank is its launcher's to end
            time.sleep(0.02)
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    lines = [(folder / f"{rank}.err").read_text(encoding="utf-8").splitlines() for rank in range(RANKS)]
    return {rank: (*ends.get(rank, (None, None)), lines[rank][-1] if lines[rank] else "") for rank in range(RANKS)}


@pytest.fixture(scope="module")
def ends(bin_dir, tmp_path_factory):
    """{name of a drill: future of what drill() returns}"""
    place = tmp_path_factory.mktemp("drills")

    def perform(number, name):
        fault, culprit, timeout = DRILLS[name]
        arguments = (bin_dir / "dist_drill", place / str(number), fault, culprit, timeout)
        if fault != "cut":
            return drill(*arguments, store=stores.get(name))
        with network(f"drill-{os.getpid()}-{number}", culprit) as (address, before, cut):
            return drill(*arguments, address, before, cut)

    from torch.distributed import TCPStore

    stores = {name: TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False) for name in DRILLS if name.endswith("agent")}
    cutting = may_cut()
    with concurrent.futures.ThreadPoolExecutor(len(DRILLS)) as pool:
        futures = {}
        for number, (name, (fault, _, _)) in enumerate(DRILLS.items()):
            if fault != "cut" or cutting:
                futures[name] = pool.submit(perform, number, name)
                time.sleep(0.5)  # the starts take all cores there are
        yield futures


@pytest.mark.parametrize("name", [name for name, (fault, _, _) in DRILLS.items() if fault not in BEARABLE])
def test_survivors_name_the_lost_rank_and_end(name, ends):
    if name not in ends:
        pytest.skip("NOT TESTED: 'ip netns add' is not permitted here, so no network can be cut")
    fault, culprit, _ = DRILLS[name]
    result = ends[name].result()
    print(name, result)
    for rank, (code, seconds, line) in result.items():
        if rank == culprit:
            continue
        assert code == 1, f"rank {rank}: exit code {code}: {line}"
        assert seconds < LIMIT, f"rank {rank} took {seconds:.1f} s: {line}"
        assert re.findall(r"lost rank \d+", line) == [f"lost rank {culprit}"], f"rank {rank}: {line}"
        assert re.search(r"\(host \S+, pid \d+\): .* of step \d+", line), f"rank {rank}: {line}"
    code, _, line = result[culprit]
    if fault == "throw":
        assert code == 1 and line == "drill: metrics.h5: No space left on device"
    elif fault == "hang":
        assert code == 1 and f"take this one for lost: lost rank {culprit} " in line
    elif fault == "cut":
        assert code == 1, "the rank beyond the cut is still there"


@pytest.mark.parametrize("name", [name for name, (fault, _, _) in DRILLS.items() if fault in BEARABLE])
def test_a_rank_that_is_late_is_not_lost(name, ends):
    assert [(code, line) for code, _, line in ends[name].result().values()] == [(0, "")] * RANKS
