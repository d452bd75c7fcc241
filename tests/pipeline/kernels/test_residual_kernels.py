"""The residual loops against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cope_prep.pipeline.kernels import residual as kernels


@pytest.fixture(scope="module")
def every_difference() -> tuple[np.ndarray, np.ndarray]:
    """Two uint8 [384, 256] pictures that hold all 65,536 pairs of values in their upper two thirds."""
    values = np.arange(256, dtype=np.uint8)
    current = np.vstack([np.repeat(values[:, None], 256, 1), np.zeros((128, 256), np.uint8)])
    prediction = np.vstack([np.repeat(values[None], 256, 0), np.zeros((128, 256), np.uint8)])
    return current, prediction


def test_half_amplitude_of_every_difference(every_difference: tuple[np.ndarray, np.ndarray]) -> None:
    current, prediction = every_difference
    out = np.empty_like(current)
    energy = kernels.residual_to_half(current, prediction, out)
    residual = current.astype(int) - prediction
    np.testing.assert_array_equal(out, np.trunc(residual / 2) + 128)
    assert energy == (residual**2).sum()
    rebuilt = np.empty_like(current)
    assert kernels.add_half(prediction, out, rebuilt) == np.count_nonzero(np.trunc(residual / 2))
    assert np.abs(rebuilt.astype(int) - current).max() == 1


@given(step=st.integers(2, 64), deadzone=st.integers(0, 64))
@settings(max_examples=40, deadline=None)
def test_int8_keeps_its_bound_for_every_difference(step: int, deadzone: int) -> None:
    values = np.arange(256, dtype=np.uint8)
    current, prediction = np.repeat(values[:, None], 256, 1), np.repeat(values[None], 256, 0)
    out = np.empty(current.shape, np.int8)
    energy, num_clipped = kernels.residual_to_int8(current, prediction, step, deadzone, out)
    residual = current.astype(int) - prediction
    assert energy == (residual**2).sum()
    assert num_clipped == np.count_nonzero(
        (np.abs(residual) > deadzone) & (np.abs(residual) + step // 2 >= 128 * step)
    )
    assert not out[np.abs(residual) <= deadzone].any()
    rebuilt = np.empty_like(current)
    assert kernels.add_scaled(prediction, out, step, rebuilt) == np.count_nonzero(out)
    expected = np.clip(prediction + step * out.astype(int), 0, 255)
    np.testing.assert_array_equal(rebuilt, expected)
    assert np.abs(rebuilt.astype(int) - current).max() <= max(deadzone, step // 2)


@pytest.mark.parametrize(("high", "fits"), [(127, True), (128, False)])
def test_exact_residual_says_whether_int8_holds_it(high: int, fits: bool) -> None:
    current = np.array([[high, 0], [0, 0], [3, 3]], np.uint8)
    prediction = np.array([[0, 128], [0, 0], [3, 4]], np.uint8)
    out = np.empty(current.shape, np.int16)
    energy, num_nonzero, all_fit = kernels.residual_exact(current, prediction, out)
    assert out.tolist() == [[high, -128], [0, 0], [0, -1]]
    assert (energy, num_nonzero, all_fit) == (high**2 + 128**2 + 1, 3, fits)


def test_compare_separates_luma_from_the_rest() -> None:
    rebuilt = np.zeros((6, 4), np.uint8)
    current = rebuilt.copy()
    current[0, 0] = 3
    current[5, 3] = 200  # chroma: counts for the maximum only
    assert kernels.compare(rebuilt, current) == (9, 200)


def test_motion_figures() -> None:
    rng = np.random.default_rng(0)
    motion = rng.integers(-20, 21, (24, 24, 2)).astype(np.int8)
    motion[:6] = 0
    intra = np.zeros((24, 24), np.bool_)
    intra[4:9] = True
    mean, p95, num_zero = kernels.motion_figures(motion, intra)
    lengths = np.hypot(*np.moveaxis(motion.astype(float), -1, 0))[~intra]
    assert mean == pytest.approx(lengths.mean())
    assert p95 == pytest.approx(np.percentile(lengths, 95, method="inverted_cdf"))
    assert num_zero == np.count_nonzero(lengths == 0) > 0


def test_motion_figures_of_an_intra_window() -> None:
    assert kernels.motion_figures(np.zeros((4, 4, 2), np.int8), np.ones((4, 4), np.bool_)) == (0, 0, 0)
