"""Runs of the quickstart recipe, as several studies need them: finished ones are not repeated, interrupted ones go on."""
import json
import os
import pathlib
import subprocess

REPO = pathlib.Path(__file__).resolve().parents[1]
PROGRAMS = pathlib.Path(os.environ.get("EXFUSION_BUILD", REPO / "build")) / "bin"


def train(folder, sets):
    """What exfusion-train --json reports of the run in the folder, trained with these `--set` items."""
    if (folder / "recipe.yaml").exists():
        command = [PROGRAMS / "exfusion-train", "--resume", folder, "--json"]
    else:
        command = [PROGRAMS / "exfusion-train", REPO / "recipes" / "quickstart.yaml", "--out", folder, "--json"]
        for item in sets:
            command += ["--set", item]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{folder}: {(done.stderr.splitlines() or [done.returncode])[-1]}")
    return json.loads(done.stdout)


def accuracy(folder, sets):
    """Test accuracy of the run, in percent."""
    return 100 * train(folder, sets)["accuracy_fp32"]
