"""Budgets that move: every episode's own changes, and what evaluations tell of the budgets that came of them."""

import json
import math

import numpy as np
import pytest
from toy_envs import Scripted, register_toy_envs

from trebi_gym.commands.cli import main
from trebi_gym.errors import BudgetError, TrebiError
from trebi_gym.evaluation.evaluate import evaluate_budgets
from trebi_gym.evaluation.records import Evaluation
from trebi_gym.evaluation.schedules import SCHEDULES, BudgetSchedule, parse_schedule

register_toy_envs()
# Ledger-v0 under Scripted costs 2.5, 1.75, 3, 2.75, 1


class Told:
    """A policy's state that tells of feasibility; ``of_rows`` lets ended episodes be left out."""

    def __init__(self, feasible, certified):
        self.feasible, self.certified = feasible, certified

    def of_rows(self, rows):
        return Told(self.feasible[rows], self.certified[rows])


class Teller(Scripted):
    """Takes a budget for feasible where more than ``needed`` is left."""

    def __init__(self, needed):
        super().__init__()
        self.needed = needed

    def predict(self, observation, state=None, episode_start=None, deterministic=False, *, budget):
        inner = None if state is None else state.inner
        action, inner = super().predict(observation, inner, episode_start, deterministic, budget=budget)
        left = np.array([b.remaining for b in budget])
        told = Told(left > self.needed, np.zeros(len(left), dtype=bool))
        told.inner = inner
        return action, told


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_episode_draws_its_own_changes_and_the_same_ones_again(name):
    schedule = BudgetSchedule(name)
    drawn = [schedule.changes(seed, 30.0, 200) for seed in range(20)]
    assert drawn == [BudgetSchedule(name).changes(seed, 30.0, 200) for seed in range(20)]
    assert len(set(drawn)) > 10
    for changes in drawn:
        steps = [change.step for change in changes]
        assert steps == sorted(set(steps))
        assert all(0 <= step < 200 for step in steps)


def test_what_the_kinds_change():
    drops = parse_schedule("drops:share=0.5,times=4").changes(0, 30.0, 200)
    assert [change.factor for change in drops] == [0.5] * 4
    (drop,) = parse_schedule("drop:share=0.2,step=100").changes(7, 30.0, 200)
    assert (drop.step, drop.factor) == (100, 0.2)
    (more,) = parse_schedule("raise:share=3").changes(7, 30.0, 200)
    assert more.factor == 3.0
    assert 50 <= more.step < 150
    walk = parse_schedule("walk:every=50").changes(1, 30.0, 200)
    assert [change.step for change in walk] == [50, 100, 150]
    none, late = parse_schedule("late:step=3").changes(1, 30.0, 200)
    assert (none.step, none.remaining) == (0, math.inf)
    assert (late.step, late.remaining) == (3, 30.0)
    assert str(parse_schedule("drop:share=0.2,step=100")) == "drop:share=0.2,step=100"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fall", "there is no schedule 'fall'; there are drop, drops, raise, walk, late"),
        ("drop:0.2", "a schedule is written NAME"),
        ("drop:share=much", "a schedule is written NAME"),
        ("drop:share=1.5", "share must lie in 0 to 1; got 1.5"),
        ("raise:share=0.5", "share must lie in 1 to inf"),
        ("drop:share=nan", "share must be a number"),
        ("walk:size=-1", "size must lie in 0"),
        ("walk:every=0", "every must be a whole number of at least 1"),
        ("drop:step=2.5", "step must be a whole number"),
        ("walk:times=3", "walk has no option times; it has size, every"),
        ("walk:within=30", "walk has no option within"),
        ("drop:within=0", "within must be a whole number of at least 1"),
        ("late:step=3,within=30", "give step, or within, from which it is drawn"),
    ],
)
def test_what_is_no_schedule_is_refused(text, message):
    with pytest.raises(BudgetError, match=message):
        parse_schedule(text)


@pytest.mark.parametrize("name", ["drop", "drops", "raise", "late"])
def test_steps_are_drawn_within_what_is_asked(name):
    within, whole = BudgetSchedule(name, {"within": 40}), BudgetSchedule(name)
    for seed in range(20):
        drawn = within.changes(seed, 30.0, 1000)
        assert max(change.step for change in drawn) < 40
        assert drawn == whole.changes(seed, 30.0, 40)
    with pytest.raises(BudgetError, match="within must be at most the time limit of 30 steps"):
        within.changes(0, 30.0, 30)


