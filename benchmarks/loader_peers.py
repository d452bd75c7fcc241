"""MosaicML Streaming and LitData on the same samples: the tar bytes of each, as they are, one record of bytes.

Both stand on the local disk, uncompressed and unhashed, in chunks of 64 MB (both projects' default), and are read
by two persistent workers. What their documents recommend for local data is what they get:

    MosaicML   StreamingDataset(local=..., shuffle=True, batch_size=...), without `remote`: shards are read in
               place, nothing is copied; num_canonical_nodes=1, for a single machine
    LitData    StreamingDataset(folder, shuffle=True), StreamingDataLoader: a local folder is mapped in place
               ("POSIX-fast")

A worker hands its batch on as the list of bytes, or as one tensor in shared memory: each peer's faster way counts.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from loader_data import LoaderData
from torch.utils.data import DataLoader, default_collate

from cope_prep.pipeline.loader.batch import BatchInfo, GopBatch
from cope_prep.pipeline.loader.buffer import Buffer
from cope_prep.pipeline.loader.collate import Geometry, Row, fill_gops, gop_arrays
from cope_prep.pipeline.loader.gops import layout_of
from cope_prep.pipeline.loader.primitives import allocate, load_gop
from cope_prep.pipeline.tar import split_sample
from cope_prep.pipeline.token_counts import TokenCounts
from cope_prep.schemas.wire import decode_gop

CHUNK_BYTES = 64 * 10**6
NUM_WORKERS = 2
STAND_INS = {
    "torchvision": (),
    "torchvision.datasets": ("VisionDataset",),
    "torchvision.transforms": (),
    "torchvision.transforms.functional": ("to_tensor",),
    "transformers": (),
    "transformers.feature_extraction_utils": ("BatchFeature",),
    "transformers.tokenization_utils_base": ("BatchEncoding",),
    "transformers.models": (),
    "transformers.models.auto": (),
    "transformers.models.auto.tokenization_auto": ("AutoTokenizer",),
}
"""Imported by MosaicML Streaming for datasets that are not used here; PyPI's torchvision needs CUDA."""


def import_streaming() -> ModuleType:
    """MosaicML Streaming, with empty modules where it would import torchvision and transformers."""
    for name, attributes in STAND_INS.items():
        module = ModuleType(name)
        module.__path__ = []
        for attribute in attributes:
            setattr(module, attribute, type(attribute, (), {}))
        sys.modules[name] = module
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("streaming")
    finally:
        for name in STAND_INS:
            del sys.modules[name]


def write_peers(data: LoaderData) -> dict[str, Path]:
    """The samples as records of both peers, written unless they are there."""
    mosaic, lit = Path(data.uri) / "mosaic", Path(data.uri) / "litdata"
    if (mosaic / "index.json").exists() and (lit / "index.json").exists():
        return {"mosaic": mosaic, "litdata": lit}
    samples = [content for _, content in data.samples()]
    shutil.rmtree(mosaic, ignore_errors=True)
    with import_streaming().MDSWriter(
        out=str(mosaic), columns={"sample": "bytes"}, size_limit=CHUNK_BYTES
    ) as writer:
        for content in samples:
            writer.write({"sample": content})
    # What litdata.optimize runs in each of its processes: here there is one, and the samples are in memory.
    shutil.rmtree(lit, ignore_errors=True)
    lit.mkdir()
    writing = importlib.import_module("litdata.streaming.writer")
    writer = writing.BinaryWriter(str(lit), chunk_bytes=CHUNK_BYTES)
    for index, content in enumerate(samples):
        writer[index] = content
    writer.done()
    writer.merge()
    return {"mosaic": mosaic, "litdata": lit}


def mosaic_loader(folder: Path, *, batch_size: int, collate: Callable) -> DataLoader:
    """Batches of MosaicML's StreamingDataset."""
    streaming = import_streaming()
    streaming.base.util.clean_stale_shared_memory()
    dataset = streaming.StreamingDataset(
        local=str(folder), shuffle=True, batch_size=batch_size, num_canonical_nodes=1
    )
    # Not its StreamingDataLoader, which adds only a count of samples, and counts those of lists and tensors alone.
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=NUM_WORKERS,
        persistent_workers=True,
        collate_fn=_OfColumn(collate),
        drop_last=True,
    )


