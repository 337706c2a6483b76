"""What predict accepts, and budgets in the cost critic's units."""

import math

import numpy as np
import pytest
import torch

from trebi_gym.agents.planning.budgets import (
    constant_rule,
    critic_budgets,
    geometric_sum,
    parse_request,
    remaining_rule,
)
from trebi_gym.agents.planning.state import continued
from trebi_gym.budget import Budget
from trebi_gym.errors import BudgetError, ObservationError

ONE, MANY = np.zeros(3), np.zeros((4, 3))


@pytest.mark.parametrize("observation", [ONE, [0, 0, 0], ONE.astype(np.float32), torch.zeros(3)])
def test_one_observation_is_a_batch_of_one_that_is_remembered_as_single(observation):
    request = parse_request(observation, 5.0, 3)
    assert request.single
    assert request.observations.shape == (1, 3)
    assert request.remaining.tolist() == [5.0]


@pytest.mark.parametrize(
    "budget",
    [5, 5.0, np.float32(5), np.array(5.0), np.array([5.0]), [5.0], torch.tensor(5.0), torch.tensor([5.0])],
)
def test_one_budget_in_any_form_serves_every_environment(budget):
    request = parse_request(MANY, budget, 3)
    assert not request.single
    assert request.remaining.tolist() == [5.0] * 4
    assert request.discounts.tolist() == [1.0] * 4
    assert request.steps.tolist() == [-1] * 4


@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor])
def test_a_budget_for_each_environment_stays_with_its_environment(form):
    assert parse_request(MANY, form([1.0, 2.0, -3.0, math.inf]), 3).remaining.tolist() == [1, 2, -3, math.inf]


def test_a_budget_object_tells_what_is_left_its_discount_and_the_step():
    budget = Budget(10.0, discount=0.5).charge(2.0).charge(2.0)
    request = parse_request(ONE, budget, 3)
    assert request.remaining.tolist() == [28.0]
    assert request.discounts.tolist() == [0.5]
    assert request.steps.tolist() == [2]


@pytest.mark.parametrize("form", [list, tuple])
def test_budget_objects_may_differ_between_environments(form):
    request = parse_request(MANY[:2], form([Budget(3.0), Budget(8.0, 0.9, 1.0, 4)]), 3)
    assert request.remaining.tolist() == pytest.approx([3.0, 7.0 / 0.9**4])
    assert request.steps.tolist() == [0, 4]


@pytest.mark.parametrize("environments", [None, 1, 4])
def test_a_dict_observation_carries_its_budget_and_the_steps_left(environments):
    leading = () if environments is None else (environments,)
    request = parse_request(
        {
            "observation": np.zeros((*leading, 3)),
            "budget": np.full((*leading, 1), 6.0),
            "steps_left": np.full((*leading, 1), 17.0),
        },
        None,
        3,
    )
    count = environments or 1
    assert request.single is (environments is None)
    assert request.remaining.tolist() == [6.0] * count
    assert request.steps_left.tolist() == [17.0] * count


def test_a_budget_that_is_passed_goes_before_the_one_that_is_observed():
    observation = {"observation": ONE, "budget": np.array([6.0])}
    assert parse_request(observation, 2.0, 3).remaining.tolist() == [2.0]


@pytest.mark.parametrize("observation", [ONE, {"observation": ONE}])
def test_a_missing_budget_is_refused_with_both_remedies(observation):
    with pytest.raises(
        BudgetError, match=r"predict\(observation, budget=b\), or .*BudgetWrapper\(env, b, observe=True\)"
    ):
        parse_request(observation, None, 3)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (math.nan, "got NaN"),
        ([1.0, math.nan, 1.0, 1.0], "must be a number"),
        ("60", "must be a number, in units of cost; got '60'"),
        (["a", "b", "c", "d"], "a budget must be numbers; got"),
        (True, "must be a number"),
        ([None] * 4, "must be a number"),
        ([1.0, 2.0], "got 2 budgets for 4 environments"),
        ([Budget(1.0)] * 3, "got 3 budgets for 4 environments"),
        ([], "got 0 budgets for 4 environments"),
        ({"budget": 3}, "must be a number"),
    ],
)
def test_a_budget_that_cannot_be_used_is_refused(budget, message):
    with pytest.raises(BudgetError, match=message):
        parse_request(MANY, budget, 3)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros(4), r"must have shape \(3,\), or \(E, 3\) .*; got \(4,\)"),
        (np.zeros((2, 4)), r"got \(2, 4\)"),
        (np.zeros((2, 2, 3)), r"got \(2, 2, 3\)"),
        (np.zeros((0, 3)), r"got \(0, 3\)"),
        (np.float64(1.0), r"got \(\)"),
        ([0.0, math.nan, 0.0], r"observation\[0, 1\] is nan"),
        ([[0.0] * 3, [0.0, 0.0, math.inf]], r"observation\[1, 2\] is inf"),
        ("words", "must be numbers"),
        ([[1.0, 2.0, 3.0], [1.0]], "must be numbers"),
        (None, r"must have shape|must be numbers"),
        ({"obs": ONE}, 'must hold "observation".*found obs'),
        (
            {"observation": ONE, "steps_left": np.array([math.nan])},
            '"steps_left" must hold one finite number',
        ),
        ({"observation": MANY, "steps_left": np.ones((3, 1))}, '"steps_left" must hold .* each of 4'),
    ],
)
def test_an_observation_that_does_not_fit_is_refused(observation, message):
    with pytest.raises(ObservationError, match=message):
        parse_request(observation, 1.0, 3)


