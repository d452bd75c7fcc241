"""Hand-made tables of a dataset, for the tests of the statistics and of what is said about them."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.ledger import Ledger, LedgerRow
from cope_prep.pipeline.stats import dataset_stats
from cope_prep.pipeline.stats_records import DatasetStats
from cope_prep.schemas.arrow import INDEX, MANIFEST, QUESTIONS
from cope_prep.schemas.records import video_key

GOP, FPS, WINDOW = 240, 30, 30
SUBSETS = ("", "0_30_s_youtube", "it's [1]*")
NUM_LISTED, NUM_INDEXED = 60, 50
SHARES = ("zero_motion_share", "intra_share", "residual_nonzero_share")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """What the tables of a dataset hold, as lists of dicts."""

    layout: Layout
    manifest: list[dict[str, Any]]
    questions: list[dict[str, Any]]
    gops: list[dict[str, Any]]
    ledger: dict[tuple[str, str], LedgerRow]
    """(stage, video id) -> the row that counts."""

    def subset_of(self, video_id: str) -> str:
        return next(row["subset"] for row in self.manifest if row["video_id"] == video_id)

    def gops_of(self, subset: str | None) -> list[dict[str, Any]]:
        return [row for row in self.gops if subset in (None, row["subset"])]

    def frames_of(self, subset: str | None) -> dict[str, int]:
        """Video id -> frames of the re-encoded video."""
        frames: Counter[str] = Counter()
        for row in self.gops_of(subset):
            frames[row["video_id"]] += row["num_frames"]
        return dict(frames)

    def done(self, stage: str) -> dict[str, LedgerRow]:
        return {
            video_id: row
            for (of, video_id), row in self.ledger.items()
            if of == stage and row.status != "failed"
        }


def make_rows(layout: Layout, *, seed: int = 0) -> Rows:
    """60 videos of the manifest, of which 10 failed; a GOP more or less each, the last one short."""
    rng = random.Random(seed)
    manifest = [
        {
            "video_id": f"clips/{number:03d}.mp4",
            "video_key": video_key(f"clips/{number:03d}.mp4"),
            "uri": f"/videos/{number:03d}.mp4",
            "subset": SUBSETS[number % len(SUBSETS)],
            "size_bytes": rng.randrange(10_000, 9_000_000),
            "version": "1",
        }
        for number in range(NUM_LISTED)
    ]
    gops: list[dict[str, Any]] = []
    ledger: dict[tuple[str, str], LedgerRow] = {}
    for number, video in enumerate(manifest):
        num_frames = rng.choice([1, 30, 31, 200, 240, 241, 700, 1000])
        fate = "ok" if number < NUM_INDEXED else "failed"
        if number % 7 == 3 and fate == "ok":
            fate = "partial"
        at_reencode = number % 2 == 0
        ledger["reencode", video["video_id"]] = make_end(
            rng,
            video,
            "reencode",
            fate if fate == "partial" or at_reencode else "partial" if number % 7 == 3 else "ok",
            num_frames,
            layout=layout,
        )
        if fate != "failed" or not at_reencode:
            status = "failed" if fate == "failed" else "ok"
            reencoded = ledger["reencode", video["video_id"]]
            end = make_end(rng, video, "extract", status, num_frames, layout=layout)
            ledger["extract", video["video_id"]] = dataclasses.replace(
                end, source_size_bytes=reencoded.output_bytes
            )
        if fate != "failed":
            gops += make_gops(rng, video, num_frames)
    questions = [
        {
            "question_id": f"q{number}",
            "video_id": rng.choice(manifest)["video_id"] if number % 20 else "clips/gone.mp4",
            "subset": "0_30_s_youtube_v0_1",
            "data_source": "x",
            "kind": rng.choice(["cap", "oe", "oe", "mc"]),
            "turns": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}],
            "json_path": "x.json",
            "json_sha256": "0",
        }
        for number in range(200)
    ]
    rng.shuffle(gops)
    return Rows(layout=layout, manifest=manifest, questions=questions, gops=gops, ledger=ledger)


def make_end(
    rng: random.Random, video: dict[str, Any], stage: str, status: Any, num_frames: int, *, layout: Layout
) -> LedgerRow:
    failed = status == "failed"
    known: dict[str, Any] = {}
    if stage == "reencode" and not failed and rng.random() < 0.8:
        width, height = rng.choice([(1920, 1080), (640, 360), (360, 640)])
        known = {
            "source_codec": rng.choice(["h264", "vp9"]),
            "source_width_px": width,
            "source_height_px": height,
            "source_fps": rng.choice([25.0, 30.0, 30000 / 1001, None]),
            "source_duration_s": num_frames / FPS,
        }
    return LedgerRow(
        video_id=video["video_id"],
        video_key=video["video_key"],
        stage=stage,
        spec_hash=layout.specs.hash_of(stage),
        status=status,
        error_class="" if status == "ok" else rng.choice(["CorruptVideoError", "TimeLimitError"]),
        error_message="" if status == "ok" else f"{video['video_id']}: is [bad]",
        source_size_bytes=video["size_bytes"],
        source_version="1",
        output_uri="" if failed else f"/out/{video['video_key']}",
        output_bytes=0 if failed else rng.randrange(1000, 100_000),
        duration_s=0.0 if failed else num_frames / FPS,
        finished_unix_s=2.0,
        **known,
    )


def make_gops(rng: random.Random, video: dict[str, Any], num_frames: int) -> Iterator[dict[str, Any]]:
    def stored(value: float) -> float:
        return float(np.float32(round(value, 4)))

    for gop in range(-(-num_frames // GOP)):
        frames = min(GOP, num_frames - gop * GOP)
        windows = (frames - 1) // WINDOW
        sizes = {name: rng.randrange(100, 50_000) for name in ("iframe", "motion", "residual")}
        figures = {
            "motion_mean_px": [stored(rng.choice([0.0, rng.expovariate(0.2)])) for _ in range(windows)],
            "motion_p95_px": [stored(rng.expovariate(0.05)) for _ in range(windows)],
            **{
                name: [stored(rng.choice([0, 0.05, 1, rng.random()])) for _ in range(windows)]
                for name in SHARES
            },
            "residual_energy": [stored(rng.lognormvariate(3, 2)) for _ in range(windows)],
            "clipped_vectors": [rng.choice([0, 0, 0, 5]) for _ in range(windows)],
            "clipped_residuals": [rng.choice([0, 0, 0, 0, 9]) for _ in range(windows)],
            "psnr_y_db": [stored(rng.choice([100.0, rng.gauss(40, 5)])) for _ in range(windows)],
            "max_error": [3] * windows,
            "packet_bytes": [99] * windows,
        }
        for window, share in enumerate(figures["intra_share"]):
            if share == 1.0:  # no vector is left, and the kernel says 0
                for name in ("motion_mean_px", "motion_p95_px", "zero_motion_share"):
                    figures[name][window] = 0.0
        yield {
            "shard": "shard-00000.tar",
            "key": f"{video['video_key']}_{gop:05d}",
            "video_id": video["video_id"],
            "subset": video["subset"],
            "gop_index": gop,
            "start_s": gop * GOP / FPS,
            "num_frames": frames,
            "num_windows": windows,
            "width_px": 64,
            "height_px": 48,
            "offset_bytes": 0,
            "size_bytes": sum(sizes.values()) + 2048,
            "crc32c": 0,
            "members": [],
            "iframe_packet_bytes": 1,
            "iframe_psnr_y_db": 40.0,
            **{f"{name}_bytes": size for name, size in sizes.items()},
            **figures,
        }


def publish(rows: Rows, *leave_out: str) -> DatasetStats:
    """Write the tables, without those to leave out, and return the statistics."""
    write(rows, *leave_out)
    return dataset_stats(rows.layout)


def write(rows: Rows, *leave_out: str) -> None:
    layout = rows.layout
    tables = {
        "manifest": (layout.manifest, rows.manifest, MANIFEST),
        "questions": (layout.questions, rows.questions, QUESTIONS),
        "index": (layout.index, rows.gops, INDEX),
    }
    for name, (uri, content, schema) in tables.items():
        if name not in leave_out:
            storage.publish_table(uri, pa.Table.from_pylist(content, schema=schema))
    for stage in ("reencode", "extract"):
        own = [row for (of, _), row in rows.ledger.items() if of == stage]
        if stage not in leave_out and own:
            changes = {
                "status": "failed",
                "output_uri": "",
                "error_class": "OldError",
                "finished_unix_s": 1.0,
            }
            old = [dataclasses.replace(row, **changes) for row in own[:5]]
            Ledger(layout.ledger(stage)).append(old)  # tried again since: these do not count
            Ledger(layout.ledger(stage)).append(own)
