"""Evaluations: the same seeds for every budget, sums that can be checked by hand, and files that read back."""

import csv
import dataclasses
import io
import json
import math

import numpy as np
import pytest
from toy_envs import Scripted, mark_of, register_toy_envs

from trebi_gym.errors import BudgetError, EnvironmentContractError, TrebiError
from trebi_gym.evaluation.evaluate import evaluate_budgets, evaluate_episodes
from trebi_gym.evaluation.records import EpisodeRecord, Evaluation, bootstrap_interval, format_table
from trebi_gym.rollout import BudgetChange

register_toy_envs()
# Ledger-v0 under Scripted costs 2.5, 1.75, 3, 2.75, 1: in all 11; it earns 100 and the actions' sum of 1
COSTS = [2.5, 1.75, 3.0, 2.75, 1.0]


def record(budget, cost, **changes):
    values = {
        "budget": budget,
        "seed": 0,
        "episode_return": 100.0 - cost,
        "cost": cost,
        "length": 5,
        "remaining": budget - cost,
        "kept": cost <= budget,
    }
    return EpisodeRecord(**(values | changes))


def test_every_budget_is_run_with_the_same_seeds():
    found = evaluate_budgets(Scripted(), "LedgerEarly-v0", budgets=[5.0, 9.0], episodes=4, n_envs=3, seed=20)
    assert [r.budget for r in found.records] == [5.0] * 4 + [9.0] * 4
    assert [r.seed for r in found.records] == [20, 21, 22, 23] * 2
    lengths = [1 + int(4 * mark_of(seed)) for seed in (20, 21, 22, 23)]
    assert [r.length for r in found.records] == lengths * 2
    assert [r.cost for r in found.records] == pytest.approx([sum(COSTS[:n]) for n in lengths] * 2)


@pytest.mark.parametrize("n_envs", [1, 3, None])
def test_return_cost_and_what_is_left_are_those_of_the_environment(n_envs):
    found = evaluate_budgets(Scripted(), "Ledger-v0", budgets=[11.0, 10.5], episodes=2, n_envs=n_envs)
    for r, left, kept in zip(found.records, [0.0, 0.0, -0.5, -0.5], [True, True, False, False], strict=True):
        assert r.episode_return == pytest.approx(101.0)
        assert r.cost == pytest.approx(11.0)
        assert r.remaining == pytest.approx(left)
        assert r.kept is kept
        assert r.length == 5
        assert r.changed_budget is None
        assert r.cost_after_change is None


def test_discounted_budgets_are_charged_with_discounted_costs():
    (found,) = evaluate_budgets(Scripted(), "Ledger-v0", budgets=[5.0], episodes=1, discount=0.5).records
    assert found.cost == pytest.approx(sum(0.5**t * cost for t, cost in enumerate(COSTS)))
    assert found.remaining == pytest.approx(5.0 - found.cost)


@pytest.mark.parametrize("discount", [1.0, 0.5])
def test_after_a_change_the_rest_is_held_against_the_new_budget(discount):
    schedule = [BudgetChange(1, factor=0.9), BudgetChange(3, remaining=3.0)]
    (found,) = evaluate_budgets(
        Scripted(), "Ledger-v0", budgets=[100.0], episodes=1, schedule=schedule, discount=discount
    ).records
    rest = 2.75 + discount * 1.0
    assert found.changed_budget == pytest.approx(3.0)
    assert found.cost_after_change == pytest.approx(rest)
    assert found.remaining == pytest.approx(discount**3 * (3.0 - rest))
    assert found.kept is (rest <= 3.0)


def test_an_episode_that_ended_before_the_change_reports_none():
    found = evaluate_budgets(
        Scripted(), "LedgerEarly-v0", budgets=[9.0], episodes=6, schedule=[BudgetChange(3, remaining=1.0)]
    )
    for r in found.records:
        assert (r.changed_budget is None) == (r.length <= 3)
        assert (r.cost_after_change is None) == (r.length <= 3)


def test_a_budget_of_infinity_is_always_kept():
    (found,) = evaluate_budgets(Scripted(), "Ledger-v0", budgets=[math.inf], episodes=1).records
    assert found.kept
    assert found.remaining == math.inf


