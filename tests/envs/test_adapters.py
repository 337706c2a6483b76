"""Safety-Gymnasium's six values made five, without Safety-Gymnasium, and the page that shows how it is used."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as check_with_gymnasium
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
        self._generator = np.random.default_rng()
        self._cost, self._values = cost, values

    def reset(self, *, seed=None, options=None):
        if seed is not None:
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


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Dict(position=gym.spaces.Box(-1, 1, (2,))),
        gym.spaces.Discrete(3),
        gym.spaces.MultiDiscrete([2, 3]),
        SimpleNamespace(low=[0.0], high=[1.0]),
        None,
    ],
)
@pytest.mark.parametrize("name", ["observation", "action"])
def test_a_space_that_is_no_box_is_refused_with_the_remedy(name, space):
    inner = Point()
    setattr(inner, f"{name}_space", space)
    with pytest.raises(
        EnvironmentContractError, match=rf"the {name} space must be a Box; .*which lacks .*flatten it first"
    ):
        SafetyGymnasiumAdapter(inner)


def test_bounds_may_be_lists_or_one_number_and_the_type_a_name():
    inner = Point()
    inner.observation_space = SimpleNamespace(low=-np.inf, high=np.inf, shape=[2], dtype="float64")
    inner.action_space = SimpleNamespace(low=[-1.0], high=[0.1], shape=(1,), dtype="float32")
    env = SafetyGymnasiumAdapter(inner)
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    assert env.action_space == gym.spaces.Box(np.float32([-1.0]), np.float32([0.1]), dtype=np.float32)


@pytest.mark.parametrize(
    "told", [{"max_episode_steps": 7}, {"spec": SimpleNamespace(max_episode_steps=7)}], ids=["itself", "spec"]
)
def test_the_steps_left_count_down_from_the_length_that_the_environment_tells(told):
    inner = Point()
    for name, value in told.items():
        setattr(inner, name, value)
    env = BudgetWrapper(SafetyGymnasiumAdapter(inner), budget=3.0, observe=True)
    assert env.reset(seed=0)[0]["steps_left"] == [7.0]
    assert env.step(np.zeros(1, np.float32))[0]["steps_left"] == [6.0]


def test_the_length_that_was_registered_goes_before_the_environments_own(registered):
    env = gym.make(registered)
    env.unwrapped.max_episode_steps = 7
    assert BudgetWrapper(env, budget=3.0, observe=True).reset()[0]["steps_left"] == [5.0]


def test_where_nothing_tells_the_length_it_is_asked_for():
    with pytest.raises(EnvironmentContractError, match=r"no time limit: pass episode_length"):
        BudgetWrapper(make_point(), budget=3.0, observe=True)
    env = BudgetWrapper(make_point(), budget=3.0, observe=True, episode_length=9)
    assert env.reset()[0]["steps_left"] == [9.0]


@pytest.mark.filterwarnings("ignore")
def test_gymnasium_accepts_it(registered):
    check_with_gymnasium(make_point(), skip_render_check=True)
    check_with_gymnasium(gym.make(registered).unwrapped, skip_render_check=True)


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


# the page docs/howto-environments.md

PAGE = Path(__file__).parents[2] / "docs" / "howto-environments.md"

STAND_IN = """
import numpy as np
from types import SimpleNamespace

print("a library that is talkative when imported")
bounds = lambda size, most: SimpleNamespace(
    low=np.full(size, -most), high=np.full(size, most), shape=(size,), dtype=np.dtype("float64")
)


class Point:
    observation_space, action_space = bounds(3, np.inf), bounds(2, 1.0)
    spec = SimpleNamespace(max_episode_steps=1000)

    def reset(self, *, seed=None, options=None):
        self.position = np.random.default_rng(seed).normal(size=3)
        return self.position, {}

    def step(self, action):
        self.position = self.position + np.append(action, 0.0)
        cost = float(np.abs(self.position).sum())
        return self.position, np.float64(1.5), cost, False, False, {"cost_sum": cost}


