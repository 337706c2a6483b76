"""What a number from outside must be: whole, a count, or a seed; of Python or NumPy alike."""

from __future__ import annotations

import numbers
from typing import Any, TypeGuard

from trebi_gym.errors import TrebiError, shown

LARGEST_SEED = 2**62
"""Seeds lie below this, so that the seeds that are counted on from them fit into 64 bits."""


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number of Python or NumPy; True and False are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_count(value: Any, name: str, *, least: int = 1, error: type[TrebiError] = TrebiError) -> int:
    """Return a count as an int of Python.

    Args:
        value: from outside.
        name: of the argument, for the message.
        least: the smallest count that is allowed.
        error: what is raised.

    Raises:
        TrebiError: or ``error``: it is not a whole number, or smaller than ``least``.
    """
    if not is_whole(value) or value < least:
        raise error(f"{name} must be a whole number of at least {least}; got {shown(value)}")
    return int(value)


def check_seed(
    value: Any, name: str = "seed", *, below: int = LARGEST_SEED, error: type[TrebiError] = TrebiError
) -> int:
    """Return a seed as an int of Python.

    Args:
        value: from outside.
        name: of the argument, for the message.
        below: seeds are smaller than this.
        error: what is raised.

    Raises:
        TrebiError: or ``error``: it is not a whole number, negative, or too large.
    """
    if not is_whole(value) or not 0 <= value < below:
        power = below.bit_length() - 1
        limit = f"2**{power}" if below == 2**power else str(below)
        raise error(f"{name} must be a whole number of at least 0 and below {limit}; got {shown(value)}")
    return int(value)
