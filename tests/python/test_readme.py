"""The README's commands run as they are written, in order, in a copy of the checkout that shares the build and .venv."""

import re
import shutil
import subprocess

import pytest


def commands(repo):
    """The lines of the README's sh blocks, without their comments."""
    blocks = re.findall(r"```sh\n(.*?)```", (repo / "README.md").read_text(), re.S)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_the_readme_has_the_commands_that_it_promises(repo):
    found = commands(repo)
    assert "./dev train recipes/quickstart.yaml" in found and "./dev test" in found
    assert len(found) >= 7


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder in which README commands work: programs instead of ./dev, which would build again (test_dev.py tests ./dev)."""
    import conftest
    import os
    import pathlib

    repo = pathlib.Path(conftest.__file__).resolve().parents[2]
    build = pathlib.Path(os.environ.get("EXFUSION_BUILD", repo / "build"))
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(repo / "recipes", folder / "recipes")
    for name in (".venv", "tests"):
        (folder / name).symlink_to(repo / name)
    dev = folder / "dev"
    dev.write_text(f"""#!/bin/sh
command=$1; shift
case $command in
  train) exec {build}/bin/exfusion-train "$@" ;;
  run) program=$1; shift; exec {build}/bin/$program "$@" ;;
  *) exit 64 ;;
esac
""")
    dev.chmod(0o755)
    return folder


def test_the_readme_commands_run(repo, checkout):
    """Trainings are cut to two steps an epoch's worth of `train.steps`; everything else runs as written."""
    for command in commands(repo):
        if command == "./dev test":  # this very run
            continue
        if command.startswith("./dev train recipes/"):
            command += " --set train.steps=2"
        if "train.epochs=6" in command:
            command = command.replace("train.epochs=6", "train.steps=3")
        done = subprocess.run(command, shell=True, cwd=checkout, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (checkout / "runs/quickstart/export/model.safetensors").is_file()
    assert (checkout / "runs/quickstart_dense/export/model.safetensors").is_file()
    assert (checkout / "runs/vit/config.json").is_file()


def test_a_run_leaves_behind_what_the_readme_lists(repo, checkout):
    listed = re.search(r"    runs/quickstart/\n(.*?)\n\n", (repo / "README.md").read_text(), re.S).group(1)
    for line in listed.splitlines():
        pattern = line.split()[0].rstrip("/")
        assert list((checkout / "runs/quickstart").glob(pattern)), pattern


def test_links_of_the_readme_and_docs_exist(repo):
    for page in [repo / "README.md", *sorted((repo / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
