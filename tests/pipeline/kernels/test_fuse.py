"""Scattering and fusing vectors against plain references."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cope_prep.pipeline.fuse import fuse_window
from cope_prep.pipeline.kernels.fuse import find_still, trace_paths
from cope_prep.pipeline.kernels.vectors import scatter_vectors

AV_MOTION_VECTOR = np.dtype(
    {
        "names": ["source", "w", "h", "dst_x", "dst_y", "motion_x", "motion_y", "scale"],
        "formats": ["<i4", "u1", "u1", "<i2", "<i2", "<i4", "<i4", "<u2"],
        "offsets": [0, 4, 5, 10, 12, 24, 28, 32],
        "itemsize": 40,
    }
)
"""libavutil/motion_vector.h, as PyAV's to_ndarray lays it out."""


def vector(
    x: int, y: int, w: int, h: int, motion: tuple[int, int], scale: int = 4, source: int = -1
) -> tuple:
    return (source, w, h, x + w // 2, y + h // 2, *motion, scale)


def scatter(vectors: list[tuple], rows: int = 4, cols: int = 4) -> tuple[np.ndarray, np.ndarray, int]:
    packed = np.array(vectors, AV_MOTION_VECTOR).view(np.int32).reshape(-1, 10)
    motion = np.full((rows, cols, 2), 99, np.int16)
    covered = np.full((rows, cols), 99, np.uint8)
    return motion, covered, scatter_vectors(packed, motion, covered)


def test_scatter_partitions_of_every_shape() -> None:
    vectors = [
        vector(0, 0, 16, 16, (5, -7)),
        vector(16, 0, 16, 8, (-300, 2)),
        vector(16, 16, 8, 16, (1, 1)),
        vector(0, 24, 8, 8, (0, 9)),
    ]
    motion, covered, num_foreign = scatter(vectors)
    assert num_foreign == 0
    expected = np.zeros((4, 4, 2), np.int16)
    expected[:2, :2] = (5, -7)
    expected[0, 2:] = (-300, 2)
    expected[2:, 2] = (1, 1)
    expected[3, 0] = (0, 9)
    np.testing.assert_array_equal(motion, expected)
    assert covered.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0]]


def test_scatter_turns_half_pixels_into_quarters() -> None:
    motion, _, _ = scatter([vector(0, 0, 16, 16, (3, -5), scale=2)])
    assert motion[0, 0].tolist() == [6, -10]


def test_scatter_counts_vectors_to_other_frames() -> None:
    _, covered, num_foreign = scatter([vector(0, 0, 16, 16, (3, 3), source=1), vector(16, 0, 16, 16, (1, 1))])
    assert num_foreign == 1
    assert covered.sum() == 4


def test_scatter_stays_inside_the_grid() -> None:
    motion, covered, _ = scatter([vector(24, 24, 16, 16, (4, 4)), vector(-8, -8, 16, 16, (8, 8))])
    assert motion[3, 3].tolist() == [4, 4]
    assert motion[0, 0].tolist() == [8, 8]
    assert covered.sum() == 2


def reference_path(motion: np.ndarray, covered: np.ndarray, y: int, x: int) -> tuple[int, int] | None:
    """Follow one point, in quarter pixels, recursively: D_t(p) = d_t(p) + D_{t-1}(p + d_t(p))."""
    if len(motion) == 0:
        return 0, 0
    rows, cols = covered.shape[1:]
    cell_y = min(max((y + 2) // 4, 0), rows * 8 - 1) // 8
    cell_x = min(max((x + 2) // 4, 0), cols * 8 - 1) // 8
    if not covered[-1, cell_y, cell_x]:
        return None
    dx, dy = map(int, motion[-1, cell_y, cell_x])
    rest = reference_path(motion[:-1], covered[:-1], y + dy, x + dx)
    return None if rest is None else (dx + rest[0], dy + rest[1])


@given(
    seed=st.integers(0, 2**32 - 1),
    num_frames=st.integers(1, 12),
    reach=st.sampled_from([1, 12, 60, 2000]),
    cell_px=st.sampled_from([8, 4]),
    intra_share=st.sampled_from([0.0, 0.02, 0.5]),
)
@settings(max_examples=60, deadline=None)
def test_paths_equal_the_recursion(
    seed: int, num_frames: int, reach: int, cell_px: int, intra_share: float
) -> None:
    rng = np.random.default_rng(seed)
    motion = rng.integers(-reach, reach + 1, (num_frames, 4, 6, 2)).astype(np.int16)
    motion[:, rng.random((4, 6)) < 0.3] = 0
    covered = (rng.random((num_frames, 4, 6)) >= intra_share).astype(np.uint8)
    rows, cols = 32 // cell_px, 48 // cell_px
    paths = np.full((rows, cols, 2), 12345, np.int32)
    broken = np.full((rows, cols), 7, np.uint8)
    still = np.full((4, 6), 9, np.uint8)
    find_still(motion.view(np.int32)[..., 0], covered, still)
    np.testing.assert_array_equal(still, (motion == 0).all(axis=(0, 3)) & covered.all(axis=0))
    trace_paths(motion, covered, still, cell_px, paths, broken)
    for row, col in np.ndindex(rows, cols):
        start = (row * cell_px + cell_px // 2) * 4, (col * cell_px + cell_px // 2) * 4
        expected = reference_path(motion, covered, *start)
        assert broken[row, col] == (expected is None)
        assert tuple(paths[row, col]) == (expected or (0, 0))


def test_fused_vector_is_the_path_that_predicts_best() -> None:
    rng = np.random.default_rng(3)
    reference = rng.integers(0, 256, (32, 32), dtype=np.uint8)
    current = np.roll(reference, (0, -3), (0, 1))  # what is at x was at x + 3
    motion = np.zeros((1, 4, 4, 2), np.int16)
    motion[0, 0, 0] = (40, 40)
    motion[0, 0, 1] = (12, 0)
    covered = np.ones((1, 4, 4), np.uint8)
    fused, intra = fuse_window(motion, covered, block_px=16, reference=reference, current=current)
    assert fused[0, 0].tolist() == [12, 0]
    assert fused[1, 1].tolist() == [0, 0]
    assert not intra.any()


def test_block_is_intra_when_all_its_paths_are_broken() -> None:
    picture = np.zeros((32, 32), np.uint8)
    motion = np.full((2, 4, 4, 2), 4, np.int16)
    covered = np.ones((2, 4, 4), np.uint8)
    covered[0, :2, :2] = 0  # reached from the block at (0, 0) in the second step back
    covered[1, 2, 2] = 0  # one of the four paths of the block at (1, 1)
    fused, intra = fuse_window(motion, covered, block_px=16, reference=picture, current=picture)
    assert intra.tolist() == [[True, False], [False, False]]
    assert fused[0, 0].tolist() == [0, 0]
