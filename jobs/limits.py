"""What a worker process may take of its machine: memory, open files, no core dumps.

Two guards of the memory, because neither is enough. The supervisor reads the child's resident size ten times a
second and ends it above the limit; so it is the limit that counts what is used. The kernel refuses the child
allocations beyond half as much again (RLIMIT_DATA); so it stops the one absurd allocation, and what grows faster
than somebody looks. Not RLIMIT_AS: the compiler and FFmpeg reserve far more addresses than they touch.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
from collections.abc import Iterator

from cope_prep.schemas.errors import MemoryLimitError, WorkerDiedError

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_HEADROOM = 1.5
"""RLIMIT_DATA over the limit. An allocation that fails within FFmpeg may pass for a damaged picture, so whatever
grows step by step must meet the supervisor first."""
_PROBE_MARGIN_BYTES = 16 * 1024**2
"""What the interpreter itself may take between reading its size and the probe."""
_NUM_FILES = 1024


def hold_process() -> None:
    """Limit what this process never needs: core dumps (a video's bytes, gigabytes of them) and many files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    num_files = _NUM_FILES if hard == resource.RLIM_INFINITY else min(_NUM_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (num_files, hard))


def hold_memory(memory_bytes: int | None) -> None:
    """Have the kernel refuse this process memory far beyond `memory_bytes`; None: no limit."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if memory_bytes is None:
        soft = hard
    else:
        # What is reserved and was never touched (stacks of threads, arenas) is not held against the call.
        soft = int(_HEADROOM * memory_bytes) + _untouched_bytes()
        soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _untouched_bytes() -> int:
    """Private memory that this process has been promised and does not occupy."""
    promised_bytes, occupied_bytes = _private_bytes()
    return max(0, promised_bytes - occupied_bytes)


def _private_bytes() -> tuple[int, int]:
    """Private memory of this process: promised, which is what RLIMIT_DATA counts, and occupied."""
    sizes = {}
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in ("VmData", "RssAnon"):
                sizes[name] = int(rest.split()[0]) * 1024
    return sizes.get("VmData", 0), sizes.get("RssAnon", 0)


def resident_bytes(pid: int) -> int:
    """Memory that a process occupies; 0 if it has ended."""
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES
    return 0


def ran_out(exc: BaseException) -> bool:
    """True if an exception, or one that it was made of, says that memory was refused."""
    return any(
        isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM)
        for cause in _causes(exc)
    )


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """An exception, and those that it was made of."""
    seen: set[int] = set()
    cause: BaseException | None = exc
    while cause is not None and id(cause) not in seen:
        yield cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__


def refused(exc: BaseException, subject: str, memory_bytes: int | None) -> MemoryLimitError | WorkerDiedError:
    """The error of a call in whose process memory was refused; called where that is still as it was.

    A call that asks for more than its limit is refused by the limit, each time. What the limit would still grant
    and the machine does not (`ulimit -v`, vm.overcommit_memory, a container) another attempt may get, as after a
    kill by the kernel.
    """
    if memory_bytes is None:
        return over_limit(subject, None)
    # An operation of the kernel's that found no memory: for a socket, a page of a file. No limit of ours does that.
    is_kernel = not any(isinstance(cause, MemoryError) for cause in _causes(exc))
    occupied_bytes = resident_bytes(os.getpid())
    if not is_kernel and _is_granted(min(_left_bytes(), memory_bytes - occupied_bytes - _PROBE_MARGIN_BYTES)):
        return over_limit(subject, memory_bytes)
    return WorkerDiedError(
        subject,
        f"was refused memory by the machine ({type(exc).__name__}: {exc}), with {occupied_bytes / 1024**2:.0f}"
        f" of {memory_bytes / 1024**2:.0f} MiB in use",
        "Use fewer --workers; look at ulimit -v and vm.overcommit_memory.",
    )


def _left_bytes() -> int:
    """What RLIMIT_DATA still grants this process."""
    soft = resource.getrlimit(resource.RLIMIT_DATA)[0]
    return 0 if soft == resource.RLIM_INFINITY else soft - _private_bytes()[0] - _PROBE_MARGIN_BYTES


def _is_granted(size_bytes: int) -> bool:
    """True if the machine promises this process so much memory; nothing of it is touched."""
    if size_bytes <= 0:
        return True
    try:
        mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, MemoryError):
        return False
    return True


def over_limit(subject: str, memory_bytes: int | None) -> MemoryLimitError:
    """The error of a call that needs more memory than it may have."""
    if memory_bytes is None:
        return MemoryLimitError(subject, "needs more memory than there is", "Use a larger machine.")
    error = MemoryLimitError(
        subject,
        f"needs more memory than a worker may have ({memory_bytes / 1024**2:.0f} MiB)",
        "Look at the file, or allow more with --memory-limit and --retry-failed.",
    )
    error.memory_bytes = memory_bytes
    return error
