"""Converted pictures -> MP4 with I at every multiple of the GOP and P elsewhere, constant quality.

H.264 (x264) is restricted to what the compensation kernel reproduces bit for bit: one reference, no weighted
prediction, no deblocking, no partition below 8 x 8. These go through x264-params, which x264 applies after
the preset, so they hold whatever the preset is. MPEG-4 part 2 is FFmpeg's own encoder at a constant
quantizer.

The bytes depend on the pictures and the spec only: one thread, a fixed lookahead, nothing that x264 does in
another way on another CPU (docs/decisions/0017), no dates in the file. An encoder carries state from GOP to GOP
(rate control, lookahead), so a new one begins at every *segment*, the fewest GOPs that last a minute. A
segment's packets thus depend on its own pictures alone, and a long video can be encoded in parts, segment by
segment, on several machines (docs/decisions/0016):

    pictures ──SegmentEncoder──> packets ──Muxer──> MP4
    pictures ──SegmentEncoder──> packets ──PacketFile──> part file ──read_packets──> Muxer ──> the same MP4
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from types import TracebackType
from typing import IO, Protocol, Self, cast

import av
import av.error
import google_crc32c
from av.codec.context import Flags
from av.container import OutputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from cope_prep.schemas.errors import StorageError
from cope_prep.schemas.specs import EncodeSpec

MIN_SEGMENT_S = 60
_LAMBDA_PER_QSCALE = 118  # FF_QP2LAMBDA
_COLOR_RANGE_FULL = 2  # AVCOL_RANGE_JPEG
_MATRIX_BT601 = 6  # AVCOL_SPC_SMPTE170M
_LENGTH = struct.Struct(">I")


def segment_frames(spec: EncodeSpec) -> int:
    """Frames of a segment: the fewest whole GOPs that last MIN_SEGMENT_S."""
    return -(-MIN_SEGMENT_S * spec.fps // spec.gop_size) * spec.gop_size


class PacketSink(Protocol):
    """What takes the encoded packets, in order."""

    def add(self, packet: bytes) -> None:
        """Take the next frame's packet."""
        ...


class SegmentEncoder:
    """Encodes consecutive frames of a video, with a new encoder at every segment's start.

    A context manager that flushes at its end. `first` is the index of the first frame to come, the start of a
    segment.
    """

    def __init__(
        self, sink: PacketSink, *, spec: EncodeSpec, size_px: tuple[int, int], first: int = 0
    ) -> None:
        self._sink = sink
        self._spec = spec
        self._size_px = size_px
        self._segment = segment_frames(spec)
        self._time_base = Fraction(1, spec.fps)
        self._encoder: VideoCodecContext | None = None
        self._next = first
        """Index of the frame whose packet the sink gets next."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._flush()

    def write(self, picture: VideoFrame, frames: range) -> None:
        """Encode a picture once for each of the frame indices given."""
        picture.time_base = self._time_base
        for index in frames:
            if index % self._segment == 0:
                self._flush()
            if self._encoder is None:
                self._encoder = _open_encoder(self._spec, self._size_px)
            picture.pts = index
            self._encode(picture)

    def _flush(self) -> None:
        if self._encoder is not None:
            self._encode(None)
            self._encoder = None

    def _encode(self, picture: VideoFrame | None) -> None:
        assert self._encoder is not None
        for packet in self._encoder.encode(picture):
            assert packet.pts == self._next
            assert packet.is_keyframe == (self._next % self._spec.gop_size == 0)
            self._sink.add(bytes(packet))
            self._next += 1


class Muxer:
    """Writes one MP4 file; packet k is shown at k / fps seconds. A context manager that ends the file."""

    def __init__(self, path: str, *, spec: EncodeSpec, size_px: tuple[int, int]) -> None:
        self._path = path
        # write_colr: MPEG-4 part 2 streams as FFmpeg writes them cannot say full range; the container can.
        muxing = {"fflags": "+bitexact", "movflags": "+write_colr"}
        self._container = cast(OutputContainer, av.open(path, "w", format="mp4", options=muxing))
        # This stream's own encoder never encodes: it is opened for what it says in the file's header.
        name, options = _codec_options(spec)
        stream = cast(VideoStream, self._container.add_stream(name, rate=spec.fps, options=options))
        _configure(cast(VideoCodecContext, stream.codec_context), spec, size_px)
        self._stream = stream
        self._gop_size = spec.gop_size
        self._time_base = Fraction(1, spec.fps)
        self.num_frames = 0
        """Packets up to now."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._container.close()
        except av.error.FFmpegError as exc:
            if error is None:
                raise self._failed(exc) from exc

    def add(self, packet: bytes) -> None:
        """Write the next frame."""
        timed = av.Packet(packet)
        timed.stream = self._stream
        timed.time_base = self._time_base
        timed.pts = timed.dts = self.num_frames
        timed.duration = 1
        timed.is_keyframe = self.num_frames % self._gop_size == 0
        try:
            self._container.mux_one(timed)
        except av.error.FFmpegError as exc:
            raise self._failed(exc) from exc
        self.num_frames += 1

    def _failed(self, exc: av.error.FFmpegError) -> StorageError:
        return StorageError(
            self._path, f"cannot be written ({exc.strerror or exc})", "Is the disk full, or gone?"
        )