def test_the_geometric_sum_is_that_of_a_plain_loop():
    for discount in (1.0, 0.99, 0.5):
        expected = [sum(discount**i for i in range(n)) for n in (1, 2, 7, 200)]
        found = geometric_sum(discount, np.array([1.0, 2.0, 7.0, 200.0]))
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_remaining_rule_is_the_critics_value_of_spending_evenly():
    left, critic = np.array([1.0, 30.0, 200.0]), 0.99
    budget = np.array([6.0, 6.0, 60.0])
    expected = [sum(critic**i * b / n for i in range(int(n))) for b, n in zip(budget, left, strict=True)]
    np.testing.assert_allclose(remaining_rule(budget, left, critic), expected, rtol=1e-10)
    # the closed form of CAPS: delta = remaining (1 - g^n) / ((1 - g) n)
    closed = budget * (1 - critic**left) / ((1 - critic) * left)
    np.testing.assert_allclose(remaining_rule(budget, left, critic), closed, rtol=1e-12)


def test_the_remaining_rule_of_a_discounted_budget_spends_evenly_too():
    # an even cost c for n steps has the value c (1 - d^n) / (1 - d) at the budget's discount d
    cost, steps, critic, discount = 0.3, 40.0, 0.99, 0.9
    budget = np.array([sum(discount**i * cost for i in range(40))])
    expected = sum(critic**i * cost for i in range(40))
    found = remaining_rule(budget, np.array([steps]), critic, discount)
    np.testing.assert_allclose(found, [expected], rtol=1e-10)


def test_overspent_and_endless_budgets_stay_so_under_both_rules():
    values = np.array([-5.0, 0.0, math.inf])
    for found in (remaining_rule(values, np.full(3, 10.0), 0.99), constant_rule(values, 0.336)):
        assert found[0] < 0
        assert found[1] == 0
        assert found[2] == math.inf


def budgets_of(budget, rule, factor=0.336, steps_left=50.0):
    request = parse_request(ONE, budget, 3)
    left = np.array([steps_left])
    return critic_budgets(
        request.remaining, request.discounts, left, rule=rule, cost_discount=0.99, factor=factor
    )[0]


def test_the_constant_rule_multiplies_an_undiscounted_budget_whatever_is_left_of_the_episode():
    assert budgets_of(60.0, "constant") == pytest.approx(60 * 0.336)
    assert budgets_of(60.0, "constant", steps_left=3.0) == pytest.approx(60 * 0.336)


@pytest.mark.parametrize("rule", ["constant", "remaining"])
def test_a_budget_with_the_critics_own_discount_is_in_its_units_already(rule):
    assert budgets_of(Budget(16.7, discount=0.99), rule) == 16.7
    later = Budget(16.7, discount=0.99).charge(4.0)
    assert budgets_of(later, rule) == pytest.approx((16.7 - 4.0) / 0.99)


def test_the_constant_rule_refuses_a_third_discount():
    with pytest.raises(
        BudgetError, match=r'"constant" turns undiscounted budgets .* got a budget of discount 0.9'
    ):
        budgets_of(Budget(10.0, discount=0.9), "constant")


def test_budgets_of_several_discounts_are_each_turned_by_their_own():
    budgets = [Budget(10.0), Budget(10.0, discount=0.99), Budget(10.0, discount=0.9)]
    request = parse_request(MANY[:3], budgets, 3)
    found = critic_budgets(
        request.remaining,
        request.discounts,
        np.full(3, 20.0),
        rule="remaining",
        cost_discount=0.99,
        factor=None,
    )
    expected = [remaining_rule(np.array([10.0]), np.array([20.0]), 0.99, d)[0] for d in (1.0, 0.99, 0.9)]
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.ones(3, dtype=complex), "an observation must be numbers"),
        (["a", "b", "c"], "an observation must be numbers"),
        ({1: 2}, 'must hold "observation"'),
        ({"observation": np.ones(3), "budget": 1.0, "steps_left": "x"}, "steps_left must be numbers"),
    ],
)
def test_what_is_no_number_is_refused_by_name(observation, message):
    with pytest.raises(ObservationError, match=message):
        parse_request(observation, 1.0, 3)


def test_a_budget_in_the_observation_must_be_a_number_too():
    with pytest.raises(BudgetError, match="budget must be numbers"):
        parse_request({"observation": np.ones(3), "budget": "x"}, None, 3)


def test_tensors_that_require_a_gradient_are_read_like_any_other():
    request = parse_request(torch.ones(3, requires_grad=True), torch.tensor([2.0], requires_grad=True), 3)
    assert request.observations.tolist() == [[1.0, 1.0, 1.0]]
    assert request.remaining.tolist() == [2.0]


def test_the_state_of_some_rows_is_that_of_these_environments():
    state = continued(None, None, 4, 3, 2)
    state.step[:] = [5, 6, 7, 8]
    state.actions[:] = np.arange(24).reshape(4, 3, 2)
    some = state.of_rows(np.array([1, 3]))
    assert some.step.tolist() == [6, 8]
    np.testing.assert_array_equal(some.actions, state.actions[[1, 3]])
    assert {len(getattr(some, name)) for name in ("position", "rewards", "costs", "budgets")} == {2}
    again = continued(some, None, 2, 3, 2)
    assert again.step.tolist() == [6, 8]
