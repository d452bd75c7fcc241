"""Which video goes into which shard, decided once and written down before the first shard is built.

    DATASET/shards/<hash>/plan.parquet    one row a video, in the order of the shards

Videos are shuffled by a hash of seed and video id, then packed in that order until a shard has reached its
target size; a video is never split. The plan is kept, so that a run that was interrupted, or whose inputs
are deleted as it goes (`--consume`), builds exactly the shards that the first run would have built. Later
runs only add: new videos go to new shards at the end, and a video that was extracted again keeps its place,
under its new version, which makes its shard stale.

Cost: one sort of the new videos, O(n log n).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, shard_name
from cope_prep.pipeline.tar import END_OF_ARCHIVE
from cope_prep.schemas.errors import FormatError, SourceNotFoundError
from cope_prep.schemas.specs import SCHEMA_VERSION, ShardSpec

PLAN = pa.schema(
    [
        pa.field("shard_index", pa.int32(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("video_key", pa.string(), nullable=False),
        pa.field("subset", pa.string(), nullable=False),
        pa.field("output_bytes", pa.int64(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
    ],
    metadata={"cope_prep.schema_version": str(SCHEMA_VERSION)},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractedVideo:
    """A video whose samples are ready: one tar of the extract stage."""

    video_id: str
    video_key: str
    subset: str
    """Goes into the index, for filtering."""
    output_bytes: int
    """Size of its tar."""
    version: str
    """Changes when the video is extracted again, for instance the time at which its extraction finished."""

    @property
    def sample_bytes(self) -> int:
        """What the video adds to a shard."""
        return self.output_bytes - len(END_OF_ARCHIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShard:
    """The videos of one shard, in order."""

    index: int
    videos: tuple[ExtractedVideo, ...]

    @property
    def name(self) -> str:
        """File name, for instance `shard-00000.tar`."""
        return shard_name(self.index)

    @property
    def size_bytes(self) -> int:
        """Size of the shard once it is built."""
        return sum(video.sample_bytes for video in self.videos) + len(END_OF_ARCHIVE)

    @property
    def versions(self) -> dict[str, str]:
        """Version of each video, by id."""
        return {video.video_id: video.version for video in self.videos}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """All shards of a dataset, by index: `shards[i].index == i`."""

    shards: tuple[PlannedShard, ...]

    @property
    def num_videos(self) -> int:
        """Videos in all shards."""
        return sum(len(shard.videos) for shard in self.shards)


def plan_shards(layout: Layout, extracted: Iterable[ExtractedVideo]) -> ShardPlan:
    """Bring the plan of a dataset up to date with what has been extracted, and publish it.

    `extracted` is every video whose extraction is `ok` or `partial`, tars that were consumed included.
    Videos of the plan that are not among them keep their place.

    Raises:
        FormatError: the plan that is there cannot be read.
    """
    planned = _read(layout)
    current = {video.video_id: video for video in extracted}
    kept = [
        PlannedShard(
            index=shard.index,
            videos=tuple(current.pop(video.video_id, video) for video in shard.videos),
        )
        for shard in planned.shards
    ]
    added = _pack(current.values(), spec=layout.specs.shard, first_index=len(kept))
    plan = ShardPlan(shards=(*kept, *added))
    if plan != planned:
        storage.publish_table(plan_uri(layout), _to_table(plan))
    return plan


def _pack(videos: Iterable[ExtractedVideo], *, spec: ShardSpec, first_index: int) -> list[PlannedShard]:
    groups: list[list[ExtractedVideo]] = []
    open_bytes = 0
    for video in sorted(videos, key=lambda video: _place(video.video_id, spec.seed)):
        if not groups or open_bytes + video.sample_bytes > spec.target_bytes:
            groups.append([])
            open_bytes = len(END_OF_ARCHIVE)
        groups[-1].append(video)
        open_bytes += video.sample_bytes
    return [
        PlannedShard(index=first_index + position, videos=tuple(group))
        for position, group in enumerate(groups)
    ]


def _place(video_id: str, seed: int) -> bytes:
    # A hash, not a random generator: the order of two videos does not depend on which others there are.
    return hashlib.sha256(f"{seed}/{video_id}".encode("utf-8", "surrogatepass")).digest()


def plan_uri(layout: Layout) -> str:
    """URI of the plan."""
    return storage.join(layout.folder("shards"), "plan.parquet")


def _to_table(plan: ShardPlan) -> pa.Table:
    rows = [
        {
            "shard_index": shard.index,
            "video_id": video.video_id,
            "video_key": video.video_key,
            "subset": video.subset,
            "output_bytes": video.output_bytes,
            "version": video.version,
        }
        for shard in plan.shards
        for video in shard.videos
    ]
    return pa.Table.from_pylist(rows, schema=PLAN)


def _read(layout: Layout) -> ShardPlan:
    try:
        rows = storage.read_table(plan_uri(layout), PLAN).to_pylist()
    except SourceNotFoundError:
        return ShardPlan(shards=())
    groups: list[list[ExtractedVideo]] = []
    for row in rows:
        index = row.pop("shard_index")
        if index == len(groups):
            groups.append([])
        if index != len(groups) - 1:
            raise FormatError(plan_uri(layout), f"names shard {index} after {len(groups) - 1}")
        groups[-1].append(ExtractedVideo(**row))
    return ShardPlan(
        shards=tuple(PlannedShard(index=index, videos=tuple(group)) for index, group in enumerate(groups))
    )