def lit_loader(folder: Path, *, batch_size: int, collate: Callable) -> DataLoader:
    """Batches of LitData's StreamingDataset."""
    os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")
    litdata: Any = importlib.import_module("litdata")
    dataset = litdata.StreamingDataset(str(folder), shuffle=True, drop_last=True)
    loader = litdata.StreamingDataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=NUM_WORKERS,
        persistent_workers=True,
        collate_fn=collate,
        drop_last=True,
    )
    if loader.num_workers != NUM_WORKERS:
        raise SystemExit(f"LitData takes {loader.num_workers} workers, not {NUM_WORKERS}")
    return loader


class _OfColumn:
    """MosaicML's samples are dictionaries of columns."""

    def __init__(self, collate: Callable) -> None:
        self._collate = collate

    def __call__(self, samples: Sequence[dict[str, bytes]]) -> object:
        return self._collate([sample["sample"] for sample in samples])


def as_bytes(samples: Sequence[bytes]) -> list[bytes]:
    """The batch as it is; LitData's samples are views of its mapped file."""
    return [bytes(sample) for sample in samples]


def as_tensor(samples: Sequence[bytes]) -> tuple[torch.Tensor, list[int]]:
    """The batch as one tensor in shared memory, and the sizes."""
    sizes = [len(sample) for sample in samples]
    memory = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(sum(sizes)))
    block = memory.numpy()
    end = 0
    for sample, size in zip(samples, sizes, strict=True):
        block[end : end + size].data[:] = sample
        end += size
    return memory, sizes


class AsGops:
    """The batch as our own workers make it, by the same functions: decompressed, and laid out in one buffer."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry

    def __call__(self, samples: Sequence[bytes]) -> GopBatch:
        geometry = self._geometry
        records = [decode_gop(split_sample(bytes(sample), name="sample")[1]) for sample in samples]
        rows = [
            Row(
                sample=index,
                position=index,
                window=-1,
                height_px=record.height_px,
                width_px=record.width_px,
                gop_index=record.gop_index,
                layout=layout_of(geometry, num_frames=record.num_frames, start_s=record.start_s),
            )
            for index, record in enumerate(records)
        ]
        buffer = Buffer.allocate(gop_arrays(rows, geometry))
        fill_gops(
            buffer.arrays(),
            rows,
            geometry=geometry,
            tokens=TokenCounts(),
            load=lambda row, out: load_gop(records[row.sample], layout=row.layout, out=out),
            on_failure=_fail,
        )
        info = BatchInfo(
            keys=tuple(record.key for record in records),
            video_ids=tuple(record.video_id for record in records),
            positions=tuple(range(len(records))),
            skipped=(),
            residual_offset=128,
            residual_scale=2,
            state={},
        )
        return GopBatch.from_buffer(buffer, info)


class AsStack:
    """The batch as a user of a peer would make it: arrays of each GOP, then torch's own collation."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry

    def __call__(self, samples: Sequence[bytes]) -> dict[str, torch.Tensor]:
        return default_collate([self._load(bytes(sample)) for sample in samples])

    def _load(self, sample: bytes) -> dict[str, Any]:
        geometry = self._geometry
        record = decode_gop(split_sample(sample, name="sample")[1])
        layout = layout_of(geometry, num_frames=record.num_frames, start_s=record.start_s)
        arrays = allocate(
            num_pictures=layout.num_pictures,
            num_deltas=layout.num_deltas,
            height_px=record.height_px,
            width_px=record.width_px,
            block_px=record.block_px,
            window=record.window,
            residual_spec=record.residual_spec,
        )
        load_gop(record, layout=layout, out=arrays)
        return {
            "pictures": arrays.pictures,
            "motion": arrays.motion,
            "motion_step_px": arrays.motion_step_px,
            "intra": arrays.intra,
            "residual": arrays.residual,
            "anchor_s": layout.anchor_s,
            "is_picture": layout.is_picture,
        }


def _fail(row: Row, exc: Exception) -> None:
    raise exc


def num_samples(batch: Any) -> int:
    """Samples of a batch of any of these loaders."""
    if isinstance(batch, dict):
        return len(batch["pictures"])
    return len(batch[1]) if isinstance(batch, tuple) else len(batch)
