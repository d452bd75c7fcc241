"""Storage over an S3 that fails: what passes is overcome, what does not pass is one line, nothing is half there."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from cope_prep.pipeline import remote, remote_file, storage
from cope_prep.pipeline.probe import probe_source
from cope_prep.pipeline.retries import RetryPolicy
from cope_prep.schemas.errors import ConfigurationError, FormatError, SourceNotFoundError, StorageError

if TYPE_CHECKING:
    from types import ModuleType

    from s3_faults import FaultyS3

KINDS = ("500", "503", "stall", "lost", "cut", "short")
CONTENT = np.random.default_rng(1).bytes(3 << 20)
TABLE = pa.table({"x": pa.array(range(1000), pa.int64())})


@pytest.fixture
def s3(faulty_s3: FaultyS3, s3_faults: ModuleType) -> FaultyS3:
    """Without faults; each test chooses its own."""
    faulty_s3.faults = s3_faults.Faults()
    return faulty_s3


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> str:
    """A folder of the bucket for each test."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    return f"s3://bucket/{name}"


def first_of_each(kind: str, times: int = 1) -> Callable[[str, str], str | None]:
    """Each request fails so many times, then succeeds."""
    seen: Counter[tuple[str, str]] = Counter()

    def choose(method: str, path: str) -> str | None:
        seen[method, path] += 1
        return kind if seen[method, path] <= times else None

    return choose


