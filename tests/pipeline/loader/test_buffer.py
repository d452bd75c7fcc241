"""One block for all arrays of a batch: what is written is read, across processes and devices too."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from torch.utils.data import DataLoader, IterableDataset

from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader import GopBatch, GopDataset, QABatch, QADataset, ShardReader
from cope_prep.pipeline.loader.batch import GOP_FIELDS, RUN_FIELDS
from cope_prep.pipeline.loader.buffer import Buffer

ARRAYS: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
    "flags": (np.bool_, (3,)),
    "nothing": (np.float64, (2, 0, 5)),
    "bytes": (np.int8, (5, 7)),
    "pictures": (np.uint8, (2, 3, 11)),
    "wide": (np.int16, (1, 9)),
    "counts": (np.int32, (4,)),
    "rows": (np.int64, (2, 2)),
    "steps": (np.float32, (3, 1)),
    "times": (np.float64, (13,)),
    "number": (np.int32, ()),
}


def filled() -> tuple[Buffer, dict[str, np.ndarray]]:
    """A buffer of random numbers, and the numbers."""
    buffer = Buffer.allocate(ARRAYS)
    rng = np.random.default_rng(3)
    arrays = buffer.arrays()
    for array in arrays.values():
        array[...] = rng.integers(0, 2 if array.dtype == np.bool_ else 100, array.shape)
    return buffer, {name: array.copy() for name, array in arrays.items()}


def assert_holds(buffer: Buffer, expected: dict[str, np.ndarray]) -> None:
    tensors = buffer.tensors()
    assert list(tensors) == list(expected) == list(ARRAYS)
    for name, tensor in tensors.items():
        assert tensor.numpy().dtype == expected[name].dtype
        np.testing.assert_array_equal(tensor.numpy(), expected[name], strict=True)


def test_arrays_and_tensors_are_the_same_memory() -> None:
    buffer, expected = filled()
    assert_holds(buffer, expected)
    arrays, tensors = buffer.arrays(), buffer.tensors()
    for name, (dtype, shape) in ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].shape) == (dtype, shape)
        assert tensors[name].shape == shape
        if arrays[name].size:
            assert arrays[name].ctypes.data == tensors[name].data_ptr()
            tensors[name].fill_(1)
            assert (arrays[name] == 1).all()


def test_arrays_are_aligned_and_do_not_overlap() -> None:
    buffer, _ = filled()
    end_bytes = 0
    for field in buffer.fields:
        assert field.offset_bytes % 64 == 0
        assert field.offset_bytes >= end_bytes
        end_bytes = field.offset_bytes + field.size_bytes
    assert end_bytes <= buffer.memory.numel() < end_bytes + 64
    assert {field.name for field in buffer.fields} == set(ARRAYS)


def test_buffer_survives_pickling() -> None:
    buffer, expected = filled()
    assert_holds(pickle.loads(pickle.dumps(buffer)), expected)


def test_buffer_is_handed_to_another_process_as_shared_memory() -> None:
    buffer, expected = filled()
    received = pickle.loads(ForkingPickler.dumps(buffer))
    assert received.memory.is_shared()
    assert_holds(received, expected)
    received.memory.fill_(0)
    assert not buffer.memory.any()  # the same memory, not a copy of it


class _Buffers(IterableDataset[Buffer]):
    """Yields a buffer, and changes it once more when it has long been sent."""

    def __iter__(self) -> Iterator[Buffer]:
        for _ in range(3):
            buffer, _ = filled()
            yield buffer


def test_worker_hands_on_what_it_filled() -> None:
    _, expected = filled()
    found = list(DataLoader(_Buffers(), batch_size=None, num_workers=1))
    assert len(found) == 3
    for buffer in found:
        assert_holds(buffer, expected)


def test_to_moves_every_tensor() -> None:
    buffer, expected = filled()
    assert_holds(buffer.to("cpu"), expected)
    assert_holds(buffer.to(torch.device("cpu"), non_blocking=False), expected)
    moved = buffer.to("meta").tensors()
    assert {tensor.device.type for tensor in moved.values()} == {"meta"}
    assert {name: tuple(tensor.shape) for name, tensor in moved.items()} == {
        name: shape for name, (_, shape) in ARRAYS.items()
    }


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_buffer_goes_to_the_device_and_back() -> None:
    buffer, expected = filled()
    pinned = buffer.pin_memory()
    assert pinned.memory.is_pinned()
    on_device = pinned.to("cuda")
    assert on_device.memory.is_cuda
    assert_holds(on_device.to("cpu", non_blocking=False), expected)


@pytest.fixture(params=["gops", "questions"])
def batch(request: pytest.FixtureRequest, small: Layout, reader: ShardReader) -> GopBatch | QABatch:
    """A batch of either dataset."""
    make = GopDataset if request.param == "gops" else QADataset
    return next(iter(make(small.dataset, batch_size=4, key_frames=2, reader=reader)))


def assert_same(found: GopBatch | QABatch, expected: GopBatch | QABatch) -> None:
    assert type(found) is type(expected)
    assert found.info == expected.info
    if isinstance(found, QABatch) and isinstance(expected, QABatch):
        assert found.questions == expected.questions
        for name in RUN_FIELDS:
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        found, expected = found.gops, expected.gops
    assert isinstance(found, GopBatch)
    for name in GOP_FIELDS:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_batch_survives_pickling(batch: GopBatch | QABatch) -> None:
    assert_same(pickle.loads(pickle.dumps(batch)), batch)
    assert_same(pickle.loads(ForkingPickler.dumps(batch)), batch)


def _send(batch: GopBatch | QABatch, batches: Any, received: Any) -> None:
    batches.put(batch)
    received.wait(60)  # torch wants the sender alive until then


def test_batch_of_another_process_is_the_same(batch: GopBatch | QABatch) -> None:
    context = torch.multiprocessing.get_context("fork")
    batches, received = context.Queue(), context.Event()
    process = context.Process(target=_send, args=(batch, batches, received))
    process.start()
    found = batches.get(timeout=60)
    received.set()
    process.join(timeout=60)
    assert process.exitcode == 0
    assert_same(found, batch)


def test_batch_is_moved_as_a_whole(batch: GopBatch | QABatch) -> None:
    assert_same(batch.to("cpu"), batch)
    moved = batch.to("meta")
    tensors = [getattr(moved, name) for name in RUN_FIELDS] if isinstance(moved, QABatch) else []
    gops = moved.gops if isinstance(moved, QABatch) else moved
    tensors += [getattr(gops, name) for name in GOP_FIELDS]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.info == batch.info
    assert len(moved) == len(batch) == 4


def test_batch_is_pinned_as_one_block(batch: GopBatch | QABatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinning takes a GPU's driver: a copy stands in for it."""
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    found = batch.pin_memory()
    assert_same(found, batch)
    (block,) = pinned
    gops = found.gops if isinstance(found, QABatch) else found
    assert gops.buffer.memory is block
    assert gops.pictures.untyped_storage().data_ptr() == block.untyped_storage().data_ptr()
