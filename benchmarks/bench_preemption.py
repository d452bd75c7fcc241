"""A preemption notice: how long after SIGTERM the driver and all of its processes are gone.

    local     sources and dataset on the disk
    s3        both in a bucket (moto's server on loopback)
    hangs     the same, and the store stops answering right before the signal: its process is stopped

`cope-prep reencode` works on two videos of five minutes, which take far longer than what a notice leaves. It gets
the signal at a random moment of the first twenty seconds of work.

    python benchmarks/bench_preemption.py [--rounds N] [--seed N] [--json PATH]

Target: below 20 s in each round.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_s3 import Store, moto
from clips import machine, real_clips  # benchmarks are scripts: their folder is on the path
from estimate_178k import loop
from ray_nodes import descendants

from cope_prep.pipeline import storage
from cope_prep.pipeline.manifest import manifest_from_files

TARGET_S = 20.0
KINDS = ("local", "s3", "hangs")
_NUM_VIDEOS = 2
_LONGEST_WAIT_S = 120.0


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="notice-") as folder, moto() as store:
        videos = Path(folder) / "videos"
        videos.mkdir()
        clip = next(path for path in real_clips() if path.stem == "bikes")
        for index in range(_NUM_VIDEOS):
            target = videos / f"{index}.mp4"
            loop(clip, target, length_s=300)
            storage.publish_bytes(f"s3://bench/videos/{target.name}", target.read_bytes())
        for index in range(given.rounds):
            for kind in KINDS:
                sources, dataset = (
                    (str(videos), f"{folder}/dataset-{index}")
                    if kind == "local"
                    else ("s3://bench/videos", f"s3://bench/{kind}-{index}")
                )
                manifest_from_files(sources, dataset)
                found_s = time_to_end(dataset, store if kind == "hangs" else None, chance.uniform(0, 20))
                seconds[kind].append(found_s)
                print(f"  {kind:6s} {found_s:6.1f} s", flush=True)
    for kind, found in seconds.items():
        print(f"{kind:6s} gone {min(found):.1f} to {max(found):.1f} s after SIGTERM (target {TARGET_S:.0f})")
    if given.json:
        document = {"benchmark": "preemption", "machine": machine(), "seconds": seconds, "target_s": TARGET_S}
        given.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def time_to_end(dataset: str, store: Store | None, wait_s: float) -> float:
    """Seconds from the signal until no process of the command is left; `store` hangs meanwhile."""
    command = [sys.executable, "-m", "cope_prep.jobs", "reencode", dataset, "--workers", str(_NUM_VIDEOS)]
    process = subprocess.Popen([*command, "--quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        await_work(process)
        time.sleep(wait_s)
        begun = alive(descendants(process.pid))
        if store is not None:
            os.kill(store.pid, signal.SIGSTOP)
        start_s = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        process.wait(_LONGEST_WAIT_S)
        while alive(begun):
            if time.perf_counter() - start_s > _LONGEST_WAIT_S:
                raise SystemExit(f"processes are left: {sorted(alive(begun))}")
            time.sleep(0.02)
        ended_s = time.perf_counter() - start_s
    finally:
        if store is not None:
            os.kill(store.pid, signal.SIGCONT)
        process.kill()
        _, said = process.communicate()
    if process.returncode != 128 + signal.SIGTERM:
        raise SystemExit(f"cope-prep reencode ended with {process.returncode}: {said.decode()}")
    return ended_s


def await_work(process: subprocess.Popen[bytes]) -> None:
    """Until as many processes as videos have worked for two seconds."""
    deadline_s = time.monotonic() + _LONGEST_WAIT_S
    while sum(cpu_s(pid) > 2 for pid in video_processes(process.pid)) < _NUM_VIDEOS:
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise SystemExit(f"no work was seen: {process.poll()}")
        time.sleep(0.1)


def video_processes(pid: int) -> list[int]:
    """Those children of Ray's workers in which videos are decoded."""
    return [child for child in descendants(pid) if b"cope_prep.jobs.worker" in command_line(child)]


def command_line(pid: int) -> bytes:
    """Empty of a process that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def cpu_s(pid: int) -> float:
    """User and system time until now; 0 of a process that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def alive(pids: list[int]) -> list[int]:
    """Those that still run: a zombie does not."""
    return [pid for pid in pids if command_line(pid)]


if __name__ == "__main__":
    raise SystemExit(main())
