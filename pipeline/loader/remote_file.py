"""Whole files and tables of a remote dataset, with the retries of fetch.py; local ones are just read.

What is not there is told apart from what could not be reached: fsspec's HTTP says "not found" to both.
"""

from __future__ import annotations

import io
import logging
import os
from typing import IO, Any, cast

from cope_prep.pipeline import remote, storage
from cope_prep.pipeline.loader.fetch import DEFAULT_RETRY, fetch_range
from cope_prep.pipeline.retries import RetryPolicy, insist
from cope_prep.schemas.errors import SourceNotFoundError, StorageError

_LOG = logging.getLogger("cope_prep.loader")

_MAX_FILE_BYTES = 1 << 28
"""Of dataset.json and spec.json: a million shards."""
_PIECE_BYTES = 16 << 20
"""Of a table, asked for at once: what comes within a time limit."""


def fetch_file(uri: str, *, retry: RetryPolicy = DEFAULT_RETRY) -> bytes:
    """A small file as a whole, in one request. A local file is just read.

    Raises:
        SourceNotFoundError: there is no such file.
        StorageError: the store refused, or failed at every attempt.
        ConfigurationError: this kind of URL cannot be used.
        FormatError: a local file is too large to be one of ours.
    """
    if storage.is_local(uri):
        return storage.read_small(uri, _MAX_FILE_BYTES)
    fs, path = storage.filesystem(uri)

    def request(timeout_s: float) -> bytes:
        return cast("bytes", remote.call(fs, "cat_file", path, timeout_s=timeout_s))

    return insist(request, uri, "the file", retry, logger=_LOG)


def fetch_stat(uri: str, *, retry: RetryPolicy = DEFAULT_RETRY) -> storage.FileStat:
    """Size and version of a file, remote or local.

    Raises:
        SourceNotFoundError, StorageError, ConfigurationError: as fetch_file.
    """
    if storage.is_local(uri):
        return storage.stat(uri)
    fs, path = storage.filesystem(uri)

    def request(timeout_s: float) -> storage.FileStat:
        return storage.stat_of_info(remote.call(fs, "info", path, timeout_s=timeout_s))

    return insist(request, uri, "its size", retry, logger=_LOG)


def fetch_exists(uri: str, *, retry: RetryPolicy = DEFAULT_RETRY) -> bool:
    """True if a file is there, False only if the store says that it is not.

    Raises:
        StorageError, ConfigurationError: as fetch_file.
    """
    try:
        fetch_stat(uri, retry=retry)
    except SourceNotFoundError:
        return False
    return True


def open_file(uri: str, *, retry: RetryPolicy = DEFAULT_RETRY) -> IO[bytes]:
    """A file to read here and there, seekable: a local one, or a remote one by ranges.

    Raises:
        SourceNotFoundError, StorageError, ConfigurationError: as fetch_file; also when it is read.
    """
    if storage.is_local(uri):
        return storage.open_read(uri)
    return cast("IO[bytes]", _RemoteFile(uri, fetch_stat(uri, retry=retry).size_bytes, retry))


class _RemoteFile(io.RawIOBase):
    """Each read is a request of its own, or several if it is large: for readers that know what they want."""

    def __init__(self, uri: str, size_bytes: int, retry: RetryPolicy) -> None:
        if not size_bytes:
            raise StorageError(uri, "is empty, or the store does not say how long it is")
        self._uri = uri
        self._size_bytes = size_bytes
        self._retry = retry
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}[whence]
        self._position = max(start + offset, 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        out = memoryview(buffer).cast("B")
        num_bytes = max(min(len(out), self._size_bytes - self._position), 0)
        for start in range(0, num_bytes, _PIECE_BYTES):
            piece = out[start : min(start + _PIECE_BYTES, num_bytes)]
            piece[:] = fetch_range(self._uri, self._position + start, len(piece), retry=self._retry)
        self._position += num_bytes
        return num_bytes
