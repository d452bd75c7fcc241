"""What GopDataset and QADataset have in common: the epoch's order dealt out, state, prefetch, skipped samples.

A dataset yields whole batches, so it goes into a DataLoader with `batch_size=None`. Each worker makes the
batches of its own steps; torch takes them from the workers in turn, which gives the order back.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from cope_prep.pipeline.loader.batch import BatchInfo, Skipped
from cope_prep.pipeline.loader.control import Control, check_rank, find_rank
from cope_prep.pipeline.loader.mix import part_sizes, repeat_units, unit_copies
from cope_prep.pipeline.loader.notices import InfoMaker, announce, logger, warn_of_fetching_twice
from cope_prep.pipeline.loader.order import Shuffle, compact, visit_order
from cope_prep.pipeline.loader.plan import PREFETCH_STEPS, LastBatch, Progress, StepPlan, from_state, to_state
from cope_prep.pipeline.loader.samples import SampleStore
from cope_prep.pipeline.redact import redacted
from cope_prep.schemas.errors import ConfigurationError, CopePrepError, FormatError, SourceNotFoundError

OnError = Literal["raise", "skip"]
MAX_FAILURES_IN_ROW = 200
"""Samples that cannot be read, one after the other, in one worker: a store that is gone, rather than bad shards."""


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
        self._rank, self._world_size = find_rank(rank, world_size)
        self._is_rank_given = rank is not None
        self._control = Control(len(store.catalog.shard_uris))
        self._resumed: Progress | None = None
        self._progress: Progress | None = None
        self._orders: dict[int, tuple[np.ndarray, list[dict[str, Any]]]] = {}
        store.remembers_failures = on_error == "skip"
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
            warn_of_fetching_twice(store, shuffle, plan)

    # Subclasses define these two.

    def _samples_of(self, unit: int) -> np.ndarray:
        """int [n]: the samples that a unit needs."""
        raise NotImplementedError

    def _make_batch(self, units: np.ndarray, make_info: InfoMaker) -> BatchT_co:
        raise NotImplementedError

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration goes through."""
        return self._control.epoch

    @property
    def composition(self) -> list[dict[str, Any]]:
        """What the epoch is made of: a row for each part of the mix (and question file), with its `num_units`."""
        return self._order(self.epoch)[1]

    @property
    def plan(self) -> StepPlan:
        """The steps that the next iteration has, and how many units it drops or repeats."""
        return self._plan(self._control.consumed)

    def __len__(self) -> int:
        """Batches that the next iteration gives this rank."""
        return self.plan.num_steps

    @property
    def num_skipped(self) -> int:
        """Samples that this dataset and its workers have skipped so far."""
        return self._control.num_skipped

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; call it before each one, and before `iter(loader)`.

        The epoch that the dataset is in already does not begin again: what a state has loaded stays.
        """
        if epoch < 0:
            raise ConfigurationError(f"epoch {epoch}", "must not be negative")
        if epoch < self._control.epoch:
            logger.warning("epoch %d after epoch %d: it is trained on again", epoch, self._control.epoch)
        is_other = epoch != self._control.epoch
        if is_other:
            self._progress = None
        self._control.set(epoch=epoch, consumed=0 if is_other else self._control.consumed, is_set=True)
        self._order(epoch)

    def state_dict(self, after: HasInfo | None = None) -> dict[str, Any]:
        """Where to go on: after a batch that a DataLoader has given, or where this object's own iteration is.

        Raises:
            ConfigurationError: worker processes iterate, so that this object does not know how far training is.
        """
        if after is not None:
            return after.info.state
        info = get_worker_info()
        if info is None and self._control.is_in_workers:
            raise ConfigurationError(
                "state_dict()",
                "does not know which of its workers' batches have been used",
                "Pass the last batch: state_dict(after=batch); or use torchdata's StatefulDataLoader.",
            )
        progress = self._progress or self._start(*self._control.peek(in_worker=info is not None))
        _, composition = self._order(progress.epoch)
        return to_state(progress, self._identity, composition)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: `state_dict`'s, a batch's, or a whole StatefulDataLoader's.

        Ranks, workers and batch size may be others than they were. A state of an epoch before the one that
        set_epoch has chosen is left aside.

        Raises:
            ConfigurationError: it is not a state of this order of samples; says what differs.
        """
        progress = from_state(state, self._identity)
        info = get_worker_info()
        if info is not None:
            self._resumed = self._check_worker_state(progress, info.id, info.num_workers)
            return
        if progress.worker >= 0 and progress.num_workers > 1:
            raise ConfigurationError(
                "the loader's state",
                f"is that of worker {progress.worker} of {progress.num_workers} alone",
                "Give the whole state of the StatefulDataLoader to the dataset's load_state_dict.",
            )
        if self._control.is_set and self._control.epoch > progress.epoch:
            logger.info(
                "a state of epoch %d is left aside: it is epoch %d", progress.epoch, self._control.epoch
            )
            return
        self._progress = None
        self._control.set(
            epoch=progress.epoch, consumed=min(progress.next_consumed, self.num_units), is_set=False
        )
        self._order(progress.epoch)

    def _check_worker_state(self, progress: Progress, worker: int, num_workers: int) -> Progress:
        """What a worker of a StatefulDataLoader goes on from."""
        global_batch = self._batch_size * self._world_size
        if (progress.worker, progress.num_workers, progress.global_batch) != (
            worker,
            num_workers,
            global_batch,
        ):
            raise ConfigurationError(
                "the StatefulDataLoader's state",
                f"is of {progress.num_workers} workers and a global batch of {progress.global_batch}, this is"
                f" worker {worker} of {num_workers} with {global_batch}",
                "Give the state to the dataset's load_state_dict instead, which takes any.",
            )
        return progress

    def _refuse_earlier_epoch(self, resumed: int, chosen: int, is_set: bool) -> None:
        if is_set and chosen < resumed:
            raise ConfigurationError(
                f"set_epoch({chosen})",
                f"was called, and the state is of epoch {resumed}: it would be trained on again",
                "Begin the loop at the state's epoch.",
            )

    def __iter__(self) -> Iterator[BatchT_co]:
        # Not itself a generator: the state that a loader asks for before the first batch is that of this iteration.
        if not self._is_rank_given:
            check_rank(self._rank, self._world_size)
        begun = self._start(*self._control.begin(in_worker=get_worker_info() is not None))
        self._resumed = None
        self._progress = begun
        return self._iterate(begun)

    def _iterate(self, begun: Progress) -> Iterator[BatchT_co]:
        worker, num_workers = max(begun.worker, 0), max(begun.num_workers, 1)
        plan = self._plan(begun.consumed)
        order, composition = self._order(begun.epoch)
        if worker == 0 and self._rank == 0:
            announce(begun.epoch, plan, composition)
        self.store.begin_epoch()
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
            self._progress = replace(begun, num_steps=num_done + 1)
            yield batch

    def _start(self, epoch: int, consumed: int, is_set: bool) -> Progress:
        """Where an iteration of this process begins, or goes on."""
        resumed = self._resumed
        if resumed is not None:
            self._refuse_earlier_epoch(resumed.epoch, epoch, is_set)
            if resumed.epoch >= epoch:
                return resumed
        info = get_worker_info()
        return Progress(
            epoch=epoch,
            consumed=consumed,
            global_batch=self._batch_size * self._world_size,
            worker=info.id if info else -1,
            num_workers=info.num_workers if info else 0,
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

    def _failed(self, sample: int, position: int, exc: CopePrepError) -> Skipped:
        """Raises the error, or notes the sample as skipped; logs the first one of each shard.

        A wrong configuration or a full disk is no sample's fault, nor is a store that answers nothing at all.
        """
        shard = self.store.shard_uri(sample)
        is_of_shard = isinstance(exc, FormatError | SourceNotFoundError) or exc.subject == shard
        if (
            self._on_error == "raise"
            or not is_of_shard
            or self.store.num_failures_in_row > MAX_FAILURES_IN_ROW
        ):
            raise exc
        info = get_worker_info()
        worker = info.id if info else 0
        if self._control.count_skipped(int(self.store.catalog.shard[sample]), worker=worker):
            said = redacted(f"{shard}: samples that cannot be read are skipped; the first one: {exc}")
            logger.warning("%s", said)
        return Skipped(
            position=position,
            key=self.store.key(sample),
            shard=shard,
            offset_bytes=int(self.store.catalog.offset_bytes[sample]),
            reason=str(exc),
        )
