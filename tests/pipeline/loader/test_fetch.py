"""Ranges over real HTTP and S3: what may pass is tried again, what will not is a clear error at once."""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.http import HTTPFileSystem

from cope_prep.pipeline.loader.fetch import RetryPolicy, fetch_range
from cope_prep.schemas.errors import ConfigurationError, FormatError, SourceNotFoundError, StorageError

CONTENT = bytes(range(256)) * 40
QUICK = RetryPolicy(attempts=3, first_wait_s=0.0, timeout_s=30.0)
IMPATIENT = RetryPolicy(attempts=3, first_wait_s=0.0, timeout_s=0.2)


def _http_faults() -> Any:
    # By path, because in pytest's importlib mode test helpers are on no search path.
    path = Path(__file__).with_name("http_faults.py")
    spec = importlib.util.spec_from_file_location("tests_http_faults", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def server() -> Iterator[Any]:
    """A faulty HTTP server with one shard of 10,240 bytes; fsspec's connections are dropped afterwards."""
    with _http_faults().serve({"/data/shard-00000.tar": CONTENT}) as server:
        yield server
        HTTPFileSystem.clear_instance_cache()


@pytest.fixture
def uri(server: Any) -> str:
    return f"{server.url}/data/shard-00000.tar"


def test_one_range_is_one_request(server: Any, uri: str) -> None:
    assert fetch_range(uri, 100, 3000) == CONTENT[100:3100]
    assert server.requests == [("/data/shard-00000.tar", "bytes=100-3099")]


def test_range_that_is_the_whole_file(uri: str) -> None:
    assert fetch_range(uri, 0, len(CONTENT)) == CONTENT


def test_whole_file_instead_of_a_range_that_is_the_whole_file(server: Any, uri: str) -> None:
    server.faults = ["whole"]
    assert fetch_range(uri, 0, len(CONTENT)) == CONTENT


@pytest.mark.parametrize("fault", [500, 503, 429, "reset", "short", "less", "stall"])
def test_fault_that_passes_is_overcome(
    server: Any, uri: str, fault: int | str, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults = [fault, fault]
    retry = IMPATIENT if fault == "stall" else QUICK
    with caplog.at_level(logging.WARNING, logger="cope_prep.loader"):
        assert fetch_range(uri, 100, 3000, retry=retry) == CONTENT[100:3100]
    assert len(server.requests) == 3
    messages = [record.getMessage() for record in caplog.records if record.name == "cope_prep.loader"]
    # aiohttp itself asks again once after a reset, so two of them may be one failure.
    assert len(messages) in ((1, 2) if fault == "reset" else (2,))
    assert uri in messages[0]
    assert "bytes 100 to 3099, attempt 1 of 3 failed" in messages[0]


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (500, "500"),
        (503, "503"),
        ("reset", "reset|disconnected"),
        ("short", "ClientPayloadError"),
        ("less", "1500 of 3000 bytes came"),
        ("stall", "no answer in time"),
    ],
)
def test_fault_that_stays_fails(server: Any, uri: str, fault: int | str, cause: str) -> None:
    server.forever = fault
    retry = IMPATIENT if fault == "stall" else QUICK
    with pytest.raises(
        StorageError, match=rf"bytes 100 to 3099 could not be read in 3 attempts.*({cause})"
    ) as e:
        fetch_range(uri, 100, 3000, retry=retry)
    assert e.value.subject == uri
    assert e.value.__cause__ is not None
    assert len(server.requests) in ((3, 6) if fault == "reset" else (3,))  # aiohttp asks again once
    assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value)


def test_missing_shard_fails_at_once(server: Any) -> None:
    with pytest.raises(SourceNotFoundError, match=r"shard-00009\.tar: no such shard"):
        fetch_range(f"{server.url}/data/shard-00009.tar", 0, 10, retry=QUICK)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "words"), [(403, "may not be read"), (401, "may not be read"), (400, "cannot")]
)
def test_refusal_fails_at_once(server: Any, uri: str, status: int, words: str) -> None:
    server.forever = status
    with pytest.raises(StorageError, match=rf"{words}.*{status}"):
        fetch_range(uri, 0, 10, retry=QUICK)
    assert len(server.requests) == 1


def test_server_without_ranges_fails_at_once(server: Any, uri: str) -> None:
    server.forever = "whole"
    with pytest.raises(StorageError, match=r"with the whole file.*Serve the shards"):
        fetch_range(uri, 100, 3000, retry=QUICK)
    assert len(server.requests) == 1


@pytest.mark.parametrize("offset_bytes", [len(CONTENT) - 10, len(CONTENT) + 10])
def test_truncated_shard_fails_at_once(server: Any, uri: str, offset_bytes: int) -> None:
    with pytest.raises(FormatError, match=r"is 10240 bytes long, .* truncated or replaced"):
        fetch_range(uri, offset_bytes, 100, retry=QUICK)
    assert len(server.requests) == 1


def test_nobody_listens_fails(server: Any, uri: str) -> None:
    server.close()
    with pytest.raises(StorageError, match="could not be read in 3 attempts"):
        fetch_range(uri, 0, 10, retry=QUICK)


