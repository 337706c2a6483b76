"""The agent: what predict takes and gives, and what carries over from one step to the next."""

import dataclasses
import math
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from changed import changed
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from toy_envs import register_toy_envs

from trebi_gym import BudgetWrapper
from trebi_gym.agents import TREBIAgent, TREBIConfig
from trebi_gym.agents.models import EVERY_PART
from trebi_gym.agents.planning.budgets import remaining_rule
from trebi_gym.budget import Budget
from trebi_gym.errors import (
    BudgetError,
    ConfigError,
    DatasetError,
    EnvironmentContractError,
    NotLearnedError,
    ObservationError,
)

register_toy_envs()
DISCOUNT = TREBIConfig().cost_discount
ONE = np.array([-1.0, 0.0, 0.1])
MANY = np.array([[-1.0, 0.0, 0.1], [1.0, 0.0, 0.0], [0.0, 1.0, -2.0]])


@pytest.fixture
def agent(tiny_agent, tmp_path):
    """A copy of the learned agent that a test may change."""
    return TREBIAgent.load(tiny_agent.save(tmp_path / "agent"), device="cpu")


@pytest.mark.parametrize(
    ("observation", "shape"),
    [(ONE, (1,)), (ONE.tolist(), (1,)), (MANY, (3, 1)), (MANY[:1], (1, 1)), (torch.tensor(MANY), (3, 1))],
)
@pytest.mark.parametrize("budget", [20, 20.0, np.float32(20), np.array(20.0), [20.0], Budget(20.0)])
def test_actions_have_the_shape_of_the_request_and_lie_in_the_action_space(
    tiny_agent, observation, shape, budget
):
    action, _ = tiny_agent.predict(observation, budget=budget)
    assert action.shape == shape
    assert action.dtype == np.float32
    space = tiny_agent.action_space
    assert all(space.contains(row) for row in action.reshape(-1, 1))


@pytest.mark.parametrize("budget", [np.array([1.0, 20.0, 60.0]), [Budget(1.0), Budget(20.0), Budget(60.0)]])
def test_a_budget_for_each_environment_plans_as_if_each_were_alone(agent, budget):
    agent.set_planner(candidates=4)
    _, state = agent.predict(MANY, budget=budget, deterministic=True)
    expected = remaining_rule(np.array([1.0, 20.0, 60.0]), np.full(3, 200.0), DISCOUNT)
    margin = 1.0 - agent.config.planner.margin
    np.testing.assert_allclose(state.budgets, margin * expected, rtol=1e-5)


def test_actions_outside_the_action_space_are_clipped_into_it(shipped_dataset, tiny_config):
    small = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)
    agent = TREBIAgent((gym.spaces.Box(-np.inf, np.inf, (3,)), small), tiny_config, device="cpu", seed=0)
    agent.learn(shipped_dataset, 6, progress_bar=False)
    agent = changed(agent, action_space=gym.spaces.Box(0.25, 0.3, (1,), np.float32))
    actions, _ = agent.predict(np.repeat(MANY, 5, axis=0), budget=20.0)
    assert ((actions >= np.float32(0.25)) & (actions <= np.float32(0.3))).all()


@pytest.mark.parametrize("budget", [-1e6, -math.inf])
def test_an_overspent_budget_takes_the_plan_of_least_cost(tiny_agent, budget):
    tiny_agent.set_random_seed(8)
    action, state = tiny_agent.predict(ONE, budget=budget)
    tiny_agent.set_random_seed(8)
    plan = tiny_agent.plan(ONE, budget)
    assert not plan.feasible.any()
    assert not state.feasible.any()
    assert state.costs[0] == plan.costs[0, 0] == plan.costs.min()
    np.testing.assert_array_equal(action, np.clip(plan.actions[0, 0, 0], -2.0, 2.0))


@pytest.mark.parametrize("budget", [0.0, -0.5, math.inf])
def test_a_budget_of_nothing_and_one_without_limit_are_accepted(tiny_agent, budget):
    action, state = tiny_agent.predict(ONE, budget=budget)
    assert np.isfinite(action).all()
    assert np.sign(state.budgets[0]) == np.sign(budget)


