"""The chunk cache: one fetch a machine, nothing left by the killed, a limit that holds."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cope_prep.pipeline.loader.cache import ChunkCache
from cope_prep.pipeline.loader.shared_folder import LOCK_NAME
from cope_prep.schemas.errors import ConfigurationError, StorageError

CHUNK = bytes(range(100))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(params=["nameless", "named"])
def temporary(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With O_TMPFILE, and as on a file system without it: opening a folder with O_CREAT gives EISDIR."""
    if request.param == "named":
        monkeypatch.setattr(os, "O_TMPFILE", os.O_CREAT)
    return request.param


def _never() -> bytes:
    raise AssertionError("the chunk should have been there")


def _get(cache: ChunkCache, name: str, fetch: Callable[[], bytes] = lambda: CHUNK) -> bytes:
    fd = cache.get(name, len(CHUNK), fetch)
    try:
        return os.read(fd, 1000)
    finally:
        os.close(fd)


def _chunks(folder: Path) -> list[str]:
    """All files but the lock, hidden ones too."""
    return sorted(name for name in os.listdir(folder) if name != LOCK_NAME)


@contextmanager
def _script(text: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process; killed at the end if it still runs."""
    lines = ["import os, sys, threading", "from cope_prep.pipeline.loader import cache as cache_module"]
    lines += ["from cope_prep.pipeline.loader.cache import ChunkCache", text]
    process = subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines), *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_first_fetches_second_finds(folder: Path, temporary: str) -> None:
    cache = ChunkCache(str(folder), limit_bytes=1000)
    assert not cache.contains("a")
    assert _get(cache, "a") == CHUNK
    assert cache.contains("a")
    assert _get(cache, "a", _never) == CHUNK
    assert _get(ChunkCache(str(folder), limit_bytes=1000), "a", _never) == CHUNK
    assert cache.used_bytes() == len(CHUNK)
    assert _chunks(folder) == ["a"]


def test_descriptor_is_for_reading(folder: Path) -> None:
    fd = ChunkCache(str(folder), limit_bytes=1000).get("a", len(CHUNK), lambda: CHUNK)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(fd, b"x")
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_dropped_chunk_is_fetched_again(folder: Path) -> None:
    cache = ChunkCache(str(folder), limit_bytes=1000)
    _get(cache, "a")
    cache.drop("a")
    cache.drop("a")  # nothing to do
    assert cache.used_bytes() == 0
    assert _get(cache, "a", lambda: CHUNK[::-1]) == CHUNK[::-1]


@pytest.mark.parametrize("found_bytes", [0, 99, 101])
def test_chunk_of_another_size_is_replaced(folder: Path, temporary: str, found_bytes: int) -> None:
    folder.mkdir()
    (folder / "a").write_bytes(bytes(found_bytes))
    cache = ChunkCache(str(folder), limit_bytes=1000)
    assert cache.used_bytes() == found_bytes
    assert _get(cache, "a") == CHUNK
    assert cache.used_bytes() == len(CHUNK)


def test_many_threads_fetch_once(folder: Path, temporary: str) -> None:
    cache = ChunkCache(str(folder), limit_bytes=10_000)
    fetched: list[str] = []
    start = threading.Barrier(8)

    def ask(_: int) -> list[bytes]:
        start.wait()
        return [_get(cache, f"c{i}", lambda i=i: fetched.append(f"c{i}") or CHUNK) for i in range(20)]

    with ThreadPoolExecutor(8) as pool:
        assert all(contents == [CHUNK] * 20 for contents in pool.map(ask, range(8)))
    assert sorted(fetched) == sorted(f"c{i}" for i in range(20))
    assert cache.used_bytes() == 20 * len(CHUNK)


def test_after_a_failed_fetch_the_next_one_tries(folder: Path) -> None:
    cache = ChunkCache(str(folder), limit_bytes=1000)
    attempts: list[int] = []

    def fail_first() -> bytes:
        attempts.append(len(attempts))
        if len(attempts) == 1:
            raise OSError(errno.ECONNRESET, "the fetch's own error")
        return CHUNK

    def ask(_: int) -> bytes | str:
        try:
            return _get(cache, "a", fail_first)
        except OSError as exc:
            return str(exc.strerror)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(ask, range(4)))
    assert sorted(map(str, results)) == sorted([str(CHUNK)] * 3 + ["the fetch's own error"])
    assert attempts == [0, 1]


def test_fetch_of_another_size_fails(folder: Path) -> None:
    cache = ChunkCache(str(folder), limit_bytes=1000)
    with pytest.raises(StorageError, match="99 bytes were fetched, 100 were wanted"):
        _get(cache, "a", lambda: CHUNK[:-1])
    assert _chunks(folder) == []


MANY_CHUNKS = """
folder, log, num_chunks, limit_bytes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
cache = ChunkCache(folder, limit_bytes=limit_bytes)
def fetch(index):
    with open(log, "a") as file:
        file.write(f"{index}\\n")
    return bytes([index]) * 100
print("ready", flush=True)
sys.stdin.readline()
for index in range(num_chunks):
    fd = cache.get(f"c{index}", 100, lambda: fetch(index))
    assert os.read(fd, 1000) == bytes([index]) * 100
    os.close(fd)
    used = 0
    for name in os.listdir(folder):
        try:
            used += os.stat(f"{folder}/{name}").st_size if name[0] == "c" else 0
        except FileNotFoundError:
            pass
    assert used <= limit_bytes, used
print("done", flush=True)
"""


@contextmanager
def _several(num_processes: int, *args: object) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that run MANY_CHUNKS, all at the start line."""
    with ExitStack() as stack:
        processes = [stack.enter_context(_script(MANY_CHUNKS, *args)) for _ in range(num_processes)]
        for process in processes:
            assert _line(process) == "ready"
        yield processes


def test_many_processes_fetch_each_chunk_once(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with _several(4, folder, log, 60, 10_000) as processes:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [_line(process) for process in processes] == ["done"] * 4
    assert sorted(map(int, log.read_text().split())) == list(range(60))
    assert ChunkCache(str(folder), limit_bytes=10_000).used_bytes() == 6000


def test_limit_holds_with_many_processes(folder: Path, tmp_path: Path) -> None:
    with _several(4, folder, tmp_path / "log", 60, 1000) as processes:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [_line(process) for process in processes] == ["done"] * 4
    cache = ChunkCache(str(folder), limit_bytes=1000)
    assert cache.used_bytes() == 100 * len(_chunks(folder))
    assert 100 <= cache.used_bytes() <= 1000


BLOCK_IN_FETCH = """
def fetch():
    print("here", flush=True)
    sys.stdin.readline()
ChunkCache(sys.argv[1], limit_bytes=1000).get("a", 100, fetch)
"""

BLOCK_BEFORE_LINK = """
if sys.argv[2] == "named":
    os.O_TMPFILE = os.O_CREAT
def block(self, name, size_bytes, fd):
    print("here", os.fstat(fd).st_size, flush=True)
    sys.stdin.readline()
ChunkCache._admit = block
ChunkCache(sys.argv[1], limit_bytes=1000).get("a", 100, lambda: bytes(100))
"""


def test_killed_in_a_fetch(folder: Path) -> None:
    with _script(BLOCK_IN_FETCH, folder) as process:
        assert _line(process) == "here"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert os.listdir(folder) == [LOCK_NAME]
    assert _get(ChunkCache(str(folder), limit_bytes=1000), "a") == CHUNK


def test_one_who_waits_for_the_killed_fetches(folder: Path) -> None:
    with _script(BLOCK_IN_FETCH, folder) as process, ThreadPoolExecutor(2) as pool:
        assert _line(process) == "here"
        waiting = [pool.submit(_get, ChunkCache(str(folder), limit_bytes=1000), "a") for _ in range(2)]
        process.send_signal(signal.SIGKILL)
        assert [future.result() for future in waiting] == [CHUNK, CHUNK]


@pytest.mark.parametrize("kind", ["nameless", "named"])
def test_killed_before_the_chunk_has_its_name(folder: Path, kind: str) -> None:
    with _script(BLOCK_BEFORE_LINK, folder, kind) as process:
        assert _line(process) == "here 100"
        cache = ChunkCache(str(folder), limit_bytes=1000)
        assert cache.used_bytes() == 0  # its start leaves a living process's file alone
        assert _chunks(folder) == ([".tmp-a"] if kind == "named" else [])
        process.send_signal(signal.SIGKILL)
        process.wait()
    cache = ChunkCache(str(folder), limit_bytes=1000)
    assert cache.used_bytes() == 0
    assert _chunks(folder) == []
    assert _get(cache, "a") == CHUNK


FORK_IN_FETCH = """
def fetch():
    pid = os.fork()
    if pid == 0:
        sys.stdin.readline()
        os._exit(0)
    print(pid, flush=True)
    threading.Event().wait()
ChunkCache(sys.argv[1], limit_bytes=1000).get("a", 100, fetch)
"""


def test_lock_of_the_killed_is_not_kept_by_its_forked_child(folder: Path) -> None:
    with _script(FORK_IN_FETCH, folder) as process:
        child = int(_line(process))
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(child, 0)  # it lives
        assert _get(ChunkCache(str(folder), limit_bytes=1000), "a") == CHUNK


def test_longest_unused_goes_first(folder: Path) -> None:
    cache = ChunkCache(str(folder), limit_bytes=1000)
    for index in range(10):
        _get(cache, f"c{index}")
        os.utime(folder / f"c{index}", ns=(0, 1000 + (index * 7) % 10))  # order of use: 0 3 6 9 2 5 8 1 4 7
    _get(cache, "c0", _never)  # a hit is a use
    assert cache.used_bytes() == 1000
    _get(cache, "new")
    # Down to 90 % with the new one: two had to go.
    assert {f"c{index}" for index in range(10)} - set(_chunks(folder)) == {"c3", "c6"}
    assert cache.used_bytes() == 900
    _get(cache, "newer")
    assert len(_chunks(folder)) == 10


def test_evicted_chunk_stays_readable_for_who_has_it_open(folder: Path) -> None:
    cache = ChunkCache(str(folder), limit_bytes=150)
    fd = cache.get("a", len(CHUNK), lambda: CHUNK)
    _get(cache, "b")
    assert _chunks(folder) == ["b"]
    assert os.pread(fd, 1000, 0) == CHUNK
    os.close(fd)


def test_chunk_larger_than_the_limit_fails(folder: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"cache: the cache's limit is 99 bytes, and one chunk has 100"
    ):
        _get(ChunkCache(str(folder), limit_bytes=99), "a", _never)


def test_limit_that_makes_no_sense_fails(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="limit is 0 bytes"):
        ChunkCache(str(folder), limit_bytes=0)


def test_count_that_is_wrong_is_put_right_at_the_start(folder: Path) -> None:
    _get(ChunkCache(str(folder), limit_bytes=1000), "a")
    (folder / LOCK_NAME).write_bytes(b"\xff" * 7 + b"\x00")
    assert ChunkCache(str(folder), limit_bytes=1000).used_bytes() == len(CHUNK)


def _fill_disk(monkeypatch: pytest.MonkeyPatch, num_failures: int) -> list[int]:
    """The next writes find the disk full."""
    write = os.write
    failed: list[int] = []

    def write_or_fail(fd: int, content: bytes) -> int:
        if len(failed) < num_failures:
            failed.append(fd)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, content[:33])  # in parts, as a write may be

    monkeypatch.setattr("cope_prep.pipeline.loader.cache.os.write", write_or_fail)
    return failed


def test_full_disk_evicts_and_tries_again(
    folder: Path, temporary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ChunkCache(str(folder), limit_bytes=1000)
    for index in range(5):
        _get(cache, f"c{index}")
        os.utime(folder / f"c{index}", ns=(0, 1000 + index))
    failed = _fill_disk(monkeypatch, 1)
    assert _get(cache, "new") == CHUNK
    assert len(failed) == 1
    assert _chunks(folder) == ["c2", "c3", "c4", "new"]
    assert cache.used_bytes() == 400


def test_disk_that_stays_full_fails(folder: Path, temporary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ChunkCache(str(folder), limit_bytes=1000)
    _get(cache, "a")
    failed = _fill_disk(monkeypatch, 2)
    with pytest.raises(
        StorageError, match=r"cache: cannot cache a chunk of 100 bytes \(No space left.*Make room"
    ):
        _get(cache, "b")
    assert len(failed) == 2
    assert _chunks(folder) == []
    assert cache.used_bytes() == 0
    assert _get(cache, "b") == CHUNK  # there is room again


def test_folder_that_cannot_be_used_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"file/cache: cannot be used as a cache \(Not a directory\)"):
        ChunkCache(str(tmp_path / "file" / "cache"), limit_bytes=1000).used_bytes()


def test_folder_removed_while_in_use(folder: Path) -> None:
    cache = ChunkCache(str(folder), limit_bytes=1000)
    _get(cache, "a")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert _get(cache, "a") == CHUNK
    assert cache.used_bytes() == len(CHUNK)


@pytest.mark.parametrize("name", ["", ".lock", "../a", "a/b", ".tmp-a"])
def test_name_that_is_not_safe_fails(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a chunk"):
        _get(ChunkCache(str(folder), limit_bytes=1000), name)


def test_pickled(folder: Path) -> None:
    cache = ChunkCache(str(folder), limit_bytes=1000)
    _get(cache, "a")
    copy = pickle.loads(pickle.dumps(cache))
    assert _get(copy, "a", _never) == CHUNK
    assert (copy.folder, copy.limit_bytes) == (str(folder), 1000)


def test_no_descriptors_are_left(folder: Path, temporary: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    cache = ChunkCache(str(folder), limit_bytes=1000)
    for index in range(30):
        _get(cache, f"c{index}")
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_no_file_is_neither_counted_nor_evicted(folder: Path) -> None:
    (folder / "someone's" / "deep").mkdir(parents=True)
    (folder / "someone's" / "deep" / "file").write_bytes(CHUNK)
    os.utime(folder / "someone's", (0, 0))  # used longest ago
    cache = ChunkCache(folder=str(folder), limit_bytes=3 * len(CHUNK))
    assert cache.used_bytes() == 0
    for number in range(9):
        _get(cache, f"chunk{number}")
    assert 0 < cache.used_bytes() <= 3 * len(CHUNK)
    assert (folder / "someone's" / "deep" / "file").read_bytes() == CHUNK
