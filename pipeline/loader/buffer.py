"""Several arrays in one block of memory: one message between processes, one pinned block, one copy to the device.

A tensor that goes from a worker to the training process costs about 0.1 ms whatever its size (a file descriptor
is handed over), and a batch has a dozen. In a worker the block is shared memory from the start (pool.py), so what
is decoded into it is never copied again on this side of the device.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler

import numpy as np
import torch
from torch.utils.data import get_worker_info

from cope_prep.pipeline.loader.pool import Block, BlockPool, receive

_ALIGN_BYTES = 64
_TORCH_DTYPES = {
    np.dtype(np.bool_): torch.bool,
    np.dtype(np.int8): torch.int8,
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.int16): torch.int16,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One array in the block."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset_bytes: int

    @property
    def size_bytes(self) -> int:
        """Of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


class Buffer:
    """A block of memory and the arrays in it."""

    def __init__(
        self, memory: torch.Tensor, fields: tuple[Field, ...], *, block: Block | None = None
    ) -> None:
        """memory: uint8 [num_bytes], on any device; of a worker's pool if `block` is given."""
        self.memory = memory
        self.fields = fields
        self._block = block
        self._address = None if block is None else memory.data_ptr()

    @classmethod
    def allocate(cls, arrays: Mapping[str, tuple[np.dtype | type[np.generic], tuple[int, ...]]]) -> Buffer:
        """A block for arrays of these (dtype, shape); their content is undefined."""
        fields = []
        offset_bytes = 0
        for name, (dtype, shape) in arrays.items():
            field = Field(name=name, dtype=np.dtype(dtype), shape=shape, offset_bytes=offset_bytes)
            fields.append(field)
            offset_bytes += -(-field.size_bytes // _ALIGN_BYTES) * _ALIGN_BYTES
        if get_worker_info() is None:
            return cls(torch.empty(offset_bytes, dtype=torch.uint8), tuple(fields))
        taken = _pool_of_this_process().take(offset_bytes)
        if taken is not None:
            array, block = taken
            return cls(torch.from_numpy(array), tuple(fields), block=block)
        # As torch's own collate does.
        storage = torch.UntypedStorage._new_shared(offset_bytes)
        return cls(torch.empty(0, dtype=torch.uint8).set_(storage), tuple(fields))

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, as writable views; only where the block is on the host."""
        block = self.memory.numpy()
        return {
            field.name: block[field.offset_bytes : field.offset_bytes + field.size_bytes]
            .view(field.dtype)
            .reshape(field.shape)
            for field in self.fields
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """The arrays by name, as views of the block."""
        return {
            field.name: self.memory[field.offset_bytes : field.offset_bytes + field.size_bytes]
            .view(_TORCH_DTYPES[field.dtype])
            .reshape(field.shape)
            for field in self.fields
        }

    def pin_memory(self) -> Buffer:
        """The same in page-locked memory."""
        return Buffer(self.memory.pin_memory(), self.fields)

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Buffer:
        """The same on a device, by one copy; `non_blocking` only towards an accelerator (see `move`)."""
        return Buffer(move(self.memory, device, non_blocking=non_blocking), self.fields)

    def foreign(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Those of `tensors` that are not this buffer's own views by those names."""
        start, device = self.memory.data_ptr(), self.memory.device
        own = {field.name: field for field in self.fields}
        found = {}
        for name, tensor in tensors.items():
            field = own.get(name)
            is_own = (
                field is not None
                and tensor.shape == field.shape
                and tensor.dtype == _TORCH_DTYPES[field.dtype]
                and tensor.device == device
                and tensor.is_contiguous()
                and (tensor.data_ptr() == start + field.offset_bytes or not tensor.numel())
            )
            if not is_own:
                found[name] = tensor
        return found

    def owns_memory_of(self, tensor: torch.Tensor) -> bool:
        """True if the tensor is a view of this block, of whatever part of it."""
        return tensor.untyped_storage().data_ptr() == self.memory.untyped_storage().data_ptr()

    def block_to_send(self) -> Block | None:
        """The pool's block that holds the content.

        None if there is none, or not any longer: torch moves the storage of a tensor to its own shared memory when
        it sends one, say a view of this one that somebody sent by itself; and in a forked child it is the parent's.
        """
        is_ours = self._block is not None and self._block.pid == os.getpid()
        return self._block if is_ours and self.memory.data_ptr() == self._address else None

    def __reduce__(self) -> tuple[Callable[..., Buffer], tuple[torch.Tensor, tuple[Field, ...]]]:
        return Buffer, (self.memory, self.fields)


def move(tensor: torch.Tensor, device: torch.device | str, *, non_blocking: bool) -> torch.Tensor:
    """The tensor on a device. A copy to the host always blocks: nothing would say when its content is there."""
    return tensor.to(device, non_blocking=non_blocking and torch.device(device).type != "cpu")


_pools: dict[int, BlockPool] = {}
"""By process id: a forked child must not use its parent's."""


def _pool_of_this_process() -> BlockPool:
    pid = os.getpid()
    if pid not in _pools:
        _pools.clear()
        _pools[pid] = BlockPool()
    return _pools[pid]


def _send(buffer: Buffer) -> tuple[Callable[..., Buffer], tuple[object, ...]]:
    """How a queue between processes takes a buffer; plain pickle copies its content instead."""
    block = buffer.block_to_send()
    slot = None if block is None else block.mark_sent()
    if block is None or slot is None:
        return buffer.__reduce__()
    return _receive, (block.pid, block.descriptor, slot, buffer.memory.numel(), buffer.fields)


def _receive(pid: int, descriptor: int, slot: int, size_bytes: int, fields: tuple[Field, ...]) -> Buffer:
    return Buffer(torch.from_numpy(receive(pid, descriptor, slot, size_bytes)), fields)


ForkingPickler.register(Buffer, _send)
