"""Candidate plans: as the search leaves them on the device, and as a user sees them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True)
class Plan:
    """N candidate plans of H steps for each of E environments, the best first."""

    actions: npt.NDArray[np.float32]  # (E, N, H, A)
    observations: npt.NDArray[np.float32]  # (E, N, H, O)
    rewards: npt.NDArray[
        np.float32
    ]  # (E, N) predicted reward to the end, discounted unless the outcome critic says it
    costs: npt.NDArray[np.float32]  # (E, N) predicted cost to the episode's end, in the critic's units
    budgets: npt.NDArray[np.float32]  # (E,) what the costs were held against, in the same units

    @property
    def feasible(self) -> npt.NDArray[np.bool_]:
        """(E, N) whether a plan is predicted to keep its budget; none keeps one below zero."""
        kept: npt.NDArray[np.bool_] = (self.costs <= self.budgets[:, None]) & (self.budgets >= 0)[:, None]
        return kept


@dataclass(frozen=True)
class Candidates:
    """What the search leaves on the device."""

    trajectories: torch.Tensor  # (E, N, H, D) normalised, in drawing order
    rewards: torch.Tensor  # (E, N)
    costs: torch.Tensor  # (E, N)
    order: torch.Tensor  # (E, N) indices, best first

    @property
    def parts(self) -> tuple[torch.Tensor, ...]:
        """The fields, in order."""
        return self.trajectories, self.rewards, self.costs, self.order


def least_costs(costs: torch.Tensor) -> torch.Tensor:
    """Return the least cost (E,) of the candidates (E, N); one that is not a number counts as infinite."""
    return torch.nan_to_num(costs, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).amin(dim=1)
