"""Datasets for the loader's tests: many short videos, extracted for real, in many small shards.

A few generated clips are re-encoded once; each video is one of them under a name of its own, extracted again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pyarrow as pa

from cope_prep.pipeline import storage
from cope_prep.pipeline.extract import extract_video
from cope_prep.pipeline.finish import describe_index, finish_shards
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.reencode import reencode_video
from cope_prep.pipeline.shard import build_shard
from cope_prep.pipeline.shard_plan import ExtractedVideo, plan_shards
from cope_prep.schemas.arrow import QUESTIONS
from cope_prep.schemas.records import video_key
from cope_prep.schemas.specs import DctResidual, EncodeSpec, ExtractSpec, ShardSpec

SPECS = Specs(
    encode=EncodeSpec(width_px=96, height_px=64, gop_size=32, preset="ultrafast"),
    extract=ExtractSpec(window=4),  # 8 anchors a GOP, as at the real settings
    shard=ShardSpec(target_bytes=200_000),
)
OTHER_SPECS = replace(SPECS, extract=ExtractSpec(window=4, residual=DctResidual(quality=50)))
CLIP_FRAMES = (32, 70, 100, 7)
"""1, 3, 4 and 1 GOPs; the last ones of 70 and 100 are short, and so is the only one of 7."""
KINDS = ("cap", "oe", "mc")


def make_dataset(
    folder: Path,
    media: ModuleType,
    *,
    num_videos: int = 40,
    specs: Specs = SPECS,
    clip_frames: Sequence[int] = CLIP_FRAMES,
    questions_per_video: int = 3,
    prefix: str = "video",
) -> Layout:
    """A dataset with `num_videos` videos named `<prefix>-000.mp4`, and its questions."""
    layout = Layout(dataset=str(folder / "dataset"), specs=specs)
    sources = []
    for index, num_frames in enumerate(clip_frames):
        clip = media.write_clip(
            folder / f"clip{index}.mp4", num_frames=num_frames, painter=media.moving, first_index=50 * index
        )
        reencode_video(str(clip), str(folder / f"fixed{index}.mp4"), spec=specs.encode)
        sources.append(folder / f"fixed{index}.mp4")
    videos = []
    for index in range(num_videos):
        video_id = f"{prefix}-{index:03d}.mp4"
        key = video_key(video_id)
        report = extract_video(
            str(sources[index % len(sources)]),
            layout.extracted(key),
            spec=specs.extract,
            encode_spec=specs.encode,
            video_id=video_id,
        )
        videos.append(
            ExtractedVideo(
                video_id=video_id,
                video_key=key,
                subset=("0_30_s_academic", "30_60_s_youtube")[index % 2],
                output_bytes=report.output_bytes,
                version="1",
            )
        )
    layout.write_spec("shards")
    plan = plan_shards(layout, videos)
    for shard in plan.shards:
        build_shard(layout, shard)
    finish_shards(layout, plan)
    rows = [
        question_row(video.video_id, number, subset=video.subset)
        for video in videos
        for number in range(questions_per_video)
    ]
    storage.publish_table(layout.questions, pa.Table.from_pylist(rows, schema=QUESTIONS))
    return layout


def write_index(layout: Layout, table: pa.Table) -> None:
    """Replace index.parquet, and what dataset.json says of it."""
    storage.publish_table(layout.index, table)
    document = json.loads(storage.read_bytes(layout.dataset_json))
    document["index"] = describe_index(layout.index)
    storage.publish_bytes(layout.dataset_json, json.dumps(document).encode())


def question_row(video_id: str, number: int, *, subset: str) -> dict[str, object]:
    """A row of questions.parquet; the question's text names its video and number."""
    kind = KINDS[number % len(KINDS)]
    folder = f"{subset}_v0_1"
    name = f"{folder}_cap_processed.json" if kind == "cap" else f"{subset}_{kind}_v0_1_qa_processed.json"
    return {
        "question_id": f"{folder}/{name}#{video_id}#{number}",
        "video_id": video_id,
        "subset": folder,
        "data_source": folder,
        "kind": kind,
        "turns": [
            {"from": "human", "value": f"<image>\nQuestion {number} about {video_id}?"},
            {"from": "gpt", "value": f"Answer {number}."},
        ],
        "json_path": f"{folder}/{name}",
        "json_sha256": "0" * 64,
    }
