"""The arithmetic of a budget that is set, spent and changed while an episode runs."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, replace

from trebi_gym.checks import is_whole
from trebi_gym.errors import BudgetError, shown

ROUNDING = 1e-9
"""A budget counts as kept up to this share of what was spent: sums of floats are not exact."""


def check_budget(value: object, *, name: str = "budget") -> float:
    """Return ``value`` as a float if it can serve as a budget.

    A budget is a number of at least 0, in units of cost; ``inf`` means "no limit".

    Raises:
        BudgetError: ``value`` is not a number, is NaN, or is negative.
    """
    number = check_remaining(value, name=name)
    if number < 0:
        raise BudgetError(f"{name} must be at least 0, in units of cost; got {number!r}")
    return number


def check_remaining(value: object, *, name: str = "budget") -> float:
    """Return ``value`` as a float if it can be what is left of a budget: negative once it is overspent.

    Raises:
        BudgetError: ``value`` is not a number, or is NaN.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        # zero-dimensional arrays and tensors are numbers to their users
        if getattr(value, "shape", None) == () and hasattr(value, "item"):
            return check_remaining(value.item(), name=name)
        raise BudgetError(
            f"{name} must be a number, in units of cost; got {shown(value)} ({type(value).__name__})"
        )
    try:
        number = float(value)
    except OverflowError as error:
        raise BudgetError(f"{name} is too large for a floating-point number; use inf for no limit") from error
    if math.isnan(number):
        raise BudgetError(f"{name} must be a number, in units of cost; got NaN")
    return number


@dataclass(frozen=True)
class Budget:
    """What an episode may cost, what it has cost, and so what is left.

    With discount ``g``, the cost of step ``i`` counts ``g**i`` (TREBI, arXiv 2306.00603, section 4), so
    ``spent = sum_i g**i cost_i`` and what is left is again in units of the step at hand:
    ``remaining = (total - spent) / g**step``.

    Args:
        total: what the whole episode may cost, at least 0; ``inf`` for no limit.
        discount: ``g`` in (0, 1]; 1 adds the costs up as they are.
        spent: what has been spent so far, discounted to step 0.
        step: how many steps have been taken.

    Raises:
        BudgetError: a value is not a number, NaN or out of range.
    """

    total: float
    discount: float = 1.0
    spent: float = 0.0
    step: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", check_remaining(self.total, name="total"))
        object.__setattr__(self, "spent", check_remaining(self.spent, name="spent"))
        if math.isinf(self.spent):
            raise BudgetError(f"spent must be finite; got {self.spent!r}")
        # an overspent budget may be carried over by with_remaining; a fresh one may not be negative
        if self.total < 0 and self.spent == 0 and self.step == 0:
            raise BudgetError(f"total must be at least 0, in units of cost; got {self.total!r}")
        discount = check_remaining(self.discount, name="discount")
        if not 0 < discount <= 1:
            raise BudgetError(f"discount must lie in (0, 1]; got {self.discount!r}")
        object.__setattr__(self, "discount", discount)
        _check_step(self.step)
        if self.discount**self.step == 0.0:
            raise BudgetError(
                f"discount {self.discount!r} to the power of step {self.step} is zero in floating point, "
                "so nothing can be said of what is left; use a discount closer to 1 or a shorter episode"
            )

    @property
    def remaining(self) -> float:
        """What the rest of the episode may cost, in units of the present step; negative once overspent."""
        return (self.total - self.spent) / self.discount**self.step

    @property
    def kept(self) -> bool:
        """Whether no more was spent than the total, up to the rounding of a long sum."""
        return self.spent <= self.total + ROUNDING * max(1.0, abs(self.spent))

    def charge(self, cost: float) -> Budget:
        """Return the budget after one more step that cost ``cost``.

        Raises:
            BudgetError: ``cost`` is not a finite number.
        """
        number = check_remaining(cost, name="cost")
        if math.isinf(number):
            raise BudgetError(f"cost must be finite; got {cost!r}")
        return replace(self, spent=self.spent + self.discount**self.step * number, step=self.step + 1)

    def with_remaining(self, value: float) -> Budget:
        """Return the budget of the same episode with ``value`` left from here on: a change in mid-episode.

        Raises:
            BudgetError: ``value`` is negative, NaN or not a number.
        """
        left = check_budget(value, name="remaining budget")
        return replace(self, total=self.spent + self.discount**self.step * left)


def _check_step(step: int) -> None:
    if not is_whole(step) or step < 0:
        raise BudgetError(f"step must be a whole number of at least 0; got {step!r}")
