"""The budget's guide and the two rankings."""

import math

import pytest
import torch

from trebi_gym.agents.diffusion.guidance import BudgetGuide, Scores, original_values, rank


def reward(x, t):
    return x[..., 0].sum(dim=1)


def cost(x, t):
    return x[..., 1].sum(dim=1)


def plans(costs):
    x = torch.zeros(len(costs), 2, 2)
    x[:, 0, 1] = torch.tensor(costs)
    return x, torch.zeros(len(costs), dtype=torch.long)


def cost_direction(costs, budgets, guide_type):
    x, t = plans(costs)
    guide = BudgetGuide(reward, cost, torch.tensor(budgets), cost_weight=20.0, guide_type=guide_type)
    direction, scores = guide(x, t)
    assert (direction[..., 0] == 1).all()
    assert scores.costs.tolist() == pytest.approx(costs)
    return direction[:, 0, 1].tolist()


def test_a_plan_moves_away_from_cost_only_where_it_is_over_the_budget():
    assert cost_direction([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], guide_type=1) == [0, 0, -20]


def test_guide_type_zero_pushes_harder_the_further_a_plan_is_over():
    direction = cost_direction([1.0, 3.0, 9.0], [2.0, 2.0, 2.0], guide_type=0)
    assert direction == pytest.approx([0, -20 * math.exp(0.5), -20 * math.e])


@pytest.mark.parametrize("guide_type", [0, 1])
@pytest.mark.parametrize("budget", [0.0, -0.0, math.inf, -math.inf, -2.0, 1e-30])
@pytest.mark.parametrize("predicted", [-1.0, 0.0, 5.0])
def test_the_direction_is_finite_whatever_the_budget(budget, predicted, guide_type):
    (direction,) = cost_direction([predicted], [budget], guide_type)
    assert math.isfinite(direction)
    assert (direction < 0) == (predicted > budget)


def test_the_factor_is_one_for_a_negative_budget_and_e_for_none():
    assert cost_direction([5.0], [-2.0], guide_type=0) == pytest.approx([-20])
    assert cost_direction([5.0], [0.0], guide_type=0) == pytest.approx([-20 * math.e])


def test_the_guide_differentiates_even_where_gradients_are_off_and_leaves_the_plan_alone():
    x, t = plans([3.0])
    guide = BudgetGuide(reward, cost, torch.tensor([2.0]))
    with torch.no_grad():
        direction, scores = guide(x, t)
    assert direction.abs().sum() > 0
    assert not x.requires_grad
    assert not direction.requires_grad
    assert not scores.rewards.requires_grad


def test_scores_without_a_gradient_are_those_of_the_guided_evaluation():
    x, t = plans([1.0, 3.0])
    guide = BudgetGuide(reward, cost, torch.tensor([2.0, 2.0]))
    _, scores = guide(x, t)
    assert torch.equal(torch.stack(guide.scores(x, t)), torch.stack(scores))


def test_an_unknown_guide_type_is_refused():
    with pytest.raises(ValueError, match="must be 0 or 1, got 2"):
        BudgetGuide(reward, cost, torch.zeros(1), guide_type=2)


SCORES = Scores(
    rewards=torch.tensor([[1.0, 5.0, 3.0, 4.0], [1.0, 5.0, 3.0, 4.0], [1.0, 5.0, 3.0, 4.0]]),
    costs=torch.tensor([[0.0, 9.0, 2.0, 8.0], [0.0, 9.0, 2.0, 8.0], [0.0, 9.0, 2.0, 8.0]]),
)
BUDGETS = torch.tensor([2.0, math.inf, -1.0])


def test_plans_within_the_budget_lead_by_reward_and_the_rest_follow_by_cost():
    assert rank(SCORES, BUDGETS).tolist() == [[2, 0, 3, 1], [1, 3, 2, 0], [0, 2, 3, 1]]


