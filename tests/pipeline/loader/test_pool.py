"""Recycled blocks: never one that either side still uses, and none left behind."""

from __future__ import annotations

import gc
import os
import pickle
import signal
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cope_prep.pipeline.loader.buffer import Buffer
from cope_prep.pipeline.loader.pool import BlockPool, receive

NUM_BYTES = 300_000


def descriptors() -> set[str]:
    return {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)}


def _is_open(fd: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{fd}")


def test_a_block_serves_again_only_when_both_sides_are_done() -> None:
    pool = BlockPool()
    array, block = pool.take(NUM_BYTES) or pytest.fail("no block")
    array[:] = 7
    block.mark_sent()
    received = receive(os.getpid(), block.descriptor, NUM_BYTES)
    assert (received == 7).all()

    _, other = pool.take(NUM_BYTES) or pytest.fail("no block")
    assert other is not block  # both sides use the first
    del array
    _, other = pool.take(NUM_BYTES) or pytest.fail("no block")
    assert other is not block  # the consumer does
    view = received[10:20]
    del received
    _, other = pool.take(NUM_BYTES) or pytest.fail("no block")
    assert other is not block  # a view of it counts
    del view
    _, other = pool.take(NUM_BYTES - 5) or pytest.fail("no block")
    assert other is block


def test_a_block_that_its_worker_still_holds_is_not_taken() -> None:
    pool = BlockPool()
    array, block = pool.take(NUM_BYTES) or pytest.fail("no block")
    tensor = torch.from_numpy(array)
    del array
    _, other = pool.take(NUM_BYTES) or pytest.fail("no block")
    assert other is not block
    del tensor
    _, other = pool.take(NUM_BYTES) or pytest.fail("no block")
    assert other is block


def test_blocks_that_are_too_small_give_way() -> None:
    pool = BlockPool(limit_bytes=8 << 20)
    before = len(os.listdir("/proc/self/fd"))
    for size in (1 << 20, 2 << 20, 3 << 20, 5 << 20):
        array, _ = pool.take(size) or pytest.fail("no block")
        assert len(array) == size
        del array
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # a descriptor, and the mapping's own


def test_beyond_the_limit_there_is_none() -> None:
    pool = BlockPool(limit_bytes=2 << 20)
    held = [pool.take(1 << 20), pool.take(1 << 20)]
    assert all(taken is not None for taken in held)
    assert pool.take(1) is None
    held.pop()
    assert pool.take(1) is not None


def test_a_block_of_a_worker_that_is_gone_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        receive(2**22 - 3, 5, 10)


class _Counting(IterableDataset[Buffer]):
    """Buffers of 2 MB, filled with their number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Buffer]:
        for number in range(self.count):
            buffer = Buffer.allocate({"values": (np.int32, (500_000,)), "pid": (np.int64, (2,))})
            arrays = buffer.arrays()
            arrays["values"][:] = number
            info = get_worker_info()
            assert info is not None
            arrays["pid"][:] = os.getpid(), len(os.listdir("/proc/self/fd"))
            yield buffer


def test_no_batch_is_overwritten_while_it_is_kept() -> None:
    """Some are kept to the end, the others let go at once: those are recycled meanwhile."""
    kept = []
    for number, buffer in enumerate(DataLoader(_Counting(60), batch_size=None, num_workers=1)):
        values = buffer.tensors()["values"]
        assert (values == number).all()
        if number % 10 == 3:
            kept.append((number, values[100:200]))
        del buffer, values
    assert len(kept) == 6
    for number, values in kept:
        assert (values == number).all()


def test_a_few_blocks_serve_an_epoch() -> None:
    """Counted by the worker's open descriptors, two a block."""
    numbers = []
    for buffer in DataLoader(_Counting(40), batch_size=None, num_workers=1):
        numbers.append(int(buffer.tensors()["pid"][1]))
        del buffer
    assert len(numbers) == 40
    assert max(numbers[8:]) <= numbers[8] + 2


def test_memory_of_the_consumer_is_given_back() -> None:
    batches = DataLoader(_Counting(10), batch_size=None, num_workers=1)
    held = list(batches)
    assert sum("cope-prep-batch" in name for name in descriptors()) >= 1
    del held, batches
    gc.collect()
    assert not any("cope-prep-batch" in name for name in descriptors())


def test_plain_pickle_of_a_workers_buffer_holds_its_content() -> None:
    """For those who send batches elsewhere by themselves."""
    found = list(DataLoader(_Pickled(), batch_size=None, num_workers=1))
    assert len(found) == 2
    assert all((pickle.loads(content).tensors()["values"] == 9).all() for content in found)


class _Pickled(IterableDataset[bytes]):
    def __iter__(self) -> Iterator[bytes]:
        for _ in range(2):
            buffer = Buffer.allocate({"values": (np.int32, (1000,))})
            buffer.arrays()["values"][:] = 9
            yield pickle.dumps(buffer)


def test_a_received_batch_can_be_sent_on() -> None:
    (first, *_) = list(DataLoader(_Counting(1), batch_size=None, num_workers=1))
    again = pickle.loads(ForkingPickler.dumps(first))
    assert (again.tensors()["values"] == 0).all()


def test_a_killed_worker_is_an_error() -> None:
    batches = iter(DataLoader(_Counting(200), batch_size=None, num_workers=1))
    pid = int(next(batches).tensors()["pid"][0])
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"killed|exited unexpectedly"):
        list(batches)
