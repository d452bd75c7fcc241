"""Several arrays in one block of memory: one message between processes, one pinned block, one copy to the device.

A tensor that goes from a worker to the training process costs about 0.1 ms whatever its size (a file descriptor
is handed over), and a batch has a dozen. In a worker the block is shared memory from the start, so what is
decoded into it is never copied again on this side of the device. The block has no name in /dev/shm for longer
than its creation takes: a process that is killed leaves nothing behind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import get_worker_info

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

    def __init__(self, memory: torch.Tensor, fields: tuple[Field, ...]) -> None:
        """memory: uint8 [num_bytes], on any device."""
        self.memory = memory
        self.fields = fields

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
            memory = torch.empty(offset_bytes, dtype=torch.uint8)
        else:  # as torch's own collate does
            storage = torch.UntypedStorage._new_shared(offset_bytes)
            memory = torch.empty(0, dtype=torch.uint8).set_(storage)
        return cls(memory, tuple(fields))

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
        """The same on a device, by one copy."""
        return Buffer(self.memory.to(device, non_blocking=non_blocking), self.fields)
