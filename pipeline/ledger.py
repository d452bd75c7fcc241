"""What became of each video in a stage: an append-only table beside the stage's outputs.

    DATASET/<stage>/<spec hash>/ledger/part-<unix ms>-<random>.parquet

A run's driver is the only writer. It appends small parts, each published atomically, and merges its parts
into one from time to time; so a crash loses at most the rows of the last seconds, whose outputs the next run
makes again. When a video has several rows the last finished one counts, which also makes every step of a
merge harmless: rows that are in the merged part and in an old one are the same rows.

Reading is vectorised: one pass over all parts, O(n log n) in the number of rows.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cope_prep.pipeline import storage
from cope_prep.schemas.arrow import LEDGER
from cope_prep.schemas.errors import FormatError, SourceNotFoundError, StorageError

Status = Literal["ok", "partial", "failed"]

FLUSH_ROWS = 256
FLUSH_INTERVAL_S = 2.0
MERGE_PARTS = 128
"""A writer merges its ledger when it has appended this many parts: about every four minutes."""

_READ_ATTEMPTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """One video in one stage: the columns of `arrow.LEDGER`, in order."""

    video_id: str
    video_key: str
    stage: str
    spec_hash: str
    status: Status
    error_class: str = ""
    """Empty when ok."""
    error_message: str = ""
    notes: Sequence[str] = ()
    """What a user may want to know of an output that is there: rotated, HDR not mapped, several streams."""
    source_size_bytes: int
    """Size and version of the stage's input, as they were known when the work was planned."""
    source_version: str
    source_sha256: str = ""
    output_uri: str = ""
    """Empty when failed."""
    output_bytes: int = 0
    output_crc32c: int = 0
    num_frames: int = 0
    num_gops: int = 0
    duration_s: float = 0.0
    """Of the re-encoded video."""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    attempts: int = 1
    finished_unix_s: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(self.notes))  # Arrow hands out lists
        if self.status not in ("ok", "partial", "failed"):
            raise FormatError(self.video_id, f"has the status {self.status!r} in its ledger row")
        if (self.status == "failed") != (self.output_uri == ""):
            raise FormatError(self.video_id, f"is {self.status} with the output {self.output_uri!r}")


class Ledger:
    """The ledger of one stage and spec, in its folder."""

    def __init__(self, folder_uri: str) -> None:
        self.folder_uri = folder_uri

    def append(self, rows: Sequence[LedgerRow]) -> None:
        """Publish rows as one new part."""
        columns = {name: [getattr(row, name) for row in rows] for name in LEDGER.names}
        self._publish(pa.Table.from_pydict(columns, schema=LEDGER))

    def read(self) -> pa.Table:
        """One row a video, the last finished one; empty if nothing was recorded."""
        return last_finished(self._read_parts()[0])

    def compact(self) -> None:
        """Merge all parts into one. A crash in the middle leaves duplicates, which do not count."""
        table, names = self._read_parts()
        if len(names) < 2:
            return
        self._publish(last_finished(table))
        for name in names:
            storage.remove(storage.join(self.folder_uri, name))

    def _publish(self, table: pa.Table) -> None:
        name = f"part-{time.time_ns() // 1_000_000:013d}-{uuid.uuid4().hex[:12]}.parquet"
        storage.publish_table(storage.join(self.folder_uri, name), table)

    def _read_parts(self) -> tuple[pa.Table, list[str]]:
        for _ in range(_READ_ATTEMPTS):
            names = [name for name in storage.list_files(self.folder_uri) if name.endswith(".parquet")]
            try:
                parts = [storage.read_table(storage.join(self.folder_uri, name), LEDGER) for name in names]
            except SourceNotFoundError:
                continue  # the writer merged between our listing and our reading: its new part is there now
            return pa.concat_tables([LEDGER.empty_table(), *parts]), names
        raise StorageError(self.folder_uri, "changed during every attempt to read it", "Try again.")


def last_finished(table: pa.Table) -> pa.Table:
    """The last finished row of each video, in the order in which they finished."""
    keys = [("finished_unix_s", "ascending")]
    order = pc.sort_indices(table, sort_keys=keys)  # pyright: ignore[reportAttributeAccessIssue]
    ordered = table.take(order)
    numbered = pa.table({"video_id": ordered["video_id"], "row": np.arange(len(ordered))})
    last = numbered.group_by("video_id").aggregate([("row", "max")])["row_max"]
    return ordered.take(np.sort(last.to_numpy())).combine_chunks()


class LedgerWriter:
    """Buffers rows, and appends them every two seconds or 256 rows, and at the end whatever happens.

    Use it as a context manager; call `flush_if_due` while waiting for work, for it starts no thread.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._rows: list[LedgerRow] = []
        self._num_parts = 0
        self._flushed_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.flush()
        if exc_type is None:
            self._ledger.compact()

    def add(self, row: LedgerRow) -> None:
        """Record one row."""
        self._rows.append(row)
        self.flush_if_due()

    def flush_if_due(self) -> None:
        """Append what is buffered, if it is much or old."""
        if len(self._rows) >= FLUSH_ROWS or time.monotonic() - self._flushed_s >= FLUSH_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Append what is buffered."""
        if self._rows:
            self._ledger.append(self._rows)
            self._rows = []
            self._num_parts += 1
        if self._num_parts >= MERGE_PARTS:
            self._ledger.compact()
            self._num_parts = 0
        self._flushed_s = time.monotonic()


def rows_of(table: pa.Table) -> list[LedgerRow]:
    """The rows of a ledger table as records."""
    names = [field.name for field in fields(LedgerRow)]
    columns = [table[name].to_pylist() for name in names]
    return [LedgerRow(**dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]
