"""Copies of trained networks that plan faster and compute the same, up to the last bits."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from trebi_gym.agents.networks.embeddings import one_row_if_equal
from trebi_gym.agents.networks.mlp import MLPBlock, MLPCritic, MLPTrunk

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


class PairedMLPCritics(nn.Module):
    """What two trained `MLPCritic`s predict, in one pass; it holds copies of their weights.

    Args:
        first: a critic.
        second: another of the same shape.
    """

    def __init__(self, first: MLPCritic, second: MLPCritic) -> None:
        super().__init__()
        self.steps_left = first.steps_left
        self.trunks = nn.ModuleList([first.trunk, second.trunk])
        self.blocks = len(first.trunk.blocks)
        self.width = first.trunk.enter.out_features
        pairs = [_layers(first), _layers(second)]
        for name, (one, norm) in pairs[0].items():
            other, other_norm = pairs[1][name]
            weight = torch.stack([one.weight.detach(), other.weight.detach()]).transpose(1, 2).contiguous()
            bias = torch.stack([one.bias.detach(), other.bias.detach()])[:, None]
            if norm is not None and other_norm is not None:
                # a normalisation's gain and shift go into the layer that follows it
                bias = bias + torch.stack([norm.bias.detach(), other_norm.bias.detach()])[:, None] @ weight
                weight = weight * torch.stack([norm.weight.detach(), other_norm.weight.detach()])[:, :, None]
            self.register_buffer(f"{name}_weight", weight)
            self.register_buffer(f"{name}_bias", bias)

    def forward(self, x: Tensor, t: Tensor, steps_left: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predict two times (B,) from the noisy x (B, H, D) at steps t (B,)."""
        features = x.flatten(1)
        if self.steps_left is not None:
            features = torch.cat([features, self.steps_left(steps_left)], dim=1)
        step = one_row_if_equal(t)
        embedded = torch.stack([cast(MLPTrunk, trunk).modulations(step) for trunk in self.trunks])
        parts = embedded.chunk(self.blocks, dim=2)
        hidden = self._linear("enter", features.expand(2, -1, -1))
        for index, part in enumerate(parts):
            inner = nn.functional.silu(self._linear(f"first{index}", self._normalised(hidden)) + part)
            hidden = hidden + self._linear(f"second{index}", inner)
        result = self._linear("leave", self._normalised(hidden))[..., 0]
        return result[0], result[1]

    def _normalised(self, hidden: Tensor) -> Tensor:
        return nn.functional.layer_norm(hidden, (self.width,))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return torch.baddbmm(self.get_buffer(f"{name}_bias"), x, self.get_buffer(f"{name}_weight"))


def _layers(critic: MLPCritic) -> dict[str, tuple[nn.Linear, nn.LayerNorm | None]]:
    """Return the linear layers by name, each with the normalisation before it."""
    layers: dict[str, tuple[nn.Linear, nn.LayerNorm | None]] = {"enter": (critic.trunk.enter, None)}
    for index, block in enumerate(cast(list[MLPBlock], critic.trunk.blocks)):
        layers[f"first{index}"] = (block.first, block.norm)
        layers[f"second{index}"] = (block.second, None)
    return layers | {"leave": (critic.leave, critic.trunk.norm)}


def pair(first: nn.Module, second: nn.Module) -> PairedMLPCritics | None:
    """Return two critics as one network, or None where their shapes differ or there is no such network for them."""
    if not (isinstance(first, MLPCritic) and isinstance(second, MLPCritic)):
        return None
    if [p.shape for p in first.parameters()] != [p.shape for p in second.parameters()]:
        return None
    lengths = {None if c.steps_left is None else c.steps_left.episode_length for c in (first, second)}
    return PairedMLPCritics(first, second) if len(lengths) == 1 else None
