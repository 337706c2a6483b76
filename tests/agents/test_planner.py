"""The planner: plans start where the agent is, and those that keep the budget come first."""

import numpy as np
import pytest
import torch
from torch import nn

from trebi_gym.agents import PlannerConfig
from trebi_gym.agents.diffusion.schedule import NoiseSchedule
from trebi_gym.agents.planning import planner
from trebi_gym.agents.planning.planner import BudgetGuidedPlanner, Plan, least_costs
from trebi_gym.datasets import AffineNormalizer

HORIZON, ACTION, OBSERVATION = 4, 1, 2
OBSERVATIONS = AffineNormalizer(np.array([1.0, -2.0]), np.array([2.0, 0.5]))
ACTIONS = AffineNormalizer(np.array([0.5]), np.array([0.25]))


class Shrink(nn.Module):
    """Predicts the clean trajectory as half of the noisy one; keeps the conditions that it was given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.conditions = []

    def forward(self, x, t, condition=None):
        self.conditions.append(condition)
        return self.weight * x


class Reward(nn.Module):
    """The mean of all actions."""

    def forward(self, x, t, steps_left=None):
        return x[:, :, 0].mean(dim=1)


class Cost(nn.Module):
    """Ten and the sum of the last row; keeps the steps left that it was given."""

    def __init__(self):
        super().__init__()
        self.steps_left = []

    def forward(self, x, t, steps_left=None):
        self.steps_left.append(steps_left)
        return 10.0 + 3.0 * x[:, -1].sum(dim=1)


def make_planner(cost_scale=None, least_steps_left=1, **options):
    values = {"candidates": 32, "sampler": "ddim", "sampler_steps": 5, "retry_steps": None}
    values |= {"guide_moves": 0, "ranking": "rescored"}
    return BudgetGuidedPlanner(
        Shrink(),
        Reward(),
        Cost(),
        NoiseSchedule.cosine(10),
        PlannerConfig(**(values | options)),
        horizon=HORIZON,
        observation_normalizer=OBSERVATIONS,
        action_normalizer=ACTIONS,
        cost_scale=cost_scale,
        least_steps_left=least_steps_left,
    )


def make_plan(budgets, observations=None, seed=0, **options):
    environments = len(budgets)
    if observations is None:
        observations = np.random.default_rng(1).normal(size=(environments, OBSERVATION))
    steps_left = options.pop("steps_left", np.full(environments, 50.0))
    return make_planner(**options).plan(
        observations, np.asarray(budgets, np.float64), steps_left, torch.Generator().manual_seed(seed)
    )


def test_a_plan_has_the_shapes_that_it_promises():
    plan = make_plan([10.0, 5.0, 0.0])
    assert isinstance(plan, Plan)
    assert plan.actions.shape == (3, 32, HORIZON, ACTION)
    assert plan.observations.shape == (3, 32, HORIZON, OBSERVATION)
    assert plan.rewards.shape == plan.costs.shape == plan.feasible.shape == (3, 32)
    assert plan.budgets.tolist() == [10.0, 5.0, 0.0]
    assert {plan.actions.dtype, plan.observations.dtype, plan.rewards.dtype} == {np.dtype(np.float32)}


@pytest.mark.parametrize("options", [{}, {"guide_moves": 2}, {"sampler": "ddpm", "sampler_steps": None}])
def test_every_candidate_starts_at_the_given_observation(options):
    observations = np.array([[1.5, -2.25], [0.0, 0.0], [7.0, -9.0]])
    plan = make_plan([10.0] * 3, observations, **options)
    expected = np.broadcast_to(observations[:, None], (3, 32, 2))
    np.testing.assert_allclose(plan.observations[:, :, 0], expected, atol=1e-5)


def test_plans_within_the_budget_come_first_by_reward_and_the_others_after_by_cost():
    plan = make_plan([10.0, 9.0, 11.0])
    for feasible, rewards, costs in zip(plan.feasible, plan.rewards, plan.costs, strict=True):
        count = int(feasible.sum())
        assert 0 < count < 32
        assert feasible[:count].all()
        assert (np.diff(rewards[:count]) <= 0).all()
        assert (np.diff(costs[count:]) >= 0).all()


@pytest.mark.parametrize("budget", [-100.0, -np.inf])
def test_where_no_plan_keeps_the_budget_the_cheapest_is_first(budget):
    plan = make_plan([budget])
    assert not plan.feasible.any()
    assert plan.costs[0, 0] == plan.costs.min()


def test_without_a_limit_the_best_reward_is_first():
    plan = make_plan([np.inf])
    assert plan.feasible.all()
    assert plan.rewards[0, 0] == plan.rewards.max()


def test_the_scores_are_those_of_the_plans_that_are_handed_out():
    plan = make_plan([10.0], guide_moves=2)
    actions = ACTIONS.normalize(plan.actions)
    last = np.concatenate([actions, OBSERVATIONS.normalize(plan.observations)], axis=-1)[:, :, -1]
    np.testing.assert_allclose(plan.rewards, actions[..., 0].mean(axis=2), atol=1e-5)
    np.testing.assert_allclose(plan.costs, 10.0 + 3.0 * last.sum(axis=2), atol=1e-4)


def test_guidance_makes_plans_cheaper_where_they_break_the_budget_and_leaves_them_where_they_do_not():
    free = make_plan([8.0, np.inf], guide_moves=0)
    guided = make_plan([8.0, np.inf], guide_moves=2, guide_scale=0.5, cost_weight=20.0)
    assert guided.costs[0].mean() < free.costs[0].mean() - 0.1
    assert guided.rewards[1].mean() > free.rewards[1].mean()


def test_the_best_action_and_its_scores_are_those_of_the_first_plan():
    made = make_planner(guide_moves=1)
    observations, budgets, left = np.zeros((3, 2)), np.array([9.0, 10.0, 11.0]), np.full(3, 50.0)
    plan = made.plan(observations, budgets, left, torch.Generator().manual_seed(4))
    found = made.search(observations, budgets, left, torch.Generator().manual_seed(4))
    np.testing.assert_array_equal(made.best_actions(found, 2), plan.actions[:, 0, :2])
    rewards, costs = made.best_scores(found)
    np.testing.assert_array_equal(rewards, plan.rewards[:, 0])
    np.testing.assert_array_equal(costs, plan.costs[:, 0])


def test_planning_in_several_passes_keeps_every_environment_its_own(monkeypatch):
    observations = np.random.default_rng(2).normal(size=(7, OBSERVATION))
    budgets = np.array([-100.0, 5.0, np.inf, 9.0, 10.0, 11.0, 100.0])
    whole = make_plan(budgets, observations)
    monkeypatch.setattr(planner, "MAX_ROWS", 70)  # two environments of 32 candidates
    parts = make_plan(budgets, observations)
    for name in ("actions", "observations", "rewards", "costs", "budgets"):
        assert getattr(parts, name).shape == getattr(whole, name).shape
    expected = np.broadcast_to(observations[:, None], (7, 32, 2))
    np.testing.assert_allclose(parts.observations[:, :, 0], expected, atol=1e-5)
    assert not parts.feasible[0].any()
    assert parts.feasible[2].all()


def test_more_candidates_than_rows_at_once_are_still_planned_for(monkeypatch):
    monkeypatch.setattr(planner, "MAX_ROWS", 8)
    assert make_plan([10.0, 10.0]).actions.shape == (2, 32, HORIZON, ACTION)


def test_what_one_environment_needs_changes_nothing_for_another():
    # the first environment's budget decides whether a second search is made for it
    options = {"retry_steps": 7, "guide_moves": 1}
    easy, hard = (make_plan([budget, 2.0, 10.0], **options) for budget in (1e6, -50.0))
    for mine, other in ((easy.actions, hard.actions), (easy.costs, hard.costs)):
        np.testing.assert_array_equal(mine[1:], other[1:])
    once = make_plan([-50.0, 2.0, 10.0], **(options | {"retry_steps": None}))
    assert hard.costs[0].min() <= once.costs[0].min()


def test_a_second_search_may_be_guided_less_or_not_at_all():
    # the reward alone guides, and what it adds to the last action costs
    options = {"retry_steps": 7, "guide_moves": 1, "guide_scale": 0.8, "cost_weight": 0.0}
    alike, none = (make_plan([-50.0], retry_guide_scale=scale, **options) for scale in (None, 0.0))
    assert none.costs[0].min() < alike.costs[0].min()
    unguided = make_plan([-50.0], sampler_steps=7, guide_moves=0)
    np.testing.assert_array_equal(none.actions, unguided.actions)
    np.testing.assert_array_equal(
        make_plan([1e6], retry_guide_scale=0.0, **options).actions, make_plan([1e6], **options).actions
    )


@pytest.mark.parametrize("ranking", ["rescored", "original"])
@pytest.mark.parametrize(
    ("sampler", "steps", "retry"), [("ddpm", None, 10), ("ddim", 5, 7), ("dpm_solver", 3, 5)]
)
def test_every_sampler_and_ranking_takes_a_second_search_without_guidance(sampler, steps, retry, ranking):
    options = {"sampler": sampler, "guide_moves": 1, "ranking": ranking}
    plan = make_plan([-50.0], sampler_steps=steps, retry_steps=retry, retry_guide_scale=0.0, **options)
    found = [
        make_plan([-50.0], sampler_steps=count, guide_scale=scale, **options)
        for count, scale in ((steps, 0.05), (retry, 0.0))
    ]
    best = min(found, key=lambda plan: plan.costs.min())
    np.testing.assert_array_equal(plan.actions, best.actions)
    assert np.isfinite(plan.costs).all()


def test_a_single_candidate_is_asked_for_a_plan_that_costs_the_budget():
    planner = make_planner(cost_scale=20.0, candidates=1)
    planner.search(np.zeros((1, OBSERVATION)), np.array([10.0]), np.array([50.0]), torch.Generator())
    assert {float(condition) for condition in planner._denoiser.conditions} == {0.5}


def test_a_cost_that_is_not_a_number_counts_as_one_that_breaks_every_budget():
    costs = torch.tensor([[torch.nan, 2.0], [torch.nan, torch.nan]])
    assert least_costs(costs).tolist() == [2.0, torch.inf]


def test_the_same_generator_gives_the_same_plans_and_another_gives_others():
    first, again, other = make_plan([10.0]), make_plan([10.0]), make_plan([10.0], seed=1)
    np.testing.assert_array_equal(first.actions, again.actions)
    assert not np.array_equal(first.actions, other.actions)


def test_the_critics_are_told_the_steps_left_but_never_fewer_than_they_were_trained_on():
    made = make_planner(least_steps_left=7)
    made.plan(np.zeros((2, 2)), np.zeros(2), np.array([50.0, 1.0]), torch.Generator())
    left = made._cost_critic.steps_left[-1]
    assert left.tolist() == [50.0] * 32 + [7.0] * 32


@pytest.mark.parametrize(
    ("budget", "share"), [(-np.inf, 0.0), (-5.0, 0.0), (2.0, 0.1), (10.0, 0.5), (np.inf, 1.0)]
)
def test_a_conditioned_denoiser_is_asked_for_no_more_than_the_budget_and_for_nothing_beyond_the_data(
    budget, share
):
    # the data's greatest cost-to-go is 20, so a budget of 20 is the whole range
    made = make_planner(cost_scale=20.0)
    made.plan(np.zeros((1, 2)), np.array([budget]), np.array([50.0]), torch.Generator())
    for condition in made._denoiser.conditions:
        assert condition.shape == (32,)
        assert condition.max() == pytest.approx(share)
        assert condition.min() >= 0.0
    plain = make_planner()
    plain.plan(np.zeros((1, 2)), np.array([budget]), np.array([50.0]), torch.Generator())
    assert set(plain._denoiser.conditions) == {None}


@pytest.mark.parametrize("budgets", [[10.0], [-100.0]])
def test_the_originals_ranking_also_puts_kept_budgets_first_by_the_scores_it_saw(budgets):
    plan = make_plan(budgets, ranking="original", guide_moves=2, sampler="ddpm", sampler_steps=None)
    feasible = plan.feasible[0]
    count = int(feasible.sum())
    assert feasible[:count].all()
    if count:
        assert (np.diff(plan.rewards[0, :count]) <= 0).all()
    else:
        assert plan.costs[0, 0] == plan.costs.min()


def test_planning_leaves_no_gradient_behind():
    made = make_planner(guide_moves=2)
    made.plan(np.zeros((1, 2)), np.zeros(1), np.array([50.0]), torch.Generator())
    assert all(p.grad is None and not p.requires_grad for p in made._denoiser.parameters())


def test_many_environments_are_planned_in_several_passes_of_bounded_size():
    made = make_planner(candidates=4)
    made._max_rows = 8
    seen = []
    made._denoiser.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    plan = made.plan(np.zeros((5, 2)), np.full(5, 9.0), np.full(5, 50.0), torch.Generator().manual_seed(0))
    assert plan.actions.shape[:2] == (5, 4)
    assert max(seen) == 8
    assert sum(seen) == 5 * 5 * 4  # sampler steps x environments x candidates


class Linear(nn.Module):
    """A denoiser with a matrix product, which autocast does in bfloat16."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(HORIZON * (ACTION + OBSERVATION), HORIZON * (ACTION + OBSERVATION))
        self.types = []

    def forward(self, x, t, condition=None):
        out = self.layer(x.flatten(1))
        self.types.append(out.dtype)
        return out.view_as(x)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_plans_are_float32_and_scored_in_float32_whatever_the_precision_of_denoising(precision):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = BudgetGuidedPlanner(
            Linear(),
            Reward(),
            Cost(),
            NoiseSchedule.cosine(10),
            PlannerConfig(
                candidates=16, sampler_steps=3, retry_steps=None, ranking="rescored", precision=precision
            ),
            horizon=HORIZON,
            observation_normalizer=OBSERVATIONS,
            action_normalizer=ACTIONS,
        )
    found = made.search(np.ones((2, 2)), np.full(2, 9.0), np.full(2, 50.0), torch.Generator().manual_seed(0))
    assert set(made._denoiser.types) == {getattr(torch, precision)}
    assert found.trajectories.dtype == found.rewards.dtype == found.costs.dtype == torch.float32
    torch.testing.assert_close(
        found.costs.flatten(), Cost()(found.trajectories.flatten(0, 1), None), atol=1e-5, rtol=0
    )


def test_bfloat16_plans_lie_close_to_float32_plans():
    plans = {}
    for precision in ("float32", "bfloat16"):
        plans[precision] = make_plan([8.0, 12.0], guide_moves=1, precision=precision)
    np.testing.assert_allclose(np.sort(plans["bfloat16"].costs), np.sort(plans["float32"].costs), atol=0.05)
