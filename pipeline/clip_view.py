"""One anchor of a clip as pictures for a screen: what is stored of its window, and what a reader rebuilds.

    reencoded   the anchor in the fixed-GOP file, if that is still there
    arrows      movement since the anchor before, over the rebuilt frame
    flow        the same for every block, as colour
    intra       blocks without a path to the anchor before
    residual    what the prediction leaves, decoded
    rebuilt     what a reader gets from the sample alone
    error       the absolute difference of rebuilt and re-encoded luma

Colours and directions are those of the inspect sheet (pipeline/sheet_parts.py), but plain arrays instead of
matplotlib's: all seven of a 384 x 384 anchor took 15 to 40 ms of CPU time (9 anchors of 3 clips, 5 runs
each after a first), and 6 ms more as JPEGs. Scales are common to a whole clip, so that one step
can be compared with the next; they come of the recorded figures, without decoding the other windows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import simplejpeg

from cope_prep.pipeline import sheet_parts as parts
from cope_prep.pipeline.rebuild import rebuild_anchor, rebuild_anchors
from cope_prep.pipeline.video_samples import GopFigures
from cope_prep.schemas.records import FusedPFrame, GopRecord

PANELS = ("reencoded", "arrows", "flow", "intra", "residual", "rebuilt", "error")
MAX_SIDE_PX = 1024
"""Larger pictures are reduced to whole fractions of their size."""
MIN_SIDE_PX = 384
"""Smaller ones are enlarged to whole multiples, without smoothing: a browser would blur the blocks."""
MAX_GOP_BYTES = 64 << 20
"""No more pictures of a GOP are held at a time: 300 of 384 x 384."""

_ARROW_SIDE_PX = 768
"""Arrows are drawn on a picture of about this size, so that thin ones have smooth edges."""
_MIN_ARROW_PX = 0.5
_QUALITY = 95
_PEAK_OVER_RMS = 3.0
"""Grey levels beyond this many root mean squares are drawn as this many: some 1 % of a residual's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """Where the panels' colours end."""

    flow_px: int
    residual_levels: int
    error_levels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorView:
    """The panels of one anchor."""

    panels: dict[str, np.ndarray]
    """Name, as in PANELS -> uint8 [H', W', 3]. What is not there is left out: an I-frame has no motion."""
    notes: dict[str, str]
    """Name -> what to say of a panel that is there and looks empty."""
    reduced_by: int
    """1, or the whole number by which the pictures' sides were divided."""
    max_error: int | None
    """Largest absolute luma error, grey levels; None without the re-encoded frame."""


def scales_of(figures: Sequence[GopFigures]) -> Scales:
    """The scales of a clip, of what is recorded of its windows."""
    motion = _values(figures, "motion_p95_px")
    energy = _values(figures, "residual_energy")
    psnr = [*_values(figures, "psnr_y_db"), *(gop.iframe_psnr_y_db for gop in figures)]
    # One cut in a film must not make all else look still.
    residual = _PEAK_OVER_RMS * np.sqrt(np.percentile(energy, 90)) if energy else 0.0
    error = _PEAK_OVER_RMS * 255 * 10 ** (-np.percentile(psnr, 10) / 20) if psnr else 0.0
    return Scales(
        flow_px=parts.scale_above(np.array(motion), percentile=50, least=1),
        residual_levels=parts.scale_above(np.array([residual]), percentile=100, least=8, most=255),
        error_levels=parts.scale_above(np.array([error]), percentile=100, least=4, most=255),
    )


def wider_scales(one: Scales, other: Scales) -> Scales:
    """Scales that hold both, for two clips side by side."""
    return Scales(
        flow_px=max(one.flow_px, other.flow_px),
        residual_levels=max(one.residual_levels, other.residual_levels),
        error_levels=max(one.error_levels, other.error_levels),
    )


