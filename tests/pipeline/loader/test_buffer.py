"""One block for all arrays of a batch: what is written is read, across processes and devices too."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from torch.utils.data import DataLoader, IterableDataset

from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader import (
    GopBatch,
    GopDataset,
    QABatch,
    QADataset,
    RawBatch,
    RawDataset,
    ShardReader,
)
from cope_prep.pipeline.loader.batch import RUN_FIELDS
from cope_prep.pipeline.loader.buffer import Buffer

AnyBatch = GopBatch | QABatch | RawBatch

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


def gops_of(small: Layout, reader: ShardReader) -> GopBatch:
    return next(iter(GopDataset(small.dataset, batch_size=4, key_frames=2, reader=reader)))


@pytest.fixture(params=["gops", "questions", "raw"])
def batch(request: pytest.FixtureRequest, small: Layout, reader: ShardReader) -> AnyBatch:
    """A batch of each dataset."""
    if request.param == "raw":
        return next(iter(RawDataset(small.dataset, batch_size=4, reader=reader)))
    if request.param == "questions":
        return next(iter(QADataset(small.dataset, batch_size=4, key_frames=2, reader=reader)))
    return gops_of(small, reader)


def tensors_of(batch: AnyBatch) -> dict[str, torch.Tensor]:
    if isinstance(batch, RawBatch):
        return {name: getattr(batch, name) for name in RawBatch.tensor_names()}
    if isinstance(batch, QABatch):
        return tensors_of(batch.gops) | {name: getattr(batch, name) for name in RUN_FIELDS}
    return {name: getattr(batch, name) for name in GopBatch.tensor_names()}


def buffer_of(batch: AnyBatch) -> Buffer:
    return batch.gops.buffer if isinstance(batch, QABatch) else batch.buffer


def assert_same(found: AnyBatch, expected: AnyBatch) -> None:
    assert type(found) is type(expected)
    assert found.info == expected.info
    if isinstance(found, QABatch) and isinstance(expected, QABatch):
        assert found.questions == expected.questions
    expected_tensors = tensors_of(expected)
    for name, tensor in tensors_of(found).items():
        assert tensor.dtype == expected_tensors[name].dtype, name
        assert torch.equal(tensor, expected_tensors[name]), name


def test_batch_survives_pickling(batch: AnyBatch) -> None:
    assert_same(pickle.loads(pickle.dumps(batch)), batch)
    assert_same(pickle.loads(ForkingPickler.dumps(batch)), batch)


def _send(batch: AnyBatch, batches: Any, received: Any) -> None:
    batches.put(batch)
    received.wait(60)  # torch wants the sender alive until then


def test_batch_of_another_process_is_the_same(batch: AnyBatch) -> None:
    context = torch.multiprocessing.get_context("fork")
    batches, received = context.Queue(), context.Event()
    process = context.Process(target=_send, args=(batch, batches, received))
    process.start()
    found = batches.get(timeout=60)
    received.set()
    process.join(timeout=60)
    assert process.exitcode == 0
    assert_same(found, batch)


def test_batch_is_moved_as_a_whole(batch: AnyBatch) -> None:
    assert_same(batch.to("cpu"), batch)
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in tensors_of(moved).values()} == {"meta"}
    assert moved.info == batch.info
    assert len(moved) == len(batch) == 4


def test_batch_is_pinned_as_one_block(batch: AnyBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = stand_in_for_pinning(monkeypatch)
    found = batch.pin_memory()
    assert_same(found, batch)
    (block,) = pinned
    assert buffer_of(found).memory is block
    starts = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(found).values()}
    assert starts == {block.untyped_storage().data_ptr()}


def stand_in_for_pinning(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Pinning takes a GPU's driver: a copy stands in for it. Returns the copies that will be made."""
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    return pinned


