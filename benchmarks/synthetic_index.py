"""Index and questions of a dataset of LLaVA-Video-178K's size, without its shards: for plans and simulations.

    python benchmarks/synthetic_index.py FOLDER [--scale 1]

Counts are the published ones: 178,510 videos with a caption each, 1,001,412 open-ended and 215,625 multiple
choice questions, 1,395,547 together. NExT-QA (17,090 oe, 17,024 mc), ActivityNet-QA (23,530 oe) and
PerceptionTest (2,403 mc) add up to what the mix has more than LLaVA-Video-178K itself, and bring own videos.

Assumed, because only sums are published: the shares of the four duration classes (64, 17, 11 and 8 %, which
give the paper's 2,000 hours), durations uniform within a class, academic 15 % of each class, the number of
videos of the QA sets, and samples of 25 KB a second (benchmarks/results/size) varying by a factor of 1.5.

FOLDER/questions.parquet and FOLDER/shards/<hash>/{index.parquet,dataset.json,spec.json} are what cope-prep
writes, column by column; index.parquet shard by shard. Random figures repeat, so that the files stay small; with
`varied_figures` they do not, and are spread about as in real clips, for what computes with them. Manifest and
ledgers are synthetic_records.py's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cope_prep.pipeline import storage
from cope_prep.pipeline.finish import describe_index
from cope_prep.pipeline.layout import Layout, Specs, shard_name
from cope_prep.pipeline.tar import END_OF_ARCHIVE
from cope_prep.schemas.arrow import INDEX, QUESTIONS
from cope_prep.schemas.records import video_key
from cope_prep.schemas.specs import SCHEMA_VERSION

CLASSES = {
    "0_30_s": (0.64, 5, 30),
    "30_60_s": (0.17, 30, 60),
    "1_2_m": (0.11, 60, 120),
    "2_3_m": (0.08, 120, 180),
}
"""Share of the videos, and the range of their durations in seconds."""
ACADEMIC_SHARE = 0.15
NUM_VIDEOS = 178_510
NUM_OE, NUM_MC = 960_792, 196_198
QA_SETS = {
    "nextqa": (3_870, {"oe": 17_090, "mc": 17_024}),
    "activitynetqa": (3_200, {"oe": 23_530}),
    "perceptiontest": (1_800, {"mc": 2_403}),
}
"""Videos (assumed) and questions."""
QA_CLASSES = {"perceptiontest": ("0_30_s", "30_60_s")}
BYTES_PER_S = 25_000
SPREAD = 1.5
GOP_FRAMES, WINDOW, FPS = 240, 30, 30
BLOCK_BYTES = 512
CONTENT_BYTES = {"json": 900, "iframe.jpg": 42_000, "motion.npy.zst": 4_000, "intra.npy.zst": 150}
"""Members before the residuals."""
FIXED_BYTES = sum((1 + -(-size // BLOCK_BYTES)) * BLOCK_BYTES for size in CONTENT_BYTES.values())
"""Of them in the tar, headers included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """One subset folder."""

    name: str
    video_ids: list[str]
    duration_s: np.ndarray
    """float64 [num_videos]"""
    questions: dict[str, int]
    """By kind."""

    @property
    def subset(self) -> str:
        """As in the index."""
        return self.name.removesuffix("_v0_1")

    def json_path(self, kind: str) -> str:
        """The question file of a kind, as published."""
        if not self.name.endswith("_v0_1"):
            return f"{self.name}/{self.name}_{kind}_qa_processed.json"
        infix = "v0_1_cap" if kind == "cap" else f"{kind}_v0_1_qa"
        return f"{self.name}/{self.subset}_{infix}_processed.json"


def split(total: int, shares: list[float]) -> list[int]:
    """Whole numbers in proportion that add up to the total."""
    ends = np.rint(np.cumsum([0.0, *shares]) / sum(shares) * total).astype(int)
    return np.diff(ends).tolist()


