"""Hand a file to FFmpeg so that it can do one thing with it: demux a video container that we know.

FFmpeg guesses the format from the content, whatever the file is called, and some of its 370 demuxers read
other files: a playlist or a concat script names them, a QuickTime file may refer to its media by path. Here

    formats     only those of FORMATS are opened (`format_whitelist`); nested ones are bound by it too
    protocols   none: the bytes come through a Python file object. The one that opens by path is allowed `file`
    references  a QuickTime file's references to other files are not followed (`enable_drefs`)
    pictures    larger than MAX_AREA_PX are refused before their memory is asked for (`max_pixels`)

The content is still looked at by every demuxer's probe, which is given a piece of memory and opens nothing.
"""

from __future__ import annotations

from typing import Any, cast

import av
from av.container import InputContainer

MAX_AREA_PX = 8192 * 8192
"""A picture with more is a broken header or an attack, not a video."""

FORMATS = (
    *("mov", "matroska", "avi", "flv", "live_flv", "mpegts", "mpeg", "asf", "ogg", "mxf"),
    *("gif", "rm", "wtv", "dv", "nut", "ivf"),
    *("h264", "hevc", "obu", "m4v", "mpegvideo"),
)
"""FFmpeg's demuxers that are used: `mov` is MP4 and 3GP too, `matroska` is WebM too, `mpeg` is VOB too; the last
line is raw streams. No playlist, script, text, picture, capture device or sound-only format."""

_OPTIONS = {
    "format_whitelist": ",".join(FORMATS),
    "enable_drefs": "0",
    "use_absolute_path": "0",
    "max_pixels": str(MAX_AREA_PX),  # FFmpeg decodes while it opens, before a size can be looked at
}

_STILL_PICTURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
)
_SOUND = (b"ID3", b"fLaC", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\xff\xf1", b"\xff\xf9")


def open_container(file: Any, **arguments: Any) -> InputContainer:
    """A container, read from an object with `read`, `seek` and `tell`; it can open nothing else.

    Raises:
        av.error.FFmpegError: it is not of one of FORMATS, or broken.
    """
    container = av.open(file, "r", options={**_OPTIONS, "protocol_whitelist": "none"}, **arguments)
    return cast(InputContainer, container)


def open_container_at(path: str) -> InputContainer:
    """A container in a local file, read by FFmpeg itself.

    Raises:
        av.error.FFmpegError: it is not there, not of one of FORMATS, or broken.
    """
    # "file:", because a name may look like another protocol's.
    return av.open(f"file:{path}", "r", options={**_OPTIONS, "protocol_whitelist": "file"})


def still_picture(head: bytes) -> str:
    """The name of the picture format that a file begins with (16 bytes of `head` are enough); "" if none."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    return next((name for magic, name in _STILL_PICTURES if head.startswith(magic)), "")


def is_sound(head: bytes) -> bool:
    """True if a file begins like one of the usual sound-only formats: WAV, MP3, FLAC, AAC."""
    return (head[:4] == b"RIFF" and head[8:12] == b"WAVE") or head.startswith(_SOUND)


def is_text(head: bytes) -> bool:
    """True if a file begins like text: a playlist, a script, a web page that was downloaded instead."""
    text = head.removeprefix(b"\xef\xbb\xbf")
    return bool(text) and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in text)
