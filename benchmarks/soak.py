"""A job under fire: something of it is killed every few seconds, and the dataset is the same as without.

    python benchmarks/soak.py FOLDER [--clips N] [--every SECONDS] [--seed N] [--json PATH]

Three Ray nodes on this machine work on generated clips while this program kills, by SIGKILL and at random: the
process that decodes, the Ray worker that watches it, a whole node (which comes back), and the driver (which is
started again with the same command); never twice without any work done between. Before that the same clips go
through undisturbed, without Ray, into another dataset. At the end both must have the same shards and the same index
byte for byte, each video one row a stage, and `cope-prep verify` nothing to say. What a killed process left half
written has a temporary name, and goes with `cope-prep gc`. Exit status 1 if not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
from ray_nodes import RayNodes, descendants

from cope_prep.pipeline.gc import ALIVE_S

SPEC = ["--size", "64x64", "--gop-size", "16", "--window", "4", "--block", "16", "--shard-bytes", "100KB"]
KINDS = {"child": 4, "supervisor": 3, "node": 1, "driver": 1}
"""What is killed, and how often relative to each other."""
_FIRST_S = 1.0
_LIMIT_S = 1500.0


def main() -> int:
    """Run both, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new folder with a short path")
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--every", type=float, default=3.0, help="mean seconds from one kill to the next")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the nodes must not stay behind
    folder: Path = arguments.folder.resolve()
    sources = folder / "sources"
    sources.mkdir(parents=True)
    for index in range(arguments.clips):
        write_clip(sources / f"clip-{index:04}.mp4", seed=index)
    calm, stormy = folder / "calm", folder / "stormy"
    for dataset in (calm, stormy):
        cope_prep("manifest", "files", str(sources), str(dataset))
    start_s = time.monotonic()
    cope_prep("run", str(calm), "--no-ray", "-q", *SPEC)
    calm_s = time.monotonic() - start_s
    with RayNodes(folder / "n", num_cpus=[1, 1, 1]) as nodes:
        start_s = time.monotonic()
        kills, starts = storm(nodes, stormy, every_s=arguments.every, generator=random.Random(arguments.seed))
        stormy_s = time.monotonic() - start_s
    found = compare(calm, stormy, num_clips=arguments.clips)
    result = {
        "clips": arguments.clips,
        "kills": dict(kills),
        "driver_starts": starts,
        "undisturbed_s": round(calm_s, 1),
        "disturbed_s": round(stormy_s, 1),
        **found,
    }
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if found["is_equal"] else 1


def write_clip(path: Path, *, seed: int) -> None:
    """A second or so of a texture that moves, no two alike."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(40, 216, (24, 24, 3), np.uint8)
    texture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    dx, dy = generator.integers(-3, 4, 2)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=30)
        stream.width = stream.height = 96
        stream.pix_fmt = "yuv420p"
        for index in range(int(generator.integers(20, 50))):
            picture = np.roll(texture, (dy * index, dx * index), (0, 1))[:96, :96]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        container.mux(stream.encode(None))


def cope_prep(*arguments: str) -> str:
    """Run a command to its end; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "cope_prep.jobs", *arguments], capture_output=True, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def storm(
    nodes: RayNodes, dataset: Path, *, every_s: float, generator: random.Random
) -> tuple[Counter[str], int]:
    """Drive the job to its end while it is shot at: how often what was killed, and how many drivers it took."""
    command = [
        "cope-prep",
        "run",
        str(dataset),
        "--address",
        nodes.address,
        "--retry-failed",
        "--json",
        *SPEC,
    ]
    kills: Counter[str] = Counter()
    starts = 1
    driver = nodes.popen(command)
    begun_s = time.monotonic()
    next_s, done_before = begun_s + _FIRST_S, 0
    try:
        while True:
            if time.monotonic() - begun_s > _LIMIT_S:
                raise RuntimeError(f"not done after {_LIMIT_S:g} s; killed so far: {dict(kills)}")
            code = driver.poll()
            if code == 0:
                return kills, starts
            if code is not None:  # killed, or some videos had no luck in three attempts
                driver = nodes.popen(command)
                starts += 1
            # On a busy machine less gets done between two kills than a start takes, and nothing would ever end.
            if time.monotonic() >= next_s and (done := _num_outputs(dataset)) > done_before:
                kind = generator.choices(list(KINDS), list(KINDS.values()))[0]
                if shoot(kind, nodes, driver, generator):
                    kills[kind] += 1
                    done_before = done
                    next_s = time.monotonic() + generator.uniform(0.5, 1.5) * every_s
            time.sleep(0.05)
    finally:
        driver.kill()
        driver.wait()


