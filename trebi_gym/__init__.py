"""Safe offline reinforcement learning with a cost budget that is set at run time.

Importing this package registers its environments with Gymnasium. Everything else is loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from trebi_gym.budget import Budget
from trebi_gym.envs import register_envs
from trebi_gym.errors import TrebiError

if TYPE_CHECKING:
    from trebi_gym.agents import PlannerConfig, TREBIAgent, TREBIConfig
    from trebi_gym.datasets import Episode, EpisodeDataset, load, load_dataset, save_dataset
    from trebi_gym.envs.adapters import SafetyGymnasiumAdapter
    from trebi_gym.envs.adaptive import AdaptiveBudgetWrapper
    from trebi_gym.envs.wrappers import BudgetWrapper, CostWrapper
    from trebi_gym.evaluation.evaluate import evaluate_budgets
    from trebi_gym.evaluation.records import Evaluation
    from trebi_gym.evaluation.schedules import BudgetSchedule
    from trebi_gym.evaluation.video import record_video
    from trebi_gym.rollout import BudgetChange

__version__ = "0.1.0"

_LAZY = {
    "AdaptiveBudgetWrapper": "trebi_gym.envs.adaptive",
    "BudgetChange": "trebi_gym.rollout",
    "BudgetSchedule": "trebi_gym.evaluation.schedules",
    "BudgetWrapper": "trebi_gym.envs.wrappers",
    "CostWrapper": "trebi_gym.envs.wrappers",
    "Episode": "trebi_gym.datasets",
    "EpisodeDataset": "trebi_gym.datasets",
    "Evaluation": "trebi_gym.evaluation.records",
    "PlannerConfig": "trebi_gym.agents",
    "SafetyGymnasiumAdapter": "trebi_gym.envs.adapters",
    "TREBIAgent": "trebi_gym.agents",
    "TREBIConfig": "trebi_gym.agents",
    "evaluate_budgets": "trebi_gym.evaluation.evaluate",
    "load": "trebi_gym.datasets",
    "load_dataset": "trebi_gym.datasets",
    "record_video": "trebi_gym.evaluation.video",
    "save_dataset": "trebi_gym.datasets",
}
"""Where each public name is, so that importing the package stays cheap."""

__all__ = [
    "AdaptiveBudgetWrapper",
    "Budget",
    "BudgetChange",
    "BudgetSchedule",
    "BudgetWrapper",
    "CostWrapper",
    "Episode",
    "EpisodeDataset",
    "Evaluation",
    "PlannerConfig",
    "SafetyGymnasiumAdapter",
    "TREBIAgent",
    "TREBIConfig",
    "TrebiError",
    "evaluate_budgets",
    "load",
    "load_dataset",
    "record_video",
    "save_dataset",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


register_envs()
