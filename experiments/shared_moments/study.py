"""What does one pair of AdamW moments for all experts cost in accuracy? The quickstart recipe, `learned` and `memory` weights, with
`fusion.state: full` and `shared_moments`, same data order per seed. Writes results.md beside this file.

    .venv/bin/python experiments/shared_moments/study.py [--seeds 3] [--out runs/shared_moments]

Runs that are finished are not repeated, interrupted ones go on. One thread a run.
"""
import argparse
import pathlib
import sys

import h5py
import numpy
import scipy.stats

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import quickstart  # noqa: E402


def measure(folder, sets):
    """Test accuracy in percent, and in how many directions the experts of an FFN have moved, mean over FFNs."""
    accuracy = quickstart.accuracy(folder, sets)
    with h5py.File(folder / "metrics.h5") as file:
        return accuracy, file["experts/update_participation"][-1].mean()


def row(weights, full, shared):
    """Accuracies and their paired difference with a 95 % t interval."""
    difference = shared[:, 0] - full[:, 0]
    half = scipy.stats.t.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / len(difference) ** 0.5
    return (f"| `{weights}` | {', '.join(f'{x:.2f}' for x in full[:, 0])} | {', '.join(f'{x:.2f}' for x in shared[:, 0])} | "
            f"{difference.mean():+.2f} [{difference.mean() - half:+.2f}, {difference.mean() + half:+.2f}] | "
            f"{full[:, 1].mean():.4f} | {shared[:, 1].mean():.4f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, choices=range(2, 100), metavar="2..99")
    parser.add_argument("--out", type=pathlib.Path, default=quickstart.REPO / "runs" / "shared_moments")
    given = parser.parse_args()
    lines = [f"Test accuracy in percent of the quickstart recipe, seeds 0 to {given.seeds - 1}; the difference is paired by seed, with a 95 % t interval. "
             "Participation: directions in which the experts of an FFN have moved (docs/metrics.md), mean over FFNs and seeds.", "",
             "| weights | full | shared_moments | shared minus full | participation, full | participation, shared |", "|---|---|---|---|---|---|"]
    for weights in ("learned", "memory"):
        runs = {}
        for state in ("full", "shared_moments"):
            runs[state] = numpy.array([measure(given.out / f"{weights}_{state}_{seed}",
                                               [f"seed={seed}", f"fusion.weights={weights}", f"fusion.state={state}", "train.threads=1"])
                                       for seed in range(given.seeds)])
        lines.append(row(weights, runs["full"], runs["shared_moments"]))
    text = "\n".join(lines) + "\n"
    (pathlib.Path(__file__).parent / "results.md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
