"""Normalisers: fitted once on a data set, then plain arrays that every model shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from trebi_gym.errors import DatasetError

Array = npt.NDArray[Any]


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
    A dimension that never varies has scale 1, so that it maps to 0 instead of to infinity.
    """

    center: npt.NDArray[np.float32]  # (n,)
    scale: npt.NDArray[np.float32]  # (n,), positive

    def __post_init__(self) -> None:
        object.__setattr__(self, "center", np.asarray(self.center, dtype=np.float32))
        object.__setattr__(self, "scale", np.asarray(self.scale, dtype=np.float32))
        if self.center.shape != self.scale.shape or self.center.ndim != 1:
            raise DatasetError(
                f"center and scale must both have shape (n,); got {self.center.shape}, {self.scale.shape}"
            )
        if not (np.isfinite(self.center).all() and np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise DatasetError("center must be finite and scale finite and positive")

    def normalize(self, x: Array) -> Array:
        """Map raw values (..., n) to the models' units."""
        return (np.asarray(x) - self.center) / self.scale

    def unnormalize(self, x: Array) -> Array:
        """Map the models' units (..., n) back to raw values."""
        return np.asarray(x) * self.scale + self.center


def fit_gaussian(values: Array) -> AffineNormalizer:
    """Fit mean and standard deviation to (S, n) values, accumulated in float64."""
    mean = values.mean(axis=0, dtype=np.float64)
    deviation = values.std(axis=0, dtype=np.float64)
    return _affine(mean, deviation)


def fit_limits(values: Array) -> AffineNormalizer:
    """Fit the middle and the half width of the range of (S, n) values."""
    low, high = values.min(axis=0).astype(np.float64), values.max(axis=0).astype(np.float64)
    return _affine((low + high) / 2, (high - low) / 2)


def _affine(center: Array, scale: Array) -> AffineNormalizer:
    # rounding alone gives a constant column a tiny spread, by which its noise would be blown up
    constant = scale <= 1e-6 * np.maximum(1.0, np.abs(center))
    return AffineNormalizer(center=center, scale=np.where(constant, 1.0, scale))


NORMALIZERS = {"gaussian": fit_gaussian, "limits": fit_limits}
