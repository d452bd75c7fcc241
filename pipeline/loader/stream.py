"""What GopDataset and QADataset have in common: the epoch's order dealt out, state, prefetch, skipped samples.

A dataset yields whole batches, so it goes into a DataLoader with `batch_size=None`. Each worker makes the
batches of its own steps; torch takes them from the workers in turn, which gives the order back.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from cope_prep.pipeline import storage
from cope_prep.pipeline.loader.batch import BatchInfo, Skipped
from cope_prep.pipeline.loader.mix import part_sizes, repeat_units, unit_copies
from cope_prep.pipeline.loader.order import Shuffle, compact, visit_order
from cope_prep.pipeline.loader.plan import LastBatch, Progress, StepPlan, from_state, to_state
from cope_prep.pipeline.loader.primitives import ResidualScale
from cope_prep.pipeline.loader.samples import SampleStore
from cope_prep.schemas.errors import ConfigurationError, CopePrepError

logger = logging.getLogger("cope_prep.loader")

OnError = Literal["raise", "skip"]
PREFETCH_STEPS = 3
"""Steps of a worker whose chunks are asked for ahead of time."""


class HasInfo(Protocol):
    """A batch."""

    @property
    def info(self) -> BatchInfo: ...


BatchT_co = TypeVar("BatchT_co", bound=HasInfo, covariant=True)


class StreamDataset(IterableDataset[BatchT_co], Generic[BatchT_co]):
    """Base of the datasets. A subclass says what a unit of the order is, and makes batches of units."""

    def __init__(
        self,
        store: SampleStore,
        *,
        chunk_of_unit: np.ndarray,
        part_of_unit: np.ndarray,
        group_of_unit: np.ndarray,
        visit_size: int,
        weights: Sequence[float],
        identity: Mapping[str, Any],
        categories: list[dict[str, Any]],
        category_of_unit: np.ndarray,
        batch_size: int,
        seed: int,
        shuffle: Shuffle | None,
        last: LastBatch,
        on_error: OnError,
        rank: int | None,
        world_size: int | None,
    ) -> None:
        super().__init__()
        if on_error not in ("raise", "skip"):
            raise ConfigurationError(f"on_error {on_error!r}", "must be 'raise' or 'skip'")
        self.store = store
        self._categories = categories
        self._category_of_unit = category_of_unit
        self._chunk_of_unit = chunk_of_unit
        self._part_of_unit = part_of_unit
        self._group_of_unit = group_of_unit
        self._visit_size = visit_size
        self._weights = list(weights)
        self.num_units = sum(part_sizes(part_of_unit, weights))
        """Units of an epoch over all ranks: GOPs, windows or questions."""
        self._identity = {
            **identity,
            "seed": seed,
            "weights": self._weights,
            "shuffle": None if shuffle is None else shuffle.model_dump(),
            "num_units": self.num_units,
        }
        self._seed = seed
        self._shuffle = shuffle
        self._batch_size = batch_size
        self._last: LastBatch = last
        self._on_error = on_error
        self._rank, self._world_size = _find_rank(rank, world_size)
        # Seen by persistent workers too: epoch, units consumed before it began, did a worker iterate.
        self._shared = torch.zeros(3, dtype=torch.int64).share_memory_()
        self._resumed: Progress | None = None
        self._progress: Progress | None = None
        self._orders: dict[int, tuple[np.ndarray, list[dict[str, Any]]]] = {}
        self._damaged_shards: set[str] = set()
        plan = self.plan
        if plan.num_units == 0:
            raise ConfigurationError(
                "the dataset", "has no samples", "Widen the filter, or raise the weights."
            )
        if plan.num_steps == 0:
            raise ConfigurationError(
                "the dataset",
                f"has {plan.num_units} samples, fewer than one global batch of {plan.global_batch}",
                "Use last='wrap', a smaller batch, or a wider filter.",
            )
        self._order(0)  # workers that are forked inherit it
        if shuffle is not None and self._rank == 0:
            self._warn_of_fetching_twice(shuffle, plan)

    # Subclasses define these two.

    def _samples_of(self, unit: int) -> np.ndarray:
        """int [n]: the samples that a unit needs."""
        raise NotImplementedError

    def _make_batch(self, units: np.ndarray, make_info: InfoMaker) -> BatchT_co:
        raise NotImplementedError

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration goes through."""
        return int(self._shared[0])

    @property
    def composition(self) -> list[dict[str, Any]]:
        """What the epoch is made of: a row for each part of the mix (and question file), with its `num_units`."""
        return self._order(self.epoch)[1]

    @property
    def plan(self) -> StepPlan:
        """The steps that the next iteration has, and how many units it drops or repeats."""
        return self._plan(int(self._shared[1]))

    def __len__(self) -> int:
        """Batches that the next iteration gives this rank."""
        return self.plan.num_steps

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; call it before each one. The current one is left as it is."""
        if epoch < 0:
            raise ConfigurationError(f"epoch {epoch}", "must not be negative")
        if epoch != self.epoch:
            self._shared[0], self._shared[1] = epoch, 0
            self._progress = None
            self._order(epoch)

    def state_dict(self, after: HasInfo | None = None) -> dict[str, Any]:
        """Where to go on: after a batch that a DataLoader has given, or where this object's own iteration is.

        Raises:
            ConfigurationError: worker processes iterate, so that this object does not know how far training is.
        """
        if after is not None:
            return after.info.state
        info = get_worker_info()
        if info is None and self._progress is None and self._shared[2]:
            raise ConfigurationError(
                "state_dict()",
                "does not know which of its workers' batches have been used",
                "Pass the last batch: state_dict(after=batch); or use torchdata's StatefulDataLoader.",
            )
        progress = self._progress or self._start(info.id if info else -1, info.num_workers if info else 0)
        _, composition = self._order(progress.epoch)
        return to_state(progress, self._identity, composition)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: `state_dict`'s, a batch's, or a whole StatefulDataLoader's.

        Ranks, workers and batch size may be others than they were.

        Raises:
            ConfigurationError: it is not a state of this order of samples; says what differs.
        """
        progress = from_state(state, self._identity)
        info = get_worker_info()
        if info is not None and (progress.worker, progress.num_workers) == (info.id, info.num_workers):
            self._resumed = progress
            return
        if progress.worker >= 0 and progress.num_workers > 1:
            raise ConfigurationError(
                "the loader's state",
                f"is that of worker {progress.worker} of {progress.num_workers} alone",
                "Give the whole state of the StatefulDataLoader to the dataset's load_state_dict.",
            )
        consumed = min(progress.next_consumed, self.num_units)
        if info is not None:
            self._resumed = Progress(epoch=progress.epoch, consumed=consumed)
            return
        self._resumed = self._progress = None
        self._shared[0], self._shared[1] = progress.epoch, consumed
        self._order(progress.epoch)

    def __iter__(self) -> Iterator[BatchT_co]:
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        if info is not None:
            self._shared[2] = 1
        begun = self._start(worker if info else -1, num_workers if info else 0)
        self._resumed = None
        plan = self._plan(begun.consumed)
        order, composition = self._order(begun.epoch)
        if worker == 0 and self._rank == 0:
            self._announce(begun.epoch, plan, composition)
        self._progress = begun
        ahead: deque[list[int]] = deque()  # chunks of this worker's step and of the next few
        for num_done in itertools.count(begun.num_steps):
            step = worker + num_done * num_workers
            if step >= plan.num_steps:
                return
            while len(ahead) <= PREFETCH_STEPS:
                later = step + len(ahead) * num_workers
                ahead.append(self._chunks(order[plan.positions(later)]) if later < plan.num_steps else [])
            self.store.prefetch(itertools.chain.from_iterable(ahead))
            ahead.popleft()
            positions = plan.positions(step)
            after = Progress(epoch=begun.epoch, consumed=plan.consumed_after(step + 1))
            make_info = InfoMaker(positions, to_state(after, self._identity, composition))
            batch = self._make_batch(order[positions], make_info)
            self._progress = Progress(
                epoch=begun.epoch,
                consumed=begun.consumed,
                num_steps=num_done + 1,
                global_batch=plan.global_batch,
                worker=begun.worker,
                num_workers=begun.num_workers,
            )
            yield batch

    def _start(self, worker: int, num_workers: int) -> Progress:
        """Where an iteration of this process begins."""
        epoch, consumed = int(self._shared[0]), int(self._shared[1])
        resumed = self._resumed
        if resumed is not None and resumed.epoch >= epoch:
            epoch, consumed, num_steps = resumed.epoch, resumed.consumed, resumed.num_steps
        else:
            num_steps = 0
        return Progress(
            epoch=epoch,
            consumed=consumed,
            num_steps=num_steps,
            global_batch=self._batch_size * self._world_size,
            worker=worker,
            num_workers=num_workers,
        )

    def _plan(self, consumed: int) -> StepPlan:
        return StepPlan(
            num_units=self.num_units,
            consumed=consumed,
            batch_size=self._batch_size,
            world_size=self._world_size,
            rank=self._rank,
            last=self._last,
        )

    def _order(self, epoch: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """The order of an epoch, and what it is made of."""
        if epoch not in self._orders:
            order = self._make_order(epoch)
            counts = np.bincount(self._category_of_unit[order], minlength=len(self._categories)).tolist()
            rows = [
                {**category, "num_units": count}
                for category, count in zip(self._categories, counts, strict=True)
            ]
            self._orders = {epoch: (order, rows)}
        return self._orders[epoch]

    def _make_order(self, epoch: int) -> np.ndarray:
        chunk, group = self._chunk_of_unit, self._group_of_unit
        units = None
        if any(weight != 1 for weight in self._weights):
            copies = unit_copies(self._part_of_unit, self._weights, seed=self._seed, epoch=epoch)
            units, group = repeat_units(copies, group)
            chunk = compact(chunk[units])
        order = visit_order(
            chunk, group, visit_size=self._visit_size, shuffle=self._shuffle, seed=self._seed, epoch=epoch
        )
        return order if units is None else units[order]

    def _chunks(self, units: np.ndarray) -> list[int]:
        return [
            chunk for unit in units.tolist() for chunk in self.store.chunk[self._samples_of(unit)].tolist()
        ]

    def _announce(self, epoch: int, plan: StepPlan, composition: list[dict[str, Any]]) -> None:
        parts = ", ".join(f"{part['num_units']} of {part['name']}" for part in composition)
        logger.info(
            "epoch %d: %d samples (%s), %d seen before; %d steps of %d; %d dropped, %d repeated",
            epoch, plan.num_units, parts, plan.consumed, plan.num_steps, plan.global_batch, plan.num_dropped,
            plan.num_repeated,
        )  # fmt: skip

    def _warn_of_fetching_twice(self, shuffle: Shuffle, plan: StepPlan) -> None:
        """Remote shards only: what would make a cluster fetch the same bytes again and again."""
        if all(storage.is_local(uri) for uri in self.store.catalog.shard_uris):
            return
        if (
            max(plan.global_batch, shuffle.lanes) % min(plan.global_batch, shuffle.lanes)
            and plan.world_size > 1
        ):
            logger.warning(
                "%d lanes and a global batch of %d do not divide each other: every rank meets every shard. Choose"
                " Shuffle(lanes=%d), or another batch size",
                shuffle.lanes, plan.global_batch, -(-shuffle.lanes // plan.global_batch) * plan.global_batch,
            )  # fmt: skip
        in_use = shuffle.lanes * (shuffle.window_chunks + 1) * shuffle.chunk_bytes
        in_use = min(in_use, int(self.store.chunk_bytes.sum()))
        limit = self.store.reader.cache_bytes
        num_machines = -(-plan.world_size // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # torchrun sets it
        if in_use > limit * num_machines:
            logger.warning(
                "the shuffle has %.1f GB in use at a time, the cache holds %.1f GB: chunks are fetched again and"
                " again. Give the cache more room, or choose a smaller Shuffle",
                in_use / 1e9, limit / 1e9,
            )  # fmt: skip

    def _failed(self, sample: int, position: int, exc: CopePrepError) -> Skipped:
        """Raises the error, or notes the sample as skipped; logs the first one of each shard."""
        if self._on_error == "raise":
            raise exc
        shard = self.store.shard_uri(sample)
        if shard not in self._damaged_shards:
            self._damaged_shards.add(shard)
            logger.warning("%s: samples that cannot be read are skipped; the first one: %s", shard, exc)
        return Skipped(
            position=position,
            key=self.store.key(sample),
            shard=shard,
            offset_bytes=int(self.store.catalog.offset_bytes[sample]),
            reason=str(exc),
        )


class InfoMaker:
    """What a batch's BatchInfo says of its place in the order."""

    def __init__(self, positions: np.ndarray, state: dict[str, Any]) -> None:
        self.positions: list[int] = positions.tolist()
        self._state = state

    def of(
        self, samples: Sequence[int], skipped: Sequence[Skipped], store: SampleStore, scale: ResidualScale
    ) -> BatchInfo:
        """The BatchInfo of a batch of these samples."""
        return BatchInfo(
            keys=tuple(store.key(sample) for sample in samples),
            video_ids=tuple(store.catalog.video_id(sample) for sample in samples),
            positions=tuple(self.positions),
            skipped=tuple(skipped),
            residual_offset=scale.offset,
            residual_scale=scale.scale,
            state=self._state,
        )


def _find_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise ConfigurationError("rank and world_size", "must be given both, or neither")
    if rank is not None and world_size is not None:
        return rank, world_size
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