@pytest.mark.parametrize("text", ["drop:step=5", "drops:times=7", "walk:every=5", "late:step=9"])
def test_a_change_after_the_end_is_refused(text):
    with pytest.raises(BudgetError, match="does not fit into an episode of 5 steps"):
        evaluate_budgets(Scripted(), "Ledger-v0", budgets=[5.0], episodes=1, schedule=parse_schedule(text))


@pytest.mark.parametrize("n_envs", [1, 3, None])
def test_the_rest_of_an_episode_is_held_against_its_last_budget(n_envs):
    found = evaluate_budgets(
        Scripted(),
        "Ledger-v0",
        budgets=[6.0, 8.0],
        episodes=2,
        n_envs=n_envs,
        schedule=parse_schedule("late:step=2"),
    )
    for record in found.records:
        assert record.cost == pytest.approx(11.0)
        assert record.changed_budget == record.budget
        assert record.cost_after_change == pytest.approx(6.75)
        assert record.kept is (record.budget == 8.0)
        assert record.remaining == pytest.approx(record.budget - 6.75)
    assert found.metadata["schedule"] == "late:step=2"
    assert Evaluation.from_json(found.to_json()) == found


def test_episodes_change_at_steps_of_their_own():
    schedule = BudgetSchedule("drop", {"share": 0.5})
    found = evaluate_budgets(Scripted(), "Ledger-v0", budgets=[20.0], episodes=12, schedule=schedule)
    spent = np.cumsum([0, 2.5, 1.75, 3.0, 2.75, 1.0])
    for record in found.records:
        (change,) = schedule.changes(record.seed, 20.0, 5)
        assert record.changed_budget == pytest.approx(0.5 * (20.0 - spent[change.step]))
        assert record.cost_after_change == pytest.approx(11.0 - spent[change.step])
    assert len({record.changed_budget for record in found.records}) > 1


def test_broken_though_feasible_is_told_from_never_feasible():
    # what is left: 10.5, 8, 6.25, 3.25, 0.5 and in the end -0.5
    for needed, share in ((8.0, 0.2), (0.1, 1.0), (11.0, 0.0)):
        found = evaluate_budgets(Teller(needed), "Ledger-v0", budgets=[10.5], episodes=2)
        assert [record.feasible for record in found.records] == [pytest.approx(share)] * 2
        assert [record.certified for record in found.records] == [False] * 2
        summary = found.summary()
        assert summary.share_over == 1.0
        assert summary.share_broken_though_feasible == (0.0 if share == 0 else 1.0)
        assert summary.share_never_feasible == (1.0 if share == 0 else 0.0)
        assert "never feasible" in found.table()


def test_feasibility_is_that_of_the_last_budget():
    schedule = parse_schedule("drop:share=0,step=2")
    (record,) = evaluate_budgets(
        Teller(1.0), "Ledger-v0", budgets=[50.0], episodes=1, schedule=schedule
    ).records
    assert record.feasible == 0.0
    assert not record.kept


def test_a_policy_that_does_not_tell_leaves_it_open_and_old_files_are_read():
    found = evaluate_budgets(Scripted(), "Ledger-v0", budgets=[9.0], episodes=1)
    assert found.records[0].feasible is None
    assert found.summary().share_never_feasible is None
    assert "never feasible" not in found.table()
    document = json.loads(found.to_json())
    for episode in document["episodes"]:
        del episode["feasible"], episode["certified"]
    assert Evaluation.from_json(json.dumps(document)) == found


def test_an_agent_tells_and_the_command_takes_schedules(tiny_agent, tmp_path, capsys):
    saved = tiny_agent.save(tmp_path / "agent.zip")
    arguments = ["evaluate", str(saved), "--env", "ShortPendulum-v0", "--budgets", "3", "--episodes", "2"]
    main([*arguments, "--schedule", "drop:share=0.5,step=3", "--output", str(tmp_path / "out")])
    assert "over, feasible" in capsys.readouterr().out
    document = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert document["metadata"]["schedule"] == "drop:share=0.5,step=3"
    assert all(0 <= episode["feasible"] <= 1 for episode in document["episodes"])
    with pytest.raises(SystemExit):
        main([*arguments, "--schedule", "drop", "--change", "3:1"])
    assert "give --change or --schedule, not both" in capsys.readouterr().err


def test_an_environment_without_a_limit_is_refused_for_a_policy_that_knows_none():
    import gymnasium as gym

    if "LedgerEndless-v0" not in gym.registry:
        gym.register("LedgerEndless-v0", entry_point="toy_envs:LedgerEnv")
    with pytest.raises(TrebiError, match="has no time limit and the policy has no episode_length"):
        evaluate_budgets(
            Scripted(), "LedgerEndless-v0", budgets=[5.0], episodes=1, schedule=BudgetSchedule("drop")
        )
