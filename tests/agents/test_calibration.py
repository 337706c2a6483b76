"""Calibration: the statistics against brute force, what is held back, the closed loop, and its place in the file."""

import contextlib
import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
import torch
from changed import changed
from scipy import stats

from trebi_gym.agents import Calibration, HeldOutCalibration, TREBIAgent
from trebi_gym.agents.calibration.fingerprints import episode_marks, fingerprint
from trebi_gym.agents.calibration.statistics import allowed_failures, from_dict, needed_episodes
from trebi_gym.agents.planning.budgets import parse_request
from trebi_gym.agents.planning.state import continued, fresh, hold_back
from trebi_gym.budget import Budget
from trebi_gym.datasets import EpisodeDataset
from trebi_gym.errors import BudgetError, CalibrationError, CheckpointError, ObservationError
from trebi_gym.evaluation.evaluate import evaluate_budgets
from trebi_gym.rollout import make_envs, rollout

ENV = "SafePendulum-v0"
INF = math.inf


def calibration(planned=(0.0, 10.0, 20.0, 30.0), spread=2.0, episodes=100, **changes):
    """Episodes that cost what was planned for, plus 0 to ``spread``."""
    costs = tuple(tuple((min(p, 1e3) + spread * np.linspace(0, 1, episodes)).tolist()) for p in planned)
    values = {"returns": (1.0,) * len(planned), "env_id": ENV, "planner": {}} | changes
    return Calibration(planned=planned, costs=costs, **values)


@pytest.mark.parametrize(
    ("risk", "confidence", "needed"), [(0.05, 0.95, 59), (0.2, 0.95, 14), (0.01, 0.95, 299)]
)
def test_the_fewest_episodes_are_those_that_without_a_failure_refute_a_greater_risk(risk, confidence, needed):
    assert needed_episodes(risk, confidence) == needed
    assert allowed_failures(needed, risk, confidence) == 0
    assert allowed_failures(needed - 1, risk, confidence) == -1


@pytest.mark.parametrize("episodes", [1, 20, 59, 100, 333])
@pytest.mark.parametrize("risk", [0.02, 0.05, 0.2, 0.7])
def test_allowed_failures_are_those_whose_clopper_pearson_limit_is_within_the_risk(episodes, risk):
    within = [
        k for k in range(episodes) if stats.beta.ppf(0.95, k + 1, episodes - k) <= risk
    ]  # its upper 95% limit
    assert allowed_failures(episodes, risk, 0.95) == (max(within) if within else -1)


def test_limits_are_exceeded_by_just_the_allowed_number_of_episodes():
    found = calibration(episodes=100)
    for risk in (0.05, 0.2):
        k = allowed_failures(100, risk, 0.95)
        for limit, row in zip(found.limits(risk), found.costs, strict=True):
            assert sum(cost > limit for cost in row) == k


def test_the_greatest_planned_budget_is_chosen_whose_episodes_keep_the_budget():
    found = calibration(spread=2.0)
    planned, certified = found.planned_for(np.array([1.0, 11.9, 12.1, 25.0, 500.0, INF]), 0.05)
    assert planned.tolist() == [0.0, 0.0, 10.0, 20.0, 30.0, INF]
    assert certified.tolist() == [False, True, True, True, True, True]
    assert found.smallest_budget(0.05) == pytest.approx(2.0, abs=0.1)


def test_a_budget_below_all_that_were_planned_for_is_not_loosened():
    found = calibration(planned=(10.0, 20.0))
    planned, certified = found.planned_for(np.array([0.0, 4.0, 10.5, 12.1]), 0.05)
    assert planned.tolist() == [0.0, 4.0, 10.0, 10.0]
    assert certified.tolist() == [False, False, False, True]


def test_no_planned_budget_behind_one_that_fails_is_taken():
    rows = ([1.0] * 100, [50.0] * 100, [2.0] * 100)
    found = Calibration((0.0, 1.0, 2.0), tuple(map(tuple, rows)), (0.0,) * 3, ENV, {})
    assert found.planned_for(np.array([10.0]), 0.2)[0].tolist() == [0.0]


