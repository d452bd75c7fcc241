"""Composing stored windows against plain recursion."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cope_prep.pipeline.kernels.fuse import trace_paths
from cope_prep.pipeline.kernels.merge import trace_blocks


def reference_path(
    motion_qpel: np.ndarray, intra: np.ndarray, block_px: int, y: int, x: int
) -> tuple[int, int] | None:
    """D_t(p) = d_t(p) + D_{t-1}(p + d_t(p)), in quarter pixels; None where the path meets an intra block."""
    if len(motion_qpel) == 0:
        return 0, 0
    rows, cols = intra.shape[1:]
    row = int(np.clip((y + 2) // 4, 0, rows * block_px - 1)) // block_px
    col = int(np.clip((x + 2) // 4, 0, cols * block_px - 1)) // block_px
    if intra[-1, row, col]:
        return None
    dx, dy = map(int, motion_qpel[-1, row, col])
    rest = reference_path(motion_qpel[:-1], intra[:-1], block_px, y + dy, x + dx)
    return None if rest is None else (dx + rest[0], dy + rest[1])


@given(
    seed=st.integers(0, 2**32 - 1),
    num_windows=st.integers(1, 6),
    reach=st.sampled_from([1, 12, 60, 127]),
    coarsest=st.sampled_from([0, 2, 5]),
    block_px=st.sampled_from([16, 8, 4]),
    intra_share=st.sampled_from([0.0, 0.05, 0.5]),
)
@settings(max_examples=60, deadline=None)
def test_paths_equal_the_recursion(
    seed: int, num_windows: int, reach: int, coarsest: int, block_px: int, intra_share: float
) -> None:
    rng = np.random.default_rng(seed)
    rows, cols = 64 // block_px, 96 // block_px
    motion = rng.integers(-reach, reach + 1, (num_windows, rows, cols, 2)).astype(np.int8)
    motion[:, rng.random((rows, cols)) < 0.3] = 0
    steps_qpel = 2 ** rng.integers(0, coarsest + 1, num_windows)
    intra = rng.random((num_windows, rows, cols)) < intra_share
    cell_px = min(block_px, 8)
    paths = np.full((64 // cell_px, 96 // cell_px, 2), 12345, np.int32)
    broken = np.full(paths.shape[:2], 7, np.uint8)
    trace_blocks(motion, steps_qpel, intra, block_px, cell_px, paths, broken)
    motion_qpel = motion.astype(int) * steps_qpel[:, None, None, None]
    for row, col in np.ndindex(broken.shape):
        start = (row * cell_px + cell_px // 2) * 4, (col * cell_px + cell_px // 2) * 4
        expected = reference_path(motion_qpel, intra, block_px, *start)
        assert broken[row, col] == (expected is None)
        assert tuple(paths[row, col]) == (expected or (0, 0))


def test_windows_of_one_frame_are_followed_as_frames_are() -> None:
    rng = np.random.default_rng(5)
    motion = rng.integers(-90, 91, (30, 12, 16, 2)).astype(np.int16)
    intra = rng.random((30, 12, 16)) < 0.02
    expected, merged = np.empty((2, 12, 16, 2), np.int32)
    expected_broken, broken = np.empty((2, 12, 16), np.uint8)
    still = np.zeros((12, 16), np.uint8)
    trace_paths(motion, (~intra).astype(np.uint8), still, 8, expected, expected_broken)
    trace_blocks(motion, np.ones(30, np.int64), intra, 8, 8, merged, broken)
    np.testing.assert_array_equal(merged, expected)
    np.testing.assert_array_equal(broken, expected_broken)
    assert 0 < broken.sum() < broken.size


def test_constant_motion_adds_up() -> None:
    motion = np.full((3, 4, 6, 2), (2, -1), np.int8)
    paths = np.empty((8, 12, 2), np.int32)
    broken = np.empty((8, 12), np.uint8)
    trace_blocks(motion, np.array([1, 2, 4]), np.zeros((3, 4, 6), np.bool_), 16, 8, paths, broken)
    assert (paths == (14, -7)).all()
    assert not broken.any()
