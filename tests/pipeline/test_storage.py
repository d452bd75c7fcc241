"""Storage: what is published appears whole or not at all, locally and through fsspec."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cope_prep.pipeline import storage
from cope_prep.schemas.arrow import MANIFEST, QUESTIONS
from cope_prep.schemas.errors import (
    ConfigurationError,
    FormatError,
    SchemaVersionError,
    SourceNotFoundError,
    StorageError,
    StoreRefusedError,
)
from cope_prep.schemas.specs import SCHEMA_VERSION


@pytest.fixture(params=["local", "file", "memory"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh folder in each kind of store."""
    if request.param == "memory":
        fs = fsspec.filesystem("memory")
        uri = f"memory://{tmp_path.name}"
        yield uri
        if fs.exists(f"/{tmp_path.name}"):
            fs.rm(f"/{tmp_path.name}", recursive=True)
    else:
        yield f"file://{tmp_path}" if request.param == "file" else str(tmp_path)


def test_publish_then_read_list_stat_remove(base: str) -> None:
    uri = storage.join(base, "a", "b.bin")
    assert not storage.exists(uri)
    storage.publish_bytes(uri, b"0123456789")
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b"0123456789"
    assert storage.read_bytes(uri, 3, 4) == b"3456"
    assert storage.read_bytes(uri, 8) == b"89"
    assert storage.stat(uri).size_bytes == 10
    assert storage.list_files(storage.join(base, "a")) == ["b.bin"]
    assert storage.list_folders(base) == ["a"]
    assert storage.list_files(base) == []
    assert storage.is_folder(storage.join(base, "a"))
    assert not storage.is_folder(uri)
    storage.remove(uri)
    storage.remove(uri)  # the second time there is nothing to do
    assert not storage.exists(uri)


def test_publish_replaces(base: str) -> None:
    uri = storage.join(base, "x")
    storage.publish_bytes(uri, b"old and long")
    before = storage.stat(uri)
    storage.publish_bytes(uri, b"new")
    assert storage.read_bytes(uri) == b"new"
    assert storage.stat(uri) != before


def test_published_version_tells_same_size_apart(base: str) -> None:
    uri = storage.join(base, "x")
    storage.publish_bytes(uri, b"1")
    before = storage.stat(uri)
    assert before.version
    if storage.is_local(uri):
        os.utime(storage.local_path(uri), ns=(0, 1))
    else:
        storage.publish_bytes(uri, b"2")
    after = storage.stat(uri)
    assert after.size_bytes == before.size_bytes
    assert after.version != before.version


def test_nothing_is_visible_before_the_end(base: str) -> None:
    uri = storage.join(base, "x")
    with storage.publish(uri) as path:
        Path(path).write_bytes(b"half")
        assert not storage.exists(uri)
        assert storage.list_files(base) == []
    assert storage.list_files(base) == ["x"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_nothing_and_keeps_the_old_file(base: str, error: type[BaseException]) -> None:
    uri = storage.join(base, "x")

    def fail_half_way() -> None:
        with storage.publish(uri) as path:
            Path(path).write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail_half_way()
    assert not storage.exists(uri)
    storage.publish_bytes(uri, b"old")
    with pytest.raises(error):
        fail_half_way()
    assert storage.read_bytes(uri) == b"old"
    if storage.is_local(base):
        assert os.listdir(storage.local_path(base)) == ["x"]


def test_publish_without_content_fails(base: str) -> None:
    uri = storage.join(base, "x")
    with pytest.raises(StorageError, match="cannot be written"), storage.publish(uri):
        pass
    assert not storage.exists(uri)


def test_publish_into_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="folder cannot be made"):
        storage.publish_bytes(str(tmp_path / "file" / "x"), b"1")


def test_remote_write_that_is_refused_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read-only bucket")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.put_file", refuse)
    with pytest.raises(StorageError, match="read-only bucket"):
        storage.publish_bytes("memory://refused/x", b"1")
    assert not storage.exists("memory://refused/x")


