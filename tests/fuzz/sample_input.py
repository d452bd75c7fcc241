"""A sample's members as one string of bytes, for the fuzzer; and a few good samples to begin from.

    member := name (1 byte, see NAMES) | packed (1 byte, odd: compress by zstd) | size (3 bytes) | content

A fuzzer would never find a zstd frame with changed content, so arrays lie in an input unpacked.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import zstandard

from cope_prep.pipeline import jpeg
from cope_prep.schemas import wire
from cope_prep.schemas.records import FusedPFrame, GopRecord, WindowStats
from cope_prep.schemas.specs import DctResidual, Int8Residual, LosslessResidual

_RESIDUALS = [f"residual.{index:02d}.{suffix}" for index in range(4) for suffix in ("jpg", "npy.zst")]
NAMES = ("json", "iframe.jpg", "iframe.npy.zst", "motion.npy.zst", "intra.npy.zst", *_RESIDUALS)
_HEADER_BYTES = 5
_compressor = zstandard.ZstdCompressor(level=1)
_decompressor = zstandard.ZstdDecompressor()

Parts = list[tuple[int, bool, bytes]]
"""(number of the name, packed, content) of each member."""


def split(data: bytes) -> Parts:
    """The members of an input; what is cut off at the end is a short member."""
    parts: Parts = []
    at = 0
    while at + _HEADER_BYTES <= len(data):
        size = int.from_bytes(data[at + 2 : at + _HEADER_BYTES], "little")
        content = data[at + _HEADER_BYTES : at + _HEADER_BYTES + size]
        parts.append((data[at] % len(NAMES), bool(data[at + 1] & 1), content))
        at += _HEADER_BYTES + size
    return parts


def join(parts: Parts) -> bytes:
    """The input of some members."""
    return b"".join(
        bytes((number, packed)) + len(content).to_bytes(3, "little") + content
        for number, packed, content in parts
    )


def members_of(data: bytes) -> dict[str, bytes]:
    """What `decode_gop` is given."""
    return {
        NAMES[number]: _compressor.compress(content) if packed else content
        for number, packed, content in split(data)
    }


def seeds() -> list[bytes]:
    """Good samples, of every coding."""
    found = []
    for spec in (DctResidual(), Int8Residual(), LosslessResidual()):
        for window, compensation in ((1, "h264"), (1, "mpeg4"), (2, "warp")):
            found.append(_input_of(_record(spec, window=window, compensation=compensation)))
    return found


def _input_of(record: GopRecord) -> bytes:
    parts = []
    for name, content in wire.encode_gop(record).items():
        packed = name.endswith(".zst")
        parts.append((NAMES.index(name), packed, _decompressor.decompress(content) if packed else content))
    return join(parts)


def _record(
    spec: DctResidual | Int8Residual | LosslessResidual, *, window: int, compensation: str
) -> GopRecord:
    rng = np.random.default_rng(window)
    size, block_px, num_windows = 32, 8 if window == 1 else 16, 2
    shape = (size * 3 // 2, size)
    picture = rng.integers(0, 256, shape, np.uint8)
    grid = (size // block_px, size // block_px)
    if isinstance(spec, DctResidual):
        residual = jpeg.encode_grey(picture, quality=30)
    else:
        residual = wire.pack_array(rng.integers(-3, 4, shape).astype(np.int8), _compressor)
    windows = tuple(
        FusedPFrame(
            motion=rng.integers(-9, 9, (*grid, 2)).astype(np.int16 if window == 1 else np.int8),
            intra=np.zeros(grid, np.bool_),
            motion_step_qpel=1,
            rounding=0,
            residual=residual,
            stats=WindowStats(**{field.name: 1 for field in fields(WindowStats)}),
        )
        for _ in range(num_windows)
    )
    return GopRecord(
        video_id="a.mp4",
        gop_index=0,
        start_s=0.0,
        fps=30,
        num_frames=num_windows * window + 1,
        width_px=size,
        height_px=size,
        window=window,
        block_px=block_px,
        compensation=compensation,  # pyright: ignore[reportArgumentType]
        residual_spec=spec,
        spec_hash="0123456789ab",
        iframe=jpeg.encode_picture(picture, quality=50) if window == 1 else picture,
        iframe_packet_bytes=1,
        iframe_psnr_y_db=40.0,
        iframe_max_error=3,
        anchor_crc32c=(1,) * (num_windows + 1),
        windows=windows,
    )
