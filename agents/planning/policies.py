"""The original's accounting of an undiscounted budget, for those who compare with its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trebi_gym.budget import Budget
from trebi_gym.rollout import Policy

Array = npt.NDArray[Any]


@dataclass
class _Counted:
    """What is known of E running episodes beside the policy's own state."""

    inner: Any
    plain: npt.NDArray[np.float64]  # (E,) spent so far, undiscounted
    discounted: npt.NDArray[np.float64]  # (E,) spent so far, discounted to step 0

    def of_rows(self, rows: npt.NDArray[np.int64]) -> _Counted:
        """Return what is known of some of the episodes only."""
        inner = self.inner.of_rows(rows) if hasattr(self.inner, "of_rows") else self.inner
        return _Counted(inner, self.plain[rows], self.discounted[rows])


class OriginalAccounting:
    """A policy that is told budgets as TREBI's published code counts them (arXiv 2306.00603).

    An undiscounted budget b becomes ``factor * b`` once, at the start. From it the *discounted* costs are taken, so
    that step t is held against ``(factor * b - sum_i g**i c_i) / g**t``. ``budget_rule="constant"`` of the planner, in
    contrast, multiplies what is left of the undiscounted budget, as is possible where only that is known.

    Args:
        policy: an agent; a ``Budget`` of its cost critic's own discount is in its units.
        factor: discounted cost for each undiscounted one, of the data set.
        discount: g, of the cost critic.
    """

    def __init__(self, policy: Policy, factor: float, discount: float) -> None:
        self._policy, self._factor, self._discount = policy, factor, discount

    @property
    def episode_length(self) -> int | None:
        """The longest episode that the policy learned from, in steps, if it tells."""
        return getattr(self._policy, "episode_length", None)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed what the policy draws."""
        seeder = getattr(self._policy, "set_random_seed", None)
        if seeder is not None:
            seeder(seed)

    def predict(
        self,
        observation: Array,
        state: _Counted | None = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
        *,
        budget: Sequence[Budget],
    ) -> tuple[Array, _Counted]:
        """Return actions (E, A), given undiscounted budgets."""
        spent = np.array([item.spent for item in budget], dtype=np.float64)
        steps = np.array([item.step for item in budget])
        before = state or _Counted(None, np.zeros(len(budget)), np.zeros(len(budget)))
        fresh = steps == 0
        cost = np.where(fresh, 0.0, spent - before.plain)
        weight = self._discount ** np.maximum(steps - 1, 0)
        discounted = np.where(fresh, 0.0, before.discounted + weight * cost)
        told = [
            Budget(item.total * self._factor, self._discount, float(paid), item.step)
            for item, paid in zip(budget, discounted, strict=True)
        ]
        actions, inner = self._policy.predict(
            observation, before.inner, episode_start, deterministic, budget=told
        )
        return actions, _Counted(inner, spent, discounted)
