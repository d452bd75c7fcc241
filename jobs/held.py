"""The dataset's quarantine as a stage sees it: who is left out, who goes in, and who comes out.

A video goes in when it has taken its worker process with it in every attempt, or was not done in time
(`quarantine.POISON`). It comes out when somebody says so, or when it succeeds after all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from cope_prep.jobs.planning import StageOptions, VideoTask
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.ledger import KnownRow, LedgerRow
from cope_prep.pipeline.patience import PATIENCE_S, PatientFlush
from cope_prep.pipeline.quarantine import POISON, Quarantine, QuarantineEntry, Sources
from cope_prep.schemas.errors import QuarantinedError, TimeLimitError


class HeldVideos:
    """The quarantine during one run of one stage: a context manager, which writes what is new.

    Where it cannot be written, what is new is kept and tried again for `patience_s` (patience.py).
    """

    def __init__(
        self, layout: Layout, stage: str, *, options: StageOptions, patience_s: float = PATIENCE_S
    ) -> None:
        self._quarantine = Quarantine(layout.dataset)
        self._sources = Sources(layout.manifest)
        self._layout = layout
        self._stage = stage
        self._options = options
        self._patient = PatientFlush(self._append, patience_s=patience_s, keeping="what it is to say")
        self._ended: dict[str, tuple[LedgerRow, int | None]] = {}
        """How videos ended, and what memory they had if it was that."""
        entries = self._quarantine.read()
        found = self._sources.find(list(entries))
        # An entry about another file of the same name says nothing.
        self._entries = {name: entry for name, entry in entries.items() if entry.is_of(found.get(name))}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._patient.at_end(stopped=exc_type is not None)

    @property
    def released(self) -> dict[str, float]:
        """When videos were let out, by id: Unix time, s. Infinite where this run asks for what is held."""
        return {
            name: entry.recorded_unix_s if entry.is_released else math.inf
            for name, entry in self._entries.items()
            if entry.is_released or self._asks_for_all
        }

    @property
    def _asks_for_all(self) -> bool:
        return self._options.retry_failed and QuarantinedError.__name__ in self._options.retry_classes

    def split(self, tasks: Sequence[VideoTask]) -> tuple[list[VideoTask], list[VideoTask]]:
        """Those that can be run, and those that are left out. Naming an error class asks for its videos, too."""
        held = {
            name
            for name, entry in self._entries.items()
            if entry.holds(
                time_limit_s=self._options.time_limit_s,
                memory_limit_bytes=self._options.memory_limit_bytes,
            )
            and not self._asks_for_all
            and not (self._options.retry_failed and entry.error_class in self._options.retry_classes)
        }
        return (
            [task for task in tasks if task.video_id not in held],
            [task for task in tasks if task.video_id in held],
        )

    def new_rows(
        self, left_out: Sequence[VideoTask], rows: Mapping[str, KnownRow], *, spec_hash: str
    ) -> Iterator[LedgerRow]:
        """What the ledger is to say of those left out of which it does not say that they failed."""
        for task in left_out:
            row = rows.get(task.video_id)
            if row is not None and row.status == "failed":
                continue
            yield LedgerRow(
                video_id=task.video_id,
                video_key=task.video_key,
                stage=self._stage,
                spec_hash=spec_hash,
                status="failed",
                error_class=QuarantinedError.__name__,
                error_message=str(quarantined(self._entries[task.video_id])),
                source_size_bytes=task.source_size_bytes,
                source_version=task.source_version,
                attempts=0,
                finished_unix_s=time.time(),
            )

    def ended(self, row: LedgerRow, *, memory_limit_bytes: int | None = None) -> None:
        """Take note of how a video ended; if for want of memory, with how much."""
        entry = self._entries.get(row.video_id)
        if row.status == "failed":
            is_news = row.error_class in POISON
        else:  # tried because its class was named, or with more time
            is_news = entry is not None and not entry.is_released and entry.stage == self._stage
        if is_news:
            self._ended[row.video_id] = row, memory_limit_bytes

    def flush_if_due(self) -> None:
        """Write what is new, if it is not just written.

        Raises:
            StorageError: it could not be written for so long that it is given up.
        """
        if self._ended:
            self._patient.if_due()

    def _append(self) -> None:
        found = self._sources.find(list(self._ended))
        self._quarantine.append(
            [
                self._entry(row, memory_limit_bytes, *found[name])
                for name, (row, memory_limit_bytes) in self._ended.items()
                if name in found
            ]
        )
        self._ended = {}

    def _entry(
        self, row: LedgerRow, memory_limit_bytes: int | None, size_bytes: int, version: str
    ) -> QuarantineEntry:
        is_over_time = row.error_class == TimeLimitError.__name__
        return QuarantineEntry(
            video_id=row.video_id,
            source_size_bytes=size_bytes,
            source_version=version,
            is_released=row.status != "failed",
            stage=self._stage,
            error_class=row.error_class if row.status == "failed" else "",
            reason=row.error_message if row.status == "failed" else "was done after all",
            time_limit_s=self._options.time_limit_s if is_over_time else None,
            memory_limit_bytes=memory_limit_bytes,
            recorded_unix_s=max(time.time(), row.finished_unix_s),
        )


def quarantined(entry: QuarantineEntry) -> QuarantinedError:
    """What is said of a video that is left out."""
    why = f"{entry.error_class} in {entry.stage}: {entry.reason}" if entry.error_class else entry.reason
    return QuarantinedError(
        entry.video_id,
        f"is in quarantine ({why.rstrip('.')})",
        "To have it tried: cope-prep quarantine DATASET --release VIDEO_ID.",
    )
