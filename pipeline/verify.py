"""Shards -> are they what they claim? Every file of a dataset against every other, sample by sample.

    dataset.json  against the specs of its folder, and against index.parquet
    each shard    its tar headers; keys unique; GOPs of a video side by side, in order, none left out
    each sample   verify_sample.py; and both ways against the index
    anchors       rebuilt (all, or a seeded sample), and compared with the re-encoded file where there is one
    counts        of what was read, against dataset.json

A broken dataset is a list of problems, never an exception. Memory: one sample, the index rows of one shard,
and a number for each video. Cost at 384 x 384: about 1 ms a GOP for bytes, index row and arrays, 0.4 ms an anchor
to rebuild, 0.35 ms a source frame to decode and compare.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import IO, Any

import google_crc32c

from cope_prep.pipeline import storage
from cope_prep.pipeline.finish import describe_index, read_dataset_json, spec_hashes, summarize
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.tar import END_OF_ARCHIVE, SampleSpan, scan
from cope_prep.pipeline.verify_index import IndexFile, KeyOrder, is_shard_name
from cope_prep.pipeline.verify_report import ProblemLog, VerifyCounts, VerifyReport
from cope_prep.pipeline.verify_sample import SampleChecker
from cope_prep.pipeline.verify_source import SourceComparison
from cope_prep.schemas.errors import CopePrepError, FormatError, SourceNotFoundError
from cope_prep.schemas.records import GopRecord
from cope_prep.schemas.specs import SCHEMA_VERSION

MAX_SAMPLE_BYTES = 1 << 31
"""A larger sample is not read into memory."""
MAX_JSON_BYTES = 1 << 24
"""A sample with a larger .json is not either: that of 1,199 windows is some 200 KB."""
_NO_MEMORY = "needs more memory than there is"

_SUMMED = {
    "frames": "num_frames",
    "iframe": "iframe_bytes",
    "motion": "motion_bytes",
    "residual": "residual_bytes",
}
"""Name in a sum of the dataset -> column of the index."""


def verify_dataset(
    layout: Layout,
    *,
    sample: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Check the shards of a dataset.

    `sample`: rebuild only so many GOPs, chosen by `seed`; everything else is checked for all of them.
    `progress` is called with (GOPs done, GOPs in the index).
    """
    return _Verifier(layout, sample=sample, seed=seed, progress=progress).run()


@dataclass(slots=True, kw_only=True)
class _Video:
    """The video whose samples are being read."""

    key: str = ""
    place: tuple[str, str, int] = ("", "", -1)
    """Shard, key and offset of its last sample."""
    num_frames: int = 0
    is_complete: bool = True
    """Every sample of it could be read."""
    is_short: bool = False
    """The last sample is not a full GOP."""


