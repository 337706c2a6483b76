"""The environments that come with trebi-gym, registered by string so that importing stays cheap."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import WrapperSpec


def register_envs() -> None:
    """Register every environment of this package with Gymnasium; safe to call again."""
    _register(
        "SafePendulum-v0",
        entry_point="trebi_gym.envs.pendulum:SafePendulumEnv",
        max_episode_steps=200,
        cost="trebi_gym.costs:pendulum_cost",
    )
    _register(
        "SafeReacher-v0",
        entry_point="trebi_gym.envs.reacher:SafeReacherEnv",
        max_episode_steps=50,
        cost="trebi_gym.costs:reacher_cost",
    )
    for name, maker in (("Hopper", "hopper"), ("Walker2d", "walker2d"), ("HalfCheetah", "half_cheetah")):
        _register(
            f"Safe{name}-v0",
            entry_point=f"trebi_gym.envs.velocity:make_{maker}",
            max_episode_steps=1000,
            cost="trebi_gym.costs:velocity_cost",
        )


def _register(env_id: str, *, cost: str, **kwargs: Any) -> None:
    """Register ``env_id`` with the cost function that ``"module:name"`` names, unless it is there already."""
    if env_id in gym.registry:
        return
    wrapper = WrapperSpec("CostWrapper", "trebi_gym.envs.wrappers:CostWrapper", {"cost": cost})
    gym.register(env_id, additional_wrappers=(wrapper,), **kwargs)
