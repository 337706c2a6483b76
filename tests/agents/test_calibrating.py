"""Asking for a calibration: which planned budgets are run, what is kept and known again, and what is refused."""

import dataclasses
import json
import math

import numpy as np
import pytest

from trebi_gym.agents import Calibration, HeldOutCalibration, TREBIAgent
from trebi_gym.agents.calibration.fingerprints import count_learned, episode_marks
from trebi_gym.agents.calibration.statistics import from_dict
from trebi_gym.errors import CalibrationError, CheckpointError, ConfigError, DatasetError

ENV = "SafePendulum-v0"
INF = math.inf


@pytest.fixture
def costly(tiny_agent, tmp_path, monkeypatch):
    """An agent of maximum budget 12 whose episodes cost what was planned for plus up to 5; and the budgets that were run."""
    from trebi_gym.agents.calibration import closed_loop as calibrating

    ran = []

    def cell(agent, envs, budget, episodes, *rest):
        ran.append(budget)
        costs = (min(budget, 1e3) + 5 * np.linspace(0, 1, episodes)).tolist()
        return {"costs": costs, "return": 0.0, "greatest_step_cost": 1.0}

    monkeypatch.setattr(calibrating, "_cell", cell)
    agent = TREBIAgent.load(tiny_agent.save(tmp_path / "agent"))
    agent.learned_from["maximum_budget"] = 12.0
    return agent, ran


def test_no_planned_budget_is_run_after_one_that_no_budget_up_to_the_maximum_lets_pass(costly):
    agent, ran = costly
    agent.calibrate(ENV, risk=[0.05, 0.5], progress_bar=False)
    found = agent.calibration
    limits = np.array([found.limits(risk) for risk in (0.05, 0.5)])
    assert ran == list(found.planned)
    assert (limits.min(axis=0) > 12.0).tolist() == [False] * (len(ran) - 1) + [True]
    assert (limits[0] > 12.0).sum() > 1  # one risk alone does not stop it
    # what is promised up to the maximum is what all planned budgets would promise
    steps = [*range(16), INF]
    costs = [(np.minimum(step, 1e3) + 5 * np.linspace(0, 1, 100)).tolist() for step in steps]
    every = Calibration(tuple(map(float, steps)), tuple(map(tuple, costs)), (0.0,) * 17, ENV, {})
    for risk in (0.05, 0.5):
        for asked, of_all in zip(
            found.planned_for(np.linspace(0, 12, 200), risk),
            every.planned_for(np.linspace(0, 12, 200), risk),
            strict=True,
        ):
            assert asked.tolist() == of_all.tolist()
    assert found.planned_for(np.array([INF]), 0.05)[0].tolist() == [INF]


def test_planned_budgets_that_were_asked_for_are_all_run(costly):
    agent, ran = costly
    agent.calibrate(ENV, budgets=np.array([30, 20.0, INF]), progress_bar=False)
    assert ran == [20.0, 30.0, INF]


def test_a_killed_calibration_stops_at_the_same_planned_budget(costly, tmp_path):
    agent, ran = costly
    keep = tmp_path / "kept.json"
    whole = agent.calibrate(ENV, keep=keep, progress_bar=False).calibration
    run = len(ran)
    document = json.loads(keep.read_text())
    for left in (run, run - 1, 2):
        cells = {str(index): document["cells"][str(index)] for index in range(left)}
        keep.write_text(json.dumps(document | {"cells": cells}))
        ran.clear()
        assert agent.calibrate(ENV, keep=keep, progress_bar=False).calibration == whole
        assert len(ran) == run - left
    # a file from before the rule holds more
    cells = {str(index): document["cells"]["0"] | {"costs": [50.0 + index] * 100} for index in range(17)}
    keep.write_text(json.dumps(document | {"cells": cells}))
    assert len(agent.calibrate(ENV, keep=keep, progress_bar=False).calibration.planned) == 1


def test_an_episode_is_known_again_whatever_its_name_place_and_cost(shipped_dataset):
    marks = episode_marks(shipped_dataset)
    assert len(set(marks)) == len(marks) == len(shipped_dataset)
    assert {len(mark) for mark in marks} == {12}
    again = dataclasses.replace(
        shipped_dataset,
        costs=shipped_dataset.costs + 1,
        observations=shipped_dataset.observations.astype("f8"),
    )
    assert episode_marks(again.select([5, 3])) == [marks[5], marks[3]]
    assert count_learned({}, again) == 0
    assert count_learned({"marks": marks[:7]}, again) == 7
    assert count_learned({"marks": ["0" * 12]}, again) == 0


@pytest.mark.parametrize(
    "given",
    [
        {"budgets": [1.0]},
        {"episodes": 50},
        {"confidence": 0.9},
        {"seed": 3},
        {"keep": "kept.json"},
        {"n_envs": 4},
        {"discount": 0.9},
    ],
)
def test_what_held_out_episodes_have_no_use_for_is_refused(tiny_agent, shipped_dataset, given):
    with pytest.raises(CalibrationError, match=f"no use for {next(iter(given))}="):
        tiny_agent.calibrate(dataset=shipped_dataset, **given)