def test_a_certified_choice_breaks_the_risk_no_more_often_than_the_confidence_allows():
    """The guarantee itself: over many calibrations of a system whose true risks are known."""
    rng, risk, wrong, trials = np.random.default_rng(0), 0.2, 0, 600
    planned = (0.0, 2.0, 4.0, 5.0, 5.4, 6.0, 8.0)  # 5.4 breaks budget 7 with a chance of just over 0.2
    budget = np.array([7.0])
    for _ in range(trials):
        costs = tuple(tuple(p + rng.exponential(1.0, size=60)) for p in planned)
        found = Calibration(planned, costs, (0.0,) * 7, ENV, {}, confidence=0.9)
        (chosen,), (certified,) = found.planned_for(budget, risk)
        wrong += bool(certified and math.exp(-(7.0 - chosen)) > risk)
    # of 600, with a chance of at most 0.1 each; the bound is passed by a right method once in ten thousand times
    assert wrong <= stats.binom.ppf(0.9999, trials, 0.1)
    assert wrong > 0  # the method is not just timid


def test_a_risk_that_the_episodes_cannot_support_is_refused_with_their_number():
    with pytest.raises(CalibrationError, match=r"with 58 episodes.* at least 59 for each planned budget"):
        calibration(episodes=58).limits(0.05)
    with pytest.raises(CalibrationError, match=r"risk 0.1 needs at least 9 held-out episodes; there are 8"):
        HeldOutCalibration((1.0,) * 8, "data", {}).reserve(0.1)


@pytest.mark.parametrize("risk", [0, 1, -0.1, 1.5, math.nan, "much", None, True])
def test_a_risk_must_be_a_share(risk):
    with pytest.raises(CalibrationError, match="risk must"):
        calibration().limits(risk)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"planned": ()}, "one row of costs"),
        ({"planned": (0.0, -1.0)}, "at least 0 and ascend"),
        ({"planned": (2.0, 1.0)}, "at least 0 and ascend"),
        ({"costs": ((1.0,), (1.0, 2.0))}, "same number of episodes"),
        ({"costs": ((), ())}, "same number of episodes"),
        ({"costs": ((1.0,), (math.nan,))}, "finite"),
        ({"confidence": 1.0}, "confidence must"),
    ],
)
def test_episodes_that_make_no_calibration_are_refused(changes, message):
    values = {
        "planned": (0.0, 1.0),
        "costs": ((1.0,), (2.0,)),
        "returns": (0.0, 0.0),
        "env_id": ENV,
        "planner": {},
    }
    with pytest.raises(CalibrationError, match=message):
        Calibration(**(values | changes))


def test_a_calibration_goes_through_json():
    found = calibration(planned=(0.0, 5.0, INF), planner={"margin": 0.1}, greatest_step_cost=INF)
    again = from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert again == found
    held = HeldOutCalibration((1.0, -2.0), "data", {"margin": 0.1})
    assert from_dict(json.loads(json.dumps(held.to_dict(), allow_nan=False))) == held
    for broken in ({}, {"kind": "else"}, {**found.to_dict(), "costs": "x"}, {"kind": "held-out"}):
        with pytest.raises((CheckpointError, CalibrationError)):
            from_dict(broken)


def test_the_conformal_reserve_covers_new_episodes_as_often_as_it_says():
    rng, covered = np.random.default_rng(1), 0
    for _ in range(2000):
        *seen, new = rng.normal(size=20)
        covered += new <= max(0.0, HeldOutCalibration(tuple(seen), "data", {}).reserve(0.2))
    assert covered / 2000 >= 0.8 - 3 * math.sqrt(0.8 * 0.2 / 2000)


def held_back(state, budget, steps=0, risk=0.05, found=None, deterministic=False):
    """What a decision holds back; the state goes on by a step, as ``predict`` lets it."""
    request = parse_request(np.zeros((1, 3)), budget, 3)
    found = found or calibration(greatest_step_cost=1.0)
    taken = np.array([float(steps)])
    held = hold_back(state, request, taken, found, risk, begun=taken > 0, deterministic=deterministic)
    state.step[:] = steps + 1
    return None if held is None else float(held[0])


def test_a_reserve_is_settled_at_the_start_and_stays_while_the_budget_is_spent():
    state, budget = fresh(1, 1, 1), Budget(25.0)
    for step in range(30):
        assert held_back(state, budget, step) == 5.0
        assert state.certified.all()
        budget = budget.charge(0.9)


def test_a_changed_budget_settles_a_new_reserve_that_the_guarantee_does_not_cover():
    state, budget = fresh(1, 1, 1), Budget(25.0).charge(3.0)
    assert held_back(state, budget, 1) == 5.0
    assert held_back(state, budget.with_remaining(13.0), 1) == 3.0
    assert not state.certified.any()


