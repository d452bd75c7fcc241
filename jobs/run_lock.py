"""One run at a time writes an output: a file in the dataset that says who does, and a sign of life in it.

    DATASET/locks/<stage>-<hash>.json    {"owner", "host", "pid", ..., "beat": 17}

Runs of other stages or of other specs write other folders, and so have other locks; `run` takes all three.
The owner counts `beat` up every 10 s. Who finds a lock watches whether that number changes, by its own monotonic
clock: no two machines' clocks are compared. If it does not for 3 intervals, the owner is dead and the lock is
taken over, at once if it was a process of this machine that is no more. So a driver that was killed can be started
again, by whoever, and nobody has to remove anything.

Taking a lock is atomic where the store can do it (a hard link; a conditional PUT on S3). Else, and when one
is taken over, the last writer wins: each looks a second later whose it is. An owner that was frozen so long that
another took its place learns of it at its next beat, and stops. Even then nothing is damaged: outputs are
published whole.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from cope_prep.pipeline import remote, retries, storage
from cope_prep.pipeline.redact import redacted
from cope_prep.pipeline.retries import insist_on, store_policy
from cope_prep.schemas.errors import RunLockedError, RunLockLostError, SourceNotFoundError

INTERVAL_S = 10.0
"""Between two signs of life."""
_PATIENCE = 3
"""Intervals without one, after which an owner counts as dead."""
_SETTLE_S = 1.0
"""After a write that was not atomic: until a competitor's has arrived, too."""
_JOIN_S = 2.0
"""For the thread, which a store may keep waiting."""
_RELEASE_S = retries.HASTE_S + 1.0
"""For giving the locks back, in haste."""
_MOMENT_S = 0.1
_LOOKS = 8
"""Per interval, while another's sign of life is awaited."""

_logger = logging.getLogger("cope_prep")


class RunLocks:
    """The locks of the outputs that one command writes; a context manager."""

    def __init__(self, outputs: Sequence[str], *, interval_s: float = INTERVAL_S) -> None:
        """`outputs`: folders of stages, DATASET/<stage>/<hash>."""
        self._locks = [_Lock(output, interval_s=interval_s) for output in outputs]
        self._interval_s = interval_s
        self._held: list[_Lock] = []
        self._lost: RunLockLostError | None = None
        self._is_over = threading.Event()
        # A thread, because planning 178,510 videos takes longer than an interval.
        self._thread = threading.Thread(target=self._beat, name="cope-prep-run-lock", daemon=True)

    def __enter__(self) -> Self:
        """Take the locks.

        Raises:
            RunLockedError: another run has one of them.
            StorageError: the dataset cannot be written.
        """
        try:
            for lock in self._locks:
                lock.take()
                self._held.append(lock)
        except BaseException:
            self._release()
            raise
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join(_JOIN_S)
        self._release()

    def check(self) -> None:
        """Raise if another run has taken a lock over.

        Raises:
            RunLockLostError: it has.
        """
        if self._lost is not None:
            raise self._lost

    def _beat(self) -> None:
        while not self._is_over.wait(self._interval_s):
            for lock in self._held:
                try:
                    lock.beat()
                except RunLockLostError as exc:
                    self._lost = exc
                    return
                except Exception:  # the store fails: so will the work, which says it better
                    _logger.debug("no sign of life", exc_info=True)

    def _release(self) -> None:
        # Side by side, because a store that fails takes its time for each. Who is in haste does not wait for
        # a request that was begun before and hangs.
        threads = [threading.Thread(target=_let_go, args=(lock,), daemon=True) for lock in self._held]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive() and not retries.is_in_haste():
                thread.join(_MOMENT_S)
        until_s = time.monotonic() + _RELEASE_S
        for lock, thread in zip(self._held, threads, strict=True):
            thread.join(max(0.0, until_s - time.monotonic()))
            if thread.is_alive():
                _logger.warning(
                    "%s stays behind; the next run removes it (no answer in time)", redacted(lock.uri)
                )
        self._held.clear()


def _let_go(lock: _Lock) -> None:
    try:
        lock.release()
    except Exception as exc:
        _logger.warning(
            "%s stays behind; the next run removes it (%s)", redacted(lock.uri), redacted(str(exc))
        )


