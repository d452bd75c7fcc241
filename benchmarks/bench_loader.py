"""The loader against decoding on the fly, torchcodec, other loaders, and the limit of its own decoding.

    python benchmarks/bench_loader.py [SECTION ...] [--gops N] [--rounds N] [--json PATH]

Each round runs all contestants of a section in turn; a figure is the median over the rounds of the ratio within
the round. Sections, with their targets:

    on_the_fly   seconds of video a second on one core, against the same tensors made from the re-encoded file:
                 20 x with one key frame a GOP, 8 x with all 8 anchors rebuilt
    torchcodec   the same against its RGB at 1 FPS from the same file, one thread: 10 x
    raw          samples a second of 2 workers, shuffled, bytes as they are: 1.2 x the faster of MosaicML
                 Streaming and LitData
    decoded      the same with decompression, and collation by the same functions (`ours`): 1.0 x; `stack` is what
                 a peer's user would write, torch's own collation of arrays
    limit        against untarring and decompressing in storage order, no batches, no tensors, one process: 0.7 x
    start        from GopDataset(...) to its first batch on the index of 178,510 videos, fresh processes: 2 s
    memory       RSS of 2 workers over 3 epochs: flat

`on_the_fly`, `torchcodec` and `limit` are pinned to one core and count CPU time, since machines are shared; the
ratio by wall time stands after a slash. What cannot be: `raw` and `decoded` count wall time, over an epoch that
begins with its first batch; `whole` includes the epoch's start.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from clips import machine
from loader_contestants import (
    check_same,
    on_the_fly,
    only_pictures,
    ours,
    pinned,
    tarfile_limit,
    torchcodec_contestants,
    webdataset_limit,
)
from loader_data import LoaderData, prepare
from loader_memory import measure_memory
from loader_peers import (
    NUM_WORKERS,
    AsGops,
    AsStack,
    as_bytes,
    as_tensor,
    lit_loader,
    mosaic_loader,
    num_samples,
    write_peers,
)
from loader_start import measure_start
from torch.utils.data import DataLoader

from cope_prep.pipeline.loader import GopDataset, RawDataset

BATCH_SIZE = 8
PEER_BATCH_SIZE = 16
Rates = dict[str, list[float]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="all of them if none is named")
    parser.add_argument("--gops", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="at least, for each pinned measurement")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    torch.set_num_threads(1)
    data = prepare(arguments.gops)
    data.warm()
    results = {}
    for name, run in SECTIONS.items():
        if not arguments.sections or name in arguments.sections:
            print(f"-- {name}", flush=True)
            results[name] = run(data, arguments)
    if arguments.json:
        document = {"machine": machine(), "gops": data.num_gops, "sections": results}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


def bench_on_the_fly(data: LoaderData, arguments: argparse.Namespace) -> dict:
    """Against the same tensors from the re-encoded file."""
    check_same(data)
    contestants = {
        "ours, 1 key frame": ours(data, key_frames=1, batch_size=BATCH_SIZE),
        "ours, 8 key frames": ours(data, key_frames=8, batch_size=BATCH_SIZE),
        "on the fly": on_the_fly(data),
        "8 pictures only": only_pictures(data),
    }
    with pinned():
        rates = alternate(contestants, arguments, unit="s of video/s")
    return summarize(
        rates,
        {
            "1 key frame": ("ours, 1 key frame", ["on the fly"], 20),
            "8 key frames": ("ours, 8 key frames", ["on the fly"], 8),
            "8 key frames over 8 pictures only": ("ours, 8 key frames", ["8 pictures only"], None),
        },
    )


def bench_torchcodec(data: LoaderData, arguments: argparse.Namespace) -> dict:
    """Against RGB at 1 FPS."""
    peers = torchcodec_contestants(data)
    contestants = {"ours": ours(data, key_frames=1, batch_size=BATCH_SIZE), **peers}
    with pinned():
        rates = alternate(contestants, arguments, unit="s of video/s")
    return summarize(rates, {"1 key frame": ("ours", list(peers), 10)})


def bench_limit(data: LoaderData, arguments: argparse.Namespace) -> dict:
    """Against reading, untarring and decompressing alone."""
    limits = {"tarfile": tarfile_limit(data), "webdataset": webdataset_limit(data)}
    contestants = {"ours": ours(data, key_frames=1, batch_size=BATCH_SIZE), **limits}
    with pinned():
        rates = alternate(contestants, arguments, unit="s of video/s")
    return summarize(rates, {"of the limit": ("ours", list(limits), 0.7)})


def bench_raw(data: LoaderData, arguments: argparse.Namespace) -> dict:
    """Against the peers, bytes as they are."""
    folders = write_peers(data)
    loaders = {"ours": our_loader(RawDataset(data.uri, batch_size=PEER_BATCH_SIZE))}
    for collate in (as_bytes, as_tensor):
        loaders |= peer_loaders(folders, collate, suffix=f", {collate.__name__}")
    rates = epochs(loaders, arguments)
    peers = [name for name in loaders if name != "ours"]
    return summarize(rates, peer_ratios(peers, 1.2))


def bench_decoded(data: LoaderData, arguments: argparse.Namespace) -> dict:
    """Against the peers, decompressed and collated by the same functions."""
    folders = write_peers(data)
    dataset = GopDataset(data.uri, batch_size=PEER_BATCH_SIZE)
    loaders = {"ours": our_loader(dataset)}
    loaders |= peer_loaders(folders, AsGops(dataset.geometry), suffix=", ours")
    loaders |= peer_loaders(folders, AsStack(dataset.geometry), suffix=", stack")
    rates = epochs(loaders, arguments)
    stacked = {"over the faster peer, stack": ("ours", ["mosaic, stack", "litdata, stack"], None)}
    return summarize(rates, peer_ratios(["mosaic, ours", "litdata, ours"], 1.0) | stacked)


def our_loader(dataset: GopDataset | RawDataset) -> DataLoader:
    """A dataset of ours with as many workers as the peers have."""
    return DataLoader(dataset, batch_size=None, num_workers=NUM_WORKERS, persistent_workers=True)


def peer_loaders(folders: dict[str, Path], collate: Callable, suffix: str = "") -> dict[str, DataLoader]:
    """Both peers, by name."""
    return {
        f"mosaic{suffix}": mosaic_loader(folders["mosaic"], batch_size=PEER_BATCH_SIZE, collate=collate),
        f"litdata{suffix}": lit_loader(folders["litdata"], batch_size=PEER_BATCH_SIZE, collate=collate),
    }


def peer_ratios(peers: list[str], target: float) -> dict[str, tuple[str, list[str], float | None]]:
    """The ratio that counts, the same with the epoch's start, and each peer's."""
    whole = [f"{name} (whole)" for name in peers]
    return {
        "over the faster peer": ("ours", peers, target),
        "over the faster peer, whole": ("ours (whole)", whole, None),
        **{f"over {name}": ("ours", [name], None) for name in peers},
    }


def alternate(contestants: dict[str, Iterator[float]], arguments: argparse.Namespace, *, unit: str) -> Rates:
    """Units a second of CPU time of each contestant in each round; by wall time under `<name> (wall)`.

    A contestant is an endless iterator over amounts of work done.
    """
    for work in contestants.values():
        next(work)
    rates: Rates = {}
    for number in range(arguments.rounds):
        for name, work in contestants.items():
            cpu_s, wall_s, done = time.process_time(), time.perf_counter(), 0.0
            while time.process_time() - cpu_s < arguments.seconds:
                done += next(work)
            rates.setdefault(name, []).append(done / (time.process_time() - cpu_s))
            rates.setdefault(f"{name} (wall)", []).append(done / (time.perf_counter() - wall_s))
        print_round(number, {name: rates[name][-1] for name in contestants}, unit)
    return rates


def epochs(loaders: dict[str, DataLoader], arguments: argparse.Namespace) -> Rates:
    """Samples a second of each loader's epoch after its first batch; with the start under `<name> (whole)`."""
    rates: Rates = {}
    for number in range(-1, arguments.rounds):
        for name, loader in loaders.items():
            if isinstance(loader.dataset, GopDataset | RawDataset):
                loader.dataset.set_epoch(number + 1)
            started_s = time.perf_counter()
            batches = iter(loader)
            num_first = num_samples(next(batches))
            first_s = time.perf_counter()
            num_rest = sum(map(num_samples, batches))
            ended_s = time.perf_counter()
            if number >= 0:  # the first epoch starts the workers and warms up
                rates.setdefault(name, []).append(num_rest / (ended_s - first_s))
                whole = (num_first + num_rest) / (ended_s - started_s)
                rates.setdefault(f"{name} (whole)", []).append(whole)
        if number >= 0:
            print_round(number, {name: rates[name][-1] for name in loaders}, "samples/s")
    return rates


