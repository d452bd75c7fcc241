"""The codecs' own motion compensation, exactly: what the decoder added its residual to.

H.264 (ITU-T H.264, 8.4.2.2): luma in quarter pixels. Half positions come from the 6-tap filter
(1, -5, 20, 20, -5, 1) / 32, the centre one from unrounded intermediates / 1024, quarter positions from the
rounded-up mean of two neighbours; chroma is bilinear in eighths.

MPEG-4 part 2 (ISO/IEC 14496-2, 7.6.2): luma and chroma in half pixels, bilinear, with the rounding control
of the P-VOP header subtracted before the shift; the chroma vector is half the luma vector, where every
fraction counts as a half.

It holds for streams as EncodeSpec makes them: one reference, no weights, no deblocking, 4:2:0, and sizes that
are multiples of 16, so that the clamped edge is the edge of the coded picture.

Both walk the grid of 8 x 8 cells, two rows at a time, and join neighbours with the same vector into one run. A
run whose filter reaches outside the frame is read from a small clamped copy, so that the filters have no edge
cases. Cost: 0.05 to 0.2 ms at 384 x 384, by the share of blocks at fractional positions.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from cope_prep.pipeline.kernels.warp import warp_block

_BEFORE = 2
_AFTER = 3
"""Pixels that the 6-tap filter reads before and after a position."""


@njit(cache=True, nogil=True)
def _clamped_patch(plane: np.ndarray, top: int, left: int, rows: int, cols: int, patch: np.ndarray) -> None:
    """Copy rows x cols pixels from (top, left) of a plane, coordinates clamped to its edge."""
    height, width = plane.shape
    first = min(max(-left, 0), cols)
    last = max(min(width - left, cols), first)
    for y in range(rows):
        src = np.uint64(min(max(top + y, 0), height - 1))
        dst = np.uint64(y)
        for x in range(first):
            patch[dst, np.uint64(x)] = plane[src, 0]
        for x in range(first, last):
            patch[dst, np.uint64(x)] = plane[src, np.uint64(left + x)]
        for x in range(last, cols):
            patch[dst, np.uint64(x)] = plane[src, np.uint64(width - 1)]


@njit(cache=True, nogil=True)
def _copy(src: np.ndarray, sy: int, sx: int, rows: int, cols: int, dst: np.ndarray, dy: int, dx: int) -> None:
    for y in range(rows):
        a = np.uint64(sy + y)
        b = np.uint64(dy + y)
        for x in range(cols):
            dst[b, np.uint64(dx + x)] = src[a, np.uint64(sx + x)]


@njit(cache=True, nogil=True)
def _half_right(
    src: np.ndarray, sy: int, sx: int, rows: int, cols: int, dst: np.ndarray, dy: int, dx: int
) -> None:
    """Position b of figure 8-4: half a pixel to the right."""
    for y in range(rows):
        a = np.uint64(sy + y)
        b = np.uint64(dy + y)
        for x in range(cols):
            c = sx + x
            value = (
                np.int32(src[a, np.uint64(c - 2)])
                + np.int32(src[a, np.uint64(c + 3)])
                - 5 * (np.int32(src[a, np.uint64(c - 1)]) + np.int32(src[a, np.uint64(c + 2)]))
                + 20 * (np.int32(src[a, np.uint64(c)]) + np.int32(src[a, np.uint64(c + 1)]))
            )
            dst[b, np.uint64(dx + x)] = np.uint8(min(max((value + 16) >> 5, 0), 255))


@njit(cache=True, nogil=True)
def _half_down(
    src: np.ndarray, sy: int, sx: int, rows: int, cols: int, dst: np.ndarray, dy: int, dx: int
) -> None:
    """Position h of figure 8-4: half a pixel down."""
    for y in range(rows):
        a = sy + y
        b = np.uint64(dy + y)
        for x in range(cols):
            c = np.uint64(sx + x)
            value = (
                np.int32(src[np.uint64(a - 2), c])
                + np.int32(src[np.uint64(a + 3), c])
                - 5 * (np.int32(src[np.uint64(a - 1), c]) + np.int32(src[np.uint64(a + 2), c]))
                + 20 * (np.int32(src[np.uint64(a), c]) + np.int32(src[np.uint64(a + 1), c]))
            )
            dst[b, np.uint64(dx + x)] = np.uint8(min(max((value + 16) >> 5, 0), 255))


@njit(cache=True, nogil=True)
def _half_both(
    src: np.ndarray,
    sy: int,
    sx: int,
    rows: int,
    cols: int,
    middle: np.ndarray,
    dst: np.ndarray,
    dy: int,
    dx: int,
) -> None:
    """Position j of figure 8-4: half a pixel right and down, from unrounded intermediates."""
    for y in range(rows + _BEFORE + _AFTER):
        a = np.uint64(sy + y - _BEFORE)
        b = np.uint64(y)
        for x in range(cols):
            c = sx + x
            middle[b, np.uint64(x)] = (
                np.int32(src[a, np.uint64(c - 2)])
                + np.int32(src[a, np.uint64(c + 3)])
                - 5 * (np.int32(src[a, np.uint64(c - 1)]) + np.int32(src[a, np.uint64(c + 2)]))
                + 20 * (np.int32(src[a, np.uint64(c)]) + np.int32(src[a, np.uint64(c + 1)]))
            )
    for y in range(rows):
        b = np.uint64(dy + y)
        for x in range(cols):
            c = np.uint64(x)
            value = (
                middle[np.uint64(y), c]
                + middle[np.uint64(y + 5), c]
                - 5 * (middle[np.uint64(y + 1), c] + middle[np.uint64(y + 4), c])
                + 20 * (middle[np.uint64(y + 2), c] + middle[np.uint64(y + 3), c])
            )
            dst[b, np.uint64(dx + x)] = np.uint8(min(max((value + 512) >> 10, 0), 255))


@njit(cache=True, nogil=True)
def _mean_with(other: np.ndarray, rows: int, cols: int, dst: np.ndarray, dy: int, dx: int) -> None:
    """dst = (dst + other + 1) >> 1."""
    for y in range(rows):
        a = np.uint64(y)
        b = np.uint64(dy + y)
        for x in range(cols):
            c = np.uint64(dx + x)
            dst[b, c] = np.uint8((np.int32(dst[b, c]) + np.int32(other[a, np.uint64(x)]) + 1) >> 1)


@njit(cache=True, nogil=True)
def _luma_h264(
    src: np.ndarray,
    sy: int,
    sx: int,
    rows: int,
    cols: int,
    fx: int,
    fy: int,
    middle: np.ndarray,
    other: np.ndarray,
    dst: np.ndarray,
    dy: int,
    dx: int,
) -> None:
    """One run; (sy, sx) is the whole-pixel position in src, (fx, fy) the quarters (table 8-12)."""
    if fx == 0 and fy == 0:
        _copy(src, sy, sx, rows, cols, dst, dy, dx)
    elif fy == 0:
        _half_right(src, sy, sx, rows, cols, dst, dy, dx)
        if fx != 2:
            _copy(src, sy, sx + fx // 2, rows, cols, other, 0, 0)
            _mean_with(other, rows, cols, dst, dy, dx)
    elif fx == 0:
        _half_down(src, sy, sx, rows, cols, dst, dy, dx)
        if fy != 2:
            _copy(src, sy + fy // 2, sx, rows, cols, other, 0, 0)
            _mean_with(other, rows, cols, dst, dy, dx)
    elif fx != 2 and fy != 2:
        _half_right(src, sy + fy // 2, sx, rows, cols, dst, dy, dx)
        _half_down(src, sy, sx + fx // 2, rows, cols, other, 0, 0)
        _mean_with(other, rows, cols, dst, dy, dx)
    else:
        _half_both(src, sy, sx, rows, cols, middle, dst, dy, dx)
        if fy != 2:
            _half_right(src, sy + fy // 2, sx, rows, cols, other, 0, 0)
            _mean_with(other, rows, cols, dst, dy, dx)
        elif fx != 2:
            _half_down(src, sy, sx + fx // 2, rows, cols, other, 0, 0)
            _mean_with(other, rows, cols, dst, dy, dx)


@njit(cache=True, nogil=True)
def _same(motion: np.ndarray, row: int, col: int, other_row: int, other_col: int) -> bool:
    return (
        motion[row, col, 0] == motion[other_row, other_col, 0]
        and motion[row, col, 1] == motion[other_row, other_col, 1]
    )


@njit(cache=True, nogil=True)
def _tall_run(motion: np.ndarray, row: int, col: int) -> int:
    """Columns of cells from (row, col) rightward whose cells in this row and the next share one vector; 0 if the
    first does not."""
    end = col
    while (
        end < motion.shape[1] and _same(motion, row, col, row, end) and _same(motion, row, col, row + 1, end)
    ):
        end += 1
    return end - col


@njit(cache=True, nogil=True)
def compensate_h264(picture: np.ndarray, motion: np.ndarray, out: np.ndarray) -> None:
    """Predict a picture from the one before it as an H.264 decoder does.

    picture, out: uint8 [3H/2, W], Y above, U and V side by side below; H and W multiples of 16.
    motion: int16 [H/8, W/8, 2], quarter pixels (x, y).
    """
    height = picture.shape[0] * 2 // 3
    width = picture.shape[1]
    half_w = width // 2
    luma = picture[:height]
    chroma_u = picture[height:, :half_w]
    chroma_v = picture[height:, half_w:]
    u_out = out[height:, :half_w]
    v_out = out[height:, half_w:]
    patch = np.empty((16 + _BEFORE + _AFTER, width + _BEFORE + _AFTER), np.uint8)
    middle = np.empty((16 + _BEFORE + _AFTER, width), np.int32)
    other = np.empty((16, width), np.uint8)
    for row in range(0, motion.shape[0], 2):
        col = 0
        while col < motion.shape[1]:
            num_cells = max(_tall_run(motion, row, col), 1)
            rows = 16 if _same(motion, row, col, row + 1, col) else 8
            cols = num_cells * 8
            for part in range(row, row + 2, rows // 8):
                dx = int(np.int64(motion[part, col, 0]))
                dy = int(np.int64(motion[part, col, 1]))
                y0 = part * 8
                x0 = col * 8
                sy = y0 + (dy >> 2)
                sx = x0 + (dx >> 2)
                # A filter reads beside the block only along the axes where the vector has a fraction.
                before_x, after_x = (_BEFORE, _AFTER) if dx & 3 else (0, 0)
                before_y, after_y = (_BEFORE, _AFTER) if dy & 3 else (0, 0)
                is_inside_x = sx >= before_x and sx + cols + after_x <= width
                is_inside_y = sy >= before_y and sy + rows + after_y <= height
                if is_inside_x and is_inside_y:
                    _luma_h264(luma, sy, sx, rows, cols, dx & 3, dy & 3, middle, other, out, y0, x0)
                else:
                    margin = _BEFORE + _AFTER
                    _clamped_patch(luma, sy - _BEFORE, sx - _BEFORE, rows + margin, cols + margin, patch)
                    _luma_h264(
                        patch, _BEFORE, _BEFORE, rows, cols, dx & 3, dy & 3, middle, other, out, y0, x0
                    )
                warp_block(chroma_u, u_out, x0 // 2, y0 // 2, cols // 2, rows // 2, dx, dy)
                warp_block(chroma_v, v_out, x0 // 2, y0 // 2, cols // 2, rows // 2, dx, dy)
            col += num_cells


@njit(cache=True, nogil=True)
def _half_pel_run(
    src: np.ndarray,
    sy: int,
    sx: int,
    rows: int,
    cols: int,
    right: int,
    down: int,
    rounding: int,
    dst: np.ndarray,
    dy: int,
    dx: int,
) -> None:
    """MPEG-4 bilinear half-pel filter; right and down are 0 or 1."""
    if right == 0 and down == 0:
        _copy(src, sy, sx, rows, cols, dst, dy, dx)
        return
    # Two equal pairs of taps give the two-tap case: (2a + 2b + 2 - 2r) >> 2 = (a + b + 1 - r) >> 1
    add = np.int32(2 - (rounding if right and down else 2 * rounding))
    for y in range(rows):
        a = np.uint64(sy + y)
        c = np.uint64(sy + y + down)
        b = np.uint64(dy + y)
        for x in range(cols):
            left_col = np.uint64(sx + x)
            right_col = np.uint64(sx + x + right)
            value = (
                np.int32(src[a, left_col])
                + np.int32(src[a, right_col])
                + np.int32(src[c, left_col])
                + np.int32(src[c, right_col])
                + add
            )
            dst[b, np.uint64(dx + x)] = np.uint8(value >> 2)


@njit(cache=True, nogil=True)
def _half_pel_plane(
    plane: np.ndarray,
    out: np.ndarray,
    y0: int,
    x0: int,
    rows: int,
    cols: int,
    half_x: int,
    half_y: int,
    rounding: int,
    patch: np.ndarray,
) -> None:
    """One run of one plane; (half_x, half_y) is the vector in half pixels of that plane."""
    height, width = plane.shape
    sy = y0 + (half_y >> 1)
    sx = x0 + (half_x >> 1)
    right = half_x & 1
    down = half_y & 1
    if sy >= 0 and sx >= 0 and sy + rows + down <= height and sx + cols + right <= width:
        _half_pel_run(plane, sy, sx, rows, cols, right, down, rounding, out, y0, x0)
    else:
        _clamped_patch(plane, sy, sx, rows + 1, cols + 1, patch)
        _half_pel_run(patch, 0, 0, rows, cols, right, down, rounding, out, y0, x0)


@njit(cache=True, nogil=True)
def compensate_mpeg4(picture: np.ndarray, motion: np.ndarray, rounding: int, out: np.ndarray) -> None:
    """Predict a picture from the one before it as an MPEG-4 part 2 decoder does.

    picture, out: uint8 [3H/2, W], Y above, U and V side by side below; H and W multiples of 16.
    motion: int16 [H/8, W/8, 2], quarter pixels (x, y); even, since the codec has half pixels.
    rounding: rounding control of the P-VOP, 0 or 1.
    """
    height = picture.shape[0] * 2 // 3
    half_w = picture.shape[1] // 2
    luma = picture[:height]
    chroma_u = picture[height:, :half_w]
    chroma_v = picture[height:, half_w:]
    u_out = out[height:, :half_w]
    v_out = out[height:, half_w:]
    patch = np.empty((17, picture.shape[1] + 1), np.uint8)
    for row in range(0, motion.shape[0], 2):
        col = 0
        while col < motion.shape[1]:
            num_cells = max(_tall_run(motion, row, col), 1)
            rows = 16 if _same(motion, row, col, row + 1, col) else 8
            cols = num_cells * 8
            for part in range(row, row + 2, rows // 8):
                half_x = int(np.int64(motion[part, col, 0])) >> 1
                half_y = int(np.int64(motion[part, col, 1])) >> 1
                y0 = part * 8
                x0 = col * 8
                _half_pel_plane(luma, out, y0, x0, rows, cols, half_x, half_y, rounding, patch)
                half_x = (half_x >> 1) | (half_x & 1)
                half_y = (half_y >> 1) | (half_y & 1)
                y0 //= 2
                x0 //= 2
                _half_pel_plane(
                    chroma_u, u_out, y0, x0, rows // 2, cols // 2, half_x, half_y, rounding, patch
                )
                _half_pel_plane(
                    chroma_v, v_out, y0, x0, rows // 2, cols // 2, half_x, half_y, rounding, patch
                )
            col += num_cells
