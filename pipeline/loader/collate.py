"""Rows of a batch -> one buffer.

Shapes come from the index alone, so a sample that fails leaves its place empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cope_prep.pipeline.loader.batch import DELTA, PAD, PICTURE
from cope_prep.pipeline.loader.primitives import GopArrays, GopLayout, motion_dtype, residual_scale
from cope_prep.pipeline.token_counts import TokenCounts
from cope_prep.schemas.errors import CopePrepError
from cope_prep.schemas.specs import DctResidual, Int8Residual, LosslessResidual

GREY = 128
"""Chroma of black."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What all samples of a dataset have in common, as it reads them."""

    fps: int
    gop_size: int
    window: int
    """s, after merging."""
    block_px: int
    residual_spec: DctResidual | Int8Residual | LosslessResidual
    key_frames: int
    """Pictures of a full GOP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One GOP of a batch, or one window of a GOP."""

    sample: int
    """In the catalog."""
    position: int
    """Of the unit that it belongs to, in the epoch's order."""
    window: int
    """-1 for the whole GOP."""
    height_px: int
    width_px: int
    gop_index: int
    layout: GopLayout
    """Of the window, if it is one: a picture and a Δ."""

    @property
    def num_pictures(self) -> int:
        """A window brings both its anchors as pictures."""
        return self.layout.num_pictures if self.window < 0 else 2


