"""A program: runs calls on a cluster with a node that lacks cope-prep, and prints how they ended as JSON.

    bare_node.py FOLDER alone|beside      the only node, or beside one that is whole

A program, because Cluster and the Ray of the test session do not go together in one process.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

# Several nodes on one machine: Ray must believe in clusters here. Read when Ray is imported.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

from cope_prep.jobs.executors import RayExecutor
from cope_prep.jobs.stage import Item, Outcome, run_items
from cope_prep.schemas.errors import ConfigurationError

STORE_BYTES = 80 * 1024**2


def main(folder: Path, *, is_alone: bool) -> None:
    """Run six calls. Where the whole node is, each is longer than the bare one takes to say no."""
    bare = folder / "bare"
    (bare / "cope_prep").mkdir(parents=True)
    # What is installed comes after PYTHONPATH.
    (bare / "cope_prep" / "__init__.py").write_text("raise ModuleNotFoundError('no cope_prep here')\n")
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False},
    )
    cluster.add_node(
        num_cpus=1,
        object_store_memory=STORE_BYTES,
        env_vars={"PYTHONPATH": str(bare), "COPE_PREP_NODE": "bare-node"},
    )
    if not is_alone:
        cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    executor = RayExecutor(address=str(cluster.address))
    outcomes: list[Outcome[Any]] = []
    found: dict[str, Any] = {"error": ""}
    try:
        run_items(
            [Item(subject=f"v{index}", weight=1.0, value=0.5) for index in range(6)],
            lambda seconds: functools.partial(time.sleep, seconds),
            executor=executor,
            emit=outcomes.append,
        )
    except ConfigurationError as exc:
        found["error"] = str(exc)
    found["outcomes"] = sorted((end.item.subject, type(end.reply).__name__, end.attempts) for end in outcomes)
    executor.close()
    cluster.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), is_alone=sys.argv[2] == "alone")