def make_folders(scale: float) -> list[Folder]:
    """All subset folders, with their videos."""
    rng = np.random.default_rng(0)
    folders = []

    def add(name: str, duration: str, prefix: str, num_videos: int, questions: dict[str, int]) -> None:
        _, shortest_s, longest_s = CLASSES[duration]
        ids = [f"{prefix}/{duration}/ytb_{index:011d}.mp4" for index in range(num_videos)]
        seconds = rng.uniform(shortest_s, longest_s, num_videos)
        folders.append(Folder(name=name, video_ids=ids, duration_s=seconds, questions=questions))

    names = [(duration, source) for duration in CLASSES for source in ("academic", "youtube")]
    shares = [
        CLASSES[duration][0] * (ACADEMIC_SHARE if source == "academic" else 1 - ACADEMIC_SHARE)
        for duration, source in names
    ]
    counts = [split(round(total * scale), shares) for total in (NUM_VIDEOS, NUM_OE, NUM_MC)]
    for (duration, source), num_videos, num_oe, num_mc in zip(names, *counts, strict=True):
        prefix = "academic_source/Charades" if source == "academic" else "liwei_youtube_videos/videos"
        questions = {"cap": num_videos, "oe": num_oe, "mc": num_mc}
        add(f"{duration}_{source}_v0_1", duration, prefix, num_videos, questions)
    for qa_set, (num_videos, questions) in QA_SETS.items():
        classes = QA_CLASSES.get(qa_set, tuple(CLASSES))
        shares = [CLASSES[duration][0] for duration in classes]
        of_class = split(round(num_videos * scale), shares)
        of_kind = {kind: split(round(total * scale), shares) for kind, total in questions.items()}
        for index, duration in enumerate(classes):
            kinds = {kind: counts[index] for kind, counts in of_kind.items()}
            add(f"{duration}_{qa_set}", duration, f"{qa_set}/videos", of_class[index], kinds)
    return folders


def write_dataset(folder: Path, *, scale: float, varied_figures: bool = False) -> Layout:
    """Write questions.parquet and the index of the shards; returns where they are."""
    layout = Layout(dataset=str(folder), specs=Specs())
    folders = make_folders(scale)
    with (
        storage.publish(layout.questions) as path,
        pq.ParquetWriter(path, QUESTIONS, compression="zstd") as writer,
    ):
        for source in folders:
            for kind, number in source.questions.items():
                if number:
                    writer.write_table(question_rows(source, kind, number))
    layout.write_spec("shards")
    shards = []
    with storage.publish(layout.index) as path:
        with pq.ParquetWriter(path, INDEX, compression="zstd") as writer:
            tables = index_tables(folders, layout.specs.shard.target_bytes, varied_figures=varied_figures)
            for shard, rows in enumerate(tables):
                writer.write_table(rows, row_group_size=len(rows))
                size_bytes = int(pc.sum(rows["size_bytes"]).as_py()) + len(END_OF_ARCHIVE)
                shards.append({"name": shard_name(shard), "bytes": size_bytes})
        index = describe_index(path)
    document = {"schema_version": SCHEMA_VERSION, "index": index, "shards": shards}
    storage.publish_bytes(layout.dataset_json, json.dumps(document).encode())
    return layout


