"""The convolutional critic: how much reward or cost is still to come, told from a noisy trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from trebi_gym.agents.networks.embeddings import StepsLeft, one_row_if_equal
from trebi_gym.agents.networks.temporal_unet import Downsample, ResidualBlock, step_mlp


def halved(length: int, times: int) -> int:
    """Return a horizon's length after `times` convolutions of stride 2, each of which rounds up."""
    for _ in range(times):
        length = (length + 1) // 2
    return length


class TemporalCritic(nn.Module):
    """Predict a sum to the episode's end from a noisy trajectory (arXiv 2205.09991, app. C; 2306.00603).

    Args:
        horizon: H, rows of a trajectory; any.
        transition_dim: D, action and observation dimensions together.
        dim: channels at the finest resolution, and width of the step embedding.
        dim_mults: channels of each resolution, in units of dim.
        steps_left: whether the critic also reads how many steps the episode still has.
        episode_length: the scale of steps_left, in steps; needed with steps_left.

    Raises:
        ValueError: where steps_left is asked for without an episode_length.
    """

    def __init__(
        self,
        horizon: int,
        transition_dim: int,
        dim: int = 32,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        steps_left: bool = False,
        episode_length: int | None = None,
    ) -> None:
        super().__init__()
        if not dim_mults:
            raise ValueError("dim_mults needs at least one resolution, got none")
        self.horizon, self.transition_dim = horizon, transition_dim
        widths = [transition_dim, *(dim * mult for mult in dim_mults)]
        self.time_mlp = step_mlp(dim)
        self.steps_left = StepsLeft(episode_length) if steps_left else None
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [ResidualBlock(fine, coarse, dim), ResidualBlock(coarse, coarse, dim), Downsample(coarse)]
            )
            for fine, coarse in pairwise(widths)
        )
        half, quarter = max(widths[-1] // 2, 1), max(widths[-1] // 4, 1)
        self.mid_block1 = ResidualBlock(widths[-1], half, dim)
        self.mid_down1 = Downsample(half)
        self.mid_block2 = ResidualBlock(half, quarter, dim)
        self.mid_down2 = Downsample(quarter)
        features = quarter * halved(horizon, len(dim_mults) + 2)
        self.final_block = nn.Sequential(
            nn.Linear(features + dim + int(steps_left), max(features // 2, 1)),
            nn.Mish(),
            nn.Linear(max(features // 2, 1), 1),
        )

    def forward(self, x: Tensor, t: Tensor, steps_left: Tensor | None = None) -> Tensor:
        """Predict (B,) from the noisy x (B, H, D) at steps t (B,), with steps_left (B,) where built for it.

        A critic built without steps_left ignores it.
        """
        embedding = self.time_mlp(one_row_if_equal(t))
        x = x.transpose(1, 2)
        for level in self.blocks:
            first, second, downsample = cast(nn.ModuleList, level)
            x = downsample(second(first(x, embedding), embedding))
        x = self.mid_down1(self.mid_block1(x, embedding))
        x = self.mid_down2(self.mid_block2(x, embedding))
        features = [x.flatten(1), embedding.expand(x.shape[0], -1)]
        if self.steps_left is not None:
            features.append(self.steps_left(steps_left))
        return cast(Tensor, self.final_block(torch.cat(features, dim=1)))[:, 0]
