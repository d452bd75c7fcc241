"""What distribution costs, and a node's death: the re-encode stage on 1, 2 and 3 Ray nodes of this machine.

    overhead    1 node with 2 CPUs, 2 nodes with 1, 3 nodes with 1: two videos at a time in each case, in turn
    recovery    3 nodes; one is killed by SIGKILL, with all its processes, when a third of the videos is done

Each run has nodes of its own, started and warmed up before the clock starts; times are the stage's own. Recovery is
the time from the kill until the first of the lost videos runs elsewhere; what was lost is the difference to a run
with the same three nodes and no kill. Needs two idle cores: 1, 2 and 3 nodes share the same ones.

    python benchmarks/bench_nodes.py [--clips N] [--rounds N] [--json PATH]

Target: 2 and 3 nodes at most 8 % slower than one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from clips import machine, real_clips  # benchmarks are scripts: their folder is on the path
from ray_nodes import RayNodes, descendants

from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.ledger import Ledger, LedgerRow, rows_of
from cope_prep.pipeline.manifest import manifest_from_files

TARGET = 0.08
NODES = {1: [2.0], 2: [1.0, 1.0], 3: [1.0, 1.0, 1.0]}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the nodes must not stay behind
    folder = Path(tempfile.mkdtemp(prefix="nodes-", dir="/tmp"))  # short, for Ray's sockets
    try:
        source = copies(folder / "clips", arguments.clips)
        warm = copies(folder / "warm", 6)
        print(f"{arguments.clips} clips of 10 s; load {os.getloadavg()[0]:.1f} before we began")
        rows = overhead(folder, source, warm, arguments.rounds)
        found = {f"overhead_{count}": median_overhead(rows, count) for count in (2, 3)}
        print(
            "median: "
            + ", ".join(f"{count} nodes {found[f'overhead_{count}']:+.1%}" for count in (2, 3))
            + f" (target at most {TARGET:+.0%})"
        )
        lost = [recovery(folder / f"lost-{index}", source, warm) for index in range(arguments.rounds)]
        for name in ("recovery_s", "lost_s", "lost"):
            found[name] = statistics.median(row[name] for row in lost)
        print(
            f"a node dies: {found['recovery_s']:.1f} s until the first of its {found['lost']:.0f} videos runs"
            f" elsewhere; the job took {found['lost_s']:+.1f} s longer"
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if arguments.json:
        document = {
            "benchmark": "nodes",
            "machine": machine(),
            "rows": rows,
            "recovery": lost,
            "summary": {**found, "overhead_target": TARGET},
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def copies(folder: Path, count: int) -> Path:
    """A folder with so many videos, all of them the one clip that lasts ten seconds."""
    folder.mkdir(parents=True)
    clip = next(path for path in real_clips() if path.stem == "bikes")
    for index in range(count):
        shutil.copy(clip, folder / f"{index:04}.mp4")
    return folder


def overhead(folder: Path, source: Path, warm: Path, rounds: int) -> list[dict[str, float]]:
    """Seconds of the stage on 1, 2 and 3 nodes, a row a round."""
    rows = []
    print(f"{'round':7}" + "".join(f"{count} nodes".rjust(12) for count in NODES))
    for index in range(rounds):
        row = {}
        for count, num_cpus in NODES.items():
            place = folder / f"round-{index}-{count}"
            place.mkdir()
            with RayNodes(place, num_cpus=num_cpus) as nodes:
                reencode(nodes, warm, place / "warm", "--workers", "2")
                row[f"nodes_{count}_s"] = reencode(nodes, source, place / "dataset", "--workers", "2")
        rows.append(row)
        print(
            f"{index + 1:<7}" + "".join(f"{row[f'nodes_{count}_s']:>11.1f}s" for count in NODES), flush=True
        )
    return rows


def median_overhead(rows: list[dict[str, float]], count: int) -> float:
    """Of so many nodes against one."""
    return statistics.median(row[f"nodes_{count}_s"] / row["nodes_1_s"] - 1 for row in rows)


def recovery(folder: Path, source: Path, warm: Path) -> dict[str, float]:
    """One run that is left alone, and one in which a node dies."""
    folder.mkdir()
    with RayNodes(folder, num_cpus=NODES[3]) as nodes:
        reencode(nodes, warm, folder / "warm")
        alone_s = reencode(nodes, source, folder / "alone")
        dataset = folder / "killed"
        manifest_from_files(str(source), str(dataset))
        with open(folder / "out.json", "wb") as out, open(folder / "errors.txt", "wb") as errors:
            process = nodes.popen(command(dataset, nodes), stdout=out, stderr=errors)
            third = len(list(source.iterdir())) // 3
            in_work: set[str] = set()
            while process.poll() is None and (len(ledger(dataset)) < third or not in_work):
                time.sleep(0.1)
                in_work = open_clips(nodes.pid(2), source)
            if process.poll() is not None:
                raise SystemExit("the job had ended before a node was killed: give it more --clips")
            killed_unix_s = time.time()
            nodes.kill(2)
            process.wait()
        if process.returncode != 0:
            said = (folder / "errors.txt").read_text()
            raise SystemExit(f"cope-prep reencode ended with {process.returncode}: {said}")
        killed_s = wall_s(json.loads((folder / "out.json").read_text()))
    rows = ledger(dataset)
    again = [row for row in rows if row.video_id in in_work and row.finished_unix_s > killed_unix_s]
    if not again or any(row.status != "ok" for row in rows):
        raise SystemExit(f"{len(again)} of {in_work} were begun again, {len(rows)} videos are done")
    return {
        "alone_s": alone_s,
        "killed_s": killed_s,
        "lost_s": killed_s - alone_s,
        "lost": float(len(again)),
        "recovery_s": min(row.finished_unix_s - row.wall_s for row in again) - killed_unix_s,
    }


def open_clips(pid: int, source: Path) -> set[str]:
    """The videos of the folder that a node's processes have open."""
    found: set[str] = set()
    for process in descendants(pid):
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{process}/fd").iterdir():
                target = os.readlink(entry)
                if target.startswith(f"{source}/"):
                    found.add(Path(target).name)
    return found


def command(dataset: Path, nodes: RayNodes, *options: str) -> list[str]:
    """The stage, on the nodes."""
    return ["cope-prep", "reencode", str(dataset), "--address", nodes.address, "--json", "--quiet", *options]


def reencode(nodes: RayNodes, source: Path, dataset: Path, *options: str) -> float:
    """Seconds of one stage, planning and ledger included."""
    manifest_from_files(str(source), str(dataset))
    done = nodes.run(command(dataset, nodes, *options), timeout_s=3600.0)
    if done.returncode != 0:
        raise SystemExit(f"cope-prep reencode ended with {done.returncode}: {done.stderr}")
    return wall_s(json.loads(done.stdout))


def wall_s(document: dict[str, Any]) -> float:
    """Of the command's only stage."""
    (stage,) = document["stages"]
    return float(stage["wall_s"])


def ledger(dataset: Path) -> list[LedgerRow]:
    """The stage's rows so far."""
    return rows_of(Ledger(Layout(dataset=str(dataset), specs=Specs()).ledger("reencode")).read())


if __name__ == "__main__":
    raise SystemExit(main())
