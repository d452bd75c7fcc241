"""GopRecord <-> the members of one WebDataset sample. docs/format.md describes the result for readers.

    .json                    ids, times, shapes, steps, checksums, figures
    .iframe.jpg              4:2:0 JPEG (or .iframe.npy.zst, uint8 [3H/2, W])
    .motion.npy.zst          int8 [num_windows, Hb, Wb, 2] (int16 at s = 1)
    .intra.npy.zst           uint8, np.packbits of bool [num_windows, Hb, Wb]
    .residual.00.jpg ...     one a window: grey JPEG, or .residual.00.npy.zst [3H/2, W] (int8 in steps;
                             lossless: int8 if every value fits, else int16, in grey levels)

`.npy.zst` is a .npy file compressed by zstd. A reader checks dtype and shape against the .json before it
allocates anything, never unpickles, and never decompresses past the expected size.
"""

from __future__ import annotations

import functools
import io
import json
import math
import threading
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import zstandard
from pydantic import TypeAdapter, ValidationError

from cope_prep.schemas.errors import FormatError, SchemaVersionError
from cope_prep.schemas.records import FusedPFrame, GopRecord, WindowStats, check_counts
from cope_prep.schemas.specs import (
    SCHEMA_VERSION,
    DctResidual,
    ExtractSpec,
    Int8Residual,
    LosslessResidual,
    ResidualSpec,
)

_RESIDUAL_SPEC: TypeAdapter[Any] = TypeAdapter(ResidualSpec)
_STATS_NAMES = tuple(field.name for field in fields(WindowStats))
_ZSTD_LEVEL = 3
MAX_ARRAY_BYTES = 5 << 28
"""No array of a sample is larger: the motion of 1,199 windows of 4096 x 4096 px takes 1,257 MB."""


