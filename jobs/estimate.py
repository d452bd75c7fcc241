"""What a job over a whole dataset will take: a sample of it is run for real, and scaled up.

    manifest ──draw_sample──> re-encode, extract, shard into a scratch folder ──ledgers──> totals, intervals

The sample goes through the job's own stages, on the same executor, so what a video costs here is what it costs
there: decoding, reading from the store, the worker process, its failures. What a worker pays once (imports, the
kernels' compilation) is paid before the clock starts, for a job of many videos does not feel it. Nothing of the
dataset itself is touched.
"""

from __future__ import annotations

import dataclasses
import functools
import posixpath
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from rich.console import Console

from cope_prep.jobs.executors import Executor
from cope_prep.jobs.extract import run_extract
from cope_prep.jobs.meter import Meter, Spent
from cope_prep.jobs.reencode import run_reencode
from cope_prep.jobs.shard import run_shard
from cope_prep.jobs.stage import Item, run_items
from cope_prep.jobs.summary import FailedItem
from cope_prep.jobs.video_stage import StageOptions
from cope_prep.pipeline import storage
from cope_prep.pipeline.estimate import Drawn, Estimate, draw_sample, estimate_total, largest
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.ledger import Ledger, LedgerRow, rows_of
from cope_prep.schemas.arrow import MANIFEST
from cope_prep.schemas.records import VideoRecord

_SPLITTABLE = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm"})
"""Types of files that are worked on in parts, if nothing is wrong with them (docs/decisions/0016)."""
STAGES = ("reencode", "extract", "shards")


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoCost:
    """What one stage took for one video of the sample."""

    core_s: float = 0.0
    """Seconds for which it held a core, those of waiting for the store, and of failed attempts, included."""
    cpu_s: float = 0.0
    output_bytes: int = 0
    floor_s: float = 0.0
    """Seconds with any number of cores: long videos are worked on in parts. 0 of shards, which are no video's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The sample, run."""

    drawn: Sequence[Drawn]
    costs: Mapping[str, Mapping[str, VideoCost]]
    """Stage -> video id -> what it took; every video of the sample is in every stage."""
    video_s: Mapping[str, float]
    """Seconds of video, after re-encoding; 0 for those that failed."""
    failures: Sequence[FailedItem]
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetEstimate:
    """Totals over all videos of the manifest. Times are those of this machine's cores."""

    num_videos: int
    source_bytes: int
    measured: Measured
    video_s: Estimate
    num_failed: Estimate
    core_s: Estimate
    """Of all stages."""
    stage_core_s: Mapping[str, Estimate]
    stage_cpu_s: Mapping[str, Estimate]
    stage_bytes: Mapping[str, Estimate]
    """Outputs: re-encoded files, extracted tars, shards."""
    longest_s: float
    """Core time of the video that takes most."""
    floor_s: float
    """Re-encoding and extraction of the video that takes longest with any number of cores: no job is faster."""

    def wall_s(self, cores: int) -> Estimate:
        """With so many cores, busy until the end; Ray's start and the machines' are not in it."""
        scaled = self.core_s.scaled(1 / cores)
        return Estimate(
            **{name: max(value, self.floor_s) for name, value in dataclasses.asdict(scaled).items()}
        )


def estimate_dataset(
    videos: Sequence[VideoRecord],
    *,
    specs: Specs,
    sample: int,
    seed: int,
    scratch: str,
    executor: Callable[[], Executor],
    options: StageOptions,
    console: Console,
) -> DatasetEstimate:
    """Run a sample of the videos in the empty folder `scratch`, which is left as it is then, and scale it up."""
    drawn = draw_sample(videos, size=sample, seed=seed)
    measured = measure(
        drawn, specs=specs, scratch=scratch, executor=executor, options=options, console=console
    )
    failed = {item.subject for item in measured.failures}

    def total(figure: Callable[[str], float]) -> Estimate:
        return estimate_total(drawn, {entry.video.video_id: figure(entry.video.video_id) for entry in drawn})

    def per_stage(field: str) -> dict[str, Estimate]:
        costs = measured.costs
        return {stage: total(lambda name, of=costs[stage]: getattr(of[name], field)) for stage in STAGES}

    def core_s(video_id: str) -> float:
        return sum(measured.costs[stage][video_id].core_s for stage in STAGES)

    return DatasetEstimate(
        num_videos=len(videos),
        source_bytes=sum(video.size_bytes for video in videos),
        measured=measured,
        video_s=total(lambda name: measured.video_s[name]),
        num_failed=total(lambda name: float(name in failed)),
        core_s=total(core_s),
        stage_core_s=per_stage("core_s"),
        stage_cpu_s=per_stage("cpu_s"),
        stage_bytes=per_stage("output_bytes"),
        longest_s=largest(
            drawn, {entry.video.video_id: core_s(entry.video.video_id) for entry in drawn}, videos
        ),
        floor_s=sum(_floor_s(stage, measured, videos) for stage in ("reencode", "extract")),
    )


