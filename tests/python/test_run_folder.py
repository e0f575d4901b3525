"""A run's folder: what is in it while the run lives, after it ended in whatever way, and when a file in it is damaged."""

import json
import os
import re
import shutil
import signal
import time

import numpy
import pytest

from programs import (RECIPE, call, checkpoints, copy, crc32, finished, last_row, open_metrics, recipe, refused, rows, scalars,
                      settings, sign, started, state, step_of, tensors, wait_for_step, write_recipe, write_state)

ENDLESS = settings(train__steps=1000000, train__eval_every_steps=1000000, checkpoint__every_steps=1000000)


# ---- contents


def test_a_run_folder_holds_what_the_design_says_and_nothing_else(finished):
    folder, _ = finished
    events = [name for name in os.listdir(folder) if name.startswith("events.out.tfevents.")]
    assert len(events) == 1
    assert set(os.listdir(folder)) - set(events) == {"recipe.yaml", "train.log", "metrics.h5", "checkpoints", "export"}
    assert set(os.listdir(folder / "export")) == {"model.safetensors", "config.json", "README.md"}
    saved = checkpoints(folder)
    assert {path.name for path in saved} | {"latest", "best"} == set(os.listdir(folder / "checkpoints"))
    assert os.readlink(folder / "checkpoints/latest") == saved[-1].name == "step-00000006"
    for checkpoint in saved:
        names = {"model.safetensors", "experts.safetensors", "optimizer.safetensors", "ema.safetensors"}
        assert set(os.listdir(checkpoint)) == names | {"state.json"}
        record = state(checkpoint)
        assert {"step", "epoch", "samples", "threads", "micro_batch", "precision", "versions", "files"} <= set(record)
        assert record["step"] == step_of(checkpoint) and record["samples"] == 32 * record["step"]
        assert record["epoch"] == record["step"] // 4 and record["threads"] == 1 and record["precision"] == "fp32"
        assert record["files"] == {name: {"size": (checkpoint / name).stat().st_size, "crc32": crc32(checkpoint / name)}
                                   for name in names}


def test_the_resolved_recipe_is_kept_with_versions_and_hashes(call, finished):
    text = (finished[0] / "recipe.yaml").read_text(encoding="utf-8")
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert re.search(r"exfusion \S+, libtorch \S+", comments[0])
    assert state(finished[0] / "checkpoints/latest")["recipe_crc32"] in comments[1]
    body = "".join(line + "\n" for line in text.splitlines() if not line.startswith("#"))
    assert call("train", finished[0] / "recipe.yaml", "--print-recipe", check=True).stdout == body


def test_the_log_has_the_lines_of_the_terminal(finished):
    folder, done = finished
    log = [line.split(" ", 2)[2] for line in (folder / "train.log").read_text(encoding="utf-8").splitlines()]
    assert log == [line.split(" ", 1)[1] for line in done.stderr.splitlines()]
    assert any("3 experts" in line for line in log) and any("step 6: test accuracy" in line for line in log)


def test_with_json_stdout_is_one_object(finished):
    folder, done = finished
    result = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert result["run"] == str(folder) and result["steps"] == 6 and result["best_by"] == "validation"
    assert result["accuracy"] == result["accuracy_fp32"] == rows(folder)["eval/accuracy"][-1]
    assert result["best_accuracy"] == rows(folder)["validation/accuracy"].max()


