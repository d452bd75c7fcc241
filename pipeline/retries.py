"""Trying a remote operation again while there is hope, and saying in one line why there is none.

What may pass is tried again with exponential backoff and jitter: a 5xx, `SlowDown`, a reset connection, a stall,
an answer cut short. What will not pass ends at once: no such file or bucket, no permission, no credentials, a
request that the store calls wrong.

The stores also try again by themselves: botocore each request up to five times (`max_attempts`; a stall ends after
s3fs's `read_timeout` of 15 s), gcsfs and Azure's client likewise. All of that is one attempt here. What they do not
see is what this is for: a body that is cut or stalls midway, fewer bytes than were asked for, an upload of many
parts of which one fails for good, a stored size that is not what was sent. s3fs would multiply botocore's attempts
by its own five; `remote` sets those to one, so that this loop is the only one around botocore's.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from cope_prep.pipeline.redact import redacted
from cope_prep.schemas.errors import (
    ConfigurationError,
    CopePrepError,
    SourceNotFoundError,
    StorageError,
    StoreRefusedError,
)

_LOG = logging.getLogger("cope_prep.storage")

_T = TypeVar("_T")

PATIENCE_VARIABLE = "COPE_PREP_STORE_PATIENCE_S"
"""Environment: how long the storage layer tries an operation again, in seconds."""

DEFAULT_PATIENCE_S = 60.0

HASTE_S = 2.0
"""Most patience of a process that is to end soon, and the time limit of a request that it begins then."""

_MOMENT_S = 0.25
"""While it waits before another attempt, an operation looks this often whether there is haste."""

_JITTER = random.SystemRandom()
"""Not `random` itself: the seeds of training are not ours to move, and forked workers must not wait in step."""

_FATAL_ERRNOS = {errno.EINVAL, errno.EPERM, errno.EACCES, errno.ENOSYS}
"""What s3fs makes of a 400, 405, 416 or 501."""

_PASSING_STATUSES = {408, 425, 429}
"""The 4xx that may pass: too slow, too early, too many."""

_PASSING_CODES = {
    "BadDigest",
    "IncompleteBody",
    "NoSuchUpload",
    "RequestTimeout",
    "XAmzContentSHA256Mismatch",
}
"""S3's own names of a 4xx that may pass: what came was not what was sent, or an upload was ended by another."""

_CLOCK_CODE = "RequestTimeTooSkewed"
"""Of a 403 that another machine would not get: the clock of this one is wrong."""

_FATAL_TYPES = (ValueError, TypeError, AttributeError, NotImplementedError, ImportError)

_FATAL_NAMES = {
    *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "NoRegionError"),
    *("ParamValidationError", "TokenRetrievalError", "UnauthorizedSSOTokenError", "SSOTokenLoadError"),
}
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
    patience_s: float = math.inf
    """No attempt but the second begins later than this after the first began."""

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
        if not self.patience_s >= 0:
            raise ConfigurationError("retry", f"patience_s is {self.patience_s}, must be at least 0")

    def wait_s(self, attempt: int) -> float:
        """How long to wait after attempt 1, 2, ... has failed."""
        # The power is bounded so that a long-suffering policy does not overflow a float.
        longest_s = min(self.first_wait_s * 2.0 ** min(attempt - 1, 60), self.longest_wait_s)
        return longest_s * (1 - _JITTER.random() / 2)


def store_policy() -> RetryPolicy:
    """The storage layer's: about a minute, or what COPE_PREP_STORE_PATIENCE_S says.

    Raises:
        ConfigurationError: the variable is no number of seconds.
    """
    text = os.environ.get(PATIENCE_VARIABLE, "")
    try:
        patience_s = float(text) if text else DEFAULT_PATIENCE_S
    except ValueError:
        patience_s = math.nan
    if not 0 <= patience_s < math.inf:
        raise ConfigurationError(
            PATIENCE_VARIABLE, f"is {text!r}", "Give a number of seconds, for instance 60."
        )
    return RetryPolicy(attempts=1000, first_wait_s=0.2, longest_wait_s=10.0, patience_s=patience_s)


_patience_now_s = math.inf
"""Of every operation in this process, whatever its policy says."""


def set_haste(is_on: bool) -> None:
    """From now on give up every operation of this process after HASTE_S, those under way too; or no longer.

    For a process that was told to stop, which must be gone within seconds whether or not the store answers. What
    this process has started is not touched. Safe in a signal handler.

    A request that is under way is given up where it can be: of an asynchronous store (`remote.run`).
    """
    global _patience_now_s
    _patience_now_s = HASTE_S if is_on else math.inf


def is_in_haste() -> bool:
    """True after `set_haste`."""
    return _patience_now_s < math.inf


def _wait(seconds: float) -> None:
    while seconds > 0 and not is_in_haste():
        time.sleep(min(seconds, _MOMENT_S))
        seconds -= _MOMENT_S
    time.sleep(max(0.0, min(seconds, _MOMENT_S)))


class RangeIgnoredError(Exception):
    """The server answered a range with the whole file."""


class ShortReadError(Exception):
    """The answer ended too early."""


class WrittenWrongError(Exception):
    """What is stored after a write is not what was sent."""


def insist(
    request: Callable[[float], _T],
    uri: str,
    wanted: str,
    retry: RetryPolicy,
    check: Callable[[Exception], None] | None = None,
    *,
    logger: logging.Logger = _LOG,
) -> _T:
    """What `request` gives, called with its time limit until it does. `check` may raise something clearer.

    `wanted` names what is read. Each attempt that failed is logged before it is made again.

    Raises:
        SourceNotFoundError: there is nothing there.
        StoreRefusedError: the store refused.
        StorageError: it failed at every attempt.
    """
    return _insist(request, uri, uri, f"{wanted} ", "read", retry, check, logger)


