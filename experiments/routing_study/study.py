"""What experts do while the quickstart trains: congestion, lens, scores and fused experts, at every power of two of the steps.

    .venv/bin/python experiments/routing_study/study.py [--epochs 5] [--seeds 3] [--jobs 2] [-o runs/routing_study]

Six arms, each seed with the same data in all of them. One thread a run, --jobs runs at a time; what is finished is not repeated, interrupted
runs go on. Writes results.json, results.md and the pictures beside this file, or into --report.
"""
import argparse
import concurrent.futures
import json
import math
import os
import pathlib
import subprocess
import sys

import h5py
import numpy

import pictures
import tables

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from quickstart import PROGRAMS, REPO, train  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
EXPERTS, TOP_K, BALANCE_LOSS = 8, 2, 0.01  # of a top-k layer
BATCHES, BATCH = 50, 16  # of the analyses during training


def top_k(balance_loss):
    return ["fusion=none", f"model.ffn={{name: topk, experts: {EXPERTS}, top_k: {TOP_K}, balance_loss: {balance_loss}}}"]


ARMS = {
    "dense": ["fusion=none"],
    "static": ["fusion.weights=static"],
    "learned": ["fusion.weights=learned"],
    "memory": ["fusion.weights=memory"],
    "topk": top_k(BALANCE_LOSS),
    "topk_free": top_k(0),
}
COMMON = ["train.threads=1", "data.validation=2000", f"analysis={{groups: all, every: log2, batches: {BATCHES}, batch: {BATCH}}}",
          "train.eval_every_steps=1000000", "checkpoint.every_epochs=0"]  # at the end alone
LAYER_FIELDS = ("layer", "gamma_eff", "gamma_ci", "gamma_null", "gamma_excess", "gamma_excess_ci", "gamma_probe", "gamma_by_quality",
                "gamma_null_by_quality", "heldout_l1", "imbalance", "nmi", "label_shuffle", "random_router", "knock_out", "alone", "random_step",
                "braess", "interaction", "rank_correlations")
MODEL_FIELDS = ("step", "held_out", "gamma_probe", "lens_gates", "braess", "interaction", "rank_correlations", "alone", "phases")
STEP_FIELDS = ("gamma_eff", "gamma_ci", "gamma_null", "gamma_excess", "gamma_excess_ci", "temperature")
SCORES = ("frequency", "seer", "ean", "reap", "man", "msan", "gate_norm", "rsd", "taylor")


def call(program, *arguments):
    """What it prints, read as JSON."""
    command = [PROGRAMS / program, *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr.splitlines()[-1] if done.stderr else done.returncode}")
    return json.loads(done.stdout)


def kept(file, make):
    """The JSON in the file, made if it is not there yet."""
    if not file.exists():
        part = file.with_suffix(".part")
        part.write_text(json.dumps(make()))
        part.replace(file)
    return json.loads(file.read_text())


def congestion(report):
    """gamma_eff, its null and the excess at every step that the run analysed, of the model and of its layers, with intervals."""
    return [{"step": at["model"]["step"], **{name: at["model"][name] for name in STEP_FIELDS},
             "layers": [{**{name: layer[name] for name in STEP_FIELDS}, "q1": layer["gamma_by_quality"]["q1"],
                         "null_q1": layer["gamma_null_by_quality"]["q1"]} for layer in at["layers"]]} for at in report.get("training", [])]


# ---- collecting


def numbers(values):
    """Five digits; null for NaN."""
    if isinstance(values, dict):
        return {name: numbers(value) for name, value in values.items()}
    if isinstance(values, numpy.ndarray):
        values = values.tolist()
    if isinstance(values, list):
        return [numbers(value) for value in values]
    if isinstance(values, float):
        return float(f"{values:.5g}") if math.isfinite(values) else None
    return values


def curves(folder):
    """{"load/max_mean": [steps][layers]} of every column of /analysis with a number a layer, /experts' [rows][FFNs] and /gap."""
    found = {}
    with h5py.File(folder / "metrics.h5") as file:
        for group, layers in file["analysis"].items():
            layers = [layers[name] for name in sorted(layers) if name.startswith("layer_")]
            for column in layers[0]:
                if column == "step":
                    found["step"] = layers[0]["step"][:].astype(int).tolist()
                elif layers[0][column].ndim == 1:
                    found[f"{group}/{column}"] = numpy.stack([layer[column][:] for layer in layers], 1)
                elif column == "kappa_of_expert":
                    found[f"{group}/{column}"] = numpy.stack([numpy.nanmean(layer[column][:], 1) for layer in layers], 1)
        for name in ("experts/step", "experts/difference_ratio", "experts/difference_predicted", "experts/difference_cosine",
                     "experts/update_participation", "gap/loss", "validation/accuracy", "validation/loss"):
            if name in file:
                found[name] = file[name][:]
    return numbers(found)


def of_layer(layer):
    """What the tables need of a layer of exfusion-analyze's report."""
    found = {name: layer[name] for name in LAYER_FIELDS if name in layer}
    for name in ("knock_out", "alone"):
        if name in found:
            found[name] = {part: found[name][part] for part in ("loss", "loss_ci")}
    if "scores" in layer:
        found["scores"] = {name: layer["scores"][name]["values"] for name in SCORES if layer["scores"].get(name)}
        found["domains"] = {name: [domain[name] for domain in layer["domains"]] for name in ("n50", "exp_h", "max_specialisation")}
    if layer.get("multi_type"):
        found["multi_type"] = layer["multi_type"]
    return found


def of_run(folder, arm, seed):
    report = json.loads((folder / "analysis.json").read_text())
    model = {name: report["model"][name] for name in MODEL_FIELDS if name in report["model"]}
    if "alone" in model:
        model["alone"] = {"loss": model["alone"]["loss"]}
    return numbers({"arm": arm, "seed": seed, "curves": curves(folder), "congestion": congestion(report),
                    "layers": [of_layer(layer) for layer in report["layers"]], "model": model})


def one_run(arm, seed, given):
    folder = given.output / f"{arm}-seed{seed}"
    kept(folder.with_suffix(".json"), lambda: train(folder, [*ARMS[arm], *COMMON, f"seed={seed}", f"train.epochs={given.epochs}"]))
    kept(folder / "analysis.json", lambda: call("exfusion-analyze", folder))
    print(f"{arm}, seed {seed}: done", flush=True)
    return of_run(folder, arm, seed)


def write_reports(results, place):
    place.mkdir(parents=True, exist_ok=True)
    (place / "results.json").write_text(json.dumps(results, separators=(",", ":")) + "\n")
    (place / "results.md").write_text(tables.page(results))
    for name, picture in pictures.all_of(results).items():
        (place / name).write_text(picture)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("-o", "--output", type=pathlib.Path, default=REPO / "runs/routing_study", help="the folder of the runs")
    parser.add_argument("--report", type=pathlib.Path, default=HERE, help="where results.json, results.md and the pictures go")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(max_workers=given.jobs) as pool:
        jobs = [pool.submit(one_run, arm, seed, given) for seed in range(given.seeds) for arm in reversed(ARMS)]  # the longest first
        runs = sorted((job.result() for job in jobs), key=lambda run: (run["seed"], list(ARMS).index(run["arm"])))
    settings = {"epochs": given.epochs, "seeds": given.seeds, "experts": EXPERTS, "top_k": TOP_K, "balance_loss": BALANCE_LOSS, "batches": BATCHES, "batch": BATCH}
    write_reports({**settings, "runs": runs}, given.report)


if __name__ == "__main__":
    main()
