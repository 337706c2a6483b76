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
    """Return a view that cannot be written to."""
    view = array.view()
    view.flags.writeable = False
    return view