def test_url_of_an_unknown_kind_fails() -> None:
    with pytest.raises(ConfigurationError, match="cannot be used"):
        fetch_range("nosuchprotocol://x/y", 0, 1)


def test_store_that_is_not_asynchronous() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe("/fetch/shard.tar", CONTENT)
    try:
        assert fetch_range("memory://fetch/shard.tar", 5, 10) == CONTENT[5:15]
        with pytest.raises(FormatError, match="truncated"):
            fetch_range("memory://fetch/shard.tar", len(CONTENT) - 5, 10)
        with pytest.raises(SourceNotFoundError):
            fetch_range("memory://fetch/nothing.tar", 5, 10)
    finally:
        fs.rm("/fetch", recursive=True)


def test_many_threads(server: Any, uri: str) -> None:
    server.faults = [500, "reset"]
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda start: fetch_range(uri, start, 64, retry=QUICK), range(0, 2048, 64)))
    assert b"".join(parts) == CONTENT[:2048]
    assert len(server.requests) == 34


def _fetch_in_child(uri: str, pipe: Any) -> None:
    pipe.send(fetch_range(uri, 7, 9, retry=QUICK))
    pipe.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_forked_child_of_a_parent_that_has_fetched(uri: str) -> None:
    assert fetch_range(uri, 7, 9) == CONTENT[7:16]
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_fetch_in_child, args=(uri, there))
    child.start()
    there.close()
    assert here.recv() == CONTENT[7:16]
    here.close()
    child.join()
    assert child.exitcode == 0
    assert fetch_range(uri, 7, 9) == CONTENT[7:16]


def test_waits_double_up_to_the_longest() -> None:
    retry = RetryPolicy(first_wait_s=1.0, longest_wait_s=5.0)
    for attempt, longest_s in [(1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0), (5000, 5.0)]:
        waits_s = [retry.wait_s(attempt) for _ in range(50)]
        assert longest_s / 2 <= min(waits_s) < max(waits_s) <= longest_s


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"first_wait_s": -1.0},
        {"first_wait_s": 3.0, "longest_wait_s": 2.0},
        {"timeout_s": 0.0},
    ],
)
def test_policy_that_makes_no_sense_fails(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"retry: .* is (0|-1\.0|3\.0|0\.0), must be"):
        RetryPolicy(**wrong)


@pytest.fixture
def s3_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Credentials for a local S3; AWS_ENDPOINT_URL is the standard way to name one, and s3fs honours it."""
    s3fs = pytest.importorskip("s3fs")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield monkeypatch
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3_bucket(s3_environment: pytest.MonkeyPatch, moto_s3: str) -> str:
    """A bucket on moto's server over real HTTP."""
    fs = fsspec.filesystem("s3")
    fs.mkdir("bucket")
    fs.pipe_file("bucket/data/shard-00000.tar", CONTENT)
    return "s3://bucket/data"


def test_s3(s3_bucket: str) -> None:
    uri = f"{s3_bucket}/shard-00000.tar"
    assert fetch_range(uri, 100, 3000, retry=QUICK) == CONTENT[100:3100]
    with pytest.raises(SourceNotFoundError, match="no such shard"):
        fetch_range(f"{s3_bucket}/shard-00009.tar", 0, 10, retry=QUICK)
    with pytest.raises(SourceNotFoundError, match="no such bucket"):
        fetch_range("s3://another-bucket/shard-00000.tar", 0, 10, retry=QUICK)
    for offset_bytes in (len(CONTENT) - 10, len(CONTENT) + 10):
        with pytest.raises(FormatError, match="is 10240 bytes long"):
            fetch_range(uri, offset_bytes, 100, retry=QUICK)


@pytest.mark.parametrize("fault", [503, "short", "reset", "less"])
def test_s3_that_fails_now_and_then(
    server: Any, uri: str, s3_environment: pytest.MonkeyPatch, fault: int | str
) -> None:
    s3_environment.setenv("AWS_ENDPOINT_URL", server.url)  # GET /bucket/key with a range: any server will do
    server.faults = [fault, fault]
    assert fetch_range("s3://data/shard-00000.tar", 100, 3000, retry=QUICK) == CONTENT[100:3100]
    assert len(server.requests) == 3


@pytest.mark.parametrize("fault", [503, "stall"])
def test_s3_that_keeps_failing_fails(
    server: Any, uri: str, s3_environment: pytest.MonkeyPatch, fault: int | str
) -> None:
    s3_environment.setenv("AWS_ENDPOINT_URL", server.url)
    server.forever = fault
    retry = IMPATIENT if fault == "stall" else RetryPolicy(attempts=2, first_wait_s=0.0)
    with pytest.raises(
        StorageError, match=r"s3://data/shard-00000\.tar: bytes 100 to 3099 could not be read in"
    ):
        fetch_range("s3://data/shard-00000.tar", 100, 3000, retry=retry)


def test_no_threads_of_the_server_are_left(server: Any, uri: str) -> None:
    fetch_range(uri, 0, 10)
    server.close()
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if "process_request" in name or "serve_forever" in name]
