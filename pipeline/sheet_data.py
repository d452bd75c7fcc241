"""What an inspect sheet shows: one GOP of one video, wherever in the dataset it is at this moment.

The sample is looked for in the published shards first (a filtered read of index.parquet, then one range
read), then in the tar that extract left. Its anchors are rebuilt and checked as any reader would. The
re-encoded file may be gone (`shard --consume-reencoded`); if it is there, the same anchors are decoded from
it, for comparison. Cost: the decoding of that file up to the GOP's end, at 1,000 frames/s and more.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cope_prep.pipeline import storage
from cope_prep.pipeline.decode import read_frames
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.ledger import Ledger, rows_of
from cope_prep.pipeline.parquet import PARQUET_THREADS, open_parquet
from cope_prep.pipeline.rebuild import rebuild_anchors
from cope_prep.pipeline.tar import Member, SampleSpan, read_members, scan
from cope_prep.schemas.arrow import MANIFEST
from cope_prep.schemas.errors import ConfigurationError, FormatError, SourceNotFoundError
from cope_prep.schemas.records import GopRecord, video_key
from cope_prep.schemas.wire import decode_gop

MAX_ANCHORS = 8
"""A sheet has no more columns: a GOP of the default settings has 8 anchors."""
_INDEX_COLUMNS = ["shard", "key", "video_id", "gop_index", "offset_bytes", "size_bytes", "members"]
_NUM_SUGGESTIONS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetGop:
    """One GOP, and the anchors of it that are shown."""

    record: GopRecord
    num_gops: int
    """GOPs of the video."""
    found_in: str
    """Name of the shard or of the extract tar, for the sheet's caption."""
    member_bytes: dict[str, int]
    """Stored size by member name."""
    sample_bytes: int
    """Tar headers and padding included."""
    shown: tuple[int, ...]
    """Indices of the shown anchors; the first is 0, the I-frame."""
    rebuilt: np.ndarray
    """uint8 [len(shown), 3H/2, W]."""
    reencoded: np.ndarray | None
    """uint8 [len(shown), 3H/2, W]; None if the re-encoded file is gone."""


def read_sheet_gop(layout: Layout, video_id: str, *, gop_index: int) -> SheetGop:
    """Find, rebuild and check one GOP.

    Raises:
        ConfigurationError: the dataset has no such video, no sample of it, or no such GOP.
        FormatError, ChecksumError: the sample is damaged.
    """
    uri, spans = _find(layout, video_id)
    if not 0 <= gop_index < len(spans):
        raise ConfigurationError(
            f"GOP {gop_index}", f"is not there: {video_id} has {len(spans)}", f"Use 0 to {len(spans) - 1}."
        )
    span = spans[gop_index]
    with storage.open_read(uri) as file:
        record = decode_gop(read_members(file, span), key=span.key)
    anchors = rebuild_anchors(record)
    shown = spread(record.num_anchors, at_most=MAX_ANCHORS)
    return SheetGop(
        record=record,
        num_gops=len(spans),
        found_in=uri.rpartition("/")[2],
        member_bytes={member.name: member.size_bytes for member in span.members},
        sample_bytes=span.size_bytes,
        shown=shown,
        rebuilt=anchors[list(shown)],
        reencoded=_reencoded_anchors(layout, record, shown),
    )


def spread(count: int, *, at_most: int) -> tuple[int, ...]:
    """Up to `at_most` of the numbers 0 to count - 1, evenly, the first and the last among them."""
    return tuple(np.linspace(0, count - 1, min(count, at_most)).round().astype(int).tolist())


def _find(layout: Layout, video_id: str) -> tuple[str, list[SampleSpan]]:
    """Where the video's samples are, and their spans in order of the GOPs."""
    sharded = _in_shards(layout, video_id)
    if sharded:
        return sharded
    uri = layout.extracted(video_key(video_id))
    try:
        with storage.open_read(uri) as file:
            return uri, list(scan(file, name=uri))
    except SourceNotFoundError:
        raise _not_there(layout, video_id) from None


def _in_shards(layout: Layout, video_id: str) -> tuple[str, list[SampleSpan]] | None:
    try:
        with storage.open_read(layout.index) as file:
            found = _rows_of(open_parquet(file), video_id)
    except SourceNotFoundError:
        return None
    except (pa.ArrowInvalid, OSError) as exc:
        raise FormatError(layout.index, f"is not a readable index ({exc})", "Run cope-prep verify.") from exc
    rows = sorted(found, key=lambda row: row["gop_index"])
    if not rows:
        return None
    spans = [
        SampleSpan(
            key=row["key"],
            offset_bytes=row["offset_bytes"],
            size_bytes=row["size_bytes"],
            members=tuple(Member(**member) for member in row["members"]),
        )
        for row in rows
    ]
    return storage.join(layout.folder("shards"), rows[0]["shard"]), spans


def _rows_of(index: pq.ParquetFile, video_id: str) -> list[dict[str, Any]]:
    """All columns only where the video is: the index of LLaVA-Video-178K has more than a million rows."""
    rows: list[dict[str, Any]] = []
    for group in range(index.num_row_groups):
        read = partial(index.read_row_group, group, use_threads=PARQUET_THREADS)
        is_it = pc.equal(read(columns=["video_id"])["video_id"], video_id)  # pyright: ignore[reportAttributeAccessIssue]
        if pc.any(is_it).as_py():  # pyright: ignore[reportAttributeAccessIssue]
            rows += read(columns=_INDEX_COLUMNS).filter(is_it).to_pylist()
    return rows


def _not_there(layout: Layout, video_id: str) -> ConfigurationError:
    """Why a video cannot be shown: not in the manifest, failed, or not processed yet."""
    try:
        known = storage.read_table(layout.manifest, MANIFEST)["video_id"].to_pylist()
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


def _reencoded_anchors(layout: Layout, record: GopRecord, shown: tuple[int, ...]) -> np.ndarray | None:
    uri = layout.reencoded(video_key(record.video_id))
    if not storage.exists(uri):
        return None
    first = record.gop_index * layout.specs.encode.gop_size
    wanted = {first + index * record.window: position for position, index in enumerate(shown)}
    pictures = np.empty((len(shown), record.height_px * 3 // 2, record.width_px), np.uint8)
    num_left = len(wanted)
    for frame in read_frames(uri):
        position = wanted.get(frame.index)
        if position is None:
            continue
        picture = frame.picture()
        if picture.shape != pictures.shape[1:]:
            break
        pictures[position] = picture
        num_left -= 1
        if num_left == 0:
            return pictures
    raise FormatError(
        uri,
        f"does not hold the frames of GOP {record.gop_index}",
        "It is not the file that the sample was made from.",
    )
