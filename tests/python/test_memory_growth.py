"""Training does not grow: the resident memory of a run of the quickstart's ViT, read from outside, between steps 100 and 1,100."""

import re
from pathlib import Path

from programs import last_row, settings, started, wait_for_step

RECIPE = Path(__file__).resolve().parents[2] / "recipes/quickstart.yaml"
LONG = settings(data="{name: synthetic, train_samples: 2048, test_samples: 64}", train__steps=100000, train__global_batch=8,
                train__threads=1, train__eval_every_steps=100000, checkpoint="{every_steps: 100000, every_epochs: 0}")


def resident_kib(process):
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    return int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[1])


def test_a_thousand_steps_need_no_more_memory(bin_dir, tmp_path):
    folder = tmp_path / "run"
    with started(bin_dir, RECIPE, "--out", folder, *LONG, env={"OMP_NUM_THREADS": "1"}) as process:
        wait_for_step(process, folder, 100)
        begun, before = last_row(folder), resident_kib(process)
        wait_for_step(process, folder, begun + 1000, timeout=240)
        assert process.poll() is None, process.communicate()[1]
        after = resident_kib(process)
    assert after - before < 1024, f"{before} KiB at step {begun}, {after} KiB a thousand steps later"
