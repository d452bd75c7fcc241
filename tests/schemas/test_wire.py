"""Wire: every record survives the round trip; whatever else is in a member ends in an error that names it."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cope_prep.schemas import wire
from cope_prep.schemas.errors import FormatError, SchemaVersionError
from cope_prep.schemas.records import FusedPFrame, GopRecord, WindowStats
from cope_prep.schemas.specs import (
    SCHEMA_VERSION,
    DctResidual,
    ExtractSpec,
    Int8Residual,
    JpegIframe,
    LosslessIframe,
    LosslessResidual,
)

KEY = "0123456789abcdef_00000"
COMPRESSOR = zstandard.ZstdCompressor()

FINITE = st.floats(0, 1e6, allow_nan=False, width=32)
COUNT = st.integers(0, 1 << 30)


@st.composite
def records(draw: st.DrawFn, min_windows: int = 0) -> GopRecord:
    """Any record, of every coding; the arrays are random and the JPEGs any bytes."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    width, height = 16 * draw(st.integers(1, 6)), 16 * draw(st.integers(1, 6))
    window = draw(st.sampled_from([1, 2, 10, 30]))
    num_windows = draw(st.integers(min_windows, 5))
    num_frames = num_windows * window + 1 + draw(st.integers(0, window - 1))
    block_px = 8 if window == 1 else draw(st.sampled_from([16, 8, 4]))
    grid = (height // block_px, width // block_px)
    residual_spec = draw(st.sampled_from([DctResidual(), Int8Residual(), LosslessResidual()]))
    lossless_iframe = draw(st.booleans())
    motion_dtype = np.int16 if window == 1 else np.int8

    def residual() -> bytes:
        if isinstance(residual_spec, DctResidual):
            return rng.bytes(50)
        wide = isinstance(residual_spec, LosslessResidual) and draw(st.booleans())
        shape = (height * 3 // 2, width)
        values = rng.integers(-255, 256, shape, np.int16) if wide else rng.integers(-128, 128, shape, np.int8)
        return wire.pack_array(values, COMPRESSOR)

    def stats() -> WindowStats:
        kinds = {field.name: FINITE if field.type == "float" else COUNT for field in fields(WindowStats)}
        return WindowStats(**{name: draw(strategy) for name, strategy in kinds.items()})

    return GopRecord(
        video_id=draw(st.text(min_size=1)),
        gop_index=draw(st.integers(0, 99_999)),
        start_s=draw(FINITE),
        fps=draw(st.integers(1, 240)),
        num_frames=num_frames,
        width_px=width,
        height_px=height,
        window=window,
        block_px=block_px,
        compensation=draw(st.sampled_from(["h264", "mpeg4"])) if window == 1 else "warp",
        residual_spec=residual_spec,
        spec_hash="0123456789ab",
        iframe=rng.integers(0, 256, (height * 3 // 2, width), np.uint8) if lossless_iframe else rng.bytes(80),
        iframe_packet_bytes=draw(COUNT),
        iframe_psnr_y_db=draw(FINITE),
        iframe_max_error=draw(st.integers(0, 255)),
        anchor_crc32c=tuple(draw(st.integers(0, (1 << 32) - 1)) for _ in range(num_windows + 1)),
        windows=tuple(
            FusedPFrame(
                motion=rng.integers(-100, 100, (*grid, 2), motion_dtype),
                intra=rng.random(grid) < 0.3,
                motion_step_qpel=draw(st.sampled_from([1, 2, 4, 8])),
                rounding=draw(st.integers(0, 1)),
                residual=residual(),
                stats=stats(),
            )
            for _ in range(num_windows)
        ),
    )


def plain(value: object) -> object:
    """A record as plain values that compare by content: dtype, shape and bytes of each array."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, GopRecord | FusedPFrame):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return value


def one_record(**changes: object) -> GopRecord:
    """A small record with a lossless I-frame and int16 residuals."""
    picture = np.arange(48 * 32, dtype=np.uint8).reshape(48, 32)
    stats = WindowStats(**{field.name: 1 for field in fields(WindowStats)})
    window = FusedPFrame(
        motion=np.ones((2, 2, 2), np.int8),
        intra=np.zeros((2, 2), np.bool_),
        motion_step_qpel=1,
        rounding=0,
        residual=b"jpeg",
        stats=stats,
    )
    values: dict = {
        "video_id": "clip.mp4",
        "gop_index": 0,
        "start_s": 0.0,
        "fps": 30,
        "num_frames": 61,
        "width_px": 32,
        "height_px": 32,
        "window": 30,
        "block_px": 16,
        "compensation": "warp",
        "residual_spec": DctResidual(),
        "spec_hash": "0123456789ab",
        "iframe": picture,
        "iframe_packet_bytes": 1,
        "iframe_psnr_y_db": 40.0,
        "iframe_max_error": 3,
        "anchor_crc32c": (1, 2, 3),
        "windows": (window, window),
    }
    return GopRecord(**(values | changes))


def with_json(**changes: object) -> dict[str, bytes]:
    members = wire.encode_gop(one_record())
    return {**members, "json": json.dumps(json.loads(members["json"]) | changes).encode()}


def npy_zst(array: np.ndarray, *, pickled: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=pickled)
    return COMPRESSOR.compress(buffer.getvalue())


@settings(max_examples=200)
@given(records())
def test_round_trip(record: GopRecord) -> None:
    members = wire.encode_gop(record)
    assert plain(wire.decode_gop(members, key=record.key)) == plain(record)
    assert json.loads(members["json"])["key"] == record.key


@given(records())
def test_member_names_and_order(record: GopRecord) -> None:
    iframe = JpegIframe() if isinstance(record.iframe, bytes) else LosslessIframe()
    spec = ExtractSpec(residual=record.residual_spec, iframe=iframe)
    assert list(wire.encode_gop(record)) == wire.member_names(spec, len(record.windows))


@given(records(min_windows=1))
def test_stats_columns_are_what_the_windows_hold(record: GopRecord) -> None:
    columns = wire.stats_columns(json.loads(wire.encode_gop(record)["json"]))
    assert columns["max_error"] == [window.stats.max_error for window in record.windows]
    assert set(columns) == {field.name for field in fields(WindowStats)}


def test_anchor_times() -> None:
    about = json.loads(wire.encode_gop(one_record(start_s=8.0))["json"])
    assert about["anchor_s"] == [8.0, 9.0, 10.0]
    assert about["schema_version"] == SCHEMA_VERSION


def test_numpy_reads_the_arrays() -> None:
    content = wire.encode_gop(one_record())["motion.npy.zst"]
    raw = zstandard.ZstdDecompressor().decompress(content)
    array = np.load(io.BytesIO(raw), allow_pickle=False)
    assert (array.dtype, array.shape) == (np.int8, (2, 2, 2, 2))


@pytest.mark.parametrize(
    "name", ["json", "iframe.npy.zst", "motion.npy.zst", "intra.npy.zst", "residual.01.jpg"]
)
def test_missing_member_fails(name: str) -> None:
    members = wire.encode_gop(one_record())
    del members[name]
    with pytest.raises(FormatError, match="is missing") as caught:
        wire.decode_gop(members, key=KEY)
    assert caught.value.subject == f"{KEY}.{name}"


class Evil:
    """Unpickling it would raise SystemExit."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return exit, (3,)


def bomb() -> bytes:
    """A small frame that decompresses to 256 MiB, and says so."""
    return COMPRESSOR.compress(bytes(256 << 20))


def bomb_in_disguise() -> bytes:
    """The same, after a frame header that declares the size that is expected."""
    expected = 128 + 2 * 2 * 2 * 2
    declared = bytearray(zstandard.ZstdCompressor(level=1).compress(bytes(expected)))
    body = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(16 << 20))
    return bytes(declared[:6]) + body[5:]


@pytest.mark.parametrize(
    "content",
    [
        npy_zst(np.zeros((2, 2, 2, 2), np.int16)),
        npy_zst(np.zeros((2, 2, 2, 2), np.uint8)),
        npy_zst(np.zeros((2, 2, 4), np.int8)),
        npy_zst(np.zeros((16,), np.int8)),
        npy_zst(np.asfortranarray(np.zeros((2, 2, 2, 2), np.int8))),
        npy_zst(np.array([Evil()] * 2, dtype=object), pickled=True),
        COMPRESSOR.compress(pickle.dumps(Evil())),
        COMPRESSOR.compress(bytes(128 + 16)),
        COMPRESSOR.compress(b"\x93NUMPY\x01\x00\x76\x00" + b"(" * 118 + bytes(16)),
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(144)),
        bomb(),
        bomb_in_disguise(),
        b"",
        b"no zstd at all",
        npy_zst(np.zeros((2, 2, 2, 2), np.int8))[:-3],
    ],
    ids=[
        "dtype of another size",
        "dtype of the same size",
        "shape",
        "shape of the same size",
        "fortran order",
        "pickled npy",
        "pickle",
        "no npy",
        "header of brackets",
        "no declared size",
        "bomb",
        "bomb in disguise",
        "empty",
        "text",
        "cut",
    ],
)
def test_hostile_array_fails(content: bytes) -> None:
    members = wire.encode_gop(one_record()) | {"motion.npy.zst": content}
    with pytest.raises(FormatError) as caught:
        wire.decode_gop(members, key=KEY)
    assert caught.value.subject == f"{KEY}.motion.npy.zst"


@pytest.mark.parametrize("shape", [(1 << 20, 1 << 20), (1 << 16, 1 << 15)])
def test_array_beyond_the_limit_fails(shape: tuple[int, int]) -> None:
    """Even where the .json promises that much, and the frame declares exactly that."""
    num_bytes = 128 + shape[0] * shape[1]
    frame = b"\x28\xb5\x2f\xfd" + b"\xe0" + num_bytes.to_bytes(8, "little")
    assert zstandard.frame_content_size(frame) == num_bytes
    with pytest.raises(FormatError, match="declares"):
        wire.unpack_array(frame, dtypes=(np.int8,), shape=shape, name="member")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schema_version": ' + b"9" * 5000 + b"}",
        b"{}",
    ],
    ids=lambda text: repr(text[:24]),
)
def test_hostile_json_fails(text: bytes) -> None:
    members = wire.encode_gop(one_record()) | {"json": text}
    with pytest.raises(FormatError) as caught:
        wire.decode_gop(members, key=KEY)
    assert caught.value.subject == f"{KEY}.json"


