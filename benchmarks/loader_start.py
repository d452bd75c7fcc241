"""Time to the first batch of a dataset of 178,510 videos, in fresh processes.

The index is synthetic (synthetic_index.py), and 1.5 TB of shards cannot be kept, so each shard is a sparse file of
its recorded size. Real samples are written at the places that the epoch's first steps read, cut to the number of
frames that the index has there and padded to its size, and the index gets their checksums.

What is timed begins after the imports, with GopDataset(...): dataset.json and index.parquet are read (warm in
the page cache), the epoch is planned, workers are forked, and the first batch is read, checked, decoded and
handed over.

    python benchmarks/loader_start.py DATASET NUM_WORKERS      one measurement, as JSON
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from loader_data import LoaderData
from synthetic_index import write_dataset
from torch.utils.data import DataLoader

from cope_prep.pipeline import jpeg, storage, tar
from cope_prep.pipeline.extract import extract_gops
from cope_prep.pipeline.finish import describe_index
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader import GopDataset
from cope_prep.pipeline.loader.catalog import Catalog
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.records import GopRecord
from cope_prep.schemas.wire import encode_gop

BATCH_SIZE = 16
NUM_GRAFTED = 512
"""Samples of the first 32 steps: more than two workers begin before the first batch is there."""
TARGET_S = 2.0


def measure_start(data: LoaderData, *, rounds: int) -> dict:
    """Seconds to the first batch without workers and with two, in turn."""
    dataset = prepare_start(data)
    found: dict[int, list[dict[str, float]]] = {0: [], 2: []}
    for number in range(rounds):
        for num_workers, rows in found.items():
            command = [sys.executable, __file__, str(dataset), str(num_workers)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append(json.loads(output))
        print(
            f"   {number + 1}: "
            + "   ".join(
                f"{count} workers {rows[-1]['first_batch_s']:.2f} s" for count, rows in found.items()
            ),
            f"  of it GopDataset(...) {found[0][-1]['construct_s']:.2f} s",
            flush=True,
        )
    medians = {
        f"{count} workers": {name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]}
        for count, rows in found.items()
    }
    for name, row in medians.items():
        print(f"   {name}: {row['first_batch_s']} s to the first batch   target {TARGET_S}", flush=True)
    return {
        "median": medians,
        "target_s": TARGET_S,
        "rounds": {str(key): rows for key, rows in found.items()},
    }


def prepare_start(data: LoaderData) -> Path:
    """The dataset of sparse shards, made unless it is there."""
    dataset = data.folder / "start"
    if (dataset / "grafted").exists():
        return dataset
    print(f"making the index of 178,510 videos in {dataset}", flush=True)
    shutil.rmtree(dataset, ignore_errors=True)
    layout = write_dataset(dataset, scale=1.0)
    specs = layout.specs
    templates = [
        record
        for path in data.reencoded
        for record in extract_gops(str(path), spec=specs.extract, encode_spec=specs.encode)
    ]
    order = first_samples(layout.dataset)
    catalog = GopDataset(layout.dataset).store.catalog
    for uri, size_bytes in zip(catalog.shard_uris, catalog.shard_bytes.tolist(), strict=True):
        Path(uri).touch()
        os.truncate(uri, size_bytes)
    changed = {int(sample): graft(catalog, int(sample), templates) for sample in order}
    rewrite_index(layout, catalog, changed)
    (dataset / "grafted").touch()
    return dataset


def first_samples(uri: str) -> np.ndarray:
    """The samples of the epoch's first steps."""
    dataset = GopDataset(uri, batch_size=BATCH_SIZE)
    return dataset._order(0)[0][:NUM_GRAFTED].copy()


def graft(catalog: Catalog, sample: int, templates: Sequence[GopRecord]) -> int:
    """Write a real sample to its place, and a member that nobody asks for behind it; returns the checksum."""
    slot_bytes = int(catalog.size_bytes[sample])
    for record in candidates(catalog, sample, templates):
        members = encode_gop(record)
        room_bytes = slot_bytes - len(tar.sample_bytes(record.key, members))
        if room_bytes >= 0:
            if room_bytes:
                members["padding"] = bytes(room_bytes - tar.BLOCK_BYTES)
            content = tar.sample_bytes(record.key, members)
            shard = os.open(catalog.shard_uris[catalog.shard[sample]], os.O_WRONLY)
            os.pwrite(shard, content, int(catalog.offset_bytes[sample]))
            os.close(shard)
            return google_crc32c.value(content)
    raise SystemExit(f"no real sample fits into the {slot_bytes} bytes of sample {sample}")


def candidates(catalog: Catalog, sample: int, templates: Sequence[GopRecord]) -> Iterator[GopRecord]:
    """Real samples, cut to the length of this one; then ones without residuals, for small slots."""
    num_frames = int(catalog.num_frames[sample])
    start = sample % len(templates)
    rotated = [*templates[start:], *templates[:start]]
    for is_plain in (False, True):
        for template in rotated:
            windows = template.windows[: (num_frames - 1) // template.window]
            if is_plain:
                grey = np.full((template.height_px * 3 // 2, template.width_px), 128, np.uint8)
                nothing = jpeg.encode_grey(grey, quality=90)
                windows = tuple(replace(window, residual=nothing) for window in windows)
            yield replace(
                template,
                video_id=catalog.video_id(sample),
                gop_index=int(catalog.gop_index[sample]),
                start_s=float(catalog.start_s[sample]),
                num_frames=num_frames,
                windows=windows,
                anchor_crc32c=template.anchor_crc32c[: len(windows) + 1],
            )


def rewrite_index(layout: Layout, catalog: Catalog, changed: dict[int, int]) -> None:
    """Put new checksums into index.parquet, and its own into dataset.json."""
    checksums = catalog.crc32c.copy()
    checksums[list(changed)] = list(changed.values())
    old = pq.ParquetFile(layout.index)
    start = 0
    with (
        storage.publish(layout.index) as path,
        pq.ParquetWriter(path, INDEX, compression="zstd") as writer,
    ):
        for group in range(old.num_row_groups):
            rows = old.read_row_group(group)
            end = start + len(rows)
            column = pa.array(checksums[start:end]).cast(INDEX.field("crc32c").type)
            rows = rows.set_column(rows.column_names.index("crc32c"), INDEX.field("crc32c"), column)
            writer.write_table(rows.cast(INDEX), row_group_size=len(rows))
            start = end
    document = json.loads(Path(layout.dataset_json).read_text())
    document["index"] = describe_index(layout.index)
    storage.publish_bytes(layout.dataset_json, json.dumps(document).encode())


def main() -> None:
    """One measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("num_workers", type=int)
    arguments = parser.parse_args()
    begun_s = time.perf_counter()
    dataset = GopDataset(arguments.dataset, batch_size=BATCH_SIZE)
    constructed_s = time.perf_counter()
    loader = DataLoader(dataset, batch_size=None, num_workers=arguments.num_workers)
    batch = next(iter(loader))
    ended_s = time.perf_counter()
    if not bool(batch.is_valid.all()):
        raise SystemExit("the first batch has samples that could not be read")
    print(
        json.dumps(
            {
                "construct_s": round(constructed_s - begun_s, 3),
                "first_batch_s": round(ended_s - begun_s, 3),
                "num_units": dataset.num_units,
            }
        )
    )


if __name__ == "__main__":
    main()
