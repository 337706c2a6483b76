"""The spaces of an agent: which are taken, what fits into them, and which logged actions belong to them."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_envs import register_toy_envs

from trebi_gym import BudgetWrapper
from trebi_gym.agents import TREBIAgent
from trebi_gym.agents.baselines.cloning import BudgetCloning
from trebi_gym.agents.spaces import agent_spaces, check_dataset, fit_actions
from trebi_gym.datasets import EpisodeDataset
from trebi_gym.errors import DatasetError, EnvironmentContractError, ObservationError

register_toy_envs()
SEEN = Box(-np.inf, np.inf, (2,), np.float64)
FLOATS = [np.float16, np.float32, np.float64]


def numbers(dtype):
    width = np.dtype(dtype).itemsize * 8
    most = float(np.finfo(dtype).max)
    return st.floats(-most, most, width=width) | st.sampled_from([-np.inf, np.inf, 0.0, most, -most])


@st.composite
def boxes(draw):
    dtype = draw(st.sampled_from(FLOATS))
    size = draw(st.integers(1, 3))
    sides = [sorted(draw(st.tuples(numbers(dtype), numbers(dtype)))) for _ in range(size)]
    low = np.array([-np.inf if side[0] == np.inf else side[0] for side in sides], dtype)
    high = np.array([np.inf if side[1] == -np.inf else side[1] for side in sides], dtype)
    return Box(low, high, dtype=dtype)


@settings(max_examples=500, deadline=None)
@given(space=boxes(), data=st.data())
def test_a_fitted_action_is_in_its_space_whatever_the_bounds_and_the_dtype(space, data):
    planned = data.draw(st.sampled_from([np.float32, np.float64]))
    near = [side for side in (*space.low.tolist(), *space.high.tolist()) if np.isfinite(side)]
    values = st.floats(-3e38, 3e38) | st.sampled_from([0.0, *near])
    with np.errstate(over="ignore"):
        actions = np.array([data.draw(values) for _ in space.low], dtype=planned)
    actions = np.nan_to_num(actions)
    fitted = fit_actions(actions, space)
    assert fitted.dtype == space.dtype
    assert space.contains(fitted)
    assert np.isfinite(fitted).all()
    inside = (actions >= space.low) & (actions <= space.high)
    with np.errstate(over="ignore"):
        exact = inside & (actions.astype(space.dtype) == actions)
    np.testing.assert_array_equal(fitted[exact], actions[exact])


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (-0.1, 0.1, np.float64),
        (-0.3, 0.7, np.float32),
        (-0.3, 0.7, np.float16),
        (-1000.1, 0.0, np.float64),
        (0.1, np.inf, np.float64),
    ],
)
def test_what_agents_do_is_contained_in_their_action_space(small, tiny_config, tmp_path, low, high, dtype):
    space = Box(np.full(1, low, dtype), np.full(1, high, dtype), dtype=dtype)
    data = small(np.clip(np.linspace(-2e3, 2e3, 20), space.low, np.minimum(space.high, 5)))
    agent = TREBIAgent((SEEN, space), tiny_config, device="cpu", seed=0).learn(data, 6, progress_bar=False)
    again = TREBIAgent.load(agent.save(tmp_path / "a"), device="cpu")
    assert (again.observation_space, again.action_space) == (SEEN, space)
    for acting in (agent, again):
        actions, _ = acting.predict(np.zeros((30, 2)) + np.arange(30)[:, None], budget=1.0)
        assert all(space.contains(action) for action in actions)


def test_a_clone_acts_in_the_space_of_its_environment(small):
    gym.register("Narrow-v0", entry_point=Narrow, max_episode_steps=10)
    try:
        data = small(np.tile([-0.1, 0.1], 10), env_id="Narrow-v0")
        clone = BudgetCloning(100.0).learn(data)
        actions, _ = clone.predict(np.zeros((30, 2)) + np.arange(30)[:, None])
        assert all(Narrow.action_space.contains(action) for action in actions)
    finally:
        gym.registry.pop("Narrow-v0")


class Narrow(gym.Env):
    observation_space = SEEN
    action_space = Box(-0.1, 0.1, (1,), np.float64)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int8])
def test_actions_that_are_whole_numbers_are_refused(dtype):
    with pytest.raises(EnvironmentContractError, match="actions must be floating-point numbers"):
        TREBIAgent((SEEN, Box(0, 3, (1,), dtype)))


GOALS = gym.spaces.Dict(observation=SEEN, achieved_goal=SEEN, desired_goal=SEEN)


def test_a_goal_is_not_left_out_without_a_word(tiny_agent):
    action = Box(-1, 1, (1,))
    with pytest.raises(EnvironmentContractError, match=r"a goal too, with .*FlattenObservation"):
        TREBIAgent((GOALS, action))
    for keys in (
        ("observation",),
        ("observation", "budget"),
        ("observation", "budget", "steps_left", "goal"),
    ):
        with pytest.raises(EnvironmentContractError, match="FlattenObservation"):
            agent_spaces((gym.spaces.Dict(dict.fromkeys(keys, SEEN)), action))
    observation = {"observation": np.zeros(3), "desired_goal": np.ones(3), "budget": np.ones(1)}
    with pytest.raises(ObservationError, match="also has desired_goal, which nothing was learned from"):
        tiny_agent.predict(observation)


def test_the_observations_of_a_budget_wrapper_are_taken():
    with gym.make("Ledger-v0") as env:
        plain = agent_spaces(env)
        assert agent_spaces(BudgetWrapper(env, 5.0, observe=True)) == plain


@pytest.mark.parametrize(
    ("low", "high", "taken", "refused"),
    [
        (-1000.1, 0.0, [-1000.1, 0.0, -1000.105], [-1000.2, 0.1, 1e-2]),
        (0.0, np.inf, [0.0, 1e30], [-5.0, -1e-3]),
        (-np.inf, 2.0, [-1e30, 2.00001], [2.001]),
        (-1.0, 1.0, [-1.000005, 1.000005], [-1.0001, 1.0001]),
        (0.0, 1.0, [-1e-7], [-1e-3]),
        (-1e-6, 1e-6, [1e-6], [2e-6, -2e-6]),
        (1e6, 1e6 + 1, [1e6 - 5], [1e6 - 50]),
    ],
)
def test_logged_actions_may_be_rounded_on_each_side_by_its_own_magnitude(small, low, high, taken, refused):
    space = Box(np.array([low]), np.array([high]), dtype=np.float64)
    inside = np.clip(0.0, low, high)
    for dtype in (np.float32, np.float64):
        for value in taken:
            check_dataset(small(np.array([inside] * 19 + [value], dtype)), SEEN, space)
        for value in refused:
            with pytest.raises(DatasetError, match=r"actions\[19, 0\] is .*, outside the action space"):
                check_dataset(small(np.array([inside] * 19 + [value], dtype)), SEEN, space)


@pytest.fixture
def small():
    """Two episodes of ten steps with two observed numbers, and these twenty actions."""

    def make(actions, env_id=None):
        steps, rng = np.arange(20) % 10, np.random.default_rng(0)
        return EpisodeDataset(
            observations=rng.normal(size=(22, 2)),
            actions=np.asarray(actions).reshape(20, 1),
            rewards=rng.normal(size=20),
            costs=(steps % 3 == 0).astype(float),
            lengths=np.array([10, 10]),
            terminated=np.zeros(2, bool),
            truncated=np.ones(2, bool),
            metadata={} if env_id is None else {"env_id": env_id},
        )

    return make