@pytest.mark.parametrize(
    "changes",
    [
        {"num_windows": -1},
        {"num_windows": 1 << 40},
        {"num_windows": True},
        {"width_px": 1 << 30},
        {"block_px": 0},
        {"compensation": "guess"},
        {"residual": {"kind": "wavelet"}},
        {"residual": {"kind": "int8", "step": 0}},
        {"motion_step_px": [float("inf"), 1]},
        {"motion_step_px": [float("nan"), 1]},
        {"motion_step_px": [0.1, 1]},
        {"motion_step_px": [1]},
        {"rounding": [2, 0]},
        {"stats": {}},
        {"start_s": "soon"},
        {"start_s": float("nan")},
        {"anchor_crc32c": [1, 2, -3]},
        {"anchor_crc32c": "abc"},
        {"iframe_max_error": 256},
        {"iframe_packet_bytes": 1.5},
        {"gop_index": None},
    ],
    ids=str,
)
def test_hostile_value_fails(changes: dict[str, object]) -> None:
    with pytest.raises(FormatError) as caught:
        wire.decode_gop(with_json(**changes), key=KEY)
    assert caught.value.subject.startswith(KEY)


def test_stats_of_another_type_fail() -> None:
    stats = json.loads(wire.encode_gop(one_record())["json"])["stats"]
    for value in ("40", None, [40], True, float("inf")):
        with pytest.raises(FormatError, match="psnr_y_db"):
            wire.decode_gop(with_json(stats=stats | {"psnr_y_db": [value, 40.0]}), key=KEY)


def test_too_few_windows_for_the_frames_fail() -> None:
    with pytest.raises(FormatError, match="make 1"):
        wire.decode_gop(with_json(num_frames=31), key=KEY)


def test_newer_schema_version_fails() -> None:
    with pytest.raises(SchemaVersionError, match="has schema version 2"):
        wire.decode_gop(with_json(schema_version=SCHEMA_VERSION + 1), key=KEY)


@given(records(min_windows=1), st.data())
def test_damaged_members_end_in_a_record_or_an_error(record: GopRecord, data: st.DataObject) -> None:
    members = wire.encode_gop(record)
    name = data.draw(st.sampled_from(sorted(members)))
    content = bytearray(members[name])
    if content:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(FormatError):
        wire.decode_gop(members | {name: bytes(content)}, key=KEY)
