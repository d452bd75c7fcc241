"""From which bytes, and with what, the samples of each video were made: written down when the shards are finished.

    manifest            source_uri
    reencode ledger     source_sha256 ──spec, software──> reencoded_crc32c
    extract ledger      reencoded file ──spec, software──> extracted_crc32c
    shard's rows        extraction's version ──> shard, offset, size

    DATASET/shards/<hash>/provenance.parquet

A link is taken from a ledger only if it fits: the extraction is the one that the shard holds, and the re-encoded
file the one that was extracted. What does not fit, because a video was made anew and its shard was not, keeps the
row that it had in the provenance before. Nothing here needs the files in between, which may be consumed.

No times and no host names: the same sources, settings and versions give the same bytes. Cost: three tables and
some passes over their columns, O(number of videos).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.ledger import Ledger
from cope_prep.pipeline.redact import redacted
from cope_prep.schemas.arrow import MANIFEST, PROVENANCE
from cope_prep.schemas.errors import FormatError, SourceNotFoundError
from cope_prep.schemas.records import video_key

pc: Any = pyarrow.compute  # its functions are made when it is imported, where type checkers cannot see them

STAGES = ("reencode", "extract")
_OF_EXTRACT = ("extract_hash", "extracted_bytes", "extracted_crc32c", "extract_software")
_SPANS = pa.schema(
    [
        *(PROVENANCE.field(name) for name in ("video_id", "video_key", "shard")),
        *(PROVENANCE.field(name) for name in ("offset_bytes", "size_bytes", "num_gops")),
        pa.field("version", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What dataset.json says of provenance.parquet."""

    about: dict[str, Any]
    """Name, bytes, crc32c, the sets of software by stage, and how many videos lack which link."""
    sources_sha256: dict[str, str | None]
    """By shard: see `sources_digest`."""


def extraction_version(output_bytes: int, output_crc32c: int) -> str:
    """What the shards call the version of an extraction: it changes when other bytes come out."""
    return f"{output_bytes}-{output_crc32c:08x}"


def provenance_uri(layout: Layout) -> str:
    """URI of provenance.parquet."""
    return storage.join(layout.folder("shards"), "provenance.parquet")


def group_spans(rows: pa.Table) -> pa.Table:
    """Where each video is in a shard, in their order; `rows` is the shard's part of the index.

    Columns: `video_id`, `offset_bytes` of its first sample, `size_bytes` of all, `num_gops` int64.
    """
    columns = rows.select(["video_id", "offset_bytes", "size_bytes"])
    found = columns.group_by("video_id", use_threads=False).aggregate(
        [("offset_bytes", "min"), ("size_bytes", "sum"), ("size_bytes", "count")]
    )
    found = found.sort_by("offset_bytes_min")
    return pa.table(
        {
            "video_id": found["video_id"],
            "offset_bytes": found["offset_bytes_min"],
            "size_bytes": found["size_bytes_sum"],
            "num_gops": found["size_bytes_count"],
        }
    )


def spans_of(rows: pa.Table, *, shard: str, versions: dict[str, str]) -> pa.Table:
    """Where the videos of one shard are in it, one row each in their order; `rows` is its part of the index."""
    found = group_spans(rows)
    names = found["video_id"].to_pylist()
    made = {
        "video_id": names,
        "video_key": [video_key(name) for name in names],
        "shard": [shard] * len(names),
        "offset_bytes": found["offset_bytes"],
        "size_bytes": found["size_bytes"],
        "num_gops": found["num_gops"].cast(pa.int32()),
        "version": [versions.get(name, "") for name in names],
    }
    return pa.Table.from_pydict(made, schema=_SPANS)


def publish_provenance(layout: Layout, spans: Iterable[pa.Table]) -> Provenance:
    """Write provenance.parquet for the videos of all shards, in their order.

    Raises:
        FormatError: a ledger or the manifest cannot be read.
        StorageError: the store refused to read or write.
    """
    table = _chain(layout, pa.concat_tables([_SPANS.empty_table(), *spans]).combine_chunks())
    uri = provenance_uri(layout)
    storage.publish_table(uri, table)
    return Provenance(
        about={
            "name": "provenance.parquet",
            "bytes": storage.stat(uri).size_bytes,
            "crc32c": storage.crc32c(uri),
            "software": software_of(table),
            "unknown": num_unknown(table),
        },
        sources_sha256=sources_digests(table),
    )


def read_provenance(layout: Layout) -> pa.Table:
    """provenance.parquet.

    Raises:
        SourceNotFoundError: there is none.
        FormatError: it cannot be read.
    """
    return storage.read_table(provenance_uri(layout), PROVENANCE)


def software_of(table: pa.Table) -> dict[str, list[dict[str, str]]]:
    """The different sets of versions that made the outputs of each stage.

    Raises:
        FormatError: one is no JSON object of texts.
    """
    found = {}
    for stage in STAGES:
        texts = sorted(text for text in table[f"{stage}_software"].unique().to_pylist() if text is not None)
        try:
            found[stage] = [json.loads(text) for text in texts]
        except (ValueError, RecursionError) as exc:
            raise FormatError("provenance.parquet", f"has software that is no JSON ({exc})") from exc
        if not all(map(_is_versions, found[stage])):
            raise FormatError(
                "provenance.parquet", "has software that is no JSON object of names and versions"
            )
    return found


