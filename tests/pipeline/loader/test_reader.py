"""Samples out of local and remote shards: the right bytes, or an error that names shard, sample and offset."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import pickle
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from fsspec.implementations.http import HTTPFileSystem

from cope_prep.pipeline.loader.fetch import RetryPolicy
from cope_prep.pipeline.loader.prefetch import Prefetcher
from cope_prep.pipeline.loader.reader import Extent, ReadCounters, ShardReader, default_cache_dir
from cope_prep.pipeline.loader.stores import chunk_name
from cope_prep.pipeline.tar import END_OF_ARCHIVE, sample_bytes
from cope_prep.schemas.errors import (
    ChecksumError,
    ConfigurationError,
    FormatError,
    SourceNotFoundError,
    StorageError,
)

QUICK = RetryPolicy(attempts=2, first_wait_s=0.0, timeout_s=30.0)
NUM_SAMPLES = 12
CHUNK_SAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What an index says of a sample."""

    key: str
    offset_bytes: int
    content: bytes
    extent: Extent

    @property
    def crc32c(self) -> int:
        return google_crc32c.value(self.content)


def _shard(seed: int = 0, spec: str = "5" * 16) -> tuple[bytes, list[bytes]]:
    """A tar, and the bytes of its samples; the same sizes for every seed and spec."""
    rng = np.random.default_rng(seed)
    samples = []
    for index in range(NUM_SAMPLES):
        members = {
            "json": json.dumps({"spec_hash": spec}).encode(),
            "iframe.jpg": rng.bytes(700 + 300 * index),
        }
        samples.append(sample_bytes(f"{seed:016x}_{index:05d}", members))
    return b"".join(samples) + END_OF_ARCHIVE, samples


def _index(uri: str, content: bytes, samples: list[bytes], seed: int = 0) -> list[Sample]:
    rows = []
    offsets = np.cumsum([0, *map(len, samples)]).tolist()
    for index, sample in enumerate(samples):
        first = index - index % CHUNK_SAMPLES
        extent = Extent(
            uri=uri,
            shard_bytes=len(content),
            offset_bytes=offsets[first],
            size_bytes=offsets[first + CHUNK_SAMPLES] - offsets[first],
        )
        key = f"{seed:016x}_{index:05d}"
        rows.append(Sample(key=key, offset_bytes=offsets[index], content=sample, extent=extent))
    return rows


def _read(reader: ShardReader, sample: Sample, *, spec: str | None = None) -> bytes:
    return reader.read(
        sample.extent,
        sample.offset_bytes,
        len(sample.content),
        name=sample.key,
        crc32c=sample.crc32c,
        expected_spec=spec,
    )


def _extents(rows: list[Sample]) -> list[Extent]:
    """Each once, in order."""
    return list(dict.fromkeys(row.extent for row in rows))


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "shard-00000.tar"
    path.write_bytes(_shard()[0])
    return path


@pytest.fixture
def rows(shard: Path) -> list[Sample]:
    return _index(str(shard), *_shard())


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[ShardReader]:
    reader = _reader(tmp_path)
    yield reader
    reader.close()


def _reader(tmp_path: Path, **changes: Any) -> ShardReader:
    return ShardReader(cache_dir=str(tmp_path / "cache"), **{"cache_bytes": 10**7, "retry": QUICK, **changes})


def test_local_samples(reader: ShardReader, rows: list[Sample]) -> None:
    for row in rows:
        assert _read(reader, row) == row.content
    assert len(rows) == NUM_SAMPLES
    assert reader.counters == ReadCounters(bytes_read=sum(len(row.content) for row in rows))


def test_local_url(reader: ShardReader, shard: Path) -> None:
    row = _index(f"file://{shard}", *_shard())[1]
    assert _read(reader, row) == row.content


def test_local_reader_leaves_no_cache_folder(reader: ShardReader, rows: list[Sample], tmp_path: Path) -> None:
    reader.prefetch(_extents(rows))
    _read(reader, rows[0])
    assert not (tmp_path / "cache").exists()


