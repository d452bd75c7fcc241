"""Run a pure function over many items: longest first, bounded in flight, one outcome each.

    items ──sorted by weight──> queue ──at most capacity()──> executor ──> outcome ──> emit
                                  ^                              |
                                  └──── worker died, again ──────┘

The longest item starts first, so that no core idles at the end while another works on a long video that was
left over. An item whose worker died goes back to the head of the queue, twice; an error that the function
raised is final, for it would be raised again. Ctrl-C stops the submission, lets the children clean up, and
emits what had ended.
"""

from __future__ import annotations

import functools
import logging
import pickle
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cope_prep.jobs.executors import Executor
from cope_prep.jobs.worker import Done, Failure, Reply

RETRIES = 2
"""Further attempts of an item whose worker died."""
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
    attempts: int


def run_items(
    items: Iterable[Item[T]],
    make_call: Callable[[T], functools.partial[Any]],
    *,
    executor: Executor,
    emit: Callable[[Outcome[T]], None],
    tick: Callable[[], None] = lambda: None,
    time_limit_s: float | None = None,
    retries: int = RETRIES,
) -> None:
    """Run `make_call(item.value)` for every item, and `emit` each outcome as it comes.

    `tick` is called at least twice a second. `make_call` returns a partial of a top-level function: it is
    pickled by reference. Memory: one item each; calls exist only while in flight.

    Raises:
        KeyboardInterrupt: as it came, after the running calls were cancelled and outcomes emitted.
    """
    queue = deque(sorted(items, key=lambda item: -item.weight))
    running: dict[int, tuple[Item[T], int]] = {}
    attempts_before: dict[int, int] = {}
    bugs: set[str] = set()
    next_token = 0

    def end(token: int, reply: Reply) -> None:
        item, attempts = running.pop(token)
        if isinstance(reply, Failure) and reply.retriable and attempts <= retries:
            attempts_before[id(item)] = attempts
            queue.appendleft(item)
            return
        attempts_before.pop(id(item), None)
        if isinstance(reply, Failure) and reply.traceback and reply.traceback not in bugs:
            bugs.add(reply.traceback)  # a bug hits every video: once is enough
            _logger.error("%s: %s\n%s", item.subject, reply.error_message, reply.traceback)
        emit(Outcome(item=item, reply=reply, attempts=attempts))

    try:
        while queue or running:
            while queue and len(running) < executor.capacity():
                item = queue.popleft()
                running[next_token] = item, attempts_before.get(id(item), 0) + 1
                call = pickle.dumps(make_call(item.value))
                executor.submit(next_token, call, subject=item.subject, time_limit_s=time_limit_s)
                next_token += 1
            for token, reply in executor.wait(_WAIT_S):
                end(token, reply)
            tick()
    except BaseException:
        for token, reply in executor.cancel():
            item, attempts = running.pop(token)
            if isinstance(reply, Done):
                emit(Outcome(item=item, reply=reply, attempts=attempts))
        raise
