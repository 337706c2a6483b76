"""The spaces of the environment that a data set names, where it can be made here."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym


def registered_spaces(env_id: Any) -> tuple[gym.Space[Any], gym.Space[Any]] | None:
    """Return observation and action space of a registered environment; None where it is not known here.

    Only ids are looked up: nothing is imported because a file names it. An environment that is registered but cannot be
    made, since its packages are missing or it is too old, counts as not known, with a warning.

    Args:
        env_id: as a data set's metadata name it, ``Name-v0`` or ``module:Name-v0``.
    """
    name = env_id.rpartition(":")[2] if isinstance(env_id, str) else None
    if name not in gym.registry:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as that there is a newer version
            env = gym.make(name)
    except Exception as error:  # noqa: BLE001 (whatever a missing package leads to)
        reason = f"{type(error).__name__}: {str(error).strip()[:200]}"
        warnings.warn(
            f"the environment {name} cannot be made here ({reason}); its spaces are taken from the data instead: actions "
            "between the least and the greatest that were logged",
            UserWarning,
            stacklevel=3,
        )
        return None
    spaces = env.observation_space, env.action_space
    env.close()
    return spaces
