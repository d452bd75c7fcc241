"""The warp kernel against a per-pixel reference."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cope_prep.pipeline.kernels.warp import warp


def reference_warp(picture: np.ndarray, motion: np.ndarray, step_qpel: int, block_px: int) -> np.ndarray:
    height, width = picture.shape[0] * 2 // 3, picture.shape[1]
    out = np.zeros_like(picture)
    planes = (
        (slice(0, height), slice(0, width), block_px, 4),
        (slice(height, None), slice(0, width // 2), block_px // 2, 8),
        (slice(height, None), slice(width // 2, None), block_px // 2, 8),
    )
    for rows, cols, block, unit in planes:
        plane = picture[rows, cols].astype(int)
        view = out[rows, cols]
        last_y, last_x = plane.shape[0] - 1, plane.shape[1] - 1
        for y, x in np.ndindex(plane.shape):
            dx, dy = motion[y // block, x // block].astype(int) * step_qpel
            px, py = x * unit + dx, y * unit + dy
            x0, y0 = px // unit, py // unit
            fx, fy = px % unit * (8 // unit), py % unit * (8 // unit)
            a, b = (plane[min(max(y0, 0), last_y), min(max(x0 + k, 0), last_x)] for k in (0, 1))
            c, d = (plane[min(max(y0 + 1, 0), last_y), min(max(x0 + k, 0), last_x)] for k in (0, 1))
            top, bottom = (8 - fx) * a + fx * b, (8 - fx) * c + fx * d
            view[y, x] = ((8 - fy) * top + fy * bottom + 32) >> 6
    return out


@given(
    seed=st.integers(0, 2**32 - 1),
    block_px=st.sampled_from([16, 8, 4]),
    step_qpel=st.sampled_from([1, 2, 4, 32]),
    reach=st.sampled_from([0, 1, 9, 127]),
    size=st.sampled_from([(32, 32), (16, 48), (32, 36)]),
)
@settings(max_examples=40, deadline=None)
def test_warp_equals_the_reference(
    seed: int, block_px: int, step_qpel: int, reach: int, size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(seed)
    height, width = size
    picture = rng.integers(0, 256, (height * 3 // 2, width), dtype=np.uint8)
    grid = (-(-height // block_px), -(-width // block_px))
    motion = rng.integers(-reach, reach + 1, (*grid, 2)).astype(np.int8)
    out = np.empty_like(picture)
    warp(picture, motion, step_qpel, block_px, out)
    np.testing.assert_array_equal(out, reference_warp(picture, motion, step_qpel, block_px))


def test_zero_motion_is_the_identity() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (48, 32), dtype=np.uint8)
    out = np.empty_like(picture)
    warp(picture, np.zeros((2, 2, 2), np.int8), 1, 16, out)
    np.testing.assert_array_equal(out, picture)


def test_vector_points_to_where_the_pixel_was() -> None:
    picture = np.zeros((48, 32), np.uint8)
    picture[8, 12] = 200  # row 8, column 12
    out = np.empty_like(picture)
    motion = np.full((2, 2, 2), (4 * 4, 4 * 3), np.int8)  # four right, three down
    warp(picture, motion, 1, 16, out)
    assert np.argwhere(out[:32] == 200).tolist() == [[8 - 3, 12 - 4]]