def shoot(kind: str, nodes: RayNodes, driver: subprocess.Popen[bytes], generator: random.Random) -> bool:
    """Kill one thing of a kind, if there is one at this moment."""
    if kind == "driver":
        driver.kill()
        driver.wait()
        return True
    index = generator.choice([1, 2])  # never the head: with it goes the cluster
    if kind == "node":
        nodes.kill(index)
        nodes.start_again(index)
        return True
    found = [
        pid
        for index in range(3)
        for pid in descendants(nodes.pid(index))
        if b"cope_prep.jobs.worker" in _command_line(pid)
    ]
    if kind == "supervisor":
        found = [parent for pid in found if (parent := _parent(pid)) > 1]
    if not found:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(generator.choice(found), signal.SIGKILL)
        return True
    return False


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):  # it has ended
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _num_outputs(dataset: Path) -> int:
    return sum(len(list(dataset.glob(pattern))) for pattern in ("reencode/*/*.mp4", "extract/*/*.tar"))


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def compare(calm: Path, stormy: Path, *, num_clips: int) -> dict[str, Any]:
    """What a user would ask of the disturbed dataset."""
    same = {
        pattern: _contents(calm, pattern) == _contents(stormy, pattern)
        for pattern in ("shards/*/shard-*.tar", "shards/*/index.parquet", "shards/*/dataset.json")
    }
    rows = {stage: _rows(stormy, stage) for stage in ("reencode", "extract")}
    each_once = all(sorted(found) == _videos(stormy) and len(found) == num_clips for found in rows.values())
    left = {"temporary_files": _num_temporary(stormy)}
    collect(stormy)
    left["temporary_files_after_gc"] = _num_temporary(stormy)
    verified = json.loads(cope_prep("verify", str(stormy), "--json"))
    with_samples = verified["counts"]["videos"]
    return {
        "same_bytes": same,
        "each_video_once": each_once,
        "videos_verified": with_samples,
        **left,
        "is_equal": all(same.values()) and each_once and verified["ok"] and with_samples == num_clips,
    }


def collect(dataset: Path) -> None:
    """`cope-prep gc`, once the lock of a driver that was killed no longer counts as a sign of life."""
    ends_s = time.monotonic() + 2 * ALIVE_S
    while True:
        try:
            cope_prep("gc", str(dataset), "--older-than", "0s")
            return
        except RuntimeError as exc:
            if "a run is working on it" not in str(exc) or time.monotonic() > ends_s:
                raise
            time.sleep(2)


def _num_temporary(dataset: Path) -> int:
    return sum(path.is_file() for path in dataset.rglob(".tmp-*"))


def _contents(dataset: Path, pattern: str) -> dict[str, bytes]:
    found = {str(path.relative_to(dataset)): path.read_bytes() for path in dataset.glob(pattern)}
    if not found:
        raise RuntimeError(f"{dataset} has no {pattern}")
    return found


def _rows(dataset: Path, stage: str) -> list[str]:
    """Ids of the videos that a stage's ledger calls ok, after its last driver has merged it."""
    tables = [pq.read_table(path) for path in dataset.glob(f"{stage}/*/ledger/*.parquet")]
    return [row["video_id"] for table in tables for row in table.to_pylist() if row["status"] == "ok"]


def _videos(dataset: Path) -> list[str]:
    return sorted(pq.read_table(dataset / "manifest.parquet")["video_id"].to_pylist())


if __name__ == "__main__":
    sys.exit(main())