def _is_versions(about: Any) -> bool:
    return isinstance(about, dict) and all(isinstance(version, str) for version in about.values())


def num_unknown(table: pa.Table) -> dict[str, int]:
    """How many videos lack the hash of their source, and the versions that made them, by name of the column."""
    return {
        name: int(table[name].null_count)
        for name in ("source_sha256", "reencode_software", "extract_software")
    }


def sources_digests(table: pa.Table) -> dict[str, str | None]:
    """SHA-256 over `<video id> <source's sha256>` lines of each shard, in its order; None if one is not known."""
    columns = (table[name].to_pylist() for name in ("shard", "video_id", "source_sha256"))
    lines: dict[str, list[str] | None] = {}
    for shard, video_id, sha256 in zip(*columns, strict=True):
        known = lines.setdefault(shard, [])
        if sha256 is None:
            lines[shard] = None
        elif known is not None:
            known.append(f"{video_id} {sha256}\n")
    return {
        shard: None
        if found is None
        else hashlib.sha256("".join(found).encode("utf-8", "surrogatepass")).hexdigest()
        for shard, found in lines.items()
    }


def _chain(layout: Layout, spans: pa.Table) -> pa.Table:
    """The rows of `spans`, with what the ledgers and the provenance before say of them."""
    extracted = _rows(Ledger(layout.ledger("extract")).read(_LEDGER_COLUMNS), spans["video_id"])
    reencoded = _rows(Ledger(layout.ledger("reencode")).read(_LEDGER_COLUMNS), spans["video_id"])
    same = _equal(_versions(extracted["output_bytes"], extracted["output_crc32c"]), spans["version"])
    identity = pc.if_else(
        pc.equal(reencoded["source_sha256"], ""), reencoded["source_version"], reencoded["source_sha256"]
    )
    same_input = _all(
        same,
        _equal(reencoded["output_bytes"], extracted["source_size_bytes"]),
        _equal(identity, extracted["source_version"]),
    )
    sha256 = reencoded["source_sha256"]
    columns = {
        "source_uri": _uris(layout, spans["video_id"]),
        "source_bytes": pc.coalesce(reencoded["source_hashed_bytes"], reencoded["source_size_bytes"]),
        "source_sha256": pc.if_else(pc.equal(sha256, ""), pa.scalar(None, pa.string()), sha256),
        "reencode_hash": pa.repeat(layout.specs.hash_of("reencode"), len(spans)),
        "reencoded_bytes": reencoded["output_bytes"],
        "reencoded_crc32c": reencoded["output_crc32c"],
        "reencode_software": reencoded["software"],
        "extract_hash": pa.repeat(layout.specs.hash_of("extract"), len(spans)),
        "extracted_bytes": extracted["output_bytes"],
        "extracted_crc32c": extracted["output_crc32c"],
        "extract_software": extracted["software"],
    }
    before = _rows(_before(layout), spans["video_id"])
    was = _equal(_versions(before["extracted_bytes"], before["extracted_crc32c"]), spans["version"])
    for name, values in columns.items():
        known = same if name in _OF_EXTRACT else same_input
        nothing = pa.scalar(None, PROVENANCE.field(name).type)
        kept = pc.if_else(was, before[name], nothing)
        columns[name] = pc.if_else(known, values, kept)
    made = [spans[name] if name in spans.column_names else columns[name] for name in PROVENANCE.names]
    return pa.table([_whole(column) for column in made], schema=PROVENANCE)


_LEDGER_COLUMNS = (
    "video_id",
    "source_size_bytes",
    "source_version",
    "source_sha256",
    "source_hashed_bytes",
    "output_bytes",
    "output_crc32c",
    "software",
)


def _rows(table: pa.Table, video_ids: pa.ChunkedArray) -> pa.Table:
    """The row of each video; nulls where there is none."""
    return table.take(pc.index_in(_whole(video_ids), value_set=_whole(table["video_id"])))


def _before(layout: Layout) -> pa.Table:
    try:
        return read_provenance(layout)
    except (SourceNotFoundError, FormatError):
        return PROVENANCE.empty_table()


def manifest_uris(layout: Layout, video_ids: Any) -> list[str | None]:
    """Where the manifest says that the source of each video is, as it says it; None where it does not.

    Raises:
        FormatError: the manifest cannot be read.
    """
    try:
        manifest = storage.read_table(layout.manifest, MANIFEST, columns=["video_id", "uri"])
    except SourceNotFoundError:
        return [None] * len(video_ids)
    return _rows(manifest, video_ids)["uri"].to_pylist()


def _uris(layout: Layout, video_ids: Any) -> pa.Array:
    found = manifest_uris(layout, video_ids)
    return pa.array([None if uri is None else redacted(uri) for uri in found], pa.string())


def _versions(output_bytes: pa.ChunkedArray, crc32c: pa.ChunkedArray) -> pa.Array:
    pairs = zip(output_bytes.to_pylist(), crc32c.to_pylist(), strict=True)
    return pa.array(
        [None if size is None or crc is None else extraction_version(size, crc) for size, crc in pairs],
        pa.string(),
    )


def _equal(left: Any, right: Any) -> Any:
    """bool, False where one is null."""
    return pc.fill_null(pc.equal(_whole(left), _whole(right)), False)


def _all(*masks: Any) -> Any:
    both, *rest = masks
    for mask in rest:
        both = pc.and_(both, mask)
    return both


def _whole(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