def test_metrics_have_a_row_per_step_and_per_evaluation(finished):
    found = rows(finished[0])
    columns = {"train": "loss lr grad_norm skipped", "fusion": "a price sum_abs_a entropy_a wardrop_gap",
               "experts": "share difference_ratio difference_cosine difference_predicted update_participation",
               "gap": "loss accuracy", "cost": "flops_per_sample parameters_training parameters_deployed state_bytes",
               **dict.fromkeys(("eval", "validation", "ema", "ema_validation"), "loss accuracy")}
    assert set(found) == {f"{group}/{column}" for group, names in columns.items() for column in ("step", *names.split())}
    for group in columns:
        assert list(found[f"{group}/step"]) == ([1, 2, 3, 4, 5, 6] if group in ("train", "fusion") else [3, 6]), group
    assert found["fusion/a"].shape == found["fusion/price"].shape == (6, 2, 3)
    a, price = found["fusion/a"], found["fusion/price"]
    before = numpy.concatenate([numpy.full((1, 2, 3), 1 / 3), a[:-1]])  # the weights of the forward pass
    gap = (before * price).sum(2) - price.min(2)
    assert numpy.allclose(found["fusion/wardrop_gap"], gap, rtol=1e-5, atol=1e-9) and (gap >= 0).all()
    assert numpy.allclose(found["fusion/entropy_a"], -(a * numpy.log(a)).sum(2), rtol=1e-6)
    assert numpy.allclose(found["experts/share"].sum(2), 1) and (found["gap/loss"] == 0).all()
    last = tensors(finished[0] / "checkpoints/latest/experts.safetensors")
    assert numpy.array_equal(found["fusion/a"][-1].astype("f4"), [last[f"blocks.{i}.mlp.a"] for i in range(2)])
    assert numpy.isfinite(found["train/loss"]).all() and len(set(found["train/loss"])) == 6
    # Warm-up to lr over 2 steps of 3, then half a cosine over the other 4.
    expected = [0.01 / 3, 0.02 / 3, *(0.01 * 0.5 * (1 + numpy.cos(numpy.pi * i / 4)) for i in range(4))]
    assert numpy.allclose(found["train/lr"], expected, rtol=1e-12)


def test_tensorboard_shows_the_same_scalars(finished):
    found, expected = scalars(finished[0]), rows(finished[0])
    for tag in ("train/loss", "train/lr", "train/grad_norm", "eval/loss", "eval/accuracy", "validation/accuracy", "ema/loss"):
        steps, values = zip(*found[tag])
        assert list(steps) == list(expected[f"{tag.split('/')[0]}/step"]) and numpy.allclose(values, expected[tag], rtol=1e-6)
    assert len(found["train/step_time"]) == len(found["train/data_wait"]) == 6
    assert sum(tag.startswith("fusion/") for tag in found) == 2 * (3 + 2)  # of each FFN: a of 3 experts, entropy and Wardrop gap


def test_the_best_checkpoint_is_chosen_by_validation(finished):
    found, best = rows(finished[0]), os.readlink(finished[0] / "checkpoints/best")
    step = found["validation/step"][found["validation/accuracy"].argmax()]  # the first of equals
    assert best == f"step-{step:08d}"


def test_pruning_keeps_the_newest_and_the_best(call, recipe, tmp_path):
    out = tmp_path / "run"  # nothing is learned: the first evaluation stays the best
    call("train", recipe, "--out", out, *settings(optim__lr=0, fusion__lr=0, train__eval_every_steps=1, checkpoint__every_steps=1,
                                                  data__validation=0), check=True)
    assert [step_of(path) for path in checkpoints(out)] == [1, 5, 6]
    assert os.readlink(out / "checkpoints/best") == "step-00000001"
    assert state(out / "checkpoints/latest")["best"]["by"] == "test"


def test_an_existing_folder_is_refused_with_both_ways_out(call, recipe, copy):
    before = crc32(copy / "metrics.h5")
    refused(call("train", recipe, "--out", copy), "--resume", "--overwrite", str(copy))
    assert crc32(copy / "metrics.h5") == before


def test_overwrite_replaces_a_run_and_nothing_else(call, recipe, copy, tmp_path):
    shutil.rmtree(copy / "export")
    (copy / "notes.txt").write_text("of the old run")
    call("train", recipe, "--out", copy, "--overwrite", *settings(train__steps=2), check=True)
    assert step_of(checkpoints(copy)[-1]) == 2 and not (copy / "notes.txt").exists()
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("years")
    refused(call("train", recipe, "--out", thesis, "--overwrite"), str(thesis), "recipe.yaml")
    refused(call("train", recipe, "--out", thesis / "chapter.txt", "--overwrite"), "chapter.txt")
    assert (thesis / "chapter.txt").read_text() == "years"
    refused(call("train", recipe, "--out", thesis / "chapter.txt" / "run"), "chapter.txt", code=1)


