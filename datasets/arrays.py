"""Checks on single arrays of a data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trebi_gym.errors import DatasetError

Array = npt.NDArray[Any]


def check_finite(name: str, array: Array) -> None:
    """Raise if an array holds NaN or infinite values, naming the first.

    Raises:
        DatasetError: with the index of the first such value.
    """
    if array.dtype.kind not in "fiub":
        raise DatasetError(f"{name} must hold numbers; found {array.dtype}")
    finite = np.isfinite(array)
    if not finite.all():
        first = tuple(int(i) for i in np.unravel_index(int((~finite).argmax()), array.shape))
        index = ", ".join(map(str, first))
        raise DatasetError(
            f"{name}[{index}] is {array[first]}; {int((~finite).sum())} of {array.size} values are NaN or infinite: "
            "remove those episodes or mend the recording"
        )


def frozen(array: Array) -> Array:
    """Return the same numbers so that nobody can change them: a copy, unless the memory cannot be written to anyway."""
    if _is_writable(array):
        array = array.copy()
    view = array.view()
    view.flags.writeable = False
    if view.base is not None and isinstance(view.base, np.ndarray):
        view.base.flags.writeable = False
    return view


def given_away(array: Array) -> Array:
    """Return an array that nobody else holds as one that cannot be written to, so that ``frozen`` need not copy it."""
    array.flags.writeable = False
    return array


def _is_writable(array: Any) -> bool:
    """Return whether the array, or any array that it is a view of, can be written to."""
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return True
        array = array.base
    return False
