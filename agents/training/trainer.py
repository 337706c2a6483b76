"""Fitting one model: a generator that yields what it measured, so that logging stays outside; it can be resumed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trebi_gym.agents.config import TrainingConfig
from trebi_gym.agents.networks.cuda_graphs import Recordings
from trebi_gym.errors import CheckpointError


class Loss(Protocol):
    """What is minimised, in two parts: what is drawn, and what is computed of it."""

    def draw(self, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Return a batch and everything else that is random."""
        ...

    def __call__(
        self, model: nn.Module, *drawn: torch.Tensor
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Return the loss of what was drawn, and further scalars to log."""
        ...


@dataclass(frozen=True)
class FitMetrics:
    """What one optimiser step measured; tensors stay on the device until somebody reads them."""

    step: int  # optimiser steps taken so far
    loss: torch.Tensor  # ()
    extra: Mapping[str, torch.Tensor]


class Fit:
    """One model being optimised: its weights, their average, the optimiser and the random state.

    The update is TREBI's: Adam, gradients averaged over ``accumulation`` batches, and an exponential moving average
    that is a plain copy before ``ema_start`` and is updated every ``ema_every`` steps.

    Args:
        model: the network, on its device.
        loss: what is minimised; on a GPU it is recorded once, together with its gradient, and replayed.
        config: of the optimisation.
        generator: everything that is drawn comes from here.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, config: TrainingConfig, generator: torch.Generator
    ) -> None:
        self.model = model
        self.config = config
        self.step = 0
        self._loss = loss
        self._extra: tuple[str, ...] = ()
        self._differentiated = Recordings(self._differentiate)
        self._generator = generator
        self._optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
        self._average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))  # type: ignore[no-untyped-call]
        self._average.update_parameters(model)

    @property
    def averaged(self) -> nn.Module:
        """The model with averaged weights, which acts."""
        module: nn.Module = self._average.module
        return module

    def run(self, steps: int | None = None) -> Iterator[FitMetrics]:
        """Take optimiser steps until ``steps`` (default: the configuration's) have been taken in all."""
        total = self.config.steps if steps is None else steps
        follow = getattr(self._loss, "follow", None)  # of losses whose targets follow what is learned
        self.model.train()
        while self.step < total:
            if self.config.learning_rate_schedule == "cosine":
                rate = 0.5 * self.config.learning_rate * (1 + math.cos(math.pi * self.step / total))
                for group in self._optimizer.param_groups:
                    group["lr"] = rate
            if follow is not None:
                follow(self.model)
            batches = [self._loss.draw(self._generator) for _ in range(self.config.accumulation)]
            loss, *extra = self._differentiated(*(tensor for batch in batches for tensor in batch))
            self._optimizer.step()
            if self.step % self.config.ema_every == 0:
                if self.step < self.config.ema_start:
                    self._average.n_averaged.zero_()  # the next update is then a copy
                self._average.update_parameters(self.model)
            self.step += 1
            yield FitMetrics(step=self.step, loss=loss, extra=dict(zip(self._extra, extra, strict=True)))

    def _differentiate(self, *drawn: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Set the gradients to the mean over the batches; return the mean loss, and the last batch's other scalars."""
        for parameter in self.model.parameters():
            parameter.grad = None
        parts = self.config.accumulation
        each = len(drawn) // parts
        losses: list[torch.Tensor] = []
        extra: Mapping[str, torch.Tensor] = {}
        for first in range(0, len(drawn), each):
            loss, extra = self._loss(self.model, *drawn[first : first + each])
            (loss / parts).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        self._extra = tuple(extra)
        return torch.stack(losses).mean(), *extra.values()

    def state(self) -> dict[str, torch.Tensor]:
        """Return everything that ``restore`` needs to go on to the very same result."""
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        state |= {f"average.{name}": value for name, value in self.averaged.state_dict().items()}
        for index, parameter in enumerate(self.model.parameters()):
            for name, value in self._optimizer.state.get(parameter, {}).items():
                state[f"adam.{index}.{name}"] = torch.as_tensor(value)
        state["generator"] = self._generator.get_state()
        state["step"] = torch.tensor(self.step)
        state["averages"] = self._average.n_averaged.clone()
        return {name: value.detach().clone().contiguous() for name, value in state.items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what ``state`` returned.

        Raises:
            CheckpointError: the state is that of another network.
        """
        try:
            self.model.load_state_dict(_part(state, "model."))
            self.averaged.load_state_dict(_part(state, "average."))
            self._generator.set_state(state["generator"].cpu())
            self._average.n_averaged.copy_(state["averages"])
            self.step = int(state["step"])
            adam: dict[int, dict[str, Any]] = {}
            for name, value in _part(state, "adam.").items():
                index, _, key = name.partition(".")
                adam.setdefault(int(index), {})[key] = value
            groups = self._optimizer.state_dict()["param_groups"]
            self._optimizer.load_state_dict({"state": adam, "param_groups": groups})
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"the training state does not fit this agent's configuration: {error}"
            ) from error


def _part(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
