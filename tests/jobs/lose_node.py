"""A program: runs calls on a cluster whose only worker node is preempted, and prints how they ended as JSON.

    lose_node.py FOLDER

A program, because Cluster and the Ray of the test session do not go together in one process.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

# Several nodes on one machine: Ray must believe in clusters here. Read when Ray is imported.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import stage_work
from ray.cluster_utils import Cluster

from cope_prep.jobs.executors import RayExecutor
from cope_prep.jobs.stage import Item, Outcome, run_items

STORE_BYTES = 80 * 1024**2


def main(folder: Path) -> None:
    """Run two calls; the node is told to go once the first of them writes."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False},
    )
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)]
    executor = RayExecutor(address=cluster.address)
    started, finish = folder / "started", folder / "finish"
    outcomes: list[Outcome[str]] = []
    first_pids: list[int] = []

    def tick() -> None:
        if started.exists() and len(nodes) == 1:
            first_pids.extend(children())
            os.kill(nodes[0].all_processes["raylet"][0].process.pid, signal.SIGTERM)
            nodes.append(cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES))
            finish.touch()

    run_items(
        [Item(subject=name, weight=1.0, value=name) for name in ("a", "b")],
        lambda name: functools.partial(
            stage_work.write_until, str(folder / f"{name}.mp4"), str(started), str(finish)
        ),
        executor=executor,
        emit=outcomes.append,
        tick=tick,
    )
    found: dict[str, Any] = {
        "outcomes": [(end.item.subject, type(end.reply).__name__, end.attempts) for end in outcomes],
        "num_first_pids": len(first_pids),
        "still_alive": outlived(first_pids),
    }
    executor.close()
    cluster.shutdown()
    print(json.dumps(found))


def outlived(pids: list[int]) -> list[int]:
    """Those that are there after a minute, too: they die with their node, which can take long on a busy machine."""
    ends = time.monotonic() + 60
    while left := [pid for pid in pids if os.path.exists(f"/proc/{pid}")]:
        if time.monotonic() > ends:
            break
        time.sleep(0.1)
    return left


def children() -> list[int]:
    """Processes that perform calls for this cluster: they inherited our environment's mark."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if (
                entry.name.isdigit()
                and f"LOSE_NODE={os.getpid()}".encode() in (entry / "environ").read_bytes()
                and b"cope_prep.jobs.worker" in (entry / "cmdline").read_bytes()
            ):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


if __name__ == "__main__":
    os.environ["LOSE_NODE"] = str(os.getpid())
    main(Path(sys.argv[1]))
