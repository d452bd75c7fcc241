"""What runs on one core in bench_loader: ours, decoding on the fly, torchcodec, and the limit.

Each is an endless iterator; an item is the seconds of video that it has made into tensors or arrays.
"""

from __future__ import annotations

import importlib
import itertools
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import zstandard
from loader_data import LoaderData

from cope_prep.pipeline import jpeg
from cope_prep.pipeline.decode import FrameReader, picture_of
from cope_prep.pipeline.fuse import fuse_window
from cope_prep.pipeline.kernels.residual import residual_to_half
from cope_prep.pipeline.kernels.vectors import CELL_PX, scatter_vectors
from cope_prep.pipeline.loader import GopDataset
from cope_prep.pipeline.loader.primitives import GopArrays, allocate
from cope_prep.pipeline.quantize import quantize_motion
from cope_prep.pipeline.rebuild import predict


@contextmanager
def pinned() -> Iterator[None]:
    """On one core for a while."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def ours(data: LoaderData, *, key_frames: int, batch_size: int) -> Iterator[float]:
    """GopDataset in this process, one shuffled epoch after the other."""
    dataset = GopDataset(data.uri, batch_size=batch_size, key_frames=key_frames)
    for epoch in itertools.count():
        dataset.set_epoch(epoch)
        for batch in dataset:
            yield len(batch) * data.gop_s


def on_the_fly(data: LoaderData) -> Iterator[float]:
    """The arrays of GopDataset(key_frames=1) from the re-encoded files, one after the other."""
    for path in itertools.cycle(data.reencoded):
        for _ in make_gops(path, data):
            yield data.gop_s


def make_gops(path: Path, data: LoaderData) -> Iterator[GopArrays]:
    """What a user would write: decode with motion, fuse, quantize, predict, subtract.

    The prediction starts from the decoded anchor, not from one rebuilt through JPEG: coding is the dataset's
    business, and this contestant is spared it. Frames after a GOP's last anchor are not decoded.
    """
    spec, gop_size = data.layout.specs.extract, data.layout.specs.encode.gop_size
    num_windows = (gop_size - 1) // spec.window
    reader = FrameReader(str(path), gop_size=gop_size, frames_per_gop=num_windows * spec.window + 1)
    for frame in reader:
        place = frame.index % gop_size
        if place == 0:
            height_px, width_px = frame.frame.height, frame.frame.width
            out = allocate(
                num_pictures=1,
                num_deltas=num_windows,
                height_px=height_px,
                width_px=width_px,
                block_px=spec.block_px,
                window=spec.window,
                residual_spec=spec.residual,
            )
            anchor = frame.picture(out.pictures[0])
            motion = np.empty((spec.window, height_px // CELL_PX, width_px // CELL_PX, 2), np.int16)
            covered = np.empty(motion.shape[:3], np.uint8)
            prediction = np.empty_like(anchor)
            continue
        slot = (place - 1) % spec.window
        scatter_vectors(frame.vectors(), motion[slot], covered[slot])
        if slot < spec.window - 1:
            continue
        index = place // spec.window - 1
        current = frame.picture()
        fused, out.intra[index] = fuse_window(
            motion,
            covered,
            block_px=spec.block_px,
            reference=anchor[:height_px],
            current=current[:height_px],
        )
        out.motion[index], step_qpel, _ = quantize_motion(fused)
        out.motion_step_px[index] = step_qpel / 4
        predict(
            anchor,
            out.motion[index],
            compensation="warp",
            step_qpel=step_qpel,
            block_px=spec.block_px,
            rounding=0,
            out=prediction,
        )
        residual_to_half(current, prediction, out.residual[index])
        anchor = current
        if index == num_windows - 1:
            yield out


def check_same(data: LoaderData) -> None:
    """The arrays made on the fly are those of the dataset, up to what JPEG coding changes."""
    dataset = GopDataset(data.uri, shuffle=None)
    batch = next(iter(dataset))
    for path in data.reencoded:
        for made in make_gops(path, data):
            error = np.abs(made.pictures[0].astype(int) - batch.pictures[0, 0].numpy()).mean()
            if error < 3:
                moved = (made.motion != batch.motion[0].numpy()).any(-1).mean()
                changed = np.abs(made.residual.astype(int) - batch.residual[0].numpy()).mean()
                print(
                    f"   same GOP: pictures {error:.2f} and residuals {changed:.2f} levels apart on average,"
                    f" {moved:.1%} of the vectors differ"
                )
                return
    raise SystemExit("no GOP made on the fly is the dataset's first")


def only_pictures(data: LoaderData) -> Iterator[float]:
    """The tensors of GopDataset(key_frames=8), which has no Δ: the 8 anchors, decoded without vectors."""
    encode, window = data.layout.specs.encode, data.layout.specs.extract.window
    last_anchor = (encode.gop_size - 1) // window * window
    for path in itertools.cycle(data.reencoded):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            num_packets = num_frames = 0
            for packet in container.demux(stream):
                place = num_packets % encode.gop_size
                num_packets += 1
                if packet.size and place > last_anchor:
                    continue
                for frame in packet.decode():
                    place = num_frames % (last_anchor + 1)
                    num_frames += 1
                    if place == 0:
                        pictures = np.empty(
                            (last_anchor // window + 1, frame.height * 3 // 2, frame.width), np.uint8
                        )
                    if place % window == 0:
                        picture_of(frame, pictures[place // window])
                    if place == last_anchor:
                        yield data.gop_s


def torchcodec_contestants(data: LoaderData) -> dict[str, Iterator[float]]:
    """torchcodec with one thread, RGB at 1 FPS, in the ways that it has."""
    decoders = importlib.import_module("torchcodec.decoders")
    fps = data.layout.specs.encode.fps

    def run(seek_mode: str, way: str) -> Iterator[float]:
        for path in itertools.cycle(data.reencoded):
            decoder = decoders.VideoDecoder(str(path), num_ffmpeg_threads=1, seek_mode=seek_mode)
            indices = range(0, len(decoder), fps)
            if way == "indices":
                frames = decoder.get_frames_at(indices=list(indices))
            elif way == "range":
                frames = decoder.get_frames_in_range(start=0, stop=len(decoder), step=fps)
            else:
                frames = decoder.get_frames_played_at(seconds=[index / fps for index in indices])
            assert len(frames) == len(indices)
            yield data.file_s

    return {
        f"torchcodec, {seek_mode}, {way}": run(seek_mode, way)
        for seek_mode in ("exact", "approximate")
        for way in ("indices", "range", "times")
    }


def tarfile_limit(data: LoaderData) -> Iterator[float]:
    """The shards read in order by the standard library's tarfile, every member decompressed."""
    shape = _picture_shape(data)
    for path in itertools.cycle(data.shards()):
        with tarfile.open(path) as archive:
            key = ""
            for member in archive:
                sample_key, _, name = member.name.partition(".")
                if key not in ("", sample_key):
                    yield data.gop_s
                key = sample_key
                content = archive.extractfile(member)
                assert content is not None
                decompress(name, content.read(), shape)
                archive.members = []  # or the archive keeps them all
            yield data.gop_s


