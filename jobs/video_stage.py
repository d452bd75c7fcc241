"""One stage over the videos of a dataset: find what is missing, run it, record every end, sum up.

    manifest + ledger + listing of the outputs ──> missing ──run_items──> ledger rows ──> StageSummary

What is missing: planning.py. What is in quarantine is left out, and what kills its worker is put there
(held.py). More failures than allowed end the stage, not the record of it, and so does a store that refuses all
(refusals.py). Planning costs one table and one listing, not one request a video.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import posixpath
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from cope_prep.jobs.executors import Executor
from cope_prep.jobs.failure_limit import FailureCount, TooManyFailures
from cope_prep.jobs.held import HeldVideos
from cope_prep.jobs.metrics import StageMetrics
from cope_prep.jobs.planning import (
    DEFAULT_TIME_LIMIT_S,
    StageOptions,
    TakenOver,
    VideoTask,
    current_rows,
    find_missing,
    no_manifest,
    read_videos,
)
from cope_prep.jobs.progress import Progress
from cope_prep.jobs.refusals import REFUSED, Refusals
from cope_prep.jobs.stage import Item, Outcome, run_items
from cope_prep.jobs.summary import FailedItem, StageSummary
from cope_prep.jobs.worker import Done, failure_of
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.ledger import KnownRow, Ledger, LedgerRow, LedgerWriter
from cope_prep.pipeline.software import Recorded, recorded
from cope_prep.pipeline.split import remove_parts
from cope_prep.schemas.arrow import SOURCE_COLUMNS
from cope_prep.schemas.errors import StorageError
from cope_prep.schemas.redact import redacted

__all__ = [
    "DEFAULT_TIME_LIMIT_S",
    "StageOptions",
    "TakenOver",
    "VideoTask",
    "current_rows",
    "find_missing",
    "no_manifest",
    "read_videos",
    "run_video_stage",
]

_logger = logging.getLogger("cope_prep")
_LEFTOVERS_INTERVAL_S = 60.0


def run_video_stage(
    layout: Layout,
    stage: str,
    tasks: Sequence[VideoTask],
    make_call: Callable[[VideoTask], functools.partial[Any]],
    *,
    executor: Callable[[], Executor],
    options: StageOptions,
    console: Console,
    taken_over: TakenOver = lambda gone: (),
    num_missing_input: int = 0,
) -> StageSummary:
    """Run what is missing of a stage. `make_call` returns a call whose report has the ledger's figures.

    `executor` is called only if there is work, for it may have to start Ray. A stage that was stopped by
    `options.max_failures`, or because the store refused one video after the other, says so in its summary.
    """
    start_s = time.monotonic()
    ledger = Ledger(layout.ledger(stage))
    spec_hash = layout.specs.hash_of(stage)
    rows = current_rows(tasks, ledger)
    outputs = set(storage.list_files(layout.folder(stage)))
    held = HeldVideos(layout, stage, options=options)
    missing, left_out = held.split(
        find_missing(
            tasks, rows, outputs=outputs, options=options, taken_over=taken_over, released=held.released
        )
    )
    refused = {video_id for video_id, row in rows.items() if row.error_class == REFUSED}
    items = [
        # What was refused comes last, else a run might never get beyond it.
        Item(subject=task.video_id, weight=0.0 if task.video_id in refused else task.weight, value=task)
        for task in missing
    ]
    runner = executor() if missing else None  # the last thing that can be configured wrongly
    layout.write_spec(stage)
    _remove_old_temporaries(layout.folder(stage), older_than_s=options.time_limit_s)
    metrics = StageMetrics(stage, runner)
    progress = Progress(
        label=stage,
        num_items=len(missing),
        weight=sum(item.weight for item in items),
        console=console,
        quiet=options.quiet,
    )
    count = FailureCount(stage, options.max_failures)
    refusals = Refusals(stage, num_good=sum(row.status != "failed" for row in rows.values()))
    leftovers = _Leftovers(layout.folder(stage))
    stopped = ""
    given_up: list[str] = []
    """Outputs that were to be joined of parts, some of which may still be written."""

    with (
        contextlib.closing(progress),
        LedgerWriter(ledger) as writer,
        held,
        contextlib.closing(leftovers),
    ):
        for row in held.new_rows(left_out, rows, spec_hash=spec_hash):
            rows[row.video_id] = KnownRow.of(writer.add(row))

        def emit(outcome: Outcome[VideoTask]) -> None:
            row = _row_of(outcome, stage=stage, spec_hash=spec_hash)
            if row.status == "failed":
                leftovers.add(outcome.item.value.output_uri)
                if outcome.is_split:
                    given_up.append(outcome.item.value.output_uri)
            row = writer.add(row)
            rows[row.video_id] = KnownRow.of(row)
            held.ended(row, memory_limit_bytes=getattr(outcome.reply, "memory_limit_bytes", None))
            count.add(row.error_class if row.status == "failed" else "")
            refusals.add(
                row.error_class if row.status == "failed" else "",
                row.error_message,
                was_refused=row.video_id in refused,
            )
            metrics.video_ended(status=row.status, video_s=row.duration_s)
            metrics.item_ended(
                wall_s=row.wall_s,
                bytes_in=row.source_size_bytes if row.status != "failed" else 0,
                bytes_out=row.output_bytes,
                error_class=row.error_class if row.status == "failed" else "",
            )
            progress.advance(
                weight=outcome.item.weight, failed=row.status == "failed", video_s=row.duration_s
            )

        def tick() -> None:
            writer.flush_if_due()
            held.flush_if_due()
            leftovers.remove_if_due()
            progress.tick()
            count.check()

        if runner is not None:
            try:
                run_items(
                    items,
                    lambda task: functools.partial(recorded, make_call(task)),
                    executor=runner,
                    emit=emit,
                    tick=tick,
                    is_held=refusals.are_too_many,
                    count=metrics.waiting,
                    time_limit_s=options.time_limit_s,
                )
                stopped = refusals.why_stopped(num_items=len(items))
            except TooManyFailures as exc:
                stopped = str(exc)
            # Nothing runs any more: what is left was written on nodes that are gone.
            for task in missing:
                leftovers.add(task.output_uri)
            for output_uri in given_up:
                remove_parts(output_uri)
    good = [row for row in rows.values() if row.status != "failed"]
    failed = [row for row in rows.values() if row.status == "failed"]
    return StageSummary(
        stage=stage,
        spec_hash=spec_hash,
        num_videos=len(tasks) + num_missing_input,
        num_run=count.num_ended,
        num_ok=sum(row.status == "ok" for row in good),
        num_partial=sum(row.status == "partial" for row in good),
        num_failed=len(failed),
        num_missing_input=num_missing_input,
        duration_s=sum(row.duration_s for row in good),
        output_bytes=sum(row.output_bytes for row in good),
        wall_s=time.monotonic() - start_s,
        failures=tuple(
            FailedItem(
                stage=stage,
                subject=row.video_id,
                error_class=row.error_class,
                error_message=row.error_message,
            )
            for row in sorted(failed, key=lambda row: row.video_id)
        ),
        num_quarantined=len(left_out),
        stopped=stopped,
    )


def _row_of(outcome: Outcome[VideoTask], *, stage: str, spec_hash: str) -> LedgerRow:
    try:
        return _row_as_replied(outcome, stage=stage, spec_hash=spec_hash)
    except Exception as exc:  # a bug, of which no more than this video is to suffer
        _logger.exception("%s: has an odd reply", outcome.item.subject)
        reply = failure_of(
            exc, wall_s=outcome.reply.wall_s, cpu_s=outcome.reply.cpu_s, node=outcome.reply.node
        )
        return _row_as_replied(replace(outcome, reply=reply), stage=stage, spec_hash=spec_hash)


def _row_as_replied(outcome: Outcome[VideoTask], *, stage: str, spec_hash: str) -> LedgerRow:
    task, reply = outcome.item.value, outcome.reply
    known = {
        "video_id": task.video_id,
        "video_key": task.video_key,
        "stage": stage,
        "spec_hash": spec_hash,
        # As planned, not as found: else a source that changed after the manifest was made would be
        # re-encoded by every run until the manifest is made anew.
        "source_size_bytes": task.source_size_bytes,
        "source_version": task.source_version,
        "wall_s": reply.wall_s,
        "cpu_s": reply.cpu_s,
        "attempts": outcome.attempts,
        "finished_unix_s": time.time(),
        "node": reply.node,
    }
    if not isinstance(reply, Done):
        return LedgerRow(
            **known, status="failed", error_class=reply.error_class, error_message=reply.error_message
        )
    if not isinstance(reply.value, Recorded):
        raise TypeError(f"the reply is a {type(reply.value).__name__}")
    report = reply.value.value
    source: dict[str, Any] = {name: getattr(report, name, None) for name in SOURCE_COLUMNS}
    return LedgerRow(
        **known,
        status=getattr(report, "status", "ok"),
        error_class=getattr(report, "error_class", ""),
        error_message=getattr(report, "error_message", ""),
        source_sha256=getattr(report, "source_sha256", ""),
        source_hashed_bytes=getattr(report, "source_size_bytes", None),
        output_uri=redacted(task.output_uri),  # a ledger may be shown to anybody
        output_bytes=report.output_bytes,
        output_crc32c=report.output_crc32c,
        notes=tuple(getattr(report, "notes", ())),
        num_frames=report.num_frames,
        num_gops=report.num_gops,
        duration_s=report.duration_s,
        software=reply.value.software,
        **source,
    )


class _Leftovers:
    """Deletes the temporary files that killed children left of some outputs: now and then, and when closed.

    To find them the folder is listed, which takes long when it holds many outputs.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._names: set[str] = set()
        self._removed_s = time.monotonic()

    def add(self, output_uri: str) -> None:
        """Nobody writes this output any more."""
        self._names.add(posixpath.basename(output_uri))

    def remove_if_due(self) -> None:
        if time.monotonic() - self._removed_s >= _LEFTOVERS_INTERVAL_S:
            self.close()

    def close(self) -> None:
        if self._names:
            with contextlib.suppress(StorageError, OSError):  # a later run removes them
                _remove_temporaries(self._folder, lambda entry: entry.name.split("-", 2)[-1] in self._names)
            self._names.clear()
        self._removed_s = time.monotonic()


def _remove_old_temporaries(folder: str, *, older_than_s: float | None) -> None:
    """Delete temporary files of killed runs: older than any call may take, so that nobody writes them."""
    if older_than_s is not None:
        before_s = time.time() - older_than_s
        _remove_temporaries(folder, lambda entry: entry.stat().st_mtime < before_s)


def _remove_temporaries(folder: str, wanted: Callable[[os.DirEntry[str]], bool]) -> None:
    if not storage.is_local(folder):
        return  # an object store shows no object before its PUT has ended; in others `gc` finds what is left
    with contextlib.suppress(FileNotFoundError), os.scandir(storage.local_path(folder)) as entries:
        for entry in entries:
            if entry.name.startswith(storage.TEMPORARY_PREFIX) and wanted(entry):
                storage.remove(entry.path)