@pytest.mark.parametrize("budget", [math.nan, "60", None, [1.0, 2.0], True])
def test_a_budget_that_is_none_is_refused(tiny_agent, budget):
    with pytest.raises(BudgetError):
        tiny_agent.predict(MANY, budget=budget)
    with pytest.raises(BudgetError):
        tiny_agent.plan(MANY, budget)


def test_a_missing_budget_names_both_ways_to_give_one(tiny_agent):
    with pytest.raises(BudgetError, match=r"predict\(observation, budget=b\), or .*observe=True"):
        tiny_agent.predict(ONE)


@pytest.mark.parametrize("observation", [np.zeros(4), np.zeros((2, 4)), np.array([0, np.nan, 0]), "words"])
def test_an_observation_that_does_not_fit_is_refused(tiny_agent, observation):
    with pytest.raises(ObservationError):
        tiny_agent.predict(observation, budget=5.0)


@pytest.mark.parametrize("part", ["diffusion", "reward_critic", "cost_critic"])
def test_a_model_that_is_missing_names_the_method_and_the_script_that_make_it(agent, part):
    agent = changed(agent, models={name: model for name, model in agent.models.items() if name != part})
    with pytest.raises(NotLearnedError, match=rf"{part}: learn_{part}\(\) or scripts/train"):
        agent.predict(ONE, budget=5.0)


def test_an_agent_that_has_learned_nothing_names_learn(tiny_config):
    agent = TREBIAgent(config=tiny_config, device="cpu")
    with pytest.raises(NotLearnedError, match=r"call learn\(dataset\)"):
        agent.predict(ONE, budget=5.0)
    assert "learned: nothing" in repr(agent)


def test_a_deterministic_prediction_is_repeatable_and_another_is_not(tiny_agent):
    def many(deterministic):
        return [tiny_agent.predict(MANY, budget=20.0, deterministic=deterministic)[0] for _ in range(3)]

    first, second, third = many(True)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)
    first, second, _ = many(False)
    assert not np.array_equal(first, second)


def test_the_same_seed_gives_the_same_sequence_of_actions(tiny_agent):
    def sequence(seed):
        tiny_agent.set_random_seed(seed)
        return np.stack([tiny_agent.predict(MANY, budget=20.0)[0] for _ in range(3)])

    np.testing.assert_array_equal(sequence(5), sequence(5))
    assert not np.array_equal(sequence(5), sequence(6))


def test_predicting_does_not_touch_the_global_random_state_nor_the_state_that_was_passed(tiny_agent):
    before = torch.random.get_rng_state()
    _, state = tiny_agent.predict(MANY, budget=20.0)
    kept = dataclasses.replace(
        state, **{k: getattr(state, k).copy() for k in ("step", "position", "actions")}
    )
    tiny_agent.predict(MANY, state, budget=20.0)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name in ("step", "position", "actions"):
        np.testing.assert_array_equal(getattr(state, name), getattr(kept, name))


def test_the_first_action_is_that_of_the_best_plan(tiny_agent):
    tiny_agent.set_random_seed(3)
    action, state = tiny_agent.predict(MANY, budget=[5.0, 20.0, 60.0])
    tiny_agent.set_random_seed(3)
    plan = tiny_agent.plan(MANY, [5.0, 20.0, 60.0])
    np.testing.assert_array_equal(action, np.clip(plan.actions[:, 0, 0], -2.0, 2.0))
    np.testing.assert_array_equal(state.costs, plan.costs[:, 0])
    np.testing.assert_array_equal(state.least, plan.costs.min(axis=1))
    np.testing.assert_array_equal(state.costs <= state.budgets, plan.feasible[:, 0])


def test_a_control_interval_executes_a_plan_before_the_next_is_made(agent):
    agent.set_planner(control_interval=3)
    agent.set_random_seed(1)
    plan = agent.plan(MANY, 20.0)
    agent.set_random_seed(1)
    state, actions = None, []
    for _ in range(4):
        action, state = agent.predict(MANY, state, budget=20.0)
        actions.append(action)
    for step in range(3):
        np.testing.assert_array_equal(actions[step], np.clip(plan.actions[:, 0, step], -2.0, 2.0))
    assert state.position.tolist() == [1, 1, 1]


