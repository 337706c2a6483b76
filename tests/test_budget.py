"""A budget's arithmetic: what is left is what the definition says, whatever the order of charges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trebi_gym.budget import Budget, check_budget
from trebi_gym.errors import BudgetError, TrebiError

costs = st.lists(st.floats(0.0, 100.0), max_size=60)
totals = st.floats(0.0, 1e4)
discounts = st.floats(0.9, 1.0)


def charged(budget: Budget, episode_costs: list[float]) -> Budget:
    for cost in episode_costs:
        budget = budget.charge(cost)
    return budget


@given(totals, discounts, costs)
def test_remaining_after_charges_is_its_definition(total, discount, episode_costs):
    budget = charged(Budget(total, discount), episode_costs)
    steps = len(episode_costs)
    spent = math.fsum(discount**step * cost for step, cost in enumerate(episode_costs))
    assert budget.step == steps
    assert budget.spent == pytest.approx(spent)
    assert budget.remaining == pytest.approx((total - spent) / discount**steps, rel=1e-9, abs=1e-6)


@given(totals, discounts, st.floats(0.0, 100.0))
def test_one_charge_takes_the_cost_and_grows_the_rest_by_the_discount(total, discount, cost):
    assert Budget(total, discount).charge(cost).remaining == pytest.approx((total - cost) / discount)


@given(totals, costs)
def test_without_a_discount_the_costs_add_up_as_they_are(total, episode_costs):
    expected = total - sum(episode_costs)
    assert charged(Budget(total), episode_costs).remaining == pytest.approx(expected, abs=1e-9)


@given(totals, discounts, costs, st.floats(0.0, 1e4))
def test_with_remaining_leaves_what_was_asked_and_keeps_what_was_spent(total, discount, episode_costs, left):
    before = charged(Budget(total, discount), episode_costs)
    after = before.with_remaining(left)
    assert after.remaining == pytest.approx(left, rel=1e-9, abs=1e-6)
    assert (after.spent, after.step, after.discount) == (before.spent, before.step, before.discount)


def test_a_worked_example_with_discount_one_half():
    budget = Budget(10.0, discount=0.5).charge(4.0).charge(2.0)
    assert budget.spent == 5.0
    assert budget.remaining == 20.0
    assert budget.with_remaining(3.0).total == 5.75


def test_an_overspent_budget_is_negative_and_can_be_raised_again():
    budget = Budget(1.0).charge(3.0)
    assert budget.remaining == -2.0
    assert budget.with_remaining(5.0).remaining == 5.0
    assert budget.with_remaining(0.0).charge(1.0).remaining == -1.0


def test_no_limit_stays_no_limit_until_it_is_given_one():
    budget = Budget(math.inf, discount=0.9).charge(7.0)
    assert budget.remaining == math.inf
    assert budget.with_remaining(2.0).remaining == pytest.approx(2.0)


def test_a_budget_cannot_be_changed_in_place():
    with pytest.raises(AttributeError):
        Budget(1.0).spent = 2.0  # type: ignore[misc]


@pytest.mark.parametrize("value", [3, 3.0, np.float32(3), np.int64(3), np.array(3.0)])
def test_any_number_can_be_a_budget(value):
    assert check_budget(value) == 3.0
    assert type(Budget(value).total) is float


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1.0, "at least 0"),
        (-math.inf, "at least 0"),
        (math.nan, "NaN"),
        (np.float32("nan"), "NaN"),
        ("10", "must be a number"),
        (None, "must be a number"),
        (True, "must be a number"),
        (1j, "must be a number"),
        ([1.0], "must be a number"),
        (np.array([1.0]), "must be a number"),
    ],
)
def test_what_cannot_be_a_budget_is_refused_and_named(value, message):
    with pytest.raises(BudgetError, match=message):
        check_budget(value)
    with pytest.raises(BudgetError, match=message):
        Budget(value)
    with pytest.raises(BudgetError, match=message):
        Budget(5.0).charge(1.0).with_remaining(value)


@pytest.mark.parametrize("discount", [0.0, -0.5, 1.01, math.nan, "1", None])
def test_a_discount_outside_0_to_1_is_refused(discount):
    with pytest.raises(BudgetError, match="discount"):
        Budget(1.0, discount=discount)


@pytest.mark.parametrize("step", [-1, 0.5, "0", True])
def test_a_step_that_is_no_count_is_refused(step):
    with pytest.raises(BudgetError, match="step must be a whole number"):
        Budget(1.0, step=step)


@pytest.mark.parametrize("cost", [math.nan, math.inf, -math.inf, "1", None])
def test_a_cost_that_is_no_finite_number_is_refused(cost):
    with pytest.raises(BudgetError, match="cost must be"):
        Budget(1.0).charge(cost)


def test_a_budget_error_is_a_value_error_and_one_of_ours():
    assert issubclass(BudgetError, ValueError)
    assert issubclass(BudgetError, TrebiError)


def test_a_number_too_large_for_a_float_is_refused_with_the_remedy():
    with pytest.raises(BudgetError, match="too large for a floating-point number; use inf"):
        Budget(10**400)


def test_endless_spending_is_refused():
    with pytest.raises(BudgetError, match="spent must be finite"):
        Budget(math.inf, spent=math.inf)
