"""Stable-Baselines3's algorithms for continuous actions: their hyperparameters as plain JSON, and models made of them."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import gymnasium as gym
import numpy as np

from trebi_gym.errors import DatasetError

ALGORITHMS = ("sac", "td3", "ppo", "ddpg", "a2c")
EXPLORATION = 0.1
"""TD3's and DDPG's noise while they learn, in units of half the action range: without any they would not explore."""

_SET_HERE = {
    "self",
    "policy",
    "env",
    "seed",
    "device",
    "verbose",
    "tensorboard_log",
    "stats_window_size",
    "_init_setup_model",
}


def algorithm_class(algo: str) -> Any:
    """Return Stable-Baselines3's class.

    Raises:
        DatasetError: it is none of ``ALGORITHMS``.
    """
    if algo not in ALGORITHMS:
        raise DatasetError(f"the algorithm must be one of {', '.join(ALGORITHMS)}; got {algo!r}")
    import stable_baselines3

    return getattr(stable_baselines3, algo.upper())


def defaults(algo: str) -> dict[str, Any]:
    """Return every hyperparameter of an algorithm with its default.

    Raises:
        DatasetError: no such algorithm.
    """
    parameters = inspect.signature(algorithm_class(algo).__init__).parameters
    found = {name: parameter.default for name, parameter in parameters.items() if name not in _SET_HERE}
    if algo in ("td3", "ddpg"):
        found["action_noise"] = EXPLORATION
    return found


def check_hyperparameters(algo: str, given: dict[str, Any]) -> None:
    """Raise unless an algorithm has these hyperparameters and they are of the right kind.

    Raises:
        DatasetError: no such algorithm, a name that it does not have, or text in the place of a number.
    """
    known = defaults(algo)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise DatasetError(
            f"{algo.upper()} has no hyperparameter {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        )
    for name, value in given.items():
        default = known[name]
        if isinstance(default, bool) and not isinstance(value, bool):
            raise DatasetError(f"{name} of {algo.upper()} must be true or false; got {value!r}")
        if isinstance(default, (int, float)) and not isinstance(default, bool):
            if isinstance(value, (str, bool)):
                raise DatasetError(f"{name} of {algo.upper()} must be a number; got {value!r}")
            if isinstance(value, float) and not math.isfinite(value):
                raise DatasetError(f"{name} of {algo.upper()} must be finite; got {value!r}")
            if name in ("learning_rate", "batch_size") and isinstance(value, (int, float)) and not value > 0:
                raise DatasetError(f"{name} of {algo.upper()} must be positive; got {value!r}")


def make_model(algo: str, env: gym.Env[Any, Any], seed: int, given: dict[str, Any]) -> Any:
    """Return a new model on the CPU.

    Args:
        algo: one of ``ALGORITHMS``.
        env: what it learns from.
        seed: of the networks, the environment and the exploration.
        given: hyperparameters, over Stable-Baselines3's defaults. Beside what its constructor takes: ``action_noise`` may
            be a number, the standard deviation in units of half the action range; ``train_freq`` a list; and
            ``activation_fn`` in ``policy_kwargs`` the name of a class in ``torch.nn``.

    Raises:
        DatasetError: the hyperparameters do not exist or were refused.
    """
    check_hyperparameters(algo, given)
    # Stable-Baselines3 writes into policy_kwargs
    options = copy.deepcopy(given)
    noise = options.get("action_noise", defaults(algo).get("action_noise"))
    if isinstance(noise, (int, float)):
        options["action_noise"] = _gaussian(noise, env)
    if isinstance(options.get("train_freq"), list):
        options["train_freq"] = tuple(options["train_freq"])
    network = options.get("policy_kwargs")
    if isinstance(network, dict) and isinstance(network.get("activation_fn"), str):
        network["activation_fn"] = _activation(network["activation_fn"])
    try:
        return algorithm_class(algo)("MlpPolicy", env, seed=seed, device="cpu", **options)
    except (TypeError, ValueError, AssertionError, AttributeError, RuntimeError) as error:
        raise DatasetError(f"{algo.upper()} cannot be made with {given}: {error}") from error


def _gaussian(deviation: float, env: gym.Env[Any, Any]) -> Any:
    from stable_baselines3.common.noise import NormalActionNoise

    size = int(np.prod(env.action_space.shape or (1,)))
    return NormalActionNoise(np.zeros(size), np.full(size, float(deviation)))


def _activation(name: str) -> Any:
    from torch import nn

    found = getattr(nn, name, None)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise DatasetError(
            f"activation_fn must be the name of a class in torch.nn, such as Tanh, ReLU or ELU; got {name!r}"
        )
    return found