def test_budgets_that_are_told_as_numbers_are_followed_too():
    state = fresh(1, 1, 1)
    assert [held_back(state, b, i) for i, b in enumerate([25.0, 24.0, 23.5])] == [5.0, 5.0, 5.0]
    assert state.certified.all()
    assert held_back(state, 13.0, 3) == 3.0  # fell by more than a step can cost
    assert held_back(state, 33.0, 4) == 3.0  # rose
    assert not state.certified.any()


@pytest.mark.parametrize(
    "late",
    [
        Budget(25.0).charge(3.0),
        Budget(25.0, spent=3.0),
        Budget(25.0, step=4),
        Budget(25.0, spent=-3.0),
        Budget(INF, step=4),
        -1.0,
    ],
)
def test_an_episode_that_is_met_late_or_overspent_is_not_certified(late):
    state = fresh(1, 1, 1)
    held_back(state, late, late.step if isinstance(late, Budget) else 0)
    assert not state.certified.any()


def test_a_risk_that_is_asked_for_after_some_steps_certifies_nothing():
    for first, then in ((25.0, 24.5), (Budget(25.0), Budget(25.0).charge(0.5)), (Budget(25.0), Budget(25.0))):
        state = fresh(1, 1, 1)
        assert held_back(state, first, risk=None) is None
        held_back(state, then, 1 if isinstance(then, float) else then.step)
        assert not state.certified.any()


def test_a_certificate_that_was_lost_does_not_come_back_before_the_next_episode():
    state, budget = fresh(1, 1, 1), Budget(25.0)
    held_back(state, budget)
    assert state.certified.all()
    changed = budget.charge(0.0).with_remaining(13.0)
    for step, risk in enumerate((0.05, 0.2, 0.05, None, 0.05), start=1):
        held_back(state, changed, step, risk=risk)
        assert not state.certified.any()
    state = continued(state, np.array([True]), 1, 1, 1)
    held_back(state, budget)
    assert state.certified.all()


def test_another_risk_in_mid_episode_takes_the_certificate_away():
    state = fresh(1, 1, 1)
    held_back(state, Budget(25.0))
    held_back(state, Budget(25.0).charge(0.0), 1, risk=0.2)
    assert not state.certified.any()


def test_no_limit_that_becomes_a_limit_is_a_change_whatever_a_step_may_cost():
    state = fresh(1, 1, 1)
    held_back(state, INF, found=calibration())
    assert state.certified.all()
    held_back(state, 25.0, 1, found=calibration())
    assert not state.certified.any()


def test_a_decision_with_the_same_noise_every_time_is_not_certified_nor_is_the_rest_of_its_episode():
    state = fresh(1, 1, 1)
    assert held_back(state, 25.0, deterministic=True) == 5.0
    assert not state.certified.any()
    held_back(state, 24.5, 1)
    assert not state.certified.any()
    state = fresh(1, 1, 1)
    for step, deterministic in enumerate((False, True, False)):
        held_back(state, 25.0, step, deterministic=deterministic)
        assert state.certified.all() == (step == 0)


def test_what_is_held_back_is_in_units_of_the_present_step_for_discounted_budgets():
    found = calibration(discount=0.5)
    state = fresh(1, 1, 1)
    assert held_back(state, Budget(25.0, 0.5), 0, found=found) == 5.0
    assert held_back(state, Budget(25.0, 0.5).charge(0.0), 1, found=found) == 10.0
    with pytest.raises(CalibrationError, match=r"budgets of discount 0.5; got one of discount 1"):
        held_back(state, Budget(25.0), found=found)


def test_no_limit_holds_nothing_back_and_another_risk_settles_anew():
    state = fresh(1, 1, 1)
    assert held_back(state, INF) == 0.0
    wide = calibration(spread=10.0)
    state = fresh(1, 1, 1)
    tight, loose = (held_back(state, Budget(28.5), risk=risk, found=wide) for risk in (0.05, 0.3))
    assert (tight, loose) == (18.5, 8.5)


@pytest.fixture(scope="module")
def calibrated(tiny_agent, tmp_path_factory):
    path = tiny_agent.save(tmp_path_factory.mktemp("calibrated") / "agent")
    agent = TREBIAgent.load(path)
    return agent.calibrate(ENV, risk=[0.2, 0.3], budgets=[0, 30, INF], episodes=14, progress_bar=False)


