"""Where the bytes of shards come from: files of this machine, or chunks of remote shards in the local cache.

Both keep the files they read open, and read with pread, so threads share them. Both are of one process: a
forked child makes its own.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from cope_prep.pipeline import storage
from cope_prep.pipeline.loader.cache import ChunkCache
from cope_prep.pipeline.loader.fetch import fetch_range
from cope_prep.pipeline.loader.prefetch import Prefetcher
from cope_prep.pipeline.retries import RetryPolicy
from cope_prep.schemas.errors import CopePrepError, FormatError, SourceNotFoundError, StorageError

_LOG = logging.getLogger("cope_prep.loader")

_MAX_OPEN_SHARDS = 256

_MAX_OPEN_CHUNKS = 32
"""Fewer: the disk space of an evicted chunk comes back only when the last process closes it."""

_MAX_ADVISED = 4096
"""Chunks whose read-ahead is remembered: all that a shuffle has open at a time by default, and more."""

_ADVICE_BYTES = 128 << 10
"""One WILLNEED reads no more than the device's read-ahead, 128 KiB by default, however much it is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A chunk: a contiguous piece of a shard that is read in one go."""

    uri: str
    """Of the shard."""
    shard_bytes: int
    """Size that the whole shard must have; 0: not known."""
    offset_bytes: int
    size_bytes: int

    @property
    def end_bytes(self) -> int:
        """The first byte after it."""
        return self.offset_bytes + self.size_bytes


class _Handle:
    """An open file. Closed when its last user lets go, so no thread reads from a descriptor that is gone."""

    __slots__ = ("fd", "size_bytes")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size_bytes = os.fstat(fd).st_size

    def __del__(self) -> None:
        os.close(self.fd)


