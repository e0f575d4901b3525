"""Routing traces whose truth is known: do the intervals of exfusion-analyze cover it, and how often does it find what is not there?

    .venv/bin/python experiments/routing_truth/study.py [--seeds 200] [--layers 300] [--out runs/routing_truth]

Seeds are 0 to n-1, one simulated layer each, none left out. Exit code 1 when a bound is broken. Some minutes on one core.
"""
import argparse
import json
import pathlib
import subprocess
import sys

import h5py
import numpy as np
from scipy import stats

REPO = pathlib.Path(__file__).resolve().parents[2]
ANALYZE = REPO / "build" / "bin" / "exfusion-analyze"
GAMMA = 27.0  # of the simulated games
LAYERS_PER_FILE = 20


def equilibrium(q, gamma):
    """Shares m proportional to exp(q - gamma m) for each row of q: Newton in log m and the constant together."""
    q = q - q.max(1, keepdims=True)
    x = q / (1 + gamma / q.shape[1])
    x -= np.log(np.exp(x).sum(1, keepdims=True))
    c = (x + gamma * np.exp(x) - q).mean(1, keepdims=True)
    for _ in range(100):
        m = np.exp(x)
        stiff, rest = 1 + gamma * m, c + q - x - gamma * m
        dc = (1 - m.sum(1, keepdims=True) - (m * rest / stiff).sum(1, keepdims=True)) / (m / stiff).sum(1, keepdims=True)
        dx = (rest + dc) / stiff
        x, c = x + np.minimum(dx, 2), c + dc
        if abs(dx).max() < 1e-10:
            break
    return np.exp(x)


def game(rng, experts=64, batches=50, slots=4000):
    """Loads drawn from the game; batches differ in quality by 0.05."""
    q = rng.normal(0, 0.5, experts) + rng.normal(0, 0.05, (batches, experts))
    count = np.array([rng.multinomial(slots, m / m.sum()) for m in equilibrium(q, GAMMA)])
    p = np.exp(q) / np.exp(q).sum(1, keepdims=True)
    return {"tokens": np.full(batches, slots), "count": count, "sum_prob": p * slots, "sum_logit": q * slots, "sum_logit_sq": q * q * slots * 1.001}


def gaussian(rng, experts, top_k, sigma, batch_sd=0.0, batches=50, tokens=200, sampled=40):
    """A router without congestion: biases, batches that differ from each other, token noise."""
    z = rng.normal(0, 0.2, experts) + batch_sd * rng.normal(size=(batches, 1, experts)) + sigma * rng.normal(size=(batches, tokens, experts))
    chosen = np.argpartition(-z, top_k - 1, 2)[:, :, :top_k]
    p = np.exp(z - z.max(2, keepdims=True))
    return {"tokens": np.full(batches, tokens), "count": np.array([np.bincount(one.ravel(), minlength=experts) for one in chosen]),
            "sum_prob": (p / p.sum(2, keepdims=True)).sum(1), "sum_logit": z.sum(1), "sum_logit_sq": (z * z).sum(1),
            "logits": z[:, :sampled].reshape(-1, experts).astype(np.float32), "batch": np.repeat(np.arange(batches, dtype=np.int32), sampled)}


def classes(rng, experts=8, batches=40, tokens=75, kinds=10, size=32):
    """A random linear router on hidden states of separable classes: routes know the class, and no expert learned anything."""
    means, router = rng.normal(size=(kinds, size)), rng.normal(size=(size, experts))
    domain = np.arange(batches, dtype=np.int32) % kinds
    hidden = means[domain][:, None] + rng.normal(size=(batches, tokens, size))
    z = hidden @ router
    return {"tokens": np.full(batches, tokens), "count": np.array([np.bincount(one.argmax(1), minlength=experts) for one in z]), "domain": domain,
            "logits": z.reshape(-1, experts).astype(np.float32), "batch": np.repeat(np.arange(batches, dtype=np.int32), tokens),
            "hidden": hidden.reshape(-1, size).astype(np.float32)}


def no_domains(rng, **sizes):
    """The same with domains that have nothing to do with the tokens: batches get them at random."""
    layer = classes(rng, **sizes)
    z = layer["logits"].reshape(len(layer["tokens"]), -1, layer["count"].shape[1])
    mixed = rng.permutation(z.reshape(-1, z.shape[2])).reshape(z.shape)
    return layer | {"count": np.array([np.bincount(one.argmax(1), minlength=z.shape[2]) for one in mixed])}


def analysed(make, count, top_k, out):
    """The JSON of `count` layers, layer i made with seed i."""
    layers = []
    for first in range(0, count, LAYERS_PER_FILE):
        made = [make(np.random.default_rng(seed)) for seed in range(first, min(first + LAYERS_PER_FILE, count))]
        with h5py.File(out / "trace.h5", "w") as file:
            file.attrs.update({"format": "exfusion-trace", "version": 1, "num_experts": made[0]["count"].shape[1], "top_k": top_k})
            for number, fields in enumerate(made):
                for name, value in fields.items():
                    file[f"layer_{number:03}/{name}"] = value
        done = subprocess.run([ANALYZE, out / "trace.h5", "--json"], capture_output=True, text=True, check=True)
        layers += json.loads(done.stdout)["layers"]
    return layers


def coverage(out, count):
    intervals = [layer["gamma_ci"] for layer in analysed(game, count, 1, out)]
    covered = sum(low <= GAMMA <= high for low, high in intervals)
    share, width = covered / count, np.median([high - low for low, high in intervals])
    print(f"| intervals of gamma_eff, truth {GAMMA:.0f} | {covered} of {count} cover ({share:.3f}) | median width {width:.2f} | "
          f"{'ok' if 0.90 <= share <= 0.98 else 'BROKEN'} |", flush=True)
    return 0.90 <= share <= 0.98


def alarms(name, make, top_k, alarm, count, out):
    hits = sum(alarm(layer) for layer in analysed(make, count, top_k, out))
    low = stats.beta.ppf(0.025, hits, count - hits + 1) if hits else 0.0
    print(f"| {name} | {hits} of {count} | lower limit {low:.3f} | {'ok' if low <= 0.05 else 'BROKEN'} |", flush=True)
    return low <= 0.05


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--layers", type=int, default=300)
    parser.add_argument("--out", type=pathlib.Path, default=REPO / "runs" / "routing_truth")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    print("| check | found | | |\n|---|---|---|---|")
    results = [coverage(given.out, given.layers)]

    def congested(layer):
        return layer["gamma_excess_ci"] is not None and layer["gamma_excess_ci"][0] > 0

    for experts, top_k, sigma, batch_sd in ((16, 2, 1.0, 0.0), (16, 2, 2.6, 0.1), (32, 4, 2.6, 0.0), (64, 8, 2.0, 0.0), (16, 2, 0.3, 0.0)):
        name = f"congestion in a Gaussian router, M {experts}, K {top_k}, sigma {sigma}, batches differ by {batch_sd}"
        results.append(alarms(name, lambda rng: gaussian(rng, experts, top_k, sigma, batch_sd), top_k, congested, given.seeds, given.out))
    results.append(alarms("specialists in a random router on separable classes", classes, 1, lambda layer: layer["random_router"]["z"] > 3, given.seeds, given.out))
    results.append(alarms("domains that tokens do not have, against shuffles", no_domains, 1, lambda layer: layer["label_shuffle"]["z"] > 3, given.seeds, given.out))
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
