"""A small dataset: two real films in shards, with ledgers and questions, and two videos that have no samples."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa

from cope_prep.pipeline import storage
from cope_prep.pipeline.extract import extract_video
from cope_prep.pipeline.finish import finish_shards
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.ledger import Ledger, LedgerRow
from cope_prep.pipeline.manifest import manifest_from_files
from cope_prep.pipeline.reencode import reencode_video
from cope_prep.pipeline.shard import build_shard
from cope_prep.pipeline.shard_plan import ExtractedVideo, plan_shards
from cope_prep.schemas.arrow import QUESTIONS
from cope_prep.schemas.records import video_key
from cope_prep.schemas.specs import EncodeSpec

BIKES, BUNNY = "clips/bikes.mp4", "clips/bigbuckbunny.mp4"
FAILED, WAITING = "clips/carphone_distorted.mp4", "clips/carphone_pristine.mp4"
SPECS = Specs(encode=EncodeSpec(width_px=128, height_px=96, preset="ultrafast"))
TRICKY = "<script>alert(1)</script> **bold** ![](http://example.org/x.png)"


def make(folder: Path, clips: list[Path], *, specs: Specs = SPECS) -> Layout:
    """Write it below a folder."""
    (folder / "source" / "clips").mkdir(parents=True)
    for clip in clips:
        (folder / "source" / "clips" / clip.name).write_bytes(clip.read_bytes())
    layout = Layout(dataset=str(folder / "dataset"), specs=specs)
    manifest_from_files(str(folder / "source"), layout.dataset)
    videos = []
    for video_id in (BIKES, BUNNY):
        process(layout, video_id, folder / "source" / video_id)
        size_bytes = storage.stat(layout.extracted(video_key(video_id))).size_bytes
        for stage in ("reencode", "extract"):
            Ledger(layout.ledger(stage)).append(
                [ledger_row(layout, stage, video_id, output_bytes=size_bytes)]
            )
        videos.append(
            ExtractedVideo(
                video_id=video_id,
                video_key=video_key(video_id),
                subset="films",
                output_bytes=size_bytes,
                version="1",
            )
        )
    Ledger(layout.ledger("reencode")).append(
        [ledger_row(layout, "reencode", FAILED, error="it is full of holes")]
    )
    plan = plan_shards(layout, videos)
    for shard in plan.shards:
        build_shard(layout, shard, consume=True)
    finish_shards(layout, plan)
    for stage in ("reencode", "extract", "shards"):
        layout.write_spec(stage)
    storage.publish_table(layout.questions, questions())
    return layout


def process(layout: Layout, video_id: str, source: Path) -> None:
    """Re-encode and extract one video."""
    key, specs = video_key(video_id), layout.specs
    reencode_video(str(source), layout.reencoded(key), spec=specs.encode)
    extract_video(
        layout.reencoded(key),
        layout.extracted(key),
        spec=specs.extract,
        encode_spec=specs.encode,
        video_id=video_id,
    )


def ledger_row(
    layout: Layout, stage: str, video_id: str, *, error: str = "", output_bytes: int = 1
) -> LedgerRow:
    """One row; failed if there is an error."""
    return LedgerRow(
        video_id=video_id,
        video_key=video_key(video_id),
        stage=stage,
        spec_hash=layout.specs.hash_of(stage),
        status="failed" if error else "ok",
        error_class="CorruptVideoError" if error else "",
        error_message=error,
        source_size_bytes=12_345,
        source_version="1",
        output_uri="" if error else "somewhere",
        output_bytes=0 if error else output_bytes,
        finished_unix_s=time.time(),
        source_codec=None if error else "h264",
    )


def questions() -> pa.Table:
    """Two about BIKES, one of them with Markdown and HTML in it; one about BUNNY."""
    rows = [
        ("mc/1", BIKES, "mc", [("human", f"<image>\n{TRICKY}"), ("gpt", "B. A cyclist.")]),
        ("cap/1", BUNNY, "cap", [("human", "<image>\nDescribe it."), ("gpt", "A rabbit.")]),
        ("oe/1", BIKES, "oe", [("human", "What is it?"), ("gpt", "A street.")]),
    ]
    return pa.Table.from_pylist(
        [
            {
                "question_id": question_id,
                "video_id": video_id,
                "subset": "films",
                "data_source": "films",
                "kind": kind,
                "turns": [{"from": speaker, "value": value} for speaker, value in turns],
                "json_path": "a.json",
                "json_sha256": "0" * 64,
            }
            for question_id, video_id, kind, turns in rows
        ],
        schema=QUESTIONS,
    )