def print_round(number: int, rates: dict[str, float], unit: str) -> None:
    """One line a round."""
    print(
        f"   {number + 1}: " + "   ".join(f"{name} {rate:.0f}" for name, rate in rates.items()),
        unit,
        flush=True,
    )


def summarize(rates: Rates, ratios: dict[str, tuple[str, list[str], float | None]]) -> dict:
    """Median ratios: what is measured, the peers of which each round's fastest counts, the target."""
    found = {}
    for label, (name, peers, target) in ratios.items():
        ratio = median_ratio(rates, name, peers)
        found[label] = {"ratio": ratio, "target": target}
        text = f"{ratio:.2f} x"
        if f"{name} (wall)" in rates:
            wall = median_ratio(rates, f"{name} (wall)", [f"{peer} (wall)" for peer in peers])
            found[label]["wall_ratio"] = wall
            text += f" / {wall:.2f} x"
        print(f"   {label}: {text}" + (f"   target {target}" if target else ""), flush=True)
    return {"ratios": found, "rates": {name: [round(rate, 1) for rate in rates[name]] for name in rates}}


def median_ratio(rates: Rates, name: str, peers: list[str]) -> float:
    """Of a contestant to the fastest of the peers in the same round."""
    best = [max(values) for values in zip(*(rates[peer] for peer in peers), strict=True)]
    return round(statistics.median(a / b for a, b in zip(rates[name], best, strict=True)), 3)


SECTIONS: dict[str, Callable[[LoaderData, argparse.Namespace], dict]] = {
    "on_the_fly": bench_on_the_fly,
    "torchcodec": bench_torchcodec,
    "raw": bench_raw,
    "decoded": bench_decoded,
    "limit": bench_limit,
    "start": lambda data, arguments: measure_start(data, rounds=arguments.rounds),
    "memory": lambda data, arguments: measure_memory(data, batch_size=PEER_BATCH_SIZE),
}


if __name__ == "__main__":
    main()