@pytest.mark.parametrize("budget", [1e13, 1e20, 1e308])
def test_a_budget_in_whose_rounding_costs_are_lost_is_refused_at_a_risk(calibrated, shipped_dataset, budget):
    observation = shipped_dataset.observations[0]
    with pytest.raises(BudgetError, match=r"budgets are at most 1e\+12, or inf for no limit"):
        calibrated.predict(observation, budget=budget, risk=0.2)
    assert calibrated.predict(observation, budget=1e12, risk=0.2)[1].certified.all()
    assert calibrated.predict(observation, budget=INF, risk=0.2)[1].certified.all()


def test_calibrated_decisions_are_those_for_the_planned_budget(calibrated, shipped_dataset, tmp_path):
    agent = TREBIAgent.load(calibrated.save(tmp_path / "a"))
    agent = changed(agent, calibration=calibration(planner=agent.calibration.planner))
    observation = shipped_dataset.observations[0]
    agent.set_random_seed(0)
    action, state = agent.predict(observation, budget=Budget(25.0))
    assert state.reserve.tolist() == [5.0]
    assert state.certified.all()
    agent.set_random_seed(0)
    expected, plain = agent.set_risk(None).predict(observation, budget=Budget(20.0))
    np.testing.assert_array_equal(action, expected)
    np.testing.assert_array_equal(plain.budgets, state.budgets)
    assert plain.reserve.tolist() == [0.0]
    assert state.limits[0] == pytest.approx(plain.limits[0] * 25.0 / 20.0)


def test_only_the_first_decision_of_an_episode_with_fresh_noise_is_certified(calibrated, shipped_dataset):
    observation = shipped_dataset.observations[0]
    _, state = calibrated.predict(observation, budget=INF)
    assert state.certified.all()
    _, state = calibrated.predict(observation, state, budget=INF)
    assert state.certified.all()
    _, state = calibrated.predict(observation, state, budget=INF, deterministic=True)
    assert not state.certified.any()
    _, state = calibrated.predict(observation, state, budget=INF)
    assert not state.certified.any()
    for told, certified in ((200, True), (150, False)):
        known = {"observation": observation, "steps_left": np.array([told])}
        _, state = calibrated.predict(known, budget=Budget(INF))
        assert state.certified.all() == certified


def test_other_weights_than_those_calibrated_are_refused(calibrated, shipped_dataset, tmp_path):
    agent = TREBIAgent.load(calibrated.save(tmp_path / "a"))
    observation = shipped_dataset.observations[0]
    agent.predict(observation, budget=5.0)
    assert agent.calibration.models == agent.fingerprint()
    with torch.no_grad():
        next(agent.models["cost_critic"].parameters()).add_(0.01)
    other = TREBIAgent.load(agent.save(tmp_path / "b"))
    for ask in (lambda: other.predict(observation, budget=5.0), lambda: other.set_risk(0.3)):
        with pytest.raises(CalibrationError, match=r"weights .* are others than those .*; calibrate again"):
            ask()
    other.set_risk(None).predict(observation, budget=5.0)
    before = from_dict({key: value for key, value in agent.calibration.to_dict().items() if key != "models"})
    assert before.models == ""
    # of a file from before the fingerprint was kept: not checked
    changed(other, calibration=before).predict(observation, budget=5.0, risk=0.3)


def test_weights_are_looked_at_once_for_a_planner_and_anew_for_a_calibration(
    calibrated, shipped_dataset, tmp_path, monkeypatch
):
    from trebi_gym.agents import agent as module

    looked = []
    monkeypatch.setattr(module, "fingerprint", lambda models: looked.append(1) or fingerprint(models))
    agent = TREBIAgent.load(calibrated.save(tmp_path / "a"))
    for _ in range(3):
        agent.predict(shipped_dataset.observations[0], budget=5.0)
    assert len(looked) == 1
    with torch.no_grad():
        next(agent.models["cost_critic"].parameters()).add_(0.01)
    agent.calibrate(ENV, risk=0.2, budgets=[0], episodes=14, progress_bar=False)
    assert len(looked) == 2
    assert agent.calibration.models == agent.fingerprint() != calibrated.calibration.models


