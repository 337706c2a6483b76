"""The temporal U-Net of Diffuser (arXiv 2205.09991, app. C) and the blocks that its critic shares.

Module names and indices are those inside published checkpoints, so that weights load without renaming.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from trebi_gym.agents.networks.embeddings import (
    ScalarEmbedding,
    SinusoidalEmbedding,
    check_condition,
    one_row_if_equal,
)

KERNEL = 5
GROUPS = 8


class ConvBlock(nn.Module):
    """Convolution along the horizon, group normalisation, Mish: (B, C_in, H) -> (B, C_out, H)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        # The identity keeps the normalisation at index 2, its place in published weights.
        self.block = nn.Sequential(
            nn.Conv1d(channels_in, channels_out, KERNEL, padding=KERNEL // 2),
            nn.Identity(),
            nn.GroupNorm(math.gcd(GROUPS, channels_out), channels_out),
            nn.Mish(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C_in, H) to (B, C_out, H)."""
        return cast(Tensor, self.block(x))


class ResidualBlock(nn.Module):
    """Two `ConvBlock`s, the step embedding added in between, and a skip: (B, C_in, H) -> (B, C_out, H)."""

    def __init__(self, channels_in: int, channels_out: int, embed_dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [ConvBlock(channels_in, channels_out), ConvBlock(channels_out, channels_out)]
        )
        self.time_mlp = nn.Sequential(nn.Mish(), nn.Linear(embed_dim, channels_out))
        self.residual_conv = (
            nn.Conv1d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map x (B, C_in, H) with a step embedding (B or 1, E) to (B, C_out, H)."""
        first, second = self.blocks
        hidden = first(x) + self.time_mlp(embedding)[:, :, None]
        return cast(Tensor, second(hidden) + self.residual_conv(x))


class Downsample(nn.Module):
    """Halve the horizon, rounding up, by a strided convolution: (B, C, H) -> (B, C, ceil(H / 2))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H) to (B, C, ceil(H / 2))."""
        return cast(Tensor, self.conv(x))


class Upsample(nn.Module):
    """Double the horizon by a transposed convolution: (B, C, H) -> (B, C, 2 H)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(channels, channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H) to (B, C, 2 H)."""
        return cast(Tensor, self.conv(x))


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of (B, C, H), with gain g and bias b (1, C, 1)."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.g = nn.Parameter(torch.ones(1, channels, 1))
        self.b = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, H) over C."""
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.g + self.b


class LinearAttention(nn.Module):
    """Attention over the horizon in linear time (arXiv 1812.01243): softmax over the keys' positions only."""

    def __init__(self, channels: int, heads: int = 4, head_dim: int = 32) -> None:
        super().__init__()
        self.heads = heads
        self.scale = head_dim**-0.5
        self.to_qkv = nn.Conv1d(channels, 3 * heads * head_dim, 1, bias=False)
        self.to_out = nn.Conv1d(heads * head_dim, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H) to (B, C, H)."""
        query, key, value = rearrange(self.to_qkv(x), "b (n h d) t -> n b h d t", n=3, h=self.heads)
        context = torch.einsum("bhdt,bhet->bhde", key.softmax(dim=-1), value)
        mixed = torch.einsum("bhde,bhdt->bhet", context, query * self.scale)
        return cast(Tensor, self.to_out(rearrange(mixed, "b h e t -> b (h e) t")))


class PreNorm(nn.Module):
    """Normalise the channels, then apply fn."""

    def __init__(self, channels: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H) to fn(norm(x))."""
        return cast(Tensor, self.fn(self.norm(x)))


class Residual(nn.Module):
    """Add fn's output to its input."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H) to fn(x) + x."""
        return cast(Tensor, self.fn(x) + x)


def attention_or_identity(channels: int, attention: bool) -> nn.Module:
    """Build the attention of one resolution, or the identity where there is none."""
    return Residual(PreNorm(channels, LinearAttention(channels))) if attention else nn.Identity()


def step_mlp(dim: int) -> nn.Sequential:
    """Build the network that embeds a denoising step: (B,) -> (B, dim)."""
    return nn.Sequential(
        SinusoidalEmbedding(dim), nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim)
    )


