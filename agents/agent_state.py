"""What an agent knows: the one value that learning, planning, calibration and storage share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium as gym
from torch import nn

from trebi_gym.agents.calibration.statistics import AnyCalibration
from trebi_gym.agents.config import TREBIConfig
from trebi_gym.agents.models import Task, budget_factor, fit_task, noted, parts_of
from trebi_gym.datasets import EpisodeDataset


@dataclass(frozen=True)
class AgentState:
    """All that an agent's file holds, but for a learning run that has not ended.

    A change makes a new state: ``dataclasses.replace(state, risk=0.05)``.
    """

    config: TREBIConfig
    seed: int
    """Of the weights, the training and the planning."""
    observation_space: gym.spaces.Box | None = None
    """(O,); None before anything is learned, where nothing told it."""
    action_space: gym.spaces.Box | None = None
    """(A,); likewise."""
    task: Task | None = None
    """Normalisers, episode length and cost scale of the data; None before anything is learned."""
    models: Mapping[str, nn.Module] = field(default_factory=dict)
    """The learned models, by name."""
    learned_from: Mapping[str, Any] = field(default_factory=dict)
    """What is kept of the data; plain JSON."""
    calibration: AnyCalibration | None = None
    """What budgets must be planned as; None: the agent is not calibrated."""
    risk: float | None = None
    """Chance of an episode over its budget, for decisions that are told none; None: the calibration is not used."""


def with_data(state: AgentState, dataset: EpisodeDataset, names: Sequence[str] | None = None) -> AgentState:
    """Return the state of an agent whose models are to learn from a data set.

    A single model of an agent that has others keeps the normalisers that these were fitted with.

    Args:
        state: of the agent.
        dataset: that is learned from.
        names: of the models that learn; None: all of them.
    """
    every = parts_of(state.config)
    names = every if names is None else names
    whole = state.task is None or set(names) == set(every)
    task = fit_task(dataset, state.config, budget_factor(dataset, state.config)) if whole else state.task
    return replace(state, task=task, learned_from=noted(state.learned_from, dataset, names, whole))
