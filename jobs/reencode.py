"""The re-encode stage: every source video of the manifest to a fixed-GOP file."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from rich.console import Console

from cope_prep.jobs.executors import Executor
from cope_prep.jobs.resources import DEFAULT_MEMORY_BYTES
from cope_prep.jobs.summary import StageSummary
from cope_prep.jobs.taken_over import taken_by_extract
from cope_prep.jobs.video_stage import StageOptions, VideoTask, run_video_stage
from cope_prep.pipeline.layout import Layout
from cope_prep.schemas.records import VideoRecord


def reencode_tasks(layout: Layout, videos: Sequence[VideoRecord]) -> list[VideoTask]:
    """One task a source video; its size is what tells a long one from a short one before it is opened."""
    return [
        VideoTask(
            video_id=video.video_id,
            video_key=video.video_key,
            source_uri=video.uri,
            output_uri=layout.reencoded(video.video_key),
            source_size_bytes=video.size_bytes,
            source_version=video.version,
            weight=float(video.size_bytes),
        )
        for video in videos
    ]


def run_reencode(
    layout: Layout,
    videos: Sequence[VideoRecord],
    *,
    executor: Callable[[], Executor],
    options: StageOptions,
    console: Console,
    own_only: bool = False,
) -> StageSummary:
    """Re-encode the videos that are not yet. `own_only`: see taken_over.py."""
    from cope_prep.pipeline.reencode_parts import reencode_or_split  # FFmpeg: only when there is work for it

    spec = layout.specs.encode
    return run_video_stage(
        layout,
        "reencode",
        reencode_tasks(layout, videos),
        lambda task: functools.partial(
            reencode_or_split,
            task.source_uri,
            task.output_uri,
            spec=spec,
            memory_bytes=DEFAULT_MEMORY_BYTES,
        ),
        executor=executor,
        options=options,
        console=console,
        taken_over=lambda gone: taken_by_extract(layout, gone, own_only=own_only),
    )