class _Lock:
    def __init__(self, output: str, *, interval_s: float) -> None:
        stage, name = output.rstrip("/").split("/")[-2:]
        self.uri = storage.join(storage.parent(output, 2), "locks", f"{stage}-{name}.json")
        self._output = output
        self._interval_s = interval_s
        self._mine: dict[str, Any] = _description()

    def take(self) -> None:
        while True:
            found = _read(self.uri)
            if found is None:
                made = _create(self.uri, self._mine)
                if made == "found":
                    continue  # another was first
                if made == "unsure":
                    self._settle()
                return
            if found.get("owner") == self._mine["owner"]:
                return  # a PUT whose answer was lost, and which was sent again
            if self._owner_is_dead(found):
                if _read(self.uri) == found:
                    _write(self.uri, self._mine)
                    self._settle()
                    return
                continue

    def _owner_is_dead(self, found: dict[str, Any]) -> bool:
        """Look for its sign of life. False if the lock is gone."""
        if _same_machine(found, self._mine):
            start = _process_start(found.get("pid"))
            if start is not None and start == found.get("process_start"):
                raise self._locked(found)
            return True
        patience_s = _PATIENCE * self._interval_s
        _logger.warning(
            "%s: locked by a run on %s; waiting up to %g s for its sign of life",
            redacted(self._output),
            found.get("host"),
            patience_s,
        )
        until_s = time.monotonic() + patience_s
        while time.monotonic() < until_s:
            time.sleep(self._interval_s / _LOOKS)
            now = _read(self.uri)
            if now is None:
                return False
            if now != found:
                raise self._locked(now)
        return True

    def _settle(self) -> None:
        time.sleep(_SETTLE_S)
        found = _read(self.uri)
        if found is None or found.get("owner") != self._mine["owner"]:
            raise self._locked(found or {})

    def _locked(self, found: dict[str, Any]) -> RunLockedError:
        try:
            since = datetime.datetime.fromtimestamp(found["since_unix_s"], datetime.UTC)
            process = f"process {found['pid']}, since {since:%Y-%m-%d %H:%M:%S} UTC"
            who = f"{found['command']} on {found['host']}, {process}"
        except (KeyError, TypeError, ValueError, OverflowError, OSError):
            who = "it does not say which"
        return RunLockedError(
            self._output, f"another run is working on it ({who})", "Wait until it ends, or stop it."
        )

    def beat(self) -> None:
        """Give a sign of life.

        Raises:
            RunLockLostError: the lock is another's.
        """
        found = _read(self.uri)
        if found is not None and found.get("owner") != self._mine["owner"]:
            raise RunLockLostError(
                self._output,
                f"a run on {found.get('host')} (process {found.get('pid')}) has taken over",
                "This one gave no sign of life for too long. Let that one go on.",
            )
        self._mine["beat"] += 1
        _write(self.uri, self._mine)

    def release(self) -> None:
        found = _read(self.uri)
        if found is not None and found.get("owner") == self._mine["owner"]:
            storage.remove(self.uri)


def _description() -> dict[str, Any]:
    return {
        "owner": uuid.uuid4().hex,
        "command": " ".join(["cope-prep", *sys.argv[1:2]]),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_start": _process_start(os.getpid()),
        "boot_id": _first_line("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": _pid_namespace(),
        "since_unix_s": time.time(),  # for people: nothing is decided by it
        "beat": 0,
    }


def _first_line(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="utf-8").strip()
    return ""


def _pid_namespace() -> str:
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _process_start(pid: object) -> int | None:
    """Clock ticks from the machine's boot to the process's start; None if there is no such process (any more)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        state, *rest = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return None if state == "Z" else int(rest[18])
    return None


def _same_machine(found: dict[str, Any], mine: dict[str, Any]) -> bool:
    """True if both processes are of one machine and see each other by their ids."""
    names = ("boot_id", "pid_namespace")
    return all(mine[name] and found.get(name) == mine[name] for name in names)


def _read(uri: str) -> dict[str, Any] | None:
    """What is in a lock; None if there is none."""
    try:
        found = json.loads(storage.read_bytes(uri))
    except (SourceNotFoundError, FileNotFoundError):
        return None
    except ValueError:
        return {}  # damaged: nobody's, and taken over if it stays so
    return found if isinstance(found, dict) else {}


def _create(uri: str, document: dict[str, Any]) -> Literal["made", "found", "unsure"]:
    """Write a lock where none is; `unsure` if another may have done so at the same time."""
    content = json.dumps(document).encode()
    if storage.is_local(uri):
        path = storage.local_path(uri)
        beside = f"{storage.parent(path)}/{storage.TEMPORARY_PREFIX}{document['owner']}"
        storage.publish_bytes(beside, content)
        try:
            os.link(beside, path)
            return "made"
        except FileExistsError:
            return "found"
        except OSError:  # a file system without hard links
            pass
        finally:
            storage.remove(beside)
    else:
        found = insist_on("written", functools.partial(_create_remote, uri, content), uri, store_policy())
        if found is not None:
            return found
    if _read(uri) is not None:
        return "found"
    _write(uri, document)
    return "unsure"


def _create_remote(uri: str, content: bytes, timeout_s: float) -> Literal["found", "unsure"] | None:
    """One attempt; None if the store knows no conditional write."""
    fs, path = remote.filesystem(uri)
    try:
        remote.call(fs, "pipe_file", path, content, mode="create", timeout_s=timeout_s)
    except FileExistsError:
        return "found"
    except (NotImplementedError, TypeError, ValueError, OSError) as exc:
        # What S3's imitations answer to a header that they do not know is EINVAL or ENOSYS. A 503 is neither.
        if isinstance(exc, OSError) and exc.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        _logger.debug("%s: no conditional write", redacted(uri), exc_info=True)
        return None
    return "unsure"  # S3 is atomic here, but its imitations may not know the condition


def _write(uri: str, document: dict[str, Any]) -> None:
    storage.publish_bytes(uri, json.dumps(document).encode())
