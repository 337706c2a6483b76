"""The one closed loop: budgets are counted, changed and handed on, and every episode is run once."""

import itertools
import math

import numpy as np
import pytest
from toy_envs import Scripted, mark_of, register_toy_envs

from trebi_gym.budget import Budget
from trebi_gym.errors import BudgetError, EnvironmentContractError
from trebi_gym.rollout import BudgetChange, make_envs, rollout

register_toy_envs()


def run(env_id, n_envs, policy=None, **options):
    envs = make_envs(env_id, n_envs)
    steps = list(rollout(policy or Scripted(), envs, **options))
    envs.close()
    return steps


def rows(steps):
    """One dictionary for every step of every active environment."""
    return [
        {
            "job": int(step.episode[index]),
            "t": int(step.step[index]),
            "observation": step.observations[index],
            "action": float(step.actions[index, 0]),
            "reward": step.rewards[index],
            "cost": step.costs[index],
            "next": step.next_observations[index],
            "done": bool(step.done[index]),
            "before": step.budgets[index],
            "after": step.budgets_after[index],
        }
        for step in steps
        for index in np.flatnonzero(step.active)
    ]


@pytest.mark.parametrize("env_id", ["Ledger-v0", "LedgerEarly-v0"])
@pytest.mark.parametrize("n_envs", [1, 2, 3, 8])
def test_every_job_is_run_once_from_its_own_seed_to_its_own_end(env_id, n_envs):
    found = rows(run(env_id, n_envs, budgets=[10.0 + job for job in range(5)], seed=[40, 7, 7, 11, 2]))
    for job, seed in enumerate([40, 7, 7, 11, 2]):
        mine = [row for row in found if row["job"] == job]
        assert [row["t"] for row in mine] == list(range(len(mine)))
        assert {row["observation"][2] for row in mine} == {mark_of(seed)}
        length = 5 if env_id == "Ledger-v0" else 1 + int(4 * mark_of(seed))
        assert len(mine) == length
        assert [row["done"] for row in mine] == [False] * (length - 1) + [True]
        assert mine[0]["before"] == Budget(10.0 + job)


def test_a_row_holds_the_cost_and_the_reward_that_its_own_action_caused():
    for row in rows(run("LedgerEarly-v0", 3, budgets=[9.0] * 6, seed=0)):
        assert row["observation"][0] == row["t"]
        assert row["cost"] == pytest.approx(2.0 + row["action"])
        assert row["reward"] == pytest.approx(10.0 * row["t"] + row["action"])
        assert row["next"][0] == row["t"] + 1
        assert row["next"][1] == pytest.approx(row["action"])


def test_one_seed_counts_on_from_episode_to_episode():
    found = rows(run("Ledger-v0", 2, budgets=[9.0] * 5, seed=np.int64(3)))
    marks = {row["job"]: row["observation"][2] for row in found}
    assert marks == {job: mark_of(3 + job) for job in range(5)}


def test_a_budget_is_charged_with_what_the_step_cost():
    found = rows(run("Ledger-v0", 2, budgets=[Budget(20.0, discount=0.5), 30.0], seed=0))
    for job, discount in ((0, 0.5), (1, 1.0)):
        mine = [row for row in found if row["job"] == job]
        spent = 0.0
        for row in mine:
            assert row["before"].spent == pytest.approx(spent)
            spent += discount ** row["t"] * row["cost"]
            assert row["after"].spent == pytest.approx(spent)
            assert row["after"].step == row["t"] + 1


def test_the_policy_is_handed_the_budget_before_the_step_and_its_own_state_back():
    policy = Scripted()
    steps = run("Ledger-v0", 1, policy, budgets=[20.0], seed=0, deterministic=True)
    assert [call["budget"] for call in policy.calls] == [step.budgets for step in steps]
    assert [call["state"] for call in policy.calls] == [None, 1, 2, 3, 4]
    assert [step.policy_state for step in steps] == [1, 2, 3, 4, 5]
    assert all(call["deterministic"] for call in policy.calls)


def test_the_policy_is_told_which_environments_have_just_been_reset():
    policy = Scripted()
    run("LedgerEarly-v0", 2, policy, budgets=[9.0] * 6, seed=0)
    for call in policy.calls:
        np.testing.assert_array_equal(call["episode_start"], call["observation"][:, 0] == 0)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_a_change_applies_at_its_step_of_every_episode_and_at_no_other(n_envs):
    schedule = [BudgetChange(2, remaining=4.0), BudgetChange(3, factor=0.5)]
    for row in rows(run("Ledger-v0", n_envs, budgets=[100.0] * 4, schedule=schedule, seed=0)):
        left = [100.0, 97.5, 4.0, 0.5, -2.25][row["t"]]
        assert row["before"].remaining == pytest.approx(left)


def test_changes_at_the_same_step_apply_one_after_the_other():
    schedule = [BudgetChange(0, remaining=8.0), BudgetChange(0, factor=0.25)]
    (first, *_) = rows(run("Ledger-v0", 1, budgets=[100.0], schedule=schedule, seed=0))
    assert first["before"].remaining == pytest.approx(2.0)


