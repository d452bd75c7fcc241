"""A program: a job on a Ray whose object store is full of somebody else's objects. Prints how it ended as JSON."""

from __future__ import annotations

import functools
import json

import stage_work

from cope_prep.jobs import ray_connection
from cope_prep.jobs.executors import RayExecutor
from cope_prep.jobs.stage import Item, Outcome, run_items
from cope_prep.jobs.worker import Done

STORE_BYTES = 76 * 1024**2
"""Ray asks for 75 MB at least."""
LARGE = b"x" * 2**20
"""Beyond what Ray sends within its messages."""


def main() -> None:
    """Fill the store, run the calls, print."""
    ray_connection._OBJECT_STORE_BYTES = STORE_BYTES
    executor = RayExecutor(address="local", workers=2)
    import ray

    held = [ray.put(bytes(8 * 2**20)) for _ in range(12)]
    ends: dict[str, list[Outcome[object]]] = {"small": [], "large": []}
    for name, value in (("small", 7), ("large", LARGE)):
        run_items(
            [Item(subject=str(index), weight=1.0, value=value) for index in range(20)],
            lambda value: functools.partial(stage_work.echo, value),
            executor=executor,
            emit=ends[name].append,
        )
    found = {
        "store_bytes": STORE_BYTES,
        "held_bytes": 8 * 2**20 * len(held),
        "ends": {name: [type(end.reply).__name__ for end in outcomes] for name, outcomes in ends.items()},
        "same": all(isinstance(end.reply, Done) and end.reply.value == LARGE for end in ends["large"]),
    }
    executor.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