def test_what_is_overspent_is_planned_for_as_it_is(calibrated, shipped_dataset, tmp_path):
    agent = TREBIAgent.load(calibrated.save(tmp_path / "a"))
    # far more is planned for than the budget, since episodes cost less than they are allowed to
    found = Calibration((0.0, 50.0), ((0.0,) * 14, (1.0,) * 14), (0.0, 0.0), ENV, agent.calibration.planner)
    agent = changed(agent, calibration=found)
    observation = shipped_dataset.observations[0]
    for spent, sign in ((4.0, 1), (6.0, -1)):
        _, state = agent.predict(observation, budget=Budget(5.0, spent=spent, step=3))
        assert np.sign(state.budgets[0]) == sign


def test_the_file_keeps_the_calibration_and_the_risk(calibrated, tmp_path):
    again = TREBIAgent.load(calibrated.save(tmp_path / "a"))
    assert again.calibration == calibrated.calibration
    assert again.risk == 0.2
    assert again.calibration.env_id == ENV
    assert again.calibration.episodes == 14
    assert again.set_risk(0.3).risk == 0.3


def test_what_was_not_calibrated_is_refused(calibrated, tiny_agent, shipped_dataset, tmp_path):
    observation = shipped_dataset.observations[0]
    with pytest.raises(CalibrationError, match="the agent is not calibrated; call calibrate"):
        tiny_agent.predict(observation, budget=5.0, risk=0.1)
    with pytest.raises(CalibrationError, match=r"risk 0.05 cannot be certified with 14 episodes.* 59"):
        calibrated.predict(observation, budget=5.0, risk=0.05)
    with pytest.raises(CalibrationError, match=r"risk 0.05 cannot be certified"):
        calibrated.set_risk(0.05)
    other = TREBIAgent.load(calibrated.save(tmp_path / "a")).set_planner(candidates=4)
    with pytest.raises(CalibrationError, match="candidates was 8, is 4; calibrate again"):
        other.predict(observation, budget=5.0)


def test_learning_anew_forgets_the_calibration(calibrated, shipped_dataset, tmp_path):
    agent = TREBIAgent.load(calibrated.save(tmp_path / "a"))
    agent.learn_cost_critic(shipped_dataset, total_steps=1, progress_bar=False)
    assert agent.calibration is None
    assert agent.risk is None


def test_episodes_that_cannot_support_the_risk_are_refused_before_any_is_run(tiny_agent):
    with pytest.raises(CalibrationError, match="needs at least 59 episodes"):
        tiny_agent.calibrate("NoSuchEnv-v0", episodes=58)
    with pytest.raises(CalibrationError, match="environment's id or dataset"):
        tiny_agent.calibrate()
    with pytest.raises(CalibrationError, match="must not be empty"):
        tiny_agent.calibrate(ENV, budgets=[])


def test_a_killed_calibration_goes_on_to_the_same_result(calibrated, tmp_path, monkeypatch):
    options = {"risk": 0.2, "budgets": [0, 30, INF], "episodes": 14, "progress_bar": False}
    keep = tmp_path / "kept.json"
    from trebi_gym.agents.calibration import closed_loop as calibrating

    agent = TREBIAgent.load(calibrated.save(tmp_path / "a"))
    cell, run = calibrating._cell, []

    def breaks(*arguments):
        if len(run) == 2:
            raise KeyboardInterrupt
        run.append(1)
        return cell(*arguments)

    monkeypatch.setattr(calibrating, "_cell", breaks)
    with pytest.raises(KeyboardInterrupt):
        agent.calibrate(ENV, keep=keep, **options)
    assert len(json.loads(keep.read_text())["cells"]) == 2
    run.clear()
    agent.calibrate(ENV, keep=keep, **options)
    assert len(run) == 1
    assert agent.calibration == calibrated.calibration
    with pytest.raises(CalibrationError, match="calibration with other planned"):
        agent.calibrate(ENV, keep=keep, **(options | {"budgets": [0, 31, INF]}))
    keep.write_text("{")
    with pytest.raises(CalibrationError, match="not what an interrupted calibration leaves"):
        agent.calibrate(ENV, keep=keep, **options)


