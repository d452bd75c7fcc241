"""What is done in a dataset, read from its ledgers: for `cope-prep status`.

One status a stage and spec. The rate is that of the last ten minutes in which anything ended, and the time
left follows from it by weight (bytes, or seconds of video). Nothing is listed or opened but the tables, so
that asking costs a running job nothing.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cope_prep.jobs.extract import extract_tasks
from cope_prep.jobs.reencode import reencode_tasks
from cope_prep.jobs.summary import FailedItem
from cope_prep.jobs.video_stage import VideoTask, current_rows, read_videos
from cope_prep.pipeline.layout import Layout, Specs, find_specs
from cope_prep.pipeline.ledger import Ledger, LedgerRow
from cope_prep.schemas.errors import SourceNotFoundError
from cope_prep.schemas.records import VideoRecord

RATE_WINDOW_S = 600.0
RUNNING_WITHIN_S = 120.0
"""A stage in which something ended so recently is taken to be running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """One stage with one set of specs."""

    stage: str
    spec_hash: str
    num_videos: int
    num_ok: int
    num_partial: int
    num_failed: int
    num_pending: int
    """Can be run now: in the manifest, with an input from the stage before, and not yet tried."""
    num_waiting: int
    """No output of the stage before yet, or never."""
    duration_s: float
    source_bytes: int
    """Of the videos that are ok or partial."""
    output_bytes: int
    cpu_s: float
    is_running: bool
    videos_per_s: float | None
    """Of the last ten minutes of work; None if nothing ended yet."""
    left_s: float | None
    """None if nothing is running."""
    failures: tuple[FailedItem, ...]
    partials: tuple[FailedItem, ...]
    """Done, but not all of the video could be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardsStatus:
    """The shards of one set of specs."""

    spec_hash: str
    num_shards: int
    num_videos: int
    num_gops: int
    num_windows: int
    duration_s: float
    output_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetStatus:
    """All stages of a dataset."""

    dataset: str
    num_videos: int
    source_bytes: int
    stages: tuple[StageStatus, ...]
    shards: tuple[ShardsStatus, ...]

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def dataset_status(dataset: str, *, now_unix_s: float | None = None) -> DatasetStatus:
    """How far a dataset is.

    Raises:
        ConfigurationError: it has no manifest.
    """
    now_unix_s = time.time() if now_unix_s is None else now_unix_s
    videos = read_videos(Layout(dataset=dataset, specs=Specs()))
    stages = [
        _stage_status(Layout(dataset=dataset, specs=specs), stage, videos, now_unix_s=now_unix_s)
        for stage in ("reencode", "extract")
        for specs in find_specs(dataset, stage)
    ]
    shards = [_shards_status(Layout(dataset=dataset, specs=specs)) for specs in find_specs(dataset, "shards")]
    return DatasetStatus(
        dataset=dataset,
        num_videos=len(videos),
        source_bytes=sum(video.size_bytes for video in videos),
        stages=tuple(stages),
        shards=tuple(status for status in shards if status is not None),
    )


def _stage_status(
    layout: Layout, stage: str, videos: Sequence[VideoRecord], *, now_unix_s: float
) -> StageStatus:
    tasks = {"reencode": reencode_tasks, "extract": extract_tasks}[stage](layout, videos)
    rows = current_rows(tasks, Ledger(layout.ledger(stage)))
    by_status: dict[str, list[LedgerRow]] = defaultdict(list)
    for row in rows.values():
        by_status[row.status].append(row)
    good = by_status["ok"] + by_status["partial"]
    pending = [task for task in tasks if task.video_id not in rows]
    videos_per_s, weight_per_s, is_running = _rates(tasks, rows, now_unix_s=now_unix_s)
    left_s = None
    if is_running and weight_per_s:
        left_s = sum(task.weight for task in pending) / weight_per_s
    return StageStatus(
        stage=stage,
        spec_hash=layout.specs.hash_of(stage),
        num_videos=len(videos),
        num_ok=len(by_status["ok"]),
        num_partial=len(by_status["partial"]),
        num_failed=len(by_status["failed"]),
        num_pending=len(pending),
        num_waiting=len(videos) - len(tasks),
        duration_s=sum(row.duration_s for row in good),
        source_bytes=sum(row.source_size_bytes for row in good),
        output_bytes=sum(row.output_bytes for row in good),
        cpu_s=sum(row.cpu_s for row in rows.values()),
        is_running=is_running and bool(pending),
        videos_per_s=videos_per_s,
        left_s=left_s,
        failures=_items(by_status["failed"]),
        partials=_items(by_status["partial"]),
    )


def _rates(
    tasks: Sequence[VideoTask], rows: dict[str, LedgerRow], *, now_unix_s: float
) -> tuple[float | None, float | None, bool]:
    """(videos a second, weight a second, is it running)."""
    if not rows:
        return None, None, False
    last_unix_s = max(row.finished_unix_s for row in rows.values())
    is_running = now_unix_s - last_unix_s < RUNNING_WITHIN_S
    end_unix_s = now_unix_s if is_running else last_unix_s
    recent = {name: row for name, row in rows.items() if row.finished_unix_s > last_unix_s - RATE_WINDOW_S}
    # The first of them began its wall time earlier: a stage of one video has a rate too.
    start_unix_s = min(row.finished_unix_s - row.wall_s for row in recent.values())
    elapsed_s = max(end_unix_s - start_unix_s, 1e-3)
    weight = sum(task.weight for task in tasks if task.video_id in recent)
    return len(recent) / elapsed_s, weight / elapsed_s, is_running


def _shards_status(layout: Layout) -> ShardsStatus | None:
    from cope_prep.pipeline.finish import read_dataset_json

    try:
        document = read_dataset_json(layout)
    except SourceNotFoundError:
        return None  # begun, not finished
    counts = document["counts"]
    return ShardsStatus(
        spec_hash=layout.specs.hash_of("shards"),
        num_shards=len(document["shards"]),
        num_videos=counts["videos"],
        num_gops=counts["gops"],
        num_windows=counts["windows"],
        duration_s=counts["seconds"],
        output_bytes=document["bytes"]["total"],
    )


def _items(rows: Sequence[LedgerRow]) -> tuple[FailedItem, ...]:
    return tuple(
        FailedItem(
            stage=row.stage,
            subject=row.video_id,
            error_class=row.error_class,
            error_message=row.error_message,
        )
        for row in sorted(rows, key=lambda row: row.video_id)
    )
