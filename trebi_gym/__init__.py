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
    from trebi_gym.agents import TREBIAgent, TREBIConfig
    from trebi_gym.datasets import EpisodeDataset, load
    from trebi_gym.envs.adapters import SafetyGymnasiumAdapter
    from trebi_gym.envs.adaptive import AdaptiveBudgetWrapper
    from trebi_gym.envs.wrappers import BudgetWrapper, CostWrapper
    from trebi_gym.evaluation.evaluate import evaluate_budgets
    from trebi_gym.evaluation.records import Evaluation

__version__ = "0.1.0"

_LAZY = {
    "TREBIAgent": "trebi_gym.agents",
    "TREBIConfig": "trebi_gym.agents",
    "EpisodeDataset": "trebi_gym.datasets",
    "load": "trebi_gym.datasets",
    "AdaptiveBudgetWrapper": "trebi_gym.envs.adaptive",
    "BudgetWrapper": "trebi_gym.envs.wrappers",
    "CostWrapper": "trebi_gym.envs.wrappers",
    "SafetyGymnasiumAdapter": "trebi_gym.envs.adapters",
    "Evaluation": "trebi_gym.evaluation.records",
    "evaluate_budgets": "trebi_gym.evaluation.evaluate",
}

__all__ = [
    "AdaptiveBudgetWrapper",
    "Budget",
    "BudgetWrapper",
    "CostWrapper",
    "EpisodeDataset",
    "Evaluation",
    "SafetyGymnasiumAdapter",
    "TREBIAgent",
    "TREBIConfig",
    "TrebiError",
    "evaluate_budgets",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


register_envs()