def break_for_good(s3: FaultyS3, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPE_PREP_STORE_PATIENCE_S", "0.5")
    s3.faults.choose = lambda method, path: kind


@pytest.mark.parametrize("kind", KINDS)
def test_every_operation_overcomes_a_fault(
    s3: FaultyS3, folder: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    s3.faults.choose = first_of_each(kind)
    big, table = f"{folder}/sub/big", f"{folder}/sub/table.parquet"
    storage.publish_bytes(big, CONTENT)
    storage.publish_table(table, TABLE)
    assert storage.stat(big).size_bytes == len(CONTENT)
    assert storage.read_bytes(big) == CONTENT
    assert storage.read_table(table, TABLE.schema).equals(TABLE)
    assert storage.list_files(f"{folder}/sub") == ["big", "table.parquet"]
    assert storage.list_folders(folder) == ["sub"]
    assert storage.exists(big)
    assert storage.is_folder(folder)
    assert not storage.exists(f"{folder}/nothing")
    storage.remove(big)
    assert not storage.exists(big)
    remote.remove_folder(folder)
    assert not storage.is_folder(folder)
    assert s3.faults.counts[kind] >= 8
    messages = [one.getMessage() for one in caplog.records if one.name == "cope_prep.storage"]
    if kind != "lost":  # aiohttp itself asks again, once, when a connection that it kept is reset
        assert any(f"{big}: was written at attempt " in message for message in messages)
    assert all(one.levelno == logging.WARNING for one in caplog.records if one.name == "cope_prep.storage")


@pytest.mark.parametrize("kind", ["cut", "short"])
def test_reading_on_from_where_a_body_ended(s3: FaultyS3, folder: str, kind: str) -> None:
    """A body that is cut is not the end of the file, wherever in it: each read is all that was asked for."""
    uri = f"{folder}/x"
    storage.publish_bytes(uri, CONTENT)
    count = 0

    def every_second(method: str, path: str) -> str | None:
        nonlocal count
        count += method == "GET"
        return kind if method == "GET" and count % 2 else None

    s3.faults.choose = every_second
    with storage.open_read(uri) as file:
        assert [file.seek(0, os.SEEK_END), file.read(10), file.seek(-5, os.SEEK_CUR)] == [
            len(CONTENT),
            b"",
            len(CONTENT) - 5,
        ]
        assert file.read(10) == CONTENT[-5:]
        for offset in (2_000_000, 17, 1_000_000):
            assert file.seek(offset) == offset
            assert file.read(300_000) == CONTENT[offset : offset + 300_000]
            assert file.tell() == offset + 300_000
            assert file.read(7) == CONTENT[offset + 300_000 : offset + 300_007]
        file.seek(0)
        assert b"".join(iter(lambda: file.read(100_000), b"")) == CONTENT
    assert s3.faults.counts[kind] >= 5


def test_lines_of_a_remote_file(s3: FaultyS3, folder: str) -> None:
    lines = [b"%d\n" % number for number in range(100_000)]
    storage.publish_bytes(f"{folder}/lines", b"".join(lines))
    with storage.open_read(f"{folder}/lines") as file:
        assert list(file) == lines


@pytest.mark.parametrize("kind", ["503", "cut", "lost"])
def test_fault_that_stays_is_one_line(
    s3: FaultyS3, folder: str, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    uri = f"{folder}/x"
    storage.publish_bytes(uri, b"before")
    storage.publish_table(f"{folder}/t", TABLE)
    with storage.open_read(uri) as file:
        break_for_good(s3, kind, monkeypatch)
        # botocore's pools may still hold what was read ahead; nothing of this file was.
        with pytest.raises(
            StorageError, match=r"/x: could not be read in \d+ attempts over \d+ s \(the last: "
        ):
            file.read()
    operations: list[tuple[str, Callable[[], Any]]] = [
        ("opened", lambda: storage.open_read(uri)),
        ("opened", lambda: storage.read_table(f"{folder}/t", TABLE.schema)),
        ("examined", lambda: storage.stat(uri)),
        ("examined", lambda: storage.exists(uri)),
        ("listed", lambda: storage.list_files(folder)),
        ("written", lambda: storage.publish_bytes(uri, b"after")),
        ("removed", lambda: storage.remove(uri)),
    ]
    for action, operation in operations:
        if kind == "cut" and action == "removed":
            continue  # its answer has no body
        with pytest.raises(StorageError, match=rf"could not be {action} in \d+ attempts") as caught:
            operation()
        assert "\n" not in str(caught.value)


def test_table_whose_store_fails_midway_is_not_called_malformed(
    s3: FaultyS3, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{folder}/t.parquet"
    wide = pa.table({"x": pa.array(np.random.default_rng(2).integers(0, 1 << 60, 200_000))})
    storage.publish_table(uri, wide)
    monkeypatch.setenv("COPE_PREP_STORE_PATIENCE_S", "0.5")
    num_gets = 0

    def after_the_footer(method: str, path: str) -> str | None:
        nonlocal num_gets
        num_gets += method == "GET"
        return "503" if num_gets > 1 and method == "GET" else None

    s3.faults.choose = after_the_footer
    with pytest.raises(StorageError, match="could not be read") as caught:
        storage.read_table(uri, wide.schema)
    assert not isinstance(caught.value, FormatError)
    assert num_gets > 2


def test_local_table_on_a_failing_disk_is_not_called_malformed() -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        storage.read_table("/proc/self/mem", TABLE.schema)  # EIO at its beginning


def test_upload_that_arrives_cut_is_made_again(s3: FaultyS3, folder: str) -> None:
    """The store says 200 to half of the bytes."""
    uri = f"{folder}/x"
    s3.faults.choose = first_of_each("cut", times=2)
    storage.publish_bytes(uri, CONTENT)
    s3.faults.choose = None
    assert storage.read_bytes(uri) == CONTENT


def test_upload_in_parts_that_fails_leaves_nothing(
    s3: FaultyS3, folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    uri, part_bytes = f"{folder}/x", 5 << 20
    content = np.random.default_rng(3).bytes(3 * part_bytes + 17)
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, chunksize=None: part_bytes)
    # One part at a time: moto breaks when an upload is given up while a part of it arrives, and keeps it.
    monkeypatch.setattr(remote.filesystem(uri)[0], "max_concurrency", 1)
    s3.faults.choose = lambda method, path: "500" if "partNumber=3" in path else None
    monkeypatch.setenv("COPE_PREP_STORE_PATIENCE_S", "0.5")
    with pytest.raises(StorageError, match="could not be written"):
        storage.publish_bytes(uri, content)
    assert not storage.exists(uri)
    assert storage.list_files(folder) == []
    assert uploads() == []
    assert sum("partNumber=3" in path for _, path in s3.faults.requests) >= 2
    monkeypatch.setenv("COPE_PREP_STORE_PATIENCE_S", "30")
    once = iter(["reset"])
    s3.faults.choose = lambda method, path: next(once, None) if "partNumber=2" in path else None
    storage.publish_bytes(uri, content)
    assert s3.faults.counts["reset"] == 1
    assert storage.read_bytes(uri) == content
    assert uploads() == []


def uploads() -> list[Any]:
    """Unfinished uploads of the bucket."""
    fs: Any = remote.filesystem("s3://bucket")[0]
    return fs.list_multipart_uploads("bucket")


@pytest.mark.parametrize("size_bytes", [len(CONTENT), 1000])
def test_file_that_is_replaced_while_it_is_read_fails(s3: FaultyS3, folder: str, size_bytes: int) -> None:
    uri = f"{folder}/x"
    storage.publish_bytes(uri, CONTENT)
    with storage.open_read(uri) as file:
        assert file.read(10) == CONTENT[:10]
        storage.publish_bytes(uri, bytes(size_bytes))
        with pytest.raises(StorageError, match="was replaced while it was read"):
            file.read()


def test_file_that_is_replaced_in_a_store_without_conditions_fails() -> None:
    """What holds of all stores: a range that comes short is not the end of the file."""
    storage.publish_bytes("memory://replaced/x", CONTENT)
    file = storage.open_read("memory://replaced/x")
    assert file.read(10) == CONTENT[:10]
    with fsspec.filesystem("memory").open("/replaced/x", "r+b") as other:
        other.truncate(1000)
    with pytest.raises(StorageError, match="was replaced while it was read"):
        file.read()
    fsspec.filesystem("memory").rm("/replaced", recursive=True)


@pytest.mark.parametrize("code", ["AccessDenied", "NoSuchBucket", "NoSuchKey"])
def test_what_will_not_pass_fails_at_once(s3: FaultyS3, folder: str, code: str) -> None:
    if code == "AccessDenied":
        s3.faults.choose = lambda method, path: "403"
        with pytest.raises(StorageError, match=r"may not be opened .*Check the credentials"):
            storage.open_read(f"{folder}/x")
    elif code == "NoSuchKey":
        with pytest.raises(SourceNotFoundError, match="no such file"):
            storage.open_read(f"{folder}/x")
    else:
        with pytest.raises(StorageError, match=r"s3://not-there/x: cannot be written \(no such bucket\)"):
            storage.publish_bytes("s3://not-there/x", b"1")
    assert len(s3.faults.requests) <= 2  # s3fs looks whether it is a folder


def test_no_credentials_fail_at_once(monkeypatch: pytest.MonkeyPatch, s3: FaultyS3, folder: str) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    store = fsspec.get_filesystem_class("s3")
    store.clear_instance_cache()
    with pytest.raises(StorageError, match=r"cannot be examined .*[Cc]redentials"):
        storage.stat(f"{folder}/x")
    store.clear_instance_cache()
    assert s3.faults.requests == []


def test_video_of_a_store_that_fails_midway_is_not_called_truncated(
    s3: FaultyS3, folder: str, monkeypatch: pytest.MonkeyPatch, media: ModuleType, tmp_path: Path
) -> None:
    clip = media.write_clip(tmp_path / "clip.mp4", num_frames=60, size_px=(640, 480), painter=media.numbered)
    uri = f"{folder}/clip.mp4"
    storage.publish_bytes(uri, clip.read_bytes())
    s3.faults.choose = first_of_each("cut")
    assert probe_source(uri) == probe_source(uri)
    break_for_good(s3, "cut", monkeypatch)
    s3.faults.choose = lambda method, path: "cut" if method == "GET" else None
    with pytest.raises(StorageError, match="could not be read"):
        probe_source(uri)


def test_messages_show_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPE_PREP_STORE_PATIENCE_S", "0")
    uri = "http://anna:geheim@127.0.0.1:9/x?X-Amz-Signature=abcdef0123"
    for operation in (storage.stat, storage.open_read, storage.list_files, storage.remove):
        with pytest.raises(StorageError) as caught:
            operation(uri)
        assert "geheim" not in str(caught.value)
        assert "abcdef0123" not in str(caught.value)
        assert "127.0.0.1:9/x" in str(caught.value)


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_patience_that_is_no_number_fails(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("COPE_PREP_STORE_PATIENCE_S", text)
    with pytest.raises(ConfigurationError, match="COPE_PREP_STORE_PATIENCE_S: is"):
        storage.stat("memory://x")


def test_body_that_drips_ends_in_time(s3: FaultyS3, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 20 bytes a second each byte is an answer, so no limit on a stall ends it: 500 s for these."""
    storage.publish_bytes(f"{folder}/a", CONTENT[:10_000])
    monkeypatch.setattr(remote_file, "store_policy", lambda: RetryPolicy(attempts=1, timeout_s=1.0))
    with storage.open_read(f"{folder}/a") as file:
        s3.faults.choose = lambda method, path: "drip" if method == "GET" else None
        with pytest.raises(StorageError, match="no answer in time"):
            file.read(10_000)
