"""Policies whose episodes are recorded: uniform actions, and agents that Stable-Baselines3 saved, of any version.

Stable-Baselines3 unpickles a zip and a ``VecNormalize`` file when it loads them, which can run code that is in them: load
only files that you trust. What old versions saved in ways that cannot be read any more (spaces of the old ``gym``,
schedules compiled by an old Python) is not unpickled but taken from the environment.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch

from trebi_gym.budget import Budget
from trebi_gym.checks import check_seed
from trebi_gym.datasets.generation.algorithms import ALGORITHMS, algorithm_class
from trebi_gym.datasets.generation.step_recorder import check_spaces
from trebi_gym.errors import DatasetError

Array = npt.NDArray[Any]


class RandomPolicy:
    """Draws every action uniformly from a bounded action space.

    Raises:
        DatasetError: the action space is not bounded, or no Box.
    """

    def __init__(self, action_space: gym.Space[Any], seed: int) -> None:
        if not isinstance(action_space, gym.spaces.Box) or not action_space.is_bounded():
            raise DatasetError(f"uniform actions need a bounded Box action space; got {action_space}")
        self._space = action_space
        self.description = {"algorithm": "uniform actions"}
        self.set_random_seed(seed)

    def set_random_seed(self, seed: int) -> None:
        """Seed what is drawn from here on."""
        self._generator = np.random.default_rng(check_seed(seed, error=DatasetError))

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
        model: a model of Stable-Baselines3, or one of its policies.
        noise: standard deviation of Gaussian noise on every action, in units of half the action range; the noisy action
            is clipped to the action space, and it is this action that is executed.
        normalize: maps raw observations (E, O) to those that the policy was trained on.
        deterministic: whether to take the most likely action instead of drawing one; None leaves it to the caller.
        description: what a data set's metadata say of the policy; plain JSON.

    Raises:
        DatasetError: the noise is negative, or the action space has no bounds to measure it by.
    """

    def __init__(
        self,
        model: Any,
        *,
        noise: float = 0.0,
        normalize: Callable[[Array], Array] | None = None,
        deterministic: bool | None = None,
        description: dict[str, Any] | None = None,
    ) -> None:
        if not 0 <= noise < np.inf:
            raise DatasetError(f"noise must be at least 0, in units of half the action range; got {noise}")
        # a copy that shares the weights: it is put into evaluation mode once, where predict would walk through all of
        # its modules at every step
        self._policy = copy.copy(getattr(model, "policy", model))
        self._policy.set_training_mode(False)
        self._policy.set_training_mode = _nothing
        actor = getattr(self._policy, "actor", self._policy)
        self._draws_matrices = bool(getattr(actor, "use_sde", False))
        self._normalize, self._deterministic = normalize, deterministic
        space = self._policy.action_space
        if noise and not space.is_bounded():
            raise DatasetError(f"noise is measured by the action range, and this one has no bounds: {space}")
        self._space = space
        self._spread = noise * (space.high - space.low) / 2 if noise else None
        self.description = description or {}
        self.set_random_seed(0)

    def set_random_seed(self, seed: int) -> None:
        """Seed the noise; what a stochastic policy draws comes from torch's own generator."""
        self._generator = np.random.default_rng(check_seed(seed, error=DatasetError))

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
        if self._draws_matrices and not deterministic and (episode_start is None or np.any(episode_start)):
            # state-dependent exploration: drawn anew whenever an episode begins, one matrix an environment
            self._policy.reset_noise(len(observation))
        seen = observation if self._normalize is None else self._normalize(observation)
        actions, state = self._policy.predict(
            seen, state=state, episode_start=episode_start, deterministic=deterministic
        )
        if self._spread is not None:
            noisy = actions + self._spread * self._generator.standard_normal(actions.shape)
            actions = np.clip(noisy, self._space.low, self._space.high).astype(self._space.dtype)
        return actions, state


def _nothing(_: bool) -> None:
    """Leave the mode as it is."""


NEEDED = ("policy_class", "policy_kwargs")
"""All that has to be unpickled of a zip; the weights are read without unpickling."""
NUMBER = r"[-+]?inf|[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"


