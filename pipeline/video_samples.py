"""Where the samples of one video are at this moment, and what is recorded of each of its GOPs.

    index.parquet (filtered)  ->  shard, spans, figures            published
    extract tar (headers)     ->  tar, spans;  .json -> figures    extracted, not yet in a shard

Cost in an index of 1.4 million rows: the column `video_id` and one row group of the others; with `row_groups`
(pipeline/video_list.py knows them) the row group alone. No picture and no residual is read for it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import google_crc32c
import pyarrow as pa

from cope_prep.pipeline import storage
from cope_prep.pipeline.index_rows import IFRAME_MEMBERS, MOTION_MEMBERS, read_json
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.ledger import Ledger, rows_of
from cope_prep.pipeline.parquet import open_parquet, rows_of_video
from cope_prep.pipeline.tar import Member, SampleSpan, members_of, scan
from cope_prep.schemas import wire
from cope_prep.schemas.arrow import MANIFEST
from cope_prep.schemas.errors import (
    ChecksumError,
    ConfigurationError,
    CopePrepError,
    FormatError,
    SourceNotFoundError,
    StorageError,
)
from cope_prep.schemas.records import GopRecord, video_key
from cope_prep.schemas.wire import decode_gop

WINDOW_FIGURES = (
    "motion_mean_px",
    "motion_p95_px",
    "zero_motion_share",
    "intra_share",
    "residual_energy",
    "clipped_vectors",
    "clipped_residuals",
    "psnr_y_db",
    "max_error",
    "packet_bytes",
)
"""Columns of the index with one value a window, as WindowStats says."""

_INDEX_COLUMNS = [
    *("shard", "key", "video_id", "gop_index", "start_s", "num_frames", "num_windows", "width_px", "height_px"),
    *("offset_bytes", "size_bytes", "crc32c", "members"),
    *("iframe_packet_bytes", "iframe_psnr_y_db"),
    *WINDOW_FIGURES,
]  # fmt: skip
_SHARD_NAME = re.compile(r"[A-Za-z0-9_-]+\.tar")
_NUM_SUGGESTIONS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSamples:
    """The samples of one video, all in one tar."""

    video_id: str
    uri: str
    """Of the shard, or of the tar that extract left."""
    spans: tuple[SampleSpan, ...]
    """One a GOP, in order."""
    rows: tuple[Mapping[str, Any], ...] | None
    """Their rows of the index; None if they are not in a shard yet."""

    @property
    def found_in(self) -> str:
        """File name of the shard or of the extract tar."""
        return self.uri.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class GopFigures:
    """What is recorded of one GOP. Sizes are stored bytes."""

    gop_index: int
    start_s: float
    num_frames: int
    num_windows: int
    width_px: int
    height_px: int
    sample_bytes: int
    """Tar headers and padding included."""
    iframe_bytes: int
    motion_bytes: int
    """Motion and intra members, of all windows together."""
    residual_bytes: tuple[int, ...]
    """[num_windows]"""
    iframe_packet_bytes: int
    iframe_psnr_y_db: float
    windows: Mapping[str, tuple[float, ...]]
    """Name, as in WINDOW_FIGURES -> [num_windows]."""

    @property
    def num_anchors(self) -> int:
        """Frames 0, s, 2s, ... that the GOP has."""
        return self.num_windows + 1


def find_samples(
    layout: Layout, video_id: str, *, row_groups: Iterable[int] | None = None
) -> VideoSamples | None:
    """The samples of a video: in a shard, else in the tar that extract left; None if there are none.

    `row_groups` are those of the index that may hold the video; None: all are looked through.

    Raises:
        FormatError: the index or the tar is damaged.
        StorageError: the store could not answer.
    """
    return _in_shards(layout, video_id, row_groups) or _extracted(layout, video_id)


def read_gop(samples: VideoSamples, gop_index: int) -> GopRecord:
    """Read one GOP, and check its bytes against the index if it is in a shard.

    Raises:
        ConfigurationError: the video has no such GOP.
        FormatError, ChecksumError: the sample is damaged; the message names the tar and the key.
    """
    spans = samples.spans
    if not 0 <= gop_index < len(spans):
        raise ConfigurationError(
            f"GOP {gop_index}",
            f"is not there: {samples.video_id} has {len(spans)}",
            f"Use 0 to {len(spans) - 1}.",
        )
    span = spans[gop_index]
    block = _read_block(samples.uri, span)
    name = f"{samples.found_in}, {span.key}"
    if samples.rows is not None:
        found, expected = google_crc32c.value(block), samples.rows[gop_index]["crc32c"]
        if found != expected:
            raise ChecksumError(
                name,
                f"its {span.size_bytes:,} bytes have crc32c {found:08x}, the index says {expected:08x}",
                "The shard is damaged: run cope-prep verify.",
            )
    try:
        return decode_gop(members_of(block, span), key=span.key)
    except FormatError as exc:
        raise type(exc)(name, str(exc), exc.remedy) from exc


def read_figures(samples: VideoSamples) -> tuple[GopFigures, ...]:
    """What is recorded of each GOP: of the index, or of the .json members of an extract tar.

    Raises:
        FormatError: a .json lacks a figure.
        StorageError: the store could not answer.
    """
    if samples.rows is not None:
        return tuple(map(_figures, samples.rows, samples.spans))
    found = []
    for span in samples.spans:
        # The .json is a sample's first member: its header, and what is before the next one.
        ends = [member.offset_bytes + member.size_bytes for member in span.members if member.name == "json"]
        block = storage.read_bytes(
            samples.uri, span.offset_bytes, max(ends, default=span.offset_bytes) - span.offset_bytes
        )
        about = read_json(block, span)
        try:
            found.append(_figures(about | wire.stats_columns(about), span))
        except (KeyError, TypeError) as exc:
            raise FormatError(
                f"{samples.found_in}, {span.key}.json", f"lacks a figure ({type(exc).__name__}: {exc})"
            ) from exc
    return tuple(found)


def why_no_samples(layout: Layout, video_id: str) -> ConfigurationError:
    """Why a video cannot be shown: not in the manifest, failed, or not processed yet."""
    try:
        known = storage.read_table(layout.manifest, MANIFEST, columns=["video_id"])["video_id"].to_pylist()
    except SourceNotFoundError:
        known = []
    if video_id not in known:
        close = difflib.get_close_matches(video_id, known, n=_NUM_SUGGESTIONS, cutoff=0.4)
        # People type the file name of a video whose id is a path.
        close = [other for other in known if other.endswith(f"/{video_id}")][:_NUM_SUGGESTIONS] or close
        remedy = f"Closest: {', '.join(close)}." if close else "Ids are the first column of manifest.parquet."
        return ConfigurationError(
            video_id, f"no video of {layout.dataset} has this id ({len(known)} have others)", remedy
        )
    for stage in ("reencode", "extract"):
        for row in rows_of(Ledger(layout.ledger(stage)).read()):
            if row.video_id == video_id and row.status == "failed":
                return ConfigurationError(
                    video_id, f"{stage} failed with {row.error_class}", row.error_message
                )
    return ConfigurationError(
        video_id,
        "has no sample yet with these settings",
        f"Run: cope-prep extract {layout.dataset}",
    )


def _in_shards(layout: Layout, video_id: str, row_groups: Iterable[int] | None) -> VideoSamples | None:
    try:
        with storage.open_read(layout.index) as file:
            found = rows_of_video(open_parquet(file), video_id, _INDEX_COLUMNS, row_groups=row_groups)
    except SourceNotFoundError:
        return None
    except CopePrepError:
        raise
    except (pa.ArrowInvalid, OSError) as exc:
        raise FormatError(layout.index, f"is not a readable index ({exc})", "Run cope-prep verify.") from exc
    rows = sorted(found, key=lambda row: row["gop_index"])
    if not rows:
        return None
    if not _SHARD_NAME.fullmatch(rows[0]["shard"]):  # it becomes a path
        raise FormatError(layout.index, f"names the shard {rows[0]['shard']!r}", "Run cope-prep verify.")
    spans = tuple(
        SampleSpan(
            key=row["key"],
            offset_bytes=row["offset_bytes"],
            size_bytes=row["size_bytes"],
            members=tuple(Member(**member) for member in row["members"]),
        )
        for row in rows
    )
    uri = storage.join(layout.folder("shards"), rows[0]["shard"])
    return VideoSamples(video_id=video_id, uri=uri, spans=spans, rows=tuple(rows))


def _extracted(layout: Layout, video_id: str) -> VideoSamples | None:
    uri = layout.extracted(video_key(video_id))
    try:
        with storage.open_read(uri) as file:
            spans = tuple(scan(file, name=uri))
    except SourceNotFoundError:
        return None
    return VideoSamples(video_id=video_id, uri=uri, spans=spans, rows=None)


def _read_block(uri: str, span: SampleSpan) -> bytes:
    try:
        return storage.read_bytes(uri, span.offset_bytes, span.size_bytes)
    except CopePrepError:
        raise
    except Exception as exc:  # of the store: aiohttp's and botocore's are no OSErrors
        raise StorageError(uri, f"cannot be read ({exc})") from exc


def _figures(row: Mapping[str, Any], span: SampleSpan) -> GopFigures:
    """`row` is of the index, or a .json with its figures at the top."""
    sizes = {member.name: member.size_bytes for member in span.members}
    num_windows = row["num_windows"]
    if not 0 <= num_windows < len(span.members):  # each has a residual
        raise FormatError(
            span.key, f"is said to have {num_windows} windows, and has {len(span.members)} members"
        )
    return GopFigures(
        gop_index=row["gop_index"],
        start_s=row["start_s"],
        num_frames=row["num_frames"],
        num_windows=num_windows,
        width_px=row["width_px"],
        height_px=row["height_px"],
        sample_bytes=span.size_bytes,
        iframe_bytes=sum(sizes.get(name, 0) for name in IFRAME_MEMBERS),
        motion_bytes=sum(sizes.get(name, 0) for name in MOTION_MEMBERS),
        residual_bytes=tuple(
            sizes.get(f"residual.{index:02d}.jpg", sizes.get(f"residual.{index:02d}.npy.zst", 0))
            for index in range(num_windows)
        ),
        iframe_packet_bytes=row["iframe_packet_bytes"],
        iframe_psnr_y_db=row["iframe_psnr_y_db"],
        windows={name: tuple(row[name][:num_windows]) for name in WINDOW_FIGURES},
    )
