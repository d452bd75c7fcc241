"""What the page Progress says of a job as a whole: is one running, what is left, and what goes on from here.

Sharding has no ledger. That it is going on is seen from its shards: more of them at a later look.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cope_prep.jobs.dashboard.opened import Choice
from cope_prep.jobs.dashboard.words import counted
from cope_prep.jobs.progress import format_bytes
from cope_prep.jobs.status import DatasetStatus, StageStatus
from cope_prep.pipeline import storage

TITLES = {"reencode": "Re-encode", "extract": "Extract"}
STAGE_WITHIN_S = 120.0
"""Between two stages of a run nothing ends: so long it is not taken for stopped."""
SHARD_WITHIN_S = 900.0
"""The same while shards are made: over a slow network one takes minutes."""

StageKey = tuple[str, str]
"""Stage and hash of its specs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """What has been seen of shards that are not finished."""

    counts: tuple[tuple[str, int], ...]
    """Hash of the specs and number of shards, of each."""
    seen_unix_s: float
    """When they were first seen as they are."""
    has_grown: bool
    """At an earlier look there were others."""


class GrowthWatch:
    """Remembers for every dataset when its unfinished shards last changed; for all sessions."""

    def __init__(self) -> None:
        self._seen: dict[str, Growth] = {}
        self._lock = threading.Lock()

    def look(self, status: DatasetStatus, *, now_unix_s: float) -> Growth:
        """What is known after this look."""
        counts = tuple((begun.spec_hash, begun.num_shards) for begun in status.begun_shards)
        with self._lock:
            before = self._seen.get(status.dataset)
            if before is None or before.counts != counts:
                has_grown = before is not None and bool(counts)
                before = Growth(counts=counts, seen_unix_s=now_unix_s, has_grown=has_grown)
                self._seen[status.dataset] = before
            return before


def without_ledger(status: DatasetStatus, choices: Sequence[Choice]) -> frozenset[StageKey]:
    """The stages that have specs but no ledger although a later stage has gone on from them.

    Raises:
        StorageError: the store could not answer.
    """
    num_tried = {(stage.stage, stage.spec_hash): _num_tried(stage) for stage in status.stages}
    shards = {found.spec_hash for found in (*status.shards, *status.begun_shards)}
    missing: set[StageKey] = set()
    for choice in choices if status.num_videos else ():
        layout, has_later = choice.layout, choice.layout.specs.hash_of("shards") in shards
        for stage in ("extract", "reencode"):
            key = stage, layout.specs.hash_of(stage)
            if num_tried.get(key) == 0:  # what was tried may also have left the manifest
                has_ledger = bool(storage.list_files(layout.ledger(stage)))
                if has_later and not has_ledger:
                    missing.add(key)
                has_later = has_later or has_ledger
            elif key in num_tried:
                has_later = True
    return frozenset(missing)


def state_of(stage: StageStatus, *, is_over: bool, has_ledger: bool = True) -> tuple[str, str]:
    """What a stage is doing, in words, and the colour for it. `is_over`: no stage has anything to do."""
    if not has_ledger:
        return "no ledger", "orange"
    if stage.is_running:
        return "running", "green"
    if stage.num_pending:
        return "not running", "orange"
    if stage.num_waiting and not is_over:
        return "waiting for the stage before", "gray"
    return "finished", "blue"


def headline(
    status: DatasetStatus,
    growth: Growth,
    *,
    dataset: str,
    now_unix_s: float,
    choices: Sequence[Choice] = (),
    missing: Collection[StageKey] = (),
) -> str:
    """One line of Markdown: what is going on, and what to do if nothing is."""
    videos = f"{counted(status.num_videos, 'video')} ({format_bytes(status.source_bytes)} of source files)"
    running = [TITLES[stage.stage] for stage in status.stages if stage.is_running]
    if running:
        return f":green-badge[Running] {' and '.join(running)}, of {videos}."
    if missing:
        names = " and ".join(f"{TITLES[stage]} `{spec_hash}`" for stage, spec_hash in sorted(missing))
        return (
            f":orange-badge[No ledger] {names}: the ledger is not there, though a later stage has outputs."
            f" What was done cannot be counted, and a run would take it for not done. Of {videos}."
        )
    command = f"`cope-prep run {dataset.replace('`', '')}`"
    if not status.stages:
        return f":orange-badge[Not running] Nothing is done yet of {videos}. To begin: {command}"
    # Another spec would begin with other flags, from nothing.
    go_on = f"go on with the same {command} and the flags that it had."
    if status.begun_shards and now_unix_s - growth.seen_unix_s < SHARD_WITHIN_S:
        so_far = shards_so_far(status)
        if growth.has_grown:
            return f":green-badge[Running] Sharding: {so_far}, of {videos}."
        return f":gray-badge[Sharding] {so_far}, not finished, of {videos}. If no job is running, {go_on}"
    left = _left(status, videos, choices)
    if not left:
        return f":blue-badge[Finished] Nothing is left to do, of {videos}."
    ended = [stage.last_unix_s for stage in status.stages if stage.last_unix_s is not None]
    if ended and now_unix_s - max(ended) < STAGE_WITHIN_S:
        return f":gray-badge[Between stages] {left} If no job is running, {go_on}"
    return f":orange-badge[Not running] {left} To complete it, {go_on}"


def shards_so_far(status: DatasetStatus) -> str:
    """`3 shards so far`."""
    return f"{counted(sum(begun.num_shards for begun in status.begun_shards), 'shard')} so far"


def _num_tried(stage: StageStatus) -> int:
    return stage.num_ok + stage.num_partial + stage.num_failed


def _left(status: DatasetStatus, videos: str, choices: Sequence[Choice]) -> str:
    """What is not done, as a sentence; empty if all is."""
    if any(stage.num_pending for stage in status.stages):
        return f"Videos are left to do, of {videos}."
    if status.begun_shards:
        return f"Sharding has stopped: {shards_so_far(status)}, not finished, of {videos}."
    if not status.shards:
        return f"All {videos} are tried, and there are no shards yet."
    packed: dict[str, int] = {}
    for shards in status.shards:
        packed[shards.extract_hash] = max(packed.get(shards.extract_hash, 0), shards.num_videos)
    for stage in status.stages:
        num_done = stage.num_ok + stage.num_partial
        if stage.stage == "extract" and packed.get(stage.spec_hash, 0) < num_done:
            there = packed.get(stage.spec_hash, 0)
            return (
                f"Extract `{stage.spec_hash}`: {there:,} of its {counted(num_done, 'video')} are in shards."
            )
    unextracted = _unextracted(status, choices)
    if unextracted:
        return f"{' and '.join(f'Re-encode `{one}`' for one in unextracted)}: re-encoded, and not extracted."
    return ""


def _unextracted(status: DatasetStatus, choices: Sequence[Choice]) -> list[str]:
    """The re-encodings with which no extraction has begun; none if there are newer specs than `choices`."""
    extracted = {choice.layout.specs.hash_of("extract") for choice in choices if choice.stage != "reencode"}
    if any(stage.stage == "extract" and stage.spec_hash not in extracted for stage in status.stages):
        return []
    return [choice.spec_hash for choice in choices if choice.stage == "reencode"]
