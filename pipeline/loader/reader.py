"""Bytes of samples, checked, from shards on this machine or from remote ones through the chunk cache.

Samples are read chunk by chunk (`Extent`). Of a local shard the kernel is told to read the whole chunk ahead,
and each sample is one pread: the page cache is the memory that all processes share. Of a remote shard the whole
chunk is fetched in one request into a folder that they share (`cache.py`), and each sample is one pread from it.

`prefetch` takes what is wanted next. Background threads fetch remote chunks, the soonest first, until
`prefetch_bytes` of them wait to be read. What fails there is only logged: the read that needs it says it properly.

A reader holds nothing when it is made: files, threads and locks come with the first use in each process. So it
may be pickled, forked at any time, and used from many threads. From the page cache a read of 100 KB costs 2 us
more than its pread and CRC-32C.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass

import google_crc32c
import numpy as np

from cope_prep.pipeline import storage
from cope_prep.pipeline.loader.cache import ChunkCache
from cope_prep.pipeline.loader.fetch import DEFAULT_RETRY
from cope_prep.pipeline.loader.stores import Extent, LocalShards, RemoteShards
from cope_prep.pipeline.retries import RetryPolicy
from cope_prep.pipeline.tar import BLOCK_BYTES
from cope_prep.schemas.errors import ChecksumError, ConfigurationError, CopePrepError

__all__ = ["Extent", "ReadCounters", "ShardReader", "default_cache_dir"]

_MAX_CACHE_BYTES = 200 * 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadCounters:
    """What a reader has done in this process."""

    bytes_read: int = 0
    """Handed out."""
    bytes_fetched: int = 0
    """From remote stores."""
    num_fetches: int = 0
    """Chunks fetched from remote stores."""
    num_cache_hits: int = 0
    """Reads of remote samples whose chunk was here, or on its way."""


class ShardReader:
    """Reads samples by shard, offset and size."""

    def __init__(
        self,
        *,
        cache_dir: str | None = None,
        cache_bytes: int | None = None,
        retry: RetryPolicy = DEFAULT_RETRY,
        prefetch_bytes: int = 64 << 20,
        num_threads: int = 4,
    ) -> None:
        """`cache_dir`: $COPE_PREP_CACHE, else cope-prep/shards in $XDG_CACHE_HOME or ~/.cache.

        `cache_bytes`: half of what that disk would have free with the cache empty, 200 GB at most.

        Raises:
            ConfigurationError: a number makes no sense.
        """
        for name, value, least in (
            ("cache_bytes", cache_bytes, 1),
            ("prefetch_bytes", prefetch_bytes, 0),
            ("num_threads", num_threads, 1),
        ):
            if value is not None and value < least:
                raise ConfigurationError("reader", f"{name} is {value}, must be at least {least}")
        self._cache_dir = cache_dir
        self._cache_bytes = cache_bytes
        self._retry = retry
        self._prefetch_bytes = prefetch_bytes
        self._num_threads = num_threads
        self._processes: dict[int, _Process] = {}
        """By process id: this process, and in a forked child before its first use also the parent."""

    @property
    def cache_dir(self) -> str:
        """Folder of the local cache."""
        return self._cache_dir or default_cache_dir()

    @property
    def cache_bytes(self) -> int:
        """Most that the local cache may hold."""
        return self._open_cache().limit_bytes

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_processes": {}}

    def __del__(self) -> None:
        process = getattr(self, "_processes", {}).get(os.getpid())
        if process is not None:
            process.close(timeout_s=0.0)

    @property
    def counters(self) -> ReadCounters:
        """What was done in this process so far."""
        return self._here().counters()

    def read(
        self,
        extent: Extent,
        offset_bytes: int,
        size_bytes: int,
        *,
        name: str,
        crc32c: int | None = None,
        expected_spec: str | None = None,
    ) -> bytes:
        """Bytes [offset_bytes, offset_bytes + size_bytes) of the shard; otherwise as `read_into`."""
        out = bytearray(size_bytes)
        self.read_into(
            memoryview(out), extent, offset_bytes, name=name, crc32c=crc32c, expected_spec=expected_spec
        )
        return bytes(out)

    def read_into(
        self,
        out: memoryview,
        extent: Extent,
        offset_bytes: int,
        *,
        name: str,
        crc32c: int | None = None,
        expected_spec: str | None = None,
    ) -> None:
        """Fill `out`, one-dimensional bytes, from `offset_bytes` of the shard on; all inside the extent.

        `name` is the sample's key. With `crc32c` the bytes are checked; what fails is opened or fetched anew
        once. `expected_spec`, the spec hash of the extract stage, only makes the message clearer.

        Raises:
            SourceNotFoundError: there is no such shard.
            FormatError: the shard has another size than recorded, or ends too early.
            ChecksumError: the bytes are not those recorded.
            StorageError: the store, the disk or the cache's folder failed.
        """
        if not extent.offset_bytes <= offset_bytes <= offset_bytes + len(out) <= extent.end_bytes:
            raise ValueError(f"{len(out)} bytes at {offset_bytes} are not inside {extent}")
        process = self._here()
        try:
            store = process.local if storage.is_local(extent.uri) else self._remote(process)
            store.read_into(out, extent, offset_bytes)
            if crc32c is not None and _checksum(out) != crc32c:
                # The disk under the cache may have failed, or the shard may have been put right since.
                if store.forget(extent):
                    store.read_into(out, extent, offset_bytes)
                if _checksum(out) != crc32c:
                    raise ChecksumError(extent.uri, *_describe_mismatch(bytes(out), name, expected_spec))
        except CopePrepError as exc:
            where = f"sample {name} at byte {offset_bytes}"
            if exc.subject != extent.uri:
                where += f" of {extent.uri}"
            raise type(exc)(exc.subject, f"{exc.found} ({where})", exc.remedy) from exc.__cause__
        process.count(bytes_read=len(out))

    def prefetch(self, extents: Iterable[Extent]) -> None:
        """These are wanted next, soonest first; returns at once.

        Each call takes the place of the last: what it does not name any more is not begun. What is here, or was
        named by the last call too, costs nothing.
        """
        process = self._here()
        extents = list(extents)
        process.local.advise([extent for extent in extents if storage.is_local(extent.uri)])
        remote = [extent for extent in extents if not storage.is_local(extent.uri)]
        if self._prefetch_bytes and (remote or process.remote is not None):
            self._remote(process).prefetch(remote)

    def forget_advice(self) -> None:
        """Have local chunks read ahead again when they are named: the page cache may have dropped them."""
        self._here().local.forget_advice()

    def close(self) -> None:
        """Close the files of this process and end its threads. A later read opens what it needs again."""
        process = self._processes.get(os.getpid())
        if process is not None:
            process.close(timeout_s=self._retry.timeout_s)

    def _here(self) -> _Process:
        pid = os.getpid()
        process = self._processes.get(pid)
        if process is None:
            # setdefault is atomic: threads that come here together get the same one.
            process = self._processes.setdefault(pid, _Process())
            for other in list(self._processes):
                if other != pid:
                    self._processes.pop(other, None)
        return process

    def _remote(self, process: _Process) -> RemoteShards:
        if process.remote is not None:
            return process.remote
        with process.lock:
            if process.remote is None:
                process.remote = RemoteShards(
                    self._open_cache(),
                    retry=self._retry,
                    prefetch_bytes=self._prefetch_bytes,
                    num_threads=self._num_threads,
                    on_read=process.count_remote_read,
                    on_fetch=process.count_fetch,
                )
            return process.remote

    def _open_cache(self) -> ChunkCache:
        folder = self.cache_dir
        if self._cache_bytes is not None:
            return ChunkCache(folder, limit_bytes=self._cache_bytes)
        cache = ChunkCache(folder, limit_bytes=_MAX_CACHE_BYTES)
        room_bytes = cache.used_bytes() + shutil.disk_usage(cache.folder).free
        return ChunkCache(folder, limit_bytes=max(1, min(_MAX_CACHE_BYTES, room_bytes // 2)))


class _Process:
    """What a reader holds in one process."""

    def __init__(self) -> None:
        self.local = LocalShards()
        self.remote: RemoteShards | None = None
        """Made with the first remote extent."""
        self.lock = threading.Lock()
        """Held while `remote` is made."""
        self._counters = [0, 0, 0, 0]
        self._counters_lock = threading.Lock()

    def count(
        self, *, bytes_read: int = 0, bytes_fetched: int = 0, num_fetches: int = 0, num_cache_hits: int = 0
    ) -> None:
        with self._counters_lock:
            counters = self._counters
            counters[0] += bytes_read
            counters[1] += bytes_fetched
            counters[2] += num_fetches
            counters[3] += num_cache_hits

    def count_remote_read(self, is_here: bool) -> None:
        self.count(num_cache_hits=int(is_here))

    def count_fetch(self, size_bytes: int) -> None:
        self.count(bytes_fetched=size_bytes, num_fetches=1)

    def counters(self) -> ReadCounters:
        with self._counters_lock:
            bytes_read, bytes_fetched, num_fetches, num_cache_hits = self._counters
        return ReadCounters(
            bytes_read=bytes_read,
            bytes_fetched=bytes_fetched,
            num_fetches=num_fetches,
            num_cache_hits=num_cache_hits,
        )

    def close(self, *, timeout_s: float) -> None:
        self.local.close()
        if self.remote is not None:
            self.remote.close(timeout_s=timeout_s)


def default_cache_dir() -> str:
    """$COPE_PREP_CACHE, else cope-prep/shards in $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.environ.get("COPE_PREP_CACHE") or os.path.join(base, "cope-prep", "shards")


