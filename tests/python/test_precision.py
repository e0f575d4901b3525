"""Training in bf16 follows training in fp32: the same images in the same order, so the losses of each step can be compared."""

import h5py
import numpy
import pytest

from programs import call, settings  # noqa: F401

STEPS = 200


def losses(call, repo, folder, precision, fusion):
    folder = folder / precision
    call("train", repo / "recipes/quickstart.yaml", "--out", folder, "--json",
        *settings(train__steps=STEPS, train__threads=1, train__global_batch=64, train__precision=precision, train__log_every_steps=1,
                  train__eval_every_steps=0, checkpoint__every_epochs=0, fusion=fusion), check=True)
    with h5py.File(folder / "metrics.h5") as file:
        return file["train/loss"][:STEPS]


@pytest.mark.parametrize("fusion", ["none", "{experts: 3, weights: learned}"])
def test_losses_of_bf16_are_those_of_fp32_but_for_rounding(call, repo, tmp_path, fusion):
    fp32, bf16 = losses(call, repo, tmp_path, "fp32", fusion), losses(call, repo, tmp_path, "bf16", fusion)
    assert len(fp32) == len(bf16) == STEPS
    assert fp32[-20:].mean() < 0.75 * fp32[:5].mean()  # it learns
    apart = bf16 - fp32
    assert 0 < numpy.abs(apart).mean() < 0.02
    assert numpy.abs(apart[:10]).max() < 0.01
    assert abs(apart.mean()) < 0.005
