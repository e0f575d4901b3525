"""./dev: its commands and errors, and its setup, run for real on a copy whose requirements are one small made-up torch."""

import os
import re
import shutil
import sys
import zipfile

import pytest


@pytest.fixture
def dev(repo, run):
    return lambda *arguments, **options: run([repo / "dev", *arguments], **options)


def commands(repo):
    return re.findall(r"^cmd_(\w+)\(\)", (repo / "dev").read_text(), re.M)


@pytest.mark.parametrize("arguments", [[], ["help"], ["-h"], ["--help"]])
def test_help_lists_every_command(dev, repo, arguments):
    done = dev(*arguments, check=True)
    listed = re.findall(r"^  (\w+) ", done.stdout, re.M)
    assert sorted(set(listed)) == sorted(commands(repo)) and "setup" in listed and "test" in listed


def test_an_unknown_command_is_answered_with_the_list(dev):
    done = dev("tset")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.endswith("dev: no command tset\n") and "  test " in done.stderr


@pytest.mark.parametrize("arguments", [["setup", "now"], ["build", "x"], ["build cuda", "x"], ["clean", "all"], ["format", "--force"]])
def test_arguments_that_a_command_does_not_take_are_refused(dev, arguments):
    done = dev(*arguments[0].split(), *arguments[1:])
    assert done.returncode == 2 and f"dev: {arguments[0]} takes no arguments, found: {arguments[1]}" in done.stderr


def test_run_needs_a_program(dev):
    assert dev("run").returncode == 2


@pytest.fixture
def checkout(repo, tmp_path, run, monkeypatch):
    """A copy of ./dev beside a requirements.txt that asks for a torch found in a folder of wheels; no index, no apt-get.

    Programs in its folder `fake` hide the machine's: dpkg-query reports every package, `id` a user who is not root, and apt-get
    writes down how it was called.
    """
    root = tmp_path / "a checkout"
    wheels, fake = root / "wheels", root / "fake"
    for folder in (wheels, fake):
        folder.mkdir(parents=True)
    shutil.copy(repo / "dev", root)
    for version in ("2.13.0", "2.14.1"):
        write_wheel(wheels, "torch", version, torch_files(version))
    (root / "requirements.txt").write_text("# the oracles\ntorch==2.13.0\n")
    program(fake / "dpkg-query", r"""for package in "${@:4}"; do echo "$package installed"; done""")
    program(fake / "id", "echo 1000")
    program(fake / "apt-get", f'echo "apt-get $*" >>"{root}/apt-calls"; echo "no network"; exit 100')
    for name in ("VIRTUAL_ENV", "LIBTORCH_ROOT", *(name for name in os.environ if name.startswith("PIP_"))):
        monkeypatch.delenv(name, raising=False)
    os.symlink(sys._base_executable, fake / "python3")  # not the python of the .venv that runs this test
    for name, value in {"PATH": f"{fake}:{os.environ['PATH']}", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels.as_uri(),
                        "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    return root


def program(path, script):
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


def write_wheel(folder, name, version, files):
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, **wheel_info(name, version)}.items():
            wheel.writestr(path, text)


def wheel_info(name, version):
    info = f"{name}-{version}.dist-info"
    return {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }


def torch_files(version):
    return {
        "torch/__init__.py": "",
        "torch/version.py": f"__version__ = '{version}'\n",
        "torch/lib/libtorch_cpu.so": "",
        **wheel_info("torch", version),
    }


def install_torch(site_packages, version):
    for name, text in torch_files(version).items():
        path = site_packages / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def forget(checkout, package):
    program(checkout / "fake/dpkg-query", f'for package in "${{@:4}}"; do [ "$package" = {package} ] || echo "$package installed"; done')


def test_without_root_a_missing_package_is_named_with_the_command_that_installs_it(checkout, run):
    forget(checkout, "libhdf5-dev")
    done = run([checkout / "dev", "setup"])
    assert done.returncode == 2
    command = done.stderr.splitlines()[-1]
    assert command == "dev: sudo apt-get update && sudo apt-get install -y --no-install-recommends libhdf5-dev"
    assert not (checkout / ".venv").exists() and not (checkout / "apt-calls").exists()


def test_root_installs_and_fetches_the_package_lists_only_when_that_fails(checkout, run):
    forget(checkout, "ccache")
    program(checkout / "fake/id", "echo 0")
    done = run([checkout / "dev", "setup"])
    assert done.returncode == 1 and "no network" in done.stderr and str(checkout / "build/packages.log") in done.stderr
    verbs = re.findall(r"\b(install|update)\b", (checkout / "apt-calls").read_text().replace("no-install", ""))
    assert verbs == ["install", "update"]

    program(checkout / "fake/apt-get", f'echo "apt-get $*" >>"{checkout}/apt-calls"')
    (checkout / "apt-calls").unlink()
    run(["bash", "-c", f'source "{checkout}/dev"; setup_packages'], check=True)
    calls = (checkout / "apt-calls").read_text().splitlines()
    assert len(calls) == 1 and calls[0].endswith(" ccache")


