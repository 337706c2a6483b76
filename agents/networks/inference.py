"""Copies of trained networks that plan faster on a CPU and compute the same, up to the last bits."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

SHORT = 4
"""Convolutions along at most this many rows are done as one matrix product."""


class _Mish(torch.autograd.Function):
    """`x tanh(softplus(x)) = x (1 - 2 r)` with `r = 1 / ((1 + e^x)^2 + 1)`: one exponential instead of four functions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if not ctx.needs_input_grad[0]:
            r = x.exp().add_(1).square_().add_(1).reciprocal_()  # 0 where e^x overflows, as it should be
            return torch.addcmul(x, x, r, value=-2)
        y = x.clamp(max=20.0)  # beyond, the slope is 1 and squares would overflow
        w = y.exp()
        s = w + 1
        r = (s * s).add_(1).reciprocal_()
        # the derivative, 1 - 2 r + 4 x r^2 (1 + e^x) e^x
        slope = s.mul_(w).mul_(r).mul_(y).mul_(2).sub_(1).mul_(r).mul_(2).add_(1)
        ctx.save_for_backward(slope)
        return torch.addcmul(x, x, r, value=-2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return gradients[0] * cast(Tensor, slope)


class Mish(nn.Module):
    """Mish in fewer passes over the memory than PyTorch's takes on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x to x tanh(softplus(x))."""
        return cast(Tensor, _Mish.apply(x))  # type: ignore[no-untyped-call]


class ShortConv(nn.Module):
    """A convolution along few rows as one matrix: nothing is spent on the padding, of which short inputs are mostly made.

    Args:
        convolution: with fixed weights.
        rows: of its input.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, convolution: nn.Conv1d, rows: int) -> None:
        super().__init__()
        self.channels = convolution.out_channels
        with torch.no_grad():
            eye = torch.eye(convolution.in_channels * rows).to(convolution.weight)
            at_zero = convolution(torch.zeros(1, convolution.in_channels, rows).to(eye))
            columns = convolution(eye.view(-1, convolution.in_channels, rows)) - at_zero
        self.register_buffer("weight", columns.flatten(1).contiguous(), persistent=False)
        self.register_buffer("bias", at_zero.flatten().contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C_in, rows) to (B, C_out, rows after the stride)."""
        return torch.addmm(self.bias, x.flatten(1), self.weight).view(len(x), self.channels, -1)


def for_inference(network: nn.Module, horizon: int, transition_dim: int) -> nn.Module:
    """Return a copy that cannot be trained; on a CPU, one that is faster there. The network itself is left as it is.

    Args:
        network: a denoiser or critic, reading (B, H, D).
        horizon: H.
        transition_dim: D.
    """
    result = copy.deepcopy(network).eval().requires_grad_(False)
    device = next(result.parameters()).device
    if device.type != "cpu":
        return result
    rows = _rows_of_convolutions(result, horizon, transition_dim)
    for parent in list(result.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Mish):
                setattr(parent, name, Mish())
            elif (
                isinstance(child, nn.Conv1d) and child.kernel_size[0] > 1 and 0 < rows.get(child, 0) <= SHORT
            ):
                setattr(parent, name, ShortConv(child, rows[child]))
    return result


def _rows_of_convolutions(network: nn.Module, horizon: int, transition_dim: int) -> dict[nn.Module, int]:
    """Return how many rows each convolution reads, seen in one pass."""
    rows: dict[nn.Module, int] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows[module] = inputs[0].shape[-1]

    hooks = [m.register_forward_pre_hook(note) for m in network.modules() if isinstance(m, nn.Conv1d)]
    if hooks:
        with torch.no_grad():
            # two plans: a group of a single number cannot be normalised
            x = torch.zeros(2, horizon, transition_dim, dtype=next(network.parameters()).dtype)
            t = torch.zeros(2, dtype=torch.long)
            network(x, t, *([torch.ones(2)] if getattr(network, "steps_left", None) else []))
    for hook in hooks:
        hook.remove()
    return rows
