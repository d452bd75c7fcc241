"""Headers that promise what no video has: a verdict in bounded time, memory and output, whatever is promised."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cope_prep.jobs.worker import Done, Failure

sys.path.insert(0, str(Path(__file__).parent))
from references import with_box
from supervised import SOURCE_ERRORS, Sandbox

MAX_FRAMES = 2000
"""Of a clip of 8 frames: a gap in its times is filled for a minute at most."""


def _patched(data: bytes, at: int, form: str, *values: int) -> bytes:
    out = bytearray(data)
    struct.pack_into(form, out, at, *values)
    return bytes(out)


def _gif_screen(data: bytes) -> bytes:
    data = _patched(data, 6, "<HH", 65_535, 65_535)
    return _patched(data, data.index(b"\x2c\0\0\0\0") + 5, "<HH", 65_535, 65_535)


def _avi_size(data: bytes) -> bytes:
    return _patched(data, data.index(b"strf") + 8 + 4, "<ii", 65_535, 65_535)


def _avi_negative_size(data: bytes) -> bytes:
    return _patched(data, data.index(b"strf") + 8 + 4, "<ii", -(2**31), -(2**31))


def _avi_million_fps(data: bytes) -> bytes:
    return _patched(data, data.index(b"strh") + 8 + 20, "<II", 1, 1_000_000)


def _avi_one_frame_a_year(data: bytes) -> bytes:
    return _patched(data, data.index(b"strh") + 8 + 20, "<II", 31_536_000, 1)


def _ivf_size(data: bytes) -> bytes:
    return _patched(data, 12, "<HH", 65_535, 65_535)


def _ivf_million_fps(data: bytes) -> bytes:
    return _patched(data, 16, "<II", 1_000_000, 1)


def _ivf_years(data: bytes) -> bytes:
    """The last picture is shown after some thousand years."""
    at, last = 32, 32
    while at + 12 <= len(data):
        last, at = at, at + 12 + struct.unpack_from("<I", data, at)[0]
    return _patched(data, last + 4, "<Q", 1 << 42)


def _mjpeg_size(data: bytes) -> bytes:
    for start in _places(data, b"\xff\xc0"):
        data = _patched(data, start + 5, ">HH", 65_500, 65_500)
    return data


def _mp4_sample_entry_size(data: bytes) -> bytes:
    return _patched(data, data.index(b"avc1", data.index(b"stsd")) + 4 + 24, ">HH", 65_535, 65_535)


def _mp4_years(data: bytes) -> bytes:
    """Each picture is shown for days."""
    return _patched(data, data.index(b"stts") + 4 + 12, ">I", 0x7FFF_FFFF)


def _mp4_clock(data: bytes) -> bytes:
    return _patched(data, data.index(b"mdhd") + 4 + 12, ">I", 0xFFFF_FFFF)


def _mp4_slow_clock(data: bytes) -> bytes:
    return _patched(data, data.index(b"mdhd") + 4 + 12, ">I", 1)


def _mp4_billions_of_samples(data: bytes) -> bytes:
    """All samples alike, so that their sizes need no table."""
    return _patched(data, data.index(b"stsz") + 8, ">II", 1, 0xFFFF_FFF0)


def _mp4_billions_of_times(data: bytes) -> bytes:
    return _patched(data, data.index(b"stts") + 8, ">III", 1, 0x7FFF_FFFF, 1)


def _mp4_thousands_of_streams(data: bytes) -> bytes:
    at = data.index(b"trak") - 4
    track = data[at : at + struct.unpack_from(">I", data, at)[0]]
    moov = data.index(b"moov") - 4
    size = struct.unpack_from(">I", data, moov)[0]
    return with_box(data, (b"moov",), data[moov + 8 : moov + size] + track * 3000)


def _avi_thousands_of_streams(data: bytes) -> bytes:
    at = data.index(b"strl") - 8
    stream = data[at : at + 8 + struct.unpack_from("<I", data, at + 4)[0]]
    header = data.index(b"hdrl") - 4
    size = struct.unpack_from("<I", data, header)[0]
    grown = data[: header + 4 + size] + stream * 3000 + data[header + 4 + size :]
    return _patched(grown, header, "<I", size + len(stream) * 3000)


def _nested_boxes(data: bytes) -> bytes:
    """A box in a box in a box, 50,000 deep."""
    depth = 50_000
    return data[:32] + b"".join(struct.pack(">I4s", 8 * (depth - level), b"moov") for level in range(depth))


def _nested_elements(data: bytes) -> bytes:
    """Matroska: tags in tags, each of unknown size."""
    return (
        data[:60]
        + b"\x12\x54\xc3\x67\x01\xff\xff\xff\xff\xff\xff\xff\x73\x73\x01\xff\xff\xff\xff\xff\xff\xff" * 9000
    )


def _places(data: bytes, pattern: bytes) -> list[int]:
    found, at = [], data.find(pattern)
    while at >= 0:
        found.append(at)
        at = data.find(pattern, at + 1)
    return found


CASES: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("a.gif", _gif_screen),
    *(
        ("a.avi", change)
        for change in (_avi_size, _avi_negative_size, _avi_million_fps, _avi_one_frame_a_year)
    ),
    ("a.avi", _avi_thousands_of_streams),
    *(("a.ivf", change) for change in (_ivf_size, _ivf_million_fps, _ivf_years)),
    ("a.mov", _mjpeg_size),
    *(("a.mp4", change) for change in (_mp4_sample_entry_size, _mp4_years, _mp4_clock, _mp4_slow_clock)),
    *(("a.mp4", change) for change in (_mp4_billions_of_samples, _mp4_billions_of_times, _nested_boxes)),
    ("a.mp4", _mp4_thousands_of_streams),
    ("a.mkv", _nested_elements),
]


@pytest.mark.parametrize(("name", "change"), CASES, ids=[change.__name__.strip("_") for _, change in CASES])
def test_header_is_not_believed(
    contents: dict[str, bytes], sandbox: Sandbox, name: str, change: Callable[[bytes], bytes]
) -> None:
    changed = change(contents[name])
    assert changed != contents[name]
    reply = sandbox.reencode(name, changed)
    if isinstance(reply, Failure):
        assert reply.error_class in SOURCE_ERRORS, reply
    else:
        assert isinstance(reply, Done)
        assert reply.value.num_frames <= MAX_FRAMES, reply
        assert reply.value.output_bytes < 1 << 20
    sandbox.check()
