"""What the Python tests share: where things are, how a program is run, and a torchvision that imports beside a CPU torch."""

import importlib.abc
import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

REPO = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("EXFUSION_BUILD", REPO / "build")).resolve()


class TorchvisionOperators(importlib.abc.MetaPathFinder):
    """Completes torchvision before its first import; finds nothing itself.

    torchvision's wheel is built for CUDA: beside a CPU torch its compiled library cannot load, and the import dies with
    "operator torchvision::nms does not exist". Nobody here calls these operators (timm only needs the import to succeed), so
    their schemas are enough. Hooking the import keeps torch itself, two seconds, out of the tests that need none.
    """

    library = None  # the schemas live as long as this reference

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec("torchvision")
            if spec is not None:
                define_missing_operators(pathlib.Path(spec.origin).parent)
        return None


def define_missing_operators(torchvision_folder):
    import torch

    try:
        for compiled in torchvision_folder.glob("_C*.so"):
            torch.ops.load_library(str(compiled))
    except OSError:
        pass
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    TorchvisionOperators.library = library


sys.meta_path.insert(0, TorchvisionOperators())


@pytest.fixture(autouse=True)
def two_threads():
    """Two threads wherever the tests run: a reference that changes with the machine would be none."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def repo():
    """The repository's root."""
    return REPO


@pytest.fixture(scope="session")
def build():
    """The build folder: $EXFUSION_BUILD (ctest sets it), otherwise build/ of the repository."""
    return BUILD


@pytest.fixture(scope="session")
def bin_dir(build):
    """Where the built programs are."""
    return build / "bin"


@pytest.fixture(scope="session")
def run():
    """run(args, ...): starts a program, waits for it and hands back a CompletedProcess with its stdout and stderr as text.

    `env` adds to the environment rather than replacing it; `check` makes a failure an error that shows what was printed;
    everything else goes to subprocess.run.
    """

    def start(args, check=False, timeout=300, env=None, **options):
        done = subprocess.run([str(arg) for arg in args], capture_output=True, text=True, timeout=timeout,
                              env={**os.environ, **(env or {})}, **options)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(map(str, args))} exited with {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    return start
