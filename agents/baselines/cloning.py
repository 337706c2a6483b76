"""Behaviour cloning of the episodes within a budget: what the data alone give, to compare planning with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from trebi_gym.agents.config import TrainingConfig
from trebi_gym.agents.planning.budgets import parse_observations
from trebi_gym.agents.spaces import (
    check_dataset,
    fit_actions,
    resolve_device,
    resolve_seed,
    spaces_of_dataset,
)
from trebi_gym.agents.torch_settings import usual_settings
from trebi_gym.agents.training.trainer import Fit
from trebi_gym.budget import Budget, check_budget
from trebi_gym.datasets import AffineNormalizer, EpisodeDataset
from trebi_gym.datasets.normalizers import fit_gaussian
from trebi_gym.errors import DatasetError, NotLearnedError

Array = npt.NDArray[Any]

WIDTH = 256
TRAINING = TrainingConfig(steps=5_000, batch_size=256, learning_rate=1e-3, learning_rate_schedule="cosine")


def within_budget(dataset: EpisodeDataset, budget: float) -> npt.NDArray[np.int64]:
    """Return which episodes (K,) of a data set cost no more than the budget."""
    kept = [Budget(budget, spent=float(cost)).kept for cost in dataset.episode_costs]
    return np.flatnonzero(kept).astype(np.int64)


class BudgetCloning:
    """A policy that does what was done in the episodes whose cost is within one budget.

    Behaviour cloning (Pomerleau 1991) of a share of the data, as decision transformers are compared with (10% BC, Chen et
    al. 2021, arXiv 2106.01345), here the share within the budget. Two hidden layers give one action, by mean squared error:
    it is deterministic, and of episodes that disagree it does what lies between. The budget is fixed before learning; that
    which ``predict`` is told does not change what it does.

    Args:
        budget: the greatest undiscounted cost of an episode that is learned from.
        seed: of the weights and the batches.
        device: "auto", "cpu", "cuda", ...
        training: how it is optimised.

    Raises:
        BudgetError: the budget is none.
        ConfigError: there is no such device or seed.
    """

    def __init__(
        self,
        budget: float,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        training: TrainingConfig = TRAINING,
    ) -> None:
        self.budget = check_budget(budget)
        self.seed = resolve_seed(seed)
        self.device = resolve_device(device)
        self.training = training
        self.episodes = 0
        self._network: nn.Module | None = None

    @usual_settings()
    def learn(self, dataset: EpisodeDataset) -> Self:
        """Learn from the episodes within the budget; the normalisers are fitted to these too.

        Raises:
            DatasetError: no episode is within the budget, or the data do not fit their environment's spaces.
        """
        rows = within_budget(dataset, self.budget)
        if len(rows) == 0:
            raise DatasetError(
                f"there is nothing to clone: no episode of {dataset.metadata.get('name', 'the data set')} costs at most "
                f"{self.budget:g}, the cheapest costs {dataset.episode_costs.min():g}; take a budget of at least that"
            )
        observation_space, self._space = spaces_of_dataset(dataset)
        check_dataset(dataset, observation_space, self._space)
        chosen = dataset.select(rows)
        observations = chosen.observations[chosen.observation_rows]
        self._observations, self._actions = fit_gaussian(observations), fit_gaussian(chosen.actions)
        loss = _CloningLoss(
            self._tensor(self._observations.normalize(observations)),
            self._tensor(self._actions.normalize(chosen.actions)),
            self.training.batch_size,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = _network(chosen.observation_size, chosen.action_size)
        generator = torch.Generator(device=self.device).manual_seed(self.seed)
        fit = Fit(network.to(self.device), loss, self.training, generator)
        for _ in fit.run():
            pass
        self._network, self.episodes = fit.averaged.eval(), len(rows)
        return self

    @usual_settings()
    def predict(
        self,
        observation: Any,
        state: None = None,
        episode_start: Array | None = None,
        deterministic: bool = True,
        *,
        budget: Any = None,
    ) -> tuple[Array, None]:
        """Return the action (A,) for an observation (O,), or actions (E, A) for (E, O), and no state.

        Args:
            observation: (O,) or (E, O).
            state: not used.
            episode_start: not used.
            deterministic: not used; equal observations always give equal actions.
            budget: not used; it was set before learning.

        Raises:
            NotLearnedError: nothing was learned yet.
            ObservationError: the observation has another size, or is not finite.
        """
        if self._network is None:
            raise NotLearnedError("there is nothing learned yet; call learn(dataset)")
        given, single = parse_observations(observation, len(self._observations.center))
        with torch.no_grad():
            found = self._network(self._tensor(self._observations.normalize(given))).cpu().numpy()
        actions = fit_actions(self._actions.unnormalize(found), self._space)
        return (actions[0] if single else actions), None

    def _tensor(self, values: Array) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)

    _observations: AffineNormalizer
    _actions: AffineNormalizer
    _space: gym.spaces.Box

    def __repr__(self) -> str:
        return (
            f"BudgetCloning(budget={self.budget:g}, seed={self.seed}, learned from {self.episodes} episodes)"
        )


class _CloningLoss:
    """Mean squared error of normalised actions; see ``training.Loss``."""

    def __init__(self, observations: torch.Tensor, actions: torch.Tensor, batch_size: int) -> None:
        self._observations, self._actions, self._batch_size = observations, actions, batch_size

    def draw(self, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        index = torch.randint(
            len(self._actions), (self._batch_size,), generator=generator, device=self._actions.device
        )
        return self._observations[index], self._actions[index]

    def __call__(
        self, model: nn.Module, *drawn: torch.Tensor
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        observations, actions = drawn
        return nn.functional.mse_loss(model(observations), actions), {}


def _network(observation_size: int, action_size: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(observation_size, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, action_size),
    )
