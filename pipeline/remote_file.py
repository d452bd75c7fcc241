"""Reading a remote file, robustly.

A remote file is read by ranges, each checked for its length and tried again at the same place, so a body that is
cut short is never taken for the end of the file. On S3 each range is asked for with the ETag that the file had when
it was opened (s3fs sends If-Match); elsewhere the version is compared whenever a range comes short.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import sys
from collections.abc import Callable
from typing import IO, Any, cast

from fsspec.asyn import AsyncFileSystem
from fsspec.spec import AbstractBufferedFile

from cope_prep.pipeline.redact import redacted
from cope_prep.pipeline.remote import FileStat, call, filesystem, is_s3, run, stat_of_info
from cope_prep.pipeline.retries import (
    RangeIgnoredError,
    ShortReadError,
    insist_on,
    is_in_haste,
    store_policy,
)
from cope_prep.schemas.errors import StorageError

_FIRST_BYTES = 256 << 10
_LARGEST_BYTES = 16 << 20
"""Of one request. It begins small after a seek, and doubles while the file is read in order."""

_PEEK_BYTES = 8 << 10


def open_remote(uri: str) -> IO[bytes]:
    """Open a remote file for reading, seekable.

    Of a web server that does not say how long the file is, it is fsspec's own stream: without seeking or retries.

    Raises:
        SourceNotFoundError: there is no such file.
        StorageError: the store refused, or failed at every attempt.
    """

    def request(timeout_s: float) -> IO[bytes]:
        fs, path = filesystem(uri)
        if is_in_haste():  # what opening asks for has no time limit: a store that hangs is found out before
            call(fs, "info", path, timeout_s=timeout_s)
        handle = cast("Any", fs.open(path, "rb", cache_type="none"))
        if not isinstance(handle, AbstractBufferedFile):  # of a store whose files are its own or Python's
            stat = stat_of_info(call(fs, "info", path, timeout_s=timeout_s))
            return cast("IO[bytes]", RemoteFile(uri, _by_seeking(handle), stat))
        if type(handle)._fetch_range is AbstractBufferedFile._fetch_range:
            return cast("IO[bytes]", handle)
        if handle.details.get("type") == "directory":
            raise FileNotFoundError(path)
        return cast("IO[bytes]", RemoteFile(uri, _by_range(handle), stat_of_info(handle.details)))

    return insist_on("opened", request, uri, store_policy())


_Fetch = Callable[[int, int, float], bytes]
"""One request for the bytes from a first to before a last, in so many seconds where the store can be stopped."""


def _by_range(handle: Any) -> _Fetch:
    """fsspec's own way to fetch a range waits as long as bytes come, however slowly: a time limit ends it."""
    fs = handle.fs
    ask: Any = getattr(handle, "async_fetch_range", None)  # of HTTP
    if ask is None and is_s3(fs):
        inner = getattr(sys.modules[type(handle).__module__], "_inner_fetch", None)  # s3fs's, with If-Match
        identity = (fs, handle.bucket, handle.key, handle.version_id)
        if inner is not None:

            async def ask_s3(start: int, end: int) -> bytes:
                return await inner(*identity, start, end, handle.read_kw, handle.details)

            ask = ask_s3

    if ask is None or not isinstance(fs, AsyncFileSystem):
        return lambda start, end, timeout_s: handle._fetch_range(start, end)

    def fetch(start: int, end: int, timeout_s: float) -> bytes:
        request = functools.partial(ask, start, end)
        return cast("bytes", run(fs, request, timeout_s=timeout_s, num_bytes=end - start))

    return fetch


def _by_seeking(handle: IO[bytes]) -> _Fetch:
    def fetch(start: int, end: int, timeout_s: float) -> bytes:
        handle.seek(start)
        return handle.read(end - start)

    return fetch


def _may_be_past_the_end(exc: Exception) -> bool:
    # s3fs makes OSError(EINVAL) of a 416.
    return getattr(exc, "status", None) == 416 or (isinstance(exc, OSError) and exc.errno == errno.EINVAL)


class RemoteFile(io.BufferedIOBase):
    """A remote file for reading, seekable. Its reads give all that was asked for, to the end of the file, or raise.

    Raises, when it is read:
        SourceNotFoundError: there is no such file any more.
        StorageError: the store refused, failed at every attempt, or holds another version by now.
    """

    def __init__(self, uri: str, fetch: _Fetch, stat: FileStat) -> None:
        """`fetch` makes one request for the bytes from a first to before a last, with a time limit."""
        self._uri = uri
        self._position = 0
        self._block = b""
        self._block_start = 0
        self._next_bytes = _FIRST_BYTES
        self._fetch = fetch
        self._stat = stat

    @property
    def size(self) -> int:
        """Bytes of the file, as fsspec's own files have it."""
        return self._stat.size_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check_open()
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise ValueError(f"negative position {start + offset}")
        self._position = start + offset
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        self._check_open()
        left = max(self.size - self._position, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        pieces = []
        while wanted:
            piece = self._buffered(wanted)
            if not piece:
                self._fill(wanted)
                continue
            pieces.append(piece)
            self._position += len(piece)
            wanted -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read1(self, size: int = -1, /) -> bytes:
        self._check_open()
        held = self._block_start + len(self._block) - self._position
        if not 0 < held <= len(self._block):
            held = self._next_bytes
        return self.read(held if size < 0 else min(size, held))

    def peek(self, size: int = 0, /) -> bytes:
        """What is next, without moving on; empty at the end. With it, lines are read quickly."""
        self._check_open()
        if self._position < self.size and not self._buffered(1):
            self._fill(1)
        return self._buffered(max(size, _PEEK_BYTES))

    def close(self) -> None:
        self._block = b""
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def _buffered(self, wanted: int) -> bytes:
        start = self._position - self._block_start
        return self._block[start : start + wanted] if 0 <= start < len(self._block) else b""

    def _fill(self, wanted: int) -> None:
        """Fetch a block that begins at the position."""
        is_next = self._position == self._block_start + len(self._block)
        self._next_bytes = min(self._next_bytes * 2, _LARGEST_BYTES) if is_next else _FIRST_BYTES
        start = self._position
        end = min(start + min(max(wanted, self._next_bytes), _LARGEST_BYTES), self.size)

        def request(timeout_s: float) -> bytes:
            try:
                content = self._fetch(start, end, timeout_s)
            except Exception as exc:
                if _may_be_past_the_end(exc):
                    self._check_version(timeout_s)
                raise
            if len(content) < end - start:
                self._check_version(timeout_s)
                raise ShortReadError(f"{len(content)} of {end - start} bytes came")
            if len(content) > end - start:
                raise RangeIgnoredError
            return content

        self._block = insist_on("read", request, self._uri, store_policy())
        self._block_start = start

    def _check_version(self, timeout_s: float) -> None:
        """Raise StorageError if the store says that it holds another file by now."""
        fs, path = filesystem(self._uri)
        try:
            found = stat_of_info(call(fs, "info", path, timeout_s=timeout_s))
        except Exception:
            return  # the first error tells more
        if found != self._stat:
            raise StorageError(redacted(self._uri), "was replaced while it was read", "Run again.")
