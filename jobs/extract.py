"""The extract stage: every re-encoded file to a tar of GOP samples."""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Callable, Collection, Sequence

from rich.console import Console

from cope_prep.jobs.executors import Executor
from cope_prep.jobs.reencode import reencode_tasks
from cope_prep.jobs.video_stage import (
    StageOptions,
    StageSummary,
    VideoTask,
    current_rows,
    run_video_stage,
)
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, find_specs
from cope_prep.pipeline.ledger import Ledger, LedgerRow
from cope_prep.schemas.records import VideoRecord


def extract_tasks(layout: Layout, videos: Sequence[VideoRecord]) -> list[VideoTask]:
    """One task a re-encoded video, those included whose samples are there but whose file was deleted."""
    reencoded = current_rows(reencode_tasks(layout, videos), Ledger(layout.ledger("reencode")))
    files = set(storage.list_files(layout.folder("reencode")))
    tasks = [
        _task(layout, video, row)
        for video in videos
        if (row := reencoded.get(video.video_id)) is not None and row.status != "failed"
    ]
    extracted = current_rows(tasks, Ledger(layout.ledger("extract")))
    return [
        task
        for task in tasks
        if posixpath.basename(task.source_uri) in files or _is_done(extracted.get(task.video_id))
    ]


def _task(layout: Layout, video: VideoRecord, row: LedgerRow) -> VideoTask:
    return VideoTask(
        video_id=video.video_id,
        video_key=video.video_key,
        source_uri=layout.reencoded(video.video_key),
        output_uri=layout.extracted(video.video_key),
        source_size_bytes=row.output_bytes,
        # The re-encoded file is a function of the source and of the spec, which is in the path. Its own
        # time stamp would say "changed" when only the same bytes were written again.
        source_version=row.source_sha256 or row.source_version,
        weight=row.duration_s,
    )


def _is_done(row: LedgerRow | None) -> bool:
    return row is not None and row.status != "failed"


def extracted_videos(layout: Layout, videos: Sequence[VideoRecord]) -> set[str]:
    """Ids of videos that some extract of these re-encoded files has taken over: the file may be gone."""
    taken: set[str] = set()
    for specs in find_specs(layout.dataset, "extract"):
        if specs.encode == layout.specs.encode:
            other = Layout(dataset=layout.dataset, specs=specs)
            rows = current_rows(extract_tasks(other, videos), Ledger(other.ledger("extract")))
            taken.update(video_id for video_id, row in rows.items() if _is_done(row))
    return taken


def run_extract(
    layout: Layout,
    videos: Sequence[VideoRecord],
    *,
    executor: Callable[[], Executor],
    options: StageOptions,
    console: Console,
    consumed: Collection[str] = frozenset(),
) -> StageSummary:
    """Extract the samples of the re-encoded videos that have none yet."""
    from cope_prep.pipeline.extract import extract_video  # FFmpeg and numba: only when there is work

    specs = layout.specs
    tasks = extract_tasks(layout, videos)

    def make_call(task: VideoTask) -> functools.partial[object]:
        return functools.partial(
            extract_video,
            task.source_uri,
            task.output_uri,
            video_id=task.video_id,
            encode_spec=specs.encode,
            spec=specs.extract,
        )

    return run_video_stage(
        layout,
        "extract",
        tasks,
        make_call,
        executor=executor,
        options=options,
        console=console,
        consumed=consumed,
        num_missing_input=len(videos) - len(tasks),
    )
