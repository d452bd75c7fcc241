"""One GOP -> what a model takes: some anchors as pictures, every other one as Δ, its motion and its residual.

`gop_layout` says which anchors are which, from counts alone. `load_gop` then fills arrays of the caller, usually
slices of a batch in shared memory: the I-frame and the residuals are decoded straight into them, and a window
is applied only where a picture at or after its end is wanted, with the kernels of rebuild.py, so a picture
equals the writer's rebuilt anchor bit for bit. `load_window` does the same for one window and both its anchors;
`decode_whole` does it once for the whole GOP, for those who come back for more of its windows.

Cost of a GOP of 8 anchors at 384 x 384: its JPEGs (1.9 ms), and 0.08 ms for each anchor rebuilt.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cope_prep.pipeline import jpeg
from cope_prep.pipeline.kernels.residual import add_half, add_scaled
from cope_prep.pipeline.rebuild import check_anchor, decode_iframe, predict
from cope_prep.pipeline.residual import decode_residual
from cope_prep.schemas.errors import ConfigurationError, FormatError
from cope_prep.schemas.records import GopRecord
from cope_prep.schemas.specs import DctResidual, Int8Residual, LosslessResidual
from cope_prep.schemas.wire import residual_name


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualScale:
    """How residual values in an array become grey levels: `(value - offset) * scale`."""

    dtype: np.dtype
    offset: int
    scale: int
    """Grey levels a unit."""


def residual_scale(spec: DctResidual | Int8Residual | LosslessResidual) -> ResidualScale:
    """The scale of a coding's residuals. Lossless ones that are stored as int8 are widened to int16."""
    if isinstance(spec, DctResidual):
        return ResidualScale(dtype=np.dtype(np.uint8), offset=128, scale=2)
    if isinstance(spec, Int8Residual):
        return ResidualScale(dtype=np.dtype(np.int8), offset=0, scale=spec.step)
    return ResidualScale(dtype=np.dtype(np.int16), offset=0, scale=1)


def motion_dtype(window: int) -> np.dtype:
    """Of the motion of windows of so many frames: int16 at s = 1, else int8."""
    return np.dtype(np.int16 if window == 1 else np.int8)


@dataclass(frozen=True, slots=True, kw_only=True)
class GopLayout:
    """Which anchors of a GOP are pictures, and which are Δ."""

    is_picture: np.ndarray
    """bool [num_anchors]; the first is always True."""
    anchor_s: np.ndarray
    """float64 [num_anchors], seconds in the video."""

    @property
    def num_anchors(self) -> int:
        """Frames 0, s, 2s, ... that the GOP has."""
        return self.is_picture.size

    @property
    def num_pictures(self) -> int:
        """K: key frames."""
        return int(np.count_nonzero(self.is_picture))

    @property
    def num_deltas(self) -> int:
        """P: anchors that are handed on as motion and residual."""
        return self.num_anchors - self.num_pictures