def test_part_of_a_sample_without_a_checksum(reader: ShardReader, rows: list[Sample]) -> None:
    row = rows[4]
    found = reader.read(row.extent, row.offset_bytes + 512, 100, name=row.key)
    assert found == row.content[512:612]


def test_outside_the_extent_fails(reader: ShardReader, rows: list[Sample]) -> None:
    extent = rows[3].extent
    for offset_bytes, size_bytes in ((extent.offset_bytes - 1, 10), (extent.end_bytes - 9, 10)):
        with pytest.raises(ValueError, match="are not inside"):
            reader.read(extent, offset_bytes, size_bytes, name="k")


def _where(row: Sample) -> str:
    return rf"\(sample {row.key} at byte {row.offset_bytes}\)"


def test_missing_shard_fails(reader: ShardReader, shard: Path, rows: list[Sample]) -> None:
    shard.unlink()
    with pytest.raises(
        SourceNotFoundError, match=rf"shard-00000\.tar: no such shard {_where(rows[2])}\. Check"
    ):
        _read(reader, rows[2])


def test_truncated_shard_fails(reader: ShardReader, shard: Path, rows: list[Sample]) -> None:
    content = shard.read_bytes()
    os.truncate(shard, len(content) - 5000)
    words = f"is {len(content) - 5000} bytes, {len(content)} were recorded: truncated or replaced {_where(rows[2])}"
    with pytest.raises(FormatError, match=words):
        _read(reader, rows[2])
    shard.write_bytes(content)
    assert _read(reader, rows[2]) == rows[2].content


def test_shard_of_unknown_size_that_ends_too_early_fails(reader: ShardReader, shard: Path) -> None:
    row = _index(str(shard), *_shard())[-1]
    extent = Extent(
        uri=str(shard), shard_bytes=0, offset_bytes=row.extent.offset_bytes, size_bytes=row.extent.size_bytes
    )
    os.truncate(shard, row.offset_bytes + 100)
    with pytest.raises(FormatError, match=r"ends \d+ bytes too early"):
        reader.read(extent, row.offset_bytes, len(row.content), name=row.key)


def test_flipped_bit_fails(reader: ShardReader, shard: Path, rows: list[Sample]) -> None:
    content = bytearray(shard.read_bytes())
    row = rows[7]
    content[row.offset_bytes + 2000] ^= 4
    shard.write_bytes(content)
    with pytest.raises(
        ChecksumError, match=rf"were recorded: damaged {_where(row)}\. Run cope-prep verify"
    ) as e:
        _read(reader, row)
    assert e.value.subject == str(shard)
    assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value)
    assert _read(reader, rows[6]) == rows[6].content  # its neighbours are as they were
    content[row.offset_bytes + 2000] ^= 4
    shard.write_bytes(content)
    assert _read(reader, row) == row.content


def test_shard_of_other_samples_fails(reader: ShardReader, shard: Path, rows: list[Sample]) -> None:
    shard.write_bytes(_shard(seed=1, spec="6" * 16)[0])
    with pytest.raises(
        ChecksumError, match=f"holds sample {1:016x}_00002 of spec {'6' * 16} there: the shard was"
    ):
        _read(reader, rows[2])


def test_shard_of_another_spec_fails(reader: ShardReader, shard: Path, rows: list[Sample]) -> None:
    shard.write_bytes(_shard(spec="6" * 16)[0])
    with pytest.raises(ChecksumError, match=f"as made with spec {'6' * 16}, not {'5' * 16}, there"):
        _read(reader, rows[2], spec="5" * 16)


def test_shard_replaced_while_it_is_open_is_read_anew(
    reader: ShardReader, shard: Path, rows: list[Sample], tmp_path: Path
) -> None:
    _read(reader, rows[0])
    content, samples = _shard(seed=1)
    (tmp_path / "new").write_bytes(content)
    os.replace(tmp_path / "new", shard)
    row = _index(str(shard), content, samples, seed=1)[0]
    assert _read(reader, row) == row.content