def test_a_predicted_cost_that_is_not_a_number_comes_last():
    scores = Scores(torch.tensor([[9.0, 1.0, 2.0]]), torch.tensor([[math.nan, 0.0, 5.0]]))
    assert rank(scores, torch.tensor([1.0])).tolist() == [[1, 2, 0]]


def test_a_predicted_reward_that_is_not_a_number_follows_the_others_within_the_budget():
    scores = Scores(torch.tensor([[math.nan, 1.0, 2.0]]), torch.tensor([[0.0, 0.0, 0.0]]))
    assert rank(scores, torch.tensor([1.0])).tolist() == [[2, 1, 0]]


def test_equal_plans_keep_their_order():
    scores = Scores(torch.ones(1, 5), torch.ones(1, 5))
    assert rank(scores, torch.tensor([1.0])).tolist() == [[0, 1, 2, 3, 4]]


def test_the_original_values_sink_plans_over_the_budget_unless_all_are():
    values = original_values(SCORES, BUDGETS)
    assert values[0].tolist() == pytest.approx([1, 5 - 1e8, 3, 4 - 1e8])
    assert values[1].tolist() == [1, 5, 3, 4]
    assert values[2].tolist() == [0, -9, -2, -8]


def test_the_original_values_choose_the_plan_that_rank_chooses():
    generator = torch.Generator().manual_seed(0)
    scores = Scores(torch.randn(50, 8, generator=generator), torch.randn(50, 8, generator=generator))
    budgets = torch.randn(50, generator=generator)
    assert torch.equal(original_values(scores, budgets).argmax(dim=1), rank(scores, budgets)[:, 0])


class CountingCritic:
    """A critic that notes how many plans it was asked for with a gradient, and with which steps left."""

    def __init__(self, weight):
        self.weight, self.differentiated, self.left = weight, [], []

    def __call__(self, x, t, steps_left):
        assert len(x) == len(t) == len(steps_left)
        if x.requires_grad:
            self.differentiated.append(len(x))
        self.left.append(steps_left)
        return (self.weight * x**2).sum(dim=(1, 2)) + steps_left


@pytest.mark.parametrize("guide_type", [0, 1])
@pytest.mark.parametrize("over", [0, 1, 3, 5, 8])
def test_leaving_out_gradients_that_count_for_nothing_changes_no_direction(over, guide_type):
    x = torch.randn(8, 3, 2, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([4]).expand(8)
    left = torch.arange(8.0)
    weight = torch.tensor([1.0, 2.0])
    budgets = (weight * x**2).sum(dim=(1, 2)) + left + torch.where(torch.arange(8) < over, -0.5, 0.5)

    def guide(skip_zeros):
        critics = CountingCritic(-weight), CountingCritic(weight)
        made = BudgetGuide(*critics, budgets, guide_type=guide_type, steps_left=left, skip_zeros=skip_zeros)
        return made, critics[1]

    plain, counted = guide(False)
    direction, scores = plain(x, t)
    assert counted.differentiated == [8]
    quick, counted = guide(True)
    for _ in range(3):  # the first time all are differentiated, then only as many as were over the last time
        again, others = quick(x, t)
        torch.testing.assert_close(again, direction, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(torch.stack(others), torch.stack(scores))
    few = over < 4
    assert counted.differentiated == ([8] + [over] * 2 * (over > 0) if few else [8] * 3)
    if few and over:
        assert counted.left[-1].tolist() == list(range(over))


def test_a_guide_asks_both_critics_at_once_where_it_can():
    x, t = plans([1.0, 3.0])
    apart = BudgetGuide(reward, cost, torch.tensor([2.0, 2.0]))
    asked = []

    def both(x, t, steps_left):
        asked.append(steps_left)
        return reward(x, t), cost(x, t)

    together = BudgetGuide(None, None, torch.tensor([2.0, 2.0]), both=both)
    assert torch.equal(together(x, t)[0], apart(x, t)[0])
    assert torch.equal(together.scores(x, t).costs, apart.scores(x, t).costs)
    assert asked == [None, None]