@pytest.mark.parametrize("wrong, words", [
    (["data.name=fashion_mnist", "data.root=/nonexistent"], ["/nonexistent", "not found"]),
    (["data.name=idx"], ["data.root"]),
    (["data.name=hdf5", "data.root=/nonexistent"], ["/nonexistent"]),
    (["train.global_batch=129"], ["129", "128"]),
    (["data.validation=160"], ["data.validation"]),
])
def test_data_that_cannot_be_read_are_named_and_do_not_block_the_folder(call, tmp_path, wrong, words):
    recipe = write_recipe(tmp_path, RECIPE.replace("train_samples: 160, test_samples: 64, ", "") if "data.name" in wrong[0]
                          else RECIPE)
    out = tmp_path / "run"
    refused(call("train", recipe, "--out", out, *(word for one in wrong for word in ("--set", one))), *words)
    again = call("train", write_recipe(tmp_path), "--out", out, "--overwrite", *settings(train__steps=1))
    assert again.returncode == 0, again.stderr


# ---- resuming, or not


def test_a_finished_run_says_so(call, copy):
    before = crc32(copy / "metrics.h5")
    done = call("train", "--resume", copy, "--json", check=True)
    assert "finished" in done.stderr and json.loads(done.stdout)["finished_before"] is True
    assert json.loads(done.stdout)["accuracy"] == rows(copy)["eval/accuracy"][-1]
    assert crc32(copy / "metrics.h5") == before


def test_a_finished_run_can_be_made_longer(call, copy):
    exported = crc32(copy / "export/model.safetensors")
    done = call("train", "--resume", copy, "--json", *settings(train__steps=8), check=True)
    assert json.loads(done.stdout)["steps"] == 8 and json.loads(done.stdout)["finished_before"] is False
    assert list(rows(copy)["train/step"]) == list(range(1, 9)) and step_of(checkpoints(copy)[-1]) == 8
    assert exported != crc32(copy / "export/model.safetensors") == crc32(copy / "checkpoints/latest/model.safetensors")
    assert "steps: 8" in (copy / "recipe.yaml").read_text(encoding="utf-8")


def test_what_a_kill_left_half_done_is_cleared_away(call, copy):
    for leftover in ("step-00000002.pruned", "step-00000008.tmp"):
        shutil.copytree(checkpoints(copy)[0], copy / "checkpoints" / leftover)
    call("train", "--resume", copy, *settings(train__steps=8), check=True)
    assert not any(path.suffix for path in (copy / "checkpoints").iterdir())


@pytest.mark.parametrize("setting", ["optim.lr=1", "fusion=none", "fusion.experts=4", "seed=1", "train.global_batch=16",
                                     "train={steps: 8, clip: 0}"])
def test_a_resumed_run_keeps_its_recipe(call, copy, setting):
    before = (copy / "recipe.yaml").read_text(encoding="utf-8")
    refused(call("train", "--resume", copy, "--set", setting), "keeps its recipe", setting.split("=")[0])
    assert (copy / "recipe.yaml").read_text(encoding="utf-8") == before


def test_resume_needs_a_run(call, tmp_path):
    assert len(refused(call("train", "--resume", tmp_path / "none"), str(tmp_path / "none"), "recipe.yaml")) == 1


# ---- damage


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 16
    path.write_bytes(content)


