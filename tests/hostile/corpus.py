"""Broken videos by the thousand: a tiny file of every container that we read and can write, and ways to damage it.

Everything comes from a seed, so a finding can be made again from its name.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

CONTAINERS: dict[str, dict[str, Any]] = {
    "a.mp4": {"codec": "libx264"},
    "fragments.mp4": {"codec": "libx264", "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "a.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "a.3gp": {"codec": "mpeg4"},
    # x265 spoils its own memory at 48 x 32.
    "a.mkv": {
        "codec": "libx265",
        "size_px": (64, 64),
        "options": {"x265-params": "log-level=none:pools=none"},
    },
    "a.webm": {"codec": "libvpx"},
    "b.webm": {"codec": "libvpx-vp9"},
    "a.avi": {"codec": "mpeg4"},
    "a.flv": {"codec": "flv"},
    "a.f4v": {"codec": "libx264"},
    "a.ts": {"codec": "libx264"},
    "a.mpg": {"codec": "mpeg2video", "fps": 25},
    "a.vob": {"codec": "mpeg2video", "fps": 25},
    "a.wmv": {"codec": "wmv2"},
    "a.ogv": {"codec": "libvpx"},
    "a.gif": {"codec": "gif", "pix_fmt": "gray"},
    "a.mxf": {"codec": "mpeg2video", "fps": 25},
    "a.nut": {"codec": "mpeg4"},
    "a.ivf": {"codec": "libvpx"},
    "a.rm": {"codec": "rv10", "fps": 25},
    "a.wtv": {"codec": "mpeg2video", "fps": 25},
    "a.h264": {"codec": "libx264"},
    "a.m4v": {"codec": "mpeg4"},
    "a.m2v": {"codec": "mpeg2video", "fps": 25},
}
"""File name -> arguments of `media.write_clip`."""

_NUMBERS = (
    0,
    1,
    7,
    8,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    2**63,
    2**64 - 1,
)
_NAMED_FIELD = re.compile(rb"[a-zA-Z][a-zA-Z0-9]{3}|\x1a\x45\xdf\xa3|[\x15-\x1f][\x40-\xff]{3}")
"""A box of MP4, a chunk of RIFF, an element of Matroska: a length stands before or after."""


def write_sources(media: ModuleType, folder: Path) -> dict[str, bytes]:
    """File name -> content of an undamaged clip, of some KiB."""
    contents = {}
    for name, arguments in CONTAINERS.items():
        given = {"size_px": (48, 32), "num_frames": 8, "painter": media.moving, **arguments}
        clip = media.write_clip(folder / name, **given)
        contents[name] = clip.read_bytes()
        clip.unlink()
    return contents


def mutations(
    contents: dict[str, bytes], name: str, *, count: int, seed: int = 6
) -> Iterator[tuple[str, bytes]]:
    """(file name that says what was done, content) of damaged copies of one file."""
    others = sorted(set(contents) - {name})
    for index in range(count):
        rng = random.Random(f"{seed}/{name}/{index}")
        damage = MUTATIONS[index % len(MUTATIONS)]
        other = contents[rng.choice(others)]
        content = damage(contents[name], other, rng)
        stem, _, suffix = name.rpartition(".")
        yield f"{stem}-{index:04d}-{damage.__name__.strip('_')}.{suffix}", content


def truncations(contents: dict[str, bytes], name: str) -> Iterator[tuple[str, bytes]]:
    """The file cut off at every percent of its length."""
    whole = contents[name]
    for percent in range(1, 100):
        stem, _, suffix = name.rpartition(".")
        yield f"{stem}-cut-{percent:02d}.{suffix}", whole[: len(whole) * percent // 100]


def _bits(data: bytes, other: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 3, 10, 100))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _bytes_in_header(data: bytes, other: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 2, 5))):
        out[rng.randrange(min(len(out), 600))] = rng.randrange(256)
    return bytes(out)


def _bytes_in_tail(data: bytes, other: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)  # where an MP4 has its index
    for _ in range(rng.choice((1, 2, 5, 20))):
        out[-1 - rng.randrange(min(len(out), 800))] = rng.randrange(256)
    return bytes(out)


def _run(data: bytes, other: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(data)), rng.choice((4, 16, 200))
    filling = rng.choice((b"\0", b"\xff", b"\x47", rng.randbytes(1)))
    return data[:at] + filling * size + data[at + size :]


def _chunk(data: bytes, other: bytes, rng: random.Random) -> bytes:
    first, second, third = sorted(rng.randrange(len(data)) for _ in range(3))
    moved, doubled = data[:first] + data[second:third], data[:second] + data[first:third]
    return rng.choice(
        (moved + data[first:second] + data[third:], moved + data[third:], doubled + data[third:])
    )


def _length(data: bytes, other: bytes, rng: random.Random) -> bytes:
    places = [match.start() for match in _NAMED_FIELD.finditer(data)] or [rng.randrange(len(data))]
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 3))):
        place = rng.choice(places) + rng.choice((-4, 4))
        width = rng.choice((1, 4, 4, 8))
        value = rng.choice((*_NUMBERS, rng.randrange(2 * len(data)))) % (1 << 8 * width)
        if 0 <= place <= len(out) - width:
            out[place : place + width] = value.to_bytes(width, rng.choice(("big", "little")))
    return bytes(out)


def _number(data: bytes, other: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 3, 8))):
        width = rng.choice((1, 2, 4, 8))
        place = rng.randrange(min(len(out), 2000) - width)
        value = rng.choice(_NUMBERS) % (1 << 8 * width)
        out[place : place + width] = value.to_bytes(width, rng.choice(("big", "little")))
    return bytes(out)


def _splice(data: bytes, other: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(1, len(data))] + other[rng.randrange(len(other)) :]


def _nested(data: bytes, other: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + other + data[at:]


MUTATIONS: tuple[Callable[[bytes, bytes, random.Random], bytes], ...] = (
    *(_bits, _bytes_in_header, _bytes_in_tail, _run, _chunk),
    *(_length, _number, _splice, _nested),
)
