"""Named configurations: the paper's two, and ``fast``, which learns and plans in reasonable time on two CPU cores."""

from __future__ import annotations

from trebi_gym.agents.config import NetworkConfig, PlannerConfig, TrainingConfig, TREBIConfig
from trebi_gym.errors import ConfigError

# arXiv 2306.00603, its appendix and published configurations
_PAPER_UPDATE = {"batch_size": 32, "accumulation": 2, "learning_rate": 2e-4}
_PAPER_PLANNER = {
    "sampler": "ddpm",
    "sampler_steps": None,
    "guide_moves": 2,
    "guide_stop": 2,
    "guide_scale": 0.1,
    "budget_rule": "constant",
    "margin": 0.0,
}

toy_safe_env = TREBIConfig(
    preset="toy_safe_env",
    horizon=32,
    diffusion_steps=20,
    denoiser=NetworkConfig("temporal_unet", {"dim": 32, "dim_mults": [1, 2, 4, 8]}),
    reward_critic=NetworkConfig("temporal", {"dim": 32, "dim_mults": [1, 2, 4, 8]}),
    cost_critic=NetworkConfig("temporal", {"dim": 32, "dim_mults": [1, 2, 4, 8]}),
    discount=0.99,
    cost_discount=0.99,
    cost_quantile=None,
    early_ends=0.0,
    denoiser_training=TrainingConfig(steps=200_000, **_PAPER_UPDATE),  # type: ignore[arg-type]
    critic_training=TrainingConfig(steps=200_000, **_PAPER_UPDATE),  # type: ignore[arg-type]
    planner=PlannerConfig(candidates=128, cost_weight=20.0, **_PAPER_PLANNER),  # type: ignore[arg-type]
)

locomotion = toy_safe_env.replace(
    preset="locomotion",
    discount=0.997,
    cost_discount=0.997,
    termination_reward=-100.0,
    termination_cost=100.0,
    denoiser_training={"steps": 1_000_000},
    planner={"candidates": 64, "cost_weight": 5.0},
)

fast = TREBIConfig()

PRESETS: dict[str, TREBIConfig] = {config.preset: config for config in (fast, toy_safe_env, locomotion)}


def preset(name: str | TREBIConfig) -> TREBIConfig:
    """Return the preset of this name, and a configuration as it is.

    The original's way of writing it, ``config.toy_safe_env``, works too.

    Raises:
        ConfigError: there is no such preset.
    """
    if isinstance(name, TREBIConfig):
        return name
    found = PRESETS.get(name.removeprefix("config.")) if isinstance(name, str) else None
    if found is None:
        raise ConfigError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    return found
