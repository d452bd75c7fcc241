"""The shard stage: extracted tars to shards, one task a shard, then the index over all of them.

    extract ledger ──plan_shards──> plan ──build_shard per entry──> shards + rows ──finish_shards──> index

There is no ledger: a shard whose rows and size are as planned is done. A shard that fails leaves the others and
the index over them, and so does one whose rows are damaged and cannot be written again.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console

from cope_prep.jobs.executors import Executor
from cope_prep.jobs.extract import extract_tasks
from cope_prep.jobs.failure_limit import FailureCount, TooManyFailures
from cope_prep.jobs.metrics import StageMetrics
from cope_prep.jobs.progress import Progress
from cope_prep.jobs.stage import Item, Outcome, run_items
from cope_prep.jobs.summary import FailedItem, ShardSummary
from cope_prep.jobs.taken_over import extract_version
from cope_prep.jobs.video_stage import StageOptions, current_rows
from cope_prep.jobs.worker import Done, Failure
from cope_prep.pipeline import storage
from cope_prep.pipeline.finish import finish_shards, read_dataset_json
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.ledger import Ledger
from cope_prep.pipeline.provenance import provenance_uri
from cope_prep.pipeline.shard import BuiltShard, build_shard, find_readable
from cope_prep.pipeline.shard_plan import ExtractedVideo, PlannedShard, ShardPlan, plan_shards
from cope_prep.schemas.errors import FormatError, SourceNotFoundError
from cope_prep.schemas.records import VideoRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumeOptions:
    """What to delete once a shard is published."""

    extracted: bool = False
    reencoded: bool = False


def extracted_videos(layout: Layout, videos: Sequence[VideoRecord]) -> list[ExtractedVideo]:
    """The videos whose samples are, or were, in a tar of the extract stage."""
    rows = current_rows(extract_tasks(layout, videos), Ledger(layout.ledger("extract")))
    return [
        ExtractedVideo(
            video_id=video.video_id,
            video_key=video.video_key,
            subset=video.subset,
            output_bytes=row.output_bytes,
            version=extract_version(row),
        )
        for video in videos
        if (row := rows.get(video.video_id)) is not None and row.status != "failed"
    ]


def run_shard(
    layout: Layout,
    videos: Sequence[VideoRecord],
    *,
    executor: Callable[[], Executor],
    options: StageOptions,
    console: Console,
    consume: ConsumeOptions = ConsumeOptions(),
) -> ShardSummary:
    """Build the shards that are missing or stale, and bring the index up to date."""
    start_s = time.monotonic()
    layout.write_spec("shards")
    extracted = extracted_videos(layout, videos)
    plan = plan_shards(layout, extracted)
    built = {shard.index: _current(layout, shard) for shard in plan.shards}
    # Not what waits for extraction: `extracted` are the videos whose samples are of the re-encoded file as it is.
    reencoded = frozenset(video.video_key for video in extracted) if consume.reencoded else frozenset()
    leftovers = _leftovers(layout, consume.extracted, reencoded)
    missing = [
        shard
        for shard in plan.shards
        if built[shard.index] is None or any(video.video_key in leftovers for video in shard.videos)
    ]
    failures, num_ended, stopped = _build(
        layout,
        missing,
        executor=executor,
        options=options,
        console=console,
        consume=consume.extracted,
        consume_reencoded=reencoded,
    )
    if missing or not _is_finished(layout, plan, built):
        finish_shards(layout, plan)
    document = read_dataset_json(layout)
    counts = document["counts"]
    return ShardSummary(
        stage="shards",
        spec_hash=layout.specs.hash_of("shards"),
        num_shards=len(document["shards"]),
        num_run=num_ended,
        num_failed=len(failures),
        num_videos=counts["videos"],
        num_gops=counts["gops"],
        num_windows=counts["windows"],
        duration_s=counts["seconds"],
        output_bytes=document["bytes"]["total"],
        num_missing_input=len(videos) - len(extracted),
        wall_s=time.monotonic() - start_s,
        failures=tuple(failures),
        stopped=stopped,
    )


def _current(layout: Layout, shard: PlannedShard) -> BuiltShard | None:
    found = find_readable(layout, shard.index)
    return found[0] if found is not None and found[0].versions == shard.versions else None


def _leftovers(layout: Layout, consume: bool, consume_reencoded: frozenset[str]) -> set[str]:
    """Keys of the videos that have a file which is to be deleted."""

    def keys(stage: str, suffix: str) -> set[str]:
        return {name.removesuffix(suffix) for name in storage.list_files(layout.folder(stage))}

    leftovers = keys("extract", ".tar") if consume else set()
    return leftovers | (keys("reencode", ".mp4") & consume_reencoded if consume_reencoded else set())


def _is_finished(layout: Layout, plan: ShardPlan, built: dict[int, BuiltShard | None]) -> bool:
    """True if dataset.json describes exactly the shards that are there."""
    try:
        document = read_dataset_json(layout)
        described = [(shard["name"], shard["crc32c"]) for shard in document["shards"]]
    except (SourceNotFoundError, FormatError, LookupError, TypeError):
        return False
    there = [(shard.name, known.crc32c) for shard in plan.shards if (known := built[shard.index])]
    if described != there or "provenance" not in document:  # made before there was any
        return False
    return storage.exists(layout.index) and storage.exists(provenance_uri(layout))


def _build(
    layout: Layout,
    shards: Sequence[PlannedShard],
    *,
    executor: Callable[[], Executor],
    options: StageOptions,
    console: Console,
    consume: bool,
    consume_reencoded: frozenset[str],
) -> tuple[list[FailedItem], int, str]:
    """Returns what failed, how many ended, and why it was stopped, if it was."""
    if not shards:
        return [], 0, ""
    runner = executor()
    metrics = StageMetrics("shards", runner)
    failures: list[FailedItem] = []
    count = FailureCount("shards", options.max_failures)
    stopped = ""
    progress = Progress(
        label="shards",
        num_items=len(shards),
        weight=sum(shard.size_bytes for shard in shards),
        console=console,
        quiet=options.quiet,
    )

    def emit(outcome: Outcome[PlannedShard]) -> None:
        reply = outcome.reply
        count.add(reply.error_class if isinstance(reply, Failure) else "")
        progress.advance(weight=outcome.item.weight, failed=isinstance(reply, Failure))
        if isinstance(reply, Done):
            made = not reply.value.was_published
            metrics.item_ended(
                wall_s=reply.wall_s,
                bytes_in=outcome.item.value.size_bytes if made else 0,
                bytes_out=reply.value.size_bytes if made else 0,
            )
        else:
            metrics.item_ended(wall_s=reply.wall_s, error_class=reply.error_class)
            failures.append(
                FailedItem(
                    stage="shards",
                    subject=outcome.item.subject,
                    error_class=reply.error_class,
                    error_message=reply.error_message,
                )
            )

    def tick() -> None:
        progress.tick()
        count.check()

    with contextlib.closing(progress):
        try:
            run_items(
                [Item(subject=shard.name, weight=shard.size_bytes, value=shard) for shard in shards],
                lambda shard: functools.partial(
                    build_shard,
                    layout,
                    shard,
                    consume=consume,
                    consume_reencoded=consume_reencoded & {video.video_key for video in shard.videos},
                ),
                executor=runner,
                emit=emit,
                tick=tick,
                count=metrics.waiting,
                time_limit_s=options.time_limit_s,
            )
        except TooManyFailures as exc:
            stopped = str(exc)
    return failures, count.num_ended, stopped
