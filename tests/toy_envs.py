"""Environments whose every number tells where it came from, so that a shifted row shows."""

from typing import Any

import gymnasium as gym
import numpy as np


class LedgerEnv(gym.Env[Any, Any]):
    """Observation (steps taken, last action, the episode's mark), reward ``10 t + action``, cost ``2 + action``.

    The mark is drawn at reset, so that equal seeds give equal marks. With ``ends_early`` the task itself ends the
    episode after 1 to 4 steps, as the mark says.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        ends_early: bool = False,
        with_cost: bool = True,
        draws: bool = True,
        render_mode: str | None = None,
    ) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)
        self.render_mode = render_mode
        self._ends_early, self._with_cost, self._draws = ends_early, with_cost, draws
        self._step, self._last, self._mark = 0, 0.0, 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._step, self._last, self._mark = 0, 0.0, float(self.np_random.uniform())
        return self._observation(), {"cost": 0.0} if self._with_cost else {}

    def step(self, action):
        self._last = float(action[0])
        reward = 10.0 * self._step + self._last
        self._step += 1
        terminated = self._ends_early and self._step >= 1 + int(4 * self._mark)
        info = {"cost": 2.0 + self._last} if self._with_cost else {}
        return self._observation(), reward, terminated, False, info

    def render(self):
        return np.full((61, 83, 3), 40 * self._step, np.uint8) if self._draws else None

    def _observation(self):
        return np.array([self._step, self._last, self._mark])


class CostlyEnv(gym.Env[Any, Any]):
    """Puts ``costs[t]`` of step t into its info as it is: integers, NumPy's numbers, text, whatever is given.

    Which of the costs comes first depends on the seed, so that types are mixed among environments.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, costs=(0, 0.5), frame=None, reward=1.0, render_mode=None, render_fps=None):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)
        self.render_mode = render_mode
        self._costs, self._frame, self._reward, self._step = costs, frame, reward, 0
        if render_fps is not None:
            self.metadata = {**self.metadata, "render_fps": render_fps}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._step = int(
            self.np_random.integers(2)
        )  # which of the costs comes first differs from seed to seed
        self._begun = self._step
        return np.array([0.0]), {"cost": 0}

    def step(self, action):
        cost = self._costs[self._step % len(self._costs)]
        self._step += 1
        return np.array([float(self._step - self._begun)]), self._reward, False, False, {"cost": cost}

    def render(self):
        return self._frame


class Still:
    """A policy that does nothing, for any number of environments."""

    def __init__(self, episode_length=None):
        if episode_length is not None:
            self.episode_length = episode_length

    def predict(self, observation, state=None, episode_start=None, deterministic=False, *, budget):
        return np.zeros((len(observation), 1), np.float32), state


def mark_of(seed: int) -> float:
    """The mark of the episode that ``reset(seed=seed)`` begins."""
    return float(np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed))).uniform())


def register_toy_envs() -> None:
    entry = "toy_envs:LedgerEnv"
    for env_id, length, kwargs in (
        ("Ledger-v0", 5, {}),
        ("LedgerEarly-v0", 6, {"ends_early": True}),
        ("LedgerFree-v0", 5, {"with_cost": False}),
        ("LedgerBlind-v0", 5, {"draws": False}),
    ):
        if env_id not in gym.registry:
            gym.register(env_id, entry_point=entry, max_episode_steps=length, kwargs=kwargs)
    if "Costly-v0" not in gym.registry:
        gym.register("Costly-v0", entry_point="toy_envs:CostlyEnv", max_episode_steps=10)
        gym.register("CostlyEndless-v0", entry_point="toy_envs:CostlyEnv")
    if "LedgerCallable-v0" not in gym.registry:
        gym.register("LedgerCallable-v0", entry_point=LedgerEnv, max_episode_steps=5)
    if "ShortPendulum-v0" not in gym.registry:
        from gymnasium.envs.registration import WrapperSpec

        wrapper = WrapperSpec(
            "CostWrapper", "trebi_gym.envs.wrappers:CostWrapper", {"cost": "trebi_gym.costs:pendulum_cost"}
        )
        gym.register(
            "ShortPendulum-v0",
            entry_point="trebi_gym.envs.pendulum:SafePendulumEnv",
            max_episode_steps=6,
            additional_wrappers=(wrapper,),
        )


class Scripted:
    """A policy that plays ``actions[t]`` at step t and keeps what it was handed."""

    def __init__(self, actions=(0.5, -0.25, 1.0, 0.75, -1.0, 0.125)):
        self._actions = np.array(actions, np.float32)
        self.calls: list[dict[str, Any]] = []
        self.seeds: list[int] = []

    def predict(self, observation, state=None, episode_start=None, deterministic=False, *, budget):
        self.calls.append(
            {
                "observation": observation.copy(),
                "state": state,
                "episode_start": episode_start.copy(),
                "deterministic": deterministic,
                "budget": budget,
            }
        )
        steps = observation[:, 0].astype(int)
        return self._actions[steps][:, None], len(self.calls)

    def set_random_seed(self, seed):
        self.seeds.append(seed)