def gop_arrays(rows: Sequence[Row], geometry: Geometry) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """dtype and shape of every tensor of GopBatch, padded to the largest row."""
    num_rows = len(rows)
    num_pictures = max((row.num_pictures for row in rows), default=0)
    num_deltas = max((row.layout.num_deltas for row in rows), default=0)
    num_anchors = max((row.layout.num_anchors for row in rows), default=0)
    height_px = max((row.height_px for row in rows), default=0)
    width_px = max((row.width_px for row in rows), default=0)
    grid = (-(-height_px // geometry.block_px), -(-width_px // geometry.block_px))
    planes = (height_px * 3 // 2, width_px)
    shapes: dict[str, tuple[np.dtype | type[np.generic], tuple[int, ...]]] = {
        "pictures": (np.uint8, (num_rows, num_pictures, *planes)),
        "residual": (residual_scale(geometry.residual_spec).dtype, (num_rows, num_deltas, *planes)),
        "motion": (motion_dtype(geometry.window), (num_rows, num_deltas, *grid, 2)),
        "intra": (np.bool_, (num_rows, num_deltas, *grid)),
        "motion_step_px": (np.float32, (num_rows, num_deltas)),
        "picture_mask": (np.bool_, (num_rows, num_pictures)),
        "picture_s": (np.float64, (num_rows, num_pictures)),
        "delta_mask": (np.bool_, (num_rows, num_deltas)),
        "delta_s": (np.float64, (num_rows, num_deltas)),
        "kind": (np.int8, (num_rows, num_anchors)),
        "anchor_s": (np.float64, (num_rows, num_anchors)),
        "num_tokens": (np.int32, (num_rows, num_anchors)),
        "size_px": (np.int32, (num_rows, 2)),
        "gop_index": (np.int32, (num_rows,)),
        "is_valid": (np.bool_, (num_rows,)),
    }
    return {name: (np.dtype(dtype), shape) for name, (dtype, shape) in shapes.items()}


def fill_gops(
    arrays: Mapping[str, np.ndarray],
    rows: Sequence[Row],
    *,
    geometry: Geometry,
    tokens: TokenCounts,
    load: Callable[[Row, GopArrays], None],
    on_failure: Callable[[Row, CopePrepError], None],
) -> None:
    """Write the rows into arrays of `gop_arrays`. `load` fills a row's own arrays; `on_failure` may raise."""
    for index, row in enumerate(rows):
        target = _Target(arrays, index, row, geometry)
        try:
            load(row, target.own)
        except CopePrepError as exc:
            on_failure(row, exc)
            target.clear()
        else:
            target.finish(tokens)


class _Target:
    """The place of one row in the padded arrays."""

    def __init__(self, arrays: Mapping[str, np.ndarray], index: int, row: Row, geometry: Geometry) -> None:
        self._row = row
        self._arrays = {
            name: array[index : index + 1].reshape(array.shape[1:] or (1,)) for name, array in arrays.items()
        }
        self._planes = (row.height_px * 3 // 2, row.width_px)
        self._is_smaller = self._arrays["pictures"].shape[1:] != self._planes
        grid = (-(-row.height_px // geometry.block_px), -(-row.width_px // geometry.block_px))
        num_deltas = row.layout.num_deltas
        if self._is_smaller:
            self._arrays["motion"][:] = 0
            self._arrays["intra"][:] = 0
        self.own = GopArrays(
            pictures=self._own_planes("pictures", row.num_pictures),
            motion=self._arrays["motion"][:num_deltas, : grid[0], : grid[1]],
            motion_step_px=self._arrays["motion_step_px"][:num_deltas],
            intra=self._arrays["intra"][:num_deltas, : grid[0], : grid[1]],
            residual=self._own_planes("residual", num_deltas),
        )

    def _own_planes(self, name: str, count: int) -> np.ndarray:
        """A slice of the batch's array, or an array beside it where the row's pictures are smaller."""
        padded = self._arrays[name]
        return np.empty((count, *self._planes), padded.dtype) if self._is_smaller else padded[:count]

    def clear(self) -> None:
        """Leave the place empty: zeros, and False in every mask."""
        for array in self._arrays.values():
            array[:] = 0
        self._put("size_px", 2, (self._row.height_px, self._row.width_px))
        self._put("gop_index", 1, self._row.gop_index)

    def finish(self, tokens: TokenCounts) -> None:
        """Masks, times and run lengths; zeros behind the row's last picture, Δ and anchor."""
        row, layout = self._row, self._row.layout
        num_pictures, num_deltas, num_anchors = row.num_pictures, layout.num_deltas, layout.num_anchors
        if self._is_smaller:
            zero = GREY if self._arrays["residual"].dtype == np.uint8 else 0
            place_planes(self.own.pictures, self._arrays["pictures"], luma=0, chroma=GREY, is_picture=True)
            place_planes(self.own.residual, self._arrays["residual"], luma=zero, chroma=zero)
        for name in ("motion", "motion_step_px", "intra", "residual"):
            self._arrays[name][num_deltas:] = 0
        self._arrays["pictures"][num_pictures:] = 0
        of_pictures = slice(None) if row.window >= 0 else layout.is_picture
        self._put("picture_mask", num_pictures, True)
        self._put("picture_s", num_pictures, layout.anchor_s[of_pictures])
        self._put("delta_mask", num_deltas, True)
        self._put("delta_s", num_deltas, layout.anchor_s[~layout.is_picture])
        self._put("kind", num_anchors, np.where(layout.is_picture, PICTURE, DELTA))
        self._put("anchor_s", num_anchors, layout.anchor_s)
        self._put("num_tokens", num_anchors, np.where(layout.is_picture, tokens.picture, tokens.delta))
        self._put("size_px", 2, (row.height_px, row.width_px))
        self._put("gop_index", 1, row.gop_index)
        self._put("is_valid", 1, True)

    def _put(self, name: str, count: int, values: object) -> None:
        self._arrays[name][:count] = values
        self._arrays[name][count:] = PAD


def place_planes(
    source: np.ndarray, target: np.ndarray, *, luma: int, chroma: int, is_picture: bool = False
) -> None:
    """Put planes [n, 3h/2, w] at the top left of larger ones [n, 3H/2, W]; the rest is filled.

    Of a picture the last row and column of chroma are there twice: brought to full size bilinearly, it then ends
    as at the picture's own edge.
    """
    height, width = source.shape[-2] * 2 // 3, source.shape[-1]
    full_height, full_width = target.shape[-2] * 2 // 3, target.shape[-1]
    target = target[: len(source)]
    target[:, :full_height] = luma
    target[:, full_height:] = chroma
    target[:, :height, :width] = source[:, :height]
    bottom = full_height + height // 2
    target[:, full_height:bottom, : width // 2] = source[:, height:, : width // 2]
    v_start = full_width // 2
    target[:, full_height:bottom, v_start : v_start + width // 2] = source[:, height:, width // 2 :]
    if not is_picture:
        return
    for plane in (target[:, full_height:, :v_start], target[:, full_height:, v_start:]):
        plane[:, :, width // 2 : width // 2 + 1] = plane[:, :, width // 2 - 1 : width // 2]
        plane[:, height // 2 : height // 2 + 1] = plane[:, height // 2 - 1 : height // 2]
