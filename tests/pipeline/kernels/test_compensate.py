"""The compensation kernels against references written straight from the standards, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cope_prep.pipeline.kernels.compensate import compensate_h264, compensate_mpeg4

TAPS = (1, -5, 20, 20, -5, 1)


def clamped(plane: np.ndarray, y: int, x: int) -> int:
    height, width = plane.shape
    return int(plane[min(max(y, 0), height - 1), min(max(x, 0), width - 1)])


def clip(value: int) -> int:
    return min(max(value, 0), 255)


def h264_luma(plane: np.ndarray, qx: int, qy: int) -> int:
    """ITU-T H.264, 8.4.2.2.1, at a position in quarter pixels; names as in figure 8-4."""
    x, y, fx, fy = qx >> 2, qy >> 2, qx & 3, qy & 3

    def right_raw(yy: int, xx: int) -> int:
        return sum(tap * clamped(plane, yy, xx + k - 2) for k, tap in enumerate(TAPS))

    def down_raw(yy: int, xx: int) -> int:
        return sum(tap * clamped(plane, yy + k - 2, xx) for k, tap in enumerate(TAPS))

    def half(raw: int) -> int:
        return clip((raw + 16) >> 5)

    def mean(first: int, second: int) -> int:
        return (first + second + 1) >> 1

    g = clamped(plane, y, x)
    b, h = half(right_raw(y, x)), half(down_raw(y, x))
    m, s = half(down_raw(y, x + 1)), half(right_raw(y + 1, x))
    j = clip((sum(tap * right_raw(y + k - 2, x) for k, tap in enumerate(TAPS)) + 512) >> 10)
    right, below = clamped(plane, y, x + 1), clamped(plane, y + 1, x)
    table = {
        (0, 0): g, (1, 0): mean(g, b), (2, 0): b, (3, 0): mean(b, right),
        (0, 1): mean(g, h), (0, 2): h, (0, 3): mean(h, below),
        (1, 1): mean(b, h), (2, 1): mean(b, j), (3, 1): mean(b, m),
        (1, 2): mean(h, j), (2, 2): j, (3, 2): mean(j, m),
        (1, 3): mean(h, s), (2, 3): mean(j, s), (3, 3): mean(s, m),
    }  # fmt: skip
    return table[fx, fy]


def h264_chroma(plane: np.ndarray, ex: int, ey: int) -> int:
    """8.4.2.2.2, at a position in eighths of a chroma pixel."""
    x, y, fx, fy = ex >> 3, ey >> 3, ex & 7, ey & 7
    a, b = clamped(plane, y, x), clamped(plane, y, x + 1)
    c, d = clamped(plane, y + 1, x), clamped(plane, y + 1, x + 1)
    return ((8 - fx) * (8 - fy) * a + fx * (8 - fy) * b + (8 - fx) * fy * c + fx * fy * d + 32) >> 6


def mpeg4_half(plane: np.ndarray, hx: int, hy: int, rounding: int) -> int:
    """ISO/IEC 14496-2, 7.6.2.1, at a position in half pixels."""
    x, y, right, down = hx >> 1, hy >> 1, hx & 1, hy & 1
    a, b = clamped(plane, y, x), clamped(plane, y, x + 1)
    c, d = clamped(plane, y + 1, x), clamped(plane, y + 1, x + 1)
    if right and down:
        return (a + b + c + d + 2 - rounding) >> 2
    if right:
        return (a + b + 1 - rounding) >> 1
    if down:
        return (a + c + 1 - rounding) >> 1
    return a


def split(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    height, half_w = picture.shape[0] * 2 // 3, picture.shape[1] // 2
    return picture[:height], picture[height:, :half_w], picture[height:, half_w:]


def reference_h264(picture: np.ndarray, motion: np.ndarray) -> np.ndarray:
    out = np.zeros_like(picture)
    luma, *chroma = split(picture)
    luma_out, *chroma_out = split(out)
    for y, x in np.ndindex(luma.shape):
        dx, dy = map(int, motion[y // 8, x // 8])
        luma_out[y, x] = h264_luma(luma, 4 * x + dx, 4 * y + dy)
    for plane, plane_out in zip(chroma, chroma_out, strict=True):
        for y, x in np.ndindex(plane.shape):
            dx, dy = map(int, motion[y // 4, x // 4])
            plane_out[y, x] = h264_chroma(plane, 8 * x + dx, 8 * y + dy)
    return out


def reference_mpeg4(picture: np.ndarray, motion: np.ndarray, rounding: int) -> np.ndarray:
    out = np.zeros_like(picture)
    luma, *chroma = split(picture)
    luma_out, *chroma_out = split(out)
    for y, x in np.ndindex(luma.shape):
        dx, dy = (int(v) // 2 for v in motion[y // 8, x // 8])
        luma_out[y, x] = mpeg4_half(luma, 2 * x + dx, 2 * y + dy, rounding)
    for plane, plane_out in zip(chroma, chroma_out, strict=True):
        for y, x in np.ndindex(plane.shape):
            # table 7-9: of quarter positions, every fraction counts as a half
            dx, dy = (2 * (v // 4) + (v % 4 != 0) for v in (int(v) // 2 for v in motion[y // 4, x // 4]))
            plane_out[y, x] = mpeg4_half(plane, 2 * x + dx, 2 * y + dy, rounding)
    return out


@st.composite
def scenes(draw: st.DrawFn, *, even: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A random picture of 32 x 48 and motion from still to far outside; 16 x 16 and 8 x 8 partitions mixed."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    picture = rng.integers(0, 256, (48, 48), dtype=np.uint8)
    if draw(st.booleans()):  # hard edges, so that the filters overshoot and clip
        picture = np.where(picture > 127, 255, 0).astype(np.uint8)
    reach = draw(st.sampled_from([0, 1, 6, 40, 1000]))
    coarse = rng.integers(-reach, reach + 1, (2, 3, 2)).repeat(2, axis=0).repeat(2, axis=1)
    fine = rng.integers(-reach, reach + 1, (4, 6, 2))
    motion = np.where(rng.random((4, 6, 1)) < 0.5, coarse, fine).astype(np.int16)
    return picture, motion * 2 if even else motion


@given(scenes())
@settings(max_examples=25, deadline=None)
def test_h264_equals_the_standard(scene: tuple[np.ndarray, np.ndarray]) -> None:
    picture, motion = scene
    out = np.empty_like(picture)
    compensate_h264(picture, motion, out)
    np.testing.assert_array_equal(out, reference_h264(picture, motion))


@given(scenes(even=True), st.integers(0, 1))
@settings(max_examples=25, deadline=None)
def test_mpeg4_equals_the_standard(scene: tuple[np.ndarray, np.ndarray], rounding: int) -> None:
    picture, motion = scene
    out = np.empty_like(picture)
    compensate_mpeg4(picture, motion, rounding, out)
    np.testing.assert_array_equal(out, reference_mpeg4(picture, motion, rounding))


@pytest.mark.parametrize(("fx", "fy"), list(np.ndindex(4, 4)))
def test_h264_every_quarter_position(fx: int, fy: int) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (24, 16), dtype=np.uint8)
    motion = np.full((2, 2, 2), (fx, fy), np.int16)
    out = np.empty_like(picture)
    compensate_h264(picture, motion, out)
    np.testing.assert_array_equal(out, reference_h264(picture, motion))


def test_rounding_control_changes_half_positions() -> None:
    picture = np.random.default_rng(2).integers(0, 256, (24, 16), dtype=np.uint8)
    motion = np.full((2, 2, 2), 2, np.int16)
    outs = [np.empty_like(picture), np.empty_like(picture)]
    for rounding, out in enumerate(outs):
        compensate_mpeg4(picture, motion, rounding, out)
    difference = outs[0].astype(int) - outs[1]
    assert set(np.unique(difference)) == {0, 1}
