"""Run a pure function over many items: longest first, bounded in flight, one outcome each.

    items ──sorted by weight──> queue ──at most capacity()──> executor ──> outcome ──> emit
                                  ^                              |
                                  ├───── worker died, again ─────┤
                                  ├──── store failed, later ─────┤
                                  └──── parts, then a join ──────┘

The longest item starts first, so that no core idles at the end while another works on a long video that was
left over. A call may return an instruction instead of its result (pipeline/split.py): its item then goes on at
the head of the queue as several calls side by side and one that joins them, or as one call with more memory.

A call whose worker died goes back to the head of the queue, twice. One whose worker was lost does, too, and that
counts apart, for it is not the call's fault. One that the store failed comes back after a pause that grows, five
times in about a minute: a store that is overloaded is not helped by asking it again at once. An error that the
function raised is final, for it would be raised again, and so is what the store refuses. Ctrl-C stops the
submission, lets the children clean up, and emits what had ended.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import logging
import pickle
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from cope_prep.jobs.executors import Executor
from cope_prep.jobs.resources import ORDINARY, Resources
from cope_prep.jobs.worker import Done, Failure, Reply
from cope_prep.pipeline.retries import DEFAULT_PATIENCE_S, store_policy
from cope_prep.pipeline.split import Instruction, NeedsMemory, Split, Unfit
from cope_prep.schemas.errors import StorageError, StoreRefusedError, WorkerLostError

RETRIES = 2
"""Further attempts of a call whose worker died."""
PAUSES_S = (1.0, 3.0, 8.0, 18.0, 30.0)
"""Pauses before further attempts of a call that the store failed, each made up to a quarter longer or shorter."""
_MAX_PAUSED = 8
"""So many calls may wait for the store, or as many as the executor takes, before nothing new is begun."""
_WAIT_S = 0.5
"""Longest time between two ticks."""

_logger = logging.getLogger("cope_prep")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item(Generic[T]):
    """One unit of work."""

    subject: str
    """What error messages call it: a video id, a shard's name."""
    weight: float
    """Proportional to the expected time: bytes or seconds of video. The heaviest goes first."""
    value: T
    """What `make_call` needs to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[T]):
    """How an item ended."""

    item: Item[T]
    reply: Reply
    """Of an item that took several calls: the last one's, with the time of all."""
    attempts: int
    """Of an item that took several calls: of the one that was tried most often."""
    is_split: bool = False
    """True if it was done in parts, or was to be."""


def run_items(
    items: Iterable[Item[T]],
    make_call: Callable[[T], functools.partial[Any]],
    *,
    executor: Executor,
    emit: Callable[[Outcome[T]], None],
    tick: Callable[[], None] = lambda: None,
    is_held: Callable[[], bool] = lambda: False,
    count: Callable[[int, int], None] = lambda pending, in_flight: None,
    time_limit_s: float | None = None,
    retries: int = RETRIES,
    pauses_s: Sequence[float] = PAUSES_S,
) -> None:
    """Run `make_call(item.value)` for every item, and `emit` each outcome as it comes.

    `tick` is called at least twice a second, and `count` with the numbers of calls that wait here and that the
    executor has; at the end both are 0. While `is_held` says so no further item is begun; if it still does when all
    that was begun has ended, the rest is left. `make_call` returns a partial of a top-level function: it is
    pickled by reference. `time_limit_s` is for each call. Memory: one item each; calls exist only while in
    flight.

    Raises:
        KeyboardInterrupt: as it came, after the running calls were cancelled and outcomes emitted; also if the run
            is drained and the last calls have ended in the time they got, for the caller is not to go on.
    """
    run = _Run(
        items, make_call, executor=executor, emit=emit, is_held=is_held, retries=retries, pauses_s=pauses_s
    )
    try:
        while run.goes_on():
            run.submit(time_limit_s)
            count(run.num_pending, run.num_running)
            run.wait()
            tick()
        executor.wait(0.0)  # nothing runs: it may only say that the run is over
    except BaseException:
        run.cancel()
        raise
    finally:
        count(0, 0)