def encode_gop(record: GopRecord) -> dict[str, bytes]:
    """The members of a sample, by name without the key, in the order in which they are stored."""
    windows = record.windows
    grid = (-(-record.height_px // record.block_px), -(-record.width_px // record.block_px))
    motion_dtype = _motion_dtype(record.window)
    motion = np.empty((len(windows), *grid, 2), motion_dtype)
    intra = np.empty((len(windows), *grid), np.bool_)
    for index, window in enumerate(windows):
        motion[index] = window.motion
        intra[index] = window.intra
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
    members = {"json": json.dumps(_describe(record), separators=(",", ":")).encode()}
    if isinstance(record.iframe, bytes):
        members["iframe.jpg"] = record.iframe
    else:
        members["iframe.npy.zst"] = pack_array(record.iframe, compressor)
    members["motion.npy.zst"] = pack_array(motion, compressor)
    members["intra.npy.zst"] = pack_array(np.packbits(intra), compressor)
    for index, window in enumerate(windows):
        members[residual_name(index, record.residual_spec)] = window.residual
    return members


def decode_gop(members: Mapping[str, bytes], *, key: str = "sample") -> GopRecord:
    """The record of a sample's members, by name without the key. `key` is for messages only.

    Raises:
        SchemaVersionError: written by a newer version.
        FormatError: a member is missing, malformed, or not of the shape that the .json promises.
    """
    try:
        about = json.loads(_member(members, "json", key))
        if about["schema_version"] > SCHEMA_VERSION:
            raise SchemaVersionError(
                key,
                f"has schema version {about['schema_version']}, this is {SCHEMA_VERSION}",
                "Update cope-prep.",
            )
        return _read_record(about, members, key)
    except MemoryError as exc:
        raise FormatError(key, "needs more memory than there is") from exc
    except (
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
        ValidationError,
    ) as exc:
        raise FormatError(f"{key}.json", f"is malformed ({type(exc).__name__}: {exc})") from exc


def member_names(spec: ExtractSpec, num_windows: int) -> list[str]:
    """The members of a sample, without the key, in the order in which they are stored."""
    iframe = "iframe.jpg" if spec.iframe.kind == "jpeg" else "iframe.npy.zst"
    residuals = [residual_name(index, spec.residual) for index in range(num_windows)]
    return ["json", iframe, "motion.npy.zst", "intra.npy.zst", *residuals]


def residual_name(index: int, spec: DctResidual | Int8Residual | LosslessResidual) -> str:
    """Member name of a window's residual, without the key."""
    return f"residual.{index:02d}.{'jpg' if spec.kind == 'dct' else 'npy.zst'}"


def pack_array(array: np.ndarray, compressor: zstandard.ZstdCompressor) -> bytes:
    """An array as a zstd-compressed .npy file, without a copy of the array."""
    array = np.ascontiguousarray(array)
    header = _npy_header(array.shape, array.dtype)
    stream = compressor.compressobj(size=len(header) + array.nbytes)
    return b"".join((stream.compress(header), stream.compress(array.data), stream.flush()))


@functools.lru_cache(maxsize=64)
def _npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue()


def unpack_array(
    content: bytes, *, dtypes: tuple[type[np.generic], ...], shape: tuple[int, ...], name: str
) -> np.ndarray:
    """A .npy.zst member, if it is exactly of this shape and of one of these dtypes.

    Raises:
        FormatError: it is not.
    """
    # The header is compared, never parsed: whatever else a .npy header may hold is not ours.
    headers = {_npy_header(shape, np.dtype(dtype)): np.dtype(dtype) for dtype in dtypes}
    sizes = {len(header) + math.prod(shape) * dtype.itemsize for header, dtype in headers.items()}
    try:
        declared_bytes = zstandard.frame_content_size(content)
        if declared_bytes not in sizes or declared_bytes > MAX_ARRAY_BYTES:
            raise FormatError(name, f"declares {declared_bytes} bytes, one of {sorted(sizes)} was expected")
        raw = _local.decompressor.decompress(content, max_output_size=declared_bytes)
    except MemoryError as exc:
        raise FormatError(name, f"needs {min(sizes)} bytes, more than there is memory") from exc
    except zstandard.ZstdError as exc:
        raise FormatError(name, f"cannot be decompressed ({exc})") from exc
    for header, dtype in headers.items():
        if raw.startswith(header) and len(raw) == len(header) + math.prod(shape) * dtype.itemsize:
            return np.frombuffer(raw, dtype, offset=len(header)).reshape(shape)
    expected = " or ".join(sorted(map(str, headers.values())))
    raise FormatError(name, f"is not the .npy file of {expected} {shape}: it begins with {raw[:64]!r}")


class _Local(threading.local):
    """Per thread, because making one takes as long as using it."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()


_local = _Local()


def _motion_dtype(window: int) -> type[np.generic]:
    # At s = 1 the vectors are the codec's own, and no coarser step may round them.
    return np.int16 if window == 1 else np.int8


def _describe(record: GopRecord) -> dict[str, Any]:
    """The .json member."""
    return {
        "schema_version": SCHEMA_VERSION,
        "key": record.key,
        "video_id": record.video_id,
        "gop_index": record.gop_index,
        "start_s": record.start_s,
        "fps": record.fps,
        "num_frames": record.num_frames,
        "width_px": record.width_px,
        "height_px": record.height_px,
        "window": record.window,
        "num_windows": len(record.windows),
        "anchor_s": [
            round(record.start_s + index * record.window / record.fps, 6)
            for index in range(record.num_anchors)
        ],
        "block_px": record.block_px,
        "compensation": record.compensation,
        "residual": record.residual_spec.model_dump(mode="json"),
        "spec_hash": record.spec_hash,
        "iframe_packet_bytes": record.iframe_packet_bytes,
        "iframe_psnr_y_db": record.iframe_psnr_y_db,
        "iframe_max_error": record.iframe_max_error,
        "anchor_crc32c": list(record.anchor_crc32c),
        "motion_step_px": [window.motion_step_px for window in record.windows],
        "rounding": [window.rounding for window in record.windows],
        "stats": {name: [getattr(window.stats, name) for window in record.windows] for name in _STATS_NAMES},
    }


def _read_record(about: dict[str, Any], members: Mapping[str, bytes], key: str) -> GopRecord:
    num_windows = _bounded(about["num_windows"], 0, 1200, "num_windows")
    # The compiled kernels check no index: a grid that is not the picture's would lead them out of its memory.
    width_px = _one_of(about["width_px"], range(16, 8193, 16), "width_px")
    height_px = _one_of(about["height_px"], range(16, 8193, 16), "height_px")
    block_px = _one_of(about["block_px"], (4, 8, 16), "block_px")
    window = _bounded(about["window"], 1, 1200, "window")
    compensation = about["compensation"]
    if compensation not in ("warp", "h264", "mpeg4"):
        raise ValueError(f"unknown compensation {compensation!r}")
    spec = _RESIDUAL_SPEC.validate_python(about["residual"])
    num_frames = _bounded(about["num_frames"], 1, 1200, "num_frames")
    anchor_crc32c = tuple(_bounded(crc, 0, (1 << 32) - 1, "anchor_crc32c") for crc in about["anchor_crc32c"])
    # What can be wrong comes before any array: a few KB may promise gigabytes.
    check_counts(
        key,
        num_frames=num_frames,
        window=window,
        num_windows=num_windows,
        num_checksums=len(anchor_crc32c),
    )
    residuals = [_member(members, residual_name(index, spec), key) for index in range(num_windows)]
    grid = (-(-height_px // block_px), -(-width_px // block_px))
    picture_shape = (height_px * 3 // 2, width_px)
    motion = unpack_array(
        _member(members, "motion.npy.zst", key),
        dtypes=(_motion_dtype(window),),
        shape=(num_windows, *grid, 2),
        name=f"{key}.motion.npy.zst",
    )
    num_bits = num_windows * grid[0] * grid[1]
    packed = unpack_array(
        _member(members, "intra.npy.zst", key),
        dtypes=(np.uint8,),
        shape=(-(-num_bits // 8),),
        name=f"{key}.intra.npy.zst",
    )
    intra = np.unpackbits(packed, count=num_bits).view(np.bool_).reshape(num_windows, *grid)
    iframe: bytes | np.ndarray
    if "iframe.jpg" in members:
        iframe = members["iframe.jpg"]
    else:
        iframe = unpack_array(
            _member(members, "iframe.npy.zst", key),
            dtypes=(np.uint8,),
            shape=picture_shape,
            name=f"{key}.iframe.npy.zst",
        )
    stats = zip(*(_numbers(about["stats"][name], num_windows, name) for name in _STATS_NAMES), strict=True)
    windows = tuple(
        FusedPFrame(
            motion=motion[index],
            intra=intra[index],
            motion_step_qpel=_bounded(int(about["motion_step_px"][index] * 4), 1, 1024, "motion_step_px * 4"),
            rounding=_bounded(about["rounding"][index], 0, 1, "rounding"),
            residual=residuals[index],
            stats=WindowStats(**dict(zip(_STATS_NAMES, values, strict=True))),
        )
        for index, values in zip(range(num_windows), stats, strict=True)
    )
    return GopRecord(
        video_id=str(about["video_id"]),
        gop_index=_bounded(about["gop_index"], 0, 1 << 31, "gop_index"),
        start_s=float(_number(about["start_s"], "start_s")),
        fps=_bounded(about["fps"], 1, 240, "fps"),
        num_frames=num_frames,
        width_px=width_px,
        height_px=height_px,
        window=window,
        block_px=block_px,
        compensation=compensation,
        residual_spec=spec,
        spec_hash=str(about["spec_hash"]),
        iframe=iframe,
        iframe_packet_bytes=_bounded(about["iframe_packet_bytes"], 0, 1 << 31, "iframe_packet_bytes"),
        iframe_psnr_y_db=float(_number(about["iframe_psnr_y_db"], "iframe_psnr_y_db")),
        iframe_max_error=_bounded(about["iframe_max_error"], 0, 255, "iframe_max_error"),
        anchor_crc32c=anchor_crc32c,
        windows=windows,
    )


def _member(members: Mapping[str, bytes], name: str, key: str) -> bytes:
    try:
        return members[name]
    except KeyError:
        raise FormatError(f"{key}.{name}", "is missing", "Run cope-prep verify on the shard.") from None


def _bounded(value: Any, low: int, high: int, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}, expected {low} to {high}")
    return value


def _one_of(value: Any, allowed: range | tuple[int, ...], name: str) -> int:
    if type(value) is not int or value not in allowed:
        expected = f"one of {allowed}" if isinstance(allowed, tuple) else f"a multiple of {allowed.step}"
        raise ValueError(f"{name} is {value!r}, expected {expected}, at most {allowed[-1]}")
    return value


def _number(value: Any, name: str) -> int | float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}, not a number")
    return value


def _numbers(values: Any, count: int, name: str) -> list[int | float]:
    """The first `count` of a list, checked in one pass: there are some 80 figures a sample."""
    if type(values) is not list or len(values) < count:
        raise ValueError(f"{name} is not a list of {count} numbers")
    for value in values[:count]:
        if (type(value) is not float and type(value) is not int) or not math.isfinite(value):
            raise ValueError(f"{name} holds {value!r}, not a number")
    return values[:count]


def stats_columns(record_json: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The per-window figures of a sample's .json, by column name of index.parquet."""
    return {name: record_json["stats"][name] for name in _STATS_NAMES}
