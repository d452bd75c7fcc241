"""Plans at LLaVA-Video-178K's size: how long an epoch's order, a simulation and a mix plan take, and their memory.

    python benchmarks/bench_plan.py [--scale 1] [--rounds 3] [--folder FOLDER] [--json PATH]

On the synthetic index of synthetic_index.py (1.04 M GOPs, 1,395,547 questions at scale 1). Each measurement is a
process of its own, and the figures are its wall time and its peak resident size, imports included. `columns` is
the named peer: the same processes' imports, and pyarrow reading the index's columns and those of the questions
that a plan needs, nothing else. `work_s` is what is measured inside, without imports.

Targets: the order of an epoch in seconds and under 1 GB; a simulation of 64 ranks in well under two minutes and
under 2 GB. The time to the first batch needs real shards; another benchmark measures it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from clips import machine
from synthetic_index import write_dataset

CLUSTER = ["--ranks", "64", "--workers", "8", "--cache", "200GB", "--bandwidth", "2GB/s"]
CODE = {
    "imports": "",
    "columns": """
import pyarrow.parquet as pq
index = pq.read_table({index!r}, columns=[
    "shard", "video_id", "gop_index", "start_s", "num_frames", "width_px", "height_px", "offset_bytes",
    "size_bytes", "crc32c"])
questions = pq.read_table({questions!r}, columns=["video_id", "json_path", "kind"])
""",
    "gop_dataset": "loaded = GopDataset({dataset!r}, batch_size=8, rank=0, world_size=64)",
    "gop_dataset_next_epoch": """
loaded = GopDataset({dataset!r}, batch_size=8, rank=0, world_size=64)
begun_s = time.perf_counter()
loaded.set_epoch(1)
""",
    "qa_dataset": "loaded = QADataset({dataset!r}, batch_size=8, rank=0, world_size=64)",
    "qa_dataset_next_epoch": """
loaded = QADataset({dataset!r}, batch_size=8, rank=0, world_size=64)
begun_s = time.perf_counter()
loaded.set_epoch(1)
""",
}
PROGRAM = """
import time
from cope_prep.pipeline.loader import GopDataset, QADataset
begun_s = time.perf_counter()
{code}
print(time.perf_counter() - begun_s)
"""


def run(command: list[str]) -> tuple[str, dict[str, Any]]:
    """What a command prints; its wall time, CPU time (user and system) and peak resident size."""
    start_s = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{command} ended with {process.returncode}")
        wall_s = time.perf_counter() - start_s
        output.seek(0)
        text = output.read()
    cpu_s = usage.ru_utime + usage.ru_stime
    return text, {
        "wall_s": round(wall_s, 2),
        "cpu_s": round(cpu_s, 2),
        "peak_rss_mb": round(usage.ru_maxrss * 1024 / 1e6),
    }


def commands(folder: Path, index: str) -> dict[str, list[str]]:
    """What is measured, by name."""
    questions = str(folder / "questions.parquet")
    names = {"index": index, "questions": questions, "dataset": str(folder)}
    found = {
        name: [sys.executable, "-c", PROGRAM.format(code=code.format(**names))] for name, code in CODE.items()
    }
    cope_prep = str(Path(sys.executable).with_name("cope-prep"))
    mix = folder / "mix.yaml"
    mix.write_text(f"datasets: [{{dataset: {folder}}}]\n")
    found["simulate_gops"] = [cope_prep, "simulate", index, *CLUSTER, "--json"]
    found["simulate_questions"] = [*found["simulate_gops"], "--questions", questions]
    found["mix_plan"] = [cope_prep, "mix", "plan", str(mix), "--json"]
    return found


def figures(name: str, text: str) -> dict[str, Any]:
    """What a run printed that is worth keeping."""
    if not text.startswith("{"):
        return {"work_s": round(float(text), 2)}
    found = json.loads(text)
    if name == "mix_plan":
        return {"num_records": found["num_records"], "published": found["published"]["status"]}
    (epoch,) = found["epochs"]
    return {
        "plan_s": round(found["plan"]["total_s"], 2),
        "plan_mb": round(found["plan"]["memory_bytes"] / 1e6),
        "first_batch_s": round(found["first_batch"]["total_s"], 2),
        "egress": round(epoch["egress"], 3),
        "hit_share": round(epoch["hit_share"], 4),
        "node_gb": [round(num_bytes / 1e9, 1) for num_bytes in epoch["node_bytes"]],
    }


def main() -> None:
    """Print a line a measurement, and the ratios to the peer."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="Where the index is, or is to be kept.")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        start_s = time.perf_counter()
        indexes = list(folder.glob("shards/*/index.parquet"))
        index = str(indexes[0]) if indexes else write_dataset(folder, scale=arguments.scale).index
        print(f"{index}: {time.perf_counter() - start_s:.0f} s", flush=True)
        rows: dict[str, list[dict[str, Any]]] = {}
        for _ in range(arguments.rounds):  # in alternation, so that a busy machine slows all of them
            for name, command in commands(folder, index).items():
                text, cost = run(command)
                rows.setdefault(name, []).append(cost | figures(name, text))
    summary = {name: runs[0] | medians(runs) for name, runs in rows.items()}
    for name, row in summary.items():
        row["over_columns"] = round(row["wall_s"] / summary["columns"]["wall_s"], 2)
        print(f"{name:24s} " + ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if arguments.json:
        document = {"machine": machine(), "scale": arguments.scale, "median": summary, "rounds": rows}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the figures that vary from run to run."""
    names = [name for name in runs[0] if name.endswith(("_s", "_mb"))]
    return {name: round(statistics.median(run[name] for run in runs), 2) for name in names}


if __name__ == "__main__":
    main()
