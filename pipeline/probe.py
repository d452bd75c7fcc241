"""Is this file usable, and what is in it: open a source, choose its video stream, decode one frame.

Nothing that a header says is believed for more than a hint. Size, rotation and pixel format come from the
first frame that decodes; duration and frame rate are the header's claims, and named so.

A source is read through a Python file object, local or remote, and FFmpeg may open nothing else: a playlist
that names other files or addresses finds no protocol to reach them with.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import IO, NoReturn

import av
import av.error
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from cope_prep.pipeline import storage
from cope_prep.schemas.errors import (
    CorruptVideoError,
    NotAVideoError,
    NoVideoStreamError,
    SourceError,
    StorageError,
    UnsupportedVideoError,
)

MAX_SIDE_PX = 16384
"""Beyond this a picture is a broken header or an attack, not a video."""
MAX_AREA_PX = 8192 * 8192

_READ_BYTES = 1 << 20
# One Python call a read: 32 KiB, PyAV's default, costs a percent on a fast decode.

_STILL_FORMATS = ("image2", "ico")
_TEXT_FORMATS = ("tty", "concat", "hls", "dash", "ffmetadata", "sdp", "rtsp")
# Demuxers that make a "video" of a text file, or that only point at other files.

_PICTURE_ONLY = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
_SECONDARY = Disposition.dependent | Disposition.descriptions

_HDR_TRANSFERS = (16, 18)  # AVCOL_TRC_SMPTE2084 (PQ) and ARIB_STD_B67 (HLG)

_HEADER_CLAIMS_DURATION = ("mov", "matroska", "avi", "flv", "asf")
# Elsewhere FFmpeg estimates a duration from the bit rate, which is no claim of the file's.


@dataclass(frozen=True, slots=True, kw_only=True)
class Orientation:
    """How decoded pictures must be turned to be seen upright: transpose first, then mirror."""

    transpose: bool = False
    """Swap x and y."""
    mirror_x: bool = False
    """Then left to right."""
    mirror_y: bool = False
    """Then top to bottom."""

    @property
    def clockwise_deg(self) -> int:
        """The turn, without its mirroring: 0, 90, 180 or 270 degrees."""
        if self.transpose:
            return 90 if self.mirror_x else 270
        return 180 if self.mirror_x and self.mirror_y else 0

    @property
    def mirrored(self) -> bool:
        """True if the picture is also a mirror image."""
        return (self.transpose + self.mirror_x + self.mirror_y) % 2 == 1

    def __str__(self) -> str:
        return f"rotated by {self.clockwise_deg} degrees{', mirrored' if self.mirrored else ''}"


UPRIGHT = Orientation()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInfo:
    """What a source video is, by its first decoded frame and its header."""

    uri: str
    container: str
    """FFmpeg's name of the demuxer, for instance `mov,mp4,m4a,3gp,3g2,mj2`."""
    codec: str
    """FFmpeg's name of the codec, for instance `h264`."""
    stream_index: int
    width_px: int
    """Of the decoded picture, before it is turned."""
    height_px: int
    pixel_format: str
    sample_aspect: Fraction
    """Width of a pixel over its height, before the picture is turned; 1 when the source does not say."""
    orientation: Orientation
    interlaced: bool
    """True if the first frame is flagged interlaced."""
    time_base: Fraction
    claimed_rate: Fraction | None
    """Frames a second by the header, a hint only."""
    claimed_duration_s: float | None
    """By the header, a hint only."""
    notes: tuple[str, ...]
    """What a user may want to know, one sentence each."""

    @property
    def display_size_px(self) -> tuple[int, int]:
        """(width, height) as a player shows it: square pixels, upright."""
        width = max(1, round(self.width_px * self.sample_aspect))
        return (self.height_px, width) if self.orientation.transpose else (width, self.height_px)


def probe_source(uri: str) -> SourceInfo:
    """Open a source, choose its video stream and decode its first frame.

    Raises:
        SourceNotFoundError: nothing is there.
        NotAVideoError: empty, or no demuxer knows it.
        NoVideoStreamError: audio only, attached pictures only, or a still picture.
        CorruptVideoError: a video stream is there, but no frame of it decodes.
        UnsupportedVideoError: absurd dimensions, or a codec that FFmpeg cannot decode.
    """
    with open_source(uri) as (container, stream):
        for packet in packets(uri, container, stream):
            try:
                frames = stream.codec_context.decode(packet)
            except av.error.FFmpegError:
                continue
            if frames:
                return describe(uri, container, stream, frames[0])
    raise nothing_decodes(uri, stream)


