"""A small dataset, and what a stranger could make of it: shards, index and dataset.json that agree."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from readers import SPECS

from cope_prep.pipeline import jpeg, storage, tar
from cope_prep.pipeline.extract import extract_video
from cope_prep.pipeline.finish import describe_index, finish_shards, read_dataset_json
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.ledger import Ledger, LedgerRow
from cope_prep.pipeline.provenance import extraction_version, provenance_uri
from cope_prep.pipeline.reencode import reencode_video
from cope_prep.pipeline.shard import build_shard
from cope_prep.pipeline.shard_plan import ExtractedVideo, plan_shards
from cope_prep.pipeline.software import software
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.records import video_key

VIDEO_ID = "a.mp4"
SHARD = "shard-00000.tar"
Members = dict[str, bytes]


def make_dataset(media: ModuleType, folder: Path) -> Layout:
    """One video of three GOPs, in one shard; ledgers say how it was made."""
    layout, key = Layout(dataset=str(folder), specs=SPECS), video_key(VIDEO_ID)
    clip = media.write_clip(folder / VIDEO_ID, num_frames=120, size_px=(96, 64), painter=media.moving)
    reencoded = reencode_video(str(clip), layout.reencoded(key), spec=SPECS.encode)
    report = extract_video(
        layout.reencoded(key),
        layout.extracted(key),
        spec=SPECS.extract,
        encode_spec=SPECS.encode,
        video_id=VIDEO_ID,
    )
    version = extraction_version(report.output_bytes, report.output_crc32c)
    video = ExtractedVideo(
        video_id=VIDEO_ID, video_key=key, subset="", output_bytes=report.output_bytes, version=version
    )
    inputs = {
        "reencode": (clip.stat().st_size, "1"),
        "extract": (reencoded.output_bytes, reencoded.source_sha256),
    }
    for (stage, (size_bytes, source_version)), made in zip(inputs.items(), (reencoded, report), strict=True):
        row = LedgerRow(
            video_id=VIDEO_ID,
            video_key=key,
            stage=stage,
            spec_hash=SPECS.hash_of(stage),
            status="ok",
            source_size_bytes=size_bytes,
            source_version=source_version,
            source_sha256=getattr(made, "source_sha256", ""),
            output_uri="somewhere",
            output_bytes=made.output_bytes,
            output_crc32c=made.output_crc32c,
            software=software(),
            finished_unix_s=1.0,
        )
        Ledger(layout.ledger(stage)).append([row])
    layout.write_spec("shards")
    plan = plan_shards(layout, [video])
    for shard in plan.shards:
        build_shard(layout, shard)
    finish_shards(layout, plan)
    return layout


def shard_path(layout: Layout) -> Path:
    return Path(layout.folder("shards")) / SHARD


def change_sample(layout: Layout, change: Callable[[Members], Members | bytes]) -> None:
    """Change the first sample, and make checksums, sizes and places in index and dataset.json right."""
    with shard_path(layout).open("rb") as file:
        spans = list(tar.scan(file, name=SHARD))
        samples = [(span.key, tar.read_members(file, span)) for span in spans]
    changed = change(samples[0][1])
    first = changed if isinstance(changed, bytes) else tar.sample_bytes(samples[0][0], changed)
    rest = b"".join(tar.sample_bytes(key, members) for key, members in samples[1:])
    content = first + rest + tar.END_OF_ARCHIVE
    shard_path(layout).write_bytes(content)
    rows = storage.read_table(layout.index, INDEX).to_pylist()
    grown = len(first) - rows[0]["size_bytes"]
    rows[0] |= {"size_bytes": len(first), "crc32c": google_crc32c.value(first)}
    for row in rows[1:]:
        row["offset_bytes"] += grown
        for member in row["members"]:
            member["offset_bytes"] += grown
    if not isinstance(changed, bytes):
        at, members = 0, []
        for name, value in changed.items():
            members.append({"name": name, "offset_bytes": at + 512, "size_bytes": len(value)})
            at += 512 + len(value) + -len(value) % 512
        rows[0]["members"] = members
    change_index(layout, lambda table: pa.Table.from_pylist(rows, schema=INDEX))
    entry = {"name": SHARD, "bytes": len(content), "crc32c": google_crc32c.value(content)}
    change_document(layout, shards=[entry])


def change_index(layout: Layout, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change index.parquet, and what dataset.json says of it."""
    storage.publish_table(layout.index, change(storage.read_table(layout.index, INDEX)))
    change_document(layout, index=describe_index(layout.index))


