"""Videos that no run is to try again: those that killed their worker each time, and those that a user names.

    DATASET/quarantine/part-<unix ms>-<random>.parquet

An append-only table, as a ledger: several drivers may add to it at a time, each publishes parts of its own. The
last row of a video counts, and a release is a row. It belongs to the dataset, not to a spec: a file that crashes
the decoder does so at every size. A video whose source has changed since is not held.

Cost: one listing, and one read a part that was not read before; parts are merged when there are many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cope_prep.pipeline import storage
from cope_prep.pipeline.part_folder import PartFolder
from cope_prep.schemas.arrow import MANIFEST, QUARANTINE
from cope_prep.schemas.errors import SourceNotFoundError

POISON = frozenset({"WorkerDiedError", "MemoryLimitError", "TimeLimitError"})
"""Error classes that put a video in quarantine: it took its worker process with it, or would not end."""
MERGE_PARTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineEntry:
    """One video put in quarantine, or released from it: the columns of `arrow.QUARANTINE`, in order."""

    video_id: str
    source_size_bytes: int
    """Size and version of the source file, by the manifest: another file of the same name is not held."""
    source_version: str
    is_released: bool = False
    stage: str = ""
    """Where it failed; empty if a user has added it."""
    error_class: str = ""
    """Empty if a user has added it."""
    reason: str
    time_limit_s: float | None = None
    """Of a TimeLimitError: a run that allows more tries the video again."""
    memory_limit_bytes: int | None = None
    """The same of a MemoryLimitError."""
    recorded_unix_s: float

    def is_of(self, source: tuple[int, str] | None) -> bool:
        """True if it is about this (size in bytes, version)."""
        return source == (self.source_size_bytes, self.source_version)

    def holds(self, *, time_limit_s: float | None, memory_limit_bytes: int | None = None) -> bool:
        """True if a run is to leave the video out that has this time limit, or none, and is given so much memory.

        A run to which no memory limit was given allows what the one before did.
        """
        if self.is_released:
            return False
        if self.time_limit_s is not None:
            return time_limit_s is not None and time_limit_s <= self.time_limit_s
        if self.memory_limit_bytes is not None:
            return memory_limit_bytes is None or memory_limit_bytes <= self.memory_limit_bytes
        return True


class Quarantine:
    """The quarantine of one dataset."""

    def __init__(self, dataset: str) -> None:
        self.folder_uri = storage.join(dataset, "quarantine")
        self._folder = PartFolder(self.folder_uri, QUARANTINE)
        self._parts: dict[str, pa.Table] = {}
        """Those that were read: a part never changes."""

    def read(self) -> dict[str, QuarantineEntry]:
        """The last entry of each video, by id; a release counts as one."""
        return {entry.video_id: entry for entry in _entries(_last(self._folder.table(self._read_parts())))}

    def held(self, sources: Sources) -> dict[str, QuarantineEntry]:
        """Those in quarantine whose source is as it was then, by id."""
        entries = {name: entry for name, entry in self.read().items() if not entry.is_released}
        current = sources.find(list(entries))
        return {name: entry for name, entry in sorted(entries.items()) if entry.is_of(current.get(name))}

    def append(self, entries: Sequence[QuarantineEntry]) -> None:
        """Publish entries as one new part.

        An entry counts even if the clock of this machine is behind that of who wrote the one before.
        """
        if not entries:
            return
        before = self.read()
        rows = [
            {name: getattr(entry, name) for name in QUARANTINE.names}
            | {"recorded_unix_s": _after(before, entry)}
            for entry in entries
        ]
        self._folder.publish(pa.Table.from_pylist(rows, schema=QUARANTINE))
        parts = self._read_parts()
        if len(parts) > MERGE_PARTS:
            self._folder.merge(parts, _last)

    def _read_parts(self) -> dict[str, pa.Table]:
        self._parts = self._folder.read(known=self._parts)
        return self._parts


def _after(before: Mapping[str, QuarantineEntry], entry: QuarantineEntry) -> float:
    last = before.get(entry.video_id)
    if last is None:
        return entry.recorded_unix_s
    return max(entry.recorded_unix_s, float(np.nextafter(last.recorded_unix_s, np.inf)))


def _last(table: pa.Table) -> pa.Table:
    ordered = table.take(np.argsort(table["recorded_unix_s"].to_numpy(), kind="stable"))
    places = {video_id: place for place, video_id in enumerate(ordered["video_id"].to_pylist())}
    return ordered.take(pa.array(sorted(places.values()), pa.int64()))


def _entries(table: pa.Table) -> list[QuarantineEntry]:
    names = [field.name for field in fields(QuarantineEntry)]
    return [QuarantineEntry(**{name: row[name] for name in names}) for row in table.to_pylist()]


class Sources:
    """What the manifest says of some videos' files; read once, when it is first asked."""

    def __init__(self, manifest_uri: str) -> None:
        self._uri = manifest_uri
        self._table: pa.Table | None = None

    def find(self, video_ids: Sequence[str]) -> dict[str, tuple[int, str]]:
        """(size in bytes, version) by id, of those that are in the manifest; none if there is no manifest."""
        if not video_ids:
            return {}
        table = self._table = self._read() if self._table is None else self._table
        wanted = pa.array(list(video_ids), pa.string())
        is_in = pc.is_in(table["video_id"], value_set=wanted)  # pyright: ignore[reportAttributeAccessIssue]
        rows = table.filter(is_in).to_pylist()
        return {row["video_id"]: (row["size_bytes"], row["version"]) for row in rows}

    def _read(self) -> pa.Table:
        columns = ["video_id", "size_bytes", "version"]
        try:
            return storage.read_table(self._uri, MANIFEST, columns=columns)
        except SourceNotFoundError:
            return MANIFEST.empty_table().select(columns)
