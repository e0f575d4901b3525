"""What the tests of runs of several ranks share: a bare environment, and ranks as processes that are watched and outlive no test."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time

import pytest

from programs import checkpoints, step_of

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM", "OMPI_", "TORCHELASTIC", "EXFUSION_STORE")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    """No variables of a launcher that runs the tests themselves, and one thread per rank."""
    for name in list(os.environ):
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def alive(pid):
    """The process runs or is stopped; a zombie does not count."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def ranks_below(pid):
    """{rank: pid} of the ranks that a launcher has started."""
    found = {}
    with contextlib.suppress(OSError):
        for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found |= ranks_below(child)
            variables = pathlib.Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            if os.readlink(f"/proc/{child}/exe").endswith("exfusion-train"):
                found |= {int(entry[5:]): int(child) for entry in variables if entry.startswith(b"RANK=")}
    return found


class Command:
    """A program under way; `said`: (time, line of stderr). Neither it nor a rank that it starts outlives the block."""

    def __init__(self, *words, env=None):
        self.process = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                        env={**os.environ, **{name: str(value) for name, value in (env or {}).items()}})
        self.said, self.ranks = [], {}
        self.reader = threading.Thread(target=lambda: self.said.extend((time.monotonic(), line) for line in self.process.stderr))
        self.reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        for pid in {**self.ranks, **ranks_below(self.process.pid)}.values():
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.reader.join()

    def has_saved(self, folder, after=0, timeout=60):
        """Waits for a checkpoint beyond that step; returns its step. From then on the ranks are known."""
        deadline = time.monotonic() + timeout
        while not any(step_of(path) > after for path in checkpoints(folder)):
            assert self.process.poll() is None and time.monotonic() < deadline, self.text()
            time.sleep(0.02)
        self.ranks = ranks_below(self.process.pid)
        return step_of(checkpoints(folder)[-1])

    def wait(self, timeout=90):
        """The exit code, once all that it says is there."""
        code = self.process.wait(timeout)
        self.reader.join(10)
        return code

    def text(self):
        return "".join(line for _, line in self.said)

    def errors(self):
        """What the program said last, without its log."""
        return [line.strip() for _, line in self.said if line.startswith("exfusion-train: ")]


@contextlib.contextmanager
def by_hand(commands, address="127.0.0.1", before=((), (), ())):
    """One rank per command, started with plain variables."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Command(*before[rank], *command, env={
            "RANK": rank, "WORLD_SIZE": len(commands), "LOCAL_RANK": 0 if before[rank] else rank, "MASTER_ADDR": address,
            "MASTER_PORT": port})) for rank, command in enumerate(commands)]