DAMAGE = {
    "cut model": lambda checkpoint: cut(checkpoint / "model.safetensors"),
    "flipped bit in experts": lambda checkpoint: flip_a_bit(checkpoint / "experts.safetensors"),
    "flipped bit in optimizer": lambda checkpoint: flip_a_bit(checkpoint / "optimizer.safetensors"),
    "missing ema": lambda checkpoint: (checkpoint / "ema.safetensors").unlink(),
    "cut state": lambda checkpoint: cut(checkpoint / "state.json"),
    "missing state": lambda checkpoint: (checkpoint / "state.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_with_every_checkpoint_damaged_each_is_named_and_nothing_is_touched(call, copy, damage):
    for checkpoint in checkpoints(copy):
        DAMAGE[damage](checkpoint)
    before = crc32(copy / "metrics.h5"), crc32(copy / "recipe.yaml")
    done = call("train", "--resume", copy, *settings(train__steps=8))
    refused(done, str(copy / "checkpoints"))
    for checkpoint in checkpoints(copy):
        assert re.search(rf"warning: .*{checkpoint.name}.*{damage.split()[-1]}", done.stderr), done.stderr
    assert (crc32(copy / "metrics.h5"), crc32(copy / "recipe.yaml")) == before
    refused(call("eval", checkpoints(copy)[-1]), checkpoints(copy)[-1].name)


@pytest.mark.parametrize("damage", ["flipped bit in experts", "cut state"])
def test_resume_falls_back_to_the_checkpoint_before_the_damaged_one(call, copy, damage):
    DAMAGE[damage](checkpoints(copy)[-1])
    done = call("train", "--resume", copy, check=True)
    assert re.search(r"warning: .*step-00000006", done.stderr)
    assert list(rows(copy)["train/step"]) == [1, 2, 3, 4, 5, 6] and step_of(checkpoints(copy)[-1]) == 6


def test_a_fallback_ends_where_the_run_had_ended(call, copy, finished):
    cut(checkpoints(copy)[-1] / "optimizer.safetensors")
    call("train", "--resume", copy, check=True)
    for name in ("model", "experts", "optimizer", "ema"):
        file = f"checkpoints/latest/{name}.safetensors"
        assert crc32(copy / file) == crc32(finished[0] / file)


STATES = {
    "nothing": b"",
    "bytes": bytes(range(256)),
    "a list": b"[1, 2]",
    "no keys": b"{}",
    "deep": b"[" * 1000000,
    "a word for a number": lambda state: {**state, "step": "six"},
    "a negative step": lambda state: {**state, "step": -1},
    "a step out of range": lambda state: {**state, "step": 10**30},
    "another format": lambda state: {**state, "format": 99},
    "no files": lambda state: {**state, "files": {}},
    "files as a list": lambda state: {**state, "files": ["model.safetensors"]},
    "a file elsewhere": lambda state: {**state, "files": {**state["files"], "../../recipe.yaml": {"size": 1, "crc32": "0"}}},
    "a file without a size": lambda state: {**state, "files": {**state["files"], "model.safetensors": {}}},
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_that_is_not_one_is_refused(call, finished, tmp_path, name):
    checkpoint = shutil.copytree(finished[0] / "checkpoints/latest", tmp_path / "step-00000006")
    wrong = STATES[name]
    if isinstance(wrong, bytes):
        (checkpoint / "state.json").write_bytes(wrong)
    else:
        write_state(checkpoint, wrong(state(checkpoint)))
    assert len(refused(call("eval", checkpoint), str(checkpoint))) == 1


FORGERIES = {
    "extra": lambda tensors: {**tensors, "intruder": numpy.zeros(3, "f4")},
    "missing": lambda tensors: {name: value for name, value in tensors.items() if name != "blocks.1.mlp.a"},
    "shape": lambda tensors: {**tensors, "blocks.1.mlp.fc1.bias": numpy.zeros((3, 63), "f4")},
    "dtype": lambda tensors: {**tensors, "blocks.1.mlp.fc1.bias": numpy.zeros((3, 64), "f8")},
    "weights": lambda tensors: {**tensors, "blocks.1.mlp.a": numpy.full(3, 0.5, "f4")},
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_tensors_that_do_not_fit_are_named_though_the_checksums_are_right(call, copy, forgery):
    from safetensors.numpy import save_file

    for checkpoint in checkpoints(copy):
        path = checkpoint / "experts.safetensors"
        save_file(FORGERIES[forgery](tensors(path)), path)
        sign(checkpoint)
    name = {"extra": "intruder", "missing": "blocks.1.mlp.a", "weights": "blocks.1.mlp.a"}.get(forgery, "blocks.1.mlp.fc1.bias")
    refused(call("train", "--resume", copy, *settings(train__steps=8)), name, "experts")


def test_a_damaged_recipe_is_reported_with_its_place(call, copy):
    recipe = copy / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text + "nonsense: [1\n", encoding="utf-8")
    refused(call("train", "--resume", copy), f"{recipe}:")
    recipe.write_text(text.replace("experts: 3", "experts: 4"), encoding="utf-8")  # the checkpoints hold 3
    refused(call("train", "--resume", copy, *settings(train__steps=8)), "experts.safetensors")


# ---- while a run lives, and when it is stopped


def test_metrics_are_readable_while_the_run_lives_and_after_kill_9(bin_dir, recipe, tmp_path):
    out = tmp_path / "run"
    with started(bin_dir, recipe, "--out", out, *ENDLESS) as process:
        wait_for_step(process, out, 3)
        with open_metrics(out) as file:
            step, loss = file["train/step"], file["train/loss"]
            seen = len(step)
            deadline = time.monotonic() + 60
            while len(step) < seen + 3 and time.monotonic() < deadline:  # the open file grows under the reader
                time.sleep(0.01)
                step.refresh()
            loss.refresh()
            assert list(step[: seen + 2]) == list(range(1, seen + 3)) and numpy.isfinite(loss[: seen + 2]).all()
        process.kill()
        process.wait()
    steps = rows(out)["train/step"]
    assert len(steps) > seen and list(steps) == list(range(1, len(steps) + 1))


def test_a_reader_is_never_in_the_way_of_the_run(bin_dir, recipe, tmp_path):
    """HDF5 locks a file while it opens it: who looks at metrics.h5 all the time must not stop a run that starts or resumes."""
    out = tmp_path / "run"
    for steps in range(1, 7):
        arguments = (recipe, "--out", out) if steps == 1 else ("--resume", out)
        with started(bin_dir, *arguments, *settings(train__steps=steps)) as process:
            while process.poll() is None:
                last_row(out)
            assert process.returncode == 0, process.communicate()[1]


def test_one_process_at_a_time_trains_in_a_folder(bin_dir, call, recipe, tmp_path):
    out = tmp_path / "run"
    with started(bin_dir, recipe, "--out", out, *ENDLESS) as process:
        wait_for_step(process, out, 2)
        refused(call("train", "--resume", out), str(out), "another process")
        refused(call("train", recipe, "--out", out, "--overwrite"), str(out), "another process")
        seen = last_row(out)
        wait_for_step(process, out, seen + 2)
        assert process.poll() is None and last_row(out) > seen


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(bin_dir, call, recipe, tmp_path, number, code):
    out = tmp_path / "run"
    with started(bin_dir, recipe, "--out", out, *ENDLESS) as process:
        wait_for_step(process, out, 3)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == code and stdout == ""
    last = stderr.splitlines()[-1]
    assert last.startswith("exfusion-train: ") and f"exfusion-train --resume {out}" in last
    step = step_of(checkpoints(out)[-1])
    assert f"step {step}" in last and last_row(out) == step >= 3 and not (out / "export").exists()
    done = call("train", "--resume", out, "--json", *settings(train__steps=step + 2), check=True)
    assert json.loads(done.stdout)["steps"] == step + 2
    assert list(rows(out)["train/step"]) == list(range(1, step + 3))


def test_a_loss_that_is_not_finite_is_skipped_and_then_stops_the_run(call, recipe, tmp_path):
    out = tmp_path / "run"
    done = call("train", recipe, "--out", out, *settings(
        optim__lr=1000, optim__weight_decay=1000, train__steps=100, train__max_skipped=3, optim__schedule__warmup_steps=0,
        train__eval_every_steps=1000, checkpoint__every_steps=1))
    lines = refused(done, "train.max_skipped", code=1)
    step = int(re.search(r"step (\d+)", lines[-1])[1])
    assert len(re.findall(r"warning: step \d+: .*skipped", done.stderr)) == 3
    found = rows(out)
    assert list(found["train/step"]) == list(range(1, step + 1)) and list(found["train/skipped"][-4:]) == [0, 1, 2, 3]
    assert not numpy.isfinite(found["train/loss"][-3:] + found["train/grad_norm"][-3:]).any()
    before, after = ([crc32(out / f"checkpoints/step-{at:08d}/{name}.safetensors") for name in ("experts", "optimizer", "ema")]
                     for at in (step - 2, step - 1))  # two skipped steps: nothing moved
    assert before == after and state(checkpoints(out)[-1])["updates"] == step - 3


def test_a_warning_when_the_machine_differs(call, copy):
    done = call("train", "--resume", copy, *settings(train__steps=7, train__threads=2), check=True)
    assert re.search(r"warning: the number of threads was 1 and is 2", done.stderr)