def test_only_copies_to_an_accelerator_do_not_block(batch: AnyBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the host, nothing would say when the content is there."""
    asked = []
    to = torch.Tensor.to

    def record(tensor: torch.Tensor, device: torch.device | str, *, non_blocking: bool) -> torch.Tensor:
        asked.append((str(device), non_blocking))
        return to(tensor, device, non_blocking=non_blocking)

    changed = replaced(batch)
    monkeypatch.setattr(torch.Tensor, "to", record)
    for device in ("cpu", torch.device("cpu"), "meta"):
        changed.to(device)
    changed.to("meta", non_blocking=False)
    assert set(asked) == {("cpu", False), ("meta", True), ("meta", False)}
    assert len(asked) == 4 * (1 + len(changed.replaced()))


def replaced(batch: AnyBatch) -> AnyBatch:
    """With tensors that have another dtype, another shape, other numbers, and a part of what was there."""
    if isinstance(batch, RawBatch):
        return replace(batch, data=batch.data[5:], is_valid=~batch.is_valid)
    if isinstance(batch, QABatch):
        gops = replaced(batch.gops)
        assert isinstance(gops, GopBatch)
        return replace(batch, gops=gops, run_tokens=batch.run_tokens + 1)
    half = batch.pictures[..., ::2].to(torch.bfloat16) / 255
    return replace(batch, pictures=half, motion=batch.motion[:, :1], num_tokens=batch.num_tokens + 1)


def test_a_batch_knows_what_was_replaced(batch: AnyBatch) -> None:
    assert batch.replaced() == {}
    assert batch.to("cpu").replaced() == {}
    expected = {
        GopBatch: {"pictures", "motion", "num_tokens"},
        QABatch: {"pictures", "motion", "num_tokens", "run_tokens"},
        RawBatch: {"data", "is_valid"},
    }
    assert set(replaced(batch).replaced()) == expected[type(batch)]


def test_replaced_tensors_stay_with_their_batch(batch: AnyBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = replaced(batch)
    before = buffer_of(batch).memory.data_ptr()
    assert_same(pickle.loads(pickle.dumps(changed)), changed)
    assert_same(pickle.loads(ForkingPickler.dumps(pickle.loads(pickle.dumps(changed)))), changed)
    assert_same(changed.to("cpu"), changed)
    moved = changed.to("meta")
    assert {tensor.device.type for tensor in tensors_of(moved).values()} == {"meta"}
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in tensors_of(moved).items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in tensors_of(changed).items()
    }
    pinned = stand_in_for_pinning(monkeypatch)
    assert_same(changed.pin_memory(), changed)
    assert len(pinned) == 1 + len(changed.replaced())
    assert buffer_of(batch).memory.data_ptr() == before


def test_questions_may_get_gops_of_another_buffer(small: Layout, reader: ShardReader) -> None:
    dataset = QADataset(small.dataset, batch_size=4, key_frames=2, reader=reader)
    batch = replace(next(iter(dataset)), gops=gops_of(small, reader))
    assert_same(pickle.loads(pickle.dumps(batch)), batch)
    assert_same(batch.to("cpu"), batch)


class _Replaced(IterableDataset[GopBatch]):
    """A wrapper on the workers' side."""

    def __init__(self, batches: GopDataset) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[GopBatch]:
        for batch in self.batches:
            half = batch.pictures.to(torch.float16) / 2
            yield replace(batch, pictures=half, motion=batch.motion[:, :1])


def test_what_a_worker_replaces_arrives(small: Layout, reader: ShardReader) -> None:
    dataset = GopDataset(small.dataset, batch_size=2, key_frames=2, reader=reader)
    expected = list(_Replaced(dataset))
    found = list(DataLoader(_Replaced(dataset), batch_size=None, num_workers=1))
    assert len(found) == len(expected) >= 2
    for one, other in zip(found, expected, strict=True):
        for name, tensor in tensors_of(one).items():
            assert torch.equal(tensor, tensors_of(other)[name]), name