def test_held_out_episodes_give_a_reserve_without_a_guarantee(tiny_config, shipped_dataset):
    learned, held = shipped_dataset.split(0.2, seed=3)
    assert len(learned) + len(held) == len(shipped_dataset)
    agent = TREBIAgent(config=tiny_config, seed=0).learn(learned, progress_bar=False)
    agent.calibrate(dataset=held, risk=0.2)
    assert isinstance(agent.calibration, HeldOutCalibration)
    assert len(agent.calibration.excesses) == len(held)
    _, state = agent.predict(shipped_dataset.observations[0], budget=50.0)
    assert state.reserve[0] == pytest.approx(min(50.0, agent.calibration.reserve(0.2)))
    assert not state.certified.any()
    with pytest.raises(
        CalibrationError,
        match=f"learned from {len(learned)} of these {len(learned)} episodes",
    ):
        agent.calibrate(dataset=learned)
    renamed = dataclasses.replace(learned, metadata={"name": "another"}).select([0, 1, 2])
    mixed = EpisodeDataset.from_episodes([*held, *renamed])
    assert agent.learned_from["marks"] == episode_marks(learned)
    with pytest.raises(CalibrationError, match=f"learned from 3 of these {len(held) + 3} episodes"):
        agent.calibrate(dataset=mixed)
    agent.calibrate(dataset=held, risk=0.2)
    agent.learned_from["parts"] = {"cost_critic": {"name": "more", "marks": episode_marks(held)}}
    with pytest.raises(CalibrationError, match=f"learned from {len(held)} of these {len(held)} episodes"):
        agent.calibrate(dataset=held)


def test_an_agent_calibrated_for_discounted_budgets_is_evaluated_while_environments_are_idle(
    calibrated, tmp_path
):
    agent = TREBIAgent.load(calibrated.save(tmp_path / "a"))
    agent = changed(agent, calibration=calibration(planner=agent.calibration.planner, discount=0.9))
    with contextlib.closing(make_envs(ENV, 3)) as envs:
        steps = list(rollout(agent.set_risk(0.05), envs, budgets=[Budget(25.0, 0.9)] * 2, seed=5))
    assert {int(step.active.sum()) for step in steps} == {2}
    assert {budget.discount for step in steps for budget in step.budgets} == {0.9}


def test_a_split_is_repeatable_and_loses_nothing(shipped_dataset):
    learned, held = shipped_dataset.split(0.3, seed=1)
    again, _ = shipped_dataset.split(0.3, seed=1)
    np.testing.assert_array_equal(learned.rewards, again.rewards)
    assert sorted([*learned.episode_costs, *held.episode_costs]) == sorted(shipped_dataset.episode_costs)
    assert held.metadata["split"] == {"part": "held out", "share": 0.3, "seed": 1, "of": len(shipped_dataset)}
    for share in (0.0, 1.0, 1e-6, -1, 2, math.nan):
        with pytest.raises(Exception, match="leaves one part empty"):
            shipped_dataset.split(share)


def test_the_smallest_budget_is_what_the_cheapest_plan_is_predicted_to_cost(tiny_agent, shipped_dataset):
    rows = shipped_dataset.observations[:3]
    found = tiny_agent.smallest_budget(rows)
    assert found.shape == (3,)
    assert (found >= 0).all()
    late = tiny_agent.smallest_budget(rows[0], step=190)
    assert isinstance(late, float)
    with pytest.raises(ObservationError, match="no plan from observation 1 has a finite predicted cost"):
        tiny_agent.smallest_budget(np.stack([rows[0], np.full(3, 1e38)]))
    with pytest.raises(CalibrationError):
        tiny_agent.set_risk(0.1)


def test_the_state_tells_whether_any_candidate_keeps_the_budget_and_by_how_much(tiny_agent, shipped_dataset):
    observation = shipped_dataset.observations[0]
    for budget in (0.0, 1e-3, 5.0, 1e6):
        tiny_agent.set_random_seed(0)
        plan = tiny_agent.plan(observation, budget)
        tiny_agent.set_random_seed(0)
        _, state = tiny_agent.predict(observation, budget=budget)
        assert state.feasible[0] == (plan.costs.min() <= state.limits[0])
        assert state.margin[0] == pytest.approx(state.limits[0] - plan.costs.min(), abs=1e-6)
    assert state.feasible.all()
    _, state = tiny_agent.predict(observation, budget=-5.0)
    assert not state.feasible.any()


def test_evaluating_on_the_episodes_of_the_calibration_warns(calibrated):
    asked = {"budgets": [5.0], "episodes": 3}
    with pytest.warns(UserWarning, match="2 of 3 episodes have seeds that the agent was calibrated on"):
        evaluate_budgets(calibrated, ENV, seed=calibrated.calibration.seed - 1, **asked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate_budgets(calibrated, ENV, seed=5, **asked)
        evaluate_budgets(calibrated.with_risk(None), ENV, seed=calibrated.calibration.seed, **asked)
