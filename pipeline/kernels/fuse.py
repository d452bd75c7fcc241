"""Fuse the motion of s frames into one vector per block.

With d_t the motion of frame t of the window, the motion from the window's last frame back to its anchor is

    D_t(p) = d_t(p) + D_{t-1}(p + d_t(p)),    D_0 = 0

Unrolled, D_s(p) is the displacement of a point that is followed back frame by frame, always in quarter
pixels: `trace_paths` does that for the centre of every 8 x 8 (or 4 x 4) cell. A 16 x 16 block has four such
paths; `choose_vectors` keeps the one that predicts the block best, or zero if none beats it. (What else was
tried: docs/decisions/0006-fusing-and-warping.md.)

Cost at 384 x 384, s = 30: 2,304 paths x 30 steps, then at most 5 x 64 absolute differences a block.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def find_still(vectors: np.ndarray, covered: np.ndarray, still: np.ndarray) -> None:
    """Mark the cells that have a vector in every frame of the window, always (0, 0).

    vectors: int32 [s, H/8, W/8], both components of a vector as one number.
    covered: uint8 [s, H/8, W/8].
    still: uint8 [H/8, W/8], output, 1 where still.
    """
    still[:] = 1
    for t in range(np.uint64(covered.shape[0])):
        for row in range(np.uint64(covered.shape[1])):
            for col in range(np.uint64(covered.shape[2])):
                still[row, col] &= np.uint8(vectors[t, row, col] == 0) & covered[t, row, col]


@njit(cache=True, nogil=True)
def trace_paths(
    motion: np.ndarray,
    covered: np.ndarray,
    still: np.ndarray,
    cell_px: int,
    paths: np.ndarray,
    broken: np.ndarray,
) -> None:
    """Follow the centre of every cell back through the window.

    motion: int16 [s, H/8, W/8, 2] quarter pixels, oldest frame first.
    covered: uint8 [s, H/8, W/8].
    still: uint8 [H/8, W/8], 1 where a path would stay for the whole window: a shortcut, most of a static scene.
    cell_px: 8 or 4.
    paths: int32 [H/cell, W/cell, 2], output, quarter pixels (x, y).
    broken: uint8 [H/cell, W/cell], output, 1 where the path meets an intra block; the path is then 0.
    """
    num_frames, num_rows, num_cols = covered.shape
    right = num_cols * 8 - 1
    bottom = num_rows * 8 - 1
    for row in range(paths.shape[0]):
        for col in range(paths.shape[1]):
            start_x = (col * cell_px + cell_px // 2) * 4
            start_y = (row * cell_px + cell_px // 2) * 4
            if still[start_y >> 5, start_x >> 5]:
                broken[row, col] = 0
                paths[row, col, 0] = 0
                paths[row, col, 1] = 0
                continue
            x = start_x
            y = start_y
            is_broken = 0
            for t in range(num_frames - 1, -1, -1):
                # Rounded to the nearest pixel; a point outside the frame moves with the edge.
                cell_x = np.uint64(min(max((x + 2) >> 2, 0), right) >> 3)
                cell_y = np.uint64(min(max((y + 2) >> 2, 0), bottom) >> 3)
                step = np.uint64(t)
                if covered[step, cell_y, cell_x] == 0:
                    is_broken = 1
                    break
                x += motion[step, cell_y, cell_x, 0]
                y += motion[step, cell_y, cell_x, 1]
            broken[row, col] = is_broken
            paths[row, col, 0] = 0 if is_broken else x - start_x
            paths[row, col, 1] = 0 if is_broken else y - start_y


@njit(cache=True, nogil=True)
def _block_sad(
    reference: np.ndarray, current: np.ndarray, x0: int, y0: int, block_px: int, dx: int, dy: int, limit: int
) -> int:
    """Sum of absolute luma differences on every second pixel of every second row, whole-pixel motion."""
    height, width = reference.shape
    left = x0 + dx
    top = y0 + dy
    total = 0
    if left >= 0 and top >= 0 and left + block_px <= width and top + block_px <= height:
        for y in range(0, block_px, 2):
            cur_row = np.uint64(y0 + y)
            ref_row = np.uint64(top + y)
            for x in range(0, block_px, 2):
                total += abs(
                    np.int32(reference[ref_row, np.uint64(left + x)])
                    - np.int32(current[cur_row, np.uint64(x0 + x)])
                )
            if total >= limit:
                return int(total)
        return int(total)
    for y in range(0, block_px, 2):
        ref_y = min(max(top + y, 0), height - 1)
        for x in range(0, block_px, 2):
            ref_x = min(max(left + x, 0), width - 1)
            total += abs(np.int32(reference[ref_y, ref_x]) - np.int32(current[y0 + y, x0 + x]))
    return int(total)


@njit(cache=True, nogil=True)
def choose_vectors(
    paths: np.ndarray,
    broken: np.ndarray,
    reference: np.ndarray,
    current: np.ndarray,
    block_px: int,
    motion: np.ndarray,
    intra: np.ndarray,
) -> None:
    """Pick, for every block, zero or the unbroken path with the least luma difference; ties to the earlier.

    paths, broken: as trace_paths writes them, with cells of min(block_px, 8) px.
    reference, current: uint8 [H, W] luma, the anchor before (as rebuilt) and the anchor to predict.
    motion: int32 [H/block, W/block, 2], output, quarter pixels.
    intra: uint8 [H/block, W/block], output, 1 where every path of the block is broken.
    """
    side = block_px // min(block_px, 8)
    for row in range(motion.shape[0]):
        for col in range(motion.shape[1]):
            y0 = row * block_px
            x0 = col * block_px
            best_x = 0
            best_y = 0
            is_intra = 1
            best = -1
            for i in range(side * side):
                cell_y = row * side + i // side
                cell_x = col * side + i % side
                if broken[cell_y, cell_x]:
                    continue
                is_intra = 0
                dx = paths[cell_y, cell_x, 0]
                dy = paths[cell_y, cell_x, 1]
                if dx == best_x and dy == best_y:
                    continue
                if best < 0:
                    best = _block_sad(reference, current, x0, y0, block_px, 0, 0, 1 << 30)
                if best == 0:
                    break
                sad = _block_sad(reference, current, x0, y0, block_px, (dx + 2) >> 2, (dy + 2) >> 2, best)
                if sad < best:
                    best = sad
                    best_x = dx
                    best_y = dy
            intra[row, col] = is_intra
            motion[row, col, 0] = best_x
            motion[row, col, 1] = best_y