def _floor_s(stage: str, measured: Measured, videos: Sequence[VideoRecord]) -> float:
    """Of the slowest video, likely. One that is larger than all of the sample has more parts, not larger ones."""
    from cope_prep.pipeline.reencode_parts import PART_WORK_S  # with FFmpeg, which only workers need

    floors = {name: cost.floor_s for name, cost in measured.costs[stage].items()}
    seen_s = max(floors.values())
    likely_s = largest(measured.drawn, floors, videos)
    top = max(videos, key=lambda video: video.size_bytes)
    if posixpath.splitext(top.uri)[1].lower() in _SPLITTABLE:
        return max(seen_s, min(likely_s, PART_WORK_S))
    return likely_s


def measure(
    drawn: Sequence[Drawn],
    *,
    specs: Specs,
    scratch: str,
    executor: Callable[[], Executor],
    options: StageOptions,
    console: Console,
) -> Measured:
    """Run the sample through the stages, as a dataset of its own."""
    videos = [entry.video for entry in drawn]
    layout = Layout(dataset=storage.join(scratch, "sample"), specs=specs)
    names = [name for name in MANIFEST.names if name != "video_key"]
    columns: dict[str, list[Any]] = {name: [getattr(video, name) for video in videos] for name in names}
    columns["video_key"] = [video.video_key for video in videos]
    storage.publish_table(layout.manifest, pa.table(columns).select(MANIFEST.names).cast(MANIFEST))
    meter = Meter(executor())
    common: dict[str, Any] = {"executor": lambda: meter, "options": options, "console": console}

    run_calls(meter, [functools.partial(import_stages)] * meter.capacity())
    start_s = time.monotonic()
    meter.take()
    failures = list(run_reencode(layout, videos, **common).failures)
    spent = {"reencode": meter.take()}
    reencoded = _rows(layout, "reencode")
    reencode_s = time.monotonic() - start_s
    _warm_up_extraction(meter, layout, reencoded, scratch)
    start_s = time.monotonic()
    meter.take()
    failures += run_extract(layout, videos, **common).failures
    spent["extract"] = meter.take()
    extracted = _rows(layout, "extract")
    shards = run_shard(layout, videos, **common)
    packing = meter.take().values()
    packing_s, packing_cpu_s = (
        sum(getattr(calls, name) for calls in packing) for name in ("wall_s", "cpu_s")
    )
    wall_s = reencode_s + time.monotonic() - start_s
    failures += shards.failures
    tar_bytes = sum(row.output_bytes for row in extracted.values())

    def shard_cost(video_id: str) -> VideoCost:
        row = extracted.get(video_id)
        share = row.output_bytes / tar_bytes if row is not None and tar_bytes else 0.0
        return VideoCost(
            core_s=packing_s * share,
            cpu_s=packing_cpu_s * share,
            output_bytes=round(shards.output_bytes * share),
        )

    return Measured(
        drawn=drawn,
        costs={
            "reencode": _costs(videos, reencoded, spent["reencode"]),
            "extract": _costs(videos, extracted, spent["extract"]),
            "shards": {video.video_id: shard_cost(video.video_id) for video in videos},
        },
        video_s={
            video.video_id: row.duration_s if (row := extracted.get(video.video_id)) else 0.0
            for video in videos
        },
        failures=failures,
        wall_s=wall_s,
    )


def import_stages() -> None:
    """In a worker: what its first video would pay for all that follow."""
    import cope_prep.pipeline.extract
    import cope_prep.pipeline.reencode
    import cope_prep.pipeline.shard  # noqa: F401


def run_calls(executor: Executor, calls: Sequence[functools.partial[Any]]) -> None:
    """Have calls performed; how they end does not matter."""
    run_items(
        [Item(subject="warm-up", weight=1.0, value=call) for call in calls],
        lambda call: call,
        executor=executor,
        emit=lambda outcome: None,
        retries=0,
    )


def _warm_up_extraction(
    executor: Executor, layout: Layout, rows: Mapping[str, LedgerRow], scratch: str
) -> None:
    """One extraction of the shortest video a worker, and more: numba compiles or loads its kernels."""
    good = [row for row in rows.values() if row.status != "failed"]
    if not good:
        return
    from cope_prep.pipeline.extract import extract_video

    shortest = min(good, key=lambda row: (row.duration_s, row.video_id))
    calls = [
        functools.partial(
            extract_video,
            layout.reencoded(shortest.video_key),
            storage.join(scratch, "warm-up", f"{index}.tar"),
            video_id=shortest.video_id,
            encode_spec=layout.specs.encode,
            spec=layout.specs.extract,
        )
        for index in range(executor.capacity())
    ]
    run_calls(executor, calls)


def _rows(layout: Layout, stage: str) -> dict[str, LedgerRow]:
    return {row.video_id: row for row in rows_of(Ledger(layout.ledger(stage)).read())}


def _costs(
    videos: Sequence[VideoRecord], rows: Mapping[str, LedgerRow], spent: Mapping[str, Spent]
) -> dict[str, VideoCost]:
    nothing = Spent()
    costs = {}
    for name in (video.video_id for video in videos):
        row, calls = rows.get(name), spent.get(name, nothing)
        costs[name] = VideoCost(
            core_s=calls.wall_s,
            cpu_s=calls.cpu_s,
            output_bytes=row.output_bytes if row is not None else 0,
            floor_s=calls.floor_s,
        )
    return costs
