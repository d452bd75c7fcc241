"""The extract stage: every re-encoded file to a tar of GOP samples."""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Callable, Sequence

from rich.console import Console

from cope_prep.jobs.executors import Executor
from cope_prep.jobs.reencode import reencode_tasks
from cope_prep.jobs.resources import DEFAULT_MEMORY_BYTES
from cope_prep.jobs.summary import StageSummary
from cope_prep.jobs.taken_over import input_identity, taken_by_shards
from cope_prep.jobs.video_stage import StageOptions, VideoTask, current_rows, run_video_stage
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.ledger import KnownRow, Ledger
from cope_prep.schemas.records import VideoRecord


def extract_tasks(layout: Layout, videos: Sequence[VideoRecord]) -> list[VideoTask]:
    """One task a re-encoded video, those included that are extracted and whose file was deleted since."""
    reencoded = current_rows(reencode_tasks(layout, videos), Ledger(layout.ledger("reencode")))
    files = set(storage.list_files(layout.folder("reencode")))
    tasks = [
        _task(layout, video, row)
        for video in videos
        if (row := reencoded.get(video.video_id)) is not None and row.status != "failed"
    ]
    extracted = current_rows(tasks, Ledger(layout.ledger("extract")))
    return [
        task for task in tasks if posixpath.basename(task.source_uri) in files or task.video_id in extracted
    ]


def _task(layout: Layout, video: VideoRecord, row: KnownRow) -> VideoTask:
    size_bytes, version = input_identity(row)
    return VideoTask(
        video_id=video.video_id,
        video_key=video.video_key,
        source_uri=layout.reencoded(video.video_key),
        output_uri=layout.extracted(video.video_key),
        source_size_bytes=size_bytes,
        source_version=version,
        source_crc32c=row.output_crc32c,
        weight=row.duration_s,
    )


def run_extract(
    layout: Layout,
    videos: Sequence[VideoRecord],
    *,
    executor: Callable[[], Executor],
    options: StageOptions,
    console: Console,
    own_only: bool = False,
) -> StageSummary:
    """Extract the samples of the re-encoded videos that have none yet. `own_only`: see taken_over.py."""
    from cope_prep.pipeline.extract_parts import extract_or_split  # FFmpeg and numba: only for work

    specs = layout.specs
    tasks = extract_tasks(layout, videos)

    def make_call(task: VideoTask) -> functools.partial[object]:
        return functools.partial(
            extract_or_split,
            task.source_uri,
            task.output_uri,
            video_id=task.video_id,
            encode_spec=specs.encode,
            spec=specs.extract,
            source_crc32c=task.source_crc32c,
            memory_bytes=DEFAULT_MEMORY_BYTES,
        )

    return run_video_stage(
        layout,
        "extract",
        tasks,
        make_call,
        executor=executor,
        options=options,
        console=console,
        taken_over=lambda gone: taken_by_shards(layout, gone, own_only=own_only),
        num_missing_input=len(videos) - len(tasks),
    )