def test_read_ahead_covers_each_extent_once(
    reader: ShardReader, rows: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    advised: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "cope_prep.pipeline.loader.stores.os.posix_fadvise",
        lambda fd, start, size, advice: advised.append((start, size)),
    )
    monkeypatch.setattr("cope_prep.pipeline.loader.stores._ADVICE_BYTES", 1000)
    first, second, third, _ = _extents(rows)
    reader.prefetch([first, second])
    reader.prefetch([first, second])
    assert [start for start, _ in advised] == [
        start for extent in (first, second) for start in range(extent.offset_bytes, extent.end_bytes, 1000)
    ]
    assert sum(size for _, size in advised) == first.size_bytes + second.size_bytes
    advised.clear()
    reader.prefetch([second, third])
    assert {start // third.offset_bytes for start, _ in advised} == {1}


def test_prefetch_of_a_missing_shard_is_left_to_the_read(
    reader: ShardReader, shard: Path, rows: list[Sample]
) -> None:
    shard.unlink()
    reader.prefetch(_extents(rows))
    with pytest.raises(SourceNotFoundError):
        _read(reader, rows[0])


def test_open_files_are_bounded(reader: ShardReader, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for index in range(300):
        (tmp_path / f"{index}.tar").write_bytes(b"%4d" % index)
        extent = Extent(uri=str(tmp_path / f"{index}.tar"), shard_bytes=4, offset_bytes=0, size_bytes=4)
        assert reader.read(extent, 0, 4, name="k") == b"%4d" % index
    assert len(os.listdir("/proc/self/fd")) - before == 256
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("wrong", [{"cache_bytes": 0}, {"prefetch_bytes": -1}, {"num_threads": 0}])
def test_settings_that_make_no_sense_fail(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=r"reader: \w+ is (0|-1), must be at least"):
        ShardReader(**wrong)  # pyright: ignore[reportArgumentType]


def test_default_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "COPE_PREP_CACHE"):
        monkeypatch.delenv(name, raising=False)
    assert default_cache_dir() == f"{tmp_path}/.cache/cope-prep/shards"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_cache_dir() == "/x/cope-prep/shards"
    monkeypatch.setenv("COPE_PREP_CACHE", "/y")
    assert default_cache_dir() == "/y"


@pytest.fixture
def server() -> Iterator[Any]:
    """A faulty HTTP server with one shard; fsspec's connections are dropped afterwards."""
    # By path, because in pytest's importlib mode test helpers are on no search path.
    path = Path(__file__).with_name("http_faults.py")
    spec = importlib.util.spec_from_file_location("tests_http_faults", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.serve({"/shard-00000.tar": _shard()[0]}) as server:
        yield server
        HTTPFileSystem.clear_instance_cache()


@pytest.fixture
def remote_rows(server: Any) -> list[Sample]:
    return _index(f"{server.url}/shard-00000.tar", *_shard())


def test_remote_samples_of_a_chunk_are_one_request(
    server: Any, reader: ShardReader, remote_rows: list[Sample]
) -> None:
    for row in remote_rows:
        assert _read(reader, row) == row.content
    extents = _extents(remote_rows)
    assert [asked for _, asked in server.requests] == [
        f"bytes={extent.offset_bytes}-{extent.end_bytes - 1}" for extent in extents
    ]
    assert reader.counters == ReadCounters(
        bytes_read=sum(len(row.content) for row in remote_rows),
        bytes_fetched=sum(extent.size_bytes for extent in extents),
        num_fetches=4,
        num_cache_hits=NUM_SAMPLES - 4,
    )


def test_second_reader_finds_all_in_the_cache(
    server: Any, reader: ShardReader, remote_rows: list[Sample], tmp_path: Path
) -> None:
    for row in remote_rows:
        _read(reader, row)
    second = pickle.loads(pickle.dumps(reader))
    for row in remote_rows:
        assert _read(second, row) == row.content
    assert len(server.requests) == 4
    assert second.counters.num_fetches == 0
    assert second.counters.num_cache_hits == NUM_SAMPLES
    second.close()


def test_many_threads_share_the_requests(server: Any, reader: ShardReader, remote_rows: list[Sample]) -> None:
    reader.prefetch(_extents(remote_rows))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: _read(reader, row), remote_rows * 4))
    assert found == [row.content for row in remote_rows * 4]
    assert len(server.requests) == 4


