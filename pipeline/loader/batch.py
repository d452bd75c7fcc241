"""What the loaders yield: GOPs, or questions with the GOPs of their videos, padded to tensors with masks.

Letters of the shapes: B GOPs (or windows) in the batch; A anchors, K pictures and P Δ-frames of a GOP, at
most, so A <= K + P; H, W the picture's height and width, [3H/2, W] its planes (Y above, U and V side by side
below); Hb, Wb the grid of vectors; Q questions; S runs of tokens of a question, at most.

All tensors of a batch are views of one block of memory (buffer.py). Numbers are as they are stored, small
integers; device.py scales them and makes RGB, on the device where the model is. A tensor that was put in place of
one of them (`dataclasses.replace`, in a worker too) goes beside the block wherever the batch goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

import torch

from cope_prep.pipeline.loader.buffer import Buffer, move
from cope_prep.schemas.records import QARecord

PAD, PICTURE, DELTA = 0, 1, 2
"""Values of `kind`: nothing; an anchor given as a picture; an anchor given as motion and residual."""
_NOTHING: Mapping[str, torch.Tensor] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A sample that could not be read and was left out (`on_error="skip"`); its place in the batch is empty."""

    position: int
    """In the epoch's order."""
    key: str
    shard: str
    offset_bytes: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchInfo:
    """What a batch says beside its tensors."""

    keys: tuple[str, ...]
    """[B]: WebDataset keys of the GOPs."""
    video_ids: tuple[str, ...]
    """[B]"""
    positions: tuple[int, ...]
    """Of the units of the batch (GOPs, windows or questions) in the epoch's order."""
    skipped: tuple[Skipped, ...]
    residual_offset: int
    """Grey levels of a residual are `(residual - residual_offset) * residual_scale`."""
    residual_scale: int
    state: dict[str, Any]
    """Pass it to `load_state_dict` to go on after this batch, with any number of ranks and workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _BufferedBatch:
    """A batch whose other fields are tensors, all of them views of one buffer unless they were replaced."""

    info: BatchInfo
    buffer: Buffer

    @classmethod
    def tensor_names(cls) -> tuple[str, ...]:
        """The fields that are tensors."""
        return tuple(name for name in cls.__dataclass_fields__ if name not in ("info", "buffer"))

    @classmethod
    def from_buffer(
        cls, buffer: Buffer, info: BatchInfo, replaced: Mapping[str, torch.Tensor] = _NOTHING
    ) -> Self:
        """The batch whose tensors are in `buffer`, by name, or in `replaced`."""
        tensors = {**buffer.tensors(), **replaced}
        return cls(**{name: tensors[name] for name in cls.tensor_names()}, info=info, buffer=buffer)

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[Any, ...]]:
        return type(self).from_buffer, (self.buffer, self.info, _to_send(self.buffer, self.replaced()))

    def replaced(self) -> dict[str, torch.Tensor]:
        """The tensors that are not the buffer's, by name."""
        return self.buffer.foreign({name: getattr(self, name) for name in self.tensor_names()})

    def pin_memory(self) -> Self:
        """In page-locked memory; torch's DataLoader calls it when asked to pin."""
        return self.from_buffer(self.buffer.pin_memory(), self.info, _pin(self.replaced()))

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Self:
        """On a device, by one copy (and one for each tensor that was replaced); to the host it always blocks."""
        replaced = _move(self.replaced(), device, non_blocking=non_blocking)
        return self.from_buffer(self.buffer.to(device, non_blocking=non_blocking), self.info, replaced)


@dataclass(frozen=True, slots=True, kw_only=True)
class GopBatch(_BufferedBatch):
    """GOPs (or single windows) as tensors."""

    pictures: torch.Tensor
    """uint8 [B, K, 3H/2, W]: key frames, I420 planes in full range, BT.601."""
    picture_mask: torch.Tensor
    """bool [B, K]"""
    picture_s: torch.Tensor
    """float64 [B, K]: time in the video."""
    motion: torch.Tensor
    """int8 [B, P, Hb, Wb, 2] (int16 if stored at s = 1): (x, y) in units of motion_step_px, backward."""
    motion_step_px: torch.Tensor
    """float32 [B, P]"""
    intra: torch.Tensor
    """bool [B, P, Hb, Wb]: no vector leads back from this block."""
    residual: torch.Tensor
    """uint8 (dct), int8 or int16 [B, P, 3H/2, W]: see BatchInfo.residual_offset."""
    delta_mask: torch.Tensor
    """bool [B, P]"""
    delta_s: torch.Tensor
    """float64 [B, P]: time in the video of the anchor that the Δ leads to."""
    kind: torch.Tensor
    """int8 [B, A]: PICTURE or DELTA of each anchor in order of time, PAD behind the last."""
    anchor_s: torch.Tensor
    """float64 [B, A]: time in the video."""
    num_tokens: torch.Tensor
    """int32 [B, A]: run lengths of the token layout."""
    size_px: torch.Tensor
    """int32 [B, 2]: height and width; smaller than H, W where a batch mixes sizes."""
    gop_index: torch.Tensor
    """int32 [B]"""
    is_valid: torch.Tensor
    """bool [B]: False where a sample was skipped; all its masks are False."""

    def __len__(self) -> int:
        return len(self.is_valid)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawBatch(_BufferedBatch):
    """Samples as they are stored, for those who decode them in their own way."""

    data: torch.Tensor
    """uint8 [num_bytes]: the tar bytes of the samples, one after the other."""
    offset_bytes: torch.Tensor
    """int64 [B + 1]: sample b is `data[offset_bytes[b] : offset_bytes[b + 1]]`."""
    is_valid: torch.Tensor
    """bool [B]: False where a sample was skipped; its bytes are zeros."""

    def __len__(self) -> int:
        return len(self.is_valid)

    def sample(self, index: int) -> memoryview:
        """The bytes of a sample, not copied; `pipeline.tar.split_sample` gives its members."""
        start, end = self.offset_bytes[index : index + 2].tolist()
        return self.data[start:end].numpy().data