def draw_anchor(record: GopRecord, index: int, *, scales: Scales, reencoded: np.ndarray | None) -> AnchorView:
    """The panels of anchor `index`; `reencoded` is the same frame of the fixed-GOP file, uint8 [3H/2, W].

    Raises:
        FormatError, ChecksumError: the sample is damaged.
    """
    rebuilt = rebuild_anchor(record, index)
    panels: dict[str, np.ndarray] = {}
    notes: dict[str, str] = {}
    max_error = None
    if reencoded is not None:
        panels["reencoded"] = parts.rgb_of(reencoded)
    if index:
        window = record.windows[index - 1]
        panels |= _window_panels(record, window, rebuilt, scales=scales)
        notes |= _window_notes(window)
    panels["rebuilt"] = parts.rgb_of(rebuilt)
    if reencoded is not None:
        error = np.abs(parts.luma_of(rebuilt).astype(np.int16) - parts.luma_of(reencoded))
        max_error = int(error.max())
        panels["error"] = _error_rgb(error, levels=scales.error_levels)
        if max_error == 0:
            notes["error"] = "None: the frames are identical."
    reduced_by = -(-max(record.height_px, record.width_px) // MAX_SIDE_PX)
    return AnchorView(
        panels={name: _for_screen(panels[name]) for name in PANELS if name in panels},
        notes=notes,
        reduced_by=reduced_by,
        max_error=max_error,
    )


def draw_iframe(record: GopRecord) -> np.ndarray:
    """The stored I-frame, uint8 [H', W', 3].

    Raises:
        FormatError, ChecksumError: it is damaged.
    """
    return _for_screen(parts.rgb_of(rebuild_anchor(record, 0)))


def draw_legend(name: str, scales: Scales) -> np.ndarray:
    """The colours of `flow` as a wheel, of `residual` or `error` as a bar: uint8 [H, W, 3], low values left."""
    if name == "flow":
        steps = np.linspace(-1, 1, 193)
        movement = np.stack(np.meshgrid(steps, steps), axis=-1)
        inside = (np.hypot(movement[..., 0], movement[..., 1]) <= 1)[..., None]
        colours = np.where(inside, parts.flow_rgb(movement, scale_px=1), 0.5)
        return (colours * 255).round().astype(np.uint8)
    ramp = np.tile(np.linspace(0, 1, 256), (16, 1))
    if name == "residual":
        return np.repeat((ramp * 255).round().astype(np.uint8)[..., None], 3, axis=-1)
    return _error_rgb(ramp * scales.error_levels, levels=scales.error_levels)


def encode_picture(rgb: np.ndarray) -> bytes:
    """uint8 [H, W, 3] -> a JPEG for a browser, without chroma subsampling."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), quality=_QUALITY, colorsubsampling="444")


def draw_thumbnails(record: GopRecord, anchors: Iterable[int], *, side_px: int) -> dict[int, bytes]:
    """Some anchors as JPEGs whose larger side is about `side_px`; none of a GOP of more than MAX_GOP_BYTES.

    Raises:
        FormatError, ChecksumError: the sample is damaged.
    """
    if record.num_anchors * record.height_px * record.width_px * 3 // 2 > MAX_GOP_BYTES:
        return {}
    rebuilt = rebuild_anchors(record, check=False)
    factor = max(1, round(max(record.height_px, record.width_px) / side_px))
    return {index: encode_picture(_reduced(parts.rgb_of(rebuilt[index]), factor)) for index in anchors}


def _window_panels(
    record: GopRecord, window: FusedPFrame, rebuilt: np.ndarray, *, scales: Scales
) -> dict[str, np.ndarray]:
    movement = parts.movement_of(window)
    shape = (record.height_px, record.width_px)
    flow = parts.flow_rgb(movement, scale_px=scales.flow_px)
    flow[window.intra] = parts.rgb_of_hex(parts.NO_MOTION)
    residual = parts.residual_levels(record, window).astype(np.float32)
    grey = (residual / scales.residual_levels * 127.5 + 127.5).round().clip(0, 255).astype(np.uint8)
    return {
        "arrows": _arrows_rgb(rebuilt, movement, block_px=record.block_px),
        "flow": _blocks((flow * 255).round().astype(np.uint8), shape, block_px=record.block_px),
        "intra": _intra_rgb(rebuilt, window.intra, block_px=record.block_px),
        "residual": np.repeat(grey[..., None], 3, axis=-1),
    }


def _window_notes(window: FusedPFrame) -> dict[str, str]:
    if window.intra.all():
        return {"arrows": "All blocks are intra.", "flow": "All blocks are intra."}
    notes = {}
    lengths = np.hypot(*np.moveaxis(parts.movement_of(window), -1, 0))
    if lengths.max() < _MIN_ARROW_PX:
        moves = f"No movement of {_MIN_ARROW_PX:g} px or more." if lengths.any() else "No movement."
        notes |= {"arrows": moves, "flow": moves}
    if not window.intra.any():
        notes["intra"] = "None: every block has a path to the anchor before."
    return notes


def _intra_rgb(picture: np.ndarray, intra: np.ndarray, *, block_px: int) -> np.ndarray:
    """Intra blocks [Hb, Wb] in colour over a pale frame."""
    pale = 255 - (255 - parts.luma_of(picture).astype(np.float32)) * 0.45
    rgb = np.repeat(pale[..., None], 3, axis=-1)
    mask = _blocks(intra, parts.luma_of(picture).shape, block_px=block_px)
    rgb[mask] = rgb[mask] * 0.28 + 0.72 * 255 * np.array(parts.rgb_of_hex(parts.INTRA), np.float32)
    return rgb.round().astype(np.uint8)


def _error_rgb(error: np.ndarray, *, levels: int) -> np.ndarray:
    return _error_colours()[(error / levels * 255).round().clip(0, 255).astype(np.uint8)]


@functools.cache
def _error_colours() -> np.ndarray:
    """uint8 [256, 3]"""
    from matplotlib import colormaps

    return (colormaps[parts.ERROR_MAP](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def _arrows_rgb(picture: np.ndarray, movement_px: np.ndarray, *, block_px: int) -> np.ndarray:
    """Movement [Hb, Wb, 2] as arrows of true length, from where a block was to where it is."""
    grey = parts.rgb_of(picture).mean(axis=-1) * 0.62
    zoom = max(1, round(_ARROW_SIDE_PX / max(grey.shape)))
    rgb = np.repeat(_enlarged(grey, zoom)[..., None], 3, axis=-1).astype(np.float32)
    stride = parts.arrow_stride(movement_px.shape[:2])
    for row in range(stride // 2, movement_px.shape[0], stride):
        for col in range(stride // 2, movement_px.shape[1], stride):
            move = movement_px[row, col]
            if np.hypot(*move) >= _MIN_ARROW_PX:
                head = (np.array([col, row]) + 0.5) * block_px
                _draw_arrow(rgb, (head - move) * zoom - 0.5, head * zoom - 0.5, width_px=2 * zoom)
    return rgb.round().clip(0, 255).astype(np.uint8)


def _draw_arrow(rgb: np.ndarray, tail: np.ndarray, head: np.ndarray, *, width_px: float) -> None:
    """Blend one arrow into float32 [H, W, 3]; tail and head are (x, y) of pixel centres."""
    length = float(np.hypot(*(head - tail)))
    along = (head - tail) / length
    head_px = min(4.2 * width_px, length)
    margin = 3 * width_px
    low = np.floor(np.minimum(tail, head) - margin).astype(int).clip(0)
    high = np.ceil(np.maximum(tail, head) + margin).astype(int) + 1
    part = rgb[low[1] : high[1], low[0] : high[0]]
    if not part.size:
        return
    y, x = np.mgrid[low[1] : low[1] + part.shape[0], low[0] : low[0] + part.shape[1]]
    # Coordinates along the arrow, from its head backward, and across.
    behind = (head[0] - x) * along[0] + (head[1] - y) * along[1]
    across = np.abs((head[0] - x) * along[1] - (head[1] - y) * along[0])
    slope = 0.45
    in_head = np.maximum((across - slope * behind) / np.hypot(1, slope), behind - head_px)
    in_shaft = np.maximum(across - width_px / 2, np.maximum(head_px * 0.8 - behind, behind - length))
    distance = np.minimum(in_head, in_shaft)[..., None]
    black = (0.5 + width_px / 3 - distance).clip(0, 1) * 0.8
    part *= 1 - black
    yellow = (0.5 - distance).clip(0, 1)
    part += yellow * (255 * np.array(parts.rgb_of_hex(parts.ARROW), np.float32) - part)


def _blocks(grid: np.ndarray, shape: tuple[int, ...], *, block_px: int) -> np.ndarray:
    """A value a block -> a value a pixel of [H, W]; the last blocks may reach beyond the picture."""
    return _enlarged(grid, block_px)[: shape[0], : shape[1]]


def _for_screen(rgb: np.ndarray) -> np.ndarray:
    side_px = max(rgb.shape[:2])
    if side_px > MAX_SIDE_PX:
        return _reduced(rgb, -(-side_px // MAX_SIDE_PX))
    return _enlarged(rgb, -(-MIN_SIDE_PX // side_px))


def _enlarged(values: np.ndarray, factor: int) -> np.ndarray:
    return values if factor == 1 else values.repeat(factor, axis=0).repeat(factor, axis=1)


def _reduced(rgb: np.ndarray, factor: int) -> np.ndarray:
    """Means of squares of `factor` x `factor` px; what is left at the right and the bottom goes."""
    if factor == 1:
        return rgb
    height, width = (side // factor for side in rgb.shape[:2])
    squares = rgb[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return squares.mean(axis=(1, 3), dtype=np.float32).round().astype(np.uint8)


def _values(figures: Sequence[GopFigures], name: str) -> list[float]:
    return [value for gop in figures for value in gop.windows[name]]
