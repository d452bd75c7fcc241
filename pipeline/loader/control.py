"""What the training process and its workers tell each other: the epoch, where it begins, what was skipped.

A worker takes the epoch of its first iteration from its own copy of this object, which is as old as the worker: so
`set_epoch` after `iter(loader)` does not split an epoch between workers. A persistent worker takes that of later
iterations from shared memory. A copy made by pickle or deepcopy has shared memory of its own.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed

from cope_prep.schemas.errors import ConfigurationError

_EPOCH, _CONSUMED, _IS_SET, _IN_WORKERS = range(4)
_NUM_COUNTERS = 256


class Control:
    """Shared by a dataset and its copies in workers."""

    def __init__(self, num_shards: int) -> None:
        self._values = torch.zeros(4, dtype=torch.int64).share_memory_()
        self._skipped = torch.zeros(_NUM_COUNTERS, dtype=torch.int64).share_memory_()
        """One counter a worker, because adding is not atomic between processes."""
        self._said = torch.zeros(num_shards, dtype=torch.uint8).share_memory_()
        self._at_start: list[int] = self._values.tolist()
        """The values as this process, or the one that it was forked from, set them last."""
        self._has_iterated = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_has_iterated": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name in ("_values", "_skipped", "_said"):
            getattr(self, name).share_memory_()  # already shared when it came to a spawned worker

    def set(self, *, epoch: int, consumed: int, is_set: bool) -> None:
        """Decide on the next iteration; `is_set` by the user's set_epoch, not by a state."""
        self._at_start = [epoch, consumed, int(is_set), 0]
        self._values[:] = torch.tensor(self._at_start)

    @property
    def epoch(self) -> int:
        """Of the next iteration."""
        return int(self._values[_EPOCH])

    @property
    def consumed(self) -> int:
        """Units of that epoch that were seen before."""
        return int(self._values[_CONSUMED])

    @property
    def is_set(self) -> bool:
        """True if the user chose the epoch."""
        return bool(self._values[_IS_SET])

    @property
    def is_in_workers(self) -> bool:
        """True if worker processes were the last to iterate."""
        return bool(self._values[_IN_WORKERS])

    @property
    def num_skipped(self) -> int:
        """Samples skipped by this process and its workers so far."""
        return int(self._skipped.sum())

    def begin(self, *, in_worker: bool) -> tuple[int, int, bool]:
        """(epoch, consumed, is_set) of an iteration that begins in this process."""
        values = self._values.tolist()
        if in_worker and not self._has_iterated:
            values = self._at_start
        self._has_iterated = True
        self._values[_IN_WORKERS] = int(in_worker)
        return values[_EPOCH], values[_CONSUMED], bool(values[_IS_SET])

    def peek(self, *, in_worker: bool) -> tuple[int, int, bool]:
        """What `begin` would give."""
        values = self._at_start if in_worker and not self._has_iterated else self._values.tolist()
        return values[_EPOCH], values[_CONSUMED], bool(values[_IS_SET])

    def count_skipped(self, shard: int, *, worker: int) -> bool:
        """Count a skipped sample; True if it is the first one of its shard."""
        self._skipped[worker % _NUM_COUNTERS] += 1
        is_first = not self._said[shard]
        self._said[shard] = 1
        return is_first


def find_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """(rank, world size): as given, else torch.distributed's, else the environment's."""
    if rank is not None and world_size is not None:
        return rank, world_size
    if rank is not None or world_size is not None:
        raise ConfigurationError("rank and world_size", "must be given both, or neither")
    return _ranks_around()


def check_rank(rank: int, world_size: int) -> None:
    """Raises ConfigurationError if torch.distributed has begun since a rank was found, and says otherwise."""
    if (rank, world_size) == (0, 1) and _ranks_around() != (rank, world_size):
        raise ConfigurationError(
            "the dataset",
            f"was made as the only rank, and this is rank {_ranks_around()[0]} of {_ranks_around()[1]}",
            "Make it after init_process_group, or give rank and world_size.",
        )


def _ranks_around() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
