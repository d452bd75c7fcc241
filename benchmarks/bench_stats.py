"""`cope-prep stats` at LLaVA-Video-178K's size: seconds and memory, against reading the same columns.

    python benchmarks/bench_stats.py [--scale 1.38] [--rounds 3] [--folder FOLDER] [--json PATH]

On the synthetic index of synthetic_index.py with figures that do not repeat, a manifest and both ledgers. At scale
1.38 it has 1.43 M GOPs, as many as 178,510 videos of 8 (by more and shorter videos: 258,600), and 1.9 M questions.
Each measurement is a process of its own, and the figures are its wall time and its peak resident size, imports
included. `columns` is the named peer: pyarrow reading the columns of the index that stats needs, one at a time, and
nothing else. `imports` is what the command's process costs before it does anything.

Targets: under 5 s and 1 GB.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from bench_plan import medians, run
from clips import machine
from synthetic_index import write_dataset
from synthetic_records import write_records

from cope_prep.pipeline.stats_tables import INDEX_COLUMNS

IMPORTS = """
import duckdb
import cope_prep.jobs.cli, cope_prep.jobs.stats_table, cope_prep.pipeline.stats
"""
COLUMNS = """
import pyarrow.parquet as pq
file = pq.ParquetFile({index!r})
for name in {columns!r}:
    file.read(columns=[name])
"""


def commands(folder: Path, index: str) -> dict[str, list[str]]:
    """What is measured, by name."""
    python = [sys.executable, "-c"]
    cope_prep = str(Path(sys.executable).with_name("cope-prep"))
    return {
        "imports": [*python, IMPORTS],
        "columns": [*python, COLUMNS.format(index=index, columns=INDEX_COLUMNS)],
        "stats": [cope_prep, "stats", str(folder), "--json"],
        "stats_tables": [cope_prep, "stats", str(folder)],
    }


def figures(text: str) -> dict[str, Any]:
    """What a run printed that is worth keeping."""
    if not text.startswith("{"):
        return {}
    total = json.loads(text)["total"]
    return {name: total[name] for name in ("num_listed", "num_videos", "num_gops", "num_windows")}


def main() -> None:
    """Print a line a measurement, and the ratios to the peer."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", type=float, default=1.38)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="Where the dataset is, or is to be kept.")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        start_s = time.perf_counter()
        indexes = list(folder.glob("shards/*/index.parquet"))
        if not indexes:
            layout = write_dataset(folder, scale=arguments.scale, varied_figures=True)
            write_records(layout, scale=arguments.scale)
            indexes = [Path(layout.index)]
        index = str(indexes[0])
        num_gops = pq.ParquetFile(index).metadata.num_rows
        index_mb = round(indexes[0].stat().st_size / 1e6)
        print(f"{num_gops:,} GOPs, {index_mb} MB of index: {time.perf_counter() - start_s:.0f} s", flush=True)
        rows: dict[str, list[dict[str, Any]]] = {}
        for _ in range(arguments.rounds):  # in alternation, so that a busy machine slows all of them
            for name, command in commands(folder, index).items():
                text, cost = run(command)
                rows.setdefault(name, []).append(cost | figures(text))
    summary = {name: runs[0] | medians(runs) for name, runs in rows.items()}
    for name, row in summary.items():
        row["over_columns"] = round(row["wall_s"] / summary["columns"]["wall_s"], 2)
        print(f"{name:16s} " + ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if arguments.json:
        document = {
            "machine": machine(),
            "scale": arguments.scale,
            "num_gops": num_gops,
            "index_mb": index_mb,
            "median": summary,
            "rounds": rows,
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
