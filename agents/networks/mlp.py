"""Residual MLPs on the flattened window: the fast denoiser and the fast critic."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from trebi_gym.agents.networks.embeddings import (
    ScalarEmbedding,
    StepsLeft,
    StepTable,
    check_condition,
    one_row_if_equal,
)

STEP_DIM = 64

MOST_BLOCKS = 256
"""Of an MLP: each is a module, which takes memory before any weight does."""


class MLPBlock(nn.Module):
    """`h + W2 silu(W1 norm(h) + embedding)` on (B, W)."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        # So that the sum over the blocks starts at the size of one block's output.
        nn.init.zeros_(self.second.bias)
        with torch.no_grad():
            self.second.weight.mul_(blocks**-0.5)

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Map hidden (B, W) with the embedding (B or 1, W) to (B, W)."""
        inner = nn.functional.silu(self.first(self.norm(hidden)) + embedding)
        return cast(Tensor, hidden + self.second(inner))


class MLPTrunk(nn.Module):
    """Features (B, F) at a step (B,) -> (B, W): linear, residual blocks, layer normalisation."""

    def __init__(self, features: int, width: int, blocks: int) -> None:
        super().__init__()
        if width < 1 or not 1 <= blocks <= MOST_BLOCKS:
            raise ValueError(
                f"an MLP needs a width of at least 1 and from 1 to {MOST_BLOCKS} blocks, got {width} and {blocks}"
            )
        self.embed = nn.Sequential(StepTable(STEP_DIM), nn.Linear(STEP_DIM, width))
        # One matrix for all the blocks: one kernel where there would be one a block.
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(width, blocks * width))
        self.enter = nn.Linear(features, width)
        self.blocks = nn.ModuleList(MLPBlock(width, blocks) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map features (B, F) at steps t (B,) to (B, W); condition (B or 1, W) joins the step embedding."""
        parts = self.modulations(one_row_if_equal(t), condition).chunk(len(self.blocks), dim=1)
        hidden = self.enter(features)
        for block, part in zip(self.blocks, parts, strict=True):
            hidden = block(hidden, part)
        return cast(Tensor, self.norm(hidden))

    def modulations(self, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return what is added in every block, side by side (B or 1, blocks * W)."""
        embedding = self.embed(t)
        if condition is not None:
            embedding = embedding + condition
        return cast(Tensor, self.modulate(embedding))


class MLPDenoiser(nn.Module):
    """Predict the clean trajectory from a noisy one by a residual MLP on the flattened window.

    Args:
        horizon: H, rows of a trajectory.
        transition_dim: D, action and observation dimensions together.
        width: units of a layer.
        blocks: residual blocks.
        condition: whether `forward` takes a scalar condition per row.
    """

    def __init__(
        self, horizon: int, transition_dim: int, width: int = 256, blocks: int = 3, condition: bool = False
    ) -> None:
        super().__init__()
        self.horizon, self.transition_dim, self.accepts_condition = horizon, transition_dim, condition
        self.trunk = MLPTrunk(horizon * transition_dim, width, blocks)
        if condition:
            self.condition_mlp = ScalarEmbedding(width)
        self.leave = nn.Linear(width, horizon * transition_dim)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Predict the clean trajectory (B, H, D) from the noisy x (B, H, D) at steps t (B,).

        Rows of condition (B,) that are not finite, and condition=None, mean "no condition".
        """
        check_condition(condition, self.accepts_condition)
        embedded = self.condition_mlp(condition) if self.accepts_condition else None
        return cast(Tensor, self.leave(self.trunk(x.flatten(1), t, embedded))).view_as(x)


class MLPCritic(nn.Module):
    """Predict a sum to the episode's end from a noisy trajectory by a residual MLP on the flattened window.

    Args:
        horizon: H, rows of a trajectory.
        transition_dim: D, action and observation dimensions together.
        width: units of a layer.
        blocks: residual blocks.
        steps_left: whether the critic also reads how many steps the episode still has.
        episode_length: the scale of steps_left, in steps; needed with steps_left.

    Raises:
        ValueError: where steps_left is asked for without an episode_length.
    """

    def __init__(
        self,
        horizon: int,
        transition_dim: int,
        width: int = 256,
        blocks: int = 2,
        steps_left: bool = False,
        episode_length: int | None = None,
    ) -> None:
        super().__init__()
        self.horizon, self.transition_dim = horizon, transition_dim
        self.steps_left = StepsLeft(episode_length) if steps_left else None
        self.trunk = MLPTrunk(horizon * transition_dim + int(steps_left), width, blocks)
        self.leave = nn.Linear(width, 1)

    def forward(self, x: Tensor, t: Tensor, steps_left: Tensor | None = None) -> Tensor:
        """Predict (B,) from the noisy x (B, H, D) at steps t (B,), with steps_left (B,) where built for it.

        A critic built without steps_left ignores it.
        """
        features = x.flatten(1)
        if self.steps_left is not None:
            features = torch.cat([features, self.steps_left(steps_left)], dim=1)
        return cast(Tensor, self.leave(self.trunk(features, t)))[:, 0]
