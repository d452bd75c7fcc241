"""What `cope-prep run` costs before its first video, when LLaVA-Video-178K is re-encoded and half of it extracted.

    python benchmarks/bench_run_plan.py [--scale 0.953] [--json PATH]

178,510 videos. Each step of planning is a line: its CPU seconds, and the peak resident size of the process so far,
which is a fresh one (the dataset is written by another). `tables` is the named peer: pyarrow reading the same
manifest and ledgers, all columns, and the listing of the re-encoded files.

Target: a few seconds a stage, and well under 1 GB.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_status import write_dataset
from clips import machine

from cope_prep.jobs.extract import extract_tasks
from cope_prep.jobs.planning import StageOptions, current_rows, find_missing, read_videos
from cope_prep.jobs.reencode import reencode_tasks
from cope_prep.jobs.shard import extracted_videos
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.ledger import Ledger
from cope_prep.schemas.arrow import MANIFEST


def write(folder: str, scale: float) -> None:
    """The dataset, in a process of its own."""
    write_dataset(Path(folder), scale=scale)


def measure(folder: str, results: Any) -> None:
    """Every step once; (name, CPU s, peak MB, what it found) into the queue."""
    layout = Layout(dataset=folder, specs=Specs())

    def step(name: str, work: Callable[[], Any]) -> Any:
        start_s = time.process_time()
        found = work()
        cpu_s = time.process_time() - start_s
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        results.put({"name": name, "cpu_s": round(cpu_s, 2), "peak_mb": round(peak_mb), "num": len(found)})
        return found

    ledgers = {stage: Ledger(layout.ledger(stage)) for stage in ("reencode", "extract")}
    videos = step("read_videos", lambda: read_videos(layout))
    tasks = step("reencode_tasks", lambda: reencode_tasks(layout, videos))
    rows = step("current_rows", lambda: current_rows(tasks, ledgers["reencode"]))
    files = step("list_files", lambda: set(storage.list_files(layout.folder("reencode"))))
    step("find_missing", lambda: find_missing(tasks, rows, outputs=files, options=StageOptions()))
    step("extract_tasks", lambda: extract_tasks(layout, videos))
    step("extracted_videos", lambda: extracted_videos(layout, videos))

    def tables() -> list[Any]:
        read = [storage.read_table(layout.manifest, MANIFEST), *(each.read() for each in ledgers.values())]
        return [*read, storage.list_files(layout.folder("reencode"))]

    step("tables", tables)
    results.put(None)


def main() -> None:
    """Print a line a step, and the sum."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", type=float, default=0.953)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    steps: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        writer = context.Process(target=write, args=(folder, arguments.scale))
        writer.start()
        writer.join()
        results = context.Queue()
        planner = context.Process(target=measure, args=(folder, results))
        planner.start()
        while (found := results.get(timeout=600)) is not None:
            steps.append(found)
            print(", ".join(f"{name} {value}" for name, value in found.items()), flush=True)
        planner.join()
    sums = {"planning_cpu_s": round(sum(step["cpu_s"] for step in steps[:-1]), 2)}
    sums["over_tables"] = round(sums["planning_cpu_s"] / max(steps[-1]["cpu_s"], 0.01), 1)
    print(sums)
    if arguments.json:
        document = {"machine": machine(), "scale": arguments.scale, "steps": steps} | sums
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
