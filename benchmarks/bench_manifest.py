"""How fast a manifest of LLaVA-Video-178K's size is built, and in how much memory.

    python benchmarks/bench_manifest.py [--scale 0.1] [--json PATH]

Writes an empty copy (files of zero bytes, questions of realistic length) in a temporary folder, and times
`manifest_from_llava_video` against `json.loads` of the same question files, in alternation. Scale 1 is the
published size: 178,510 videos and 1.4 M records.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from clips import machine

from cope_prep.pipeline.manifest import manifest_from_llava_video

FOLDERS = [
    f"{duration}_{source}_v0_1"
    for duration in ("0_30_s", "30_60_s", "1_2_m", "2_3_m")
    for source in ("academic", "youtube")
]
RECORDS = {"cap": 178_510 // 8, "oe": 960_792 // 8, "mc": 196_198 // 8}
"""Records per folder; each subset gets an eighth."""
WORDS = {"cap": 250, "oe": 30, "mc": 12}
"""Of an answer, roughly as in the published files."""


def write_copy(root: Path, *, scale: float) -> int:
    """An empty copy of the data set at a scale; returns the number of records."""
    rng = random.Random(0)
    vocabulary = [
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)
    ]
    total = 0
    for folder in FOLDERS:
        num_videos = int(RECORDS["cap"] * scale)
        videos = [f"liwei_youtube_videos/videos/{folder}/ytb_{index:011d}.mp4" for index in range(num_videos)]
        (root / videos[0]).parent.mkdir(parents=True)
        for video in videos:
            (root / video).touch()
        (root / folder).mkdir()
        stem = folder.removesuffix("_v0_1")
        for kind, num_records in RECORDS.items():
            records = [
                {
                    "id": str(index),
                    "conversations": [
                        {"from": "human", "value": "<image>\n" + " ".join(rng.choices(vocabulary, k=15))},
                        {"from": "gpt", "value": " ".join(rng.choices(vocabulary, k=WORDS[kind]))},
                    ],
                    "data_source": folder,
                    "video": videos[index % num_videos],
                }
                for index in range(int(num_records * scale))
            ]
            total += len(records)
            infix = "v0_1_cap" if kind == "cap" else f"{kind}_v0_1_qa"
            (root / folder / f"{stem}_{infix}_processed.json").write_text(json.dumps(records, indent=4))
    return total


def main() -> None:
    """Print records/s, the ratio to json.loads, and the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "LLaVA-Video-178K")
        # in another process, so that peak RSS is the manifest's own
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            num_records = pool.submit(write_copy, root, scale=args.scale).result()
        files = sorted(root.glob("*/*.json"))
        num_bytes = sum(file.stat().st_size for file in files)
        print(f"{num_records} records, {len(files)} files, {num_bytes / 1e6:.0f} MB")
        rows = []
        for round_index in range(args.rounds):
            start_s = time.perf_counter()
            report = manifest_from_llava_video(str(root), str(Path(folder, "dataset")))
            ours_s = time.perf_counter() - start_s
            if round_index == 0:  # later it is the peak of json.loads
                peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                print(f"peak RSS {peak_mib:.0f} MiB")
            if report.num_questions != num_records:
                raise RuntimeError(f"{report.num_questions} questions written, {num_records} expected")
            start_s = time.perf_counter()
            for file in files:
                json.loads(file.read_bytes())
            peer_s = time.perf_counter() - start_s
            rows.append({"manifest_s": round(ours_s, 3), "json_loads_s": round(peer_s, 3)})
            print(
                f"manifest {ours_s:.1f} s, {num_records / ours_s:,.0f} records/s;"
                f" json.loads {peer_s:.1f} s; ratio {ours_s / peer_s:.2f}"
            )
    if args.json:
        document = {
            "machine": machine(),
            "num_records": num_records,
            "peak_rss_mib": peak_mib,
            "rounds": rows,
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