@contextlib.contextmanager
def open_source(uri: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a source and its best video stream, decoding with one thread.

    Raises:
        SourceError: a subclass, see `probe_source`.
    """
    size_bytes = storage.stat(uri).size_bytes
    if size_bytes == 0:
        raise NotAVideoError(uri, "is empty (0 bytes)", "Download or copy it again.")
    with storage.open_read(uri) as file:
        head = _read_head(uri, file)
        try:
            # max_pixels: FFmpeg decodes while it opens, before a size can be looked at here.
            options = {"protocol_whitelist": "none", "max_pixels": str(MAX_AREA_PX)}
            container = av.open(
                file, "r", buffer_size=_READ_BYTES, options=options, metadata_errors="replace"
            )
        except av.error.FFmpegError as exc:
            _fail_open(uri, head, exc)
        except OSError as exc:
            raise StorageError(uri, f"cannot be read ({exc})", "Try again.") from exc
        with container:
            stream = _choose_stream(uri, container)
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"max_pixels": str(MAX_AREA_PX)}
            for other in container.streams:
                if other.index != stream.index:
                    other.discard = Discard.all  # not even read, where the container has an index
            yield container, stream


def packets(uri: str, container: InputContainer, stream: VideoStream) -> Iterator[av.Packet | None]:
    """The stream's packets, then None to flush; a demuxer's error ends them, a store's error is raised."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except av.error.FFmpegError:
        yield None
        raise
    except OSError as exc:
        raise StorageError(uri, f"cannot be read to its end ({exc})", "Try again.") from exc
    yield None


def describe(uri: str, container: InputContainer, stream: VideoStream, frame: VideoFrame) -> SourceInfo:
    """SourceInfo from an open source and the first frame that decoded.

    Raises:
        UnsupportedVideoError: absurd dimensions.
    """
    check_size(uri, frame.width, frame.height)
    notes = []
    num_others = sum(1 for other in container.streams.video if not other.disposition & _PICTURE_ONLY) - 1
    if num_others > 0:
        notes.append(f"has {num_others + 1} video streams, number {stream.index} was used")
    orientation, oddity = read_orientation(frame)
    if orientation != UPRIGHT:
        notes.append(str(orientation))
    if oddity:
        notes.append(oddity)
    if int(frame.color_trc) in _HDR_TRANSFERS:
        notes.append("is HDR: its brightness curve was kept as it is, not mapped to SDR")
    return SourceInfo(
        uri=uri,
        container=container.format.name,
        codec=stream.codec_context.name,
        stream_index=stream.index,
        width_px=frame.width,
        height_px=frame.height,
        pixel_format=frame.format.name,
        sample_aspect=sane_aspect(stream.sample_aspect_ratio),
        orientation=orientation,
        interlaced=frame.interlaced_frame,
        time_base=frame.time_base or stream.time_base or Fraction(1, 1000),
        claimed_rate=_claimed_rate(stream),
        claimed_duration_s=_claimed_duration_s(container, stream),
        notes=tuple(notes),
    )


def check_size(uri: str, width_px: int, height_px: int) -> None:
    """Refuse dimensions that no real video has.

    Raises:
        UnsupportedVideoError: too large on a side or in area.
    """
    if max(width_px, height_px) > MAX_SIDE_PX or width_px * height_px > MAX_AREA_PX:
        raise UnsupportedVideoError(
            uri,
            f"its pictures are {width_px} x {height_px} pixels",
            f"At most {MAX_SIDE_PX} a side and {MAX_AREA_PX // 10**6} megapixels can be processed.",
        )


def sane_aspect(aspect: Fraction | None) -> Fraction:
    """The sample aspect ratio, or 1 when it is missing or beyond what any camera writes."""
    if not aspect or not Fraction(1, 8) <= aspect <= 8:
        return Fraction(1)
    return aspect


def read_orientation(frame: VideoFrame) -> tuple[Orientation, str]:
    """A frame's orientation from its display matrix, and a note when the matrix says more than that.

    The matrix maps a pixel (x, y) to (a x + c y, b x + d y); quarter turns and mirrorings have either
    a = d = 0 or b = c = 0.
    """
    data = next((bytes(item) for item in frame.side_data if item.type.name == "DISPLAYMATRIX"), None)
    if data is None or len(data) < 36:
        return UPRIGHT, ""
    a, b, _, c, d = struct.unpack("=9i", data[:36])[:5]
    if a == b == c == d == 0:
        return UPRIGHT, ""
    transpose = abs(a) + abs(d) < abs(b) + abs(c)
    x, y, off = (c, b, abs(a) + abs(d)) if transpose else (a, d, abs(b) + abs(c))
    oddity = ""
    if off > 0.02 * (abs(x) + abs(y)):
        angle = math.degrees(math.atan2(b, a))
        oddity = f"its rotation of {angle:.0f} degrees was taken to the nearest quarter turn"
    return Orientation(transpose=transpose, mirror_x=x < 0, mirror_y=y < 0), oddity


def nothing_decodes(uri: str, stream: VideoStream) -> SourceError:
    """The error for a video stream without one decodable frame."""
    return CorruptVideoError(
        uri,
        f"has a {stream.codec_context.name} video stream, but no frame of it decodes",
        "Download or copy it again.",
    )


def _choose_stream(uri: str, container: InputContainer) -> VideoStream:
    """FFmpeg's own order: moving before still, default before others, then the largest picture."""
    name = container.format.name
    if name in _TEXT_FORMATS:
        raise NotAVideoError(uri, f"is a text or playlist file ({name})", "List the video files themselves.")
    if name.endswith("_pipe") or name in _STILL_FORMATS:
        raise NoVideoStreamError(uri, f"is a still picture ({name})", "Remove it from the folder.")
    moving = [stream for stream in container.streams.video if not stream.disposition & _PICTURE_ONLY]
    if not moving:
        kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
        pictures = " (only an attached picture)" if container.streams.video else ""
        raise NoVideoStreamError(
            uri, f"holds {' and '.join(kinds)}, but no video stream{pictures}", "Remove it from the folder."
        )
    known = [stream for stream in moving if getattr(stream, "codec_context", None)]
    if not known:
        raise UnsupportedVideoError(
            uri, "its video codec is unknown to FFmpeg", "Convert it with the tool that made it."
        )
    stream = max(known, key=_preference)
    check_size(uri, stream.width, stream.height)
    return stream


def _preference(stream: VideoStream) -> tuple[bool, bool, int, int]:
    disposition = stream.disposition
    return (
        not disposition & _SECONDARY,
        bool(disposition & Disposition.default),
        stream.width * stream.height,
        -stream.index,
    )


def _claimed_rate(stream: VideoStream) -> Fraction | None:
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate and Fraction(1, 60) <= rate <= 1000:
            return rate
    return None


def _claimed_duration_s(container: InputContainer, stream: VideoStream) -> float | None:
    if not container.format.name.startswith(_HEADER_CLAIMS_DURATION):
        return None
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    # Matroska and FLV count from 0, not from the first picture.
    start_s = float((stream.start_time or 0) * (stream.time_base or 0))
    with contextlib.suppress(KeyError, ValueError):  # Matroska's per-track tag: 00:01:02.345000000
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds) - start_s
    if container.duration and len(container.streams) == 1:
        return container.duration / 1e6 - start_s
    return None


def _read_head(uri: str, file: IO[bytes]) -> bytes:
    try:
        head = file.read(16)
        file.seek(0)
    except OSError as exc:
        raise StorageError(uri, f"cannot be read ({exc})", "Try again.") from exc
    return head


def _fail_open(uri: str, head: bytes, exc: av.error.FFmpegError) -> NoReturn:
    """Every error of av.open, as what it means for the source."""
    reason = exc.strerror or type(exc).__name__
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        raise CorruptVideoError(
            uri,
            f"is an MP4 or QuickTime file whose index (moov) is missing or broken ({reason})",
            "The recording or the download was cut off: fetch it again, or repair it.",
        ) from exc
    if head[:4] == b"\x1aE\xdf\xa3":
        raise CorruptVideoError(
            uri, f"is a Matroska or WebM file whose header is broken ({reason})", "Download or copy it again."
        ) from exc
    raise NotAVideoError(
        uri,
        f"is not a video that FFmpeg can read ({reason})",
        "Remove it from the folder, or download it again.",
    ) from exc
