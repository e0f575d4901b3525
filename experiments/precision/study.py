"""Does training in bf16 follow training in fp32? The quickstart recipe for 500 steps, dense and fused, three seeds, in both precisions:
the same data in the same order, so losses can be compared step by step. Writes results.md and curves.svg beside this file.

    .venv/bin/python experiments/precision/study.py [--steps 500] [--seeds 0 1 2]
"""
import argparse
import pathlib
import subprocess
import tempfile

import h5py
import numpy

HERE = pathlib.Path(__file__).resolve().parent
REPO = HERE.parents[1]
ARMS = {"dense": ["--set", "fusion=none"], "learned, N = 4": []}
WINDOW = 25  # steps of the moving mean that is drawn
COLOURS = {"fp32": "#1f4e9c", "bf16": "#d9661f"}


def losses(arm, precision, seed, steps, folder):
    out = folder / f"{len(list(folder.iterdir()))}"
    command = [REPO / "build/bin/exfusion-train", REPO / "recipes/quickstart.yaml", "--out", out, *ARMS[arm]]
    for item in (f"seed={seed}", f"train.precision={precision}", f"train.steps={steps}", "train.log_every_steps=1",
                 "train.eval_every_steps=0", "checkpoint.every_epochs=0"):
        command += ["--set", item]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with h5py.File(out / "metrics.h5") as file:
        return file["train/loss"][:steps], file["eval/loss"][-1], file["eval/accuracy"][-1]


def smooth(curve):
    return numpy.convolve(curve, numpy.ones(WINDOW) / WINDOW, mode="valid")


def picture(curves):
    """Both precisions of each arm, seed 0, one panel per arm."""
    width, height, left, top = 340, 220, 46, 30
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{len(curves) * (width + left) + 20}" height="{height + 70}" '
             'font-family="sans-serif" font-size="12">', '<rect width="100%" height="100%" fill="white"/>']
    low = min(smooth(c).min() for panel in curves.values() for c in panel.values())
    high = max(smooth(c).max() for panel in curves.values() for c in panel.values())
    for i, (arm, panel) in enumerate(curves.items()):
        x0 = left + i * (width + left)
        lines.append(f'<text x="{x0}" y="20">{arm}: training loss, mean of {WINDOW} steps</text>')
        lines.append(f'<rect x="{x0}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#999"/>')
        for mark in numpy.linspace(low, high, 4):
            y = top + height * (high - mark) / (high - low)
            lines.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{mark:.2f}</text>')
        for j, (precision, curve) in enumerate(panel.items()):
            points = smooth(curve)
            path = " ".join(f"{x0 + width * s / (len(points) - 1):.1f},{top + height * (high - v) / (high - low):.1f}"
                            for s, v in enumerate(points))
            dash = ' stroke-dasharray="5 4"' if j else ""
            lines.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[precision]}" stroke-width="1.6"{dash}/>')
            lines.append(f'<text x="{x0 + width - 50}" y="{top + 20 + 16 * j}" fill="{COLOURS[precision]}">{precision}</text>')
        lines.append(f'<text x="{x0}" y="{top + height + 18}">{WINDOW}</text>')
        lines.append(f'<text x="{x0 + width}" y="{top + height + 18}" text-anchor="end">step {len(curve)}</text>')
    return "\n".join(lines + ["</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    rows, curves = [], {}
    with tempfile.TemporaryDirectory() as name:
        for arm in ARMS:
            for seed in given.seeds:
                fp32 = losses(arm, "fp32", seed, given.steps, pathlib.Path(name))
                bf16 = losses(arm, "bf16", seed, given.steps, pathlib.Path(name))
                if seed == given.seeds[0]:
                    curves[arm] = {"fp32": fp32[0], "bf16": bf16[0]}
                apart = bf16[0] - fp32[0]
                rows.append(f"| {arm} | {seed} | {fp32[0][-50:].mean():.4f} | {bf16[0][-50:].mean():.4f} | {apart.mean():+.5f} | "
                            f"{numpy.abs(apart).mean():.5f} | {numpy.abs(apart).max():.4f} | {100 * fp32[2]:.2f} | {100 * bf16[2]:.2f} |")
                print(rows[-1], flush=True)
    table = ["| arm | seed | fp32, last 50 | bf16, last 50 | mean difference | mean absolute | largest | test %, fp32 | test %, bf16 |",
             "|---|---|---|---|---|---|---|---|---|", *rows]
    (HERE / "results.md").write_text(f"Training loss of {given.steps} steps, bf16 minus fp32 step by step.\n\n" + "\n".join(table) + "\n")
    (HERE / "curves.svg").write_text(picture(curves))


if __name__ == "__main__":
    main()
