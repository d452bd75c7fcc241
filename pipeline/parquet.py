"""Parquet from Python files, in this thread alone, and whether its columns are those of a schema."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cope_prep.schemas.errors import SchemaVersionError
from cope_prep.schemas.specs import SCHEMA_VERSION

MAX_ROWS = 1 << 26
"""No table of a dataset comes near it: LLaVA-Video-178K has 1.4 million samples."""
PARQUET_THREADS = False
"""`use_threads` of all that reads what `open_parquet` has opened."""


def open_parquet(file: Any, **options: Any) -> pq.ParquetFile:
    """A Parquet file in a Python file, to be read in this thread alone: `use_threads=PARQUET_THREADS`.

    A thread of pyarrow 26 lets go of a Python file a little after the read has returned. If the interpreter ends at
    that moment, the process aborts (SIGABRT, apache/arrow#34314): 1 in 15 of the commands that found nothing to do.
    `pq.read_table` has such threads whatever it is told, and `pre_buffer` has.

    Raises:
        pa.ArrowInvalid, OSError: it is not a readable Parquet file.
    """
    try:
        opened = _ParquetFile(file, pre_buffer=False, **options)
        if opened.metadata.num_rows > MAX_ROWS:  # some KB of a table can hold as many equal rows as they like
            raise pa.ArrowInvalid(f"it declares {opened.metadata.num_rows} rows, at most {MAX_ROWS} are read")
        return opened
    except (pa.ArrowException, UnicodeDecodeError) as exc:
        raise pa.ArrowInvalid(str(exc)) from exc


class _ParquetFile(pq.ParquetFile):
    """What it reads has valid text and valid indices, and every failure is ArrowInvalid, whatever the file holds.

    pyarrow looks at neither: text that is no UTF-8 raises where it is used, and a dictionary's index out of range
    reads foreign memory.
    """

    def read(self, *args: Any, **kwargs: Any) -> pa.Table:
        return self._checked(super().read, *args, **kwargs)

    def read_row_group(self, *args: Any, **kwargs: Any) -> pa.Table:
        return self._checked(super().read_row_group, *args, **kwargs)

    def _checked(self, read: Callable[..., pa.Table], *args: Any, **kwargs: Any) -> pa.Table:
        try:
            table = read(*args, **kwargs)
            table.validate(full=True)
        except (pa.ArrowException, UnicodeDecodeError) as exc:
            raise pa.ArrowInvalid(str(exc)) from exc
        return table


def read_columns(file: Any, columns: Sequence[str] | None = None) -> pa.Table:
    """All columns of a Parquet file that is open for reading, or some.

    Raises:
        pa.ArrowInvalid, OSError: it is not a readable Parquet file, or lacks a column.
    """
    parquet = open_parquet(file)
    if missing := sorted(set(columns or ()) - set(parquet.schema_arrow.names)):
        raise pa.ArrowInvalid(f"has no column {', '.join(missing)}")
    return parquet.read(columns=None if columns is None else list(columns), use_threads=PARQUET_THREADS)


def rows_of_video(
    table: pq.ParquetFile,
    video_id: str,
    columns: Sequence[str],
    *,
    row_groups: Iterable[int] | None = None,
) -> list[dict[str, Any]]:
    """The rows of one video in a table with a column `video_id`; other columns are read only where it is.

    `row_groups` are those that may hold it; None: all whose statistics do not rule it out.

    Raises:
        pa.ArrowInvalid, OSError: the table is damaged.
    """
    rows: list[dict[str, Any]] = []
    for group in range(table.num_row_groups) if row_groups is None else row_groups:
        if not _may_hold(table, group, video_id):
            continue
        read = partial(table.read_row_group, group, use_threads=PARQUET_THREADS)
        is_it = pc.equal(read(columns=["video_id"])["video_id"], video_id)  # pyright: ignore[reportAttributeAccessIssue]
        if pc.any(is_it).as_py():  # pyright: ignore[reportAttributeAccessIssue]
            rows += read(columns=list(columns)).filter(is_it).to_pylist()
    return rows


def _may_hold(table: pq.ParquetFile, group: int, video_id: str) -> bool:
    column = table.schema_arrow.names.index("video_id")
    # Columns of a Parquet file are leaves: those before this one are plain in all tables that have it.
    found = table.metadata.row_group(group).column(column)
    if found.path_in_schema != "video_id" or found.statistics is None or not found.statistics.has_min_max:
        return True
    return found.statistics.min <= video_id <= found.statistics.max


def check_schema(uri: str, found: pa.Schema, expected: pa.Schema) -> None:
    """Check a table's columns, in their order; nullable ones may be missing.

    Raises:
        SchemaVersionError: it was written by a newer version, or has other columns.
    """
    try:
        version = int((found.metadata or {}).get(b"cope_prep.schema_version", b"0"))
    except ValueError as exc:
        raise SchemaVersionError(uri, "has a schema version that is no number") from exc
    if version > SCHEMA_VERSION:
        raise SchemaVersionError(
            uri, f"has schema version {version}, this is {SCHEMA_VERSION}", "Update cope-prep."
        )
    required = [field for field in expected if not field.nullable or field.name in found.names]
    if not found.equals(pa.schema(required)):
        missing = sorted({field.name for field in required} - set(found.names))
        extra = sorted(set(found.names) - set(expected.names))
        raise SchemaVersionError(
            uri, f"is not the expected table (missing columns {missing}, unknown columns {extra})"
        )