RUN_FIELDS = ("run_kind", "run_gop", "run_slot", "run_s", "run_tokens", "duration_s", "question_is_valid")


@dataclass(frozen=True, slots=True, kw_only=True)
class QABatch:
    """Questions, and the GOPs of their videos: a GOP that several questions share is there once."""

    gops: GopBatch
    """The distinct GOPs of all questions of the batch."""
    questions: tuple[QARecord, ...]
    """[Q]"""
    run_kind: torch.Tensor
    """int8 [Q, S]: PICTURE or DELTA, in order of time over all GOPs of the question; PAD behind the last."""
    run_gop: torch.Tensor
    """int32 [Q, S]: row in `gops`."""
    run_slot: torch.Tensor
    """int32 [Q, S]: which of that row's pictures, or which of its Δ-frames."""
    run_s: torch.Tensor
    """float64 [Q, S]: time in the video."""
    run_tokens: torch.Tensor
    """int32 [Q, S]: length of the run in tokens; 0 for PAD."""
    duration_s: torch.Tensor
    """float64 [Q]: length of the whole video, also where only some of its GOPs are given."""
    question_is_valid: torch.Tensor
    """bool [Q]: False where a GOP of the question could not be read; the question then has no runs."""

    @classmethod
    def from_buffer(
        cls,
        buffer: Buffer,
        info: BatchInfo,
        questions: tuple[QARecord, ...],
        replaced: Mapping[str, torch.Tensor] = _NOTHING,
    ) -> QABatch:
        """The batch whose tensors are in `buffer`, by name, or in `replaced`."""
        tensors = {**buffer.tensors(), **replaced}
        runs = {name: tensors[name] for name in RUN_FIELDS}
        return cls(gops=GopBatch.from_buffer(buffer, info, replaced), questions=questions, **runs)

    @property
    def info(self) -> BatchInfo:
        """Keys and video ids of the GOPs, positions of the questions, what was skipped, the state."""
        return self.gops.info

    def __len__(self) -> int:
        return len(self.questions)

    def __reduce__(self) -> tuple[Callable[..., QABatch], tuple[Any, ...]]:
        buffer = self.gops.buffer
        return QABatch.from_buffer, (buffer, self.info, self.questions, _to_send(buffer, self.replaced()))

    def replaced(self) -> dict[str, torch.Tensor]:
        """The tensors that are not the GOPs' buffer's, by name; those of `gops` too."""
        runs = {name: getattr(self, name) for name in RUN_FIELDS}
        return self.gops.replaced() | self.gops.buffer.foreign(runs)

    def pin_memory(self) -> QABatch:
        """In page-locked memory; torch's DataLoader calls it when asked to pin."""
        buffer = self.gops.buffer.pin_memory()
        return QABatch.from_buffer(buffer, self.info, self.questions, _pin(self.replaced()))

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> QABatch:
        """On a device, by one copy (and one for each tensor that was replaced); to the host it always blocks."""
        buffer = self.gops.buffer.to(device, non_blocking=non_blocking)
        replaced = _move(self.replaced(), device, non_blocking=non_blocking)
        return QABatch.from_buffer(buffer, self.info, self.questions, replaced)


def _to_send(buffer: Buffer, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # A tensor is sent with all of its storage: of a part of the buffer, the whole buffer.
    return {
        name: tensor.clone() if buffer.owns_memory_of(tensor) else tensor for name, tensor in tensors.items()
    }


def _pin(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: tensor.pin_memory() if tensor.device.type == "cpu" else tensor
        for name, tensor in tensors.items()
    }


def _move(
    tensors: Mapping[str, torch.Tensor], device: torch.device | str, *, non_blocking: bool
) -> dict[str, torch.Tensor]:
    return {name: move(tensor, device, non_blocking=non_blocking) for name, tensor in tensors.items()}