def question_rows(source: Folder, kind: str, number: int) -> pa.Table:
    """Rows of one question file; questions about one video follow one another."""
    place = np.arange(number)
    path = source.json_path(kind)
    ids = pc.binary_join_element_wise(pa.scalar(path), pc.cast(pa.array(place), pa.string()), "#")
    videos = pa.array(source.video_ids).take(pa.array(place * len(source.video_ids) // number))
    texts = pa.array(
        ["<image>\nWhat happens in the video, and why?", "Somebody repairs a bicycle in a yard."]
    )
    turn = pa.StructArray.from_arrays(
        [
            pa.array(["human", "gpt"]).take(pa.array(np.arange(2 * number) % 2)),
            texts.take(pa.array(np.arange(2 * number) % 2)),
        ],
        fields=list(QUESTIONS.field("turns").type.value_type),
    )
    turns = pa.ListArray.from_arrays(
        pa.array(np.arange(0, 2 * number + 1, 2), pa.int32()), turn, type=QUESTIONS.field("turns").type
    )
    constants = {
        "subset": source.name,
        "data_source": source.name,
        "kind": kind,
        "json_path": path,
        "json_sha256": "0" * 64,
    }
    columns = {"question_id": ids, "video_id": videos, "turns": turns}
    columns |= {name: pa.repeat(value, number) for name, value in constants.items()}
    return pa.table([columns[name] for name in QUESTIONS.names], schema=QUESTIONS)


def index_tables(
    folders: list[Folder], target_bytes: int, *, varied_figures: bool = False
) -> Iterator[pa.Table]:
    """Rows of one shard after the other: videos in the order of a hash, as the shard stage packs them."""
    rng = np.random.default_rng(1)
    video_ids = [video_id for folder in folders for video_id in folder.video_ids]
    subset = np.repeat([folder.subset for folder in folders], [len(folder.video_ids) for folder in folders])
    keys = np.array([video_key(video_id) for video_id in video_ids])
    order = np.argsort(keys)
    num_frames = np.rint(np.concatenate([folder.duration_s for folder in folders])[order] * FPS).astype(
        np.int64
    )
    factor = np.exp(rng.normal(0, np.log(SPREAD), len(order)))
    num_gops = -(-num_frames // GOP_FRAMES)
    video = np.repeat(np.arange(len(order)), num_gops)
    gop = np.arange(len(video)) - np.repeat(np.cumsum(num_gops) - num_gops, num_gops)
    frames = np.minimum(num_frames[video] - gop * GOP_FRAMES, GOP_FRAMES)
    num_windows = (frames - 1) // WINDOW
    wanted_bytes = frames / FPS * BYTES_PER_S * factor[video] * rng.uniform(0.9, 1.1, len(video))
    blocks = (wanted_bytes - FIXED_BYTES) / np.maximum(num_windows, 1) // BLOCK_BYTES
    residual_blocks = np.maximum(blocks.astype(np.int64) - 1, 1)  # one is the header
    size_bytes = FIXED_BYTES + num_windows * (residual_blocks + 1) * BLOCK_BYTES

    video_bytes = np.bincount(video, size_bytes, len(order))
    shard_of_video = np.zeros(len(order), np.int64)
    shard, used_bytes = 0, 0.0
    for index, size in enumerate(video_bytes.tolist()):
        if used_bytes + size > target_bytes - len(END_OF_ARCHIVE) and used_bytes:
            shard, used_bytes = shard + 1, 0.0
        shard_of_video[index] = shard
        used_bytes += size
    ids = pa.array(video_ids).take(pa.array(order))
    subsets, keys = pa.array(subset[order]), pa.array(keys[order])
    bounds = np.searchsorted(shard_of_video[video], np.arange(shard + 2)).tolist()
    for index, (start, end) in enumerate(itertools.pairwise(bounds)):
        of_video = pa.array(video[start:end])
        yield shard_rows(
            rng,
            shard_name(index),
            {"video_id": ids.take(of_video), "subset": subsets.take(of_video), "key": keys.take(of_video)},
            gop=gop[start:end],
            num_frames=frames[start:end],
            residual_blocks=residual_blocks[start:end],
            size_bytes=size_bytes[start:end],
            varied_figures=varied_figures,
        )


def shard_rows(
    rng: np.random.Generator,
    name: str,
    strings: dict[str, pa.Array],
    *,
    gop: np.ndarray,
    num_frames: np.ndarray,
    residual_blocks: np.ndarray,
    size_bytes: np.ndarray,
    varied_figures: bool,
) -> pa.Table:
    """All columns of one shard's rows; all arrays are [num_gops], `strings` has the video's key as `key`."""
    num_rows = len(gop)
    num_windows = (num_frames - 1) // WINDOW
    offset_bytes = np.cumsum(size_bytes) - size_bytes
    window_ends = np.append(0, np.cumsum(num_windows))
    # The figures repeat: what a plan reads is elsewhere, and random floats would make up most of the file.
    repeated = rng.integers(0, 64, window_ends[-1]).astype(np.float32) / 8
    gop_text = pc.utf8_lpad(pc.cast(pa.array(gop), pa.string()), 5, "0")
    numbers = {
        "gop_index": gop,
        "start_s": gop * (GOP_FRAMES / FPS),
        "num_frames": num_frames,
        "num_windows": num_windows,
        "width_px": np.full(num_rows, 384),
        "height_px": np.full(num_rows, 384),
        "offset_bytes": offset_bytes,
        "size_bytes": size_bytes,
        "crc32c": rng.integers(0, 1 << 32, num_rows),
        "iframe_bytes": np.full(num_rows, CONTENT_BYTES["iframe.jpg"]),
        "iframe_packet_bytes": np.full(num_rows, 30_000),
        "iframe_psnr_y_db": np.full(num_rows, 42.0),
        "motion_bytes": np.full(num_rows, CONTENT_BYTES["motion.npy.zst"] + CONTENT_BYTES["intra.npy.zst"]),
        "residual_bytes": num_windows * residual_blocks * BLOCK_BYTES,
    }
    columns = {
        **strings,
        "key": pc.binary_join_element_wise(strings["key"], gop_text, "_"),
        "shard": pa.repeat(name, num_rows),
        "members": member_lists(offset_bytes, num_windows, residual_blocks),
    }
    for field in INDEX:
        if field.name in numbers:
            columns[field.name] = pa.array(numbers[field.name]).cast(field.type, safe=False)
        elif field.name not in columns:
            figures = varied(rng, field.name, window_ends[-1]) if varied_figures else repeated
            values = pa.array(figures).cast(field.type.value_type, safe=False)
            columns[field.name] = pa.ListArray.from_arrays(
                pa.array(window_ends, pa.int32()), values, type=field.type
            )
    return pa.table([columns[column] for column in INDEX.names], schema=INDEX)


def varied(rng: np.random.Generator, name: str, number: int) -> np.ndarray:
    """float64 [number]: a figure of so many windows, rounded as extraction rounds it."""
    match name:
        case "motion_mean_px" | "motion_p95_px":
            return np.round(rng.gamma(0.8, 4.0 if name == "motion_mean_px" else 12.0, number), 4)
        case "zero_motion_share" | "intra_share" | "residual_nonzero_share":
            return np.round(rng.beta(1.0, 2.0, number), 4)
        case "residual_energy":
            return np.round(rng.lognormal(4.0, 1.2, number), 4)
        case "clipped_vectors" | "clipped_residuals":
            return np.where(rng.random(number) < 0.02, rng.integers(1, 100, number), 0).astype(np.float64)
        case "psnr_y_db":
            return rng.normal(41.0, 3.0, number)
    return rng.integers(0, 20_000, number).astype(np.float64)


def member_lists(offset_bytes: np.ndarray, num_windows: np.ndarray, residual_blocks: np.ndarray) -> pa.Array:
    """The `members` column: where each member's content lies in the shard."""
    num_fixed = len(CONTENT_BYTES)
    names = pa.array(
        [*CONTENT_BYTES, *(f"residual.{window:02d}.jpg" for window in range(GOP_FRAMES // WINDOW))]
    )
    num_members = num_fixed + num_windows
    ends = np.append(0, np.cumsum(num_members))
    row = np.repeat(np.arange(len(num_members)), num_members)
    member = np.arange(ends[-1]) - ends[row]
    fixed = np.array(list(CONTENT_BYTES.values()))
    content = np.where(
        member < num_fixed, fixed[np.minimum(member, num_fixed - 1)], residual_blocks[row] * BLOCK_BYTES
    )
    whole = (1 + -(-content // BLOCK_BYTES)) * BLOCK_BYTES
    before = np.cumsum(whole) - whole
    offset = offset_bytes[row] + before - before[ends[row]] + BLOCK_BYTES
    kind = INDEX.field("members").type
    structs = pa.StructArray.from_arrays(
        [names.take(pa.array(member)), pa.array(offset), pa.array(content)], fields=list(kind.value_type)
    )
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), structs, type=kind)


def main() -> None:
    """Write, and say what was written."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    arguments = parser.parse_args()
    start_s = time.perf_counter()
    layout = write_dataset(arguments.folder, scale=arguments.scale)
    print(f"{layout.index}: {pq.ParquetFile(layout.index).metadata.num_rows:,} GOPs")
    print(f"{layout.questions}: {pq.ParquetFile(layout.questions).metadata.num_rows:,} questions")
    print(f"{time.perf_counter() - start_s:.0f} s")


if __name__ == "__main__":
    main()
