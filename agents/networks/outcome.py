"""What a clean plan leads to: quantiles of the cost still to come, and the reward that goes with a cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from trebi_gym.agents.networks.embeddings import StepsLeft
from trebi_gym.agents.networks.mlp import MLPTrunk

LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)


class OutcomeCritic(nn.Module):
    """Predict how an episode goes on from a clean window, with the steps left, all sums undiscounted.

    How the rest of an episode goes is settled by what is chosen later, so a window alone does not tell it. Two residual
    MLPs split the question: what the rest may cost, as quantiles (Koenker and Bassett 1978), and what it earns *if* it
    costs a given sum.

    Args:
        horizon: H, rows of a trajectory.
        transition_dim: D, action and observation dimensions together.
        width: units of a layer.
        blocks: residual blocks.
        levels: of the K quantiles, ascending.
        episode_length: the scale of steps_left and of rewards, in steps.
        cost_scale: the scale of costs.

    Raises:
        ValueError: levels that do not ascend within (0, 1), or a scale that is not positive.
    """

    def __init__(
        self,
        horizon: int,
        transition_dim: int,
        width: int = 128,
        blocks: int = 2,
        levels: Sequence[float] = LEVELS,
        episode_length: int = 1,
        cost_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.levels = tuple(float(level) for level in levels)
        ascending = all(a < b for a, b in zip((0.0, *self.levels), (*self.levels, 1.0), strict=True))
        if not self.levels or not ascending:
            raise ValueError(f"levels must ascend within (0, 1); got {levels!r}")
        if not cost_scale > 0:
            raise ValueError(f"cost_scale must be positive; got {cost_scale!r}")
        self.horizon, self.transition_dim = horizon, transition_dim
        self.steps_left = StepsLeft(episode_length)
        self.cost_scale, self.reward_scale = float(cost_scale), float(episode_length)
        features = horizon * transition_dim + 1
        self.cost_trunk = MLPTrunk(features, width, blocks)
        self.cost_leave = nn.Linear(width, len(self.levels))
        self.reward_trunk = MLPTrunk(features + 1, width, blocks)
        self.reward_leave = nn.Linear(width, 1)

    def costs(self, x: Tensor, steps_left: Tensor) -> Tensor:
        """Return the quantiles (B, K), ascending, of what episodes cost from the windows x (B, H, D) on."""
        raw = self.cost_leave(self.cost_trunk(self._features(x, steps_left), self._no_step(x)))
        first, rises = raw[:, :1], nn.functional.softplus(raw[:, 1:])
        return self.cost_scale * torch.cat([first, first + rises.cumsum(dim=1)], dim=1)

    def rewards(self, x: Tensor, steps_left: Tensor, costs: Tensor) -> Tensor:
        """Return what episodes that cost `costs` (B,) from the windows x (B, H, D) on earn from there on (B,)."""
        features = torch.cat([self._features(x, steps_left), costs[:, None] / self.cost_scale], dim=1)
        return self.reward_scale * cast(
            Tensor, self.reward_leave(self.reward_trunk(features, self._no_step(x)))
        ).squeeze(1)

    def judge(self, x: Tensor, steps_left: Tensor, budgets: Tensor, level: float) -> tuple[Tensor, Tensor]:
        """Return what the rest earns (B,) if the budgets (B,) are spent, and the quantile (B,) of a level of its cost.

        A budget beyond what episodes from the windows x (B, H, D) cost, the lowest to the highest quantile, is not spent:
        the nearest of these is.

        Raises:
            ValueError: the level lies outside those that were learned.
        """
        known = self.costs(x, steps_left)
        spent = torch.minimum(torch.maximum(budgets, known[:, 0]), known[:, -1])
        return self.rewards(x, steps_left, spent), self._at(known, level)

    def quantile(self, x: Tensor, steps_left: Tensor, level: float) -> Tensor:
        """Return the quantile (B,) of a level, by interpolation between those that were learned.

        Raises:
            ValueError: the level lies outside those.
        """
        return self._at(self.costs(x, steps_left), level)

    def _at(self, known: Tensor, level: float) -> Tensor:
        if not self.levels[0] <= level <= self.levels[-1]:
            raise ValueError(
                f"the level must lie within {self.levels[0]:g} to {self.levels[-1]:g}; got {level:g}"
            )
        above = next(k for k, reached in enumerate(self.levels) if reached >= level)
        if self.levels[above] == level:
            return known[:, above]
        low, high = self.levels[above - 1], self.levels[above]
        return torch.lerp(known[:, above - 1], known[:, above], (level - low) / (high - low))

    def _features(self, x: Tensor, steps_left: Tensor) -> Tensor:
        return torch.cat([x.flatten(1), self.steps_left(steps_left)], dim=1)

    @staticmethod
    def _no_step(x: Tensor) -> Tensor:
        return torch.zeros(1, dtype=torch.long, device=x.device).expand(len(x))


def outcome_loss(
    critic: OutcomeCritic, x: Tensor, steps_left: Tensor, costs: Tensor, rewards: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the mean quantile loss of costs (B,) and the mean squared error of rewards (B,), both in units of their scales.

    The reward is asked for at the cost that the episode had: in hindsight.
    """
    error = (costs[:, None] - critic.costs(x, steps_left)) / critic.cost_scale
    level = torch.tensor(critic.levels, device=x.device)
    quantile_loss = torch.maximum(level * error, (level - 1) * error).mean()
    squared = ((critic.rewards(x, steps_left, costs) - rewards) / critic.reward_scale).square().mean()
    return quantile_loss, squared
