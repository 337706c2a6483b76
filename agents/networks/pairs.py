"""Two critics of the same shape as one network: half as many, twice as large operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from trebi_gym.agents.networks.embeddings import one_row_if_equal
from trebi_gym.agents.networks.mlp import MLPBlock, MLPCritic


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

        def both(of: Callable[[MLPCritic], Tensor], transpose: bool = False) -> Tensor:
            pair = torch.stack([of(first).detach(), of(second).detach()])
            return pair.transpose(1, 2).contiguous() if transpose else pair[:, None]

        def linear(name: str, of: Callable[[MLPCritic], nn.Linear]) -> None:
            self.register_buffer(f"{name}_weight", both(lambda critic: of(critic).weight, transpose=True))
            self.register_buffer(f"{name}_bias", both(lambda critic: of(critic).bias))

        # A normalisation's gain and shift go into the layer that follows it.
        def normalised(
            name: str, norm: Callable[[MLPCritic], nn.LayerNorm], of: Callable[[MLPCritic], nn.Linear]
        ) -> None:
            linear(name, of)
            weight, bias = self.get_buffer(f"{name}_weight"), self.get_buffer(f"{name}_bias")
            bias += both(lambda critic: norm(critic).bias) @ weight
            weight *= both(lambda critic: norm(critic).weight).transpose(1, 2)

        def block(critic: MLPCritic, index: int) -> MLPBlock:
            return cast(MLPBlock, critic.trunk.blocks[index])

        self.blocks = len(first.trunk.blocks)
        self.width = first.trunk.enter.out_features
        linear("enter", lambda critic: critic.trunk.enter)
        for index in range(self.blocks):
            normalised(
                f"first{index}", lambda c, i=index: block(c, i).norm, lambda c, i=index: block(c, i).first
            )  # type: ignore[misc]
            linear(f"second{index}", lambda c, i=index: block(c, i).second)  # type: ignore[misc]
        normalised("leave", lambda critic: critic.trunk.norm, lambda critic: critic.leave)

    def forward(self, x: Tensor, t: Tensor, steps_left: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predict two times (B,) from the noisy x (B, H, D) at steps t (B,)."""
        features = x.flatten(1)
        if self.steps_left is not None:
            features = torch.cat([features, self.steps_left(steps_left)], dim=1)
        step = one_row_if_equal(t)
        parts = torch.stack([trunk.modulate(trunk.embed(step)) for trunk in self.trunks]).chunk(
            self.blocks, dim=2
        )  # type: ignore[operator]
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


def pair(first: nn.Module, second: nn.Module) -> PairedMLPCritics | None:
    """Return two critics as one network, or None where their shapes differ or there is no such network for them."""
    if not (isinstance(first, MLPCritic) and isinstance(second, MLPCritic)):
        return None
    if [p.shape for p in first.parameters()] != [p.shape for p in second.parameters()]:
        return None
    lengths = {None if c.steps_left is None else c.steps_left.episode_length for c in (first, second)}
    return PairedMLPCritics(first, second) if len(lengths) == 1 else None