def test_environments_that_were_reset_get_a_new_plan_while_others_go_on_with_theirs(agent):
    agent.set_planner(control_interval=4)
    _, state = agent.predict(MANY, budget=20.0)
    planned = state.actions.copy()
    action, state = agent.predict(MANY, state, np.array([False, True, False]), budget=20.0)
    assert state.position.tolist() == [2, 1, 2]
    assert state.step.tolist() == [2, 1, 2]
    np.testing.assert_array_equal(action[[0, 2]], np.clip(planned[[0, 2], 1], -2.0, 2.0))
    assert not np.array_equal(state.actions[1], planned[1])


def test_a_reset_is_also_seen_where_the_control_interval_has_just_been_changed(agent):
    _, state = agent.predict(MANY, budget=20.0)
    agent.set_planner(control_interval=2)
    _, state = agent.predict(MANY, state, np.array([True, False, True]), budget=20.0)
    assert state.step.tolist() == [1, 2, 1]


def test_a_state_of_another_number_of_environments_is_refused(tiny_agent):
    _, state = tiny_agent.predict(MANY, budget=20.0)
    with pytest.raises(ObservationError, match="state belongs to 3 environments, but 1 observations"):
        tiny_agent.predict(ONE, state, budget=20.0)


def threshold(agent, observation, budget=None, state=None):
    _, state = agent.predict(observation, state, budget=budget)
    return state.budgets[0] / (1.0 - agent.config.planner.margin)


def rule(remaining, steps_left):
    return pytest.approx(
        remaining_rule(np.array([remaining]), np.array([float(steps_left)]), DISCOUNT)[0], rel=1e-5
    )


def test_the_steps_left_come_from_the_observation_then_the_budget_then_the_state_then_a_whole_episode(
    tiny_agent,
):
    late = Budget(20.0, step=150)
    _, state = tiny_agent.predict(ONE, budget=20.0)
    observed = {"observation": ONE, "budget": np.array([20.0]), "steps_left": np.array([7.0])}
    assert threshold(tiny_agent, ONE, 20.0) == rule(20.0, 200)
    assert threshold(tiny_agent, ONE, 20.0, state) == rule(20.0, 199)
    assert threshold(tiny_agent, ONE, late, state) == rule(20.0, 50)
    assert threshold(tiny_agent, observed, None, state) == rule(20.0, 7)
    assert threshold(tiny_agent, observed, late, state) == rule(20.0, 7)


def test_beyond_the_episodes_end_one_step_is_taken_to_be_left(tiny_agent):
    assert threshold(tiny_agent, ONE, Budget(20.0, step=500)) == rule(20.0, 1)


def test_the_state_counts_the_steps_of_an_episode(tiny_agent):
    state = None
    for step in range(1, 4):
        _, state = tiny_agent.predict(MANY, state, budget=20.0)
        assert state.step.tolist() == [step] * 3


def test_a_budget_of_the_critics_discount_is_passed_through(tiny_agent):
    budget = Budget(16.7, discount=DISCOUNT).charge(2.0)
    assert threshold(tiny_agent, ONE, budget) == pytest.approx((16.7 - 2.0) / DISCOUNT, rel=1e-5)


def test_the_constant_rule_uses_the_published_factor_the_configured_one_or_the_datas_own(
    agent, shipped_dataset, tiny_config
):
    agent.set_planner(budget_rule="constant", ranking="rescored")
    assert threshold(agent, ONE, 60.0) == pytest.approx(60 * 0.336, rel=1e-5)

    def learned(config, dataset):
        made = TREBIAgent(config=config, device="cpu", seed=0).learn(dataset, 4, progress_bar=False)
        return made.set_planner(budget_rule="constant", ranking="rescored")

    configured = learned(tiny_config.replace(planner={"budget_factor": 0.5}), shipped_dataset)
    assert threshold(configured, ONE, 60.0) == pytest.approx(30.0, rel=1e-5)
    part = shipped_dataset.select(range(20))
    unnamed = dataclasses.replace(part, metadata={})
    discounted = (part.costs.reshape(20, 200).astype(float) * DISCOUNT ** np.arange(200)).sum()
    expected = 60.0 * discounted / part.costs.sum(dtype=float)
    assert threshold(learned(tiny_config, unnamed), ONE, 60.0) == pytest.approx(expected, rel=1e-4)


