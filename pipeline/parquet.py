"""Parquet from Python files, in this thread alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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
    return pq.ParquetFile(file, pre_buffer=False, **options)


def read_columns(file: Any, columns: Sequence[str] | None = None) -> pa.Table:
    """All columns of a Parquet file that is open for reading, or some.

    Raises:
        pa.ArrowInvalid, OSError: it is not a readable Parquet file, or lacks a column.
    """
    parquet = open_parquet(file)
    if missing := sorted(set(columns or ()) - set(parquet.schema_arrow.names)):
        raise pa.ArrowInvalid(f"has no column {', '.join(missing)}")
    return parquet.read(columns=None if columns is None else list(columns), use_threads=PARQUET_THREADS)
