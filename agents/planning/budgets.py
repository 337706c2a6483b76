"""What ``predict`` accepts, turned into arrays, and budgets in the units of the cost critic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from trebi_gym.agents.config import TREBIConfig
from trebi_gym.agents.spaces import BUDGET_KEYS
from trebi_gym.budget import Budget, check_remaining
from trebi_gym.errors import BudgetError, ObservationError, TrebiError

Floats = npt.NDArray[np.float64]
Numbers = TypeVar("Numbers", Floats, torch.Tensor)


def geometric_sum(discount: float, steps: Numbers) -> Numbers:
    """Return ``1 + g + ... + g**(n - 1)``, elementwise for (...,) numbers of steps n."""
    if discount == 1.0:
        return steps
    return (1.0 - discount**steps) / (1.0 - discount)


def remaining_rule(
    remaining: Floats, steps_left: Floats, critic_discount: float, discount: float = 1.0
) -> Floats:
    """Turn what is left of a budget into the critic's units, as if it were spent evenly over the steps left.

    ``delta_t = remaining * (1 - g**n) / ((1 - g) n)`` for an undiscounted budget with n steps left, as CAPS
    (arXiv 2412.18946) and BCRL do; a budget that is itself discounted by d has ``(1 - d**n) / (1 - d)`` in place of n.

    Args:
        remaining: (E,) what is left, in units of the present step; may be negative or infinite.
        steps_left: (E,) steps to the end of the episode, at least 1.
        critic_discount: g, of the cost critic.
        discount: d, of the budget.
    """
    return remaining * geometric_sum(critic_discount, steps_left) / geometric_sum(discount, steps_left)


def constant_rule(remaining: Floats, factor: float) -> Floats:
    """Turn what is left of an undiscounted budget into the critic's units by one factor, as the original does."""
    return remaining * factor


Array = npt.NDArray[Any]
BudgetLike = float | Budget | Sequence[Budget] | Array


@dataclass(frozen=True)
class Request:
    """One decision for E environments."""

    observations: npt.NDArray[np.float64]  # (E, O)
    remaining: Floats  # (E,) what is left of each budget, in units of the present step
    discounts: Floats  # (E,) of each budget
    steps: npt.NDArray[np.int64]  # (E,) steps taken; -1 where it is not known
    totals: Floats  # (E,) of whole episodes, in units of step 0; NaN where a budget was told as a number
    single: bool  # one environment without a batch axis
    steps_left: Floats | None = field(default=None)  # (E,) where the observation tells it

    def count_steps_left(self, episode_length: int, counted: npt.NDArray[np.int64] | None) -> Floats:
        """Return the steps left (E,), at least 1: as the observation tells, else the budget, else as counted (E,).

        Where none of them does, the whole episode is taken to be ahead.
        """
        if self.steps_left is not None:
            told: Floats = np.maximum(self.steps_left, 1.0)
            return told
        steps = self.steps
        if counted is not None:
            steps = np.where(steps < 0, counted, steps)
        return np.asarray(np.maximum(episode_length - np.maximum(steps, 0), 1), dtype=np.float64)


