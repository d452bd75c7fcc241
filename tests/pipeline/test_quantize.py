"""Quantization of motion: the smallest step that fits, and nothing wraps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cope_prep.pipeline.quantize import quantize_motion


@pytest.mark.parametrize(
    ("largest", "step_qpel"),
    [(0, 1), (127, 1), (128, 2), (254, 2), (255, 4), (509, 4), (510, 8), (4079, 32), (4080, 32), (9000, 32)],
)
def test_smallest_step_that_fits(largest: int, step_qpel: int) -> None:
    motion = np.array([[[largest, 0], [0, -largest]]], np.int32)
    levels, step, num_clipped = quantize_motion(motion)
    assert step == step_qpel
    assert levels.dtype == np.int8
    assert num_clipped == (2 if largest >= 4080 else 0)


@given(seed=st.integers(0, 2**32 - 1), reach=st.sampled_from([1, 127, 300, 3000, 100_000]))
@settings(max_examples=60, deadline=None)
def test_error_is_half_a_step_and_nothing_wraps(seed: int, reach: int) -> None:
    motion = np.random.default_rng(seed).integers(-reach, reach + 1, (5, 7, 2)).astype(np.int32)
    levels, step, num_clipped = quantize_motion(motion)
    restored = levels.astype(int) * step
    beyond = (np.abs(motion) + step // 2) // step > 127
    assert np.abs(restored - motion)[~beyond].max(initial=0) <= step / 2
    np.testing.assert_array_equal(restored[beyond], 127 * step * np.sign(motion[beyond]))
    assert num_clipped == np.count_nonzero(beyond.any(axis=-1))
    if step > 1:  # and no smaller step would have held it
        half = step // 2
        assert (np.abs(motion).max() + half // 2) // half > 127
