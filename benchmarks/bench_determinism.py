"""Do the same pictures give the same bytes? N encodings in each of P processes, with freed memory full of noise.

    python benchmarks/bench_determinism.py [--runs N] [--processes P] [--size 96x64] [--preset medium]
        [--x264-params cpu-independent=0] [--json PATH]

Before each encoding the process fills memory with noise and frees it, so that what an encoder does not
initialise is different each time (MALLOC_PERTURB_ is no substitute: docs/decisions/0017). Prints how many
encodings differ from the most frequent one, over all processes, and ends with 1 if any does. `--x264-params` is
put after the product's own and shows that the benchmark can fail.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
from clips import machine

from cope_prep.pipeline import encode
from cope_prep.schemas.specs import EncodeSpec

NUM_FRAMES = 30
NUM_BLOCKS = 300


class Digest:
    """A sink that keeps the hash of the packets."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def add(self, packet: bytes) -> None:
        """Take the next frame's packet."""
        self.sha256.update(packet)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=500, help="per process")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--size", default="96x64")
    parser.add_argument("--preset", default="medium")
    parser.add_argument("--x264-params", default="")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    spec = EncodeSpec(gop_size=10, preset=arguments.preset, width_px=width, height_px=height)
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        calls = [
            pool.submit(encode_often, arguments.runs, seed, spec, arguments.x264_params)
            for seed in range(arguments.processes)
        ]
        found = sum((call.result() for call in calls), Counter[str]())
    num_other = found.total() - found.most_common(1)[0][1]
    what = {"size": arguments.size, "preset": arguments.preset, "x264_params": arguments.x264_params}
    print(f"{num_other} of {found.total()} encodings differ, {len(found)} kinds of bytes: {what}")
    if arguments.json:
        measured = {"machine": machine(), **what, "num_runs": found.total(), "num_other": num_other}
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n")
    return int(num_other > 0)


def encode_often(num_runs: int, seed: int, spec: EncodeSpec, more_params: str) -> Counter[str]:
    """How often each hash of the packets came."""
    if more_params:
        options_of = encode._codec_options

        def options(spec: EncodeSpec) -> tuple[str, dict[str, str]]:
            name, options = options_of(spec)
            return name, options | {"x264-params": f"{options['x264-params']}:{more_params}"}

        encode._codec_options = options
    pictures = [picture(index, spec.width_px, spec.height_px) for index in range(NUM_FRAMES)]
    rng = np.random.default_rng(seed)
    found = Counter[str]()
    for _ in range(num_runs):
        stir(rng)
        digest = Digest()
        with encode.SegmentEncoder(digest, spec=spec, size_px=(spec.width_px, spec.height_px)) as encoder:
            for index, shown in enumerate(pictures):
                encoder.write(shown, range(index, index + 1))
        found[digest.sha256.hexdigest()] += 1
    return found


def stir(rng: np.random.Generator) -> None:
    """Leave noise in freed memory, in blocks of many sizes.

    Small 16-bit numbers, which pass for motion vectors that point into the picture and for costs.
    """
    sizes = (2 ** rng.uniform(8, 17, NUM_BLOCKS)).astype(int)
    blocks = [rng.integers(-200, 200, size, np.int16) for size in sizes]
    del blocks


def picture(index: int, width_px: int, height_px: int) -> av.VideoFrame:
    """A drifting texture with a bright square."""
    y, x = np.mgrid[0:height_px, 0:width_px]
    luma = 110 + 50 * np.sin((x + 2 * index) / 7) + 40 * np.cos((y - index) / 9)
    side = max(8, height_px // 5)
    left, top = (5 * index) % (width_px - side), (3 * index) % (height_px - side)
    luma[top : top + side, left : left + side] = 235
    planes = np.full((height_px * 3 // 2, width_px), 128, np.uint8)
    planes[:height_px] = luma
    return av.VideoFrame.from_ndarray(planes, "yuv420p")


if __name__ == "__main__":
    sys.exit(main())