def test_tables_are_read_without_the_reader_that_aborts_at_exit(tmp_path: Path) -> None:
    """pyarrow.dataset's threads may outlive the read: a short process then ended with SIGABRT 1 time in 15."""
    uri = str(tmp_path / "manifest.parquet")
    storage.publish_table(uri, MANIFEST.empty_table())
    script = (
        "import sys; from cope_prep.pipeline import storage; from cope_prep.schemas.arrow import MANIFEST;"
        f"storage.read_table({uri!r}, MANIFEST); sys.exit('pyarrow.dataset' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_what_is_not_there_fails(base: str) -> None:
    uri = storage.join(base, "nothing")
    with pytest.raises(SourceNotFoundError):
        storage.stat(uri)
    with pytest.raises(SourceNotFoundError):
        storage.open_read(uri)
    with pytest.raises(SourceNotFoundError):
        storage.read_table(uri, MANIFEST)
    assert storage.list_files(uri) == []
    assert storage.list_folders(uri) == []
    assert not storage.is_folder(uri)


def test_listing_a_file_is_empty(base: str) -> None:
    uri = storage.join(base, "x")
    storage.publish_bytes(uri, b"1")
    assert storage.list_files(uri) == []


def test_url_of_an_unknown_kind_fails() -> None:
    with pytest.raises(ConfigurationError, match="cannot be used"):
        storage.exists("nosuchprotocol://x/y")


def test_table_round_trip_keeps_schema_and_version(base: str) -> None:
    uri = storage.join(base, "questions.parquet")
    table = pa.table(
        {
            "question_id": ["f:0"],
            "video_id": ["a.mp4"],
            "subset": ["s"],
            "data_source": ["s"],
            "kind": ["oe"],
            "turns": [[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]],
            "json_path": ["f"],
            "json_sha256": ["0"],
        },
        schema=QUESTIONS,
    )
    storage.publish_table(uri, table)
    back = storage.read_table(uri, QUESTIONS)
    assert back.equals(table)
    assert back.schema.metadata == QUESTIONS.metadata


def test_table_with_other_columns_fails(base: str) -> None:
    uri = storage.join(base, "t.parquet")
    storage.publish_table(uri, QUESTIONS.empty_table())
    with pytest.raises(SchemaVersionError, match="video_key"):
        storage.read_table(uri, MANIFEST)


WITH_LATER_COLUMNS = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("codec", pa.string()),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("rate", pa.float64()),
    ]
)


@pytest.mark.parametrize("missing", [["codec"], ["rate"], ["codec", "rate"]])
def test_nullable_column_that_an_older_table_lacks_is_null(base: str, missing: list[str]) -> None:
    uri = storage.join(base, "t.parquet")
    rows = [{"name": "a", "codec": "h264", "size_bytes": 1, "rate": 2.0}]
    table = pa.Table.from_pylist(rows, schema=WITH_LATER_COLUMNS)
    storage.publish_table(uri, table.drop_columns(missing))
    back = storage.read_table(uri, WITH_LATER_COLUMNS)
    assert back.schema.equals(WITH_LATER_COLUMNS)
    assert back.to_pylist() == [rows[0] | dict.fromkeys(missing)]


def test_table_without_a_column_that_may_not_be_null_fails(base: str) -> None:
    uri = storage.join(base, "t.parquet")
    storage.publish_table(uri, WITH_LATER_COLUMNS.empty_table().drop_columns(["codec", "size_bytes"]))
    with pytest.raises(SchemaVersionError, match=r"missing columns \['size_bytes'\], unknown columns \[\]"):
        storage.read_table(uri, WITH_LATER_COLUMNS)


def test_table_with_an_unknown_column_beside_a_missing_nullable_one_fails(base: str) -> None:
    uri = storage.join(base, "t.parquet")
    table = WITH_LATER_COLUMNS.empty_table().rename_columns(["name", "codecs", "size_bytes", "rate"])
    storage.publish_table(uri, table)
    with pytest.raises(SchemaVersionError, match=r"missing columns \[\], unknown columns \['codecs'\]"):
        storage.read_table(uri, WITH_LATER_COLUMNS)


def test_table_of_a_newer_version_fails(base: str) -> None:
    uri = storage.join(base, "t.parquet")
    newer = MANIFEST.with_metadata({"cope_prep.schema_version": str(SCHEMA_VERSION + 1)})
    storage.publish_table(uri, newer.empty_table())
    with pytest.raises(SchemaVersionError, match="Update cope-prep"):
        storage.read_table(uri, MANIFEST)


def test_table_that_is_no_parquet_fails(base: str) -> None:
    uri = storage.join(base, "t.parquet")
    storage.publish_bytes(uri, b"PAR1 but not really")
    with pytest.raises(FormatError, match="not a readable Parquet table"):
        storage.read_table(uri, MANIFEST)


def test_table_cut_short_fails(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(MANIFEST.empty_table(), path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FormatError):
        storage.read_table(str(path), MANIFEST)


def test_full_disk_while_the_caller_writes_is_a_storage_error(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    with (
        pytest.raises(StorageError, match=r"out\.bin: cannot be written \(No space left"),
        storage.publish(str(target)),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_the_caller_pass_through(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), storage.publish(str(tmp_path / "out.bin")):
        raise PermissionError(errno.EACCES, "not ours")


def test_a_bucket_that_is_not_there_is_not_made(moto_s3: str) -> None:
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    store.mkdir("storage-test")
    with pytest.raises(StorageError, match="cannot be written"):
        storage.publish_bytes("s3://not-there/folder/x", b"1")
    storage.publish_bytes("s3://storage-test/folder/x", b"1")
    store.invalidate_cache()
    assert "not-there" not in store.ls("")
    assert store.cat("storage-test/folder/x") == b"1"


def test_a_name_that_the_disk_refuses_is_one_line(tmp_path: Path) -> None:
    storage.publish_bytes(str(tmp_path / ("a" * 250 + ".html")), b"1")  # as long as a name may be
    with pytest.raises(StoreRefusedError, match="cannot be written"):
        storage.publish_bytes(str(tmp_path / ("a" * 260)), b"1")
    assert [len(name) for name in os.listdir(tmp_path)] == [255]
