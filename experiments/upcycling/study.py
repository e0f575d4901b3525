"""Upcycles a trained dense model and goes on training, against going on dense for the same steps; writes results.md.

    python3 experiments/upcycling/study.py [--seeds 3] [--source-epochs 2] [--epochs 1] [--out runs/upcycling]

Per seed: one dense source, then every arm from that source with the same data order. Runs that are finished are not repeated, interrupted ones go
on. One thread a run, two runs at a time.
"""
import argparse
import concurrent.futures
import json
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from quickstart import REPO, accuracy  # noqa: E402

ARMS = {
    "dense, gone on": ["control=dense"],
    "memory, copy": ["fusion.weights=memory", "fusion.init=copy"],
    "memory, copy and noise 0.1": ["fusion.weights=memory", "fusion.init=copy_noise", "fusion.noise=0.1"],
    "memory, drop 0.5": ["fusion.weights=memory", "fusion.init=drop"],
    "memory, split": ["fusion.weights=memory", "fusion.init=split"],
    "learned, copy and noise 0.1": ["fusion.weights=learned", "fusion.init=copy_noise", "fusion.noise=0.1"],
    "learned, drop 0.5": ["fusion.weights=learned", "fusion.init=drop"],
}


def difference_at_start(folder):
    start = folder / "start.json"
    if not start.exists():
        return "0, 0"
    record = json.loads(start.read_text())
    return ", ".join(f"{record[when]['max_logit_difference']:.2g}" for when in ("step_0", "first_fusion"))


def table(given, sources, results):
    lines = [f"Dense sources: {given.source_epochs:g} epochs, seeds 0 to {given.seeds - 1}, test accuracy {', '.join(f'{x:.2f}' for x in sources)}. "
             f"Then {given.epochs:g} more epochs of every arm with half of the learning rate, seed of the source plus 100.", "",
             "| arm | mean | by seed | difference to going on dense (mean; by seed) | logits at the start, largest difference: step 0, first fusion |",
             "|---|---|---|---|---|"]
    base = results["dense, gone on"]
    for number, (arm, scores) in enumerate(results.items()):
        paired = [score - dense for score, dense in zip(scores, base)]
        lines.append(f"| {arm} | {statistics.mean(scores):.2f} | {', '.join(f'{score:.2f}' for score in scores)} | "
                     f"{statistics.mean(paired):+.2f}; {', '.join(f'{difference:+.2f}' for difference in paired)} | "
                     f"{difference_at_start(given.out / f'arm{number}-seed0')} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, choices=range(2, 100), metavar="2..99")
    parser.add_argument("--source-epochs", type=float, default=2)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--out", type=pathlib.Path, default=REPO / "runs" / "upcycling")
    given = parser.parse_args()
    common = ["train.threads=1", "checkpoint.keep=1"]
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        sources = list(pool.map(lambda seed: accuracy(given.out / f"source-seed{seed}", [
            "control=dense", f"seed={seed}", f"train.epochs={given.source_epochs}", *common]), range(given.seeds)))
        jobs = {}
        for seed in range(given.seeds):
            for number, (arm, sets) in enumerate(ARMS.items()):
                source = given.out / f"source-seed{seed}" / "export"
                start = [f"init_from={source}"] if "control=dense" in sets else [f"fusion.from={source}"]
                jobs[arm, seed] = pool.submit(accuracy, given.out / f"arm{number}-seed{seed}", [
                    *sets, *start, f"seed={seed + 100}", f"train.epochs={given.epochs}", "optim.lr=5e-4", *common])
        results = {arm: [jobs[arm, seed].result() for seed in range(given.seeds)] for arm in ARMS}
    text = table(given, sources, results)
    (pathlib.Path(__file__).parent / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