class PacketFile:
    """Writes a part file: the packets one after the other, each behind its length."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.num_packets = 0
        self.crc32c = 0
        """Of the packets up to now, one after the other."""

    def add(self, packet: bytes) -> None:
        """Write the next frame."""
        self.num_packets += 1
        self.crc32c = google_crc32c.extend(self.crc32c, packet)
        self._file.write(_LENGTH.pack(len(packet)))
        self._file.write(packet)


def read_packets(file: IO[bytes]) -> Iterator[bytes]:
    """The packets of a part file, as far as they are whole."""
    while len(head := file.read(_LENGTH.size)) == _LENGTH.size:
        (size,) = _LENGTH.unpack(head)
        packet = file.read(size)
        if len(packet) < size:
            return
        yield packet


def stream_header(spec: EncodeSpec, size_px: tuple[int, int]) -> bytes:
    """What the encoder puts before all packets of a file (H.264: the parameter sets; MPEG-4: the VOL header)."""
    return _open_encoder(spec, size_px).extradata or b""


def _open_encoder(spec: EncodeSpec, size_px: tuple[int, int]) -> VideoCodecContext:
    name, options = _codec_options(spec)
    context = cast(VideoCodecContext, av.CodecContext.create(name, "w"))
    context.options = options
    context.framerate = Fraction(spec.fps)
    context.time_base = Fraction(1, spec.fps)
    context.bit_rate = 0
    context.flags |= Flags.global_header
    _configure(context, spec, size_px)
    context.open()
    return context


def _configure(context: VideoCodecContext, spec: EncodeSpec, size_px: tuple[int, int]) -> None:
    context.width, context.height = size_px
    context.pix_fmt = "yuv420p"
    context.thread_count = 1
    context.gop_size = spec.gop_size
    context.max_b_frames = 0
    context.color_range = _COLOR_RANGE_FULL
    context.colorspace = _MATRIX_BT601


def _codec_options(spec: EncodeSpec) -> tuple[str, dict[str, str]]:
    """(FFmpeg's encoder, its options)."""
    if spec.codec == "mpeg4":
        quality = str(spec.quality)
        quality_lambda = str(_LAMBDA_PER_QSCALE * spec.quality)
        return "mpeg4", {
            # A rate control with one value to choose from. The flag `qscale` would take the quantizer from
            # each AVFrame, where PyAV has no way to put it, and leave lambda at 0.
            "qmin": quality,
            "qmax": quality,
            "lmin": quality_lambda,
            "lmax": quality_lambda,
            "sc_threshold": "1000000000",  # no I-frame at a scene change
            "flags": "+bitexact",
        }
    params = {
        "ref": 1,
        "weightp": 0,
        "bframes": 0,
        "no-deblock": 1,
        "partitions": "p8x8,i8x8,i4x4",
        "keyint": spec.gop_size,
        "min-keyint": spec.gop_size,
        "scenecut": 0,
        "open-gop": 0,
        "intra-refresh": 0,
        "threads": 1,
        "lookahead-threads": 1,
        "sliced-threads": 0,
        "sync-lookahead": 0,
        # Otherwise x264 decides by what the CPU offers, and its AVX-512 code reads past rows of blocks into
        # whatever lies there: other bytes for the same pictures (docs/decisions/0017).
        "cpu-independent": 1,
        "fullrange": "on",
        "colormatrix": "smpte170m",
    }
    return "libx264", {
        "crf": str(spec.quality),
        "preset": spec.preset,
        "x264-params": ":".join(f"{key}={value}" for key, value in params.items()),
    }
