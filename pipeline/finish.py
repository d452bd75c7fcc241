"""All shards -> index.parquet and dataset.json: the two files that make a folder of shards a dataset.

    DATASET/shards/<hash>/index.parquet    the rows of all shards in their order, one row group a shard
    DATASET/shards/<hash>/provenance.parquet   from which sources, and with what: provenance.py
    DATASET/shards/<hash>/dataset.json     specs, counts, bytes by part, checksums, versions

All are functions of the shards alone (no time, no host name), so the same sources give the same bytes. One
row group a shard lets a reader of some shards read some of the index; merging holds the rows of one shard.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import av
import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.provenance import publish_provenance, spans_of
from cope_prep.pipeline.shard import BuiltShard, find_readable
from cope_prep.pipeline.shard_plan import PlannedShard, ShardPlan
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.errors import FormatError
from cope_prep.schemas.specs import SCHEMA_VERSION

_CHUNK_BYTES = 1 << 20
MAX_JSON_BYTES = 1 << 28
"""Of dataset.json: a million shards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetCounts:
    """How much is in the shards."""

    videos: int
    gops: int
    windows: int
    frames: int
    """Of the re-encoded videos."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetBytes:
    """What the bytes of the shards are spent on."""

    total: int
    iframe: int
    motion: int
    """Vectors and intra masks."""
    residual: int
    overhead: int
    """The .json members, tar headers and padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetReport:
    """What `finish_shards` wrote down."""

    counts: DatasetCounts
    bytes: DatasetBytes
    num_shards: int
    unfinished: tuple[str, ...]
    """Planned shards that are missing or whose rows are damaged (and that are not in the index), or that hold an
    older version of a video."""


def finish_shards(layout: Layout, plan: ShardPlan) -> DatasetReport:
    """Merge the rows of all published shards into index.parquet, and describe the whole in dataset.json.

    Raises:
        SchemaVersionError: the rows of a shard were written by a newer version.
        StorageError: the store refused to read or write.
    """
    totals: Counter[str] = Counter()
    shards: list[dict[str, Any]] = []
    unfinished: list[str] = []
    spans: list[pa.Table] = []
    with storage.publish(layout.index) as path:
        with pq.ParquetWriter(path, INDEX, compression="zstd") as writer:
            for shard in plan.shards:
                found = find_readable(layout, shard.index)
                if found is None or found[0].versions != shard.versions:
                    unfinished.append(shard.name)
                if found is None:
                    continue
                built, rows = found
                if len(rows):
                    writer.write_table(rows, row_group_size=len(rows))
                shards.append(_describe_shard(shard, built, rows))
                totals.update(_totals_of(rows))
                spans.append(spans_of(rows, shard=shard.name, versions=built.versions))
        index = describe_index(path)
    provenance = publish_provenance(layout, spans)
    for entry in shards:
        entry["sources_sha256"] = provenance.sources_sha256.get(entry["name"])
    total_bytes = sum(shard["bytes"] for shard in shards)
    counts, sizes = summarize(totals, fps=layout.specs.encode.fps, total_bytes=total_bytes)
    document = {
        "schema_version": SCHEMA_VERSION,
        "specs": {name: spec.model_dump(mode="json") for name, spec in layout.specs.upto("shards").items()},
        "spec_hash": spec_hashes(layout),
        "counts": asdict(counts),
        "bytes": asdict(sizes),
        "index": index,
        "provenance": provenance.about,
        "shards": shards,
        "versions": _versions(),
    }
    storage.publish_bytes(layout.dataset_json, json.dumps(document, indent=2).encode() + b"\n")
    return DatasetReport(counts=counts, bytes=sizes, num_shards=len(shards), unfinished=tuple(unfinished))


def read_dataset_json(layout: Layout) -> dict[str, Any]:
    """The content of dataset.json.

    Raises:
        SourceNotFoundError: there is none.
        FormatError: it is not a JSON object, or has more than MAX_JSON_BYTES.
    """
    content = storage.read_small(layout.dataset_json, MAX_JSON_BYTES)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise FormatError(layout.dataset_json, f"is malformed ({exc})", "Run cope-prep shard.") from exc
    if not isinstance(document, dict):
        raise FormatError(layout.dataset_json, f"is a {type(document).__name__}, not an object")
    return document


def describe_index(uri: str) -> dict[str, Any]:
    """What dataset.json says of index.parquet, which is at `uri`.

    Raises:
        SourceNotFoundError: it is not there.
    """
    num_bytes = checksum = 0
    with storage.open_read(uri) as file:
        while chunk := file.read(_CHUNK_BYTES):
            num_bytes += len(chunk)
            checksum = google_crc32c.extend(checksum, chunk)
    return {"name": "index.parquet", "bytes": num_bytes, "crc32c": checksum}


def spec_hashes(layout: Layout) -> dict[str, str]:
    """Hash of the specs up to each stage."""
    return {stage: layout.specs.hash_of(stage) for stage in ("reencode", "extract", "shards")}


def summarize(totals: Counter[str], *, fps: int, total_bytes: int) -> tuple[DatasetCounts, DatasetBytes]:
    """Counts and bytes of the dataset from the sums over its shards."""
    counts = DatasetCounts(
        videos=totals["videos"],
        gops=totals["gops"],
        windows=totals["windows"],
        frames=totals["frames"],
        seconds=round(totals["frames"] / fps, 3),
    )
    sizes = DatasetBytes(
        total=total_bytes,
        iframe=totals["iframe"],
        motion=totals["motion"],
        residual=totals["residual"],
        overhead=total_bytes - totals["iframe"] - totals["motion"] - totals["residual"],
    )
    return counts, sizes


def _totals_of(rows: pa.Table) -> Counter[str]:
    """What the rows of one shard add to the sums of the dataset. A video is in one shard only."""
    return Counter(
        videos=len(rows["video_id"].unique()),
        gops=len(rows),
        windows=_sum(rows["num_windows"]),
        frames=_sum(rows["num_frames"]),
        iframe=_sum(rows["iframe_bytes"]),
        motion=_sum(rows["motion_bytes"]),
        residual=_sum(rows["residual_bytes"]),
    )


def _describe_shard(shard: PlannedShard, built: BuiltShard, rows: pa.Table) -> dict[str, Any]:
    return {
        "name": shard.name,
        "bytes": built.size_bytes,
        "crc32c": built.crc32c,
        "videos": len(built.versions),
        "gops": len(rows),
    }


def _sum(column: pa.ChunkedArray) -> int:
    return int(column.to_numpy().sum(dtype=np.int64))


def _versions() -> dict[str, Any]:
    return {
        "cope-prep": importlib.metadata.version("cope-prep"),
        "av": av.__version__,
        "ffmpeg": {name: ".".join(map(str, version)) for name, version in av.library_versions.items()},
    }
