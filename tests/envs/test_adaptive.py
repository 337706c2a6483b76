"""The adaptive wrapper: budgets break as often as they may, also after a shift, and its state is kept and checked."""

import json
import math

import gymnasium as gym
import numpy as np
import pytest

from trebi_gym import AdaptiveBudgetWrapper
from trebi_gym.errors import BudgetError, ConfigError


class Noisy(gym.Env):
    """Episodes of two steps; an action is what the step is meant to cost, the first also costs chance."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,))
    action_space = gym.spaces.Box(0.0, 100.0, (1,))
    excess = (0.8, 1.2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        cost = float(action[0]) * (float(self.np_random.uniform(*self.excess)) if self.steps == 1 else 1.0)
        return np.zeros(1, np.float32), 0.0, False, self.steps == 2, {"cost": cost}


def run(env, episodes, seed=0):
    """Spend what is planned for, all at once; returns whether budgets were kept."""
    kept = []
    for episode in range(episodes):
        _, info = env.reset(seed=seed if episode == 0 else None)
        *_, info = env.step([info["planned_budget"]])
        *_, ended, info = env.step([0.0])
        assert ended
        kept.append(info["budget_kept"])
    return np.array(kept)


@pytest.mark.parametrize("risk", [0.05, 0.2])
def test_the_long_run_share_is_the_risk_also_after_a_shift(risk):
    env = AdaptiveBudgetWrapper(Noisy(), budget=10.0, risk=risk, rate=0.05)
    before = run(env, 3000)
    env.unwrapped.excess = (1.3, 2.0)  # the same plans cost more from now on
    after = run(env, 3000, seed=1)
    bound = (env.high - env.low + env.rate) / (env.rate * 3000)
    for kept in (before, after):
        assert abs((~kept).mean() - risk) <= bound
    assert (~before[:500]).mean() > 0
    assert env.episodes == 6000
    assert env.broken == (~before).sum() + (~after).sum()
    fixed = AdaptiveBudgetWrapper(Noisy(), budget=10.0, risk=risk, rate=1e-9)
    assert (~run(fixed, 500)).mean() > 0.4  # what happens without it


def test_the_bound_holds_against_an_adversary_that_keeps_only_the_least_share():
    env = AdaptiveBudgetWrapper(Noisy(), budget=10.0, risk=0.1, rate=0.05, low=0.5, high=1.0)
    broken, episodes = 0, 2000
    for _ in range(episodes):
        _, info = env.reset(seed=0)
        greedy = info["planned_budget"] > 5.0 + 1e-9
        env.step([20.0 if greedy else 0.0])
        *_, info = env.step([0.0])
        broken += not info["budget_kept"]
        assert env.low - env.rate <= env.share <= env.high
    assert broken / episodes <= 0.1 + (0.5 + 0.05) / (0.05 * episodes)
    assert broken / episodes >= 0.05


def test_the_users_budget_and_the_planned_one_are_counted_side_by_side():
    env = AdaptiveBudgetWrapper(Noisy(), budget=10.0, start=0.5, observe=True, episode_length=2)
    seen, info = env.reset(seed=0, options={"budget": 8.0})
    assert (info["budget"], info["planned_budget"], seen["budget"][0]) == (8.0, 4.0, 4.0)
    env.set_budget(6.0)
    assert (env.budget.remaining, env.planned.remaining) == (6.0, 3.0)
    seen, *_, info = env.step([1.0])
    spent = 6.0 - info["budget"]
    assert info["planned_budget"] == pytest.approx(3.0 - spent)
    assert seen["budget"][0] == pytest.approx(3.0 - spent)
    assert env.episodes == 0
    *_, info = env.step([0.0])
    assert info["budget_kept"] is True
    assert env.share == pytest.approx(0.5 + 0.05 * 0.05)


def test_what_does_not_count():
    env = AdaptiveBudgetWrapper(Noisy(), budget=10.0)
    env.reset(seed=0)
    env.step([50.0])
    env.reset()  # left before its end
    env.reset(options={"budget": math.inf})
    for _ in range(2):
        *_, info = env.step([50.0])
    assert info["planned_budget"] == math.inf
    assert (env.episodes, env.share) == (0, 1.0)
    with pytest.raises(BudgetError, match="must be at least 0"):
        env.reset(options={"budget": -1.0})


def test_the_state_goes_on_from_a_file(tmp_path):
    env = AdaptiveBudgetWrapper(Noisy(), budget=10.0, risk=0.2)
    run(env, 50)
    env.save(tmp_path / "state.json")
    other = AdaptiveBudgetWrapper(Noisy(), budget=3.0, risk=0.2)
    other.load(tmp_path / "state.json")
    assert (other.share, other.episodes, other.broken) == (env.share, env.episodes, env.broken)
    assert other.state_dict() == env.state_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "x"}, "this is not what state_dict"),
        ({"more": 1}, "this is not what state_dict"),
        ({"risk": 0.3}, "the state belongs to risk=0.3, this wrapper has 0.05"),
        ({"share": 9.0}, "share must lie within -0.05 to 2; got 9.0"),
        ({"share": "1"}, "share must lie within"),
        ({"share": True}, "share must lie within"),
        ({"broken": 3}, "must be whole numbers; got 0 and 3"),
        ({"episodes": 2.5}, "must be whole numbers"),
    ],
)
def test_what_is_no_state_is_refused(changes, message):
    env = AdaptiveBudgetWrapper(Noisy(), budget=10.0)
    with pytest.raises(ConfigError, match=message):
        env.load_state_dict(env.state_dict() | changes)


def test_a_file_that_is_none_is_refused(tmp_path):
    env = AdaptiveBudgetWrapper(Noisy(), budget=10.0)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ConfigError, match="is not a saved AdaptiveBudgetWrapper"):
        env.load(tmp_path / "a.json")
    with pytest.raises(
        ConfigError, match=r"there is no file .*nothing.json; the first day has nothing to load"
    ):
        env.load(tmp_path / "nothing.json")
    (tmp_path / "a.json").write_text(json.dumps([1]))
    with pytest.raises(ConfigError, match="this is not what state_dict"):
        env.load(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"risk": 0.0}, "risk must lie between"),
        ({"rate": 0.0}, "rate must be above 0"),
        ({"rate": math.inf}, "rate must be above 0"),
        ({"start": 3.0}, "0 <= low <= start <= high must hold"),
        ({"low": -0.1}, "0 <= low <= start <= high must hold"),
        ({"high": math.inf}, "0 <= low <= start <= high must hold"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        AdaptiveBudgetWrapper(Noisy(), budget=10.0, **options)
