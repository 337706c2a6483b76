"""Guidance by a budget: where a plan should move, how good it is, and which plan comes first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

TrajectoryCritic = Callable[..., Tensor]
"""(noisy x (B, H, D), steps t (B,), and steps left (B,) where the guide has them) -> predicted sum (B,)."""

CriticPair = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""(noisy x (B, H, D), steps t (B,), steps left (B,) or None) -> predicted reward and predicted cost, both (B,)."""

FEW = 0.5
"""Below this share of plans over their budget it is quicker to take the cost's gradient for those alone."""

OVER_BUDGET_PENALTY = 1e8
"""What the original subtracts from the value of a plan that breaks its budget."""


class Scores(NamedTuple):
    """What the critics say of plans."""

    rewards: Tensor  # (B,)
    costs: Tensor  # (B,)


class Guide(Protocol):
    """Anything that can tell plans where to move and how good they are."""

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Scores]:
        """Return the direction (B, H, D) in which plans x at steps t (B,) should move, and their scores."""
        ...

    def scores(self, x: Tensor, t: Tensor) -> Scores:
        """Return the scores alone, without a gradient."""
        ...


@dataclass
class BudgetGuide:
    """Towards reward, and away from cost where the predicted cost C exceeds the budget b (arXiv 2306.00603).

    `grad R - w * f * [C > b] * grad C`, where f = 1 for guide_type 1 and f = exp(clip((C - b) / b, 0, 1)),
    itself not differentiated, for guide_type 0. For b = 0 that factor is its limit, e; for negative b it is
    1.
    """

    reward_critic: TrajectoryCritic
    cost_critic: TrajectoryCritic
    budgets: Tensor  # (B,) in the cost critic's units
    cost_weight: float = 20.0
    guide_type: int = 1
    steps_left: Tensor | None = None  # (B,) handed to the critics
    both: CriticPair | None = None  # the two critics in one pass
    skip_zeros: bool = (
        False  # leave out gradients that would be multiplied by zero; looks at values, so not for a GPU
    )
    _few: bool = field(default=False, init=False)  # whether few plans were over their budget at the last move

    def __post_init__(self) -> None:
        if self.guide_type not in (0, 1):
            raise ValueError(f"guide_type must be 0 or 1, got {self.guide_type}")

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Scores]:
        """Return the direction (B, H, D) for plans x (B, H, D) at steps t (B,), and their scores."""
        if self.skip_zeros and self._few:
            return self._reward_first(x, t)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            rewards, costs = self._ask(x, t)
            weight = self.cost_weight * self._factor(costs.detach())
            over = int(weight.count_nonzero()) if self.skip_zeros else len(weight)
            self._few = self.skip_zeros and over < FEW * len(weight)
            # A plan's scores depend on that plan alone, so one backward pass of the sum serves all plans.
            (gradient,) = torch.autograd.grad((rewards - weight * costs if over else rewards).sum(), x)
        return gradient, Scores(rewards.detach(), costs.detach())

    def _reward_first(self, x: Tensor, t: Tensor) -> tuple[Tensor, Scores]:
        """Do as ``__call__``, with the cost's gradient only of plans that are over their budget."""
        with torch.no_grad():
            costs = self._call(self.cost_critic, x, t, self.steps_left)
            weight = self.cost_weight * self._factor(costs)
        rows = weight.nonzero()[:, 0]
        self._few = len(rows) < FEW * len(x)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            rewards = self._call(self.reward_critic, x, t, self.steps_left)
            (gradient,) = torch.autograd.grad(rewards.sum(), x)
            if len(rows):
                some = x.detach()[rows].requires_grad_()
                left = None if self.steps_left is None else self.steps_left[rows]
                # a view of one step, where all plans are at the same, is one that networks embed once
                steps = t[: len(rows)] if t.stride(0) == 0 else t[rows]
                again = self._call(self.cost_critic, some, steps, left)
                (away,) = torch.autograd.grad((weight[rows] * again).sum(), some)
                gradient = gradient.index_add(0, rows, away, alpha=-1)
        return gradient, Scores(rewards.detach(), costs)

    def scores(self, x: Tensor, t: Tensor) -> Scores:
        """Return the critics' predictions for plans x (B, H, D) at steps t (B,), without a gradient."""
        with torch.no_grad():
            return Scores(*self._ask(x, t))

    def _ask(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.both is not None:
            return self.both(x, t, self.steps_left)
        return tuple(
            self._call(critic, x, t, self.steps_left) for critic in (self.reward_critic, self.cost_critic)
        )  # type: ignore[return-value]

    @staticmethod
    def _call(critic: TrajectoryCritic, x: Tensor, t: Tensor, steps_left: Tensor | None) -> Tensor:
        return critic(x, t) if steps_left is None else critic(x, t, steps_left)

    def _factor(self, costs: Tensor) -> Tensor:
        """Return f * [C > b] (B,) for costs (B,); finite whatever the budget."""
        over = costs > self.budgets
        if self.guide_type == 1:
            return over.to(costs.dtype)
        excess = torch.nan_to_num((costs - self.budgets) / self.budgets, nan=0.0).clamp(0, 1)
        return torch.where(over, excess.exp(), 0.0)


def rank(scores: Scores, budgets: Tensor) -> Tensor:
    """Return the order (E, N), best first, of N candidates in each of E environments.

    Candidates within the budget come first, by descending reward; the others follow by ascending cost, so
    that where no candidate keeps the budget the cheapest leads. Takes rewards and costs (E, N) and budgets
    (E,). A cost that is not a number counts as over the budget, and comes last.
    """
    feasible = scores.costs <= budgets[:, None]
    key = torch.where(feasible, -scores.rewards, scores.costs)
    by_key = key.argsort(dim=1, stable=True)
    infeasible = (~feasible).gather(1, by_key).to(torch.int8)
    return by_key.gather(1, infeasible.argsort(dim=1, stable=True))


def original_values(scores: Scores, budgets: Tensor) -> Tensor:
    """Return the values (E, N) by which the original ranks candidates, the highest first (arXiv 2306.00603).

    The reward, less 1e8 where a candidate breaks its budget; minus the cost in environments where every
    candidate does. Takes rewards and costs (E, N) and budgets (E,).
    """
    over = scores.costs > budgets[:, None]
    values = scores.rewards - OVER_BUDGET_PENALTY * over.to(scores.rewards.dtype)
    return torch.where(over.all(dim=1, keepdim=True), -scores.costs, values)