def test_a_sum_that_meets_the_budget_up_to_rounding_keeps_it():
    actions = [-1.9, -1.8, -1.7, -1.9, -1.8]
    total = math.fsum(2.0 + float(np.float32(a)) for a in actions)
    (found,) = evaluate_budgets(Scripted(actions), "Ledger-v0", budgets=[total - 1e-13], episodes=1).records
    assert found.kept


def test_the_agents_draws_are_seeded_before_the_episodes():
    agent = Scripted()
    evaluate_budgets(agent, "Ledger-v0", budgets=[9.0], episodes=1, seed=17)
    assert agent.seeds == [17]


def test_a_budget_given_twice_is_run_once():
    found = evaluate_budgets(Scripted(), "Ledger-v0", budgets=[9.0, 9.0], episodes=2)
    assert len(found.records) == 2


def test_single_episodes_can_have_a_budget_each():
    found = evaluate_episodes(Scripted(), "Ledger-v0", budgets=[3.0, 12.0, 11.0], seeds=[5, 6, 7], n_envs=2)
    assert [(r.budget, r.seed, r.kept) for r in found.records] == [
        (3.0, 5, False),
        (12.0, 6, True),
        (11.0, 7, True),
    ]
    with pytest.raises(TrebiError, match="2 budgets and 1 seeds"):
        evaluate_episodes(Scripted(), "Ledger-v0", budgets=[3.0, 12.0], seeds=[5])


def test_a_summary_is_that_of_its_budgets_episodes():
    costs = [1.0, 2.0, 3.0, 10.0]
    found = Evaluation((*(record(5.0, cost) for cost in costs), record(50.0, 7.0)))
    summary = found.summary(5.0)
    assert summary.episodes == 4
    assert summary.cost_mean == pytest.approx(4.0)
    assert summary.cost_iqm == pytest.approx(2.5)
    assert summary.return_mean == pytest.approx(96.0)
    assert summary.return_iqm == pytest.approx(97.5)
    assert summary.cost_per_budget == pytest.approx(0.8)
    assert summary.share_over == pytest.approx(0.25)
    assert summary.worst_excess == pytest.approx(5.0)
    assert summary.length_mean == 5.0
    low, high = summary.cost_interval
    assert 1.0 <= low < 4.0 < high <= 10.0
    assert found.summary(50.0).worst_excess == 0.0
    assert found.summary().episodes == 5
    assert [s.budget for s in found.summaries] == [5.0, 50.0]
    with pytest.raises(BudgetError, match=r"no episode was run with budget 6.0; there are \[5.0, 50.0\]"):
        found.summary(6.0)


def test_cost_per_budget_of_a_budget_of_zero_is_not_a_number():
    assert math.isnan(Evaluation((record(0.0, 1.0),)).summary(0.0).cost_per_budget)


def test_the_interval_covers_the_true_mean_in_about_95_of_100_samples():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        low, high = bootstrap_interval(rng.normal(3.0, 2.0, 40))
        covered += low <= 3.0 <= high
    assert 88 <= covered <= 99


def test_an_interval_of_equal_values_is_that_value_and_of_one_value_unknown():
    assert bootstrap_interval(np.full(7, 0.1)) == pytest.approx((0.1, 0.1))
    assert all(math.isnan(end) for end in bootstrap_interval(np.array([1.0])))


def test_the_same_episodes_give_the_same_interval():
    values = np.random.default_rng(1).normal(size=20)
    assert bootstrap_interval(values) == bootstrap_interval(values)


def test_json_reads_back_to_the_same_episodes():
    found = evaluate_budgets(
        Scripted(), "Ledger-v0", budgets=[9.0, 12.0], episodes=2, schedule=[BudgetChange(2, remaining=3.0)]
    )
    again = Evaluation.from_json(found.to_json())
    assert again.records == found.records
    assert again.summaries == found.summaries
    assert again.metadata == found.metadata
    assert again.metadata["env_id"] == "Ledger-v0"
    assert again.metadata["schedule"] == [{"step": 2, "remaining": 3.0, "factor": None}]