def _shard_entries(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What dataset.json says of each shard, by name."""
    entries = document.get("shards")
    return {
        entry["name"]: entry
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and isinstance(entry.get("name"), str)
    }


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
        self._progress = progress
        self._log = ProblemLog()
        self._counts = VerifyCounts()
        self._totals: Counter[str] = Counter()
        self._order = KeyOrder()
        self._samples = SampleChecker(layout, self._log)
        self._source = SourceComparison(layout)
        self._index: IndexFile | None = None
        self._chosen: set[str] | None = None
        self._video = _Video()

    def run(self) -> VerifyReport:
        """All checks, in the order of the module's docstring."""
        document = self._read_document()
        entries = _shard_entries(document)
        with contextlib.ExitStack() as stack:
            try:
                self._index = stack.enter_context(contextlib.closing(IndexFile(self._layout.index)))
                if self._sample is not None:
                    self._chosen = self._index.choose(self._sample, seed=self._seed)
            except SourceNotFoundError as exc:
                self._log.add("missing-file", str(exc))
            except CopePrepError as exc:
                self._log.add("unreadable", str(exc))
            except MemoryError:
                self._log.add("unreadable", f"index.parquet {_NO_MEMORY}")
            for name in self._shard_names(entries):
                self._check_shard(name, entries.get(name))
        self._log.at()
        self._counts.videos = self._order.num_videos
        self._check_counts(document)
        return self._log.report(self._counts)

    def _read_document(self) -> dict[str, Any]:
        """dataset.json, checked against the layout and index.parquet; {} if there is none."""
        layout, log = self._layout, self._log
        try:
            document = read_dataset_json(layout)
        except SourceNotFoundError as exc:
            log.add("missing-file", str(exc))
            return {}
        except CopePrepError as exc:
            log.add("unreadable", str(exc))
            return {}
        if document.get("schema_version") != SCHEMA_VERSION:
            found = document.get("schema_version")
            log.add("schema-version", f"dataset.json has schema version {found}, this is {SCHEMA_VERSION}")
        specs = {name: spec.model_dump(mode="json") for name, spec in layout.specs.upto("shards").items()}
        for name, expected in (("specs", specs), ("spec_hash", spec_hashes(layout))):
            if document.get(name) != expected:
                log.add("spec-hash", f"dataset.json has {name} {document.get(name)}, not {expected}")
        with contextlib.suppress(CopePrepError, OSError):  # opening it as a table will say so
            found = describe_index(layout.index)
            if document.get("index") != found:
                log.add("index", f"index.parquet is {found}, dataset.json is for {document.get('index')}")
        return document

    def _shard_names(self, entries: Mapping[str, object]) -> list[str]:
        """Shards that are there, or ought to be."""
        stored = [name for name in storage.list_files(self._layout.folder("shards")) if name.endswith(".tar")]
        indexed = self._index.shards if self._index else []
        names = []
        for name in sorted({*stored, *indexed, *entries}):
            self._log.at(name)
            if not is_shard_name(name):
                self._log.add("format", "is not a shard's name")
                continue
            names.append(name)
            if entries and name not in entries:
                self._log.add("index", "is not in dataset.json: run cope-prep shard")
        return names

    def _check_shard(self, name: str, entry: Mapping[str, Any] | None) -> None:
        log, uri = self._log, storage.join(self._layout.folder("shards"), name)
        log.at(name)
        rows = self._rows(name, uri)
        self._order.begin_shard()
        num_before = len(log)
        size_bytes = end_bytes = checksum = 0
        try:
            size_bytes = storage.stat(uri).size_bytes
            with storage.open_read(uri) as file:
                for span in scan(file, name=name):
                    log.at(name, span.key, span.offset_bytes)
                    try:
                        block = self._check_span(file, span, rows.pop(span.key, None), shard=name)
                    except MemoryError:
                        log.at(name, span.key, span.offset_bytes)
                        log.add("unreadable", f"is {span.size_bytes} bytes: {_NO_MEMORY}")
                        self._video.is_complete, block = False, b""
                    checksum = google_crc32c.extend(checksum, block)
                    end_bytes = span.offset_bytes + span.size_bytes
        except FormatError as exc:
            key = next((key for key, row in rows.items() if row["offset_bytes"] == end_bytes), "")
            log.at(name, key, end_bytes)
            log.add("tar", str(exc))
            self._video.is_complete = False
        except SourceNotFoundError as exc:
            log.at(name)
            log.add("missing-file", str(exc))
            return
        except (CopePrepError, OSError) as exc:
            log.at(name, "", end_bytes)
            log.add("unreadable", str(exc))
            self._video.is_complete = False
        self._end_video()
        self._counts.shards += 1
        self._totals["bytes"] += size_bytes
        for key, row in rows.items():
            log.at(name, key, row["offset_bytes"])
            log.add("index", "is in the index, but not in the readable part of the shard")
        log.at(name)
        if entry is None:
            return
        if entry.get("bytes") != size_bytes:
            log.add("tar", f"is {size_bytes} bytes, dataset.json says {entry.get('bytes')}")
        elif len(log) == num_before:
            checksum = google_crc32c.extend(checksum, END_OF_ARCHIVE)
            if entry.get("crc32c") != checksum:
                log.add("checksum", f"has crc32c {checksum}, dataset.json says {entry.get('crc32c')}")

    def _rows(self, shard: str, uri: str) -> dict[str, dict[str, Any]]:
        """The index rows of a shard by key; none if the shard cannot be read."""
        found: dict[str, dict[str, Any]] = {}
        try:
            shard_bytes = storage.stat(uri).size_bytes
        except CopePrepError:  # the caller will meet it, too
            return found
        try:
            for row in self._index.rows(shard, shard_bytes=shard_bytes) if self._index else []:
                if row["key"] in found:
                    self._log.at(shard, row["key"], row["offset_bytes"])
                    self._log.add("index", "has two rows in the index")
                found[row["key"]] = row
        except CopePrepError as exc:
            self._log.add("unreadable", str(exc))
        return found

    def _check_span(
        self, file: IO[bytes], span: SampleSpan, row: dict[str, Any] | None, *, shard: str
    ) -> bytes:
        """Check one sample; returns its bytes, empty if they were not read."""
        log, counts = self._log, self._counts
        counts.gops += 1
        if self._progress:
            self._progress(counts.gops, max(counts.gops, self._index.num_rows if self._index else 0))
        misplaced = self._order.check(span.key)
        if misplaced:
            log.add(*misplaced)
        if row is None and self._index and not misplaced:
            log.add("index", "is in the shard, but not in the index")
        if span.size_bytes > MAX_SAMPLE_BYTES:
            log.add("format", f"is {span.size_bytes} bytes; no sample is larger than {MAX_SAMPLE_BYTES}")
            return b""
        json_bytes = sum(member.size_bytes for member in span.members if member.name == "json")
        if json_bytes > MAX_JSON_BYTES:
            log.add("format", f"has a .json of {json_bytes} bytes; none is larger than {MAX_JSON_BYTES}")
            return b""
        file.seek(span.offset_bytes)
        block = file.read(span.size_bytes)
        record, found_row = self._samples.check(block, span, row, shard=shard)
        if found_row is not None:
            counts.windows += found_row["num_windows"]
            self._totals.update({name: found_row[column] for name, column in _SUMMED.items()})
        self._enter_video(span, record, shard=shard)
        if record is not None and (self._chosen is None or span.key in self._chosen):
            self._rebuild(record)
        return block

    def _rebuild(self, record: GopRecord) -> None:
        anchors = self._samples.rebuild(record)
        if anchors is None:
            return
        self._counts.gops_rebuilt += 1
        wrong = self._source.compare(record, anchors)
        if wrong is None:
            self._counts.gops_without_source += 1
            return
        self._counts.gops_compared += 1
        for message in wrong:
            self._log.add("source", message)

    def _enter_video(self, span: SampleSpan, record: GopRecord | None, *, shard: str) -> None:
        """Note the frames of a GOP: only the last GOP of a video may be short."""
        key = span.key.partition("_")[0]
        if key != self._video.key:
            self._end_video()
            self._video = _Video(key=key)
            self._log.at(shard, span.key, span.offset_bytes)
        video = self._video
        if video.is_short:
            self._log.add("adjacency", "follows a GOP that is not full")
        video.place = (shard, span.key, span.offset_bytes)
        video.num_frames += record.num_frames if record else 0
        video.is_complete &= record is not None
        video.is_short = record is not None and record.num_frames < self._layout.specs.encode.gop_size

    def _end_video(self) -> None:
        """Whether the samples of a video reach to the end of its re-encoded file."""
        video, self._video = self._video, _Video()
        if video.is_complete and self._chosen is None:
            wrong = self._source.finish_video(video.num_frames)
            if wrong:
                self._log.at(*video.place)
                self._log.add("source", wrong)

    def _check_counts(self, document: Mapping[str, Any]) -> None:
        if not document:
            return
        totals = Counter(self._totals)
        totals.update(videos=self._counts.videos, gops=self._counts.gops, windows=self._counts.windows)
        counts, sizes = summarize(totals, fps=self._layout.specs.encode.fps, total_bytes=totals["bytes"])
        for name, found in (("counts", asdict(counts)), ("bytes", asdict(sizes))):
            recorded = document.get(name)
            if recorded == found:
                continue
            recorded = recorded if isinstance(recorded, dict) else {}
            wrong = [
                f"{part} {recorded.get(part)} (found {value})"
                for part, value in found.items()
                if recorded.get(part) != value
            ]
            self._log.add("count", f"dataset.json has {name} {', '.join(wrong)}")
