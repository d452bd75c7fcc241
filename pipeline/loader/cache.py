"""Chunks of remote shards on the local disk, shared by all processes of the machine, within a byte limit.

The folder holds one file a chunk, and `.lock`; files and locks are as in shared_folder.py. Byte 0 of `.lock`
guards the account, one byte far out, by hash of the name, each chunk. Who finds a chunk missing takes its lock,
looks again, and fetches.

The first 8 bytes of `.lock` count the bytes of the chunks. The count changes under the account's lock, before
the file appears, and each process counts afresh at its start and at each eviction, so it cannot drift. Eviction
removes the chunks whose last use (mtime) is longest ago until a tenth of the limit is free. Who has one open
keeps it: the disk space comes back when it is closed. A hit costs open, fstat and utime, and takes no lock.

Nothing is synced to disk: after a power cut a chunk may be short, which counts as absent, or damaged, which the
samples' checksums find. The folder must be on a local disk of one machine, and belong to one user.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator

from cope_prep.pipeline.loader.shared_folder import (
    LOCK_NAME,
    TEMPORARY_PREFIX,
    link_file,
    lock_byte,
    locked,
    unnamed_file,
)
from cope_prep.schemas.errors import ConfigurationError, StorageError

FREED_SHARE = 0.1
"""Of the limit: what an eviction makes free."""
_ACCOUNT_BYTE = 0
_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}
_SAFE_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,199}")
_COUNT = struct.Struct("<q")


class ChunkCache:
    """A folder of chunks. Holds no open files, so it may be pickled, forked and used from any thread."""

    def __init__(self, folder: str, *, limit_bytes: int) -> None:
        if limit_bytes < 1:
            raise ConfigurationError(folder, f"the cache's limit is {limit_bytes} bytes, must be positive")
        self._folder = os.path.abspath(folder)
        self._limit_bytes = limit_bytes
        self._started_pid = 0

    @property
    def folder(self) -> str:
        """Absolute path."""
        return self._folder

    @property
    def limit_bytes(self) -> int:
        """Of all chunks together."""
        return self._limit_bytes

    def get(self, name: str, size_bytes: int, fetch: Callable[[], bytes]) -> int:
        """A descriptor, for reading, of the chunk's file; the caller closes it.

        If the chunk is not there, `fetch` is called for its content: once on this machine, however many ask. Its
        errors pass through, and the next one who waits tries.

        Raises:
            ConfigurationError: the chunk is larger than the limit.
            StorageError: the folder cannot be written, or its disk is full of other things.
        """
        chunk_fd = self._open(name, size_bytes)
        if chunk_fd is not None:
            return chunk_fd
        if size_bytes > self._limit_bytes:
            raise ConfigurationError(
                self._folder,
                f"the cache's limit is {self._limit_bytes} bytes, and one chunk has {size_bytes}",
                "Raise the limit.",
            )
        self._start()
        with locked(self._folder, lock_byte(name)):
            chunk_fd = self._open(name, size_bytes)  # by who held the lock before
            if chunk_fd is not None:
                return chunk_fd
            content = fetch()
            if len(content) != size_bytes:
                raise StorageError(name, f"{len(content)} bytes were fetched, {size_bytes} were wanted")
            try:
                return self._store(name, content)
            except OSError as exc:
                raise StorageError(
                    self._folder,
                    f"cannot cache a chunk of {size_bytes} bytes ({exc.strerror or exc})",
                    "Make room, or choose another cache folder.",
                ) from exc

    def contains(self, name: str) -> bool:
        """True if a chunk of that name is there; `get` also checks its size."""
        return os.path.exists(self._path(name))

    def drop(self, name: str) -> None:
        """Remove a chunk that proved damaged; no error if it is not there."""
        self._start()
        with locked(self._folder, _ACCOUNT_BYTE) as lock_fd:
            self._unlink(lock_fd, name)

    def used_bytes(self) -> int:
        """Of all chunks together, those that are being written left out."""
        self._start()
        with locked(self._folder, _ACCOUNT_BYTE) as lock_fd:
            return _read_count(lock_fd)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_started_pid": 0}

    def _path(self, name: str) -> str:
        if not _SAFE_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a chunk")
        return f"{self._folder}/{name}"

    def _open(self, name: str, size_bytes: int) -> int | None:
        try:
            chunk_fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if os.fstat(chunk_fd).st_size != size_bytes:
            os.close(chunk_fd)
            return None
        with contextlib.suppress(PermissionError):  # another user's file: it will just seem old
            os.utime(chunk_fd)
        return chunk_fd

    def _store(self, name: str, content: bytes) -> int:
        """Write, make room, link; the caller holds the chunk's lock."""
        try:
            with self._written(name, content) as written_fd:
                return self._admit(name, len(content), written_fd)
        except OSError as exc:
            if exc.errno not in _FULL_ERRNOS:
                raise
        # The disk holds less than the limit allows: what was used longest ago goes, and once more.
        with locked(self._folder, _ACCOUNT_BYTE) as lock_fd:
            used_bytes = self._recount(lock_fd)
            self._evict(lock_fd, used_bytes - max(2 * len(content), int(used_bytes * FREED_SHARE)))
        with self._written(name, content) as written_fd:
            return self._admit(name, len(content), written_fd)

    @contextlib.contextmanager
    def _written(self, name: str, content: bytes) -> Iterator[int]:
        """A file without a name, or with a temporary one, that holds the content."""
        with unnamed_file(self._folder, name) as written_fd:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(written_fd, rest) :]
            yield written_fd

    def _admit(self, name: str, size_bytes: int, written_fd: int) -> int:
        """Make room for a written chunk and give it its name."""
        path = self._path(name)
        with locked(self._folder, _ACCOUNT_BYTE) as lock_fd:
            self._unlink(lock_fd, name)  # of the wrong size
            if _read_count(lock_fd) + size_bytes > self._limit_bytes:
                keep_bytes = int(self._limit_bytes * (1 - FREED_SHARE)) - size_bytes
                self._recount(lock_fd)
                self._evict(lock_fd, keep_bytes)
            # A process that dies between these two leaves a count too high, never a limit exceeded.
            _write_count(lock_fd, _read_count(lock_fd) + size_bytes)
            try:
                link_file(written_fd, self._folder, name, lock_fd=lock_fd)
                # Opened under the lock: an eviction by others cannot come between.
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                _write_count(lock_fd, _read_count(lock_fd) - size_bytes)
                raise

    def _start(self) -> None:
        """Once per process: the folder, what the dead left, and a fresh count."""
        if self._started_pid == os.getpid() and os.path.exists(f"{self._folder}/{LOCK_NAME}"):
            return
        try:
            os.makedirs(self._folder, exist_ok=True)
            with locked(self._folder, _ACCOUNT_BYTE) as lock_fd:
                for entry in os.listdir(self._folder):
                    if entry.startswith(TEMPORARY_PREFIX):
                        self._sweep(entry)
                self._recount(lock_fd)
        except OSError as exc:
            raise StorageError(
                self._folder,
                f"cannot be used as a cache ({exc.strerror or exc})",
                "Choose another cache folder.",
            ) from exc
        self._started_pid = os.getpid()

    def _sweep(self, entry: str) -> None:
        # The writer of a temporary file holds its chunk's lock: who gets the lock knows that it died.
        name = entry.removeprefix(TEMPORARY_PREFIX)
        with contextlib.suppress(BlockingIOError), locked(self._folder, lock_byte(name), wait=False):
            os.unlink(f"{self._folder}/{entry}")

    def _unlink(self, lock_fd: int, name: str) -> None:
        path = self._path(name)
        with contextlib.suppress(FileNotFoundError):
            size_bytes = os.stat(path).st_size
            os.unlink(path)
            _write_count(lock_fd, _read_count(lock_fd) - size_bytes)

    def _chunks(self) -> list[tuple[int, int, str]]:
        """Last use in ns, size and name of each."""
        chunks = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    about = entry.stat(follow_symlinks=False)
                    if not stat.S_ISREG(about.st_mode):  # not ours, whoever put it here
                        continue
                    chunks.append((about.st_mtime_ns, about.st_size, entry.name))
        return chunks

    def _recount(self, lock_fd: int) -> int:
        used_bytes = sum(size_bytes for _, size_bytes, _ in self._chunks())
        _write_count(lock_fd, used_bytes)
        return used_bytes

    def _evict(self, lock_fd: int, keep_bytes: int) -> None:
        """Remove chunks, those used longest ago first, until no more than keep_bytes are left."""
        for _, _, name in sorted(self._chunks()):
            if _read_count(lock_fd) <= max(keep_bytes, 0):
                break
            self._unlink(lock_fd, name)


def _read_count(lock_fd: int) -> int:
    found = os.pread(lock_fd, _COUNT.size, 0)
    return _COUNT.unpack(found)[0] if len(found) == _COUNT.size else 0


def _write_count(lock_fd: int, used_bytes: int) -> None:
    os.pwrite(lock_fd, _COUNT.pack(max(used_bytes, 0)), 0)
