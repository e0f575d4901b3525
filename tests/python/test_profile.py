"""exfusion-train --profile: the table of phases in the log and the trace beside it."""

import json
import re

import pytest

from programs import call, refused, rows, settings, write_recipe

PHASES = ["data wait", "forward", "backward", "reduce", "clip", "update", "logging", "analysis"]
STEPS = 4


def table(log):
    """{phase: (milliseconds, percent)} from the lines of the log, in their order."""
    found = re.findall(r"^\S+(?: \S+)?   ([a-z ]+?) +([\d.]+) +([\d.]+) %$", log, re.MULTILINE)
    return {name: (float(ms), float(share)) for name, ms, share in found}


@pytest.fixture(scope="module")
def profiled(call, tmp_path_factory):
    """Ranges by name, as (start, end), and the log of a run of 12 steps, 4 of which are profiled."""
    place = tmp_path_factory.mktemp("profiled")
    done = call("train", write_recipe(place), "--out", place / "run", "--profile", STEPS, "--json",
                *settings(train__steps=12, train__micro_batch=16), check=True)
    trace = json.loads((place / "run/profile.json").read_text(encoding="utf-8"))
    events = {}
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            events.setdefault(event["name"], []).append((event["ts"], event["ts"] + event["dur"]))
    return place / "run", events, done


def within(inner, outer):
    return [any(a <= start and end <= b for a, b in outer) for start, end in inner]


def test_the_trace_has_each_phase_within_its_step(profiled):
    events = profiled[1]
    assert len(events["step"]) == STEPS
    # No analysis here. Two micro-batches; gradients are zeroed before them and the update comes behind.
    for phase, times in zip(PHASES, [1, 2, 2, 2, 1, 2, 1]):
        assert len(events[phase]) == times * STEPS and all(within(events[phase], events["step"])), phase


def test_the_trace_has_the_operators_of_the_passes_within_their_phases(profiled):
    events = profiled[1]
    assert any(within(events["aten::cross_entropy_loss"], events["forward"]))
    assert not any(within(events["aten::cross_entropy_loss"], events["backward"]))
    backward = [times for name, found in events.items() if "Backward" in name for times in found]
    assert any(within(backward, events["backward"])) and not any(within(backward, events["forward"]))
    operators = [times for name, found in events.items() if name.startswith("aten::") for times in found]
    assert any(within(operators, events["forward"])) and any(within(operators, events["backward"]))


def test_the_table_accounts_for_the_step(profiled):
    found = table(profiled[2].stderr)
    assert list(found) == [*PHASES, "other", "step"], profiled[2].stderr
    assert found["step"][1] == 100 and found["step"][0] > 0
    for phase in PHASES:
        assert 0 <= found[phase][0] < found["step"][0], phase
    assert sum(found[phase][1] for phase in [*PHASES, "other"]) == pytest.approx(100, abs=0.5)  # rounded to 0.1 each
    assert found["other"][0] <= 0.2 * found["step"][0]  # a median: one preempted step does not matter
    assert found["forward"][0] > 0 and found["backward"][0] > 0 and found["update"][0] > 0


def test_a_profiled_run_trains_on_and_ends_as_any_other(profiled, call, tmp_path):
    assert json.loads(profiled[2].stdout)["steps"] == 12
    call("train", write_recipe(tmp_path), "--out", tmp_path / "run", *settings(train__steps=12, train__micro_batch=16), check=True)
    assert not (tmp_path / "run/profile.json").exists()
    expected = rows(tmp_path / "run")
    assert all((values == expected[name]).all() for name, values in rows(profiled[0]).items() if "cost" not in name)


def test_a_run_that_ends_before_profiles_what_there_is(call, tmp_path):
    done = call("train", write_recipe(tmp_path), "--out", tmp_path / "run", "--profile", 100, check=True)
    trace = json.loads((tmp_path / "run/profile.json").read_text(encoding="utf-8"))
    assert sum(event["name"] == "step" and event["ph"] == "X" for event in trace["traceEvents"]) == 3  # 6 and 3 of warm-up
    assert "medians of 3 steps" in done.stderr
    again = call("train", "--resume", tmp_path / "run", "--profile", 100, *settings(train__steps=8), check=True)
    assert "profile: nothing" in again.stderr  # two steps are left: less than the warm-up


@pytest.mark.parametrize("options, word", [(["--profile", 0], "1 to 1000"), (["--profile", "x"], "--profile"),
                                           (["--profile", 2, "--dry-run"], "--dry-run")])
def test_what_cannot_be_profiled_is_refused(call, tmp_path, options, word):
    refused(call("train", write_recipe(tmp_path), "--out", tmp_path / "run", *options), word)
    assert not (tmp_path / "run").exists()