def test_stable_baselines_evaluates_the_agent_unmodified(tiny_agent):
    env = BudgetWrapper(gym.make("ShortPendulum-v0"), 20.0, observe=True)
    mean, deviation = evaluate_policy(tiny_agent, env, n_eval_episodes=2, warn=False)
    assert 0 < mean < 6
    assert deviation >= 0
    returns, lengths = evaluate_policy(
        tiny_agent,
        make_vec_env(
            lambda: BudgetWrapper(gym.make("ShortPendulum-v0"), 20.0, observe=True), n_envs=2, seed=0
        ),
        n_eval_episodes=3,
        return_episode_rewards=True,
    )
    assert lengths == [6, 6, 6]
    assert len(returns) == 3


def test_a_closed_loop_with_an_observed_budget_is_the_same_as_with_a_passed_one(agent):
    def run(observe):
        agent.set_random_seed(2)
        env = BudgetWrapper(gym.make("ShortPendulum-v0"), 3.0, observe=observe, episode_length=200)
        observation, info = env.reset(seed=0)
        state, actions, done = None, [], False
        while not done:
            budget = None if observe else info["budget"]
            action, state = agent.predict(observation, state, budget=budget)
            observation, _, terminated, truncated, info = env.step(action)
            done = terminated or truncated
            actions.append(float(action[0]))
        return actions

    assert run(True) == run(False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: gym.make("SafePendulum-v0"),
        lambda: BudgetWrapper(gym.make("SafePendulum-v0"), 20.0, observe=True),
        lambda: gym.make_vec("SafePendulum-v0", 2, vectorization_mode="sync"),
        lambda: (gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-2, 2, (1,))),
    ],
)
def test_spaces_come_from_an_environment_a_vector_environment_or_a_pair(make):
    agent = TREBIAgent(make(), device="cpu")
    assert agent.observation_space.shape == (3,)
    assert agent.action_space.shape == (1,)


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        (
            (gym.spaces.Discrete(3), gym.spaces.Box(-1, 1, (1,))),
            "observation space must be a Box of one dimension",
        ),
        ((gym.spaces.Box(0, 1, (2, 2)), gym.spaces.Box(-1, 1, (1,))), "FlattenObservation"),
        ((gym.spaces.Box(0, 1, (2,)), gym.spaces.Discrete(3)), "action space must be a Box of one dimension"),
        ((gym.spaces.Box(0, 1, (2,)), gym.spaces.Box(0, 1, (2, 2))), "action space must be a Box"),
        ("SafePendulum-v0", "observation space must be a Box"),
    ],
)
def test_spaces_that_cannot_be_planned_in_are_refused(spaces, message):
    with pytest.raises(EnvironmentContractError, match=message):
        TREBIAgent(spaces, device="cpu")


def test_changing_how_decisions_are_made_checks_the_change_and_needs_no_learning(agent):
    agent.predict(ONE, budget=5.0)
    agent.set_planner(candidates=3)
    assert agent.plan(ONE, 5.0).actions.shape[1] == 3
    with pytest.raises(ConfigError, match="candidates must be at least 1"):
        agent.set_planner(candidates=0)
    with pytest.raises(ConfigError, match="no field candidate"):
        agent.set_planner(candidate=3)
    assert agent.config.planner.candidates == 3


def test_without_an_environment_the_spaces_are_those_that_the_data_set_names(tiny_agent, shipped_dataset):
    assert tiny_agent.action_space == gym.spaces.Box(-2.0, 2.0, (1,), np.float32)
    assert tiny_agent.learned_from["env_id"] == "SafePendulum-v0"
    assert "diffusion, reward_critic, cost_critic" in repr(tiny_agent)


def test_data_of_an_unknown_environment_bound_the_actions_by_their_own(shipped_dataset, tiny_config):
    part = shipped_dataset.select(range(3))
    unnamed = dataclasses.replace(part, metadata={})
    agent = TREBIAgent(config=tiny_config, device="cpu", seed=0).learn(unnamed, 4, progress_bar=False)
    assert agent.action_space.low.tolist() == part.actions.min(axis=0).tolist()
    assert agent.action_space.high.tolist() == part.actions.max(axis=0).tolist()


def test_an_observation_too_far_from_the_data_is_refused_instead_of_acted_on(tiny_agent):
    with pytest.raises(ObservationError, match="not finite numbers"):
        tiny_agent.predict(np.full(3, 1e38), budget=1.0)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True, "0"])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(ConfigError, match="seed must be a whole number"):
        TREBIAgent(seed=seed)