def test_prefetched_chunk_is_not_fetched_by_the_read(
    server: Any, reader: ShardReader, remote_rows: list[Sample]
) -> None:
    extents = _extents(remote_rows)
    reader.prefetch(extents)
    server.wait_for(4)  # all are on their way, or here
    for row in remote_rows:
        assert _read(reader, row) == row.content
        reader.prefetch(extents)
    assert len(server.requests) == 4
    assert reader.counters.num_fetches == 4
    assert reader.counters.num_cache_hits == NUM_SAMPLES


def test_prefetch_goes_no_further_than_its_budget(
    server: Any, remote_rows: list[Sample], tmp_path: Path
) -> None:
    first, second, third, fourth = _extents(remote_rows)
    reader = _reader(tmp_path, prefetch_bytes=second.size_bytes + third.size_bytes, num_threads=2)
    reader.prefetch([first, second, third, fourth])
    server.wait_for(2)
    _read(reader, remote_rows[0])
    server.wait_for(3)
    reader.close()
    starts = sorted(int(asked.split("=")[1].split("-")[0]) for _, asked in server.requests)
    assert starts == [first.offset_bytes, second.offset_bytes, third.offset_bytes]


def test_prefetch_without_a_budget_does_nothing(
    server: Any, remote_rows: list[Sample], tmp_path: Path
) -> None:
    reader = _reader(tmp_path, prefetch_bytes=0)
    reader.prefetch(_extents(remote_rows))
    reader.close()
    assert server.requests == []
    assert not (tmp_path / "cache").exists()


def test_what_is_wanted_no_more_is_not_begun() -> None:
    begun: queue.Queue[int] = queue.Queue()
    go_on = threading.Semaphore(0)

    def fetch(item: int) -> None:
        begun.put(item)
        go_on.acquire()

    prefetcher = Prefetcher(fetch, lambda _: 1, budget_bytes=3, num_threads=1)
    prefetcher.want([1, 2, 3, 4])
    assert begun.get() == 1
    prefetcher.want([1, 7, 8, 9])
    prefetcher.mark_read(7)  # by who could not wait
    go_on.release()
    assert begun.get() == 8
    go_on.release()
    assert begun.get() == 9  # 1, 8 and 9 are ahead
    prefetcher.want([1, 8, 9, 10])
    go_on.release(10)
    prefetcher.stop(timeout_s=60)
    assert begun.empty()


def _prefetch_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cope-prep-prefetch")]


def test_threads_come_with_the_first_prefetch_and_go_with_close(
    reader: ShardReader, remote_rows: list[Sample]
) -> None:
    _read(reader, remote_rows[0])
    assert _prefetch_threads() == []
    reader.prefetch(_extents(remote_rows))
    assert len(_prefetch_threads()) == 4
    reader.close()
    assert _prefetch_threads() == []
    assert _read(reader, remote_rows[-1]) == remote_rows[-1].content
    reader.prefetch(_extents(remote_rows))
    reader.close()


def test_threads_end_with_the_reader(remote_rows: list[Sample], tmp_path: Path) -> None:
    reader = _reader(tmp_path)
    reader.prefetch(_extents(remote_rows))
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("cope-prep-prefetch")]
    assert threads
    del reader
    for thread in threads:
        thread.join(60)
    assert _prefetch_threads() == []


