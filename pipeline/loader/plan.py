"""Who reads what, when: an epoch's order, dealt to ranks and workers in equal steps, and how far it has come.

    epoch     order[0], order[1], ...                       the same for everybody (order.py)
    step g    order[consumed + g * G : ... + G]             G = world_size * batch_size, the global batch
    rank r    the r-th slice of batch_size units of each step
    worker w  the steps w, w + W, w + 2W, ... of its rank   as torch's DataLoader takes them in turn

What has been seen is one number, `consumed`: units of the order. To go on elsewhere, with other ranks, workers
or batch size, the rest of the order is dealt anew: nothing is read to get there.

The last step of an epoch may lack units. `drop` leaves them out, `wrap` fills it up from the epoch's beginning;
every rank has the same number of steps either way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from cope_prep.schemas.errors import ConfigurationError

LastBatch = Literal["drop", "wrap"]
STATE_KEY = "cope_prep.loader"
STATE_VERSION = 1
PREFETCH_STEPS = 3
"""Steps of a worker whose chunks are asked for ahead of time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """The steps of an epoch, or of what is left of it, as one rank sees them."""

    num_units: int
    """In the whole epoch."""
    consumed: int
    """Units of the order that were seen before."""
    batch_size: int
    """Of one rank."""
    world_size: int
    rank: int
    last: LastBatch

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigurationError(f"batch_size {self.batch_size}", "must be 1 or more")
        if not 0 <= self.rank < self.world_size:
            raise ConfigurationError(f"rank {self.rank}", f"is not one of {self.world_size} ranks")
        if self.last not in ("drop", "wrap"):
            raise ConfigurationError(f"last {self.last!r}", "must be 'drop' or 'wrap'")
        if not self.consumed >= 0:
            raise ConfigurationError(f"consumed {self.consumed}", "must not be negative")

    @property
    def global_batch(self) -> int:
        """Units of one step over all ranks."""
        return self.batch_size * self.world_size

    @property
    def num_left(self) -> int:
        """Units not seen yet."""
        return max(self.num_units - self.consumed, 0)

    @property
    def num_steps(self) -> int:
        """Batches that every rank gets."""
        whole = self.num_left // self.global_batch
        return -(-self.num_left // self.global_batch) if self.last == "wrap" else whole

    @property
    def num_dropped(self) -> int:
        """Units at the end that no rank gets."""
        return max(self.num_left - self.num_steps * self.global_batch, 0)

    @property
    def num_repeated(self) -> int:
        """Units from the beginning of the epoch that fill up the last step."""
        return max(self.num_steps * self.global_batch - self.num_left, 0)

    def positions(self, step: int) -> np.ndarray:
        """int64 [batch_size]: the positions in the order that this rank takes in a step."""
        first = self.consumed + step * self.global_batch + self.rank * self.batch_size
        return np.arange(first, first + self.batch_size) % self.num_units

    def consumed_after(self, num_steps: int) -> int:
        """`consumed` once this many steps are done."""
        return min(self.consumed + num_steps * self.global_batch, self.num_units)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an iteration has come: what a state holds besides the identity of the order."""

    epoch: int
    consumed: int
    """Units seen before this iteration began."""
    num_steps: int = 0
    """Steps done since: by all workers if `worker` is -1, else by this one."""
    global_batch: int = 1
    worker: int = -1
    num_workers: int = 0

    @property
    def next_consumed(self) -> int:
        """Units seen by now; of a worker, as if it were alone."""
        return self.consumed + self.num_steps * self.global_batch


def to_state(
    progress: Progress, identity: Mapping[str, Any], composition: list[dict[str, Any]]
) -> dict[str, Any]:
    """A state dict: plain numbers and strings, so that torch.save, JSON and pickle all keep it."""
    return {
        STATE_KEY: STATE_VERSION,
        **asdict(progress),
        "identity": dict(identity),
        "composition": composition,
    }


def from_state(state: Mapping[str, Any], identity: Mapping[str, Any]) -> Progress:
    """The progress of a dataset's own state, of a worker's, or of a whole StatefulDataLoader's.

    Raises:
        ConfigurationError: it is no such state, or the state of another order.
    """
    found = [state] if STATE_KEY in state else _find_states(state)
    if not found:
        raise ConfigurationError(
            "the loader's state", f"is not one of ours: it has {sorted(map(str, state))[:5]}"
        )
    for part in found:
        _check_identity(part, identity)
    parts = [Progress(**{name: int(part[name]) for name in Progress.__dataclass_fields__}) for part in found]
    first = parts[0]
    if STATE_KEY in state:
        return first
    if first.worker >= 0 and sorted(part.worker for part in parts) != list(range(first.num_workers)):
        raise ConfigurationError(
            "the loader's state", f"holds workers {[part.worker for part in parts]} of {first.num_workers}"
        )
    if len({(part.epoch, part.consumed, part.global_batch) for part in parts}) > 1:
        raise ConfigurationError("the loader's state", "holds workers of different epochs")
    # A snapshot may be some batches old: torchdata says how many.
    num_since = int(state.get("_steps_since_snapshot", 0))
    return Progress(
        epoch=first.epoch,
        consumed=first.consumed,
        num_steps=sum(part.num_steps for part in parts) + num_since,
        global_batch=first.global_batch,
    )


def _find_states(value: Any) -> list[Mapping[str, Any]]:
    """Our states inside a loader's: torchdata nests those of its workers."""
    if not isinstance(value, Mapping):
        return []
    if STATE_KEY in value:
        return [value]
    return [state for part in value.values() for state in _find_states(part)]


def _check_identity(state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    if state[STATE_KEY] != STATE_VERSION:
        raise ConfigurationError(
            "the loader's state", f"has version {state[STATE_KEY]}, this is {STATE_VERSION}"
        )
    differing = [
        f"{name} was {state['identity'].get(name)!r}, is {identity.get(name)!r}"
        for name in sorted({*identity, *state["identity"]})
        if identity.get(name) != state["identity"].get(name)
    ]
    if differing:
        raise ConfigurationError(
            "the loader's state",
            "belongs to another order of samples: " + "; ".join(differing),
            "Resume with the dataset and settings that it was made with.",
        )