def parse_request(observation: Any, budget: BudgetLike | None, observation_size: int) -> Request:
    """Read an observation and a budget in any of the accepted forms.

    Raises:
        ObservationError: wrong shape, NaN or infinite values.
        BudgetError: no budget, or one that cannot be used.
    """
    steps_left: Array | None = None
    if isinstance(observation, Mapping):
        if "observation" not in observation:
            raise ObservationError(
                'a Dict observation must hold "observation", as BudgetWrapper(observe=True) gives; '
                f"found {', '.join(map(str, observation))}"
            )
        other = [str(key) for key in observation if key not in BUDGET_KEYS]
        if other:
            raise ObservationError(
                f"a Dict observation holds {', '.join(sorted(BUDGET_KEYS))} and nothing else; this one also has "
                f"{', '.join(other)}, which nothing was learned from: learn from flattened observations, and pass such"
            )
        if budget is None and "budget" in observation:
            budget = _numbers(observation["budget"], "budget", BudgetError)
            if budget.ndim and budget.shape[-1] == 1:
                budget = budget[..., 0]
        if "steps_left" in observation:
            steps_left = _numbers(observation["steps_left"], "steps_left", ObservationError)
            if steps_left.ndim and steps_left.shape[-1] == 1:
                steps_left = steps_left[..., 0]
        observation = observation["observation"]
    if budget is None:
        raise BudgetError(
            "no budget was given: pass predict(observation, budget=b), or wrap the environment with "
            "BudgetWrapper(env, b, observe=True), whose observations carry it"
        )
    observations, single = parse_observations(observation, observation_size)
    remaining, discounts, steps, totals = _budgets(budget, len(observations))
    if steps_left is not None:
        if steps_left.size not in (1, len(observations)) or not np.isfinite(steps_left).all():
            raise ObservationError(
                f'"steps_left" must hold one finite number for each of {len(observations)} environments; '
                f"got {steps_left}"
            )
        steps_left = np.broadcast_to(steps_left, (len(observations),)).astype(np.float64)
    return Request(observations, remaining, discounts, steps, totals, single, steps_left)


def planning_budgets(
    request: Request,
    steps_left: Floats,
    config: TREBIConfig,
    factor: float | None,
    reserve: Floats | None = None,
) -> tuple[Floats, Floats]:
    """Return what is left (E,), and of it what planning may spend (E,): both in the cost critic's units.

    Args:
        request: the budgets.
        steps_left: (E,).
        config: whose margin is held back.
        factor: of the constant rule.
        reserve: (E,) also held back, in units of the budgets at the present step; may be negative.

    Raises:
        BudgetError: the budgets' discount fits neither the critic nor the rule.
    """
    rule, discount = config.planner.budget_rule, config.cost_discount

    def turned(remaining: Floats) -> Floats:
        with np.errstate(over="ignore"):  # a budget near the largest number is infinite
            return critic_budgets(
                remaining, request.discounts, steps_left, rule=rule, cost_discount=discount, factor=factor
            )

    limits = turned(request.remaining)
    if reserve is None:
        budgets = limits
    else:
        # what is overspent already is not made to look better
        budgets = turned(np.where(request.remaining < 0, request.remaining, request.remaining - reserve))
    return limits, np.where(budgets > 0, (1.0 - config.planner.margin) * budgets, budgets)


def critic_budgets(
    remaining: Floats,
    discounts: Floats,
    steps_left: Floats,
    *,
    rule: str,
    cost_discount: float,
    factor: float | None,
) -> Floats:
    """Turn what is left (E,) of budgets of these discounts (E,) into the cost critic's units.

    A budget with the critic's own discount is in its units already. An undiscounted one is turned by the rule.

    Raises:
        BudgetError: the constant rule is asked for a budget of a third discount.
    """
    result = np.empty_like(remaining)
    for discount in np.unique(discounts):
        rows = discounts == discount
        left = remaining[rows]
        if discount == cost_discount:
            result[rows] = left
        elif rule == "remaining":
            result[rows] = remaining_rule(left, steps_left[rows], cost_discount, float(discount))
        elif discount == 1.0 and factor is not None:
            result[rows] = constant_rule(left, factor)
        else:
            raise BudgetError(
                f'budget_rule="constant" turns undiscounted budgets into those of discount {cost_discount}; '
                f'got a budget of discount {discount}: use one of these two, or budget_rule="remaining"'
            )
    return result


def check_actions(actions: Array) -> Array:
    """Return the planned actions (E, K, A) if they can be executed.

    Raises:
        ObservationError: they are not finite, so the observation, or the data that were learned from, are out of range.
    """
    if not np.isfinite(actions).all():
        raise ObservationError(
            "planning gave actions that are not finite numbers: the observation is too far from the data, "
            "or guide_scale or cost_weight is too large"
        )
    return actions