def webdataset_limit(data: LoaderData) -> Iterator[float]:
    """The shards read in order by webdataset, every member decompressed."""
    expand = importlib.import_module("webdataset.tariterators")
    shape = _picture_shape(data)
    for path in itertools.cycle(data.shards()):
        with path.open("rb") as file:
            members = expand.tar_file_expander([{"url": str(path), "stream": file}])
            for sample in expand.group_by_keys(members):
                for name, content in sample.items():
                    if not name.startswith("__"):
                        decompress(name, content, shape)
                yield data.gop_s


def decompress(name: str, content: bytes, shape: tuple[int, int]) -> object:
    """A member as an array of its own."""
    if name.startswith("iframe"):
        return jpeg.decode_picture(content, shape=shape, name=name)
    if name.startswith("residual"):
        return jpeg.decode_grey(content, shape=shape, name=name)
    if name.endswith(".npy.zst"):
        raw = zstandard.ZstdDecompressor().decompress(content)
        header_bytes = 10 + int.from_bytes(raw[8:10], "little")
        array = np.frombuffer(raw, np.int8, offset=header_bytes)
        return np.unpackbits(array.view(np.uint8)) if name.startswith("intra") else array
    return content


def _picture_shape(data: LoaderData) -> tuple[int, int]:
    encode = data.layout.specs.encode
    return encode.height_px * 3 // 2, encode.width_px