def insist_on(action: str, request: Callable[[float], _T], uri: str, retry: RetryPolicy) -> _T:
    """What `request` gives, called with its time limit until it does.

    `action` is what happens to the file: examined, listed, opened, read, written, removed. The attempts that it
    took are logged once, at the end. The errors show the URL without its credentials.

    Raises:
        SourceNotFoundError: there is nothing there.
        StoreRefusedError: the store refused.
        StorageError: it failed at every attempt.
    """
    return _insist(request, uri, redacted(uri), "", action, retry, None, None)


def _insist(
    request: Callable[[float], _T],
    uri: str,
    shown: str,
    wanted: str,
    action: str,
    retry: RetryPolicy,
    check: Callable[[Exception], None] | None,
    logger: logging.Logger | None,
) -> _T:
    started_s = time.monotonic()
    last = ""
    for attempt in range(1, retry.attempts + 1):
        try:
            result = request(min(retry.timeout_s, _patience_now_s))
        except CopePrepError:
            raise
        except Exception as exc:
            exc = _hidden_cause(exc)
            fatal = _as_fatal(exc, uri, shown, wanted, action)
            if check is not None:
                check(exc)
            if fatal is not None:
                raise fatal from exc
            elapsed_s = time.monotonic() - started_s
            wait_s = retry.wait_s(attempt)
            last = describe(exc)
            is_late = attempt > 1 and elapsed_s + wait_s > retry.patience_s
            if attempt == retry.attempts or is_late or elapsed_s + wait_s > _patience_now_s:
                tried = f"in {attempt} attempts over {elapsed_s:.0f} s (the last: {last})"
                raise StorageError(shown, f"{wanted}could not be {action} {tried}") from exc
            if logger is not None:
                logger.warning(
                    "%s: %sattempt %d of %d failed (%s); again in %.1f s",
                    *(redacted(uri), f"{wanted.strip()}, " if wanted else "", attempt, retry.attempts),
                    *(last, wait_s),
                )
        else:
            if attempt > 1 and logger is None:
                _LOG.warning(
                    "%s: was %s at attempt %d, after %.1f s (the last failure: %s)",
                    *(redacted(uri), action, attempt, time.monotonic() - started_s, last),
                )
            return result
        _wait(wait_s)
    raise AssertionError("a policy has at least one attempt")


def _hidden_cause(exc: Exception) -> Exception:
    """fsspec's HTTP says FileNotFoundError whatever went wrong; what it was is the cause."""
    cause = exc.__cause__
    if not isinstance(exc, FileNotFoundError) or not isinstance(cause, Exception):
        return exc
    is_of_network = isinstance(cause, OSError | asyncio.TimeoutError) and not isinstance(
        cause, FileNotFoundError
    )
    is_of_http = type(cause).__module__.partition(".")[0] == "aiohttp"
    if (is_of_network or is_of_http) and getattr(cause, "status", None) not in (404, 410):
        return cause
    return exc


def _as_fatal(exc: Exception, uri: str, shown: str, wanted: str, action: str) -> CopePrepError | None:
    """The error to end with at once, or None if another attempt may succeed."""
    status, code = getattr(exc, "status", None), s3_code(exc)
    if code in _PASSING_CODES:
        return None
    if isinstance(exc, FileNotFoundError):
        if code == "NoSuchBucket":
            return SourceNotFoundError(shown, "no such bucket", "Check the URL, or make the bucket.")
        what = "shard" if uri.endswith(".tar") else "file"
        return SourceNotFoundError(
            shown, f"no such {what}", f"Check the path, or copy the {what} there again."
        )
    if isinstance(exc, RangeIgnoredError):
        return StoreRefusedError(
            shown,
            f"the server answered a request for {wanted.strip() or 'a range'} with the whole file",
            "Serve the shards from a server that knows range requests, or copy them to this machine.",
        )
    if code == _CLOCK_CODE:
        return StorageError(shown, f"may not be {action} ({describe(exc)})", "Set this machine's clock.")
    if isinstance(exc, PermissionError) or status in (401, 403):
        return StoreRefusedError(shown, f"may not be {action} ({describe(exc)})", "Check the credentials.")
    if type(exc).__name__ == "FileExpired":  # s3fs's: the ETag is not the one that was opened
        return StorageError(shown, "was replaced while it was read", "Run again.")
    found = f"{wanted}cannot be {action} ({describe(exc)})"
    # Not of the store's making: another machine may have credentials, and the package that this one lacks.
    if isinstance(exc, _FATAL_TYPES) or type(exc).__name__ in _FATAL_NAMES:
        return StorageError(shown, found)
    is_status = isinstance(status, int) and 400 <= status < 500 and status not in _PASSING_STATUSES
    if is_status or (isinstance(exc, OSError) and exc.errno in _FATAL_ERRNOS):
        return StoreRefusedError(shown, found)
    return None


def s3_code(exc: Exception) -> str:
    """S3's name of an error, such as SlowDown; empty if it is not known."""
    for one in (exc, exc.__cause__):
        response: Any = getattr(one, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def describe(exc: Exception) -> str:
    """One clause about a store's error, without credentials."""
    name = type(exc).__name__.removeprefix("_")
    text = redacted(" ".join(str(exc).split()))
    if isinstance(exc, asyncio.TimeoutError) and not text:
        return "no answer in time"
    return f"{name}: {text}" if text else name