@dataclass(slots=True, kw_only=True, eq=False)
class _Job(Generic[T]):
    """An item on its way."""

    item: Item[T]
    resources: Resources = ORDINARY
    wall_s: float = 0.0
    cpu_s: float = 0.0
    attempts: int = 0
    is_over: bool = False
    split: Split | None = None
    values: list[Any] = field(default_factory=list)
    """What the parts returned."""
    num_open: int = 0
    """Parts that have not ended."""
    unfit: Unfit | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class _Call(Generic[T]):
    """One call of an item."""

    job: _Job[T]
    call: functools.partial[Any] | None = None
    """None: what `make_call` makes of the item."""
    part: int | None = None
    """Index of the part, if it is one."""
    attempts: int = 0
    num_store_failures: int = 0
    num_lost: int = 0
    """Attempts that ended with their worker, through no fault of the call."""


class _Run(Generic[T]):
    """The state of one run_items."""

    def __init__(
        self,
        items: Iterable[Item[T]],
        make_call: Callable[[T], functools.partial[Any]],
        *,
        executor: Executor,
        emit: Callable[[Outcome[T]], None],
        is_held: Callable[[], bool],
        retries: int,
        pauses_s: Sequence[float],
    ) -> None:
        self._items = deque(sorted(items, key=lambda item: -item.weight))
        self._make_call = make_call
        self._executor = executor
        self._emit = emit
        self._is_held = is_held
        self._retries = retries
        self._pauses_s = pauses_s
        self._next: deque[_Call[T]] = deque()
        """Calls that come before the items that are not begun."""
        self._paused: list[tuple[float, int, _Call[T]]] = []
        """A heap: when they may begin again (time.monotonic), a number that orders equals, calls."""
        self._running: dict[int, _Call[T]] = {}
        self._tokens = itertools.count()
        self._bugs: set[str] = set()

    @property
    def num_pending(self) -> int:
        return len(self._items) + len(self._next) + len(self._paused)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def goes_on(self) -> bool:
        is_under_way = bool(self._next or self._paused or self._running)
        return is_under_way or bool(self._items and not self._is_held())

    def submit(self, time_limit_s: float | None) -> None:
        """Give the executor as much as it can take."""
        while self._paused and self._paused[0][0] <= time.monotonic():
            self._next.append(heapq.heappop(self._paused)[2])
        while len(self._running) < (capacity := self._executor.capacity()):
            if self._next:
                call = self._next.popleft()
            # A store that fails one call after the other is not asked for more and more.
            elif self._items and len(self._paused) < max(_MAX_PAUSED, capacity) and not self._is_held():
                call = _Call(job=_Job(item=self._items.popleft()))
            else:
                return
            item = call.job.item
            call.attempts += 1
            token = next(self._tokens)
            self._running[token] = call
            self._executor.submit(
                token,
                pickle.dumps(call.call or self._make_call(item.value)),
                subject=item.subject,
                time_limit_s=time_limit_s,
                resources=call.job.resources,
            )

    def wait(self) -> None:
        """Take what has ended, or let a moment pass."""
        is_idle = not self._running
        for token, reply in self._executor.wait(_WAIT_S):  # it may also say that the run is over
            self._end(self._running.pop(token), reply)
        if is_idle and self._paused:
            time.sleep(max(0.0, min(_WAIT_S, self._paused[0][0] - time.monotonic())))

    def cancel(self) -> None:
        """Stop everything; items that ended in the meantime are emitted."""
        for token, reply in self._executor.cancel():
            call = self._running.pop(token)
            is_result = isinstance(reply, Done) and not isinstance(reply.value, Instruction)
            if is_result and call.part is None and not call.job.is_over:
                self._count(call, reply)
                self._finish(call.job, reply)

    def _end(self, call: _Call[T], reply: Reply) -> None:
        job = call.job
        if job.is_over or (isinstance(reply, Failure) and reply.retriable and self._again(call, reply)):
            return
        self._count(call, reply)
        if isinstance(reply, Failure):
            self._finish(job, reply)
            return
        value = reply.value
        if call.part is not None:
            job.num_open -= 1
            job.values[call.part] = value
            if isinstance(value, Unfit):
                job.unfit = value
                job.num_open -= self._drop(job)
            if job.num_open == 0:
                self._go_on_after_parts(job)
        elif isinstance(value, Split):
            job.split = value
            self._begin_parts(job, value)
        elif isinstance(value, NeedsMemory):
            job.resources = replace(job.resources, memory_bytes=value.memory_bytes)
            self._next.appendleft(_Call(job=job, call=value.call))
        elif isinstance(value, Unfit) and job.split is not None:
            job.unfit = value
            self._go_on_after_parts(job)
        else:
            self._finish(job, reply)

    def _again(self, call: _Call[T], reply: Failure) -> bool:
        """Have a call tried once more, now or later; False if it was tried often enough."""
        if reply.error_class == StoreRefusedError.__name__:
            return False
        if reply.error_class == StorageError.__name__:
            if call.num_store_failures == len(self._pauses_s):
                return False
            # Who has less patience with each request waits less between two of them, too.
            share = min(1.0, store_policy().patience_s / DEFAULT_PATIENCE_S)
            pause_s = self._pauses_s[call.num_store_failures] * share * random.uniform(0.75, 1.25)
            call.num_store_failures += 1
            heapq.heappush(self._paused, (time.monotonic() + pause_s, next(self._tokens), call))
            return True
        if reply.error_class == WorkerLostError.__name__:
            call.num_lost += 1
            is_enough = call.num_lost > self._retries
        else:
            is_enough = call.attempts - call.num_store_failures - call.num_lost > self._retries
        if is_enough:
            return False
        self._next.appendleft(call)
        return True

    def _begin_parts(self, job: _Job[T], split: Split) -> None:
        if self._executor.parallel() == 1:  # parts would only cost more
            self._next.appendleft(_Call(job=job, call=functools.partial(split.whole, None)))
            return
        job.num_open = len(split.parts)
        job.values = [None] * len(split.parts)
        calls = [_Call(job=job, call=call, part=index) for index, call in enumerate(split.parts)]
        self._next.extendleft(reversed(calls))

    def _go_on_after_parts(self, job: _Job[T]) -> None:
        split, unfit = job.split, job.unfit
        assert split is not None
        values, job.values = job.values, []
        call = functools.partial(split.whole, unfit) if unfit else functools.partial(split.join, values)
        self._next.appendleft(_Call(job=job, call=call))

    def _drop(self, job: _Job[T]) -> int:
        """Forget the calls of a job that have not begun; how many."""
        before = len(self._next) + len(self._paused)
        self._next = deque(call for call in self._next if call.job is not job)
        self._paused = [entry for entry in self._paused if entry[2].job is not job]
        heapq.heapify(self._paused)
        return before - len(self._next) - len(self._paused)

    def _count(self, call: _Call[T], reply: Reply) -> None:
        job = call.job
        job.attempts = max(job.attempts, call.attempts)
        job.wall_s += reply.wall_s
        job.cpu_s += reply.cpu_s

    def _finish(self, job: _Job[T], reply: Reply) -> None:
        job.is_over = True
        if job.split is not None:
            self._drop(job)
        if isinstance(reply, Failure) and reply.traceback and reply.traceback not in self._bugs:
            self._bugs.add(reply.traceback)  # a bug hits every video: once is enough
            _logger.error("%s: %s\n%s", job.item.subject, reply.error_message, reply.traceback)
        reply = replace(reply, wall_s=job.wall_s, cpu_s=job.cpu_s)
        outcome = Outcome(item=job.item, reply=reply, attempts=job.attempts, is_split=job.split is not None)
        self._emit(outcome)
