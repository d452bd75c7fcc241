"""Tables that cannot be read: the message names the one that is damaged, and what to do about it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stats_rows import Rows, write

from cope_prep.pipeline import stats_tables, storage
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.stats import dataset_stats
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.errors import FormatError, SchemaVersionError, StorageError
from cope_prep.schemas.specs import SCHEMA_VERSION


def test_index_of_a_newer_version_fails(copied: Rows) -> None:
    newer = INDEX.with_metadata({"cope_prep.schema_version": str(SCHEMA_VERSION + 1)})
    storage.publish_table(copied.layout.index, pa.Table.from_pylist(copied.gops, schema=newer))
    with pytest.raises(SchemaVersionError, match="Update cope-prep"):
        dataset_stats(copied.layout)


def test_index_with_other_columns_fails(copied: Rows) -> None:
    table = pa.Table.from_pylist(copied.gops, schema=INDEX).drop_columns(["psnr_y_db"])
    storage.publish_table(copied.layout.index, table)
    with pytest.raises(SchemaVersionError, match=r"missing columns \['psnr_y_db'\]"):
        dataset_stats(copied.layout)


def test_index_cut_short_fails(copied: Rows) -> None:
    path = Path(copied.layout.index)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FormatError, match=r"index\.parquet.*not a readable Parquet table"):
        dataset_stats(copied.layout)


def test_store_that_breaks_while_reading_fails(
    rows: Rows, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    layout = Layout(dataset=f"memory://{tmp_path.name}", specs=rows.layout.specs)

    def break_off(*_: object, **__: object) -> None:
        raise TimeoutError("no answer")

    try:
        write(dataclasses.replace(rows, layout=layout))
        monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.read", break_off)
        with pytest.raises(StorageError, match=r"manifest\.parquet: could not be read .*no answer"):
            dataset_stats(layout)
    finally:
        fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


def damage(path: Path, column: str) -> None:
    """Overwrite the pages of one column; the footer stays whole."""
    names = pq.read_schema(path).names
    content = bytearray(path.read_bytes())
    place = [
        pq.ParquetFile(path).metadata.row_group(0).column(n).path_in_schema.split(".")[0]
        for n in range(pq.ParquetFile(path).metadata.num_columns)
    ].index(column)
    assert column in names
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(place)
    first = chunk.dictionary_page_offset or chunk.data_page_offset
    content[first : first + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(
    ("table", "column", "remedy"),
    [
        ("manifest", "size_bytes", "cope-prep manifest"),
        ("questions", "kind", "cope-prep manifest"),
        ("index", "size_bytes", "cope-prep shard"),
        ("index", "psnr_y_db", "cope-prep shard"),  # which DuckDB does not read
    ],
)
def test_damaged_table_is_named(
    copied: Rows, tmp_path: Path, table: str, column: str, remedy: str, remote: bool
) -> None:
    layout = copied.layout
    path = {"manifest": layout.manifest, "questions": layout.questions, "index": layout.index}[table]
    damage(Path(path), column)
    if remote:
        layout = Layout(dataset=f"memory://{tmp_path.name}", specs=layout.specs)
        fsspec.filesystem("memory").put(copied.layout.dataset, f"/{tmp_path.name}", recursive=True)
    try:
        with pytest.raises(FormatError) as caught:
            dataset_stats(layout)
    finally:
        if remote:
            fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)
    assert str(caught.value).startswith(path.replace(copied.layout.dataset, layout.dataset))
    assert "is not a readable Parquet table" in str(caught.value)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_little_memory_is_no_damage(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats_tables, "MEMORY_LIMIT", "100kB")
    with pytest.raises(StorageError, match="too large for the memory"):
        dataset_stats(rows.layout)


def test_full_temporary_folder_is_no_damage(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that DuckDB has while it reads, although every table is whole."""
    import duckdb

    def refuse(*_: Any, **__: Any) -> None:
        raise duckdb.IOException("No space left on device")

    monkeypatch.setattr(stats_tables.Tables, "rows", refuse)
    with pytest.raises(StorageError, match=r"No space left on device.*TMPDIR"):
        dataset_stats(rows.layout)
