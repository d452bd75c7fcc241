"""Stored windows -> longer ones: a shard extracted at s = 10 read as if at s = 30.

For merged window k, of m stored windows:

    motion      compose the stored motion of the m windows; quantize it as extract.py does
    prediction  warp(reference, quantized motion)
    residual    anchor_k - prediction, coded in the scale of the stored coding, without another JPEG pass
    rebuilt_k   clip(prediction + decoded residual)

`anchor_k` is what the stored windows rebuild, bit for bit what the writer had. The pictures of a merged GOP are
these anchors; the reference of a window is the picture before it where there is one, else the merged rebuilt
anchor, which is what a consumer has there. So the chain is closed at every key-frame density, and a consumer stays
within the coding's own bound of the stored anchors without drift: 1 grey level for dct, the larger of dead zone
and half a step for int8, none for lossless.

As in extract.py, a block has several paths where it holds several 8 x 8 cells, and the one that predicts it
best is kept. At s = 1 the stored vectors are the codec's, and the paths are those that extract.py itself follows.

Cost: all stored JPEGs up to the last merged anchor, and about 0.4 ms a merged window at 384 x 384.
"""

from __future__ import annotations

import numpy as np

from cope_prep.pipeline.kernels import residual as kernels
from cope_prep.pipeline.kernels.fuse import choose_vectors
from cope_prep.pipeline.kernels.merge import trace_blocks
from cope_prep.pipeline.kernels.vectors import CELL_PX
from cope_prep.pipeline.kernels.warp import warp
from cope_prep.pipeline.loader.primitives import (
    GopLayout,
    WholeGop,
    allocate,
    apply_decoded,
    decode_into,
    decode_whole,
    residual_scale,
)
from cope_prep.pipeline.quantize import quantize_motion
from cope_prep.schemas.errors import ConfigurationError, FormatError
from cope_prep.schemas.records import GopRecord
from cope_prep.schemas.specs import DctResidual, Int8Residual, LosslessResidual


def merge_whole(
    record: GopRecord, *, window: int, layout: GopLayout | None = None, check: bool = False
) -> WholeGop:
    """A record's GOP in windows of `window` frames; as decode_whole where that is the record's own.

    layout: of the merged GOP; its pictures are what a consumer has, and its Δ are coded against those. Without
        one, every window is coded against the stored anchor before it: for load_window.
    The motion grid is the stored one, compensation is `warp`. `check` compares every stored anchor's checksum.

    Raises:
        ConfigurationError: `window` is not a multiple of the record's.
        FormatError: as load_gop, or the picture is no whole number of blocks.
        ChecksumError: as load_gop.
    """
    if window == record.window:
        return decode_whole(record, check=check)
    num_merged = windows_to_merge(stored_window=record.window, window=window)
    num_windows = (record.num_frames - 1) // window
    is_picture = np.ones(num_windows + 1, np.bool_) if layout is None else layout.is_picture
    if is_picture.size != num_windows + 1:
        raise FormatError(
            record.key,
            f"has {num_windows + 1} anchors at window {window}, its layout {is_picture.size}",
            "The index and the shard are of different extractions; run cope-prep verify.",
        )
    if record.height_px % record.block_px or record.width_px % record.block_px:
        raise FormatError(
            record.key,
            f"is {record.width_px} x {record.height_px}: only whole blocks of {record.block_px} px can be merged",
        )
    out = allocate(
        num_pictures=num_windows + 1,
        num_deltas=num_windows,
        height_px=record.height_px,
        width_px=record.width_px,
        block_px=record.block_px,
        window=window,
        residual_spec=record.residual_spec,
    )
    anchors = {k * num_merged: anchor for k, anchor in enumerate(out.pictures)}
    decode_into(record, anchors=anchors, residuals={}, check=check)
    scale = residual_scale(record.residual_spec)
    prediction, chained = np.empty_like(out.pictures[0]), np.empty_like(out.pictures[0])
    for k in range(num_windows):
        reference = out.pictures[k] if is_picture[k] else chained
        current = out.pictures[k + 1]
        motion, out.intra[k] = merge_motion(
            record, slice(k * num_merged, (k + 1) * num_merged), reference=reference, current=current
        )
        out.motion[k], step_qpel, _ = quantize_motion(motion)
        out.motion_step_px[k] = step_qpel / 4
        warp(reference, out.motion[k], step_qpel, record.block_px, prediction)
        _code(record.residual_spec, current=current, prediction=prediction, out=out.residual[k])
        if not is_picture[k + 1]:
            apply_decoded(scale, prediction=prediction, decoded=out.residual[k], rebuilt=chained)
    return WholeGop(
        key=record.key,
        anchors=out.pictures,
        motion=out.motion,
        motion_step_px=out.motion_step_px,
        intra=out.intra,
        residual=out.residual,
        chain_starts=is_picture,
    )


def windows_to_merge(*, stored_window: int, window: int) -> int:
    """m: how many stored windows make one of `window` frames.

    Raises:
        ConfigurationError: not a whole number.
    """
    if window < 1 or window % stored_window:
        raise ConfigurationError(
            f"window {window}",
            f"is no multiple of {stored_window}, the window that the shards were extracted with",
            f"Choose a multiple of {stored_window}, or extract again.",
        )
    return window // stored_window


def merge_motion(
    record: GopRecord, windows: slice, *, reference: np.ndarray, current: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compose the motion of adjacent windows.

    reference, current: uint8 [3H/2, W], the anchors before and after; they decide among the paths of a block.
    Returns (int32 [Hb, Wb, 2] quarter pixels, bool [Hb, Wb] intra).
    """
    stored = record.windows[windows]
    height, block_px = record.height_px, record.block_px
    motion = np.stack([window.motion for window in stored])
    intra = np.stack([window.intra for window in stored])
    steps_qpel = np.array([window.motion_step_qpel for window in stored], np.int64)
    cell_px = min(block_px, CELL_PX)
    side = block_px // cell_px
    grid = intra.shape[1:]
    paths = np.empty((grid[0] * side, grid[1] * side, 2), np.int32)
    broken = np.empty(paths.shape[:2], np.uint8)
    trace_blocks(motion, steps_qpel, intra, block_px, cell_px, paths, broken)
    merged = np.empty((*grid, 2), np.int32)
    merged_intra = np.empty(grid, np.uint8)
    choose_vectors(paths, broken, reference[:height], current[:height], block_px, merged, merged_intra)
    return merged, merged_intra.view(np.bool_)


def _code(
    spec: DctResidual | Int8Residual | LosslessResidual,
    *,
    current: np.ndarray,
    prediction: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write `current - prediction`, uint8 [3H/2, W], to `out` in the scale of the coding."""
    if isinstance(spec, DctResidual):
        kernels.residual_to_half(current, prediction, out)
    elif isinstance(spec, Int8Residual):
        kernels.residual_to_int8(current, prediction, spec.step, spec.deadzone, out)
    else:
        kernels.residual_exact(current, prediction, out)
