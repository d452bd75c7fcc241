"""Extraction against a bare decode loop, and against motion-vector-extractor; frames a second on one core.

    python benchmarks/bench_extract.py [--rounds N] [--json PATH]

Each round runs all contestants on a clip in turn, and a figure is the median over the rounds of the ratio to
that round's bare loop. The process is pinned to one core and CPU time (user and system) is counted, since
machines are shared; the ratios by wall time are printed after a slash. Contestants:

    bare       PyAV, one thread, `export_mvs`, and every frame's vectors turned into an array; nothing else
    peer       motion-vector-extractor (PyPI), set_decode_frames(False): vectors only
    s = 30     everything that extract_video does, up to the sample's bytes: default coding
    s = 10     the same with windows of 10
    s = 1      exact: the codec's own compensation, lossless residual and I-frame

Targets: s = 30 at least 0.75 of the bare loop and 1.0 of the peer on average over the clips; s = 1 at least 0.35.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
from clips import machine, reencoded

from cope_prep.pipeline import tar
from cope_prep.pipeline.extract import extract_gops
from cope_prep.schemas.specs import EncodeSpec, ExtractSpec, LosslessIframe, LosslessResidual
from cope_prep.schemas.wire import encode_gop

SPECS = {
    "s = 30": ExtractSpec(),
    "s = 10": ExtractSpec(window=10),
    "s = 1 exact": ExtractSpec(window=1, residual=LosslessResidual(), iframe=LosslessIframe()),
}
TARGETS = {"s = 30": 0.75, "s = 1 exact": 0.35}


def bare(path: Path) -> int:
    """The codec's own speed, as Python can see it."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"flags2": "+export_mvs"}
        num_frames = 0
        for frame in container.decode(stream):
            side_data = frame.side_data.get("MOTION_VECTORS")
            if side_data is not None:
                side_data.to_ndarray()
            num_frames += 1
    return num_frames


def peer(path: Path) -> int:
    """motion-vector-extractor, vectors only."""
    from mvextractor.videocap import VideoCap

    cap = VideoCap()
    cap.open(str(path))
    cap.set_decode_frames(False)
    num_frames = 0
    while cap.read()[0]:
        num_frames += 1
    cap.release()
    return num_frames


def ours(path: Path, spec: ExtractSpec, encode_spec: EncodeSpec) -> int:
    """What extract_video does, less the file."""
    num_frames = 0
    for record in extract_gops(str(path), spec=spec, encode_spec=encode_spec, video_id="bench"):
        tar.sample_bytes(record.key, encode_gop(record))
        num_frames += record.num_frames
    return num_frames


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="at least, for each measurement")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for encode_spec in (EncodeSpec(), EncodeSpec(codec="mpeg4", quality=4)):
            for path in reencoded(Path(folder), encode_spec):
                rows.append(measure(path, encode_spec, arguments.rounds, arguments.seconds))
                print(describe(rows[-1]), flush=True)
    summary = {}
    for codec in ("h264", "mpeg4"):
        for name in ("peer", *SPECS):
            ratios = [row["ratio"][name] for row in rows if row["codec"] == codec]
            summary[f"{codec} {name}"] = round(statistics.mean(ratios), 3)
        over_peer = [row["ratio"]["s = 30"] / row["ratio"]["peer"] for row in rows if row["codec"] == codec]
        summary[f"{codec} s = 30 over peer"] = round(statistics.mean(over_peer), 3)
    print("\nmean over the clips, of the bare loop's frames/s:")
    for name, ratio in summary.items():
        target = next((f"   target {goal}" for key, goal in TARGETS.items() if name == f"h264 {key}"), "")
        print(f"  {name:24s} {ratio:.2f}{target}")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"machine": machine(), "summary": summary, "clips": rows}, indent=1) + "\n"
        )


def measure(path: Path, encode_spec: EncodeSpec, rounds: int, seconds: float) -> dict:
    """Frames a second of every contestant, in turn, and the median ratios."""
    contestants: dict[str, Callable[[], int]] = {
        "bare": lambda: bare(path),
        "peer": lambda: peer(path),
        **{name: (lambda spec=spec: ours(path, spec, encode_spec)) for name, spec in SPECS.items()},
    }
    for run in contestants.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    wall_rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            started, wall_started, num_frames = time.process_time(), time.perf_counter(), 0
            while time.process_time() - started < seconds:
                num_frames += run()
            rates[name].append(num_frames / (time.process_time() - started))
            wall_rates[name].append(num_frames / (time.perf_counter() - wall_started))
    return {
        "clip": path.stem,
        "codec": encode_spec.codec,
        "bare_fps": round(statistics.median(rates["bare"])),
        "ratio": over_bare(rates),
        "wall_ratio": over_bare(wall_rates),
    }


def over_bare(rates: dict[str, list[float]]) -> dict[str, float]:
    """Each contestant's median ratio to the bare loop of the same round."""
    return {
        name: round(statistics.median(a / b for a, b in zip(values, rates["bare"], strict=True)), 3)
        for name, values in rates.items()
        if name != "bare"
    }


def describe(row: dict) -> str:
    """One line of the table."""
    ratios = "  ".join(
        f"{name} {ratio:.2f} / {row['wall_ratio'][name]:.2f}" for name, ratio in row["ratio"].items()
    )
    return f"{row['clip']:28s} bare {row['bare_fps']:6d} frames/s   {ratios}"


if __name__ == "__main__":
    main()