def test_setup_happens_once_and_again_after_an_interruption_or_a_change(checkout, run):
    def setup():
        return run([checkout / "dev", "setup"], check=True, cwd="/").stderr.splitlines()

    own = f"dev: libtorch 2.13.0 in {checkout}/.venv/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/torch (from .venv)"
    first = setup()
    assert len(first) == 2 and "making .venv" in first[0] and first[1] == own
    assert setup() == [own]

    (checkout / "requirements.txt").write_text("torch==2.99\n")
    failed = run([checkout / "dev", "setup"])
    assert failed.returncode == 1 and "2.99" in failed.stderr and str(checkout / "build/python.log") in failed.stderr

    (checkout / ".venv/half made").touch()
    (checkout / "requirements.txt").write_text("torch==2.14.1\n")
    again = setup()
    assert "making .venv" in again[0] and "libtorch 2.14.1" in again[1] and not (checkout / ".venv/half made").exists()


def test_a_torch_of_the_active_python_is_used_and_no_second_one_installed(checkout, run, tmp_path):
    outer = tmp_path / "outer"
    run([sys._base_executable, "-m", "venv", "--without-pip", outer], check=True)
    site_packages = next(outer.glob("lib/python3*/site-packages"))
    install_torch(site_packages, "2.14.1")
    done = run([checkout / "dev", "setup"], check=True, env={"VIRTUAL_ENV": str(outer)})
    assert done.stderr.endswith(f"dev: libtorch 2.14.1 in {site_packages}/torch (from python3)\n")
    assert not list(checkout.glob(".venv/lib/python3*/site-packages/torch"))
    found = run([checkout / ".venv/bin/python", "-c", "import torch; print(torch.__file__)"], check=True, cwd=tmp_path)
    assert found.stdout == f"{site_packages}/torch/__init__.py\n"


def test_a_torch_that_is_too_old_is_left_aside(checkout, run, tmp_path):
    install_torch(tmp_path / "old", "2.12.0")
    script = f'source "{checkout}/dev"; find_python; choose_libtorch; echo "$libtorch_owner"'
    done = run(["bash", "-c", script], check=True, env={"PYTHONPATH": str(tmp_path / "old")})
    assert done.stdout == ".venv\n" and "torch 2.12.0" in done.stderr and "2.13 or 2.14 is needed" in done.stderr


@pytest.mark.parametrize("given", ["lib/python3.11/site-packages/torch", ""])
def test_libtorch_root_comes_first(checkout, run, tmp_path, given):
    install_torch(tmp_path / "given/lib/python3.11/site-packages", "2.13.0")
    install_torch(tmp_path / "other", "2.14.1")
    script = f'source "{checkout}/dev"; find_python; choose_libtorch; echo "$libtorch_owner $libtorch"; wanted_stamp'
    done = run(["bash", "-c", script], check=True, cwd=tmp_path,
               env={"LIBTORCH_ROOT": f"given/{given}", "PYTHONPATH": str(tmp_path / "other")})
    assert done.stdout.startswith(f"LIBTORCH_ROOT {tmp_path}/given/lib/python3.11/site-packages/torch\n")
    assert "torch 2" not in done.stdout  # .venv keeps the torch of requirements.txt for the oracles


def test_a_libtorch_root_without_libtorch_is_an_error(checkout, run):
    done = run([checkout / "dev", "setup"], env={"LIBTORCH_ROOT": str(checkout)})
    assert done.returncode == 2 and f"LIBTORCH_ROOT={checkout} is no torch folder" in done.stderr


PROJECT = """cmake_minimum_required(VERSION 3.25)
project(tiny LANGUAGES CXX)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")
foreach(name exfusion-train exfusion-eval bench_step)
  add_executable(${name} main.cpp)
endforeach()
add_custom_target(programs DEPENDS exfusion-train exfusion-eval)
enable_testing()
add_test(NAME good COMMAND exfusion-eval)
add_test(NAME bad COMMAND exfusion-eval 1 2)
"""
MAIN = """#include <cstdio>
int main(int argc, char** argv) { std::puts(argv[argc - 1]); return argc - 1; }
"""


def pretend_setup(checkout, run):
    """A .venv that ./dev takes for its own, without the seconds that a real one takes."""
    install_torch(checkout / ".venv/lib/python3.11/site-packages", "2.13.0")
    run(["bash", "-c", f'source "{checkout}/dev"; find_python; choose_libtorch; wanted_stamp >"$stamp"'], check=True)


