"""One byte range of a remote file, in one request, tried again while there is hope.

What may pass is tried again with exponential backoff and jitter: a reset connection, a 5xx, a stall, an answer
cut short. What will not pass ends at once: nothing there, no permission, a range past the end, a server that
answers a range with the whole file (each chunk would move the whole shard).

`timeout_s` ends a stalled request of the asynchronous fsspec stores (http, s3, gcs, azure and most others). The
others (memory, sftp) run plainly and have only their own time limits: a thread that hangs cannot be ended.
Stores also retry by themselves, s3fs up to five times; all of that counts as one request here, in one time limit.

fsspec keeps its connections per process and gives a forked child new ones; all threads share them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem, sync

from cope_prep.pipeline import storage
from cope_prep.schemas.errors import (
    ConfigurationError,
    CopePrepError,
    FormatError,
    SourceNotFoundError,
    StorageError,
)

_LOG = logging.getLogger("cope_prep.loader")

_T = TypeVar("_T")

_JITTER = random.SystemRandom()
"""Not `random` itself: the seeds of training are not ours to move, and forked workers must not wait in step."""

_FATAL_ERRNOS = {errno.EINVAL, errno.EPERM, errno.EACCES, errno.ENOSYS}
"""What s3fs makes of a 400, 405, 416 or 501."""

_PASSING_STATUSES = {408, 425, 429}
"""The 4xx that may pass: too slow, too early, too many."""

_FATAL_TYPES = (ValueError, TypeError, AttributeError, NotImplementedError, ImportError)

_FATAL_NAMES = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "NoRegionError"}
"""Of botocore, which is not imported here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long to hope."""

    attempts: int = 5
    """Requests for one range, the first included."""
    first_wait_s: float = 0.5
    """Before the second request; doubled each time. Up to half of a wait is taken off at random."""
    longest_wait_s: float = 20.0
    timeout_s: float = 60.0
    """Of one request, from its start to its last byte."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigurationError("retry", f"attempts is {self.attempts}, must be at least 1")
        if not 0 <= self.first_wait_s <= self.longest_wait_s:
            raise ConfigurationError(
                "retry",
                f"first_wait_s is {self.first_wait_s}, must be in [0, longest_wait_s = {self.longest_wait_s}]",
            )
        if not self.timeout_s > 0:
            raise ConfigurationError("retry", f"timeout_s is {self.timeout_s}, must be positive")

    def wait_s(self, attempt: int) -> float:
        """How long to wait after attempt 1, 2, ... has failed."""
        # The power is bounded so that a long-suffering policy does not overflow a float.
        longest_s = min(self.first_wait_s * 2.0 ** min(attempt - 1, 60), self.longest_wait_s)
        return longest_s * (1 - _JITTER.random() / 2)


DEFAULT_RETRY = RetryPolicy()


class _RangeIgnoredError(Exception):
    """The server answered a range with the whole file."""


class _ShortReadError(Exception):
    """The answer ended too early."""


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
    )


def insist(
    request: Callable[[float], _T],
    uri: str,
    wanted: str,
    retry: RetryPolicy,
    check: Callable[[Exception], None] | None = None,
) -> _T:
    """What `request` gives, called with its time limit until it does. `check` may raise something clearer."""
    for attempt in range(1, retry.attempts + 1):
        try:
            return request(retry.timeout_s)
        except Exception as exc:
            fatal = _as_fatal(exc, uri, wanted)
            if check is not None:
                check(exc)
            if fatal is not None:
                raise fatal from exc
            if attempt == retry.attempts:
                raise StorageError(
                    uri, f"{wanted} could not be read in {attempt} attempts (the last: {_describe(exc)})"
                ) from exc
            wait_s = retry.wait_s(attempt)
            _LOG.warning(
                "%s: %s, attempt %d of %d failed (%s); again in %.1f s",
                *(uri, wanted, attempt, retry.attempts, _describe(exc), wait_s),
            )
        time.sleep(wait_s)
    raise AssertionError("a policy has at least one attempt")


def is_http(fs: AbstractFileSystem) -> bool:
    """True for plain HTTP, with fsspec's ways of it."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    return bool(protocols & {"http", "https"})


def _request(
    fs: AbstractFileSystem, path: str, offset_bytes: int, size_bytes: int, *, timeout_s: float
) -> bytes:
    span: dict[str, Any] = {"start": offset_bytes, "end": offset_bytes + size_bytes}
    if isinstance(fs, AsyncFileSystem):
        if is_http(fs):
            # aiohttp calls this when the headers are there, before the body has moved.
            span["raise_for_status"] = _refuse_whole_file(size_bytes)
        content = cast(bytes, sync(fs.loop, fs._cat_file, path, timeout=timeout_s, **span))
    else:
        content = cast(bytes, fs.cat_file(path, **span))
    if len(content) > size_bytes:
        raise _RangeIgnoredError
    if len(content) < size_bytes:
        raise _ShortReadError(f"{len(content)} of {size_bytes} bytes came")
    return bytes(content)


def _refuse_whole_file(size_bytes: int) -> Any:
    async def check(response: Any) -> None:
        length = response.headers.get("Content-Length")
        if response.status == 200 and length != str(size_bytes):
            raise _RangeIgnoredError

    return check


def _as_fatal(exc: Exception, uri: str, wanted: str) -> CopePrepError | None:
    """The error to end with at once, or None if another attempt may succeed."""
    status = getattr(exc, "status", None)
    if isinstance(exc, FileNotFoundError):
        what = "shard" if uri.endswith(".tar") else "file"
        return SourceNotFoundError(uri, f"no such {what}", f"Check the path, or copy the {what} there again.")
    if isinstance(exc, _RangeIgnoredError):
        return StorageError(
            uri,
            f"the server answered a request for {wanted} with the whole file",
            "Serve the shards from a server that knows range requests, or copy them to this machine.",
        )
    if isinstance(exc, PermissionError) or status in (401, 403):
        return StorageError(uri, f"may not be read ({_describe(exc)})", "Check the credentials.")
    if (
        isinstance(exc, _FATAL_TYPES)
        or type(exc).__name__ in _FATAL_NAMES
        or (isinstance(exc, OSError) and exc.errno in _FATAL_ERRNOS)
        or (isinstance(status, int) and 400 <= status < 500 and status not in _PASSING_STATUSES)
    ):
        return StorageError(uri, f"{wanted} cannot be read ({_describe(exc)})")
    return None


def _may_be_past_the_end(exc: Exception) -> bool:
    # s3fs makes OSError(EINVAL) of a 416.
    return (
        isinstance(exc, _ShortReadError)
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
        if isinstance(fs, AsyncFileSystem):
            info = cast(dict[str, Any], sync(fs.loop, fs._info, path, timeout=timeout_s))
        else:
            info = fs.info(path)
        size_bytes = storage.stat_of_info(info).size_bytes
    except Exception:
        return  # the first error tells more
    if 0 < size_bytes < end_bytes:
        raise FormatError(
            uri, f"is {size_bytes} bytes long, {wanted} were wanted: truncated or replaced"
        ) from cause


def _describe(exc: Exception) -> str:
    name = type(exc).__name__.removeprefix("_")
    if isinstance(exc, asyncio.TimeoutError):
        return "no answer in time"
    text = str(exc).strip()
    return f"{name}: {text}" if text else name
