"""Blocks of shared memory that a worker uses again: fresh ones cost a page fault and a zeroed page every 4 KiB.

    worker      takes a block that nobody uses, fills it, and sends its descriptor's number and a slot's
    consumer    maps the block from /proc/<worker>/fd/<number>; when the last view of it is gone, clears the slot

Each block is a memfd that begins with 64 slots of a byte. Each time the block is sent, one that is clear is set
and goes with the message; whoever received that message clears it. A block is taken again only if nothing in the
worker refers to it and all slots are clear. Slots rather than a count of releases: to clear a byte takes no lock,
which a finalizer must not wait for (it runs wherever the garbage collector does).

Nothing has a name: when the processes are gone, killed or not, so is the memory; and the limit of /dev/shm, 64 MB
in many containers, does not apply.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
import weakref
from dataclasses import dataclass, field

import numpy as np

_HEADER_BYTES = 64
"""Of which each is a slot; the content behind it is aligned."""
_CLEAR, _SET = 0, 1
_ROUND_BYTES = 1 << 20
"""Batches differ by a few samples' bytes: a block that is a little larger serves the next ones too."""
_LIMIT_BYTES = 2 << 30
"""Of a worker. A consumer that keeps its batches gets fresh memory beyond it, as without a pool."""


@dataclass(slots=True, eq=False)
class Block:
    """One memfd, as its worker sees it."""

    descriptor: int
    capacity_bytes: int
    mapping: mmap.mmap
    held: weakref.ref[np.ndarray] | None = None
    """What was handed out last, in this process."""
    pid: int = field(default_factory=os.getpid)
    """The process whose block it is: a forked child must not send it."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """A worker may have several queues, and each has a thread that sends."""

    def __del__(self) -> None:
        os.close(self.descriptor)

    def is_free(self) -> bool:
        """True if neither side uses it."""
        # In this order: the thread that sends sets a slot, and only then drops what it held.
        is_held = self.held is not None and self.held() is not None
        return not is_held and self.mapping[:_HEADER_BYTES] == bytes(_HEADER_BYTES)

    def mark_sent(self) -> int | None:
        """The slot that the receiver clears when it is done; None if all are set: it cannot be sent once more."""
        with self.lock:
            slot = self.mapping.find(_CLEAR.to_bytes(), 0, _HEADER_BYTES)
            if slot < 0:
                return None
            self.mapping[slot] = _SET
            return slot


class BlockPool:
    """The blocks of one worker process."""

    def __init__(self, *, limit_bytes: int = _LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._blocks: list[Block] = []
        self._lock = threading.Lock()

    def take(self, size_bytes: int) -> tuple[np.ndarray, Block] | None:
        """uint8 [size_bytes] in a block that nobody uses; its content is undefined.

        None beyond the limit, and on platforms without memfd or /proc.
        """
        with self._lock:
            block = self._free_block(size_bytes)
            if block is None:
                return None
            array = np.frombuffer(block.mapping, np.uint8, count=size_bytes, offset=_HEADER_BYTES)
            block.held = weakref.ref(array)
            return array, block

    def _free_block(self, size_bytes: int) -> Block | None:
        free = [block for block in self._blocks if block.is_free()]
        fitting = [block for block in free if block.capacity_bytes >= size_bytes]
        if fitting:
            return min(fitting, key=lambda block: block.capacity_bytes)
        # None that is free fits: they give way to one that does.
        self._blocks = [block for block in self._blocks if block not in free]
        free.clear()
        capacity_bytes = -(-max(size_bytes, 1) // _ROUND_BYTES) * _ROUND_BYTES
        used_bytes = sum(block.capacity_bytes for block in self._blocks)
        if used_bytes + capacity_bytes > self._limit_bytes:
            return None
        block = _new_block(capacity_bytes)
        if block is not None:
            self._blocks.append(block)
        return block


def receive(pid: int, descriptor: int, slot: int, size_bytes: int) -> np.ndarray:
    """uint8 [size_bytes]: the content of a block that a worker has sent; its slot is clear when the array is gone.

    A child that is forked meanwhile sees the array only as long as this process keeps it.

    Raises:
        RuntimeError: the worker is gone.
        OSError: the block is there and cannot be opened (too many open files, no permission) or mapped.
    """
    path = f"/proc/{pid}/fd/{descriptor}"
    try:
        handle = os.open(path, os.O_RDWR)
    except (FileNotFoundError, ProcessLookupError) as exc:
        raise RuntimeError(f"DataLoader worker (pid {pid}) exited unexpectedly: its batch is lost") from exc
    except OSError as exc:
        reason = f"{exc.strerror}: cannot open a batch of DataLoader worker (pid {pid}); {_advice(exc)}"
        raise OSError(exc.errno, reason, path) from exc
    try:
        # Populated: the pages are there, and one call maps them all.
        mapping = mmap.mmap(handle, _HEADER_BYTES + size_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    finally:
        os.close(handle)
    array = np.frombuffer(mapping, np.uint8, count=size_bytes, offset=_HEADER_BYTES)
    weakref.finalize(array, _clear, mapping, slot, os.getpid()).atexit = False
    return array


def _clear(mapping: mmap.mmap, slot: int, pid: int) -> None:
    # A forked child inherits this finalizer, but not the message: its parent still uses the block.
    if os.getpid() == pid:
        mapping[slot] = _CLEAR


def _advice(exc: OSError) -> str:
    if exc.errno in (errno.EMFILE, errno.ENFILE):
        return "keep fewer batches, or raise `ulimit -n`"
    return "the training process needs the right to read /proc/<pid>/fd of its workers"


def _new_block(capacity_bytes: int) -> Block | None:
    if not hasattr(os, "memfd_create") or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        descriptor = os.memfd_create("cope-prep-batch")
    except OSError as exc:
        if exc.errno in (errno.ENOSYS, errno.EPERM):  # an old kernel, or a sandbox's filter of system calls
            return None
        raise
    os.ftruncate(descriptor, _HEADER_BYTES + capacity_bytes)
    mapping = mmap.mmap(descriptor, _HEADER_BYTES + capacity_bytes)
    return Block(descriptor=descriptor, capacity_bytes=capacity_bytes, mapping=mapping)
