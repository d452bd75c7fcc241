"""Recycled blocks: never one that either side still uses, and none left behind."""

from __future__ import annotations

import contextlib
import errno
import gc
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cope_prep.pipeline.loader.buffer import Buffer, Field
from cope_prep.pipeline.loader.pool import Block, BlockPool, receive

NUM_BYTES = 300_000


def descriptors() -> set[str]:
    return {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)}


def _is_open(fd: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{fd}")


def send(block: Block) -> np.ndarray:
    """What the consumer gets."""
    slot = block.mark_sent()
    assert slot is not None
    return receive(os.getpid(), block.descriptor, slot, NUM_BYTES)


def buffer_of(pool: BlockPool) -> Buffer:
    """A worker's buffer of sevens."""
    array, block = pool.take(NUM_BYTES) or pytest.fail("no block")
    array[:] = 7
    field = Field(name="values", dtype=np.dtype(np.uint8), shape=(NUM_BYTES,), offset_bytes=0)
    return Buffer(torch.from_numpy(array), (field,), block=block)


def test_a_block_serves_again_only_when_both_sides_are_done() -> None:
    pool = BlockPool()
    array, block = pool.take(NUM_BYTES) or pytest.fail("no block")
    array[:] = 7
    received = send(block)
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


def test_a_block_that_was_sent_twice_is_free_after_both() -> None:
    pool = BlockPool()
    array, block = pool.take(NUM_BYTES) or pytest.fail("no block")
    first, second = send(block), send(block)
    del array, first
    assert not block.is_free()
    third = send(block)
    del second
    assert not block.is_free()
    del third
    assert block.is_free()


def test_a_block_is_let_go_from_many_threads() -> None:
    pool = BlockPool()
    array, block = pool.take(NUM_BYTES) or pytest.fail("no block")
    received = [[send(block)] for _ in range(64)]
    del array
    assert block.mark_sent() is None  # no slot is left
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(list.clear, received[1:]))
    assert not block.is_free()
    received.clear()
    assert block.is_free()


def test_a_buffer_that_is_sent_more_often_than_there_are_slots_goes_as_torch_sends_it() -> None:
    buffer = buffer_of(BlockPool())
    received = [pickle.loads(ForkingPickler.dumps(buffer)) for _ in range(70)]
    assert len(received) == 70
    assert all((each.memory == 7).all() for each in received)


def test_a_buffer_whose_memory_torch_has_moved_is_not_sent_as_a_block() -> None:
    """torch moves a storage to its own shared memory when a view of it is sent: the block is no longer it."""
    pool = BlockPool()
    buffer = buffer_of(pool)
    pickle.loads(ForkingPickler.dumps(buffer.tensors()["values"]))
    other, _ = pool.take(NUM_BYTES) or pytest.fail("no block")
    other[:] = 1
    assert (pickle.loads(ForkingPickler.dumps(buffer)).memory == 7).all()


def test_a_forked_child_of_the_consumer_frees_nothing() -> None:
    pool = BlockPool()
    array, block = pool.take(NUM_BYTES) or pytest.fail("no block")
    received = [send(block)]
    del array
    process = multiprocessing.get_context("fork").Process(target=received.clear)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 0
    assert not block.is_free()
    received.clear()
    assert block.is_free()


def test_a_block_that_is_sent_at_this_moment_is_not_free() -> None:
    """The thread that sends says so, and then lets go: whoever asks in between must not miss both."""
    _, block = BlockPool().take(NUM_BYTES) or pytest.fail("no block")

    def let_go() -> None:
        block.mark_sent()

    block.held = let_go  # type: ignore[assignment]
    assert not block.is_free()


def test_two_threads_do_not_take_the_same_block(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = BlockPool()
    pool.take(NUM_BYTES)
    both_have_looked = threading.Barrier(2)
    is_free = Block.is_free

    def slow_is_free(block: Block) -> bool:
        found = is_free(block)
        with contextlib.suppress(threading.BrokenBarrierError):  # the other is kept out meanwhile
            both_have_looked.wait(timeout=0.2)
        return found

    monkeypatch.setattr(Block, "is_free", slow_is_free)
    with ThreadPoolExecutor(2) as threads:
        (first, one), (second, two) = threads.map(
            lambda _: pool.take(NUM_BYTES) or pytest.fail("no block"), range(2)
        )
    assert one is not two
    assert not np.shares_memory(first, second)


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
        receive(2**22 - 3, 5, 0, 10)


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.EMFILE, "ulimit -n"), (errno.EACCES, "the right to read")]
)
def test_a_block_that_cannot_be_opened_says_why(
    number: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str, _flags: int) -> int:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(OSError, match=f"{os.strerror(number)}: .*{advice}") as caught:
        receive(os.getpid(), 5, 0, 10)
    assert caught.value.errno == number


def _without_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")


def _without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "isdir", lambda path: not str(path).startswith("/proc"))


def _with_a_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_name: str) -> int:
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr(os, "memfd_create", fail)


@pytest.mark.parametrize("prepare", [_without_memfd, _without_proc, _with_a_filter])
def test_elsewhere_batches_go_as_torch_sends_them(
    prepare: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(monkeypatch)
    assert BlockPool().take(NUM_BYTES) is None
    found = list(DataLoader(_Counting(5), batch_size=None, num_workers=1))
    assert all(buffer.memory.is_shared() for buffer in found)  # which a block is not to torch
    assert [int(buffer.tensors()["values"].unique()) for buffer in found] == [0, 1, 2, 3, 4]


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


class _Twice(_Counting):
    """Each buffer is yielded twice, as a wrapper may that repeats hard samples."""

    def __iter__(self) -> Iterator[Buffer]:
        for buffer in super().__iter__():
            yield buffer
            yield buffer


def test_no_batch_that_is_yielded_twice_is_overwritten() -> None:
    """The first of each two is let go at once."""
    kept = []
    for index, buffer in enumerate(DataLoader(_Twice(20), batch_size=None, num_workers=1)):
        if index % 2:
            kept.append(buffer.tensors()["values"])
        del buffer
    assert len(kept) == 20
    for number, values in enumerate(kept):
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
    (worker,) = [child for child in multiprocessing.active_children() if child.pid == pid]

    def kill_and_go_on() -> None:
        os.kill(pid, signal.SIGKILL)
        worker.join(timeout=60)  # torch raises on SIGCHLD, wherever this process is then: here
        list(batches)

    with pytest.raises(RuntimeError, match=r"killed|exited unexpectedly"):
        kill_and_go_on()