def check_scores(rewards: Array, costs: Array, least: Array) -> None:
    """Raise unless what is predicted of the best plans, reward (E,) and cost (E,), and the least cost (E,) are finite.

    Raises:
        ObservationError: one is not: plans cannot be ranked by such numbers.
    """
    for name, values in (("reward", rewards), ("cost", costs), ("least cost", least)):
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ObservationError(
                f"the predicted {name} of the best plan is {values[row]} for environment {row}, so plans cannot be ranked: "
                "the observation is too far from the data, or the agent's weights are damaged; check the observation's "
                "units, or load an unchanged copy of the agent"
            )


def _numbers(value: Any, what: str, error_class: type[TrebiError], but: str = "") -> Floats:
    """Return real numbers as float64; ``but`` names the kinds of NumPy types, such as "b", that are no numbers here."""
    try:
        # a tensor that requires its gradient does not turn into an array by itself
        raw = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        if raw.dtype.kind in "fiub" and raw.dtype.kind not in but:
            return raw.astype(np.float64)
        if raw.dtype.kind == "O" and not any(isinstance(item, (str, bool)) for item in raw.flat):
            return raw.astype(np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise error_class(f"{what} must be numbers; got {value!r} ({error})") from error
    raise error_class(f"{what} must be numbers; got {value!r}")


def parse_observations(observation: Any, size: int) -> tuple[npt.NDArray[np.float64], bool]:
    """Return observations (E, O), and whether a single one (O,) was given.

    Raises:
        ObservationError: of a wrong shape, or not finite numbers.
    """
    array = _numbers(observation, "an observation", ObservationError)
    single = array.ndim == 1
    batch = array[None] if single else array
    if batch.ndim != 2 or batch.shape[1] != size or len(batch) == 0:
        raise ObservationError(
            f"an observation must have shape ({size},), or (E, {size}) for E environments; got {array.shape}"
        )
    if not np.isfinite(batch).all():
        row, column = np.argwhere(~np.isfinite(batch))[0]
        raise ObservationError(
            f"observation[{row}, {column}] is {batch[row, column]}; every number must be finite"
        )
    return batch, single


def _budgets(budget: Any, count: int) -> tuple[Floats, Floats, npt.NDArray[np.int64], Floats]:
    if isinstance(budget, Budget):
        budget = [budget]
    if isinstance(budget, (list, tuple)) and any(isinstance(b, Budget) for b in budget):
        budgets = [b if isinstance(b, Budget) else Budget(b) for b in budget]
        remaining = np.array([b.remaining for b in budgets], dtype=np.float64)
        discounts = np.array([b.discount for b in budgets], dtype=np.float64)
        steps = np.array([b.step for b in budgets], dtype=np.int64)
        totals = np.array([b.total for b in budgets], dtype=np.float64)
    else:
        if np.ndim(budget) == 0 and not hasattr(budget, "detach"):
            remaining = np.array([check_remaining(budget)])
        else:
            remaining = _numbers(budget, "a budget", BudgetError, but="b").reshape(-1)
            if np.isnan(remaining).any():
                raise BudgetError(f"a budget must be a number, in units of cost; got {remaining}")
        discounts = np.ones(len(remaining))
        steps = np.full(len(remaining), -1, dtype=np.int64)
        totals = np.full(len(remaining), np.nan)
    if len(remaining) not in (1, count):
        raise BudgetError(f"got {len(remaining)} budgets for {count} environments; give one, or one for each")
    shape = (count,)
    return (
        np.broadcast_to(remaining, shape).copy(),
        np.broadcast_to(discounts, shape).copy(),
        np.broadcast_to(steps, shape).copy(),
        np.broadcast_to(totals, shape).copy(),
    )
