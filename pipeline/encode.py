"""Converted pictures -> MP4 with I at every multiple of the GOP and P elsewhere, constant quality.

H.264 (x264) is restricted to what the compensation kernel reproduces bit for bit: one reference, no weighted
prediction, no deblocking, no partition below 8 x 8. These go through x264-params, which x264 applies after
the preset, so they hold whatever the preset is. MPEG-4 part 2 is FFmpeg's own encoder at a constant
quantizer.

The bytes depend on the pictures and the spec only: one thread, a fixed lookahead, no dates in the file.
"""

from __future__ import annotations

from fractions import Fraction
from types import TracebackType
from typing import Self, cast

import av
import av.error
from av.container import OutputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from cope_prep.schemas.errors import StorageError
from cope_prep.schemas.specs import EncodeSpec

_LAMBDA_PER_QSCALE = 118  # FF_QP2LAMBDA
_COLOR_RANGE_FULL = 2  # AVCOL_RANGE_JPEG
_MATRIX_BT601 = 6  # AVCOL_SPC_SMPTE170M


class Encoder:
    """Writes one file; frame k is shown at k / fps seconds. A context manager that flushes at its end."""

    def __init__(self, path: str, *, spec: EncodeSpec, size_px: tuple[int, int]) -> None:
        self._path = path
        name, options = _codec_options(spec)
        # write_colr: MPEG-4 part 2 streams as FFmpeg writes them cannot say full range; the container can.
        muxing = {"fflags": "+bitexact", "movflags": "+write_colr"}
        self._container = cast(OutputContainer, av.open(path, "w", format="mp4", options=muxing))
        stream = cast(VideoStream, self._container.add_stream(name, rate=spec.fps, options=options))
        stream.width, stream.height = size_px
        stream.pix_fmt = "yuv420p"
        context = cast(VideoCodecContext, stream.codec_context)
        context.thread_count = 1
        context.gop_size = spec.gop_size
        context.max_b_frames = 0
        context.color_range = _COLOR_RANGE_FULL
        context.colorspace = _MATRIX_BT601
        self._stream = stream
        self._time_base = Fraction(1, spec.fps)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._container.mux(self._stream.encode(None))
            self._container.close()
        except av.error.FFmpegError as exc:
            if error is None:
                raise self._failed(exc) from exc

    def write(self, picture: VideoFrame, frames: range) -> None:
        """Encode a picture once for each of the frame indices given."""
        picture.time_base = self._time_base
        try:
            for index in frames:
                picture.pts = index
                for packet in self._stream.encode(picture):
                    self._container.mux_one(packet)
        except av.error.FFmpegError as exc:
            raise self._failed(exc) from exc

    def _failed(self, exc: av.error.FFmpegError) -> StorageError:
        return StorageError(
            self._path, f"cannot be written ({exc.strerror or exc})", "Is the disk full, or gone?"
        )


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
        "fullrange": "on",
        "colormatrix": "smpte170m",
    }
    return "libx264", {
        "crf": str(spec.quality),
        "preset": spec.preset,
        "x264-params": ":".join(f"{key}={value}" for key, value in params.items()),
    }
