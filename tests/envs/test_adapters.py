"""Safety-Gymnasium's six values made five, without Safety-Gymnasium."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env

from trebi_gym import BudgetWrapper, CostWrapper, SafetyGymnasiumAdapter
from trebi_gym.errors import EnvironmentContractError
from trebi_gym.rollout import make_envs


def box(low, high, shape, dtype):
    """A box as another Gymnasium would make it: the same attributes, another class."""
    return SimpleNamespace(
        low=np.full(shape, low, dtype), high=np.full(shape, high, dtype), shape=shape, dtype=np.dtype(dtype)
    )


class Point:
    """A stand-in with Safety-Gymnasium's shape: the position is pushed about, and costs beyond 1."""

    def __init__(self, cost=None, values=6):
        self.observation_space = box(-np.inf, np.inf, (2,), "float64")
        self.action_space = box(-1.0, 1.0, (1,), "float32")
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
        self.render_mode = "rgb_array"
        self.closed = False
        self._cost, self._values = cost, values

    def reset(self, *, seed=None, options=None):
        self._generator = np.random.default_rng(seed)
        self._position = self._generator.uniform(-0.1, 0.1)
        self._step = 0
        return self._observation(), {"cost_hazards": 0.0}

    def step(self, action):
        self._position += float(action[0])
        self._step += 1
        cost = np.float64(max(0.0, abs(self._position) - 1.0)) if self._cost is None else self._cost
        found = (
            self._observation(),
            np.float64(self._position),
            cost,
            self._position > 3,
            False,
            {"cost_hazards": cost},
        )
        return found if self._values == 6 else (*found[:2], *found[3:])

    def render(self):
        return np.zeros((4, 5, 3), np.uint8)

    def close(self):
        self.closed = True

    def _observation(self):
        return np.array([self._position, self._step], dtype=np.float64)


def make_point(**kwargs):
    return SafetyGymnasiumAdapter(Point(**kwargs))


@pytest.fixture
def registered():
    gym.register("SafetyPoint-v0", entry_point=make_point, max_episode_steps=5)
    yield "SafetyPoint-v0"
    del gym.registry["SafetyPoint-v0"]


def test_the_third_value_of_six_becomes_the_cost_in_the_info():
    env = make_point()
    observation, info = env.reset(seed=1)
    assert info == {"cost_hazards": 0.0, "cost": 0.0}
    for _ in range(3):
        observation, reward, terminated, truncated, info = env.step(np.array([1.0], np.float32))
    assert reward == pytest.approx(observation[0])
    assert info["cost"] == pytest.approx(observation[0] - 1.0)
    assert isinstance(info["cost"], float)
    assert (terminated, truncated) == (observation[0] > 3, False)


def test_its_spaces_are_gymnasiums_with_the_same_bounds():
    env = make_point()
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (1,), np.float32)


@pytest.mark.filterwarnings("ignore")
def test_stable_baselines_accepts_it():
    check_env(make_point(), skip_render_check=True)


def test_rendering_and_closing_reach_the_environment():
    env = make_point()
    assert env.render_mode == "rgb_array"
    assert env.render().shape == (4, 5, 3)
    env.close()
    assert env.adapted.closed


def test_a_budget_counts_its_costs(registered):
    env = BudgetWrapper(gym.make(registered), budget=3.0, observe=True)
    observation, _ = env.reset(seed=0)
    assert observation["steps_left"] == [5.0]
    total, done = 0.0, False
    while not done:
        observation, _, terminated, truncated, info = env.step(np.array([0.7], np.float32))
        total += info["cost"]
        done = terminated or truncated
    assert info["episode_cost"] == pytest.approx(total)
    assert observation["budget"] == pytest.approx([3.0 - total])
    assert total > 0


def test_many_at_once_report_their_costs(registered):
    envs = make_envs(registered, 2)
    envs.reset(seed=[0, 1])
    for _ in range(3):
        infos = envs.step(np.ones((2, 1), np.float32))[4]
    assert infos["cost"].shape == (2,)
    assert (infos["cost"] > 0).all()


def test_five_values_are_refused_with_what_is_wanted_instead():
    env = make_point(values=5)
    env.reset(seed=0)
    with pytest.raises(
        EnvironmentContractError, match=r"Point returned 5 values; .*use CostWrapper\(env, cost\)"
    ):
        env.step(np.zeros(1, np.float32))


@pytest.mark.parametrize("cost", [np.nan, np.inf, np.array([1.0, 2.0]), "much"])
def test_a_cost_that_is_not_one_finite_number_is_refused(cost):
    env = make_point(cost=cost)
    env.reset(seed=0)
    with pytest.raises(EnvironmentContractError, match="the environment's third value must give"):
        env.step(np.zeros(1, np.float32))


def test_a_dictionary_of_observations_is_refused_with_the_remedy():
    inner = Point()
    inner.observation_space = gym.spaces.Dict(position=gym.spaces.Box(-1, 1, (2,)))
    with pytest.raises(
        EnvironmentContractError, match=r"the observation space must be a Box; .*flatten it first"
    ):
        SafetyGymnasiumAdapter(inner)


def test_what_is_no_environment_is_refused():
    with pytest.raises(EnvironmentContractError, match="list is no environment: it lacks reset, step"):
        SafetyGymnasiumAdapter([])


def test_reset_of_the_old_kind_is_refused():
    inner = Point()
    inner.reset = lambda seed=None, options=None: np.zeros(2)
    with pytest.raises(
        EnvironmentContractError, match=r"reset must return \(observation, info\); Point returned ndarray"
    ):
        SafetyGymnasiumAdapter(inner).reset()


def test_a_cost_function_may_take_the_place_of_its_cost():
    env = CostWrapper(make_point(), lambda before, action, after, info: abs(after[0]))
    env.reset(seed=0)
    observation, *_, info = env.step(np.array([0.5], np.float32))
    assert info["cost"] == pytest.approx(abs(observation[0]))
