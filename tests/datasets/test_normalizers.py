"""Normalisers: fitted once, undone exactly enough, and safe for columns that never vary."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trebi_gym.datasets.normalizers import NORMALIZERS, AffineNormalizer, fit_gaussian, fit_limits
from trebi_gym.errors import DatasetError


def test_gaussian_gives_mean_zero_and_deviation_one(rng):
    values = rng.normal(5.0, 3.0, (2000, 2)).astype(np.float32)
    normal = fit_gaussian(values).normalize(values)
    np.testing.assert_allclose(normal.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(normal.std(axis=0), 1.0, atol=1e-5)


def test_limits_maps_minimum_and_maximum_to_minus_one_and_one(rng):
    values = rng.uniform(-3.0, 8.0, (500, 2)).astype(np.float32)
    normal = fit_limits(values).normalize(values)
    np.testing.assert_allclose(normal.min(axis=0), -1.0, atol=1e-6)
    np.testing.assert_allclose(normal.max(axis=0), 1.0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(NORMALIZERS))
@pytest.mark.parametrize("constant", [0.0, 0.1, -1234.5678])
def test_a_column_that_never_varies_maps_to_zero(name, constant):
    values = np.stack([np.linspace(0, 1, 1001), np.full(1001, constant)], axis=1).astype(np.float32)
    normal = NORMALIZERS[name](values).normalize(values)
    np.testing.assert_allclose(normal[:, 1], 0.0, atol=1e-3)


@pytest.mark.parametrize("name", sorted(NORMALIZERS))
@settings(max_examples=40, deadline=None)
@given(values=arrays(np.float32, (12, 3), elements=st.floats(-1e4, 1e4, width=32)))
def test_unnormalising_undoes_normalising(name, values):
    normalizer = NORMALIZERS[name](values)
    again = normalizer.unnormalize(normalizer.normalize(values))
    np.testing.assert_allclose(again, values, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(values).max()))


@pytest.mark.parametrize("scale", [[0.0, 1.0], [-1.0, 1.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_a_scale_that_cannot_be_divided_by_is_refused(scale):
    with pytest.raises(DatasetError, match="scale finite and positive"):
        AffineNormalizer(np.zeros(2), np.array(scale))


def test_center_and_scale_of_different_sizes_are_refused():
    with pytest.raises(DatasetError, match=r"both have shape \(n,\)"):
        AffineNormalizer(np.zeros(2), np.ones(3))


VARYING = {
    "a small unit": np.linspace(0, 1e-7, 101),
    "seconds since 1970 that vary by an hour": 1.7e9 + np.linspace(0, 3600, 101),
    "seconds since 1970 that vary by a second": 1.7e9 + np.linspace(0, 1, 101),
    "seconds since 1970 in float32": (1.7e9 + np.linspace(0, 36000, 101)).astype(np.float32),
    "large and small": 1e6 + np.linspace(0, 1e-3, 101),
    "float32 of a small unit": np.linspace(0, 1e-7, 101).astype(np.float32),
}


@pytest.mark.parametrize("name", sorted(NORMALIZERS))
@pytest.mark.parametrize("column", VARYING.values(), ids=VARYING.keys())
def test_a_column_that_varies_is_normalised_whatever_its_unit(name, column):
    normalizer = NORMALIZERS[name](column[:, None])
    normal = normalizer.normalize(column[:, None])
    assert 0.9 <= np.abs(normal).max() <= 2.5
    np.testing.assert_allclose(normal.mean(), 0.0, atol=0.05)


@pytest.mark.parametrize("name", sorted(NORMALIZERS))
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("constant", [0.1, 1.7e9, 1e-9, -1234.5678])
def test_a_column_that_varies_by_its_rounding_only_is_constant(name, kind, constant):
    column = np.full(101, constant, kind)
    column[::2] = np.nextafter(column[::2], np.array(np.inf, kind))
    assert NORMALIZERS[name](column[:, None]).scale[0] == 1.0


def test_what_is_left_of_numbers_that_cancel_is_constant():
    column = (0.1 + np.linspace(0, 1, 101)) - np.linspace(0, 1, 101) - 0.1
    assert np.ptp(column) > 0
    assert NORMALIZERS["gaussian"](column[:, None]).scale[0] == 1.0
