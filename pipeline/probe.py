"""Is this file usable, and what is in it: its first picture, and what its header says.

Nothing that a header says is believed for more than a hint. Size, rotation and pixel format come from the
first picture that decodes; duration and frame rate are the header's claims, and named so.
"""

from __future__ import annotations

import contextlib
import math
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import av.error
from av.container import InputContainer
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from cope_prep.pipeline.source import Source, check_size, open_source

_HDR_TRANSFERS = (16, 18)  # AVCOL_TRC_SMPTE2084 (PQ) and ARIB_STD_B67 (HLG)

_HEADER_CLAIMS_DURATION = ("mov", "matroska", "avi", "flv", "asf")
# Elsewhere FFmpeg estimates a duration from the bit rate, which is no claim of the file's.
_LONGEST_CLAIM_S = 1e9
"""30 years: more is no duration."""


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
    """By the header, a hint only; positive and below 1e9, or None."""
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
    with open_source(uri) as source:
        for packet in source.packets():
            try:
                frames = source.stream.codec_context.decode(packet)
            except MemoryError:
                raise
            except av.error.FFmpegError:
                continue
            if frames:
                return describe(source, frames[0])
        raise source.nothing_decodes()


def describe(source: Source, frame: VideoFrame) -> SourceInfo:
    """SourceInfo from an open source and the first frame that decoded.

    Raises:
        UnsupportedVideoError: absurd dimensions.
    """
    container, stream = source.container, source.stream
    check_size(source.uri, frame.width, frame.height)
    notes = []
    if source.num_video_streams > 1:
        notes.append(f"has {source.num_video_streams} video streams, number {stream.index} was used")
    orientation, oddity = read_orientation(frame)
    if orientation != UPRIGHT:
        notes.append(str(orientation))
    if oddity:
        notes.append(oddity)
    if int(frame.color_trc) in _HDR_TRANSFERS:
        notes.append("is HDR: its brightness curve was kept as it is, not mapped to SDR")
    return SourceInfo(
        uri=source.uri,
        container=container.format.name,
        codec=stream.codec_context.codec.canonical_name,  # av1, not the decoder libdav1d
        stream_index=stream.index,
        width_px=frame.width,
        height_px=frame.height,
        pixel_format=frame.format.name,
        sample_aspect=sane_aspect(stream.sample_aspect_ratio),
        orientation=orientation,
        interlaced=frame.interlaced_frame,
        time_base=stream.time_base or Fraction(1, 1000),
        claimed_rate=_claimed_rate(stream),
        claimed_duration_s=_claimed_duration_s(container, stream),
        notes=tuple(notes),
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
    side_data = cast(SideDataContainer, frame.side_data)  # the stub says TypedDict
    data = next((bytes(item) for item in side_data if item.type.name == "DISPLAYMATRIX"), None)
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


def _claimed_rate(stream: VideoStream) -> Fraction | None:
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate and Fraction(1, 60) <= rate <= 1000:
            return rate
    return None


def _claimed_duration_s(container: InputContainer, stream: VideoStream) -> float | None:
    claimed_s = _header_duration_s(container, stream)
    return claimed_s if claimed_s is not None and 0 < claimed_s < _LONGEST_CLAIM_S else None


def _header_duration_s(container: InputContainer, stream: VideoStream) -> float | None:
    """What the header says, be it infinite, negative or no number at all."""
    if not container.format.name.startswith(_HEADER_CLAIMS_DURATION):
        return None
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    # Matroska and FLV count from 0, not from the first picture.
    start_s = float((stream.start_time or 0) * (stream.time_base or 0))
    # Matroska's per-track tag: 00:01:02.345000000
    with contextlib.suppress(KeyError, ValueError, OverflowError):
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds) - start_s
    if container.duration and len(container.streams) == 1:
        return container.duration / 1e6 - start_s
    return None