def _checksum(content: memoryview) -> int:
    # google_crc32c takes arrays without a copy, and no other writable buffers.
    return google_crc32c.value(np.frombuffer(content, np.uint8))


def _describe_mismatch(content: bytes, key: str, expected_spec: str | None) -> tuple[str, str]:
    """What a reader finds there instead of the sample, and what to do: damage, or another shard."""
    found_key, found_spec = _identify(content)
    if found_key is not None and found_key != key:
        what = f"sample {found_key}" + (f" of spec {found_spec}" if found_spec else "")
    elif expected_spec and found_spec and found_spec != expected_spec:
        what = f"the sample as made with spec {found_spec}, not {expected_spec},"
    else:
        return (
            "has other bytes there than were recorded: damaged",
            "Run cope-prep verify, or copy the shard again.",
        )
    return f"holds {what} there: the shard was replaced", "Use the index that belongs to it."


def _identify(content: bytes) -> tuple[str | None, str | None]:
    """Key and spec hash by the tar header and the JSON at the start, None where they cannot be read."""
    try:
        info = tarfile.TarInfo.frombuf(content[:BLOCK_BYTES], "ascii", "strict")
        key, _, member = info.name.partition(".")
    except (tarfile.HeaderError, UnicodeDecodeError):
        return None, None
    if member != "json":
        return key, None
    try:
        about = json.loads(content[BLOCK_BYTES : BLOCK_BYTES + max(info.size, 0)])
        return key, str(about["spec_hash"])
    except (ValueError, TypeError, KeyError):
        return key, None
