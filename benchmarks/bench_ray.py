"""The re-encode job on Ray against a plain loop over the same clips: what the job costs, what two workers bring.

    loop          for clip in clips: reencode_video(...)          in this process
    one worker    cope-prep's stage on a Ray of its own, one CPU: planning, ledger and index of work included
    two workers   the same with two CPUs

The three take turns; the figures are medians of the rounds' ratios. Left out on all sides, and printed: imports
and the start and stop of Ray, which a job pays once, however many videos it has. Needs two idle cores.

    python benchmarks/bench_ray.py [--clips N] [--rounds N] [--tasks N] [--json PATH]

Targets: one worker at most 1.05 x the loop's time; two workers at least 1.85 x as fast as one. The empty calls
at the end show the job's own ceiling: tasks per second, and the driver's memory per video.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clips import machine, real_clips  # benchmarks are scripts: their folder is on the path
from rich.console import Console

from cope_prep.jobs.executors import RayExecutor
from cope_prep.jobs.reencode import run_reencode
from cope_prep.jobs.stage import Item, run_items
from cope_prep.jobs.video_stage import StageOptions
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.reencode import reencode_video
from cope_prep.schemas.records import VideoRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRun:
    """One run of the stage on a Ray of its own."""

    work_s: float
    start_stop_s: float
    """Starting Ray, importing in its workers, and stopping it."""


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        videos = copies(Path(name, "clips"), arguments.clips)
        plain_loop(videos[:1], Path(name, "warm-up"))
        print(f"{arguments.clips} clips of 10 s; load {os.getloadavg()[0]:.1f} before we began")
        print(f"{'round':6}{'loop':>9}{'1 worker':>10}{'2 workers':>11}{'overhead':>10}{'speed-up':>10}")
        for index in range(arguments.rounds):
            folder = Path(name, f"round-{index}")
            loop_s = plain_loop(videos, folder / "loop")
            one = job(videos, folder / "one", workers=1)
            two = job(videos, folder / "two", workers=2)
            row = {
                "loop_s": loop_s,
                "one_s": one.work_s,
                "two_s": two.work_s,
                "overhead": one.work_s / loop_s - 1,
                "speed_up": one.work_s / two.work_s,
                "start_stop_s": one.start_stop_s,
            }
            rows.append(row)
            print(
                f"{index + 1:<6}{loop_s:>8.1f}s{one.work_s:>9.1f}s{two.work_s:>10.1f}s"
                f"{row['overhead']:>+10.1%}{row['speed_up']:>10.2f}",
                flush=True,
            )
    summary = {
        "overhead": statistics.median(row["overhead"] for row in rows),
        "overhead_target": 0.05,
        "speed_up": statistics.median(row["speed_up"] for row in rows),
        "speed_up_target": 1.85,
        "start_stop_s": statistics.median(row["start_stop_s"] for row in rows),
        **empty_calls(arguments.tasks),
    }
    print(
        f"median: overhead {summary['overhead']:+.1%} (target +5 %), two workers {summary['speed_up']:.2f} x"
        f" (target 1.85 x); Ray's start and stop {summary['start_stop_s']:.1f} s, left out\n"
        f"empty calls: {summary['tasks_per_s']:.0f} a second, driver {summary['driver_bytes_per_task']:.0f}"
        " bytes each"
    )
    if arguments.json:
        document = {"benchmark": "ray", "machine": machine(), "rows": rows, "summary": summary}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def copies(folder: Path, count: int) -> list[VideoRecord]:
    """Many videos from the one clip that lasts ten seconds."""
    folder.mkdir()
    clip = next(path for path in real_clips() if path.stem == "bikes")
    videos = []
    for index in range(count):
        path = folder / f"{index:04d}.mp4"
        path.write_bytes(clip.read_bytes())
        stat = storage.stat(str(path))
        videos.append(
            VideoRecord(
                video_id=path.name,
                uri=str(path),
                subset="",
                size_bytes=stat.size_bytes,
                version=stat.version,
            )
        )
    return videos


def plain_loop(videos: list[VideoRecord], folder: Path) -> float:
    """Seconds of the loop that the job replaces."""
    spec = Specs().encode
    start_s = time.perf_counter()
    for video in videos:
        reencode_video(video.uri, str(folder / f"{video.video_key}.mp4"), spec=spec)
    return time.perf_counter() - start_s


def job(videos: list[VideoRecord], dataset: Path, *, workers: int) -> JobRun:
    """The stage over the same videos. Its workers have done one clip each before the clock starts."""
    begin_s = time.perf_counter()
    executor = RayExecutor(workers=workers)
    stage(videos[: 2 * workers], f"{dataset}-warm-up", executor)
    start_s = time.perf_counter()
    stage(videos, str(dataset), executor)
    stop_s = time.perf_counter()
    executor.close()
    start_stop_s = (start_s - begin_s) + (time.perf_counter() - stop_s)
    return JobRun(work_s=stop_s - start_s, start_stop_s=start_stop_s)


def stage(videos: list[VideoRecord], dataset: str, executor: RayExecutor) -> None:
    """`cope-prep reencode`, less the command line."""
    summary = run_reencode(
        Layout(dataset=dataset, specs=Specs()),
        videos,
        executor=lambda: executor,
        options=StageOptions(quiet=True),
        console=Console(file=io.StringIO()),
    )
    if summary.num_ok != len(videos):
        raise SystemExit(f"{summary.num_failed} clips failed: {summary.failures[:1]}")


def empty_calls(count: int) -> dict[str, float]:
    """Rate of calls that do nothing, and what the driver's memory grows by."""
    executor = RayExecutor(workers=2)
    run_calls(executor, 200)
    before_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start_s = time.perf_counter()
    run_calls(executor, count)
    wall_s = time.perf_counter() - start_s
    grown_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before_bytes
    executor.close()
    return {"tasks_per_s": count / wall_s, "driver_bytes_per_task": grown_bytes / count}


def run_calls(executor: RayExecutor, count: int) -> None:
    """Have `int()` called so many times, each as a task."""
    num_ended = 0

    def emit(outcome: object) -> None:
        nonlocal num_ended
        num_ended += 1

    make_call: Callable[[int], functools.partial[int]] = functools.partial(functools.partial, int)
    run_items(
        [Item(subject=str(index), weight=1.0, value=index) for index in range(count)],
        make_call,
        executor=executor,
        emit=emit,
    )
    if num_ended != count:
        raise SystemExit(f"{num_ended} of {count} calls ended")


if __name__ == "__main__":
    raise SystemExit(main())
