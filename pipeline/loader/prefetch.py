"""Threads that fetch ahead: what is wanted soonest first, within a budget of bytes that wait to be read."""

from __future__ import annotations

import enum
import logging
import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

_LOG = logging.getLogger("cope_prep.loader")

Item = TypeVar("Item", bound=Hashable)


class _Stage(enum.Enum):
    WAITING = enum.auto()
    TAKEN = enum.auto()
    """Being fetched, or fetched and not yet read."""
    READ = enum.auto()


class Prefetcher(Generic[Item]):
    """Daemon threads, started with the first thing wanted, that hold no reference to who owns the prefetcher."""

    def __init__(
        self,
        fetch: Callable[[Item], object],
        size_bytes: Callable[[Item], int],
        *,
        budget_bytes: int,
        num_threads: int,
    ) -> None:
        self._fetch = fetch
        self._size_bytes = size_bytes
        self._budget_bytes = budget_bytes
        self._num_threads = num_threads
        self._changed = threading.Condition()
        self._wanted: dict[Item, _Stage] = {}
        self._threads: list[threading.Thread] = []
        self._is_stopped = False

    def want(self, items: Iterable[Item]) -> None:
        """What is wanted next, soonest first. Takes the place of what was wanted before and is not yet begun."""
        with self._changed:
            before = self._wanted
            self._wanted = {item: before.get(item, _Stage.WAITING) for item in items}
            if not self._threads and self._next() is not None:
                self._threads = [
                    threading.Thread(target=self._work, name=f"cope-prep-prefetch-{index}", daemon=True)
                    for index in range(self._num_threads)
                ]
                for thread in self._threads:
                    thread.start()
            self._changed.notify_all()

    def mark_read(self, item: Item) -> None:
        """The item is in use now: it counts no longer as ahead, and is not fetched if it was not begun."""
        if self._wanted.get(item, _Stage.READ) is _Stage.READ:  # the common case takes no lock
            return
        with self._changed:
            if item in self._wanted:
                self._wanted[item] = _Stage.READ
                self._changed.notify_all()

    def stop(self, *, timeout_s: float) -> None:
        """Begin nothing more, and wait so long for what is under way; 0: not at all."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        if timeout_s:  # a garbage collector that comes here may run in one of them
            for thread in self._threads:
                thread.join(timeout_s)

    def _next(self) -> Item | None:
        """What to fetch now: the soonest that nobody has begun, if the budget has room for it."""
        ahead_bytes = 0
        for item, stage in self._wanted.items():
            if stage is _Stage.READ:
                continue
            size_bytes = self._size_bytes(item)
            if ahead_bytes and ahead_bytes + size_bytes > self._budget_bytes:
                return None
            if stage is _Stage.WAITING:
                return item
            ahead_bytes += size_bytes
        return None

    def _work(self) -> None:
        while True:
            item: Item | None = None
            with self._changed:
                while not self._is_stopped and (item := self._next()) is None:
                    self._changed.wait()
                if item is None:  # stopped
                    return
                self._wanted[item] = _Stage.TAKEN
            try:
                self._fetch(item)
            except Exception as exc:  # whoever reads it gets the error
                _LOG.debug("prefetch of %s failed (%s)", item, exc)