def test_held_out_data_of_other_sizes_are_refused_by_name(tiny_agent, shipped_dataset):
    other = dataclasses.replace(
        shipped_dataset, observations=np.hstack([shipped_dataset.observations, shipped_dataset.observations])
    )
    with pytest.raises(DatasetError, match="observation"):
        tiny_agent.calibrate(dataset=other)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"risk": 1e-17}, "needs at least 29957322735539"),
        ({"risk": 5e-324}, "too small"),
        ({"risk": "0.05"}, "risk must be a number"),
        ({"risk": []}, "needs a risk"),
        ({"budgets": 5.0}, "budgets must be a list"),
        ({"budgets": np.array(5.0)}, "budgets must be a list"),
        ({"budgets": "567"}, "budgets must be a list"),
        ({"budgets": [1.0, -1.0]}, "at least 0"),
        ({"budgets": [None]}, "must be a number"),
        ({"n_envs": 0}, "n_envs must"),
        ({"n_envs": -1}, "n_envs must"),
        ({"n_envs": 2.5}, "n_envs must"),
        ({"seed": 1.5}, "seed must"),
        ({"seed": None}, "seed must"),
        ({"seed": True}, "seed must"),
        ({"seed": -1}, "seed must"),
        ({"episodes": 0}, "episodes must"),
        ({"episodes": 100.0}, "episodes must"),
        ({"confidence": None}, "confidence must"),
        ({"discount": 0.0}, "discount must"),
        ({"discount": "x"}, "discount must"),
    ],
)
def test_what_no_calibration_can_be_asked_for_is_refused_before_any_episode(tiny_agent, given, message):
    with pytest.raises(CalibrationError, match=message):
        tiny_agent.calibrate("NoSuchEnv-v0", **given)


def test_risks_and_budgets_may_be_arrays(costly):
    agent, ran = costly
    agent.calibrate(ENV, risk=np.array([0.2, 0.3]), budgets=np.array([4, 2]), progress_bar=False)
    assert (agent.risk, ran) == (0.2, [2.0, 4.0])
    assert agent.calibrate(ENV, risk=np.float64(0.3), budgets=[1], progress_bar=False).risk == 0.3


@pytest.mark.parametrize("repeats", [0, -1, 1.5])
def test_candidates_are_drawn_at_least_once(tiny_agent, shipped_dataset, repeats):
    with pytest.raises(CalibrationError, match="repeats must be a whole number of at least 1"):
        tiny_agent.smallest_budget(shipped_dataset.observations[0], repeats=repeats)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("planner", [1]),
        ("planner", None),
        ("env_id", 3),
        ("env_id", ""),
        ("seed", -1),
        ("seed", 1.5),
        ("seed", "1"),
        ("confidence", "0.95"),
        ("confidence", 2),
        ("discount", 0.0),
        ("discount", 1.5),
        ("discount", "1"),
        ("greatest_step_cost", -1.0),
        ("greatest_step_cost", math.nan),
        ("greatest_step_cost", "1"),
        ("returns", [math.nan, 0.0]),
        ("returns", ["1", 0.0]),
        ("returns", 5),
        ("planned", [math.nan, 1.0]),
        ("planned", ["0", 1.0]),
        ("costs", [["1"], [2.0]]),
        ("costs", [[math.inf], [2.0]]),
        ("costs", 5),
        ("models", 5),
        ("unknown", 5),
    ],
)
def test_a_file_whose_calibration_was_changed_by_hand_is_refused_when_it_is_read(name, value):
    good = Calibration((0.0, 1.0), ((1.0,), (2.0,)), (0.0, 0.0), ENV, {}).to_dict()
    assert from_dict(good).costs == ((1.0,), (2.0,))
    with pytest.raises(CheckpointError, match="calibration cannot be read"):
        from_dict(good | {name: value})
    held = HeldOutCalibration((1.0, 2.0), "data", {}).to_dict()
    if name in held:
        with pytest.raises(CheckpointError, match="calibration cannot be read"):
            from_dict(held | {name: value})


@pytest.mark.parametrize(
    "changes", [{"excesses": [math.nan]}, {"excesses": ["1"]}, {"excesses": []}, {"dataset": 1}]
)
def test_a_file_whose_held_out_calibration_was_changed_is_refused_too(changes):
    with pytest.raises(CheckpointError, match="calibration cannot be read"):
        from_dict(HeldOutCalibration((1.0,), "data", {}).to_dict() | changes)


@pytest.mark.parametrize(
    "damage",
    [
        lambda document: document | {"request": 5},
        lambda document: document | {"request": []},
        lambda document: document | {"cells": [1]},
        lambda document: document | {"cells": {"99": document["cells"]["0"]}},
        lambda document: document | {"cells": {"0": 5}},
        lambda document: document | {"cells": {"0": document["cells"]["0"] | {"costs": [1.0] * 99}}},
        lambda document: document | {"cells": {"0": document["cells"]["0"] | {"costs": [math.nan] * 100}}},
        lambda document: document | {"cells": {"0": document["cells"]["0"] | {"costs": "x" * 100}}},
        lambda document: document | {"cells": {"0": document["cells"]["0"] | {"return": None}}},
        lambda document: (
            document | {"cells": {"0": document["cells"]["0"] | {"greatest_step_cost": math.inf}}}
        ),
        lambda document: document | {"cells": {"0": {"costs": document["cells"]["0"]["costs"]}}},
    ],
)
def test_a_damaged_file_of_an_interrupted_calibration_is_named(costly, tmp_path, damage):
    agent, ran = costly
    keep = tmp_path / "kept.json"
    agent.calibrate(ENV, budgets=[1.0, 2.0], keep=keep, progress_bar=False)
    keep.write_text(json.dumps(damage(json.loads(keep.read_text()))))
    ran.clear()
    with pytest.raises(CalibrationError, match=r"kept.json .*delete it"):
        agent.calibrate(ENV, budgets=[1.0, 2.0], keep=keep, progress_bar=False)
    assert not ran


def test_a_place_that_cannot_be_written_is_refused_before_the_first_episode(costly, tmp_path):
    agent, ran = costly
    (tmp_path / "file").write_text("")
    for keep in (tmp_path, tmp_path / "file" / "kept.json"):
        with pytest.raises(ConfigError, match="cannot be written"):
            agent.calibrate(ENV, keep=keep, progress_bar=False)
    assert not ran
