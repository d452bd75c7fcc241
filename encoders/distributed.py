"""The ranks of a run: how they find each other, how the model is spread over them, and what they tell each other.

    ddp      every rank has the whole model; gradients are averaged with the last micro-batch of a step
    fsdp2    every rank has a slice of each parameter, its gradient and its optimizer state. Blocks are gathered one
             at a time; what is outside of them (embeddings, heads) is gathered for the whole step

Under fsdp2 with bf16, blocks compute with bf16 copies of their parameters; what is outside keeps float32 and is
cast operation by operation, as all is under ddp. Gradients are reduced in float32.

A batch need not use all parameters; but under fsdp2 every rank must run the same blocks for each of its batches.
A single process needs neither and gets the model as it is. Ranks must be able to read the same checkpoints.

fsdp2 on CPUs (gloo) is for tests: torch 2.13 now and then aborts there while Python shuts down, when all is done
and saved ("terminate called without an active exception"; twenty lines of torch alone do it too).
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from cope_prep.schemas.errors import ConfigurationError

Parallel = Literal["ddp", "fsdp2"]
_TIMEOUT = datetime.timedelta(minutes=60)
"""The others wait while rank 0 writes a checkpoint or reads a question file."""
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among those that train together."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True on the rank that writes and reports."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Element by element, over ranks; the same on all of them."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value (anything that pickles), in order of ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def on_first(self, function: Callable[[], ResultT]) -> ResultT:
        """Let rank 0 alone do something; all get its result, or its error."""
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = function()
            except Exception as exc:
                if self.world_size == 1:
                    raise
                outcome[1] = exc
        if self.world_size > 1:
            dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return cast("ResultT", outcome[0])


@contextlib.contextmanager
def connect(device: str = "auto") -> Iterator[Ranks]:
    """The ranks around: of a process group that is there already (Ray Train's), else torchrun's, else one alone.

    `device`: auto, cpu or cuda; with several GPUs in sight, the one of LOCAL_RANK.
    """
    is_ours = False
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        chosen = _find_device(device)
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=_TIMEOUT)
        is_ours = True
    try:
        chosen = _find_device(device)
        together = dist.is_initialized()
        yield Ranks(
            rank=dist.get_rank() if together else 0,
            world_size=dist.get_world_size() if together else 1,
            device=chosen,
        )
    except BaseException as exc:
        if is_ours:
            _clear_frames(exc)
        raise
    finally:
        if is_ours:
            gc.collect()
            dist.destroy_process_group()


def _clear_frames(error: BaseException | None) -> None:
    """Let go of what the frames of an error hold: DDP among it, and with DDP the process group.

    DDP as its last owner frees the group while it holds the GIL, and waits for gloo's threads, one of which may
    wait for the GIL to free the tensors of the last operation: the process would never end (torch 2.13).
    `destroy_process_group` as the last owner lets go of the GIL.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _find_device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigurationError(f"device {name!r}", "must be auto, cpu or cuda")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigurationError(
            "device 'cuda'", "there is no GPU that torch can use", "Use device = 'auto'."
        )
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def check_parallel(parallel: Parallel) -> None:
    """
    Raises:
        ConfigurationError: this torch cannot do it.
    """
    if parallel == "fsdp2" and not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise ConfigurationError(
            "parallel 'fsdp2'",
            f"needs torch 2.13 or newer, here is {torch.__version__}",
            "A batch without Δ-frames would hang older ones. Use parallel = 'ddp', or another torch.",
        )


def spread(
    model: nn.Module, blocks: Sequence[nn.Module], ranks: Ranks, *, parallel: Parallel, is_bf16: bool
) -> nn.Module:
    """The model as it is trained on these ranks; all begin with the weights of rank 0.

    fsdp2 replaces the model's parameters by sharded ones, in place; names stay what they are in both cases.
    """
    if ranks.world_size == 1:
        return model
    for tensor in model.state_dict(keep_vars=True).values():
        dist.broadcast(tensor.detach(), src=0)
    if parallel == "ddp":
        # A batch without Δ-frames gives the Δ-encoder no gradient: DDP must look for it, not wait for it.
        warnings.filterwarnings("ignore", "find_unused_parameters=True was specified", UserWarning)
        with warnings.catch_warnings():
            # Newer versions of torch have another name for it, which older ones do not know.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return DistributedDataParallel(
                model, broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
            )
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    block_policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if is_bf16 else None, reduce_dtype=torch.float32 if is_bf16 else None
    )
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=block_policy)
    # Times in seconds are among the inputs of the whole: they must not become bf16.
    sharded = fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    sharded.set_reduce_scatter_unused_params(True)  # as above: of a batch without Δ-frames, zeros
    return model  # the same object, of a class that is both


@contextlib.contextmanager
def micro_batch(model: nn.Module, *, is_last: bool) -> Iterator[None]:
    """Around forward and backward of one micro-batch of a step: DDP reduces gradients with the last one only.

    FSDP2 reduces them every time. To wait, it would keep the gradients of the whole model on every rank, which
    is what sharding is there to avoid (30 GB of them for 7B parameters).
    """
    with model.no_sync() if isinstance(model, DistributedDataParallel) and not is_last else _nothing():
        yield


def _nothing() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def reshard(model: nn.Module) -> None:
    """After a forward without a backward: let go of the gathered parameters, which a step would make stale."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def average_statistics(model: nn.Module, ranks: Ranks) -> None:
    """Mean over ranks of BatchNorm's running statistics, where they move: each rank's have seen its own samples.

    After every step, not only where a checkpoint is written: the result must not depend on how many of them are.
    """
    buffers = [
        buffer
        for module in model.modules()
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.training
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
    if ranks.world_size == 1 or not buffers:
        return
    means = ranks.sum(torch.cat([buffer.flatten().double() for buffer in buffers])) / ranks.world_size
    for buffer, mean in zip(buffers, means.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that may be sharded. Every rank must call it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def fill(target: torch.Tensor, values: torch.Tensor) -> None:
    """Copy all of a tensor into one that may be sharded; every rank has all of `values`."""
    values = values.to(device=target.device, dtype=target.dtype)
    if isinstance(target, DTensor):
        # None: each rank slices what it has, nothing is sent.
        values = distribute_tensor(values, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(values)
