"""Tables of a dataset about which nothing is unusual, and ways to spoil them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stats_rows import Rows

from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.ledger import LedgerRow
from cope_prep.schemas.records import video_key
from cope_prep.schemas.specs import EncodeSpec, ExtractSpec

NUM_VIDEOS, NUM_FRAMES, GOP = 120, 480, 240
SUBSETS = ("films", "slides", "sports")
Spoil = Callable[[Rows], None]
"""Changes rows in place."""


def plain_rows(folder: Path, *, window: int = 30) -> Rows:
    """120 videos of 16 s in three subsets, about which nothing is unusual."""
    specs = Specs(
        encode=EncodeSpec(width_px=384, height_px=384, gop_size=GOP), extract=ExtractSpec(window=window)
    )
    rows = Rows(
        layout=Layout(dataset=str(folder), specs=specs), manifest=[], questions=[], gops=[], ledger={}
    )
    for number in range(NUM_VIDEOS):
        video_id = f"{number:03d}.mp4"
        video = {
            "video_id": video_id,
            "video_key": video_key(video_id),
            "uri": f"/videos/{video_id}",
            "subset": SUBSETS[number % len(SUBSETS)],
            "size_bytes": 2_000_000,
            "version": "1",
        }
        rows.manifest.append(video)
        for stage in ("reencode", "extract"):
            rows.ledger[stage, video_id] = done(rows.layout, video, stage)
        rows.gops.extend(gop_row(video, gop, window=window) for gop in range(NUM_FRAMES // GOP))
        rows.questions.append(question(video_id))
    return rows


def done(layout: Layout, video: dict[str, Any], stage: str) -> LedgerRow:
    return LedgerRow(
        video_id=video["video_id"],
        video_key=video["video_key"],
        stage=stage,
        spec_hash=layout.specs.hash_of(stage),
        status="ok",
        source_size_bytes=video["size_bytes"] if stage == "reencode" else 500_000,
        source_version="1",
        output_uri="/out",
        output_bytes=500_000,
        duration_s=NUM_FRAMES / 30,
        finished_unix_s=2.0,
        source_codec="h264",
        source_width_px=1280,
        source_height_px=720,
        source_fps=25.0,
    )


def gop_row(video: dict[str, Any], gop: int, *, window: int) -> dict[str, Any]:
    num_windows = (GOP - 1) // window
    figures = {
        "motion_mean_px": 2.0,
        "motion_p95_px": 8.0,
        "zero_motion_share": 0.3,
        "intra_share": 0.1,
        "residual_energy": 100.0,
        "residual_nonzero_share": 0.4,
        "psnr_y_db": 42.0,
    }
    sizes = {"iframe_bytes": 20_000, "motion_bytes": 1_000, "residual_bytes": 60_000}
    return {
        "shard": "shard-00000.tar",
        "key": f"{video['video_key']}_{gop:05d}",
        "video_id": video["video_id"],
        "subset": video["subset"],
        "gop_index": gop,
        "start_s": gop * GOP / 30,
        "num_frames": GOP,
        "num_windows": num_windows,
        "width_px": 384,
        "height_px": 384,
        "offset_bytes": 0,
        "size_bytes": sum(sizes.values()) + 8_000,
        "crc32c": 0,
        "members": [],
        "iframe_packet_bytes": 1,
        "iframe_psnr_y_db": 40.0,
        **sizes,
        **{name: [value] * num_windows for name, value in figures.items()},
        **{
            name: [0] * num_windows
            for name in ("clipped_vectors", "clipped_residuals", "max_error", "packet_bytes")
        },
    }


def question(video_id: str) -> dict[str, Any]:
    return {
        "question_id": f"q-{video_id}",
        "video_id": video_id,
        "subset": "x",
        "data_source": "x",
        "kind": "oe",
        "turns": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}],
        "json_path": "x.json",
        "json_sha256": "0",
    }


def fail(*numbers: int, error: str = "CorruptVideoError", errors: tuple[str, ...] = ()) -> Spoil:
    """Videos that could not be re-encoded, and so have no samples."""

    def spoil(rows: Rows) -> None:
        for place, number in enumerate(numbers):
            video_id = f"{number:03d}.mp4"
            row = rows.ledger["reencode", video_id]
            rows.ledger["reencode", video_id] = dataclasses.replace(
                row,
                status="failed",
                error_class=errors[place % len(errors)] if errors else error,
                error_message=f"{video_id}: is bad",
                output_uri="",
                output_bytes=0,
            )
            del rows.ledger["extract", video_id]
        gone = {f"{number:03d}.mp4" for number in numbers}
        rows.gops[:] = [row for row in rows.gops if row["video_id"] not in gone]

    return spoil


def source(first: int, **changes: Any) -> Spoil:
    """What the first so many videos came from."""

    def spoil(rows: Rows) -> None:
        for number in range(first):
            key = ("reencode", f"{number:03d}.mp4")
            rows.ledger[key] = dataclasses.replace(rows.ledger[key], **changes)

    return spoil


def windows(num_windows: int, *, subset: str | None = None, **values: float) -> Spoil:
    """Figures of so many windows, of one subset or of all in turn."""

    def spoil(rows: Rows) -> None:
        own = [row for row in rows.gops if subset in (None, row["subset"])]
        places = [(row, index) for index in range(own[0]["num_windows"]) for row in own][:num_windows]
        assert len(places) == num_windows
        for row, index in places:
            for name, value in values.items():
                row[name][index] = value

    return spoil


def length(first: int, num_frames: int) -> Spoil:
    """The first so many videos are as long as this, in one GOP a video."""

    def spoil(rows: Rows) -> None:
        wanted = {f"{number:03d}.mp4" for number in range(first)}
        rows.gops[:] = [row for row in rows.gops if row["video_id"] not in wanted or row["gop_index"] == 0]
        for row in rows.gops:
            if row["video_id"] in wanted:
                row["num_frames"] = num_frames

    return spoil


def sizes(subset: str | None = None, **changes: int) -> Spoil:
    def spoil(rows: Rows) -> None:
        for row in rows.gops:
            if subset in (None, row["subset"]):
                row.update(changes)
                parts = sum(row[f"{part}_bytes"] for part in ("iframe", "motion", "residual"))
                row["size_bytes"] = parts + changes.get("overhead", 8_000)
                row.pop("overhead", None)

    return spoil


def drop_videos(rows: Rows) -> None:
    rows.gops[:] = [row for row in rows.gops if int(row["video_id"][:3]) >= 6]
    for number in range(6):
        del rows.ledger["extract", f"{number:03d}.mp4"]


def partial(rows: Rows) -> None:
    for number in (0, 1, 2):
        key = ("reencode", f"{number:03d}.mp4")
        rows.ledger[key] = dataclasses.replace(rows.ledger[key], status="partial", error_class="PartialVideo")


def lose_questions(rows: Rows) -> None:
    slides = {row["video_id"] for row in rows.manifest if row["subset"] == "slides"}
    rows.questions[:] = [row for row in rows.questions if row["video_id"] not in slides]


def ask_of_others(rows: Rows) -> None:
    rows.questions.extend(question(f"gone-{number}.mp4") for number in range(30))
