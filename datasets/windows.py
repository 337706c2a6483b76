"""Windows of H steps from episodes, with what is still to come at their first step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trebi_gym.datasets.episode import EpisodeDataset
from trebi_gym.datasets.normalizers import AffineNormalizer
from trebi_gym.errors import DatasetError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Window:
    """A batch of windows, as tensors; B = 1 dimension less for a single index."""

    trajectory: torch.Tensor  # (B, H, D) normalised, actions first
    return_to_go: torch.Tensor  # (B,) discounted rewards from the first step to the episode's end
    cost_to_go: torch.Tensor  # (B,) discounted costs from the first step to the episode's end
    steps_left: torch.Tensor  # (B,) steps from the first one to the episode's time limit


def discounted_to_go(
    values: Array, lengths: npt.NDArray[np.int64], discount: float
) -> npt.NDArray[np.float64]:
    """Return ``sum_{i >= t} discount**(i - t) values_i`` within every episode, for flat (S,) values.

    One pass backwards over the longest episode, all episodes at once.
    """
    starts = np.cumsum(lengths) - lengths
    order = np.argsort(-lengths, kind="stable")  # the episodes still running at step t come first
    ascending = np.sort(lengths)
    running = len(lengths) - np.searchsorted(ascending, np.arange(int(lengths.max())), side="right")
    to_go = np.empty(len(values), dtype=np.float64)
    tail = np.zeros(len(lengths), dtype=np.float64)
    for t in range(int(lengths.max()) - 1, -1, -1):
        episodes = order[: running[t]]
        rows = starts[episodes] + t
        tail[episodes] = values[rows] + discount * tail[episodes]
        to_go[rows] = tail[episodes]
    return to_go


class TrajectoryWindows:
    """Every window of ``horizon`` steps of a data set, kept as tensors on one device and gathered there.

    A window may start at step ``min(L - 1, L_max - H)`` of an episode of L steps at the latest, where ``L_max`` is the
    task's time limit (TREBI's published rule); rows behind the end of an episode are raw zeros, then normalised.

    Args:
        dataset: the episodes.
        horizon: H, at most the time limit.
        observation_normalizer: for the O observation columns.
        action_normalizer: for the A action columns.
        discount: of rewards- and costs-to-go, in (0, 1].
        device: where the tensors live.
        termination_reward: added to the reward of an episode's last step where the task ended it.
        termination_cost: added to the cost of that step.

    Raises:
        DatasetError: the horizon is longer than every episode may be.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        horizon: int,
        observation_normalizer: AffineNormalizer,
        action_normalizer: AffineNormalizer,
        discount: float,
        *,
        cost_discount: float | None = None,
        device: torch.device | str = "cpu",
        termination_reward: float = 0.0,
        termination_cost: float = 0.0,
    ) -> None:
        limit = max(dataset.episode_length, int(dataset.lengths.max()))
        if horizon > limit:
            raise DatasetError(
                f"the horizon is {horizon} steps, but an episode has at most {limit}; take longer episodes, or a horizon of "
                f"at most {limit}"
            )
        self.horizon = horizon
        self.device = torch.device(device)
        self._dataset, self._normalizer = dataset, observation_normalizer
        # copies: a penalty never reaches the stored arrays
        rewards = dataset.rewards.astype(np.float64)
        costs = dataset.costs.astype(np.float64)
        last = dataset.starts + dataset.lengths - 1
        rewards[last[dataset.terminated]] += termination_reward
        costs[last[dataset.terminated]] += termination_cost
        return_to_go = discounted_to_go(rewards, dataset.lengths, discount)
        cost_to_go = discounted_to_go(
            costs, dataset.lengths, discount if cost_discount is None else cost_discount
        )

        actions = action_normalizer.normalize(dataset.actions)
        observations = observation_normalizer.normalize(dataset.observations[dataset.observation_rows])
        rows = np.concatenate([actions, observations], axis=1).astype(np.float32)
        padding = np.concatenate(
            [
                action_normalizer.normalize(np.zeros(dataset.action_size)),
                observation_normalizer.normalize(np.zeros(dataset.observation_size)),
            ]
        ).astype(np.float32)
        # one padding row behind all others; a window's rows behind its episode's end point to it
        self._rows = torch.from_numpy(np.concatenate([rows, padding[None]])).to(self.device)
        latest = np.minimum(dataset.lengths - 1, limit - horizon)
        counts = latest + 1
        episodes = np.repeat(np.arange(len(dataset)), counts)
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        first = dataset.starts[episodes] + within
        self._first = torch.from_numpy(first).to(self.device)
        self._end = torch.from_numpy(dataset.starts[episodes] + dataset.lengths[episodes]).to(self.device)
        # by row, with a zero behind the last: what is to come from the end of an episode on
        self._return_to_go = torch.from_numpy(np.append(return_to_go, 0.0).astype(np.float32)).to(self.device)
        self._cost_to_go = torch.from_numpy(np.append(cost_to_go, 0.0).astype(np.float32)).to(self.device)
        self._row_end = torch.from_numpy(np.repeat(dataset.starts + dataset.lengths, dataset.lengths)).to(
            self.device
        )
        self._row_terminated = torch.from_numpy(np.repeat(dataset.terminated, dataset.lengths)).to(
            self.device
        )
        self._discounts = (discount, discount if cost_discount is None else cost_discount)
        self._steps_left = torch.from_numpy((limit - within).astype(np.float32)).to(self.device)
        self._offsets = torch.arange(horizon, device=self.device)

    def __len__(self) -> int:
        return len(self._first)

    @property
    def cost_to_go(self) -> torch.Tensor:
        """(windows,) the cost-to-go at each window's first step."""
        return self._cost_to_go[self._first]

    @property
    def steps_left(self) -> torch.Tensor:
        """(windows,) the steps from each window's first one to the time limit."""
        return self._steps_left

    @property
    def n_rows(self) -> int:
        """Steps of all episodes, S."""
        return len(self._row_end)

    @property
    def rows(self) -> torch.Tensor:
        """(S, D) normalised actions and observations of every step, episode after episode."""
        return self._rows[:-1]

    def room(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how many steps each of the rows (B,) is before its episode's end, and whether the task ended that."""
        return self._row_end[rows] - rows, self._row_terminated[rows]

    def stretch(self, rows: torch.Tensor, steps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the rows (B, D) of steps (B,), those ``steps`` (B,) later, and the plain rewards and costs between them.

        A row at or behind the episode's end is the padding. Of undiscounted windows only.
        """
        end, later = self._row_end[rows], rows + steps
        at = torch.where(later < end, later, len(self._rows) - 1)
        reward = self._return_to_go[rows] - self._return_to_go[at]
        return self._rows[rows], self._rows[at], reward, self._cost_to_go[rows] - self._cost_to_go[at]

    def step_sums(self, rows: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return plain reward and cost of the step in each of these rows, None: all (S,). Of undiscounted windows only."""
        rows = torch.arange(self.n_rows, device=self.device) if rows is None else rows
        _, _, reward, cost = self.stretch(rows, torch.ones_like(rows))
        return reward, cost

    @cached_property
    def after(self) -> torch.Tensor:
        """(S, O) normalised observations behind every step, an episode's final one included."""
        behind = self._dataset.observations[self._dataset.observation_rows + 1]
        return torch.from_numpy(self._normalizer.normalize(behind).astype(np.float32)).to(self.device)

    def steps_of(self, index: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what the steps of windows (B,) lead to, and whether they are logged.

        These are the observations (B, H, O) behind them, plain rewards and costs (B, H), and booleans (B, H): whether a step
        lies before its episode's end, the rest meaning nothing where it does not, and whether the task ended the episode
        with it.
        """
        first, end = self._first[index], self._end[index]
        rows = first.unsqueeze(-1) + self._offsets
        inside = rows < end.unsqueeze(-1)
        rows = torch.where(inside, rows, first.unsqueeze(-1))
        reward, cost = (values.view(inside.shape) for values in self.step_sums(rows.flatten()))
        ended = inside & (rows + 1 == end.unsqueeze(-1)) & self._row_terminated[rows]
        return self.after[rows], reward, cost, inside, ended

    def __getitem__(self, index: int | torch.Tensor) -> Window:
        """Gather one window, or a batch of them for a tensor of indices (B,)."""
        first, end = self._first[index], self._end[index]
        rows = first.unsqueeze(-1) + self._offsets
        rows = torch.where(rows < end.unsqueeze(-1), rows, len(self._rows) - 1)
        return Window(
            trajectory=self._rows[rows],
            return_to_go=self._return_to_go[first],
            cost_to_go=self._cost_to_go[first],
            steps_left=self._steps_left[index],
        )

    def ending_after(self, index: torch.Tensor, steps: torch.Tensor) -> Window:
        """Gather windows (B,) as if their episodes had a time limit ``steps`` (B,) after their first step.

        The time limit cuts an episode short without changing what happens before, so the sums over the first n steps,
        ``G_t - g**n G_{t+n}``, are those of an episode with n steps left.
        """
        window = self[index]
        first, end = self._first[index], self._end[index]
        later = first + steps.to(first.dtype)
        later = torch.where(later < end, later, len(self._return_to_go) - 1)
        rewards, costs = (discount**steps for discount in self._discounts)
        return Window(
            trajectory=window.trajectory,
            return_to_go=window.return_to_go - rewards * self._return_to_go[later],
            cost_to_go=window.cost_to_go - costs * self._cost_to_go[later],
            steps_left=steps.to(window.steps_left.dtype),
        )
