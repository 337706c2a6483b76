"""Budgets in the units of the cost critic, which predicts a discounted sum to the episode's end."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

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
