"""Calibrating without an environment: what logged episodes, which nothing was learned from, cost beyond prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from trebi_gym.agents.calibration.fingerprints import count_learned
from trebi_gym.agents.calibration.statistics import HeldOutCalibration
from trebi_gym.agents.models import OUTCOME, described, make_windows
from trebi_gym.agents.networks import BudgetCritic, PlanCritic
from trebi_gym.agents.planning.budgets import geometric_sum
from trebi_gym.agents.serializable import plain
from trebi_gym.agents.spaces import check_dataset
from trebi_gym.agents.torch_settings import usual_settings
from trebi_gym.datasets import EpisodeDataset
from trebi_gym.errors import CalibrationError

if TYPE_CHECKING:
    from trebi_gym.agents.agent import TREBIAgent


@usual_settings()
def on_held_out(agent: TREBIAgent, dataset: EpisodeDataset, risks: Sequence[float]) -> HeldOutCalibration:
    """Compare logged episodes' costs with what the critic says at their start; see ``TREBIAgent.calibrate``.

    Raises:
        CalibrationError: the agent learned from any of these episodes, or they are too few.
        DatasetError: they are of other sizes than the agent's, or have actions that it cannot choose.
    """
    _, task = agent.ready()
    assert agent.observation_space is not None
    assert agent.action_space is not None
    check_dataset(dataset, agent.observation_space, agent.action_space)
    learned = _count_learned(agent, dataset)
    if learned:
        raise CalibrationError(
            f"the agent learned from {learned} of these {len(dataset)} episodes, so they tell nothing of its error on "
            "others; learn from one part and calibrate on the other: learned, held_out = dataset.split(0.2)"
        )
    windows = make_windows(dataset, agent.config, task, agent.device)
    first = torch.nonzero(windows.steps_left == windows.steps_left.max())[:, 0]
    window = windows[first]
    level = torch.zeros(len(first), dtype=torch.long, device=agent.device)
    length = np.full(len(first), float(task.episode_length))
    planner = agent.config.planner
    with torch.no_grad():
        left = torch.full((len(first),), float(task.episode_length), device=agent.device)
        judging = agent.models.get(OUTCOME)
        # the critic whose word plans are chosen by; but a budget critic's least cost is no prediction of logged episodes
        if planner.ranking == "outcome" and not isinstance(judging, BudgetCritic):
            critic = cast(PlanCritic, judging)
            _, least = critic.judge(
                window.trajectory, left, torch.full_like(left, torch.inf), planner.cost_level
            )
            undiscounted = least.double().cpu().numpy()
        else:
            predicted = agent.models["cost_critic"](window.trajectory, level, left).double().cpu().numpy()
            undiscounted = predicted * length / geometric_sum(agent.config.cost_discount, length)
    result = HeldOutCalibration(
        excesses=tuple((dataset.episode_costs - undiscounted).tolist()),
        dataset=str(dataset.metadata.get("name")),
        planner=plain(agent.config.planner),
        greatest_step_cost=max(0.0, float(dataset.costs.max())),
        models=agent.weights_mark(),
    )
    for risk in risks:
        result.reserve(risk)
    return result


def _count_learned(agent: TREBIAgent, dataset: EpisodeDataset) -> int:
    """Return how many of the episodes the agent learned from, as far as its file tells."""
    counted = count_learned(agent.learned_from, dataset)
    if counted is not None:
        return counted
    # an agent from before episodes were marked: only whole data sets can be told apart
    now = described(dataset)
    same = all(agent.learned_from.get(key) == now.get(key) for key in ("name", "episodes", "steps", "split"))
    return len(dataset) if same else 0
