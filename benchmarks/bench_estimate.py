"""`cope-prep estimate` against the truth: what it says of a dataset from a sample, and what a run of it all takes.

The videos are two real clips, looped to lengths from 5 s to a minute. Estimate and run have the same two workers,
one after the other, in each round with another sample. Needs two idle cores: a busy one falsifies what it hits.

    python benchmarks/bench_estimate.py [--videos N] [--sample N] [--rounds N] [--json PATH]

Target: core hours, time and bytes within 20 % of the truth.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from clips import machine, real_clips  # benchmarks are scripts: their folder is on the path
from estimate_178k import loop

from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.ledger import Ledger, rows_of

TARGET = 0.20
COMMAND = [sys.executable, "-m", "cope_prep.jobs"]
WORKERS = 2


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=48)
    parser.add_argument("--sample", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        videos = make_videos(Path(name, "videos"), arguments.videos)
        print(
            f"{arguments.videos} videos, {arguments.sample} in the sample;"
            f" load {os.getloadavg()[0]:.1f} before we began"
        )
        print(f"{'round':7}{'figure':14}{'estimate':>12}{'truth':>12}{'ratio':>8}  within the interval")
        for index in range(arguments.rounds):
            dataset = Path(name, f"dataset-{index}")
            call("manifest", "files", str(videos), str(dataset))
            asked = ("--sample", str(arguments.sample), "--sample-seed", str(index), "--cores", str(WORKERS))
            found = estimated(call("estimate", str(dataset), *asked, "--workers", str(WORKERS), "--quiet"))
            truth = measured(dataset)
            for figure, estimate in found.items():
                ratio = estimate["value"] / truth[figure]
                is_within = estimate["low"] <= truth[figure] <= estimate["high"]
                row = {"round": index, "figure": figure, **estimate, "truth": truth[figure], "ratio": ratio}
                rows.append({**row, "within": is_within})
                print(
                    f"{index + 1:<7}{figure:14}{estimate['value']:>12.4g}{truth[figure]:>12.4g}{ratio:>8.3f}"
                    f"  {'yes' if is_within else 'no'}",
                    flush=True,
                )
    worst = max(abs(row["ratio"] - 1) for row in rows)
    ratios = {
        figure: statistics.median(row["ratio"] for row in rows if row["figure"] == figure) for figure in found
    }
    print(f"farthest from the truth: {worst:.1%} (target at most {TARGET:.0%})")
    if arguments.json:
        summary = {
            "worst": worst,
            "target": TARGET,
            **{f"ratio_{name}": value for name, value in ratios.items()},
        }
        document = {"benchmark": "estimate", "machine": machine(), "rows": rows, "summary": summary}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def make_videos(folder: Path, count: int) -> Path:
    """So many videos of two kinds, of different lengths."""
    folder.mkdir()
    clips = [path for path in real_clips() if path.stem in ("bikes", "bigbuckbunny")]
    for index in range(count):
        clip = clips[index % len(clips)]
        loop(clip, folder / f"{index:03}-{clip.stem}.mp4", length_s=5 + (index * 7) % 56)
    return folder


def call(*arguments: str) -> dict[str, Any]:
    """A command's JSON."""
    done = subprocess.run([*COMMAND, *arguments, "--json"], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"cope-prep {arguments[0]} ended with {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


def estimated(document: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What is compared."""
    (job,) = document["jobs"]
    return {
        "core hours": document["core_hours"],
        "wall, s": job["wall_s"],
        "video hours": document["video_hours"],
        "shard bytes": document["stages"]["shards"]["bytes"],
    }


def measured(dataset: Path) -> dict[str, float]:
    """The same of a run over everything. Ray's start is not in its stages' times, nor in the estimate."""
    stages = {
        stage["stage"]: stage
        for stage in call("run", str(dataset), "--workers", str(WORKERS), "--quiet")["stages"]
    }
    layout = Layout(dataset=str(dataset), specs=Specs())
    core_s = sum(
        row.wall_s
        for stage in ("reencode", "extract")
        for row in rows_of(Ledger(layout.ledger(stage)).read())
    )
    return {
        "core hours": (core_s + stages["shards"]["wall_s"]) / 3600,
        "wall, s": sum(stage["wall_s"] for stage in stages.values()),
        "video hours": stages["extract"]["duration_s"] / 3600,
        "shard bytes": float(stages["shards"]["output_bytes"]),
    }


if __name__ == "__main__":
    raise SystemExit(main())
