"""Two outputs side by side: which settings differ, which figures, and which videos are in both.

spec_lines     two Specs       -> every setting with both values
figure_lines   two statistics  -> the figures that settings change, with both values
common_videos  two video lists -> the videos with samples in both
max_errors     index           -> largest error of every window, as a histogram
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.parquet import PARQUET_THREADS, check_schema, open_parquet
from cope_prep.pipeline.stats_records import DatasetStats, Distribution
from cope_prep.pipeline.video_list import VideoList
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.errors import CopePrepError, FormatError, SourceNotFoundError, StorageError

_NUM_LEVELS = 256

Kind = Literal["number", "bytes", "bytes_per_s", "ratio", "dB", "px", "share", "seconds", "levels"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecLine:
    """One setting of both."""

    name: str
    """`encode.quality`, `extract.residual`."""
    left: str
    right: str

    @property
    def differs(self) -> bool:
        """True if the values are not the same."""
        return self.left != self.right


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureLine:
    """One figure of both; None where it is not known."""

    name: str
    kind: Kind
    left: float | None
    right: float | None

    @property
    def ratio(self) -> float | None:
        """Right over left; None if either is not known, or the left is 0."""
        return None if self.left in (None, 0) or self.right is None else self.right / self.left  # type: ignore[operator]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxErrors:
    """The largest absolute errors of the rebuilt anchors against the re-encoded frames."""

    counts: np.ndarray
    """int64 [256]: windows by their largest error, grey levels."""

    @property
    def largest(self) -> int | None:
        """Of all windows; None without any."""
        there = np.flatnonzero(self.counts)
        return int(there[-1]) if len(there) else None

    @property
    def median(self) -> float | None:
        """Of the windows' largest errors; the lower one of two."""
        total = int(self.counts.sum())
        if not total:
            return None
        return float(np.searchsorted(self.counts.cumsum(), (total + 1) // 2))


def spec_lines(left: Specs, right: Specs) -> tuple[SpecLine, ...]:
    """Every setting, in the order of the stages."""
    flat = [
        {
            f"{stage}.{field}": _words(value)
            for stage, spec in specs.upto("shards").items()
            for field, value in spec.model_dump(mode="json").items()
        }
        for specs in (left, right)
    ]
    return tuple(
        SpecLine(name=name, left=flat[0].get(name, ""), right=flat[1].get(name, ""))
        for name in dict.fromkeys((*flat[0], *flat[1]))
    )


def figure_lines(
    left: DatasetStats, right: DatasetStats, *, errors: tuple[MaxErrors | None, MaxErrors | None]
) -> tuple[FigureLine, ...]:
    """What settings change: sizes, compression, error, motion and residual energy."""
    sides = (left, right)
    lines = [FigureLine(name=name, kind=kind, left=of(left), right=of(right)) for name, kind, of in _TOTALS]
    for name, figure, kind, of in _DISTRIBUTED:
        found = [distribution_of(stats, figure) for stats in sides]
        values = [None if one is None else of(one) for one in found]
        lines.append(FigureLine(name=name, kind=kind, left=values[0], right=values[1]))
    for name, worst in (
        ("Largest error of a window, median", lambda found: found.median),
        ("Largest error of all", lambda found: found.largest),
    ):
        values = [None if found is None else worst(found) for found in errors]
        lines.append(FigureLine(name=name, kind="levels", left=values[0], right=values[1]))
    return tuple(lines)


def distribution_of(stats: DatasetStats, name: str) -> Distribution | None:
    """A figure over all subsets; None if it has no values."""
    return next((one for one in stats.distributions if one.name == name and one.subset is None), None)


def common_videos(left: VideoList, right: VideoList) -> pa.Array:
    """string [num_common], sorted: the videos with samples in the shards of both."""
    ids = [
        videos.video_ids.filter(pa.array(videos.row_groups[:, 0] >= 0, pa.bool_()))
        for videos in (left, right)
    ]
    return ids[0].filter(pc.is_in(ids[0], value_set=ids[1]))  # pyright: ignore[reportAttributeAccessIssue]


def max_errors(layout: Layout) -> MaxErrors | None:
    """One pass over one column of the index; None if there is no index.

    Raises:
        FormatError, SchemaVersionError: it is damaged, or of a newer version.
        StorageError: the store could not answer.
    """
    counts = np.zeros(_NUM_LEVELS, np.int64)
    try:
        with storage.open_read(layout.index) as file:
            table = open_parquet(file)
            check_schema(layout.index, table.schema_arrow, INDEX)
            for group in range(table.num_row_groups):
                column = table.read_row_group(group, columns=["max_error"], use_threads=PARQUET_THREADS)
                levels = pc.list_flatten(column["max_error"]).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
                counts += np.bincount(levels.clip(0, _NUM_LEVELS - 1), minlength=_NUM_LEVELS)
    except SourceNotFoundError:
        return None
    except CopePrepError:
        raise
    except pa.ArrowInvalid as exc:
        raise FormatError(layout.index, f"is not a readable index ({exc})", "Run cope-prep verify.") from exc
    except Exception as exc:  # of the store: aiohttp's and botocore's are no OSErrors
        raise StorageError(layout.index, f"cannot be read ({exc})") from exc
    return MaxErrors(counts=counts)


_TOTALS: tuple[tuple[str, Kind, Callable[[DatasetStats], float | None]], ...] = (
    ("Videos in the shards", "number", lambda stats: stats.total.num_videos),
    ("Seconds of video", "seconds", lambda stats: stats.total.duration_s),
    ("Samples", "bytes", lambda stats: stats.total.sample_bytes),
    ("Samples, a second", "bytes_per_s", lambda stats: stats.total.per_second(stats.total.sample_bytes)),
    ("I-frames, a second", "bytes_per_s", lambda stats: stats.total.per_second(stats.total.iframe_bytes)),
    ("Motion, a second", "bytes_per_s", lambda stats: stats.total.per_second(stats.total.motion_bytes)),
    ("Residuals, a second", "bytes_per_s", lambda stats: stats.total.per_second(stats.total.residual_bytes)),
    ("Overhead, a second", "bytes_per_s", lambda stats: stats.total.per_second(stats.total.overhead_bytes)),
    ("Samples over source files", "ratio", lambda stats: stats.total.source.ratio),
    ("Samples over re-encoded files", "ratio", lambda stats: stats.total.reencoded.ratio),
    ("Samples over RGB at 1 FPS", "ratio", lambda stats: stats.total.rgb.ratio),
    (
        "Windows with clipped vectors",
        "share",
        lambda stats: stats.total.window_share(stats.total.num_clipped_vector_windows),
    ),
)
_DISTRIBUTED: tuple[tuple[str, str, Kind, Callable[[Distribution], float]], ...] = (
    ("PSNR of the rebuilt luma, median", "psnr_y_db", "dB", lambda found: found.median),
    ("PSNR of the rebuilt luma, worst", "psnr_y_db", "dB", lambda found: found.minimum),
    ("Motion, mean of the windows", "motion_mean_px", "px", lambda found: found.mean),
    ("Blocks without motion, mean", "zero_motion_share", "share", lambda found: found.mean),
    ("Intra blocks, mean", "intra_share", "share", lambda found: found.mean),
    ("Residual energy, median", "residual_energy", "number", lambda found: found.median),
    ("Residual energy, p95", "residual_energy", "number", lambda found: found.p95),
)


def _words(value: Any) -> str:
    """A setting as one would write it: `dct quality=90`."""
    if isinstance(value, dict):
        rest = " ".join(f"{name}={_words(one)}" for name, one in value.items() if name != "kind")
        return " ".join(part for part in (str(value.get("kind", "")), rest) if part)
    return "default" if value is None else str(value)