def test_json_of_budgets_of_infinity_is_plain_json_and_reads_back_too():
    found = evaluate_budgets(
        Scripted(), "Ledger-v0", budgets=[math.inf], episodes=2, schedule=[BudgetChange(2, factor=0.5)]
    )
    text = found.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    again = Evaluation.from_json(text)
    assert again.records == found.records
    assert again.summary(math.inf).share_over == 0.0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"episodes": [{"x": 1}], "metadata": {}}', "nonsense"])
def test_what_is_no_saved_evaluation_is_refused(text):
    with pytest.raises(TrebiError, match="this is not a saved evaluation"):
        Evaluation.from_json(text)


def test_csv_has_one_line_an_episode():
    found = evaluate_budgets(Scripted(), "Ledger-v0", budgets=[9.0, 12.0], episodes=2)
    lines = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert len(lines) == 4
    assert set(lines[0]) == {item.name for item in dataclasses.fields(EpisodeRecord)}
    assert [float(line["cost"]) for line in lines] == pytest.approx([11.0] * 4)


def test_saving_goes_by_the_ending_and_refuses_others(tmp_path):
    found = Evaluation((record(5.0, 1.0),))
    found.save(tmp_path / "a.json")
    found.save(tmp_path / "a.csv")
    assert Evaluation.from_json((tmp_path / "a.json").read_text()).records == found.records
    assert (tmp_path / "a.csv").read_text() == found.to_csv()
    with pytest.raises(TrebiError, match=r"saved as .json or .csv; got 'a.txt'"):
        found.save(tmp_path / "a.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json"]


def test_the_table_has_a_line_for_every_budget_and_aligned_columns():
    lines = Evaluation((record(5.0, 1.0), record(50.0, 60.0), record(50.0, 40.0))).table().splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split()[0] == "budget"
    assert lines[2].split()[0] == "5"
    assert format_table(("a", "b"), [("1", "22")]).splitlines() == ["a   b", "-  --", "1  22"]


def test_an_environment_without_cost_is_refused():
    with pytest.raises(EnvironmentContractError, match='no "cost"'):
        evaluate_budgets(Scripted(), "LedgerFree-v0", budgets=[9.0], episodes=1)


def test_bad_budgets_and_numbers_of_episodes_are_refused_before_anything_runs():
    agent = Scripted()
    with pytest.raises(TrebiError, match="episodes must be a whole number of at least 1; got 0"):
        evaluate_budgets(agent, "Ledger-v0", budgets=[9.0], episodes=0)
    with pytest.raises(BudgetError, match="at least one budget"):
        evaluate_budgets(agent, "Ledger-v0", budgets=[])
    for budget in (-1.0, math.nan, "9"):
        with pytest.raises(BudgetError):
            evaluate_budgets(agent, "Ledger-v0", budgets=[9.0, budget])
    assert agent.calls == []


def test_a_learned_agent_is_evaluated_the_same_way_twice(tiny_agent):
    def evaluate():
        return evaluate_budgets(tiny_agent, "ShortPendulum-v0", budgets=[1.0, 30.0], episodes=3, seed=4)

    first = evaluate()
    assert first.records == evaluate().records
    assert [r.length for r in first.records] == [6] * 6


def test_negative_seeds_no_environments_and_no_list_of_budgets_are_refused_before_anything_runs():
    agent = Scripted()
    with pytest.raises(TrebiError, match=r"seed must be a whole number of at least 0 and below .*; got -1"):
        evaluate_budgets(agent, "Ledger-v0", budgets=[9.0], seed=-1)
    with pytest.raises(TrebiError, match="n_envs must be a whole number of at least 1; got -2"):
        evaluate_budgets(agent, "Ledger-v0", budgets=[9.0], n_envs=-2)
    with pytest.raises(BudgetError, match="give a list of at least one budget; got 9"):
        evaluate_budgets(agent, "Ledger-v0", budgets=9.0)
    with pytest.raises(TrebiError, match="no episode to run"):
        evaluate_episodes(agent, "Ledger-v0", budgets=[], seeds=[])
    assert agent.calls == []


def test_budgets_may_be_numbers_of_any_kind():
    result = evaluate_budgets(Scripted(), "Ledger-v0", budgets=[np.array(9.0), 9, np.float32(9)], episodes=1)
    assert result.budgets == [9.0]
    assert len(result.records) == 1
