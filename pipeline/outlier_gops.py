"""Which GOP of an outlier shows why it is one: that with the largest value of the figure.

One pass over the video ids of the index, and over the figures of those row groups alone that hold a wanted video.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.parquet import PARQUET_THREADS, open_parquet
from cope_prep.schemas.errors import FormatError, SourceNotFoundError

_COLUMNS = (
    "video_id",
    "gop_index",
    "num_frames",
    "size_bytes",
    "motion_mean_px",
    "intra_share",
    "residual_energy",
    "clipped_vectors",
    "clipped_residuals",
)
_VALUES: dict[str, Callable[[dict[str, Any]], float]] = {
    "motion_mean_px": lambda row: _mean(
        [value for value, intra in zip(row["motion_mean_px"], row["intra_share"], strict=False) if intra < 1]
    ),
    "residual_energy": lambda row: _mean(row["residual_energy"]),
    "bytes_per_s": lambda row: row["size_bytes"] / row["num_frames"],
    "clipped_share": lambda row: sum(row["clipped_vectors"]) + sum(row["clipped_residuals"]),
}
"""Figure of DatasetStats.outliers -> its value for one GOP."""


def most_telling_gops(layout: Layout, wanted: Mapping[str, str]) -> dict[str, int]:
    """Video id -> gop_index; 0 of videos that the index does not hold, and of all if there is no index.

    wanted: video id -> figure of which it is an outlier.

    Raises:
        FormatError: the index is damaged.
        StorageError: the store could not answer.
    """
    best: dict[str, tuple[float, int]] = {}
    for row in _rows(layout, wanted.keys()):
        video_id, gop_index = row["video_id"], row["gop_index"]
        value = _VALUES[wanted[video_id]](row)
        if video_id not in best or (value, -gop_index) > (best[video_id][0], -best[video_id][1]):
            best[video_id] = (value, gop_index)
    return {video_id: best[video_id][1] if video_id in best else 0 for video_id in wanted}


def _rows(layout: Layout, video_ids: Collection[str]) -> list[dict[str, Any]]:
    values = pa.array(sorted(video_ids), pa.string())
    rows: list[dict[str, Any]] = []
    try:
        with storage.open_read(layout.index) as file:
            index = open_parquet(file)
            for group in range(index.num_row_groups):
                read = partial(index.read_row_group, group, use_threads=PARQUET_THREADS)
                ids = read(columns=["video_id"])["video_id"]
                is_in: Any = pc.is_in(ids, value_set=values)  # pyright: ignore[reportAttributeAccessIssue]
                if pc.any(is_in).as_py():  # pyright: ignore[reportAttributeAccessIssue]
                    rows += read(columns=list(_COLUMNS)).filter(is_in).to_pylist()
    except SourceNotFoundError:
        return []
    except (pa.ArrowInvalid, OSError) as exc:
        raise FormatError(layout.index, f"is not a readable index ({exc})", "Run cope-prep verify.") from exc
    return rows


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
