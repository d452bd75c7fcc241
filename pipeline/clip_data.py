"""What a dataset knows of one video: ledgers, manifest, questions, and where its samples are.

Everything comes of the tables, filtered by video id; an id is looked up, never made part of a path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.ledger import Ledger, LedgerRow
from cope_prep.pipeline.parquet import check_schema, open_parquet, rows_of_video
from cope_prep.pipeline.stats_tables import STAGES
from cope_prep.pipeline.video_list import VideoList
from cope_prep.pipeline.video_samples import GopFigures, VideoSamples, find_samples, read_figures
from cope_prep.schemas.arrow import MANIFEST, QUESTIONS
from cope_prep.schemas.errors import (
    ConfigurationError,
    CopePrepError,
    FormatError,
    SourceNotFoundError,
    StorageError,
)
from cope_prep.schemas.records import QARecord, video_key

MAX_QUESTIONS = 100
_MAX_NAME = 120
_QUESTION_COLUMNS = [field.name for field in QUESTIONS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One video of a dataset."""

    video_id: str
    subset: str | None
    """None if the manifest does not list the video."""
    source_bytes: int | None
    """By the manifest, as `subset`."""
    ends: dict[str, LedgerRow]
    """Stage -> its row of the ledger, if it has one."""
    samples: VideoSamples | None
    figures: tuple[GopFigures, ...]
    """One a GOP; empty without samples."""
    reencoded_bytes: int | None
    """Size of the re-encoded file; None if it is not there."""

    @property
    def video_key(self) -> str:
        """16 hex digits that name the video's files."""
        return video_key(self.video_id)

    @property
    def sample_bytes(self) -> int:
        """Of all its samples."""
        return sum(gop.sample_bytes for gop in self.figures)

    @property
    def num_anchors(self) -> int:
        """Of all its GOPs."""
        return sum(gop.num_anchors for gop in self.figures)

    def place(self, gop_index: int, anchor: int) -> int:
        """Number of an anchor in the whole video, from 0."""
        return sum(gop.num_anchors for gop in self.figures[:gop_index]) + anchor

    def anchor_at(self, place: int) -> tuple[int, int]:
        """(GOP, anchor in it) of a number in the whole video."""
        for index, gop in enumerate(self.figures):
            if place < gop.num_anchors:
                return index, place
            place -= gop.num_anchors
        raise IndexError(place)

    def anchor_times(self, anchor_s: float) -> list[float]:
        """Seconds in the video of every anchor, with one every `anchor_s` in a GOP."""
        return [gop.start_s + anchor * anchor_s for gop in self.figures for anchor in range(gop.num_anchors)]

    def state(self) -> str:
        """Why there are no samples, in one sentence or two; empty if there are some."""
        if self.samples is not None:
            return ""
        for stage, row in self.ends.items():
            if row.status == "failed":
                what = {"reencode": "Re-encoding", "extract": "Extraction"}[stage]
                return f"{what} failed: {row.error_class}: {row.error_message}"
        if "extract" in self.ends:
            return "It was extracted, but its samples are not in a shard and its tar is gone."
        if "reencode" in self.ends:
            return "It is re-encoded and not extracted yet, so it has no samples."
        return "It is not re-encoded yet with these settings."


def read_clip(layout: Layout, video_id: str, videos: VideoList) -> Clip:
    """What is known of a video; `videos` are those of the same tables.

    Raises:
        ConfigurationError: the dataset has no such video.
        FormatError, SchemaVersionError: a table or a tar is damaged.
        StorageError: the store could not answer.
    """
    if video_id not in videos:
        shown = video_id if len(video_id) <= _MAX_NAME else f"{video_id[:_MAX_NAME]}\N{HORIZONTAL ELLIPSIS}"
        raise ConfigurationError(
            f"No video has the id {shown}", remedy=f"The dataset has {len(videos):,} others: search for it."
        )
    ends = {
        stage: row
        for stage in STAGES
        for row in (Ledger(layout.ledger(stage)).find(video_id),)
        if row is not None
    }
    # Samples that are in no index yet may be in a tar: then no row group is worth a look.
    samples = find_samples(layout, video_id, row_groups=videos.groups_of(video_id))
    listed = _rows(layout.manifest, MANIFEST, video_id, ["subset", "size_bytes"]) or [{}]
    return Clip(
        video_id=video_id,
        subset=listed[0].get("subset"),
        source_bytes=listed[0].get("size_bytes"),
        ends=ends,
        samples=samples,
        figures=() if samples is None else read_figures(samples),
        reencoded_bytes=_size(layout.reencoded(video_key(video_id))),
    )


def read_questions(layout: Layout, video_id: str) -> tuple[tuple[QARecord, ...], int]:
    """The first MAX_QUESTIONS records about a video, in the table's order, and how many there are.

    Raises:
        FormatError, SchemaVersionError: the table is damaged.
        StorageError: the store could not answer.
    """
    rows = _rows(layout.questions, QUESTIONS, video_id, _QUESTION_COLUMNS)
    records = tuple(
        QARecord(**{**row, "turns": tuple((turn["from"], turn["value"]) for turn in row["turns"])})
        for row in rows[:MAX_QUESTIONS]
    )
    return records, len(rows)


def _rows(uri: str, schema: pa.Schema, video_id: str, columns: list[str]) -> list[dict[str, Any]]:
    """Rows of a video; none if there is no such table."""
    try:
        with storage.open_read(uri) as file:
            table = open_parquet(file)
            check_schema(uri, table.schema_arrow, schema)
            return rows_of_video(table, video_id, columns)
    except SourceNotFoundError:
        return []
    except CopePrepError:
        raise
    except pa.ArrowInvalid as exc:
        raise FormatError(uri, f"is not a readable Parquet table ({exc})") from exc
    except Exception as exc:  # of the store: aiohttp's and botocore's are no OSErrors
        raise StorageError(uri, f"cannot be read ({exc})") from exc


def _size(uri: str) -> int | None:
    try:
        return storage.stat(uri).size_bytes
    except SourceNotFoundError:
        return None