def gop_layout(
    *, num_frames: int, gop_size: int, fps: int, start_s: float, window: int, key_frames: int
) -> GopLayout:
    """The layout of a GOP of `num_frames`, where a full one, of `gop_size`, has `key_frames` pictures.

    `window` is the window as read, after merging. A short GOP keeps the spacing, so it may have fewer pictures.

    Raises:
        ConfigurationError: the pictures would not be evenly spaced over a full GOP.
    """
    full = (gop_size - 1) // window + 1
    if key_frames < 1 or full % key_frames:
        possible = ", ".join(str(count) for count in range(1, full + 1) if full % count == 0)
        raise ConfigurationError(
            f"key_frames {key_frames}",
            f"does not divide the {full} anchors of a GOP of {gop_size} frames at window {window}",
            f"Choose one of {possible}.",
        )
    anchors = np.arange((num_frames - 1) // window + 1)
    return GopLayout(
        is_picture=anchors % (full // key_frames) == 0, anchor_s=start_s + anchors * (window / fps)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GopArrays:
    """The arrays of one GOP, or of one window with both its anchors (K = 2, P = 1)."""

    pictures: np.ndarray
    """uint8 [K, 3H/2, W]: I420 planes, full range, BT.601."""
    motion: np.ndarray
    """int8 [P, Hb, Wb, 2] (int16 at s = 1), in steps, (x, y); the motion from Δ p to the anchor before it."""
    motion_step_px: np.ndarray
    """float32 [P]: pixels per unit of `motion`."""
    intra: np.ndarray
    """bool [P, Hb, Wb]."""
    residual: np.ndarray
    """[P, 3H/2, W], dtype and unit as ResidualScale says."""

    def __post_init__(self) -> None:
        for name, planes in (("pictures", self.pictures), ("residual", self.residual)):
            if len(planes) and not planes[0].flags.c_contiguous:
                raise ValueError(
                    f"{name} has strides {planes.strides}: a JPEG is decoded straight into each [3H/2, W] of it,"
                    " which must be contiguous"
                )


def allocate(
    *,
    num_pictures: int,
    num_deltas: int,
    height_px: int,
    width_px: int,
    block_px: int,
    window: int,
    residual_spec: DctResidual | Int8Residual | LosslessResidual,
) -> GopArrays:
    """New arrays of K = `num_pictures` and P = `num_deltas`; `window` as read."""
    picture = (height_px * 3 // 2, width_px)
    grid = (-(-height_px // block_px), -(-width_px // block_px))
    return GopArrays(
        pictures=np.empty((num_pictures, *picture), np.uint8),
        motion=np.empty((num_deltas, *grid, 2), motion_dtype(window)),
        motion_step_px=np.empty(num_deltas, np.float32),
        intra=np.empty((num_deltas, *grid), np.bool_),
        residual=np.empty((num_deltas, *picture), residual_scale(residual_spec).dtype),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeGop:
    """All anchors and all windows of a GOP, decoded: what load_gop and load_window copy from."""

    key: str
    anchors: np.ndarray
    """uint8 [num_anchors, 3H/2, W], as rebuilt."""
    motion: np.ndarray
    """int8 [num_windows, Hb, Wb, 2] (int16 at s = 1), in steps."""
    motion_step_px: np.ndarray
    """float32 [num_windows]."""
    intra: np.ndarray
    """bool [num_windows, Hb, Wb]."""
    residual: np.ndarray
    """[num_windows, 3H/2, W], dtype and unit as ResidualScale says."""
    chain_starts: np.ndarray | None = None
    """bool [num_anchors] of merged windows: the anchors that the chain of residuals starts from anew (merge.py).
    None: as stored, where what a chain has rebuilt is the anchor itself, wherever it started."""

    @property
    def num_anchors(self) -> int:
        """Frames 0, s, 2s, ... of the GOP."""
        return len(self.anchors)

    @property
    def nbytes(self) -> int:
        """Memory that the arrays hold."""
        arrays = (self.anchors, self.motion, self.motion_step_px, self.intra, self.residual)
        return sum(array.nbytes for array in arrays)


def load_gop(source: GopRecord | WholeGop, *, layout: GopLayout, out: GopArrays, check: bool = False) -> None:
    """Fill `out` with the pictures and the Δ of a GOP. `check` compares every rebuilt anchor's checksum.

    Raises:
        FormatError: the I-frame or a residual is not what the record says, or the record has other anchors.
        ChecksumError: a rebuilt anchor is not the writer's (records only, with `check`).
    """
    if source.num_anchors != layout.num_anchors:
        raise FormatError(
            source.key,
            f"has {source.num_anchors} anchors, its layout {layout.num_anchors}",
            "The index and the shard are of different extractions; run cope-prep verify.",
        )
    pictures = np.flatnonzero(layout.is_picture)
    if (
        isinstance(source, WholeGop)
        and source.chain_starts is not None
        and not np.array_equal(source.chain_starts, layout.is_picture)
    ):
        raise ValueError(
            f"{source.key} was merged for pictures at {np.flatnonzero(source.chain_starts)},"
            f" the layout has them at {pictures}"
        )
    # Anchor k is predicted by window k - 1.
    _fill(source, anchors=pictures, windows=np.flatnonzero(~layout.is_picture) - 1, out=out, check=check)


def load_window(source: GopRecord | WholeGop, index: int, *, out: GopArrays, check: bool = False) -> None:
    """Fill `out` with window `index`: pictures, the anchor that it starts from and the one that it ends at.

    Raises:
        FormatError: the I-frame or a residual is not what the record says.
        ChecksumError: a rebuilt anchor is not the writer's (records only, with `check`).
    """
    if not 0 <= index < source.num_anchors - 1:
        raise IndexError(f"{source.key} has {source.num_anchors - 1} windows, {index} was asked for")
    if isinstance(source, WholeGop) and source.chain_starts is not None and not source.chain_starts[index]:
        raise ValueError(f"{source.key} was merged for whole GOPs: window {index} alone would be inexact")
    _fill(source, anchors=np.arange(index, index + 2), windows=np.array([index]), out=out, check=check)


def decode_whole(record: GopRecord, *, check: bool = False) -> WholeGop:
    """All anchors and all windows of a record, decoded once.

    Raises:
        FormatError, ChecksumError: as load_gop.
    """
    arrays = allocate(
        num_pictures=record.num_anchors,
        num_deltas=len(record.windows),
        height_px=record.height_px,
        width_px=record.width_px,
        block_px=record.block_px,
        window=record.window,
        residual_spec=record.residual_spec,
    )
    anchors, windows = np.arange(record.num_anchors), np.arange(len(record.windows))
    _fill(record, anchors=anchors, windows=windows, out=arrays, check=check)
    return WholeGop(
        key=record.key,
        anchors=arrays.pictures,
        motion=arrays.motion,
        motion_step_px=arrays.motion_step_px,
        intra=arrays.intra,
        residual=arrays.residual,
    )


class _Scratch(threading.local):
    """Kept per thread, because fresh memory costs page faults."""

    planes = np.empty((4, 0, 0), np.uint8)

    def of(self, shape: tuple[int, ...]) -> np.ndarray:
        if self.planes.shape[1:] != shape:
            self.planes = np.empty((4, *shape), np.uint8)
        return self.planes


_scratch = _Scratch()


def decode_into(
    record: GopRecord,
    *,
    anchors: Mapping[int, np.ndarray],
    residuals: Mapping[int, np.ndarray],
    check: bool = False,
) -> None:
    """Decode what is asked for, by its index, into the arrays given; nothing else but what that depends on.

    anchors: uint8 [3H/2, W] each. None is rebuilt after the last one asked for.
    residuals: [3H/2, W] each, as ResidualScale says.
    `check` compares every anchor that is rebuilt on the way.
    """
    last = max(anchors, default=0)
    scale = residual_scale(record.residual_spec)
    *spare, prediction, coded = _scratch.of((record.height_px * 3 // 2, record.width_px))
    current = anchors.get(0, spare[0])
    decode_iframe(record, current)
    if check:
        check_anchor(record, 0, current)
    key = record.key
    for index, window in enumerate(record.windows):
        into = residuals.get(index)
        is_rebuilt = index < last
        if into is None and not is_rebuilt:
            continue
        name = f"{key}.{residual_name(index, record.residual_spec)}"
        if isinstance(record.residual_spec, DctResidual):
            decoded = coded if into is None else into
            jpeg.decode_grey(window.residual, shape=decoded.shape, name=name, out=decoded)
        else:
            decoded = decode_residual(record.residual_spec, window.residual, shape=coded.shape, name=name)
            if into is not None:
                np.copyto(into, decoded)
        if not is_rebuilt:
            continue
        predict(
            current,
            window.motion,
            compensation=record.compensation,
            step_qpel=window.motion_step_qpel,
            block_px=record.block_px,
            rounding=window.rounding,
            out=prediction,
        )
        current = anchors.get(index + 1, spare[(index + 1) % 2])
        apply_decoded(scale, prediction=prediction, decoded=decoded, rebuilt=current)
        if check:
            check_anchor(record, index + 1, current)


def apply_decoded(
    scale: ResidualScale, *, prediction: np.ndarray, decoded: np.ndarray, rebuilt: np.ndarray
) -> None:
    """Write `clip(prediction + grey levels of decoded)` to `rebuilt`, uint8 [3H/2, W]."""
    if scale.offset:
        add_half(prediction, decoded, rebuilt)
    else:
        add_scaled(prediction, decoded, scale.scale, rebuilt)


def _fill(
    source: GopRecord | WholeGop, *, anchors: np.ndarray, windows: np.ndarray, out: GopArrays, check: bool
) -> None:
    """Fill `out` with these anchors as its pictures and these windows as its Δ; both int [K], [P], ascending."""
    found = (len(out.pictures), len(out.motion), len(out.residual))
    if found != (len(anchors), len(windows), len(windows)):
        raise ValueError(
            f"out has {found[0]} pictures, {found[1]} motions and {found[2]} residuals, {source.key} is to fill"
            f" {len(anchors)} pictures and {len(windows)} Δ"
        )
    if isinstance(source, WholeGop):
        np.copyto(out.pictures, source.anchors[anchors])
        np.copyto(out.motion, source.motion[windows])
        np.copyto(out.motion_step_px, source.motion_step_px[windows])
        np.copyto(out.intra, source.intra[windows])
        np.copyto(out.residual, source.residual[windows])
        return
    for p, index in enumerate(windows):
        window = source.windows[index]
        out.motion[p] = window.motion
        out.motion_step_px[p] = window.motion_step_px
        out.intra[p] = window.intra
    decode_into(
        source,
        anchors=dict(zip(anchors.tolist(), out.pictures, strict=True)),
        residuals=dict(zip(windows.tolist(), out.residual, strict=True)),
        check=check,
    )