def test_prefetch_that_fails_is_tried_again_by_the_read(
    server: Any, reader: ShardReader, remote_rows: list[Sample]
) -> None:
    server.faults = [404]
    reader.prefetch(_extents(remote_rows)[:1])
    server.wait_for(1)
    assert _read(reader, remote_rows[0]) == remote_rows[0].content
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (500, StorageError, "could not be read in 2 attempts over .*the last: .*500.*"),
        (403, StorageError, "may not be read"),
        (404, SourceNotFoundError, "no such shard"),
        ("whole", StorageError, "with the whole file"),
    ],
)
def test_remote_failure_names_shard_sample_and_offset(
    server: Any,
    reader: ShardReader,
    remote_rows: list[Sample],
    fault: int | str,
    error: type[Exception],
    words: str,
) -> None:
    server.forever = fault
    row = remote_rows[4]
    with pytest.raises(error, match=rf"shard-00000\.tar: .*{words}.* {_where(row)}"):
        _read(reader, row)
    server.forever = None
    assert _read(reader, row) == row.content


def test_remote_shard_that_is_truncated_fails(
    server: Any, reader: ShardReader, remote_rows: list[Sample]
) -> None:
    server.files["/shard-00000.tar"] = server.files["/shard-00000.tar"][:-9000]
    with pytest.raises(FormatError, match=rf"truncated or replaced {_where(remote_rows[-1])}"):
        _read(reader, remote_rows[-1])
    assert _read(reader, remote_rows[0]) == remote_rows[0].content


def test_full_cache_names_folder_and_shard(server: Any, remote_rows: list[Sample], tmp_path: Path) -> None:
    reader = _reader(tmp_path, cache_bytes=100)
    with pytest.raises(
        ConfigurationError, match=r"cache: the cache's limit.*sample .* of http://.*shard-00000\.tar"
    ):
        _read(reader, remote_rows[0])


def test_damaged_chunk_of_the_cache_is_fetched_again(
    server: Any, reader: ShardReader, remote_rows: list[Sample], tmp_path: Path
) -> None:
    row = remote_rows[4]
    _read(reader, row)
    path = tmp_path / "cache" / chunk_name(row.extent)
    damaged = bytearray(path.read_bytes())
    damaged[row.offset_bytes - row.extent.offset_bytes + 600] ^= 1
    path.write_bytes(damaged)
    assert _read(reader, row) == row.content
    assert len(server.requests) == 2
    assert _read(pickle.loads(pickle.dumps(reader)), row) == row.content
    assert len(server.requests) == 2


def test_remote_shard_that_was_replaced_fails_and_is_fetched_twice_only(
    server: Any, reader: ShardReader, remote_rows: list[Sample]
) -> None:
    server.files["/shard-00000.tar"] = _shard(seed=1)[0]
    for row in remote_rows[:CHUNK_SAMPLES]:
        with pytest.raises(ChecksumError, match=f"holds sample {1:016x}_.* of spec .*{_where(row)}"):
            _read(reader, row)
    assert len(server.requests) == 2


def _read_in_child(reader: ShardReader, rows: list[Sample], pipe: Any) -> None:
    reader.prefetch(_extents(rows))
    found = [_read(reader, row) for row in rows]
    pipe.send((found, reader.counters))
    reader.close()
    pipe.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_forked_children_of_a_parent_that_reads(
    server: Any, reader: ShardReader, rows: list[Sample], remote_rows: list[Sample]
) -> None:
    both = rows + remote_rows
    reader.prefetch(_extents(remote_rows)[:2])  # perhaps under way when the children are made
    _read(reader, rows[0])
    _read(reader, remote_rows[0])
    context = multiprocessing.get_context("fork")
    pipes = []
    for _ in range(3):
        here, there = context.Pipe()
        child = context.Process(target=_read_in_child, args=(reader, both, there))
        child.start()
        there.close()
        pipes.append((here, child))
    num_fetches = 0
    for here, child in pipes:
        found, counters = here.recv()
        here.close()
        child.join()
        assert child.exitcode == 0
        assert found == [row.content for row in both]
        assert counters.bytes_read == sum(map(len, found))
        num_fetches += counters.num_fetches
    assert [_read(reader, row) for row in both] == [row.content for row in both]
    assert num_fetches + reader.counters.num_fetches == 4
    assert len(server.requests) == 4
