"""Trains the quickstart model dense and fused with several seeds, same data order per seed, and writes the table of results.md.

    python3 experiments/dense_vs_fused/compare.py [--seeds 3] [--epochs 5] [--out runs/dense_vs_fused]

Runs that are finished are not repeated, interrupted ones go on. One thread a run, two runs at a time.
"""
import argparse
import concurrent.futures
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from quickstart import REPO, accuracy  # noqa: E402

ARMS = {
    "dense": ["fusion=none"],
    "fused, learned, N = 4": [],
    "fused, static, N = 4": ["fusion.weights=static"],
    "fused, learned, N = 4, std kept": ["fusion.init=independent_scaled"],
}


def table(results, seeds, epochs):
    lines = [f"Test accuracy in percent after {epochs} epochs, seeds 0 to {seeds - 1}; differences are paired by seed.", "",
             "| arm | mean | sd | by seed | difference to dense (mean; by seed) |", "|---|---|---|---|---|"]
    for arm, scores in results.items():
        paired = [score - base for score, base in zip(scores, results["dense"])]
        lines.append(f"| {arm} | {statistics.mean(scores):.2f} | {statistics.stdev(scores):.2f} | "
                     f"{', '.join(f'{score:.2f}' for score in scores)} | {statistics.mean(paired):+.2f}; "
                     f"{', '.join(f'{difference:+.2f}' for difference in paired)} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, choices=range(2, 100), metavar="2..99")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=REPO / "runs" / "dense_vs_fused")
    given = parser.parse_args()
    jobs = {}
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        for seed in range(given.seeds):
            for number, (arm, sets) in enumerate(ARMS.items()):
                common = [f"seed={seed}", f"train.epochs={given.epochs}", "train.threads=1", "checkpoint.keep=1"]
                jobs[arm, seed] = pool.submit(accuracy, given.out / f"arm{number}-seed{seed}", sets + common)
        results = {arm: [jobs[arm, seed].result() for seed in range(given.seeds)] for arm in ARMS}
    text = table(results, given.seeds, given.epochs)
    (pathlib.Path(__file__).parent / "results.md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