def repeat_row(uri: str, num_rows: int, *, row_group_size: int = 1 << 16, **changes: Any) -> None:
    """Make a Parquet table its first row so often, with other values in some columns: some KB on the disk."""
    table = pq.read_table(uri).slice(0, 1)
    row = [
        pa.scalar(changes.get(name, column[0].as_py()), column.type)
        for name, column in zip(table.schema.names, table.columns, strict=True)
    ]
    size = min(num_rows, row_group_size)
    group = pa.table([pa.repeat(value, size) for value in row], schema=table.schema)
    with pq.ParquetWriter(uri, table.schema, compression="zstd") as writer:
        for at in range(0, num_rows, size):
            writer.write_table(group.slice(0, num_rows - at))


def repeat_provenance(layout: Layout, num_rows: int, **changes: Any) -> None:
    """The same of provenance.parquet, and its size and checksum in dataset.json."""
    uri = provenance_uri(layout)
    repeat_row(uri, num_rows, **changes)
    about = {"bytes": storage.stat(uri).size_bytes, "crc32c": storage.crc32c(uri)}
    change_document(layout, provenance=read_dataset_json(layout)["provenance"] | about)


def change_document(layout: Layout, **changes: Any) -> None:
    """Change dataset.json."""
    document = read_dataset_json(layout) | changes
    storage.publish_bytes(layout.dataset_json, json.dumps(document).encode())


def with_column(name: str, value: Any) -> Callable[[Layout], None]:
    """The index says this of the first sample."""

    def craft(layout: Layout) -> None:
        def change(table: pa.Table) -> pa.Table:
            rows = table.to_pylist()
            rows[0][name] = value
            return pa.Table.from_pylist(rows, schema=INDEX)

        change_index(layout, change)

    return craft


def with_member(name: str, make: Callable[[bytes], bytes]) -> Callable[[Layout], None]:
    """A member of the first sample has another content."""
    return lambda layout: change_sample(layout, lambda members: {**members, name: make(members[name])})


def with_json(**changes: Any) -> Callable[[Layout], None]:
    """The .json of the first sample says something else."""
    return with_member("json", lambda content: json.dumps(json.loads(content) | changes).encode())


def with_tar_entry(
    name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0
) -> Callable[[Layout], None]:
    """The first sample begins with an entry that no shard has."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if size:  # base 256, as GNU writes what octal digits cannot hold
        header[124:136] = b"\xff" * 12 if size < 0 else b"\x80" + size.to_bytes(11, "big")
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)

    def add(members: Members) -> bytes:
        return bytes(header) + tar.sample_bytes("0123456789abcdef_00000", members)

    return lambda layout: change_sample(layout, add)


def bomb(num_bytes: int, *, declared_bytes: int | None) -> bytes:
    """A zstd frame of so many zeros; None: it does not say how many."""
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=declared_bytes is not None)
    stream = compressor.compressobj(size=num_bytes if declared_bytes is not None else -1)
    frame = b"".join(stream.compress(bytes(1 << 20)) for _ in range(num_bytes >> 20)) + stream.flush()
    if declared_bytes is None or declared_bytes == num_bytes:
        return frame
    size = num_bytes.to_bytes(4, "little")
    at = frame.index(size)
    return frame[:at] + declared_bytes.to_bytes(4, "little") + frame[at + 4 :]


def npy(header: str) -> bytes:
    """A compressed .npy file with this header and little else."""
    text = header.encode().ljust(118) + b"\n"
    content = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(64)
    return zstandard.ZstdCompressor().compress(content)


def jpeg_of_size(content: bytes, side_px: int) -> bytes:
    """The same JPEG with another size in its header."""
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + side_px.to_bytes(2, "big") * 2 + content[at + 4 :]


def large_and_empty(layout: Layout) -> None:
    """A sample of 8192 x 8192 that is consistent in itself: some KB of zeros, compressed."""
    side, grid = 8192, 512

    def pack(array: np.ndarray) -> bytes:
        from cope_prep.schemas.wire import pack_array

        return pack_array(array, zstandard.ZstdCompressor(level=1))

    def change(members: Members) -> Members:
        about = json.loads(members["json"]) | {"width_px": side, "height_px": side}
        num_windows = about["num_windows"]
        grey = jpeg.encode_grey(np.zeros((16, 16), np.uint8), quality=50)
        changed = {
            "json": json.dumps(about).encode(),
            "iframe.jpg": jpeg_of_size(members["iframe.jpg"], side),
            "motion.npy.zst": pack(np.zeros((num_windows, grid, grid, 2), np.int8)),
            "intra.npy.zst": pack(np.zeros(num_windows * grid * grid // 8, np.uint8)),
        }
        return {name: changed.get(name, grey) for name in members}

    change_sample(layout, change)


def write_rows(path: Path, num_rows: int) -> None:
    """A table of one column, the same value in every row: some KB however many there are."""
    table = pa.table({"video_id": pa.array(np.zeros(num_rows, np.int8))})
    pq.write_table(table, path, compression="zstd")