def test_build_run_train_bench_and_test(checkout, repo, run, tmp_path):
    for name, text in {"CMakeLists.txt": PROJECT, "main.cpp": MAIN}.items():
        (checkout / name).write_text(text)
    shutil.copy(repo / "CMakePresets.json", checkout)
    pretend_setup(checkout, run)

    def dev(*arguments):
        return run([checkout / "dev", *arguments], cwd="/")

    evaluated = dev("run", "eval", "a b", "--json")
    assert evaluated.returncode == 2 and evaluated.stdout == "--json\n", evaluated.stderr  # stdout is the program's alone
    assert "configuring" in evaluated.stderr and re.search(r"built in \d+ s", evaluated.stderr)
    trained = dev("train", "a recipe", "b", "c")
    assert trained.returncode == 3 and trained.stdout == "c\n" and "configuring" not in trained.stderr
    assert dev("run", "exfusion-eval").returncode == 0
    unknown = dev("run", "../bin/exfusion-eval")
    assert unknown.returncode == 2 and unknown.stderr.endswith("there are: bench_step exfusion-eval exfusion-train\n")
    benched = dev("bench", "step", "x")
    assert benched.returncode == 3 and benched.stdout == "x\n"  # --json build/bench/step.json comes before it
    assert dev("bench").stdout == f"{checkout}/build/bench/step.json\n" and (checkout / "build/bench").is_dir()
    assert dev("bench", "step", "--json", "a").returncode == 2 and dev("bench", "--report", "x").returncode == 2
    assert dev("bench", "stop").stderr.endswith("no benchmark stop; there are: step\n")

    tested = dev("test")
    assert tested.returncode != 0 and tested.stdout.endswith("50% tests passed, 1 tests failed out of 2\n")
    tested = dev("test", "-R", "good")
    assert tested.returncode == 0 and tested.stdout.endswith("100% tests passed, 0 tests failed out of 1\n")

    (checkout / "main.cpp").write_text("int main() { return nothing; }\n")
    broken = dev("build")
    assert broken.returncode == 1 and "nothing" in broken.stderr and "the build failed" in broken.stderr

    (checkout / "main.cpp").write_text(MAIN)
    install_torch(tmp_path / "given", "2.13.0")
    given = run([checkout / "dev", "build"], env={"LIBTORCH_ROOT": str(tmp_path / "given/torch")})
    assert given.returncode == 0 and "configuring" in given.stderr and "making .venv" not in given.stderr

    moved = shutil.copytree(checkout, tmp_path / "moved", symlinks=True)
    stamp = (moved / ".venv/exfusion-setup").read_text()
    pretend_setup(moved, run)
    assert stamp != (moved / ".venv/exfusion-setup").read_text()  # without the pretence .venv would be made anew
    done = run([moved / "dev", "build"], check=True)
    assert "configuring" in done.stderr and f"CMAKE_HOME_DIRECTORY:INTERNAL={moved}\n" in (moved / "build/CMakeCache.txt").read_text()


def test_build_cuda_has_an_environment_and_a_folder_of_its_own(checkout, repo, run):
    for name, text in {"CMakeLists.txt": PROJECT, "main.cpp": MAIN}.items():
        (checkout / name).write_text(text)
    shutil.copy(repo / "CMakePresets.json", checkout)

    def build():
        return run([checkout / "dev", "build", "cuda"], env={"LIBTORCH_ROOT": str(checkout / "of the CPU build")})

    missing = build()  # no index, and no wheel of the compiler
    assert missing.returncode == 1 and "cuda-toolkit" in missing.stderr and "needs a network" in missing.stderr
    assert missing.stderr.endswith(f"the whole output is in {checkout}/build-cuda/python.log\n")

    write_wheel(checkout / "wheels", "cuda_toolkit", "13.0.3", {})
    done = build()
    assert done.returncode == 0 and "libtorch 2.14.1 in" in done.stderr and f": {checkout}/build-cuda/bin" in done.stderr, done.stderr
    cache = (checkout / "build-cuda/CMakeCache.txt").read_text()
    assert "EXFUSION_CUDA:UNINITIALIZED=ON\n" in cache and f"={checkout}/.venv-cuda/lib/python3" in cache
    assert sorted(path.name for path in (checkout / "build-cuda/bin").iterdir()) == ["exfusion-eval", "exfusion-train"]
    assert not (checkout / ".venv").exists() and not (checkout / "build").exists()
    again = build()
    assert again.returncode == 0 and "making" not in again.stderr and "configuring" not in again.stderr


def test_format_names_what_it_would_change_and_changes_it(checkout, repo, run):
    if not shutil.which("clang-format"):
        pytest.fail("clang-format is missing: ./dev setup installs it")
    for folder in ("lib", "trainers", "tests", "experiments"):
        (checkout / folder).mkdir()
    shutil.copy(repo / ".clang-format", checkout)
    (checkout / "lib/good.h").write_text("int a;\n")
    (checkout / "tests/bad name.cpp").write_text("int   a;\n")
    check = run([checkout / "dev", "format", "--check"])
    assert check.returncode == 1 and check.stdout == "tests/bad name.cpp\n"
    run([checkout / "dev", "format"], check=True, cwd="/")
    assert (checkout / "tests/bad name.cpp").read_text() == "int a;\n"
    run([checkout / "dev", "format", "--check"], check=True)


def test_clean_removes_the_build_and_nothing_else(checkout, run):
    (checkout / "build/bin").mkdir(parents=True)
    run([checkout / "dev", "clean"], check=True)
    assert not (checkout / "build").exists() and (checkout / "requirements.txt").exists()
