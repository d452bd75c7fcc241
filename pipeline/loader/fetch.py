"""One byte range of a remote file, in one request, tried again while there is hope.

What may pass is tried again with exponential backoff and jitter: a reset connection, a 5xx, a stall, an answer
cut short. What will not pass ends at once: nothing there, no permission, a range past the end, a server that
answers a range with the whole file (each chunk would move the whole shard).

`timeout_s` ends a stalled request of the asynchronous fsspec stores (http, s3, gcs, azure and most others). The
others (memory, sftp) run plainly and have only their own time limits: a thread that hangs cannot be ended.
Stores also retry by themselves, botocore up to five times; all of that is one request here, in one time limit.

fsspec keeps its connections per process and gives a forked child new ones; all threads share them.
"""

from __future__ import annotations

import errno
import logging
from typing import Any, cast

from fsspec import AbstractFileSystem

from cope_prep.pipeline import remote, storage
from cope_prep.pipeline.retries import RangeIgnoredError, RetryPolicy, ShortReadError, insist
from cope_prep.schemas.errors import FormatError

_LOG = logging.getLogger("cope_prep.loader")

DEFAULT_RETRY = RetryPolicy()


def fetch_range(uri: str, offset_bytes: int, size_bytes: int, *, retry: RetryPolicy = DEFAULT_RETRY) -> bytes:
    """Bytes [offset_bytes, offset_bytes + size_bytes) of a remote file.

    Raises:
        SourceNotFoundError: there is no such file.
        FormatError: the file ends before the range does.
        StorageError: the store refused, ignores ranges, or failed at every attempt.
        ConfigurationError: this kind of URL cannot be used.
    """
    fs, path = storage.filesystem(uri)
    wanted = f"bytes {offset_bytes} to {offset_bytes + size_bytes - 1}"

    def check(exc: Exception) -> None:
        if _may_be_past_the_end(exc):
            _check_size(fs, path, uri, offset_bytes + size_bytes, wanted, retry.timeout_s, cause=exc)

    return insist(
        lambda timeout_s: _request(fs, path, offset_bytes, size_bytes, timeout_s=timeout_s),
        *(uri, wanted, retry, check),
        logger=_LOG,
    )


def is_http(fs: AbstractFileSystem) -> bool:
    """True for plain HTTP, with fsspec's ways of it."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    return bool(protocols & {"http", "https"})


def _request(
    fs: AbstractFileSystem, path: str, offset_bytes: int, size_bytes: int, *, timeout_s: float
) -> bytes:
    span: dict[str, Any] = {"start": offset_bytes, "end": offset_bytes + size_bytes}
    if is_http(fs):
        # aiohttp calls this when the headers are there, before the body has moved.
        span["raise_for_status"] = _refuse_whole_file(size_bytes)
    content = cast(bytes, remote.call(fs, "cat_file", path, timeout_s=timeout_s, **span))
    if len(content) > size_bytes:
        raise RangeIgnoredError
    if len(content) < size_bytes:
        raise ShortReadError(f"{len(content)} of {size_bytes} bytes came")
    return bytes(content)


def _refuse_whole_file(size_bytes: int) -> Any:
    async def check(response: Any) -> None:
        length = response.headers.get("Content-Length")
        if response.status == 200 and length != str(size_bytes):
            raise RangeIgnoredError

    return check


def _may_be_past_the_end(exc: Exception) -> bool:
    # s3fs makes OSError(EINVAL) of a 416.
    return (
        isinstance(exc, ShortReadError)
        or getattr(exc, "status", None) == 416
        or (isinstance(exc, OSError) and exc.errno == errno.EINVAL)
    )


def _check_size(
    fs: AbstractFileSystem,
    path: str,
    uri: str,
    end_bytes: int,
    wanted: str,
    timeout_s: float,
    *,
    cause: Exception,
) -> None:
    """Raises FormatError if the file is known to end before `end_bytes`."""
    try:
        info = remote.call(fs, "info", path, timeout_s=timeout_s)
        size_bytes = storage.stat_of_info(info).size_bytes
    except Exception:
        return  # the first error tells more
    if 0 < size_bytes < end_bytes:
        raise FormatError(
            uri, f"is {size_bytes} bytes long, {wanted} were wanted: truncated or replaced"
        ) from cause