def test_a_factor_does_not_make_an_overspent_budget_better():
    overspent = Budget(1.0).charge(3.0)
    assert BudgetChange(1, factor=0.5).apply(overspent) == overspent
    assert BudgetChange(1, factor=0.5).apply(Budget(4.0)).remaining == 2.0
    assert BudgetChange(1, remaining=5.0).apply(overspent).remaining == 5.0


def test_environments_without_a_job_are_idle_and_cost_nothing():
    steps = run("LedgerEarly-v0", 4, budgets=[9.0] * 5, seed=0)
    assert any(not step.active.all() for step in steps)
    assert all(step.active.any() for step in steps)
    for step in steps:
        for index in np.flatnonzero(~step.active):
            assert step.budgets_after[index] == Budget(math.inf)
            assert not step.done[index]


def test_fewer_jobs_than_environments_and_no_job_at_all_both_end():
    assert {row["job"] for row in rows(run("Ledger-v0", 4, budgets=[9.0, 8.0], seed=0))} == {0, 1}
    assert run("Ledger-v0", 4, budgets=[], seed=0) == []


def test_endless_budgets_run_for_as_long_as_somebody_reads():
    envs = make_envs("Ledger-v0", 2)
    steps = list(itertools.islice(rollout(Scripted(), envs, budgets=itertools.repeat(math.inf)), 23))
    assert len(steps) == 23
    assert max(int(step.episode.max()) for step in steps) == 9
    assert all(budget.remaining == math.inf for step in steps for budget in step.budgets_after)


def test_an_environment_without_cost_is_refused_with_the_remedy():
    with pytest.raises(EnvironmentContractError, match=r'no "cost" into a step\'s info; wrap it'):
        run("LedgerFree-v0", 2, budgets=[1.0], seed=0)


def test_a_cost_that_is_not_finite_is_refused():
    with pytest.raises(EnvironmentContractError, match=r"must give a finite number; got nan"):
        run("Ledger-v0", 1, Scripted([math.nan] * 5), budgets=[1.0], seed=0)


@pytest.mark.parametrize("budget", [-1.0, math.nan, "60", None])
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(BudgetError):
        run("Ledger-v0", 1, budgets=[budget], seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": 1}, "exactly one of remaining and factor"),
        ({"step": 1, "remaining": 1.0, "factor": 1.0}, "exactly one of remaining and factor"),
        ({"step": -1, "remaining": 1.0}, "a step of at least 0"),
        ({"step": 1.5, "remaining": 1.0}, "a step of at least 0"),
        ({"step": True, "remaining": 1.0}, "a step of at least 0"),
        ({"step": 1, "remaining": -1.0}, "at least 0"),
        ({"step": 1, "factor": math.nan}, "got NaN"),
        ({"step": 1, "remaining": "6"}, "must be a number"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused(arguments, message):
    with pytest.raises(BudgetError, match=message):
        BudgetChange(**arguments)


class Remembering(Scripted):
    """Keeps in its state which episode each row belongs to, told by the mark, and checks that it stays so."""

    class State:
        def __init__(self, marks):
            self.marks = marks

        def of_rows(self, rows):
            return Remembering.State(self.marks[rows])

    def predict(self, observation, state=None, episode_start=None, deterministic=False, *, budget):
        marks = observation[:, 2].copy()
        if state is not None:
            running = ~episode_start
            np.testing.assert_array_equal(marks[running], state.marks[running])
        assert len(budget) == len(observation) == len(episode_start)
        actions, _ = super().predict(observation, state, episode_start, deterministic, budget=budget)
        return actions, self.State(marks)


def test_ended_episodes_are_left_out_towards_the_end_and_nothing_else_changes():
    options = {"budgets": [100.0] * 8, "seed": 3}
    policy = Remembering()
    some = run("LedgerEarly-v0", 8, policy, **options)
    everyone = run("LedgerEarly-v0", 8, Scripted(), **options)
    asked = [len(call["observation"]) for call in policy.calls]
    assert asked[0] == 8
    assert asked[-1] < 8
    assert asked == sorted(asked, reverse=True)
    assert len(some) == len(everyone)
    for first, second in zip(rows(some), rows(everyone), strict=True):
        for key in ("job", "t", "action", "reward", "cost", "done", "before", "after"):
            assert first[key] == second[key], key
        np.testing.assert_array_equal(first["observation"], second["observation"])


def test_a_policy_whose_state_cannot_follow_is_asked_for_every_environment_to_the_end():
    policy = Scripted()
    run("LedgerEarly-v0", 8, policy, budgets=[100.0] * 8, seed=3)
    assert {len(call["observation"]) for call in policy.calls} == {8}


def test_a_changes_step_may_be_numpys_and_is_a_plain_number_then():
    change = BudgetChange(np.int64(3), factor=0.5)
    assert type(change.step) is int
    assert change == BudgetChange(3, factor=0.5)