class _OpenFiles:
    """The handles used last, by key."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._handles: OrderedDict[Hashable, _Handle] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, key: Hashable) -> _Handle | None:
        with self._lock:
            handle = self._handles.get(key)
            if handle is not None:
                self._handles.move_to_end(key)
            return handle

    def add(self, key: Hashable, handle: _Handle) -> _Handle:
        with self._lock:
            self._handles[key] = handle
            self._handles.move_to_end(key)
            while len(self._handles) > self._limit:
                self._handles.popitem(last=False)
        return handle

    def drop(self, key: Hashable) -> None:
        with self._lock:
            self._handles.pop(key, None)

    def clear(self) -> None:
        with self._lock:
            self._handles.clear()


class LocalShards:
    """Shards that are files of this machine; the page cache is what its processes share."""

    def __init__(self) -> None:
        self._files = _OpenFiles(_MAX_OPEN_SHARDS)
        self._advised: OrderedDict[Extent, None] = OrderedDict()

    def read_into(self, out: memoryview, extent: Extent, offset_bytes: int) -> None:
        """Raises FormatError where the shard is not as long as recorded."""
        handle = self._files.find(extent.uri) or self._open(extent)
        if handle.size_bytes != extent.shard_bytes and extent.shard_bytes:
            self._files.drop(extent.uri)  # so that one put right is opened anew
            raise FormatError(
                extent.uri,
                f"is {handle.size_bytes} bytes, {extent.shard_bytes} were recorded: truncated or replaced",
            )
        try:
            num_bytes = os.preadv(handle.fd, [out], offset_bytes)
        except OSError as exc:
            raise StorageError(extent.uri, f"cannot be read ({exc.strerror})") from exc
        if num_bytes != len(out):
            self._files.drop(extent.uri)
            raise FormatError(
                extent.uri, f"ends {len(out) - num_bytes} bytes too early: truncated or replaced"
            )

    def forget(self, extent: Extent) -> bool:
        """Its bytes were wrong: the next read opens the shard again, which may be another file by now."""
        self._files.drop(extent.uri)
        return True

    def advise(self, extents: Iterable[Extent]) -> None:
        """Have the kernel read these ahead, unless they are among the last that were named."""
        for extent in extents:
            if extent in self._advised:
                self._advised.move_to_end(extent)
                continue
            self._advised[extent] = None
            if len(self._advised) > _MAX_ADVISED:
                self._advised.popitem(last=False)
            try:
                handle = self._files.find(extent.uri) or self._open(extent)
                for start in range(extent.offset_bytes, extent.end_bytes, _ADVICE_BYTES):
                    size_bytes = min(_ADVICE_BYTES, extent.end_bytes - start)
                    os.posix_fadvise(handle.fd, start, size_bytes, os.POSIX_FADV_WILLNEED)
            except (CopePrepError, OSError) as exc:  # whoever reads it gets the error
                _LOG.debug("no read-ahead of %s (%s)", extent, exc)

    def forget_advice(self) -> None:
        """Read ahead again what is named next."""
        self._advised.clear()

    def close(self) -> None:
        """Close all files; the next read opens them again."""
        self._files.clear()
        self._advised.clear()

    def _open(self, extent: Extent) -> _Handle:
        try:
            fd = os.open(storage.local_path(extent.uri), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as exc:
            raise SourceNotFoundError(
                extent.uri, "no such shard", "Check the path, or copy the shard there again."
            ) from exc
        except OSError as exc:
            raise StorageError(extent.uri, f"cannot be opened ({exc.strerror})") from exc
        return self._files.add(extent.uri, _Handle(fd))


class RemoteShards:
    """Chunks of remote shards, through the cache that the machine's processes share."""

    def __init__(
        self,
        cache: ChunkCache,
        *,
        retry: RetryPolicy,
        prefetch_bytes: int,
        num_threads: int,
        on_read: Callable[[bool], None],
        on_fetch: Callable[[int], None],
    ) -> None:
        """`on_read` is told of each read whether its chunk was here; `on_fetch` the bytes of each fetch."""
        self._cache = cache
        self._retry = retry
        self._on_read = on_read
        self._on_fetch = on_fetch
        self._files = _OpenFiles(_MAX_OPEN_CHUNKS)
        self._fetched_again: set[Extent] = set()
        self._prefetch_bytes = prefetch_bytes
        self._num_threads = num_threads
        self._prefetcher = self._new_prefetcher()

    def read_into(self, out: memoryview, extent: Extent, offset_bytes: int) -> None:
        """From the cache; the whole chunk is fetched if it is not there, or waited for if it is on its way."""
        self._prefetcher.mark_read(extent)
        handle = self._files.find(extent)
        is_here = True
        if handle is None:
            fd, is_here = self._get(extent)
            handle = self._files.add(extent, _Handle(fd))
        self._on_read(is_here)
        try:
            num_bytes = os.preadv(handle.fd, [out], offset_bytes - extent.offset_bytes)
        except OSError as exc:
            raise StorageError(self._cache.folder, f"cannot be read ({exc.strerror})") from exc
        if num_bytes != len(out):  # somebody cut the file while it was open
            self._files.drop(extent)
            raise StorageError(self._cache.folder, "holds a chunk that was cut short", "Run again.")

    def forget(self, extent: Extent) -> bool:
        """Its bytes were wrong: the next read fetches it again, if it was not for that reason already.

        Each sample of a replaced shard is wrong; two fetches of a chunk for each would be the network's end.
        """
        if extent in self._fetched_again:
            return False
        self._fetched_again.add(extent)
        self._files.drop(extent)
        self._cache.drop(chunk_name(extent))
        return True

    def prefetch(self, extents: Iterable[Extent]) -> None:
        """What is wanted next, soonest first."""
        self._prefetcher.want(extents)

    def close(self, *, timeout_s: float) -> None:
        """End the threads and close all files; the next read opens them again."""
        self._prefetcher.stop(timeout_s=timeout_s)
        self._prefetcher = self._new_prefetcher()
        self._files.clear()

    def _new_prefetcher(self) -> Prefetcher[Extent]:
        return Prefetcher(
            self._fetch_ahead,
            lambda extent: extent.size_bytes,
            # More than half of the cache ahead, and what is next would push out what is in use.
            budget_bytes=min(self._prefetch_bytes, self._cache.limit_bytes // 2),
            num_threads=self._num_threads,
        )

    def _fetch_ahead(self, extent: Extent) -> None:
        fd, _ = self._get(extent)
        os.close(fd)

    def _get(self, extent: Extent) -> tuple[int, bool]:
        """A descriptor of the chunk, and whether it was here."""
        is_here = True

        def fetch() -> bytes:
            nonlocal is_here
            is_here = False
            content = fetch_range(extent.uri, extent.offset_bytes, extent.size_bytes, retry=self._retry)
            self._on_fetch(len(content))
            return content

        return self._cache.get(chunk_name(extent), extent.size_bytes, fetch), is_here


def chunk_name(extent: Extent) -> str:
    """The name of a chunk in the cache.

    The shard's size is its version. A shard that was replaced by one of the same size has other checksums,
    and a chunk whose samples fail theirs is fetched again.
    """
    text = f"{extent.uri}\n{extent.shard_bytes}\n{extent.offset_bytes}\n{extent.size_bytes}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
