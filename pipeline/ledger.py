"""What became of each video in a stage: an append-only table beside the stage's outputs.

    DATASET/<stage>/<spec hash>/ledger/part-<unix ms>-<random>.parquet

A run's driver is the only writer. It appends small parts, each published atomically, and merges its parts
into one from time to time; so a crash loses at most the rows of the last seconds, whose outputs the next run
makes again. When a video has several rows the last finished one counts, which also makes every step of a
merge harmless: rows that are in the merged part and in an old one are the same rows.

Reading is vectorised: one pass over all parts, O(n log n) in the number of rows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from types import TracebackType
from typing import Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cope_prep.pipeline.part_folder import PartFolder
from cope_prep.pipeline.patience import PATIENCE_S, PatientFlush
from cope_prep.schemas.arrow import LEDGER
from cope_prep.schemas.errors import FormatError, StorageError

Status = Literal["ok", "partial", "failed"]

FLUSH_ROWS = 256
MERGE_PARTS = 128
"""A writer merges its ledger when it has appended this many parts: about every four minutes."""

_JUST_AFTER_S = 1e-3

_logger = logging.getLogger("cope_prep")


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
    source_codec: str | None = None
    """This and the next four are of the source video, by the re-encoder's probe; None where it is not known."""
    source_width_px: int | None = None
    """Of the decoded picture, before it is turned."""
    source_height_px: int | None = None
    source_fps: float | None = None
    """By its header, as the duration."""
    source_duration_s: float | None = None
    node: str | None = None
    """Host name of the machine that worked on it; None where it is not known."""
    software: str | None = None
    """Versions of what made the output, as `software.software`; None of failures and where it is not known."""
    source_hashed_bytes: int | None = None
    """Size of the file that `source_sha256` is of, which may have replaced the manifest's; None as `software`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(self.notes))  # Arrow hands out lists
        if self.status not in ("ok", "partial", "failed"):
            raise FormatError(self.video_id, f"has the status {self.status!r} in its ledger row")
        if (self.status == "failed") != (self.output_uri == ""):
            raise FormatError(self.video_id, f"is {self.status} with the output {self.output_uri!r}")


class KnownRow(NamedTuple):
    """What planning needs of a LedgerRow, under the same names. 178,510 take a tenth of a second a column."""

    video_id: str
    status: Status
    error_class: str
    error_message: str
    source_size_bytes: int
    source_version: str
    source_sha256: str
    output_uri: str
    output_bytes: int
    output_crc32c: int
    duration_s: float
    finished_unix_s: float

    @classmethod
    def of(cls, row: LedgerRow) -> KnownRow:
        """The same of a whole row."""
        return cls(*(getattr(row, name) for name in cls._fields))


class Ledger:
    """The ledger of one stage and spec, in its folder."""

    def __init__(self, folder_uri: str) -> None:
        self.folder_uri = folder_uri
        self._folder = PartFolder(folder_uri, LEDGER)

    def append(self, rows: Sequence[LedgerRow]) -> None:
        """Publish rows as one new part."""
        columns = {name: [getattr(row, name) for row in rows] for name in LEDGER.names}
        self._folder.publish(pa.Table.from_pydict(columns, schema=LEDGER))

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """One row a video, the last finished one; empty if nothing was recorded. All columns, or some."""
        return LedgerFollower(self.folder_uri, columns).read()

    def read_known(self) -> list[KnownRow]:
        """As read, the columns of KnownRow alone."""
        table = self.read(KnownRow._fields)
        columns = (table[name].to_pylist() for name in KnownRow._fields)
        return [KnownRow(*values) for values in zip(*columns, strict=True)]

    def find(self, video_id: str) -> LedgerRow | None:
        """The last finished row of one video; None if there is none. Other videos are not kept in memory."""
        is_it = pc.equal(pc.field("video_id"), video_id)  # pyright: ignore[reportAttributeAccessIssue]
        rows = rows_of(last_finished(self._folder.table(self._folder.read(where=is_it))))
        return rows[0] if rows else None

    def compact(self) -> None:
        """Merge all parts into one. A crash in the middle leaves duplicates, which do not count."""
        parts = self._folder.read()
        if len(parts) > 1:
            self._folder.merge(parts, last_finished)


class LedgerFollower:
    """Reads a ledger again and again while it grows. A part never changes, so each is read once."""

    def __init__(self, folder_uri: str, columns: Sequence[str] | None = None) -> None:
        """All columns, or some."""
        self._folder = PartFolder(folder_uri, LEDGER)
        self._columns = list(LEDGER.names if columns is None else columns)
        self._parts: dict[str, pa.Table] | None = None
        self._table = LEDGER.empty_table()

    def read(self) -> pa.Table:
        """As Ledger.read: the same object as the last time, if no part has come or gone."""
        needed = list(dict.fromkeys((*self._columns, "video_id", "finished_unix_s")))
        parts = self._folder.read(needed, known=self._parts)
        if self._parts is None or parts.keys() != self._parts.keys():
            table = last_finished(self._folder.table(parts, needed))
            self._parts, self._table = parts, table.select(self._columns)
        return self._table


def last_finished(table: pa.Table) -> pa.Table:
    """The last finished row of each video, in the order in which they finished."""
    ordered = table
    finished_unix_s = table["finished_unix_s"].to_numpy()
    if not (finished_unix_s[1:] >= finished_unix_s[:-1]).all():
        ordered = table.take(np.argsort(finished_unix_s, kind="stable"))
    if pc.count_distinct(table["video_id"]).as_py() < len(table):  # pyright: ignore[reportAttributeAccessIssue]
        numbered = pa.table({"video_id": ordered["video_id"], "row": np.arange(len(ordered))})
        last = numbered.group_by("video_id").aggregate([("row", "max")])["row_max"]
        ordered = ordered.take(np.sort(last.to_numpy()))
    return ordered.combine_chunks()


class LedgerWriter:
    """Buffers rows, and appends them every two seconds or 256 rows, and at the end whatever happens.

    Use it as a context manager; call `flush_if_due` while waiting for work, for it starts no thread.

    Where the ledger cannot be written, rows are kept and tried again for `patience_s` (patience.py).

    A row counts from the moment it is written, whatever the clocks say: of a video that was recorded by a clock
    ahead of ours, or of ours before it was set right, the row gets a time just after that.
    """

    def __init__(self, ledger: Ledger, *, patience_s: float = PATIENCE_S) -> None:
        self._ledger = ledger
        self._rows: list[LedgerRow] = []
        self._num_parts = 0
        self._patient = PatientFlush(self._append, patience_s=patience_s, keeping="the rows")
        self._last: dict[str, float] = {}
        """When each video's last row says that it finished; 178,510 videos take about 30 MB."""

    def __enter__(self) -> Self:
        known = LedgerFollower(self._ledger.folder_uri, ["video_id", "finished_unix_s"]).read()
        # Of all videos, also where our clock is past it: the clock may be set back while we run.
        times = known["finished_unix_s"].to_pylist()
        self._last = dict(zip(known["video_id"].to_pylist(), times, strict=True))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._patient.at_end(stopped=exc_type is not None)
        if exc_type is None:
            self._compact()

    def add(self, row: LedgerRow) -> LedgerRow:
        """Record one row; returns it as it is recorded, with the time that it got.

        Raises:
            StorageError: the ledger could not be written for so long that it is given up.
        """
        last_s = self._last.get(row.video_id)
        if last_s is not None and row.finished_unix_s <= last_s:
            row = replace(row, finished_unix_s=last_s + _JUST_AFTER_S)
        self._last[row.video_id] = row.finished_unix_s
        self._rows.append(row)
        self.flush_if_due()
        return row

    def flush_if_due(self) -> None:
        """Append what is buffered, if it is much or old.

        Raises:
            StorageError: as `add`.
        """
        self._patient.if_due(is_much=len(self._rows) >= FLUSH_ROWS)

    def _append(self) -> None:
        if self._rows:
            self._ledger.append(self._rows)
            self._rows = []
            self._num_parts += 1
        if self._num_parts >= MERGE_PARTS:
            self._compact()
            self._num_parts = 0

    def _compact(self) -> None:
        try:
            self._ledger.compact()
        except StorageError as exc:  # all rows are there, in more parts than need be
            _logger.warning("%s; the parts of the ledger stay as they are", exc)


def rows_of(table: pa.Table) -> list[LedgerRow]:
    """The rows of a ledger table as records."""
    names = [field.name for field in fields(LedgerRow)]
    columns = [table[name].to_pylist() for name in names]
    return [LedgerRow(**dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]