def load_policy(
    path: str | os.PathLike[str],
    env_id: str,
    *,
    algo: str | None = None,
    normalize: str | os.PathLike[str] | None = None,
    stochastic: bool = False,
    noise: float = 0.0,
) -> StableBaselinesPolicy:
    """Load an agent that Stable-Baselines3 saved, as a policy for ``collect``.

    The files are unpickled by Stable-Baselines3: load only files that you trust.

    Args:
        path: the zip.
        env_id: the environment that it is to act in.
        algo: one of ``ALGORITHMS``; None reads it off the file.
        normalize: ``VecNormalize`` statistics; None takes those that ``find_statistics`` finds beside the zip. The policy
            sees normalised observations; what is recorded stays raw.
        stochastic: draw actions instead of taking the most likely.
        noise: standard deviation of Gaussian noise on the actions, in units of half the action range.

    Raises:
        DatasetError: no such file, not a saved agent, of another algorithm, or not made for this environment's sizes.
        EnvironmentContractError: the environment's spaces are no one-dimensional boxes.
    """
    path = Path(path)
    data = read_description(path)
    chosen = _algorithm(path, data, algo)
    observation_space, action_space = check_spaces(env_id)
    _check_space(path, data, "observation", observation_space, env_id)
    _check_space(path, data, "action", action_space, env_id)
    statistics = Path(normalize) if normalize is not None else find_statistics(path)
    try:
        # making the networks draws their first weights, which nobody else's draws may depend on
        with torch.random.fork_rng(devices=[]):
            model = algorithm_class(chosen).load(
                path, device="cpu", custom_objects=_instead(data, observation_space, action_space)
            )
    except Exception as error:  # whatever a stranger's file leads to
        raise DatasetError(f"{path} cannot be loaded as {chosen.upper()} for {env_id}: {error}") from error
    return StableBaselinesPolicy(
        model,
        noise=noise,
        normalize=None if statistics is None else _normalizer(statistics, env_id),
        deterministic=not stochastic,
        description={
            "file": path.name,
            "sha256": _sha256(path),
            "algorithm": f"stable_baselines3.{chosen.upper()}",
            "stochastic": stochastic,
            "noise": noise,
            "normalized_by": None
            if statistics is None
            else {"file": statistics.name, "sha256": _sha256(statistics)},
        },
    )


def find_statistics(path: str | os.PathLike[str]) -> Path | None:
    """Return the ``VecNormalize`` statistics that lie beside a zip, if any.

    Looked for are ``<name>_vecnormalize.pkl``, ``vecnormalize.pkl`` and ``<environment>/vecnormalize.pkl`` for a zip
    called ``<environment>.zip``, as RL Baselines3 Zoo writes them.
    """
    path = Path(path)
    places = (
        path.with_name(f"{path.stem}_vecnormalize.pkl"),
        path.with_name("vecnormalize.pkl"),
        path.with_name(path.stem) / "vecnormalize.pkl",
    )
    return next((place for place in places if place.is_file()), None)


def saved_algorithm(data: dict[str, Any]) -> str | None:
    """Return which of ``ALGORITHMS`` wrote a zip's description, by what it holds; None if that is not known."""
    entry = data.get("policy_class")
    module = str(entry.get("__module__", "")) if isinstance(entry, dict) else ""
    if module.startswith("stable_baselines3.sac."):
        return "sac"
    if module.startswith("stable_baselines3.td3."):
        options = data.get("policy_kwargs")
        return "ddpg" if isinstance(options, dict) and str(options.get("n_critics")) == "1" else "td3"
    if module == "stable_baselines3.common.policies" and "gae_lambda" in data:
        other = {"cg_max_steps", "sub_sampling_factor"} & set(data)  # TRPO's
        return None if other else "ppo" if "clip_range" in data else "a2c"
    return None


def read_description(path: Path) -> dict[str, Any]:
    """Return the JSON description in a zip, without unpickling anything.

    Raises:
        DatasetError: there is no such file, or Stable-Baselines3 did not save it.
    """
    if not path.is_file():
        raise DatasetError(f"there is no policy at {path}; give a zip that Stable-Baselines3's save() wrote")
    if not zipfile.is_zipfile(path):
        raise DatasetError(
            f"{path} is no zip, or is cut short; a policy is a zip that Stable-Baselines3's save() wrote"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            missing = {"data", "policy.pth"} - set(archive.namelist())
            if missing:
                ours = "agent.json" in archive.namelist()
                raise DatasetError(
                    f"{path} is a zip, but cut short or not one that Stable-Baselines3's save() wrote: it lacks "
                    + " and ".join(sorted(missing))
                    + (" (it is an agent of trebi_gym's own)" if ours else "")
                )
            data = json.loads(archive.read("data"))
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, RuntimeError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path} cannot be read as a Stable-Baselines3 zip: {error}") from error
    if not isinstance(data, dict):
        raise DatasetError(f"{path} cannot be read as a Stable-Baselines3 zip: its data are no JSON object")
    return data


