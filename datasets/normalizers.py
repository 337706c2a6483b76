"""Normalisers: fitted once on a data set, then plain arrays that every model shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from trebi_gym.errors import DatasetError

Array = npt.NDArray[Any]


ROUNDINGS = 4.0
"""A column that varies by no more than so many roundings of its largest number is constant."""

CANCELLED = 1e-12
"""So is one that varies by less than this: what is left where numbers of around 1 cancel is about 1e-16."""

VISIBLE = 1e-3
"""How far float32 may move a center, in units of the scale, before float64 is kept."""


class Normalizer(Protocol):
    """``normalize`` and ``unnormalize`` undo each other as far as the data reach."""

    def normalize(self, x: Array, /) -> Array:
        """Map raw values (..., n) to the models' units."""
        ...

    def unnormalize(self, x: Array, /) -> Array:
        """Map the models' units (..., n) back to raw values."""
        ...


@dataclass(frozen=True, eq=False)
class AffineNormalizer:
    """``(x - center) / scale`` per dimension.

    ``gaussian`` uses mean and standard deviation (the paper's choice), ``limits`` maps minimum and maximum to -1 and 1.
    A dimension that never varies has scale 1, so that it maps to 0 instead of to infinity. Both are float32, or float64
    where float32 would move the center by a part of the scale that can be seen, as with times since 1970.
    """

    center: npt.NDArray[np.floating[Any]]  # (n,)
    scale: npt.NDArray[np.floating[Any]]  # (n,), positive

    def __post_init__(self) -> None:
        center, scale = np.asarray(self.center), np.asarray(self.scale)
        with np.errstate(over="ignore", invalid="ignore"):
            moved = np.abs(center.astype(np.float64) - center.astype(np.float32).astype(np.float64))
            exact = center.shape != scale.shape or bool((moved <= VISIBLE * scale).all())
            kind = np.float32 if exact else np.float64
            object.__setattr__(self, "center", center.astype(kind))
            object.__setattr__(self, "scale", scale.astype(kind))
        if self.center.shape != self.scale.shape or self.center.ndim != 1:
            raise DatasetError(
                f"center and scale must both have shape (n,); got {self.center.shape}, {self.scale.shape}"
            )
        if not (np.isfinite(self.center).all() and np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise DatasetError("center must be finite and scale finite and positive")

    def normalize(self, x: Array) -> Array:
        """Map raw values (..., n) to the models' units."""
        normal: Array = (np.asarray(x) - self.center) / self.scale
        return normal

    def unnormalize(self, x: Array) -> Array:
        """Map the models' units (..., n) back to raw values."""
        raw: Array = np.asarray(x) * self.scale + self.center
        return raw


def fit_gaussian(values: Array) -> AffineNormalizer:
    """Fit mean and standard deviation to (S, n) values, accumulated in float64."""
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # numbers that are too large are refused by the normaliser
        mean = values.mean(axis=0, dtype=np.float64)
        deviation = values.std(axis=0, dtype=np.float64)
    return _affine(mean, deviation, values)


def fit_limits(values: Array) -> AffineNormalizer:
    """Fit the middle and the half width of the range of (S, n) values."""
    low, high = values.min(axis=0).astype(np.float64), values.max(axis=0).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return _affine((low + high) / 2, (high - low) / 2, values)


def _affine(center: Array, scale: Array, values: Array) -> AffineNormalizer:
    """Return the normaliser; a column that varies by its numbers' precision only is constant, and gets scale 1."""
    # rounding alone gives a constant column a tiny spread, by which its noise would be blown up
    kind = values.dtype if values.dtype.kind == "f" else np.dtype(np.float64)
    magnitude = np.maximum(np.abs(values.min(axis=0)), np.abs(values.max(axis=0))).astype(np.float64)
    constant = scale <= np.maximum(ROUNDINGS * float(np.finfo(kind).eps) * magnitude, CANCELLED)
    return AffineNormalizer(center=center, scale=np.where(constant, 1.0, scale))


NORMALIZERS = {"gaussian": fit_gaussian, "limits": fit_limits}
