"""Make the motion benchmark's videos and questions, and its datasets by the commands that a user would run.

    python benchmarks/motion/make_data.py FOLDER [--num-train N] [--num-test N] [--seed N] [--block 16|8]

    FOLDER/sources/{train,test}/     a miniature LLaVA-Video-178K: question file, and H.264 files, B-frames and all
    FOLDER/datasets/{train,test}/    what `cope-prep manifest llava-video` and `cope-prep run` make of it

A training record is a conversation with all questions of a video; a test record is one question, and its
`data_source` says its type. What is there already is left as it is: a larger set goes on from a smaller one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from questions import ask, ask_still, conversation_record, single_records
from render import SIDE_PX, frames, make_look
from scenes import FPS, NUM_FRAMES, WINDOW, plan_script

SPLITS = ("train", "test")
SUBSET = "0_30_s_academic_v0_1"
QUESTION_FILE = f"{SUBSET}/0_30_s_academic_oe_v0_1_qa_processed.json"
STILL_FILE = f"{SUBSET}/0_30_s_academic_mc_v0_1_qa_processed.json"
"""Of the training split alone: the controls, for a model that is to see pictures before it sees Δ."""
VIDEO_FOLDER = "academic_source/motion"
_SOURCE_OPTIONS = {"crf": "16", "preset": "veryfast", "bf": "3", "threads": "1", "mbtree": "0"}
QUALITY = 20
PRESET = "superfast"
"""x264's macroblock tree gives more bits to blocks that later frames copy: an I-frame then knows what will move. It
is off in the sources and in this preset, but not in `veryfast`. With it on, two videos that differ in nothing but
their motion have different I-frames; without it, the same ones byte for byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetPaths:
    """Where the datasets are."""

    train: Path
    test: Path


def video_id(split: str, index: int) -> str:
    """What questions and manifest call a video."""
    return f"{VIDEO_FOLDER}/{split}-{index:05d}.mp4"


def make_sources(folder: Path, *, num_train: int, num_test: int, seed: int, processes: int = 2) -> None:
    """Write the videos that are missing, and the question files."""
    _check_seed(folder, seed=seed)
    for split, count in zip(SPLITS, (num_train, num_test), strict=True):
        root = folder / "sources" / split
        (root / VIDEO_FOLDER).mkdir(parents=True, exist_ok=True)
        (root / SUBSET).mkdir(exist_ok=True)
        make = partial(_make_video, root=root, split=split, seed=seed)
        # Spawned: forking a process in which libraries have threads may hang.
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            batches = pool.map(make, range(count), chunksize=16)
        for file in (QUESTION_FILE, STILL_FILE):
            if records := [record for batch in batches for record in batch[file]]:
                _publish(root / file, json.dumps(records, indent=1).encode())


def _make_video(index: int, *, root: Path, split: str, seed: int) -> dict[str, list[dict[str, object]]]:
    """Write one video, if it is not there; its records for each question file."""
    script = plan_script(index, split=split, seed=seed)
    look = make_look(index, split=split, seed=seed)
    name = video_id(split, index)
    if not (root / name).exists():
        write_video(root / name, frames(look, script))
    questions = ask(script, look, index=index, split=split, seed=seed)
    if split != "train":
        return {QUESTION_FILE: single_records(questions, video=name, number=index), STILL_FILE: []}
    still = ask_still(look, index=index, split=split, seed=seed)
    return {
        QUESTION_FILE: [conversation_record(questions, video=name, number=index)],
        STILL_FILE: [conversation_record(still, video=name, number=index, data_source="still_train")],
    }


def write_video(path: Path, pictures: Iterable[np.ndarray]) -> None:
    """RGB pictures -> an ordinary H.264 file, B-frames and all."""
    part = path.with_suffix(".part.mp4")
    with av.open(str(part), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options=_SOURCE_OPTIONS)
        stream.width = stream.height = SIDE_PX
        stream.pix_fmt = "yuv420p"
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    os.replace(part, path)


def make_datasets(folder: Path, *, block_px: int = 8, workers: int = 2, use_ray: bool = True) -> DatasetPaths:
    """`cope-prep manifest llava-video` and `cope-prep run`, once for each split.

    use_ray: False runs all in one process: for a few videos, starting Ray twice takes longer than the work.
    """
    paths = DatasetPaths(train=folder / "datasets" / "train", test=folder / "datasets" / "test")
    flags = [
        *("--fps", str(FPS), "--gop-size", str(NUM_FRAMES), "--size", f"{SIDE_PX}x{SIDE_PX}"),
        *("--preset", PRESET, "--quality", str(QUALITY)),
        *("--window", str(WINDOW), "--block", str(block_px)),
        *(("--workers", str(workers)) if use_ray else ("--no-ray",)),
        "--quiet",
    ]
    for split, dataset in zip(SPLITS, (paths.train, paths.test), strict=True):
        cope_prep("manifest", "llava-video", str(folder / "sources" / split), str(dataset))
        cope_prep("run", str(dataset), *flags)
    return paths


def cope_prep(*arguments: str) -> None:
    """Run the command line of this environment; what it prints goes to stderr."""
    command = [str(Path(sys.executable).with_name("cope-prep")), *arguments]
    print("$ cope-prep", *arguments, file=sys.stderr, flush=True)
    subprocess.run(command, check=True, stdout=sys.stderr)


def _check_seed(folder: Path, *, seed: int) -> None:
    """A folder belongs to one seed: videos of another would be taken for its own."""
    stamp = folder / "sources" / "seed.json"
    folder.joinpath("sources").mkdir(parents=True, exist_ok=True)
    if not stamp.exists():
        _publish(stamp, json.dumps({"seed": seed}).encode())
    found = json.loads(stamp.read_text())["seed"]
    if found != seed:
        raise SystemExit(f"{folder}: was made with seed {found}, not {seed}. Use another folder.")


def _publish(path: Path, content: bytes) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(content)
    os.replace(part, path)


def main() -> None:
    """Make both, and say how long each took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-train", type=int, default=3000)
    parser.add_argument("--num-test", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--block", type=int, default=8, help="side of a block of the motion grid, px")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    begin = time.perf_counter()
    make_sources(
        arguments.folder,
        num_train=arguments.num_train,
        num_test=arguments.num_test,
        seed=arguments.seed,
        processes=arguments.processes,
    )
    middle = time.perf_counter()
    paths = make_datasets(arguments.folder, block_px=arguments.block, workers=arguments.processes)
    end = time.perf_counter()
    print(f"sources {middle - begin:.0f} s, datasets {end - middle:.0f} s: {paths.train} and {paths.test}")


if __name__ == "__main__":
    main()
