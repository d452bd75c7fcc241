"""A table of parts: what is published is read, a known part is not read again, and a merge loses nothing."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from cope_prep.pipeline import storage
from cope_prep.pipeline.part_folder import PartFolder
from cope_prep.schemas.errors import SchemaVersionError, StorageError

SCHEMA = pa.schema([pa.field("name", pa.string(), nullable=False), pa.field("count", pa.int64())])


def rows(*names: str) -> pa.Table:
    return pa.table({"name": list(names), "count": list(range(len(names)))}, schema=SCHEMA)


@pytest.fixture
def folder(tmp_path: Path) -> PartFolder:
    return PartFolder(str(tmp_path / "parts"), SCHEMA)


def names_in(folder: PartFolder, parts: dict[str, pa.Table]) -> list[str]:
    return sorted(folder.table(parts)["name"].to_pylist())


def test_no_folder_is_an_empty_table(folder: PartFolder) -> None:
    assert folder.read() == {}
    assert folder.table({}).equals(SCHEMA.empty_table())
    assert folder.table({}, ["count"]).column_names == ["count"]


def test_parts_are_read_in_columns_and_rows(folder: PartFolder) -> None:
    folder.publish(rows("a", "b"))
    folder.publish(rows("c"))
    assert names_in(folder, folder.read()) == ["a", "b", "c"]
    some = folder.read(["count"])
    assert folder.table(some, ["count"]).column_names == ["count"]
    is_b = pc.equal(pc.field("name"), "b")  # pyright: ignore[reportAttributeAccessIssue]
    assert names_in(folder, folder.read(where=is_b)) == ["b"]


def test_known_part_is_not_read_and_a_new_one_is(folder: PartFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.publish(rows("a"))
    known = folder.read()
    folder.publish(rows("b"))
    read, uris = storage.read_table, []

    def noted(uri: str, *arguments: object, **options: object) -> pa.Table:
        uris.append(uri)
        return read(uri, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(storage, "read_table", noted)
    assert names_in(folder, folder.read(known=known)) == ["a", "b"]
    assert len(uris) == 1
    assert not uris[0].endswith(next(iter(known)))


def test_part_without_a_column_that_came_later_is_read_with_others(folder: PartFolder) -> None:
    storage.publish_table(storage.join(folder.uri, "part-0-old.parquet"), rows("old").select(["name"]))
    folder.publish(rows("new"))
    table = folder.table(folder.read())
    assert dict(zip(table["name"].to_pylist(), table["count"].to_pylist(), strict=True)) == {
        "old": None,
        "new": 0,
    }


def test_merge_leaves_one_part_of_what_counts(folder: PartFolder) -> None:
    for name in "abc":
        folder.publish(rows(name))
    folder.merge(folder.read(), lambda table: table.slice(1))
    assert len(storage.list_files(folder.uri)) == 1
    assert folder.table(folder.read()).num_rows == 2


def test_merge_that_cannot_delete_loses_nothing(folder: PartFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.publish(rows("a"))
    folder.publish(rows("b"))

    def refuse(uri: str) -> None:
        raise StorageError(uri, "cannot be removed")

    monkeypatch.setattr(storage, "remove", refuse)
    with pytest.raises(StorageError, match="cannot be removed"):
        folder.merge(folder.read(), lambda table: table)
    assert names_in(folder, folder.read()) == ["a", "a", "b", "b"]


def test_part_that_another_writer_publishes_meanwhile_outlives_a_merge(folder: PartFolder) -> None:
    folder.publish(rows("a"))
    folder.publish(rows("b"))
    parts = folder.read()
    folder.publish(rows("c"))
    folder.merge(parts, lambda table: table)
    assert names_in(folder, folder.read()) == ["a", "b", "c"]


def test_parts_that_never_hold_still_fail(folder: PartFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.publish(rows("a"))
    monkeypatch.setattr(storage, "list_files", lambda uri: ["part-0-gone.parquet"])
    with pytest.raises(StorageError, match="changed during every attempt"):
        folder.read()


def test_foreign_part_fails(folder: PartFolder) -> None:
    storage.publish_table(storage.join(folder.uri, "part-0-x.parquet"), pa.table({"other": [1]}))
    with pytest.raises(SchemaVersionError, match="missing columns"):
        folder.read()
