"""Named configurations: the paper's two, and ``fast`` and ``fast_long``, which learn and plan quickly on two CPU cores."""

from __future__ import annotations

from typing import Any

from trebi_gym.agents.config import NetworkConfig, PlannerConfig, TrainingConfig, TREBIConfig
from trebi_gym.errors import ConfigError

# arXiv 2306.00603, its appendix and published configurations
_PAPER_UPDATE = {"batch_size": 32, "accumulation": 2, "learning_rate": 2e-4}
_PAPER_PLANNER = {
    "sampler": "ddpm",
    "sampler_steps": None,
    "retry_steps": None,
    "ranking": "rescored",
    "guide_type": 0,
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
    outcome_critic=None,
    outcome_training=None,
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

# for episodes of hundreds of steps, which the task may end, on some hundred thousand recorded steps: a discounted cost sees
# a hundred steps ahead, and the cheapest way through those is to fall; docs/fast.md has the measurements
fast_long = fast.replace(
    preset="fast_long",
    discount=0.997,
    cost_discount=1.0,
    denoiser_training={"steps": 15_000},
    critic_training={"steps": 6_000},
    planner={"guide_scale": 0.3, "retry_guide_scale": 0.0},
)

PRESETS: dict[str, TREBIConfig] = {
    config.preset: config for config in (fast, fast_long, toy_safe_env, locomotion)
}

# what the paper's experiments set differently for a task or a data set: (preset, start of the data set's name)
_SHORT_UNET = {"options": {"dim": 32, "dim_mults": [1, 4, 8]}}
OVERRIDES: dict[tuple[str, str], dict[str, Any]] = {
    ("locomotion", "halfcheetah-"): {
        "horizon": 4,
        "denoiser": {"options": {"dim": 32, "dim_mults": [1, 4, 8], "attention": True}},
        "reward_critic": _SHORT_UNET,
        "cost_critic": _SHORT_UNET,
        "planner": {"guide_scale": 1e-3, "guide_stop": 4},
    },
    ("locomotion", "hopper-medium-expert-"): {"planner": {"guide_scale": 1e-4, "guide_stop": 4}},
}


def preset(name: str | TREBIConfig, dataset: str | None = None) -> TREBIConfig:
    """Return the preset of this name, and a configuration as it is.

    The original's way of writing it, ``config.toy_safe_env``, works too.

    Args:
        name: of the preset.
        dataset: the name of a data set, such as ``halfcheetah-medium-v2``: what the paper's experiments set
            differently for it is set.

    Raises:
        ConfigError: there is no such preset.
    """
    if isinstance(name, TREBIConfig):
        return name
    found = PRESETS.get(name.removeprefix("config.")) if isinstance(name, str) else None
    if found is None:
        raise ConfigError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    for (of_preset, start), changes in OVERRIDES.items():
        if dataset is not None and of_preset == found.preset and dataset.startswith(start):
            found = found.replace(**changes)
    return found
