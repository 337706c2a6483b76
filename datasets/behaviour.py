"""Policies whose behaviour is recorded: uniform actions, and Stable-Baselines3's, one's own or a stranger's.

A Stable-Baselines3 zip and a ``VecNormalize`` file are unpickled by Stable-Baselines3 when they are loaded, which can run
code that is in them: load only files that you trust.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from trebi_gym.budget import Budget
from trebi_gym.errors import DatasetError

Array = npt.NDArray[Any]

ALGORITHMS = ("sac", "td3", "ppo", "ddpg", "a2c")
"""Of Stable-Baselines3, those with continuous actions."""


class RandomPolicy:
    """Draws every action uniformly from a bounded action space."""

    def __init__(self, action_space: gym.Space[Any], seed: int) -> None:
        if not isinstance(action_space, gym.spaces.Box) or not action_space.is_bounded():
            raise DatasetError(f"uniform actions need a bounded Box action space; got {action_space}")
        self._space = action_space
        self.set_random_seed(seed)

    def set_random_seed(self, seed: int) -> None:
        """Seed what is drawn from here on."""
        self._generator = np.random.default_rng(seed)

    def predict(
        self,
        observation: Array,
        state: Any = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
        *,
        budget: Sequence[Budget],
    ) -> tuple[Array, Any]:
        """Return (E, A) uniform actions."""
        shape = (len(observation), *self._space.shape)
        actions = self._generator.uniform(self._space.low, self._space.high, size=shape)
        return actions.astype(self._space.dtype), state


class StableBaselinesPolicy:
    """A Stable-Baselines3 policy, which knows of no budget.

    Args:
        model: what has Stable-Baselines3's ``predict``.
        noise: standard deviation of Gaussian noise on every action, in units of half the action range; the noisy action
            is clipped to the action space.
        normalize: maps raw observations (E, O) to those that the policy was trained on.
        deterministic: the policy's most likely action; None leaves it to the caller.
    """

    def __init__(
        self,
        model: Any,
        *,
        noise: float = 0.0,
        normalize: Any = None,
        deterministic: bool | None = None,
    ) -> None:
        if not noise >= 0:
            raise DatasetError(f"noise must be at least 0, in units of half the action range; got {noise}")
        self._model, self._noise = model, noise
        self._normalize, self._deterministic = normalize, deterministic
        self.set_random_seed(0)

    def set_random_seed(self, seed: int) -> None:
        """Seed the noise; what a stochastic policy draws comes from torch's own generator."""
        self._generator = np.random.default_rng(seed)

    def predict(
        self,
        observation: Array,
        state: Any = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
        *,
        budget: Sequence[Budget],
    ) -> tuple[Array, Any]:
        """Return (E, A) actions within the action space."""
        if self._deterministic is not None:
            deterministic = self._deterministic
        seen = observation if self._normalize is None else self._normalize(observation)
        actions, state = self._model.predict(
            seen, state=state, episode_start=episode_start, deterministic=deterministic
        )
        if self._noise:
            space = self._model.action_space
            spread = self._noise * (space.high - space.low) / 2
            noisy = actions + spread * self._generator.standard_normal(actions.shape)
            actions = np.clip(noisy, space.low, space.high).astype(actions.dtype)
        return actions, state


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy from a file, and what a data set's metadata say of it."""

    policy: StableBaselinesPolicy
    description: dict[str, Any]  # plain JSON


