"""One stage over the videos of a dataset: find what is missing, run it, record every end, sum up.

    manifest + ledger + listing of the outputs ──> missing ──run_items──> ledger rows ──> StageSummary

A video is done when the ledger says `ok` or `partial` for the same input and its output is there. A failed
one is not tried again unless asked, or its input has changed. An output without a row, left by a driver that
was killed, is made again and replaced by one rename. Planning costs one table and one listing, not one
request a video.
"""

from __future__ import annotations

import contextlib
import functools
import os
import posixpath
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from cope_prep.jobs.executors import Executor
from cope_prep.jobs.progress import Progress
from cope_prep.jobs.stage import Item, Outcome, run_items
from cope_prep.jobs.summary import FailedItem, StageSummary
from cope_prep.jobs.worker import Done
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.ledger import Ledger, LedgerRow, LedgerWriter, rows_of
from cope_prep.schemas.arrow import MANIFEST
from cope_prep.schemas.errors import ConfigurationError, SourceNotFoundError
from cope_prep.schemas.records import VideoRecord

DEFAULT_TIME_LIMIT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOptions:
    """What a stage command was asked for, apart from its specs."""

    limit: int | None = None
    """Only the first so many videos of the manifest."""
    retry_failed: bool = False
    time_limit_s: float | None = DEFAULT_TIME_LIMIT_S
    quiet: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoTask:
    """One video in one stage: what the work needs, and what the ledger will say of its input."""

    video_id: str
    video_key: str
    source_uri: str
    output_uri: str
    source_size_bytes: int
    source_version: str
    source_crc32c: int | None = None
    """Of the input, where the stage before recorded it."""
    weight: float


def read_videos(layout: Layout, *, limit: int | None = None) -> list[VideoRecord]:
    """The videos of the manifest, in its order.

    Raises:
        ConfigurationError: the dataset has no manifest.
    """
    try:
        table = storage.read_table(layout.manifest, MANIFEST)
    except SourceNotFoundError as exc:
        raise ConfigurationError(
            layout.dataset, "has no manifest.parquet", f"Run: cope-prep manifest files DIR {layout.dataset}"
        ) from exc
    names = [name for name in MANIFEST.names if name != "video_key"]
    columns = [table[name].slice(0, limit).to_pylist() for name in names]
    return [VideoRecord(**dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]


def current_rows(tasks: Iterable[VideoTask], ledger: Ledger) -> dict[str, LedgerRow]:
    """The ledger's row of each task, as far as it speaks of the same input."""
    rows = {row.video_id: row for row in rows_of(ledger.read())}
    current = {}
    for task in tasks:
        row = rows.get(task.video_id)
        if row is not None and (row.source_size_bytes, row.source_version) == (
            task.source_size_bytes,
            task.source_version,
        ):
            current[task.video_id] = row
    return current


TakenOver = Callable[[Mapping[str, LedgerRow]], Collection[str]]
"""Of videos that are recorded as done and whose output is gone: the ids of those whose output was deleted on
purpose. See taken_over.py."""


def find_missing(
    tasks: Sequence[VideoTask],
    rows: Mapping[str, LedgerRow],
    *,
    outputs: Collection[str],
    retry_failed: bool,
    taken_over: TakenOver = lambda gone: (),
) -> list[VideoTask]:
    """The tasks that are to be run. `outputs`: names of the files in the stage's folder."""
    gone = {
        task.video_id: row
        for task in tasks
        if (row := rows.get(task.video_id)) is not None
        and row.status != "failed"
        and posixpath.basename(task.output_uri) not in outputs
    }
    lost = gone.keys() - set(taken_over(gone)) if gone else set()

    def is_missing(task: VideoTask) -> bool:
        row = rows.get(task.video_id)
        if row is None or task.video_id in lost:
            return True
        return row.status == "failed" and retry_failed

    return [task for task in tasks if is_missing(task)]


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

    `executor` is called only if there is work, for it may have to start Ray.
    """
    start_s = time.monotonic()
    ledger = Ledger(layout.ledger(stage))
    spec_hash = layout.specs.hash_of(stage)
    rows = current_rows(tasks, ledger)
    outputs = set(storage.list_files(layout.folder(stage)))
    missing = find_missing(
        tasks, rows, outputs=outputs, taken_over=taken_over, retry_failed=options.retry_failed
    )
    runner = executor() if missing else None  # the last thing that can be configured wrongly
    layout.write_spec(stage)
    _remove_old_temporaries(layout.folder(stage), older_than_s=options.time_limit_s)
    progress = Progress(
        label=stage,
        num_items=len(missing),
        weight=sum(task.weight for task in missing),
        console=console,
        quiet=options.quiet,
    )

    with contextlib.closing(progress), LedgerWriter(ledger) as writer:

        def emit(outcome: Outcome[VideoTask]) -> None:
            row = _row_of(outcome, stage=stage, spec_hash=spec_hash)
            if row.status == "failed":
                _remove_leftovers(outcome.item.value.output_uri)
            rows[row.video_id] = row
            writer.add(row)
            progress.advance(
                weight=outcome.item.weight, failed=row.status == "failed", video_s=row.duration_s
            )

        def tick() -> None:
            writer.flush_if_due()
            progress.tick()

        if runner is not None:
            run_items(
                [Item(subject=task.video_id, weight=task.weight, value=task) for task in missing],
                make_call,
                executor=runner,
                emit=emit,
                tick=tick,
                time_limit_s=options.time_limit_s,
            )
    good = [row for row in rows.values() if row.status != "failed"]
    failed = [row for row in rows.values() if row.status == "failed"]
    return StageSummary(
        stage=stage,
        spec_hash=spec_hash,
        num_videos=len(tasks) + num_missing_input,
        num_run=len(missing),
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
    )


def _row_of(outcome: Outcome[VideoTask], *, stage: str, spec_hash: str) -> LedgerRow:
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
    }
    if not isinstance(reply, Done):
        return LedgerRow(
            **known, status="failed", error_class=reply.error_class, error_message=reply.error_message
        )
    report = reply.value
    return LedgerRow(
        **known,
        status=getattr(report, "status", "ok"),
        error_class=getattr(report, "error_class", ""),
        error_message=getattr(report, "error_message", ""),
        source_sha256=getattr(report, "source_sha256", ""),
        output_uri=task.output_uri,
        output_bytes=report.output_bytes,
        output_crc32c=report.output_crc32c,
        notes=tuple(getattr(report, "notes", ())),
        num_frames=report.num_frames,
        num_gops=report.num_gops,
        duration_s=report.duration_s,
    )


def _remove_leftovers(output_uri: str) -> None:
    """Delete the temporary files that a killed child left of one output."""
    folder, name = posixpath.split(output_uri)
    _remove_temporaries(folder, lambda entry: entry.name.endswith(f"-{name}"))


def _remove_old_temporaries(folder: str, *, older_than_s: float | None) -> None:
    """Delete temporary files of killed runs: older than any call may take, so that nobody writes them."""
    if older_than_s is not None:
        before_s = time.time() - older_than_s
        _remove_temporaries(folder, lambda entry: entry.stat().st_mtime < before_s)


def _remove_temporaries(folder: str, wanted: Callable[[os.DirEntry[str]], bool]) -> None:
    if not storage.is_local(folder):
        return  # an object store shows no object before its PUT has ended
    with contextlib.suppress(FileNotFoundError), os.scandir(storage.local_path(folder)) as entries:
        for entry in entries:
            if entry.name.startswith(storage.TEMPORARY_PREFIX) and wanted(entry):
                storage.remove(entry.path)
