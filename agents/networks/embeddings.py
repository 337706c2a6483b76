"""How a network reads the denoising step, and how it reads a scalar condition."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MAX_STEPS = 1024
"""The most denoising steps that a `StepTable` can tell apart."""


def sinusoidal(t: Tensor, dim: int) -> Tensor:
    """Embed steps t (B,) as sines and cosines (B, dim) of geometric frequencies (arXiv 1706.03762).

    The frequencies are `10000 ** (-k / (dim / 2 - 1))` for k = 0 ... dim / 2 - 1; the sines come first.
    """
    half = dim // 2
    rate = -math.log(10000.0) / (half - 1)
    frequencies = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * rate)
    angles = t.to(torch.float32)[:, None] * frequencies[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def one_row_if_equal(t: Tensor) -> Tensor:
    """Return t[:1] where t (B,) is one step expanded over the batch (stride 0), else t itself.

    The samplers give every row the same step as an expanded view, so a network needs to embed it only once;
    the check reads the stride, not the values, and so never waits for the device.
    """
    return t[:1] if t.stride(0) == 0 else t


def check_embedding_dim(dim: int) -> None:
    """Raise ValueError unless dim is even and at least 4, so that sines and cosines split it."""
    if dim < 4 or dim % 2:
        raise ValueError(f"the step embedding needs an even width of at least 4, got {dim}")


class SinusoidalEmbedding(nn.Module):
    """Steps (B,) -> (B, dim), computed at every call and without parameters."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        check_embedding_dim(dim)
        self.dim = dim

    def forward(self, t: Tensor) -> Tensor:
        """Embed t (B,) as (B, dim)."""
        return sinusoidal(t, self.dim)


class StepTable(nn.Module):
    """Steps (B,) in 0 ... MAX_STEPS - 1 -> (B, dim), looked up in a table that no checkpoint stores."""

    table: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        check_embedding_dim(dim)
        self.register_buffer("table", sinusoidal(torch.arange(MAX_STEPS), dim), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """Embed integer steps t (B,) as (B, dim)."""
        return self.table[t]


class ScalarEmbedding(nn.Module):
    """A scalar condition (B,) -> (B, dim); rows that are not finite mean "none" and get a learned vector.

    This is the null token of classifier-free guidance (arXiv 2207.12598): train with some rows set to NaN,
    and the same network also answers unconditionally. The caller scales the condition to about unit size.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.null = nn.Parameter(torch.zeros(dim))

    def forward(self, condition: Tensor | None) -> Tensor:
        """Embed condition (B,) as (B, dim), or None as (1, dim)."""
        if condition is None:
            return self.null[None, :]
        present = torch.isfinite(condition)[:, None]
        # The value is replaced before the network, not after: a NaN inside it would poison the gradients.
        value = torch.where(present, condition[:, None].to(self.null.dtype), 0.0)
        return torch.where(present, self.net(value), self.null)


def check_condition(condition: Tensor | None, accepts: bool) -> None:
    """Raise ValueError where a condition is given to a network that was built without one."""
    if condition is not None and not accepts:
        raise ValueError("this denoiser was built with condition=False and cannot take a condition")


class StepsLeft(nn.Module):
    """Steps left in the episode (B,) -> the feature steps_left / episode_length (B, 1)."""

    def __init__(self, episode_length: int | None) -> None:
        super().__init__()
        if episode_length is None or episode_length < 1:
            raise ValueError(
                f"a critic with steps_left=True needs an episode_length >= 1, got {episode_length}"
            )
        self.episode_length = episode_length

    def forward(self, steps_left: Tensor | None) -> Tensor:
        """Scale steps_left (B,) to (B, 1); raise ValueError where it is None."""
        if steps_left is None:
            raise ValueError("this critic was built with steps_left=True: pass steps_left (B,) at every call")
        return steps_left.to(torch.float32)[:, None] / self.episode_length