class TemporalUnet(nn.Module):
    """Predict the clean trajectory from a noisy one by convolutions along the horizon (arXiv 2205.09991).

    Args:
        horizon: H, rows of a trajectory; a multiple of 2 ** (len(dim_mults) - 1).
        transition_dim: D, action and observation dimensions together.
        dim: channels at the finest resolution, and width of the step embedding.
        dim_mults: channels of each resolution, in units of dim.
        attention: whether each resolution also attends over the horizon.
        condition: whether `forward` takes a scalar condition per row.

    Raises:
        ValueError: where the horizon cannot be halved as often as there are resolutions less one.
    """

    def __init__(
        self,
        horizon: int,
        transition_dim: int,
        dim: int = 32,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        attention: bool = False,
        condition: bool = False,
    ) -> None:
        super().__init__()
        if not dim_mults:
            raise ValueError("dim_mults needs at least one resolution, got none")
        halvings = len(dim_mults) - 1
        if horizon < 1 or horizon % 2**halvings:
            raise ValueError(
                f"a U-Net of {len(dim_mults)} resolutions halves the horizon {halvings} times, so it "
                f"must be a multiple of {2**halvings}, got {horizon}: change it or shorten dim_mults"
            )
        self.horizon, self.transition_dim, self.accepts_condition = horizon, transition_dim, condition
        widths = [transition_dim, *(dim * mult for mult in dim_mults)]
        pairs = list(pairwise(widths))

        self.time_mlp = step_mlp(dim)
        if condition:
            self.condition_mlp = ScalarEmbedding(dim)
        self.downs = nn.ModuleList(
            nn.ModuleList(
                [
                    ResidualBlock(coarse_in, coarse_out, dim),
                    ResidualBlock(coarse_out, coarse_out, dim),
                    attention_or_identity(coarse_out, attention),
                    Downsample(coarse_out) if level < halvings else nn.Identity(),
                ]
            )
            for level, (coarse_in, coarse_out) in enumerate(pairs)
        )
        self.mid_block1 = ResidualBlock(widths[-1], widths[-1], dim)
        self.mid_attn = attention_or_identity(widths[-1], attention)
        self.mid_block2 = ResidualBlock(widths[-1], widths[-1], dim)
        self.ups = nn.ModuleList(
            nn.ModuleList(
                [
                    ResidualBlock(2 * coarse_out, coarse_in, dim),
                    ResidualBlock(coarse_in, coarse_in, dim),
                    attention_or_identity(coarse_in, attention),
                    Upsample(coarse_in),
                ]
            )
            for coarse_in, coarse_out in reversed(pairs[1:])
        )
        self.final_conv = nn.Sequential(
            ConvBlock(widths[1], widths[1]), nn.Conv1d(widths[1], transition_dim, 1)
        )

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Predict the clean trajectory (B, H, D) from the noisy x (B, H, D) at steps t (B,)."""
        check_condition(condition, self.accepts_condition)
        embedding = self.time_mlp(one_row_if_equal(t))
        if self.accepts_condition:
            embedding = embedding + self.condition_mlp(condition)
        x = x.transpose(1, 2)
        skips: list[Tensor] = []
        for level in self.downs:
            first, second, attend, downsample = cast(nn.ModuleList, level)
            x = attend(second(first(x, embedding), embedding))
            skips.append(x)
            x = downsample(x)
        x = self.mid_block2(self.mid_attn(self.mid_block1(x, embedding)), embedding)
        for level in self.ups:
            first, second, attend, upsample = cast(nn.ModuleList, level)
            x = torch.cat([x, skips.pop()], dim=1)
            x = upsample(attend(second(first(x, embedding), embedding)))
        return cast(Tensor, self.final_conv(x)).transpose(1, 2)
