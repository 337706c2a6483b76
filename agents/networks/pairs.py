"""Two critics of the same shape as one network: half as many, twice as large operations."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from trebi_gym.agents.networks.embeddings import one_row_if_equal
from trebi_gym.agents.networks.mlp import MLPBlock, MLPCritic, MLPTrunk


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
