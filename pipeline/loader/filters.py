"""Which GOPs of an index are wanted: bounds on its columns, judged by GOP or by video."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, field_validator


class GopFilter(BaseModel):
    """Bounds that a GOP (or a video as a whole) must keep; None is no bound. All of them must hold.

    A figure of a GOP is the mean over its windows; that of a video, the mean over all its windows. A GOP
    without windows has motion, residual energy and clipped share 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    subsets: tuple[str, ...] | None = None
    """The manifest's subsets, for instance `0_30_s_academic`."""
    min_duration_s: float | None = None
    """Of the whole video, also where GOPs are judged."""
    max_duration_s: float | None = None
    min_motion_px: float | None = None
    """Mean length of the vectors."""
    max_motion_px: float | None = None
    min_residual_energy: float | None = None
    """Mean square of the residual, grey levels squared."""
    max_residual_energy: float | None = None
    max_clipped_share: float | None = None
    """Share of vectors that were beyond what int8 holds, 0 to 1."""

    @field_validator("subsets", mode="before")
    @classmethod
    def _one_subset(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    def is_open(self) -> bool:
        """True if nothing is left out."""
        return all(value is None for value in self.model_dump().values())

    def columns(self) -> tuple[str, ...]:
        """Columns of index.parquet that are needed beyond places and times."""
        names: list[str] = []
        if self.subsets is not None:
            names.append("subset")
        if self.min_motion_px is not None or self.max_motion_px is not None:
            names.append("motion_mean_px")
        if self.min_residual_energy is not None or self.max_residual_energy is not None:
            names.append("residual_energy")
        if self.max_clipped_share is not None:
            names.append("clipped_vectors")
        return (*names, "num_windows") if names else ()

    def admits(
        self,
        table: pa.Table,
        *,
        video: np.ndarray,
        num_videos: int,
        fps: int,
        block_px: int,
        per_video: bool,
    ) -> np.ndarray:
        """bool [num_samples]: which rows of the index pass.

        table: with `columns()`, num_frames, width_px and height_px. video: int [num_samples].
        """
        admitted = np.ones(len(table), np.bool_)
        if self.subsets is not None:
            admitted &= _is_in(table, self.subsets)
        if self.min_duration_s is not None or self.max_duration_s is not None:
            frames = np.bincount(video, table["num_frames"].to_numpy(), num_videos)
            admitted &= _within(frames[video] / fps, self.min_duration_s, self.max_duration_s)

        def figure(name: str, per_window: np.ndarray | float = 1.0) -> np.ndarray:
            sums = _row_sums(table[name])
            weights = table["num_windows"].to_numpy() * per_window
            if per_video:
                sums = np.bincount(video, sums, num_videos)[video]
                weights = np.bincount(video, weights, num_videos)[video]
            return sums / np.maximum(weights, 1)

        if self.min_motion_px is not None or self.max_motion_px is not None:
            admitted &= _within(figure("motion_mean_px"), self.min_motion_px, self.max_motion_px)
        if self.min_residual_energy is not None or self.max_residual_energy is not None:
            energy = figure("residual_energy")
            admitted &= _within(energy, self.min_residual_energy, self.max_residual_energy)
        if self.max_clipped_share is not None:
            blocks = -(-table["height_px"].to_numpy() // block_px) * -(
                -table["width_px"].to_numpy() // block_px
            )
            admitted &= _within(figure("clipped_vectors", blocks), None, self.max_clipped_share)
        return admitted


def _is_in(table: pa.Table, subsets: tuple[str, ...]) -> np.ndarray:
    asked = pa.array(subsets, pa.string())
    return pc.is_in(table["subset"], value_set=asked).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]


def _within(values: np.ndarray, low: float | None, high: float | None) -> np.ndarray:
    inside = np.ones(len(values), np.bool_)
    if low is not None:
        inside &= values >= low
    if high is not None:
        inside &= values <= high
    return inside


def _row_sums(column: pa.ChunkedArray) -> np.ndarray:
    """float64 [num_rows]: the sum of each row's list, 0 for an empty one."""
    lists = column.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):  # a table without rows
        return np.zeros(0)
    lengths = lists.value_lengths().to_numpy()
    # Not differences of running sums: one NaN would be in all rows behind it.
    row = np.repeat(np.arange(len(lengths)), lengths)
    return np.bincount(row, lists.flatten().to_numpy(), len(lengths))
