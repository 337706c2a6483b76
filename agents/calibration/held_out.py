"""Calibrating without an environment: what logged episodes, which nothing was learned from, cost beyond prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from trebi_gym.agents.agent_state import AgentState
from trebi_gym.agents.calibration.fingerprints import count_learned
from trebi_gym.agents.calibration.statistics import HeldOutCalibration
from trebi_gym.agents.models import OUTCOME, make_windows
from trebi_gym.agents.networks import BudgetCritic, PlanCritic
from trebi_gym.agents.planning.budgets import geometric_sum
from trebi_gym.agents.serializable import plain
from trebi_gym.agents.spaces import check_dataset
from trebi_gym.agents.torch_settings import usual_settings
from trebi_gym.datasets import EpisodeDataset
from trebi_gym.errors import CalibrationError


@usual_settings()
def on_held_out(
    state: AgentState,
    dataset: EpisodeDataset,
    risks: Sequence[float],
    *,
    fingerprint: str,
    device: torch.device,
) -> HeldOutCalibration:
    """Calibrate on held-out episodes, from the residuals of their predicted cost; see ``TREBIAgent.calibrate``.

    Args:
        state: of an agent that has learned all its models.
        dataset: episodes that it did not learn from.
        risks: that they must support.
        fingerprint: of the weights.
        device: of the models.

    Raises:
        CalibrationError: the agent learned from any of these episodes, or they are too few.
        DatasetError: they are of other sizes than the agent's, or have actions that it cannot choose.
    """
    task = state.task
    assert task is not None
    assert state.observation_space is not None
    assert state.action_space is not None
    check_dataset(dataset, state.observation_space, state.action_space)
    learned = count_learned(state.learned_from, dataset)
    if learned:
        raise CalibrationError(
            f"the agent learned from {learned} of these {len(dataset)} episodes, so they tell nothing of its error on "
            "others; learn from one part and calibrate on the other: learned, held_out = dataset.split(0.2)"
        )
    windows = make_windows(dataset, state.config, task, device)
    first = torch.nonzero(windows.steps_left == windows.steps_left.max())[:, 0]
    window = windows[first]
    level = torch.zeros(len(first), dtype=torch.long, device=device)
    length = np.full(len(first), float(task.episode_length))
    planner = state.config.planner
    with torch.no_grad():
        left = torch.full((len(first),), float(task.episode_length), device=device)
        judging = state.models.get(OUTCOME)
        # the critic whose word plans are chosen by; but a budget critic's least cost is no prediction of logged episodes
        if planner.ranking == "outcome" and not isinstance(judging, BudgetCritic):
            critic = cast(PlanCritic, judging)
            _, least = critic.judge(
                window.trajectory, left, torch.full_like(left, torch.inf), planner.cost_level
            )
            undiscounted = least.double().cpu().numpy()
        else:
            predicted = state.models["cost_critic"](window.trajectory, level, left).double().cpu().numpy()
            undiscounted = predicted * length / geometric_sum(state.config.cost_discount, length)
    result = HeldOutCalibration(
        excesses=tuple((dataset.episode_costs - undiscounted).tolist()),
        dataset=str(dataset.metadata.get("name")),
        planner=plain(state.config.planner),
        greatest_step_cost=max(0.0, float(dataset.costs.max())),
        models=fingerprint,
    )
    for risk in risks:
        result.reserve(risk)
    return result