def make(name):
    assert name == "SafetyPointGoal1-v0"
    return Point()
"""

USE = """
import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.env_checker import check_env
from trebi_gym.datasets import Episode, EpisodeDataset, save
from trebi_gym.rollout import make_envs

for name in ("SafeCar-v0", "SafeNamedCar-v0", "SafeHopperV4-v0", "SafetyPoint-v0"):
    envs = make_envs(f"my_tasks:{name}", 2)
    before, infos = envs.reset(seed=[0, 1])
    assert list(infos["cost"]) == [0.0, 0.0], name
    after, _, _, _, infos = envs.step(envs.action_space.sample())
    expected = {
        "SafeCar-v0": np.abs(after[:, 1]),
        "SafeNamedCar-v0": np.abs(after[:, 1]),
        "SafeHopperV4-v0": np.abs(infos["x_velocity"]) if "x_velocity" in infos else None,
        "SafetyPoint-v0": np.abs(after).sum(axis=1),
    }[name]
    np.testing.assert_allclose(infos["cost"], expected, rtol=1e-6, err_msg=name)
    assert (expected > 0).all(), name
    envs.close()

assert type(gym.make("SafeHopperV4-v0").unwrapped).__name__ == "HopperV4"
rebuilt = gym.make(EnvSpec.from_json(gym.make("SafeNamedCar-v0").spec.to_json()))
rebuilt.reset(seed=0)
assert rebuilt.step(np.ones(1, np.float32))[4]["cost"] > 0
with gym.make("SafetyPoint-v0") as env:
    check_env(env, warn=False)

speeds = np.array([[0.0, 0.0], [0.1, 0.02], [0.2, -0.03]])
zeros = np.zeros(2)
episode = Episode(speeds, np.zeros((2, 1)), zeros, zeros, terminated=False, truncated=True)
save(EpisodeDataset.from_episodes([episode], metadata={}), "car.hdf5")
exec(open("load.py").read())
np.testing.assert_allclose(log.costs, [0.02, 0.03], rtol=1e-6)
print("done")
"""


def files_of_the_page():
    """The page's Python blocks joined by the file that each one's first line names."""
    files = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        named = re.match(r"# (\w+\.py)(, continued)?\n", block)
        name = named[1] if named else "load.py"
        assert (name in files) == bool(named and named[2]), f"{name} begins once, and is continued then"
        files[name] = files.get(name, "") + block
    return files


def test_the_page_does_what_it_says(tmp_path):
    files = files_of_the_page()
    assert set(files) == {"my_tasks.py", "load.py", "safety_server.py"}
    interpreter = tmp_path / "safety" / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    interpreter.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    interpreter.chmod(0o755)
    for name, text in {**files, "safety_gymnasium.py": STAND_IN, "use.py": USE}.items():
        (tmp_path / name).write_text(text)
    result = subprocess.run(
        [sys.executable, "use.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "done\n"


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ((np.zeros(2), 0.0, 0.0, False, False, None), "the info of step must be a dict; got None"),
        ((np.zeros(2), None, 0.0, False, False, {}), "the reward, must give one number"),
        ((np.zeros(2), np.nan, 0.0, False, False, {}), "the reward, must give a finite number"),
        ((np.zeros(3), 0.0, 0.0, False, False, {}), r"the space's shape \(2,\); Point returned \(3,\)"),
    ],
)
def test_a_step_that_breaks_the_contract_is_refused(spoilt, message):
    inner = Point()
    env = SafetyGymnasiumAdapter(inner)
    env.reset(seed=0)
    inner.step = lambda action: spoilt
    with pytest.raises(EnvironmentContractError, match=message):
        env.step(np.zeros(1, np.float32))


def test_a_reset_without_an_info_is_refused():
    inner = Point()
    inner.reset = lambda seed=None, options=None: (np.zeros(2), None)
    with pytest.raises(EnvironmentContractError, match="the info of reset must be a dict; got None"):
        SafetyGymnasiumAdapter(inner).reset()
