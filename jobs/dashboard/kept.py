"""What is slow to make, made once for all sessions of the dashboard, and again when its tables have changed.

Streamlit runs its script anew for every click, but imports modules once: what is here stays. While a job runs, its
tables change every few seconds; what takes long is then made anew no more often than a tenth of the time, and is
said to be behind in between.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from cope_prep.jobs.status import DatasetStatus, StatusReader
from cope_prep.pipeline.explore import VideoTable, open_videos
from cope_prep.pipeline.explore_table import table_versions
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.stats import dataset_stats
from cope_prep.pipeline.stats_records import DatasetStats

T = TypeVar("T")

CHECK_EVERY_S = 5.0
"""To look whether tables have changed is a handful of requests to a remote store."""
TIME_PER_COST = 10.0
POLL_EVERY_S = 2.0
"""Of the page Progress: as often as a job appends to its ledger."""
POLL_COST = 4.0
"""At least as many times as long as a poll took goes by until the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept(Generic[T]):
    """Something made of the tables."""

    value: T
    made_unix_s: float
    is_behind: bool
    """The tables have changed since, and it is not yet time to make it anew."""


@dataclass(slots=True)
class _Entry(Generic[T]):
    lock: threading.Lock = field(default_factory=threading.Lock)
    kept: Kept[T] | None = None
    versions: Sequence[str] = ()
    checked_s: float = 0.0
    made_s: float = 0.0
    cost_s: float = 0.0


class Keeper(Generic[T]):
    """Values by dataset and specs, the least recently used of them dropped."""

    def __init__(
        self,
        make: Callable[[Layout], T],
        *,
        versions: Callable[[Layout], Sequence[str]] = table_versions,
        max_entries: int = 3,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make, self._versions, self._clock = make, versions, clock
        self._max_entries = max_entries
        self._entries: OrderedDict[tuple[str, str], _Entry[T]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, layout: Layout, *, anew: bool = False) -> Kept[T]:
        """The value, made now if there is none, if it is old, or `anew` if its tables have changed at all.

        Raises:
            CopePrepError: it could not be made; the next call tries again.
        """
        entry = self._entry(layout)
        kept = entry.kept  # one look: another session may fill the entry at any time
        if kept is None:
            entry.lock.acquire()
        elif not entry.lock.acquire(blocking=False):
            return kept  # another session is making it anew
        try:
            now_s = self._clock()
            if entry.kept is None:
                return self._made(entry, layout, self._versions(layout))
            if not anew and now_s - entry.checked_s < CHECK_EVERY_S:
                return entry.kept
            versions = self._versions(layout)
            entry.checked_s = now_s
            is_behind = versions != entry.versions
            if is_behind and (anew or now_s - entry.made_s >= TIME_PER_COST * entry.cost_s):
                return self._made(entry, layout, versions)
            entry.kept = Kept(value=entry.kept.value, made_unix_s=entry.kept.made_unix_s, is_behind=is_behind)
            return entry.kept
        finally:
            entry.lock.release()

    def has(self, layout: Layout) -> bool:
        """True if `get` will not have to make it from nothing."""
        return self._entry(layout).kept is not None

    def _made(self, entry: _Entry[T], layout: Layout, versions: Sequence[str]) -> Kept[T]:
        start_s = self._clock()
        value = self._make(layout)
        entry.made_s = entry.checked_s = self._clock()
        entry.cost_s = entry.made_s - start_s
        entry.versions = versions
        entry.kept = Kept(value=value, made_unix_s=time.time(), is_behind=False)
        return entry.kept

    def _entry(self, layout: Layout) -> _Entry[T]:
        key = (layout.dataset, layout.specs.hash_of("shards"))
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            while len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)
            return entry


class StatusPoll:
    """The status of a dataset: one reader for all sessions, asked no more often than need be."""

    def __init__(self, dataset: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._reader = StatusReader(dataset)
        self._clock = clock
        self._lock = threading.Lock()
        self._found: DatasetStatus | None = None
        self._due_s = 0.0

    def read(self) -> DatasetStatus:
        """How far the dataset is.

        Raises:
            CopePrepError: as StatusReader.read; the next call asks again.
        """
        with self._lock:
            start_s = self._clock()
            if self._found is None or start_s >= self._due_s:
                self._found = self._reader.read()
                end_s = self._clock()
                # A page that polls faster than it is answered would never be drawn to its end.
                self._due_s = end_s + max(POLL_EVERY_S * 0.9, POLL_COST * (end_s - start_s))
            return self._found


STATS: Keeper[DatasetStats] = Keeper(dataset_stats)
VIDEOS: Keeper[VideoTable] = Keeper(open_videos)

_polls: dict[str, StatusPoll] = {}
_polls_lock = threading.Lock()


def status_of(dataset: str) -> DatasetStatus:
    """How far a dataset is; cheap to ask often.

    Raises:
        CopePrepError: as StatusPoll.read.
    """
    with _polls_lock:
        poll = _polls.setdefault(dataset, StatusPoll(dataset))
    return poll.read()
