"""An append-only table: a folder of small Parquet files, each published atomically and never changed.

    <folder>/part-<unix ms>-<random>.parquet

A row is never taken back, so a merge may write the rows of several parts again, fewer of them if some no longer
count, and then delete those parts: a crash in between leaves rows twice. Who reads must not mind that.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from cope_prep.pipeline import storage
from cope_prep.schemas.errors import SourceNotFoundError, StorageError

_READ_ATTEMPTS = 5


class PartFolder:
    """The parts of one table, all of one schema."""

    def __init__(self, uri: str, schema: pa.Schema) -> None:
        self.uri = uri
        self._schema = schema

    def publish(self, table: pa.Table) -> None:
        """Write a new part.

        Raises:
            StorageError: the store refused.
        """
        name = f"part-{time.time_ns() // 1_000_000:013d}-{uuid.uuid4().hex[:12]}.parquet"
        storage.publish_table(storage.join(self.uri, name), table)

    def read(
        self,
        columns: Sequence[str] | None = None,
        *,
        known: Mapping[str, pa.Table] | None = None,
        where: pc.Expression | None = None,
    ) -> dict[str, pa.Table]:
        """The parts that are there, by name: all columns and rows, or some. Those that are known are not read.

        Raises:
            FormatError, SchemaVersionError: one is not such a table.
            StorageError: the store failed, or the parts changed during every attempt.
        """
        known = known or {}
        for _ in range(_READ_ATTEMPTS):
            names = [name for name in storage.list_files(self.uri) if name.endswith(".parquet")]
            try:
                return {
                    name: known[name] if name in known else self._read_part(name, columns, where)
                    for name in names
                }
            except SourceNotFoundError:
                continue  # a writer merged between our listing and our reading: its new part is there now
        raise StorageError(self.uri, "changed during every attempt to read it", "Try again.")

    def _read_part(self, name: str, columns: Sequence[str] | None, where: pc.Expression | None) -> pa.Table:
        part = storage.read_table(storage.join(self.uri, name), self._schema, columns=columns)
        return part if where is None else part.filter(where)

    def table(self, parts: Mapping[str, pa.Table], columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of all `parts`, which were read with these `columns`; none if there are no parts."""
        empty = self._schema.empty_table()
        return pa.concat_tables([empty if columns is None else empty.select(columns), *parts.values()])

    def merge(self, parts: Mapping[str, pa.Table], reduce: Callable[[pa.Table], pa.Table]) -> None:
        """Write what `reduce` leaves of `parts`, one or more that were read whole, as a new part, and delete them.

        Raises:
            StorageError: the store failed; no row is lost.
        """
        self.publish(reduce(pa.concat_tables(parts.values())))
        for name in parts:
            storage.remove(storage.join(self.uri, name))
