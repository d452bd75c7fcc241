"""What an inspect sheet shows: one GOP of one video, wherever in the dataset it is at this moment.

The sample is looked for in the published shards first (a filtered read of index.parquet, then one range
read), then in the tar that extract left. Its anchors are rebuilt and checked as any reader would. The
re-encoded file may be gone (`shard --consume-reencoded`); if it is there, the same anchors are decoded from
it, for comparison. Cost: the decoding of that GOP, at 1,000 frames/s and more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cope_prep.pipeline import storage
from cope_prep.pipeline.decode import read_pictures
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.rebuild import rebuild_anchors
from cope_prep.pipeline.video_samples import find_samples, read_gop, why_no_samples
from cope_prep.schemas.errors import BitstreamError, FormatError
from cope_prep.schemas.records import GopRecord, video_key

MAX_ANCHORS = 8
"""A sheet has no more columns: a GOP of the default settings has 8 anchors."""


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
    samples = find_samples(layout, video_id)
    if samples is None:
        raise why_no_samples(layout, video_id)
    record = read_gop(samples, gop_index)
    span = samples.spans[gop_index]
    anchors = rebuild_anchors(record)
    shown = spread(record.num_anchors, at_most=MAX_ANCHORS)
    return SheetGop(
        record=record,
        num_gops=len(samples.spans),
        found_in=samples.found_in,
        member_bytes={member.name: member.size_bytes for member in span.members},
        sample_bytes=span.size_bytes,
        shown=shown,
        rebuilt=anchors[list(shown)],
        reencoded=reencoded_anchors(layout, record, shown),
    )


def spread(count: int, *, at_most: int) -> tuple[int, ...]:
    """Up to `at_most` of the numbers 0 to count - 1, evenly, the first and the last among them."""
    return tuple(np.linspace(0, count - 1, min(count, at_most)).round().astype(int).tolist())


def reencoded_anchors(layout: Layout, record: GopRecord, shown: Sequence[int]) -> np.ndarray | None:
    """Anchors of a GOP as the re-encoded file has them: uint8 [len(shown), 3H/2, W]; None if it is gone.

    Raises:
        FormatError: it does not hold them.
    """
    uri = layout.reencoded(video_key(record.video_id))
    if not storage.exists(uri):
        return None
    first = record.gop_index * layout.specs.encode.gop_size
    shape = (len(shown), record.height_px * 3 // 2, record.width_px)
    try:
        pictures = read_pictures(
            uri, [first + index * record.window for index in shown], fps=layout.specs.encode.fps
        )
    except BitstreamError as exc:
        found = f"does not hold the frames of GOP {record.gop_index} ({exc.found})"
        raise FormatError(uri, found, "It is not the file that the sample was made from.") from exc
    if pictures.shape != shape:
        found = f"does not hold the frames of GOP {record.gop_index} (they are {pictures.shape}, not {shape})"
        raise FormatError(uri, found, "It is not the file that the sample was made from.")
    return pictures
