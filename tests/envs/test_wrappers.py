"""CostWrapper and BudgetWrapper, on an environment small enough to count by hand."""

import json
import math
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env as check_gymnasium_env
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

import trebi_gym  # noqa: F401  (registers the environments)
from trebi_gym.costs import pendulum_cost
from trebi_gym.envs.wrappers import BudgetWrapper, CostWrapper
from trebi_gym.errors import BudgetError, ConfigError, EnvironmentContractError

ACTION = np.array([0.5], np.float32)


class Counter(gym.Env):
    """Observes the number of steps taken, in the one array that it reuses; ends after ``length`` steps."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, length=4, info=None):
        self.length, self.info = length, info or {}
        self.buffer = np.zeros(1)
        self.options = "never reset"

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.options = options
        self.buffer[:] = 0.0
        return self.buffer, dict(self.info)

    def step(self, action):
        self.buffer += 1.0
        return self.buffer, 1.0, bool(self.buffer[0] >= self.length), False, dict(self.info)


def one_a_step(observation, action, next_observation, info):
    return 1.0


def counter(budget, *, cost=one_a_step, length=4, **kwargs):
    return BudgetWrapper(CostWrapper(Counter(length), cost), budget, **kwargs)


def run(env, *, options=None):
    """Run an episode; return the infos from reset on."""
    infos = [env.reset(options=options)[1]]
    done = False
    while not done:
        _, _, terminated, truncated, info = env.step(ACTION)
        infos.append(info)
        done = terminated or truncated
    return infos


# CostWrapper


def test_the_cost_sees_the_observations_before_and_after_though_the_environment_reuses_its_array():
    seen = []

    def cost(observation, action, next_observation, info):
        seen.append((observation[0], action[0], next_observation[0], info["x"]))
        return 0.25

    infos = run(CostWrapper(Counter(3, info={"x": 7}), cost))
    assert seen == [(0.0, 0.5, 1.0, 7), (1.0, 0.5, 2.0, 7), (2.0, 0.5, 3.0, 7)]
    assert [info["cost"] for info in infos] == [0.0, 0.25, 0.25, 0.25]


@pytest.mark.parametrize("value", [1, np.float32(1), np.array(1.0), True])
def test_a_cost_is_a_python_float_whatever_number_the_function_returns(value):
    infos = run(CostWrapper(Counter(), lambda *_: value))
    assert all(type(info["cost"]) is float for info in infos)
    assert infos[1]["cost"] == 1.0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "finite"),
        (math.inf, "finite"),
        (np.zeros(1), r"one number a step.*shape \(1,\)"),
        ("1", "one number a step"),
        (None, "one number a step"),
    ],
)
def test_a_cost_that_is_not_one_finite_number_is_refused(value, message):
    env = CostWrapper(Counter(), lambda *_: value)
    env.reset()
    with pytest.raises(EnvironmentContractError, match=message):
        env.step(ACTION)


def test_a_cost_that_is_no_function_is_refused_when_the_wrapper_is_made():
    with pytest.raises(EnvironmentContractError, match="was not found"):
        CostWrapper(Counter(), "trebi_gym.costs:no_such_cost")


@pytest.mark.parametrize("cost", ["trebi_gym.costs:pendulum_cost", pendulum_cost])
def test_a_wrapped_environment_is_rebuilt_from_its_spec_in_json(cost):
    env = BudgetWrapper(CostWrapper(gym.make("Pendulum-v1"), cost), np.float32(3.0), 0.5, True)
    text = env.spec.to_json()
    json.loads(text)
    rebuilt = gym.make(EnvSpec.from_json(text))
    assert str(rebuilt) == str(env)
    assert rebuilt.get_wrapper_attr("budget") == env.budget
    assert rebuilt.observation_space == env.observation_space
    assert rebuilt.reset(seed=1)[1] == env.reset(seed=1)[1] == {"cost": 0.0, "budget": 3.0}
    first, second = (e.step(np.ones(1, np.float32)) for e in (env, rebuilt))
    assert first[4] == second[4]
    assert first[4]["cost"] == pendulum_cost(env.reset(seed=1)[0]["observation"], ACTION, ACTION, {})


@pytest.mark.parametrize("budget", [math.inf, 0])
def test_a_budget_without_limit_and_one_of_nothing_survive_json(budget):
    env = BudgetWrapper(gym.make("SafePendulum-v0"), budget, episode_length=np.int64(9))
    rebuilt = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert rebuilt.reset()[1]["budget"] == budget


# BudgetWrapper


def test_the_remaining_budget_is_told_from_reset_on():
    assert [info["budget"] for info in run(counter(10.0))] == [10.0, 9.0, 8.0, 7.0, 6.0]


def test_the_remaining_budget_is_a_float():
    assert all(type(info["budget"]) is float for info in run(counter(10)))


def test_the_remaining_budget_grows_by_the_discount():
    assert [info["budget"] for info in run(counter(4.0, discount=0.5))] == [4.0, 6.0, 10.0, 18.0, 34.0]


@pytest.mark.parametrize(("budget", "kept"), [(4.0, True), (3.9, False), (0.0, False), (math.inf, True)])
def test_the_end_tells_the_episodes_cost_and_whether_the_budget_was_kept(budget, kept):
    *before, last = run(counter(budget))
    assert last["episode_cost"] == 4.0
    assert last["budget_kept"] is kept
    assert not any("episode_cost" in info or "budget_kept" in info for info in before)


def test_the_episode_cost_is_undiscounted_and_starts_anew():
    env = counter(1.9, discount=0.5)
    for _ in range(2):
        last = run(env)[-1]
        assert last["episode_cost"] == 4.0
        assert last["budget_kept"]  # 1 + 1/2 + 1/4 + 1/8 = 1.875


def test_a_truncated_episode_ends_too():
    env = BudgetWrapper(CostWrapper(gym.wrappers.TimeLimit(Counter(99), 3), one_a_step), 2.0)
    last = run(env)[-1]
    assert (last["episode_cost"], last["budget_kept"]) == (3.0, False)


def test_rounding_does_not_break_a_budget():
    # 0.1 added up ten times is 0.9999999999999999, and 0.3 is not 0.1 + 0.2
    assert run(counter(0.3, cost=lambda *_: 0.1, length=3))[-1]["budget_kept"]
    assert not run(counter(0.3, cost=lambda *_: 0.1001, length=3))[-1]["budget_kept"]


def test_reset_takes_a_budget_for_one_episode_and_passes_the_other_options_on():
    env = counter(10.0)
    assert env.reset(options={"budget": 3, "start": "left"})[1]["budget"] == 3.0
    assert env.unwrapped.options == {"start": "left"}
    assert env.step(ACTION)[4]["budget"] == 2.0
    assert env.reset()[1]["budget"] == 10.0
    assert env.unwrapped.options is None


def test_reset_does_not_alter_the_callers_options():
    options = {"budget": 3.0}
    env = counter(10.0)
    env.reset(options=options)
    assert options == {"budget": 3.0}
    assert env.unwrapped.options is None


def test_set_budget_changes_what_is_left_from_here_on():
    env = counter(10.0, discount=0.5)
    env.reset()
    env.step(ACTION)
    env.set_budget(3.0)
    assert env.budget.remaining == 3.0
    assert env.budget.step == 1
    assert env.step(ACTION)[4]["budget"] == 4.0
    assert env.reset()[1]["budget"] == 10.0


def test_after_set_budget_the_new_budget_decides_what_was_kept():
    for left, kept in ((2.0, True), (1.5, False)):
        env = counter(0.0)
        env.reset()
        for step in range(4):
            if step == 2:
                env.set_budget(left)
            info = env.step(ACTION)[4]
        assert (info["episode_cost"], info["budget_kept"]) == (4.0, kept)


def test_set_budget_before_the_first_reset_is_refused():
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        counter(10.0).set_budget(3.0)


@pytest.mark.parametrize("value", [-1.0, math.nan, "10", None, True, [1.0]])
def test_a_bad_budget_is_refused_wherever_it_is_given_and_leaves_the_old_one(value):
    with pytest.raises(BudgetError, match="budget must be"):
        counter(value)
    env = counter(10.0)
    env.reset()
    env.step(ACTION)
    with pytest.raises(BudgetError, match="budget must be"):
        env.set_budget(value)
    with pytest.raises(BudgetError, match="budget must be"):
        env.reset(options={"budget": value})
    assert env.budget.remaining == 9.0


@pytest.mark.parametrize("discount", [0.0, 1.5, math.nan, "x"])
def test_a_bad_discount_is_refused(discount):
    with pytest.raises(BudgetError, match="discount"):
        counter(1.0, discount=discount)


def test_an_environment_without_a_cost_is_refused_at_its_first_step_and_told_of_costwrapper():
    env = BudgetWrapper(Counter(info={"x": 1}), 1.0)
    assert env.reset()[1] == {"x": 1, "cost": 0.0, "budget": 1.0}
    with pytest.raises(EnvironmentContractError, match=r"info had \['x'\].*CostWrapper"):
        env.step(ACTION)


@pytest.mark.parametrize("cost", [math.nan, np.zeros(2), "1"])
def test_an_environment_with_a_cost_that_is_no_finite_number_is_refused(cost):
    env = BudgetWrapper(Counter(info={"cost": cost}), 1.0)
    env.reset()
    with pytest.raises(EnvironmentContractError, match=r'info\["cost"\] must give'):
        env.step(ACTION)


# observe=True


def test_the_observation_shows_the_budget_and_the_steps_left():
    env = counter(10.0, observe=True, episode_length=4)
    observation, _ = env.reset()
    shown = [(observation["budget"].tolist(), observation["steps_left"].tolist())]
    for _ in range(4):
        observation = env.step(ACTION)[0]
        assert observation in env.observation_space
        shown.append((observation["budget"].tolist(), observation["steps_left"].tolist()))
    assert shown == [([10.0], [4.0]), ([9.0], [3.0]), ([8.0], [2.0]), ([7.0], [1.0]), ([6.0], [0.0])]


@pytest.mark.parametrize("budget", [math.inf, 0.0])
def test_every_budget_lies_in_the_observation_space(budget):
    env = counter(budget, observe=True, episode_length=2, length=5)
    assert env.reset()[0] in env.observation_space
    for _ in range(5):
        assert env.step(ACTION)[0] in env.observation_space


def test_the_length_of_an_episode_is_read_from_the_spec():
    env = BudgetWrapper(gym.make("SafePendulum-v0", max_episode_steps=7), 1.0, observe=True)
    assert env.reset(seed=0)[0]["steps_left"].tolist() == [7.0]
    assert set(env.observation_space.spaces) == {"observation", "budget", "steps_left"}


def test_observing_without_a_known_length_is_refused():
    with pytest.raises(EnvironmentContractError, match="episode_length"):
        counter(1.0, observe=True)


@pytest.mark.parametrize("length", [0, -1, 1.5, "4", True])
def test_a_bad_episode_length_is_refused(length):
    with pytest.raises(ConfigError, match="episode_length must be a whole number"):
        counter(1.0, episode_length=length)


def test_gymnasium_accepts_the_observed_budget():
    env = BudgetWrapper(gym.make("SafeReacher-v0", disable_env_checker=True), 5.0, observe=True)
    with warnings.catch_warnings():
        # advice that it is wrapped, and that its observation is unbounded
        warnings.simplefilter("ignore", UserWarning)
        check_gymnasium_env(env, skip_render_check=True)


# with others' vector environments and evaluation


def test_a_vector_environment_counts_each_budget_by_itself_and_starts_anew_after_an_end():
    envs = SyncVectorEnv([lambda length=length: counter(10.0, length=length) for length in (2, 9)])
    _, infos = envs.reset(options={"budget": 5.0})
    assert infos["budget"].tolist() == [5.0, 5.0]
    actions = np.zeros((2, 1), np.float32)
    assert envs.step(actions)[4]["budget"].tolist() == [4.0, 4.0]
    infos = envs.step(actions)[4]
    assert infos["budget"].tolist() == [3.0, 3.0]
    assert infos["episode_cost"].tolist() == [2.0, 0.0]
    assert infos["_episode_cost"].tolist() == [True, False]
    infos = envs.step(actions)[4]
    assert infos["budget"].tolist() == [10.0, 2.0]
    envs.call("set_budget", 7.0)
    assert envs.step(actions)[4]["budget"].tolist() == [6.0, 6.0]


def test_registered_environments_take_the_wrapper_in_make_vec():
    envs = gym.make_vec("SafePendulum-v0", num_envs=2, wrappers=[lambda env: BudgetWrapper(env, 60.0)])
    _, infos = envs.reset(seed=0)
    assert infos["budget"].tolist() == [60.0, 60.0]


class Recorder:
    """A policy that records what it is shown, as Stable-Baselines3 calls it."""

    def __init__(self):
        self.observations = []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        self.observations.append(observation)
        return np.zeros((len(observation["budget"]), 1), np.float32), state


def test_stable_baselines3_evaluates_a_policy_that_reads_its_budget():
    envs = DummyVecEnv([lambda: Monitor(counter(10.0, observe=True, episode_length=4))] * 2)
    policy = Recorder()
    rewards, lengths = evaluate_policy(policy, envs, n_eval_episodes=4, return_episode_rewards=True)
    assert rewards == [4.0] * 4
    assert lengths == [4] * 4
    budgets = [observation["budget"][:, 0].tolist() for observation in policy.observations[:5]]
    assert budgets == [[10.0] * 2, [9.0] * 2, [8.0] * 2, [7.0] * 2, [10.0] * 2]
