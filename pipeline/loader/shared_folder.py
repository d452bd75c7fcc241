"""A local folder that the processes of a machine share: locks, and files that appear whole or not at all.

A file is written without a name (O_TMPFILE) and linked when it is whole, so a killed process leaves nothing
behind. Where the file system has no such files, the name is `.tmp-<name>`, and the next who writes it, or sweeps,
takes what a dead process left.

Locks are open-file-description locks on byte ranges of `.lock`: one byte far out, by hash, for each name. They
leave no files, they exclude threads as well as processes (each holder opens `.lock` anew), and a dead holder's
vanish.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator

LOCK_NAME = ".lock"
TEMPORARY_PREFIX = ".tmp-"
_NO_TMPFILE_ERRNOS = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}

_HELD: set[int] = set()
"""Descriptors of `.lock` in this process. A child must close its copies: each keeps the lock alive."""


def _close_inherited() -> None:
    for lock_fd in _HELD:
        os.close(lock_fd)
    _HELD.clear()


os.register_at_fork(after_in_child=_close_inherited)


def lock_byte(name: str) -> int:
    """The byte of `.lock` that stands for a name; never below 2^32."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return (1 << 32) + int.from_bytes(digest) % (1 << 62)


@contextlib.contextmanager
def locked(folder: str, byte: int, *, wait: bool = True) -> Iterator[int]:
    """Hold the lock of one byte; yields the descriptor of `.lock`.

    Raises:
        BlockingIOError: another holds it, and `wait` is False.
    """
    lock_fd = os.open(f"{folder}/{LOCK_NAME}", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    _HELD.add(lock_fd)
    pid = os.getpid()
    command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    try:
        fcntl.fcntl(lock_fd, command, _flock(fcntl.F_WRLCK, byte))
        yield lock_fd
    finally:
        if os.getpid() == pid:
            _HELD.discard(lock_fd)
            # Not by closing alone: a child just forked may not have closed its copy yet.
            with contextlib.suppress(OSError):
                fcntl.fcntl(lock_fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, byte))
            os.close(lock_fd)


@contextlib.contextmanager
def unnamed_file(folder: str, name: str) -> Iterator[int]:
    """A descriptor to write to, of a file without a name, or with a temporary one; gone afterwards unless linked.

    The caller holds the lock of the name.
    """
    temporary = ""
    try:
        written_fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o644)
    except OSError as exc:
        if exc.errno not in _NO_TMPFILE_ERRNOS:
            raise
        temporary = f"{folder}/{TEMPORARY_PREFIX}{name}"
        written_fd = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        yield written_fd
    finally:
        os.close(written_fd)
        if temporary:
            with contextlib.suppress(FileNotFoundError):  # linked by now
                os.unlink(temporary)


def link_file(written_fd: int, folder: str, name: str, *, lock_fd: int) -> None:
    """Give an `unnamed_file` its name, which nothing has yet."""
    if os.fstat(written_fd).st_nlink:
        os.rename(f"{folder}/{TEMPORARY_PREFIX}{name}", f"{folder}/{name}")
    else:
        # Naming a dir_fd makes Python call linkat and follow /proc's link; it is not used otherwise.
        os.link(f"/proc/self/fd/{written_fd}", f"{folder}/{name}", src_dir_fd=lock_fd, follow_symlinks=True)


def _flock(kind: int, byte: int) -> bytes:
    # struct flock of 64-bit Linux: type, whence, start, length, pid (must be 0), padded.
    return struct.pack("hhqqi0q", kind, os.SEEK_SET, byte, 1, 0)
