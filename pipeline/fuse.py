"""The motion of the s frames of a window -> one vector per block (algorithm in kernels/fuse.py)."""

from __future__ import annotations

import numpy as np

from cope_prep.pipeline.kernels.fuse import choose_vectors, find_still, trace_paths
from cope_prep.pipeline.kernels.vectors import CELL_PX


def fuse_window(
    motion: np.ndarray, covered: np.ndarray, *, block_px: int, reference: np.ndarray, current: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fuse a window.

    motion: int16 [s, H/8, W/8, 2], quarter pixels, oldest frame first.
    covered: uint8 [s, H/8, W/8], 0 where intra.
    reference, current: uint8 [H, W] luma of the anchor before (as rebuilt) and of the window's last frame;
        they decide among the paths of a block.
    Returns (int32 [H/block, W/block, 2] quarter pixels, bool [H/block, W/block] intra).
    """
    height, width = current.shape
    cell_px = min(block_px, CELL_PX)
    paths = np.empty((height // cell_px, width // cell_px, 2), np.int32)
    broken = np.empty(paths.shape[:2], np.uint8)
    still = np.empty(covered.shape[1:], np.uint8)
    find_still(motion.view(np.int32)[..., 0], covered, still)
    trace_paths(motion, covered, still, cell_px, paths, broken)
    fused = np.empty((height // block_px, width // block_px, 2), np.int32)
    intra = np.empty(fused.shape[:2], np.uint8)
    choose_vectors(paths, broken, reference, current, block_px, fused, intra)
    return fused, intra.view(np.bool_)
