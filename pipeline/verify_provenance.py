"""Can every shard be traced to its sources, its settings and the programs that made it?

    dataset.json   names provenance.parquet, its checksum, the software, and a digest of each shard's sources
    index.parquet  every video of every shard has one row, with the place that the index gives
    samples        the .json of each video's first sample (of all, or some) has the spec hash that is declared
    ledgers        if they are there: the last outputs are those that the shards hold
    sources        if asked: those that are still there have the recorded hash

It reads no frames and, but for those .json members, no shards: `verify` without --provenance does. A dataset
without provenance is one problem. Memory: a row a video. Tables that unfold to more rows than the shards can
have samples, or to more text than such rows need, are refused before they are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
from collections.abc import Callable, Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute

from cope_prep.pipeline import storage
from cope_prep.pipeline.finish import read_dataset_json
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.ledger import Ledger
from cope_prep.pipeline.provenance import (
    STAGES,
    group_spans,
    manifest_uris,
    num_unknown,
    provenance_uri,
    software_of,
    sources_digests,
)
from cope_prep.pipeline.provenance_report import ProvenanceCounts, ProvenanceReport
from cope_prep.pipeline.verify_index import IndexFile, is_shard_name, read_bounded, sample_place
from cope_prep.pipeline.verify_report import ProblemLog, VerifyCounts
from cope_prep.schemas.arrow import PROVENANCE
from cope_prep.schemas.errors import CopePrepError, FormatError, SourceNotFoundError
from cope_prep.schemas.redact import HIDDEN

pc: Any = pyarrow.compute  # its functions are made when it is imported, where type checkers cannot see them

_MAX_JSON_BYTES = 1 << 20
_Row = tuple[str, int, int, int]
"""Of a video in a shard: key, first byte, bytes, samples."""
_PLACE = ("offset_bytes", "size_bytes", "num_gops")
_CRC = {
    "reencode": ("reencoded_bytes", "reencoded_crc32c"),
    "extract": ("extracted_bytes", "extracted_crc32c"),
}


def verify_provenance(
    layout: Layout,
    *,
    sample: int | None = None,
    seed: int = 0,
    hash_sources: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ProvenanceReport:
    """Check what is recorded of the making of a dataset.

    `sample`: look at so many samples, chosen by `seed`; None: at the first one of every video. `progress` is
    called with (steps done, steps): one a video, and another one if its source is hashed.
    """
    return _Verifier(layout, sample=sample, seed=seed, progress=progress).run(hash_sources=hash_sources)


class _Verifier:
    def __init__(
        self,
        layout: Layout,
        *,
        sample: int | None,
        seed: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._layout = layout
        self._sample = sample
        self._seed = seed
        self._progress = progress or (lambda done, total: None)
        self._log = ProblemLog()
        self._counts = ProvenanceCounts()
        self._software: dict[str, list[dict[str, str]]] = {}
        self._num_steps = 0

    def run(self, *, hash_sources: bool) -> ProvenanceReport:
        """All checks, in the order of the module's docstring."""
        try:
            self._check(hash_sources=hash_sources)
        except SourceNotFoundError as exc:
            self._log.at()
            self._log.add("missing-file", str(exc))
        except MemoryError:  # Arrow's is an ArrowException, too
            self._log.at()
            self._log.add("unreadable", "its tables need more memory than there is")
        except (CopePrepError, pa.ArrowException, OSError) as exc:
            self._log.at()
            self._log.add("unreadable", str(exc))
        found = self._log.report(VerifyCounts())
        return ProvenanceReport(
            counts=self._counts,
            software=self._software,
            problems=found.problems,
            num_problems=found.num_problems,
        )

    def _check(self, *, hash_sources: bool) -> None:
        document = read_dataset_json(self._layout)
        about = document.get("provenance")
        if not isinstance(about, dict):
            self._log.add(
                "provenance",
                "dataset.json has none: an older version wrote it. Run cope-prep shard to add it.",
            )
            return
        with contextlib.closing(IndexFile(self._layout.index)) as index:
            sizes = self._shard_sizes(index)
            index.check_size(sum(sizes.values()))
            table = read_bounded(provenance_uri(self._layout), PROVENANCE, max_rows=index.num_rows)
            self._counts.videos = len(table)
            self._check_document(document, about, table)
            self._check_columns(table)
            names = ["shard", "video_id", "video_key", "offset_bytes", "size_bytes", "num_gops"]
            rows: dict[tuple[str, str], _Row] = {row[:2]: row[2:] for row in _tuples(table, names)}
            if len(rows) < len(table):
                self._log.add("provenance", f"{len(table) - len(rows)} videos have two rows in one shard")
            self._num_steps = len(rows) + (len(table) if hash_sources else 0)
            self._check_index(index, sizes, rows)
        for stage in STAGES:
            self._check_ledger(stage, table)
        if hash_sources:
            self._check_sources(table)

    def _shard_sizes(self, index: IndexFile) -> dict[str, int]:
        """Bytes of the index's shards, by name; none of those that are not there."""
        sizes = {}
        for shard in index.shards:
            self._log.at(shard)
            if not is_shard_name(shard):
                self._log.add("format", "is not a shard's name")
                continue
            try:
                sizes[shard] = storage.stat(self._shard_uri(shard)).size_bytes
            except SourceNotFoundError as exc:
                self._log.add("missing-file", str(exc))
            except CopePrepError as exc:
                self._log.add("unreadable", str(exc))
        self._log.at()
        return sizes

    def _shard_uri(self, shard: str) -> str:
        return storage.join(self._layout.folder("shards"), shard)

    def _check_document(self, document: dict[str, Any], about: dict[str, Any], table: pa.Table) -> None:
        uri, log = provenance_uri(self._layout), self._log
        found = {"bytes": storage.stat(uri).size_bytes, "crc32c": storage.crc32c(uri)}
        recorded = {name: about.get(name) for name in found}
        if recorded != found:
            log.add("checksum", f"provenance.parquet is {found}, dataset.json is for {recorded}")
        self._software = software_of(table)
        if about.get("software") != self._software:
            log.add("provenance", "dataset.json names other software than provenance.parquet")
        entries = document.get("shards")
        digests = {
            str(entry.get("name")): entry.get("sources_sha256")
            for entry in (entries if isinstance(entries, list) else [])
            if isinstance(entry, dict)
        }
        self._counts.shards = len(digests)
        expected = sources_digests(table)
        for name in sorted({*digests, *expected}):
            log.at(name)
            if digests.get(name) != expected.get(name):
                log.add(
                    "provenance", "dataset.json has another digest of its sources than provenance.parquet"
                )
        log.at()

    def _check_columns(self, table: pa.Table) -> None:
        """What is not known, one line a column; and the specs."""
        for name, number in num_unknown(table).items():
            if number:
                self._log.add("provenance", f"{name} of {number} of {len(table)} videos was not recorded")
        for stage in STAGES:
            expected = self._layout.specs.hash_of(stage)
            others = set(table[f"{stage}_hash"].unique().to_pylist()) - {expected, None}
            if others:
                self._log.add("spec-hash", f"{stage} was done with {sorted(others)}, not {expected}")

    def _check_index(
        self, index: IndexFile, sizes: dict[str, int], rows: dict[tuple[str, str], _Row]
    ) -> None:
        """Every video of the index against its row, and some of its samples."""
        log, left = self._log, dict(rows)
        chosen = self._chosen(rows)
        columns = ["video_id", "offset_bytes", "size_bytes"]
        unread = set(index.shards) - sizes.keys()  # a problem already
        for shard, shard_bytes in sizes.items():
            log.at(shard)
            try:
                spans = group_spans(index.table(shard, shard_bytes=shard_bytes, columns=columns))
            except FormatError as exc:
                log.add("unreadable", str(exc))
                unread.add(shard)
                continue
            for video_id, *place in _tuples(spans, ["video_id", *_PLACE]):
                key, *recorded = left.pop((shard, video_id), None) or ("",)
                log.at(shard, key, place[0])
                if not recorded:
                    log.add("provenance", f"{video_id} has no row in provenance.parquet")
                elif recorded != place:
                    wrong = [
                        name for name, one, other in zip(_PLACE, recorded, place, strict=True) if one != other
                    ]
                    log.add("provenance", f"{video_id} is elsewhere than its row says ({', '.join(wrong)})")
                self._progress(len(rows) - len(left), self._num_steps)
            if chosen is None or not chosen.isdisjoint(spans["video_id"].to_pylist()):
                self._check_samples(index, shard, shard_bytes, chosen)
        for (shard, video_id), (key, *_) in left.items():
            if shard not in unread:
                log.at(shard, key)
                log.add("provenance", f"{video_id} has a row in provenance.parquet, and no sample")
        log.at()

    def _chosen(self, rows: dict[tuple[str, str], _Row]) -> set[str] | None:
        if self._sample is None:
            return None
        videos = (video_id for _, video_id in rows)
        return set(heapq.nsmallest(self._sample, videos, key=lambda name: sample_place(name, self._seed)))

    def _check_samples(self, index: IndexFile, shard: str, shard_bytes: int, chosen: set[str] | None) -> None:
        """The .json of the first sample of each chosen video of a shard."""
        self._log.at(shard)
        expected = self._layout.specs.hash_of("extract")
        columns = ["key", "video_id", "gop_index", "offset_bytes", "members"]
        try:
            table = index.table(shard, shard_bytes=shard_bytes, columns=columns)
            firsts = table.filter(pc.equal(table["gop_index"], 0)).to_pylist()
            wanted = [row for row in firsts if chosen is None or row["video_id"] in chosen]
            with storage.open_read(self._shard_uri(shard)) as file:
                for row in wanted:
                    self._log.at(shard, row["key"], row["offset_bytes"])
                    about = _read_json(file, row)
                    self._counts.samples_read += 1
                    if about.get("spec_hash") != expected:
                        found = about.get("spec_hash")
                        self._log.add("spec-hash", f"was made with spec {found}, the dataset's is {expected}")
                    if about.get("video_id") != row["video_id"]:
                        found = about.get("video_id")
                        self._log.add("provenance", f"is a sample of {found}, not of {row['video_id']}")
        except SourceNotFoundError as exc:
            self._log.at(shard)
            self._log.add("missing-file", str(exc))
        except (CopePrepError, OSError, ValueError) as exc:
            self._log.add("unreadable", str(exc))

    def _check_ledger(self, stage: str, table: pa.Table) -> None:
        """The last outputs by the ledger, where there is one, are those of the shards."""
        columns = ["video_id", "status", "output_bytes", "output_crc32c"]
        ledger = Ledger(self._layout.ledger(stage)).read(columns)
        is_done = pc.not_equal(ledger["status"], "failed")
        is_here = pc.is_in(ledger["video_id"], value_set=table["video_id"].combine_chunks())
        ledger = ledger.filter(pc.and_(is_done, is_here))
        recorded = {name: (size, crc) for name, _, size, crc in _tuples(ledger, columns)}
        for video_id, shard, size, crc in _tuples(table, ["video_id", "shard", *_CRC[stage]]):
            last = recorded.get(video_id)
            if last is not None and crc is not None and last != (size, crc):
                self._log.at(shard)
                self._log.add(
                    "provenance",
                    f"{video_id} was done again by {stage} since, with other bytes. Run cope-prep run.",
                )
        self._log.at()

    def _check_sources(self, table: pa.Table) -> None:
        uris = manifest_uris(self._layout, table["video_id"])
        names = ["video_id", "shard", "source_uri", "source_sha256", "source_bytes"]
        for number, (video_id, shard, uri, sha256, size_bytes) in enumerate(_tuples(table, names), start=1):
            self._log.at(shard)
            place = uris[number - 1] or uri
            if place is None or sha256 is None:
                pass
            elif (
                HIDDEN in place
            ):  # of a source that the manifest no longer has: its credentials are in no table
                self._counts.sources_gone += 1
            else:
                self._check_source(video_id, place, sha256, size_bytes)
            self._progress(self._num_steps - len(table) + number, self._num_steps)
        self._log.at()

    def _check_source(self, video_id: str, uri: str, sha256: str, size_bytes: int | None) -> None:
        try:
            with storage.open_read(uri) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
                found_bytes = file.tell()
        except SourceNotFoundError:
            self._counts.sources_gone += 1
            return
        except (CopePrepError, OSError) as exc:
            self._log.add("unreadable", str(exc))
            return
        self._counts.sources_hashed += 1
        if found != sha256:
            self._log.add(
                "provenance", f"the source of {video_id} has changed since: sha256 {found}, recorded {sha256}"
            )
        elif size_bytes is not None and found_bytes != size_bytes:
            self._log.add(
                "provenance", f"the source of {video_id} is {found_bytes} bytes, recorded are {size_bytes}"
            )


def _tuples(table: pa.Table, names: list[str]) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[name].to_pylist() for name in names), strict=True)


def _read_json(file: IO[bytes], row: dict[str, Any]) -> dict[str, Any]:
    member = next((member for member in row["members"] if member["name"] == "json"), None)
    if member is None or not 0 < member["size_bytes"] <= _MAX_JSON_BYTES:
        raise FormatError(row["key"], "has no .json of a sane size")
    file.seek(member["offset_bytes"])
    try:
        about = json.loads(file.read(member["size_bytes"]))
    except (ValueError, RecursionError) as exc:
        raise FormatError(row["key"], f"has a .json that is malformed ({exc})") from exc
    if not isinstance(about, dict):
        raise FormatError(row["key"], "has a .json that is no object")
    return about
