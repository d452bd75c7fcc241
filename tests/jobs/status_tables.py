"""Manifest and ledgers of a dataset, row by row, for the tests of its status."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.ledger import Ledger, LedgerRow
from cope_prep.schemas.arrow import MANIFEST
from cope_prep.schemas.records import video_key

NOW_UNIX_S = 1_790_000_000.0
NUM_VIDEOS = 400


def write_manifest(layout: Layout, sizes: dict[str, int]) -> None:
    columns = {
        "video_id": list(sizes),
        "video_key": [video_key(video_id) for video_id in sizes],
        "uri": list(sizes),
        "subset": [""] * len(sizes),
        "size_bytes": list(sizes.values()),
        "version": ["v1"] * len(sizes),
    }
    storage.publish_table(layout.manifest, pa.Table.from_pydict(columns, schema=MANIFEST))


def make_row(layout: Layout, stage: str, video_id: str, **changes: Any) -> LedgerRow:
    key = video_key(video_id)
    row = LedgerRow(
        video_id=video_id,
        video_key=key,
        stage=stage,
        spec_hash=layout.specs.hash_of(stage),
        status="ok",
        source_size_bytes=100,
        source_version="v1",
        output_uri=layout.reencoded(key) if stage == "reencode" else layout.extracted(key),
        output_bytes=50,
        duration_s=2.0,
        wall_s=1.0,
        finished_unix_s=NOW_UNIX_S,
        node="one",
    )
    changes |= (
        {"output_uri": "", "output_bytes": 0, "duration_s": 0.0} if changes.get("status") == "failed" else {}
    )
    return dataclasses.replace(row, **changes)


def append(layout: Layout, stage: str, *rows: LedgerRow) -> None:
    layout.write_spec(stage)
    Ledger(layout.ledger(stage)).append(rows)


def write_index(layout: Layout, *, num_videos: int, num_shards: int = 1) -> None:
    """What is read of dataset.json, as it is when all shards are there."""
    layout.write_spec("shards")
    counts = {"videos": num_videos, "gops": num_videos, "windows": 7 * num_videos, "seconds": 2.0}
    document = {"counts": counts, "shards": [{}] * num_shards, "bytes": {"total": 9}}
    storage.publish_bytes(layout.dataset_json, json.dumps(document).encode())


def random_dataset(layout: Layout, rng: random.Random, *, last_unix_s: float) -> None:
    """Rows of other inputs, rows that are outdone, unlisted videos, files that are gone, nodes and none."""
    sizes = {f"v/{index:03d} [é]": rng.randrange(1, 10_000) for index in range(NUM_VIDEOS)}
    write_manifest(layout, sizes)

    def end(stage: str, video_id: str, size_bytes: int, version: str) -> LedgerRow:
        status = rng.choices(["ok", "partial", "failed"], [6, 1, 2])[0]
        bad = status != "ok"
        return make_row(
            layout,
            stage,
            video_id,
            status=status,
            error_class=rng.choice(["CorruptVideoError", "TimeLimitError"]) if bad else "",
            error_message=f"{video_id}: {rng.random()}" if bad else "",
            source_size_bytes=size_bytes + rng.choice([0, 0, 0, 1]),
            source_version=version if rng.random() < 0.9 else "old",
            source_sha256=rng.choice(["", "ab" * 32]) if stage == "reencode" else "",
            output_bytes=rng.randrange(1, 5000),
            duration_s=rng.uniform(0.5, 60),
            wall_s=rng.uniform(0.1, 90),
            cpu_s=rng.uniform(0.1, 90),
            finished_unix_s=last_unix_s - rng.uniform(0, 3000),
            node=rng.choice(["one", "two", None]),
        )

    reencoded = [end("reencode", name, size, "v1") for name, size in sizes.items() if rng.random() < 0.8]
    reencoded += [end("reencode", name, sizes[name], "v1") for name in rng.sample(list(sizes), 60)]
    reencoded.append(end("reencode", "not listed", 7, "v1"))
    for rows in (reencoded[:100], reencoded[100:300], reencoded[300:]):
        append(layout, "reencode", *rows)
    for row in reencoded:
        if rng.random() < 0.7:
            Path(layout.reencoded(row.video_key)).touch()
    extracted = [
        end("extract", row.video_id, row.output_bytes, row.source_sha256 or row.source_version)
        for row in reencoded
        if rng.random() < 0.6
    ]
    append(layout, "extract", *extracted)
