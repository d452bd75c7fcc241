"""`cope-prep status` of LLaVA-Video-178K's size: CPU seconds of one look, and of each look while watching.

    python benchmarks/bench_status.py [--scale 0.953] [--rounds 3] [--json PATH]

178,510 videos, all re-encoded and half of them extracted, so that both ledgers and the listing of the re-encoded
files count. `first` is a StatusReader's first look; `unchanged` the next one; `part` a look after the driver has
appended 256 rows; `merged` one after it has merged its parts. `rows` is the named peer: the same counts by the
records that a run plans with, one Python object a row. CPU is user and system, of this process alone.

Target: every look below 1 s of CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from clips import machine
from synthetic_records import write_records

from cope_prep.jobs.extract import extract_tasks
from cope_prep.jobs.reencode import reencode_tasks
from cope_prep.jobs.status import StatusReader
from cope_prep.jobs.video_stage import current_rows, read_videos
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.ledger import Ledger

PART_ROWS = 256


def write_dataset(folder: Path, *, scale: float) -> tuple[Layout, pa.Table]:
    """A dataset in the middle of its extraction; the rows of the half that is not extracted yet."""
    layout = Layout(dataset=str(folder), specs=Specs())
    write_records(layout, scale=scale)
    for stage in ("reencode", "extract"):
        layout.write_spec(stage)
    for key in Ledger(layout.ledger("reencode")).read(["video_key"])["video_key"].to_pylist():
        Path(layout.reencoded(key)).touch()
    ledger = Ledger(layout.ledger("extract"))
    rows = ledger.read()
    for name in storage.list_files(ledger.folder_uri):
        storage.remove(storage.join(ledger.folder_uri, name))
    half = len(rows) // 2
    storage.publish_table(storage.join(ledger.folder_uri, "part-0000000000000-half.parquet"), rows[:half])
    return layout, rows[half:]


def by_rows(layout: Layout) -> dict[str, int]:
    """Ends by stage, as a run finds out what is missing."""
    videos = read_videos(layout)
    tasks = {"reencode": reencode_tasks(layout, videos), "extract": extract_tasks(layout, videos)}
    return {name: len(current_rows(found, Ledger(layout.ledger(name)))) for name, found in tasks.items()}


def by_reader(reader: StatusReader) -> dict[str, int]:
    """The same of a status."""
    return {
        stage.stage: stage.num_videos - stage.num_waiting - stage.num_pending
        for stage in reader.read().stages
    }


def measure(work: Callable[[], dict[str, int]]) -> dict[str, Any]:
    """What it costs, and what it found."""
    start_cpu_s, start_s = time.process_time(), time.perf_counter()
    found = work()
    return {
        "cpu_s": round(time.process_time() - start_cpu_s, 3),
        "wall_s": round(time.perf_counter() - start_s, 3),
    } | found


def one_round(layout: Layout, left: pa.Table, index: int) -> dict[str, dict[str, Any]]:
    """Every kind of look once; it leaves PART_ROWS more rows in the ledger of extract."""
    ledger = Ledger(layout.ledger("extract"))
    found = {"rows": measure(lambda: by_rows(layout))}
    reader = StatusReader(layout.dataset)
    found["first"] = measure(lambda: by_reader(reader))
    found["unchanged"] = measure(lambda: by_reader(reader))
    name = f"part-{index + 1:013d}-new.parquet"
    part = left[index * PART_ROWS : (index + 1) * PART_ROWS]
    storage.publish_table(storage.join(ledger.folder_uri, name), part)
    found["part"] = measure(lambda: by_reader(reader))
    ledger.compact()
    found["merged"] = measure(lambda: by_reader(reader))
    if any(found["first"][stage] != found["rows"][stage] for stage in ("reencode", "extract")):
        raise RuntimeError(f"the two ways differ: {found}")
    before, after = found["first"]["extract"], found["part"]["extract"]
    if not before < after == found["merged"]["extract"] <= before + PART_ROWS:
        raise RuntimeError(f"the new rows are not counted: {found}")
    return found


def main() -> None:
    """Print a line a kind of look, with its ratio to the peer."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", type=float, default=0.953)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        layout, left = write_dataset(Path(temporary), scale=arguments.scale)
        rounds = [one_round(layout, left, index) for index in range(arguments.rounds)]
    summary = {
        name: rounds[0][name]
        | {key: statistics.median(each[name][key] for each in rounds) for key in ("cpu_s", "wall_s")}
        for name in rounds[0]
    }
    for name, row in summary.items():
        row["over_rows"] = round(row["cpu_s"] / summary["rows"]["cpu_s"], 3)
        print(f"{name:10s} " + ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if arguments.json:
        document = {"machine": machine(), "scale": arguments.scale, "median": summary, "rounds": rounds}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