def load_policy(
    path: str | Path,
    env_id: str,
    *,
    algo: str | None = None,
    normalize: str | Path | None = None,
    stochastic: bool = False,
    noise: float = 0.0,
) -> LoadedPolicy:
    """Load an agent that Stable-Baselines3 saved, of today's version or of old ones.

    The file is unpickled by Stable-Baselines3: load only files that you trust. Spaces and schedules, which old versions
    saved in ways that cannot be read any more, are taken from the environment.

    Args:
        path: the zip.
        env_id: the environment that it is to act in.
        algo: one of ``ALGORITHMS``; None reads it off the file.
        normalize: ``VecNormalize`` statistics; None looks for ``vecnormalize.pkl`` beside the zip.
        stochastic: draw actions instead of taking the most likely.
        noise: see ``StableBaselinesPolicy``.

    Raises:
        DatasetError: no such file, not a saved agent, another algorithm, or not of this environment's sizes.
    """
    import stable_baselines3

    path = Path(path)
    chosen = algo or saved_algorithm(path)
    if chosen not in ALGORITHMS:
        raise DatasetError(f"the algorithm must be one of {', '.join(ALGORITHMS)}; got {chosen!r}")
    _check_zip(path)
    with gym.make(env_id) as env:
        observation_space, action_space = env.observation_space, env.action_space
    custom = {
        "observation_space": observation_space,
        "action_space": action_space,
        "lr_schedule": _nothing,
        "learning_rate": 0.0,
        "clip_range": _nothing,
        "clip_range_vf": None,
        "action_noise": None,
        "_last_obs": None,
        "_last_episode_starts": None,
        "_last_original_obs": None,
        "ep_info_buffer": None,
        "ep_success_buffer": None,
    }
    options = {"buffer_size": 1} if chosen in ("sac", "td3", "ddpg") else {}
    try:
        model = getattr(stable_baselines3, chosen.upper()).load(
            path, device="cpu", custom_objects=custom, **options
        )
        # a policy of other sizes may load, and would fail at the first step
        model.predict(np.zeros((1, *observation_space.shape), observation_space.dtype))  # type: ignore[misc]
    except Exception as error:  # whatever a stranger's file leads to
        raise DatasetError(
            f"{path} cannot be loaded as {chosen.upper()} for {env_id} (observations {observation_space.shape}, actions "
            f"{action_space.shape}): {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    statistics = Path(normalize) if normalize is not None else find_statistics(path)
    description = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "algorithm": f"stable_baselines3.{chosen.upper()}",
        "stochastic": stochastic,
        "noise": noise,
        "normalized_observations": statistics is not None,
    }
    policy = StableBaselinesPolicy(
        model,
        noise=noise,
        normalize=None if statistics is None else _normalizer(statistics, env_id),
        deterministic=not stochastic,
    )
    return LoadedPolicy(policy, description)


def saved_algorithm(path: Path) -> str:
    """Return which of ``ALGORITHMS`` a zip says that it was saved by, without loading it.

    Raises:
        DatasetError: it does not say so.
    """
    _check_zip(path)
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data"))
        module = str(data["policy_class"].get("__module__", ""))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path} does not say which algorithm saved it ({error}); pass --algo") from error
    name = next((part for part in module.split(".") if part in ALGORITHMS), None)
    if name is None:
        # PPO and A2C share their policies, and a user's own policy class lies elsewhere
        raise DatasetError(
            f"{path} does not say which algorithm saved it; pass --algo, one of {', '.join(ALGORITHMS)}"
        )
    return name


def find_statistics(path: Path) -> Path | None:
    """Return the ``VecNormalize`` statistics that lie beside a zip, if any."""
    beside = (
        path.with_name("vecnormalize.pkl"),
        path.with_name(f"{path.stem}_vecnormalize.pkl"),
        path.with_suffix("") / "vecnormalize.pkl",
    )
    return next((place for place in beside if place.is_file()), None)


def _check_zip(path: Path) -> None:
    if not path.is_file():
        raise DatasetError(f"there is no policy at {path}")
    if not zipfile.is_zipfile(path):
        raise DatasetError(f"{path} is no zip; a policy is a file that Stable-Baselines3's save() wrote")
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    if not {"data", "policy.pth"} <= names:
        kind = " (an agent of trebi_gym?)" if "agent.json" in names else ""
        raise DatasetError(
            f"{path} is a zip, but Stable-Baselines3 did not save it: it lacks data or policy.pth{kind}"
        )


def _normalizer(statistics: Path, env_id: str) -> Any:
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    if not statistics.is_file():
        raise DatasetError(f"there are no VecNormalize statistics at {statistics}")
    envs = DummyVecEnv([lambda: gym.make(env_id)])
    try:
        loaded = VecNormalize.load(str(statistics), envs)
        loaded.training = False
        loaded.normalize_obs(np.zeros((1, *envs.observation_space.shape)))  # type: ignore[misc]
    except Exception as error:  # whatever a stranger's file leads to
        raise DatasetError(f"{statistics} cannot be used for {env_id}: {error}") from error
    finally:
        envs.close()
    return loaded.normalize_obs


def _nothing(_: float) -> float:
    return 0.0