def test_a_device_that_is_not_there_is_refused_and_not_replaced():
    with pytest.raises(ConfigError, match="there is no device 'warp'"):
        TREBIAgent(device="warp")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch finds no GPU here"):
            TREBIAgent(device="cuda")


def test_a_state_of_something_else_is_refused(tiny_agent):
    with pytest.raises(ObservationError, match="state must be what the last predict returned"):
        tiny_agent.predict(np.zeros(3), state=(1, 2), budget=1.0)


def test_a_loss_that_is_no_longer_finite_ends_learning_with_a_reason(shipped_dataset, tiny_config):
    wild = tiny_config.replace(denoiser_training={"learning_rate": 1e30, "steps": 40})
    agent = TREBIAgent(config=wild, device="cpu", seed=0)
    with pytest.raises(DatasetError, match=r"its loss is (nan|inf)"):
        agent.learn(shipped_dataset, progress_bar=False, log_interval=5)


def decide_at(agent, step, **options):
    return agent.predict(ONE, budget=Budget(30.0, step=step), **options)


def test_a_step_beyond_the_learned_episodes_is_warned_of_once(agent):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decide_at(agent, 199)
    message = r"learned from episodes of 200 steps, but step 200 .* is planned like the last one: .*learn from longer ones"
    with pytest.warns(UserWarning, match=message):
        decide_at(agent, 200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decide_at(agent, 201)


def test_a_step_beyond_the_learned_episodes_is_also_found_by_the_state_and_by_the_observation(agent):
    _, state = decide_at(agent, 198)
    state.step[:] = 199
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, state = agent.predict(ONE, state, budget=3.0)
    with pytest.warns(UserWarning, match="step 200 "):
        agent.predict(ONE, state, budget=3.0)
    agent = changed(agent)
    told = {"observation": ONE, "budget": np.ones(1), "steps_left": np.array([200.0])}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.predict(told)
        agent.plan(ONE, Budget(30.0, step=199))
    with pytest.warns(UserWarning, match="an observation tells that 400 steps are left"):
        agent.predict(told | {"steps_left": np.array([400.0])})
    agent = changed(agent)
    with pytest.warns(UserWarning, match="step 250 "):
        agent.plan(ONE, Budget(30.0, step=250))


@pytest.mark.parametrize(
    "budget", [1e39, 1e300, 1.7e308, Budget(1.7e308), Budget(1e300, 0.9, step=100), -1e300]
)
@pytest.mark.parametrize("rule", ["remaining", "constant"])
def test_a_huge_budget_is_planned_for_like_none_without_a_word(agent, budget, rule):
    if rule == "constant":
        agent.set_planner(ranking="rescored", budget_rule="constant")
        if isinstance(budget, Budget) and budget.discount != 1:
            return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        action, state = agent.predict(ONE, budget=budget, deterministic=True)
        agent.plan(ONE, budget)
    whole = budget.remaining if isinstance(budget, Budget) else budget
    if whole > 0:
        limit = Budget(np.inf, budget.discount, step=budget.step) if isinstance(budget, Budget) else np.inf
        assert (state.limits > 1e38).all()
        np.testing.assert_array_equal(action, agent.predict(ONE, budget=limit, deterministic=True)[0])


@pytest.mark.parametrize("part", EVERY_PART)
@pytest.mark.parametrize("value", [1e38, -1e38, 3e38])
def test_predictions_that_are_no_numbers_do_not_rank_plans(agent, part, value):
    with torch.no_grad():
        for weight in agent.models[part].parameters():
            weight.fill_(value)
    for call in (agent.predict, agent.plan):
        try:
            found = call(ONE, budget=5.0)
        except ObservationError:
            continue
        kept = found[1] if isinstance(found, tuple) else found
        assert np.isfinite(kept.rewards).all()
        assert np.isfinite(kept.costs).all()


def test_a_reward_that_is_infinite_is_refused_with_what_it_may_be(agent):
    with torch.no_grad():
        agent.models["outcome_critic"].reward_leave.bias.fill_(torch.inf)
    with pytest.raises(
        ObservationError, match=r"predicted reward of the best plan is inf .*weights are damaged"
    ):
        agent.predict(ONE, budget=5.0)
    with pytest.raises(ObservationError, match=r"predicted reward of the best plan is inf"):
        agent.plan(ONE, budget=5.0)