def _algorithm(path: Path, data: dict[str, Any], asked: str | None) -> str:
    found = saved_algorithm(data)
    if asked is not None:
        algorithm_class(asked)
        same = asked == found or {asked, found} == {"td3", "ddpg"}  # they act alike
        if found is not None and not same:
            raise DatasetError(f"{path} was asked for as {asked.upper()}, but was saved by {found.upper()}")
        return asked
    if found is None:
        raise DatasetError(
            f"{path} does not say that it was saved by one of {', '.join(ALGORITHMS)}; "
            "if it was, with a policy class of its own, pass --algo"
        )
    return found


def _check_space(path: Path, data: dict[str, Any], name: str, space: gym.spaces.Box, env_id: str) -> None:
    """Compare a space with what the zip tells of its own in readable form."""
    entry = data.get(f"{name}_space")
    if not isinstance(entry, dict):
        return
    shape = entry.get("_shape", entry.get("shape"))
    if isinstance(shape, list) and tuple(shape) != space.shape:
        raise DatasetError(
            f"{path} was made for {name}s of shape {tuple(shape)}, and {env_id} has {space.shape}: "
            "give the environment that it was trained on"
        )
    if name == "observation":
        return
    for side, bound in (("low", space.low), ("high", space.high)):
        numbers = np.array([float(x) for x in re.findall(NUMBER, str(entry.get(side)))])
        if numbers.shape == bound.shape and not np.allclose(numbers, bound, rtol=1e-4):
            raise DatasetError(
                f"{path} was made for actions of {side} {numbers.tolist()}, and {env_id} has {bound.tolist()}: "
                "give the environment that it was trained on, with the same wrappers"
            )


def _instead(data: dict[str, Any], observation_space: Any, action_space: Any) -> dict[str, Any]:
    """Return what is put in the place of entries of the zip: of all that are pickled but ``NEEDED``."""
    pickled = [key for key, value in data.items() if isinstance(value, dict) and ":serialized:" in value]
    return {key: None for key in pickled if key not in NEEDED} | {
        "observation_space": observation_space,
        "action_space": action_space,
        "learning_rate": 0.0,
        "lr_schedule": _zero,
        "clip_range": _zero,
        "train_freq": (1, "step"),
        "target_entropy": 0.0,
        # no replay buffer of a million steps, and nobody else's random numbers are seeded
        "buffer_size": 1,
        "n_steps": 1,
        "n_envs": 1,
        "optimize_memory_usage": False,
        "seed": None,
        "tensorboard_log": None,
    }


def _zero(_: float) -> float:
    return 0.0


def _normalizer(statistics: Path, env_id: str) -> Callable[[Array], Array]:
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    if not statistics.is_file():
        raise DatasetError(f"there are no VecNormalize statistics at {statistics}")
    envs = DummyVecEnv([lambda: gym.make(env_id)])
    try:
        with _old_gym():
            loaded = VecNormalize.load(str(statistics), envs)
        loaded.training = False
        loaded.normalize_obs(np.zeros((1, *(envs.observation_space.shape or ()))))
    except Exception as error:  # whatever a stranger's file leads to
        raise DatasetError(
            f"{statistics} cannot be used as VecNormalize statistics of {env_id}: {error}"
        ) from error
    finally:
        envs.close()
    return cast(Callable[[Array], Array], loaded.normalize_obs)


@contextlib.contextmanager
def _old_gym() -> Iterator[None]:
    """Let a file that names spaces of the old ``gym`` find Gymnasium's, which are their successors."""
    known = [name for name in sys.modules if name == "gymnasium" or name.startswith("gymnasium.")]
    names = {name.replace("gymnasium", "gym", 1): sys.modules[name] for name in known}
    if importlib.util.find_spec("gym") is not None:
        names = {}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
