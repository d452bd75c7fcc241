"""Manifest and ledgers for the videos of synthetic_index.py: what a finished run leaves beside the shards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from synthetic_index import BYTES_PER_S, make_folders

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout
from cope_prep.schemas.arrow import LEDGER, MANIFEST
from cope_prep.schemas.records import video_key

NODES, ENDS_PER_S = 16, 2.0
"""Machines of the run, and videos that end in a second of it."""
FAILED_EVERY = 50
"""One video in so many has a failure in its ledgers. Its samples stay in the index, which has none of this."""
SOURCE_BYTES_PER_S, REENCODED_BYTES_PER_S = 120_000, 40_000
SIZES_PX = ((1920, 1080), (1280, 720), (640, 360), (480, 640))
RATES = (25.0, 30000 / 1001, 30.0)


def write_records(layout: Layout, *, scale: float) -> None:
    """Write manifest.parquet and the ledgers of both stages."""
    folders = make_folders(scale)
    video_ids = [video_id for folder in folders for video_id in folder.video_ids]
    duration_s = np.concatenate([folder.duration_s for folder in folders])
    known = {
        "video_id": pa.array(video_ids),
        "video_key": pa.array([video_key(video_id) for video_id in video_ids]),
        "size_bytes": pa.array((duration_s * SOURCE_BYTES_PER_S).astype(np.int64)),
    }
    subsets = [folder.subset for folder in folders]
    manifest = {
        **known,
        "uri": known["video_id"],
        "subset": pa.array(np.repeat(subsets, [len(folder.video_ids) for folder in folders])),
        "version": pa.repeat("1", len(video_ids)),
    }
    storage.publish_table(
        layout.manifest, pa.table([manifest[name] for name in MANIFEST.names], schema=MANIFEST)
    )
    inputs = {
        "reencode": known["size_bytes"],
        "extract": (duration_s * REENCODED_BYTES_PER_S).astype(np.int64),
    }
    for stage, bytes_per_s in (("reencode", REENCODED_BYTES_PER_S), ("extract", BYTES_PER_S)):
        known["size_bytes"] = pa.array(inputs[stage])
        rows = ledger_rows(layout, stage, known, duration_s=duration_s, bytes_per_s=bytes_per_s)
        uri = storage.join(layout.ledger(stage), "part-0000000000000-synthetic.parquet")
        storage.publish_table(uri, rows)


def ledger_rows(
    layout: Layout, stage: str, known: dict[str, pa.Array], *, duration_s: np.ndarray, bytes_per_s: int
) -> pa.Table:
    """All columns of a stage's ledger, one row a video."""
    number = len(duration_s)
    place = np.arange(number)
    failed = place % FAILED_EVERY == 0
    columns: dict[str, Any] = {
        "video_id": known["video_id"],
        "video_key": known["video_key"],
        "stage": pa.repeat(stage, number),
        "spec_hash": pa.repeat(layout.specs.hash_of(stage), number),
        "status": np.where(failed, "failed", "ok"),
        "error_class": np.where(failed, "CorruptVideoError", ""),
        "error_message": np.where(failed, "a.mp4: not one frame decodes. Download it again.", ""),
        "source_size_bytes": known["size_bytes"],
        "source_version": pa.repeat("1", number),
        "output_uri": np.where(failed, "", f"{layout.folder(stage)}/0123456789abcdef"),
        "output_bytes": np.where(failed, 0, duration_s * bytes_per_s).astype(np.int64),
        "duration_s": np.where(failed, 0.0, duration_s),
        "wall_s": pa.repeat(NODES / ENDS_PER_S, number),
        "finished_unix_s": place / ENDS_PER_S,
        "node": np.char.add("ip-10-0-0-", (place % NODES).astype(str)),
    }
    if stage == "reencode":
        sizes_px = np.array(SIZES_PX)[place % len(SIZES_PX)]
        columns |= {
            "source_codec": np.where(place % 9 == 0, "vp9", "h264"),
            "source_width_px": sizes_px[:, 0],
            "source_height_px": sizes_px[:, 1],
            "source_fps": np.array(RATES)[place % len(RATES)],
            "source_duration_s": duration_s,
        }
    return pa.table([column(field, columns.get(field.name), number) for field in LEDGER], schema=LEDGER)


def column(field: pa.Field, values: Any, number: int) -> pa.Array:
    """Values as the schema has them; without any, nulls or else zeros, empty texts and empty lists."""
    if values is not None:
        return (values if isinstance(values, pa.Array) else pa.array(values)).cast(field.type)
    if field.nullable:
        return pa.nulls(number, field.type)
    empty = [] if pa.types.is_list(field.type) else "" if field.type == pa.string() else 0
    return pa.array([empty], field.type).take(pa.array(np.zeros(number, np.int64)))
