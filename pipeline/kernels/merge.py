"""Compose the stored motion of m windows into paths over all of them.

As fuse.py does for the frames of a window, so here for windows: with d_t the stored, quantized motion of window t,

    D_t(p) = d_t(p) + D_{t-1}(p + d_t(p)),    D_0 = 0

Unrolled, a point is followed back window by window, in quarter pixels; the motion at a point is that of the
block that holds its nearest pixel, and outside the frame that of the edge. The result is what trace_paths
writes, so choose_vectors can take it.

Cost at 384 x 384, m = 3: 2,304 paths x 3 steps, about 20 us.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def trace_blocks(
    motion: np.ndarray,
    steps_qpel: np.ndarray,
    intra: np.ndarray,
    block_px: int,
    cell_px: int,
    paths: np.ndarray,
    broken: np.ndarray,
) -> None:
    """Follow the centre of every cell back through the windows.

    motion: int8 or int16 [m, Hb, Wb, 2] in steps (x, y), oldest window first.
    steps_qpel: int64 [m], quarter pixels a step.
    intra: bool [m, Hb, Wb].
    block_px: side of a block of `motion`, whose blocks cover the frame exactly.
    cell_px: side of a cell, whose centre is followed.
    paths: int32 [rows, cols, 2], output, quarter pixels (x, y).
    broken: uint8 [rows, cols], output, 1 where the path meets an intra block; the path is then 0.
    """
    bottom = intra.shape[1] * block_px - 1
    right = intra.shape[2] * block_px - 1
    for row in range(paths.shape[0]):
        for col in range(paths.shape[1]):
            start_x = (col * cell_px + cell_px // 2) * 4
            start_y = (row * cell_px + cell_px // 2) * 4
            x = start_x
            y = start_y
            is_broken = 0
            for t in range(motion.shape[0] - 1, -1, -1):
                block_x = min(max((x + 2) >> 2, 0), right) // block_px
                block_y = min(max((y + 2) >> 2, 0), bottom) // block_px
                if intra[t, block_y, block_x]:
                    is_broken = 1
                    break
                x += np.int64(motion[t, block_y, block_x, 0]) * steps_qpel[t]
                y += np.int64(motion[t, block_y, block_x, 1]) * steps_qpel[t]
            broken[row, col] = is_broken
            paths[row, col, 0] = 0 if is_broken else x - start_x
            paths[row, col, 1] = 0 if is_broken else y - start_y
