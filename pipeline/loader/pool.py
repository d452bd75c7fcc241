"""Blocks of shared memory that a worker uses again: fresh ones cost a page fault and a zeroed page every 4 KiB.

    worker      takes a block that nobody uses, fills it, and sends its descriptor's number
    consumer    maps the block from /proc/<worker>/fd/<number>; when the last view of it is gone, marks it free

Each block is a memfd with a flag in its first bytes: set when it is sent, cleared by the consumer. A block is taken
again only if the flag is clear and nothing in the worker refers to it. Nothing has a name: when the processes are
gone, killed or not, so is the memory; and the limit of /dev/shm, 64 MB in many containers, does not apply.
"""

from __future__ import annotations

import mmap
import os
import weakref
from dataclasses import dataclass

import numpy as np

_HEADER_BYTES = 64
_FREE, _SENT = 0, 1
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

    def __del__(self) -> None:
        os.close(self.descriptor)

    def is_free(self) -> bool:
        """True if neither side uses it."""
        return self.mapping[0] == _FREE and (self.held is None or self.held() is None)

    def mark_sent(self) -> None:
        """From now on the consumer says when it is free."""
        self.mapping[0] = _SENT


class BlockPool:
    """The blocks of one worker process."""

    def __init__(self, *, limit_bytes: int = _LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._blocks: list[Block] = []

    def take(self, size_bytes: int) -> tuple[np.ndarray, Block] | None:
        """uint8 [size_bytes] in a block that nobody uses; its content is undefined. None beyond the limit."""
        free = [block for block in self._blocks if block.is_free()]
        fitting = [block for block in free if block.capacity_bytes >= size_bytes]
        if fitting:
            block = min(fitting, key=lambda block: block.capacity_bytes)
        else:
            # None that is free fits: they give way to one that does.
            self._blocks = [block for block in self._blocks if block not in free]
            free.clear()
            capacity_bytes = -(-max(size_bytes, 1) // _ROUND_BYTES) * _ROUND_BYTES
            used_bytes = sum(block.capacity_bytes for block in self._blocks)
            if used_bytes + capacity_bytes > self._limit_bytes:
                return None
            block = _new_block(capacity_bytes)
            self._blocks.append(block)
        array = np.frombuffer(block.mapping, np.uint8, count=size_bytes, offset=_HEADER_BYTES)
        block.held = weakref.ref(array)
        return array, block


def receive(pid: int, descriptor: int, size_bytes: int) -> np.ndarray:
    """uint8 [size_bytes]: the content of a block that a worker has sent; free again when the array is gone.

    Raises:
        RuntimeError: the worker is gone.
    """
    try:
        handle = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR)
    except OSError as exc:
        raise RuntimeError(f"DataLoader worker (pid {pid}) exited unexpectedly: its batch is lost") from exc
    try:
        # Populated: the pages are there, and one call maps them all.
        mapping = mmap.mmap(handle, _HEADER_BYTES + size_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    finally:
        os.close(handle)
    array = np.frombuffer(mapping, np.uint8, count=size_bytes, offset=_HEADER_BYTES)
    weakref.finalize(array, _mark_free, mapping).atexit = False
    return array


def _mark_free(mapping: mmap.mmap) -> None:
    mapping[0] = _FREE


def _new_block(capacity_bytes: int) -> Block:
    descriptor = os.memfd_create("cope-prep-batch")
    os.ftruncate(descriptor, _HEADER_BYTES + capacity_bytes)
    mapping = mmap.mmap(descriptor, _HEADER_BYTES + capacity_bytes)
    return Block(descriptor=descriptor, capacity_bytes=capacity_bytes, mapping=mapping)
