"""The driver of a job as large as LLaVA-Video-178K: its memory and its tasks per second, where a task does nothing.

    job       178,510 calls of `int()` through run_items, RayExecutor and LedgerWriter, on a Ray of two CPUs
    plain     as many plain Ray tasks of a function that returns, 24 in flight: the peer, with no process that may
              die alone, no ledger and no attempts

    python benchmarks/bench_driver.py [--tasks N] [--json PATH]

Targets: below 1 GB of memory, at least 500 tasks a second.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from clips import machine  # benchmarks are scripts: their folder is on the path

from cope_prep.jobs.executors import RayExecutor
from cope_prep.jobs.stage import Item, Outcome, run_items
from cope_prep.jobs.worker import Done
from cope_prep.pipeline.ledger import Ledger, LedgerRow, LedgerWriter

IN_FLIGHT = 24


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=178_510)
    parser.add_argument("--peer-tasks", type=int, default=20_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} before we began", flush=True)
    executor = RayExecutor(workers=2)
    with tempfile.TemporaryDirectory() as folder:
        run_job(executor, 500, f"{folder}/warm-up")
        start_s = time.perf_counter()
        run_job(executor, arguments.tasks, f"{folder}/ledger")
        job_s = time.perf_counter() - start_s
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        num_rows = Ledger(f"{folder}/ledger").read().num_rows
    if num_rows != arguments.tasks:
        raise SystemExit(f"{num_rows} of {arguments.tasks} tasks are in the ledger")
    plain_s = plain_tasks(arguments.peer_tasks)
    executor.close()
    summary = {
        "tasks": arguments.tasks,
        "peak_mib": peak_bytes / 2**20,
        "peak_mib_target": 1e9 / 2**20,
        "tasks_per_s": arguments.tasks / job_s,
        "tasks_per_s_target": 500,
        "plain_ray_tasks_per_s": arguments.peer_tasks / plain_s,
    }
    print(
        f"{arguments.tasks} tasks: {summary['tasks_per_s']:.0f} a second (target 500; plain Ray"
        f" {summary['plain_ray_tasks_per_s']:.0f}), driver's peak {summary['peak_mib']:.0f} MiB (target 953)"
    )
    if arguments.json:
        document = {"benchmark": "driver", "machine": machine(), "summary": summary}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def run_job(executor: RayExecutor, count: int, folder: str) -> None:
    """Calls that do nothing, each with a row in the ledger as a stage writes it."""
    make_call: Callable[[int], functools.partial[int]] = functools.partial(functools.partial, int)
    with LedgerWriter(Ledger(folder)) as writer:

        def emit(outcome: Outcome[int]) -> None:
            if not isinstance(outcome.reply, Done):
                raise SystemExit(str(outcome.reply))
            writer.add(
                LedgerRow(
                    video_id=outcome.item.subject,
                    video_key=f"{outcome.item.value:016x}",
                    stage="reencode",
                    spec_hash="0123456789ab",
                    status="ok",
                    source_size_bytes=1,
                    source_version="v1",
                    output_uri=f"/dataset/reencode/0123456789ab/{outcome.item.value:016x}.mp4",
                    wall_s=outcome.reply.wall_s,
                    cpu_s=outcome.reply.cpu_s,
                    attempts=outcome.attempts,
                    finished_unix_s=time.time(),
                    node=outcome.reply.node,
                )
            )

        run_items(
            [
                Item(subject=f"0_30_s_youtube/{index:08d}.mp4", weight=1.0, value=index)
                for index in range(count)
            ],
            make_call,
            executor=executor,
            emit=emit,
            tick=writer.flush_if_due,
        )


def nothing() -> int:
    """The peer's work."""
    return 0


def plain_tasks(count: int) -> float:
    """Seconds for so many Ray tasks of the same Ray, as Ray's own documentation bounds them."""
    import ray

    task = ray.remote(num_cpus=1)(nothing)
    start_s = time.perf_counter()
    running = []
    for _ in range(count):
        if len(running) >= IN_FLIGHT:
            ended, running = ray.wait(running, num_returns=1)
            ray.get(ended)
        running.append(task.remote())
    ray.get(running)
    return time.perf_counter() - start_s


if __name__ == "__main__":
    raise SystemExit(main())
