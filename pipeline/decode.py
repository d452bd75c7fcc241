"""A fixed-GOP file -> its frames, each with the motion that the codec coded.

One pass over the packets with one decoder thread. FFmpeg exports the vectors (`export_mvs`); packet sizes are
matched by pts; for MPEG-4 part 2 the rounding control is read from each VOP header, because FFmpeg does not
export it. The file is checked on the way: I- and P-frames only, 4:2:0, a size in multiples of 16.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import av
import av.error
import numpy as np
from av.video.frame import PictureType

from cope_prep.pipeline import storage
from cope_prep.pipeline.bits import VopParser
from cope_prep.pipeline.kernels.vectors import CELL_PX, scatter_vectors
from cope_prep.schemas.errors import BitstreamError
from cope_prep.schemas.records import MotionField

_NO_VECTORS = np.zeros((0, 10), np.int32)
_REMEDY = "Delete it and run cope-prep reencode again."


@dataclass(slots=True, kw_only=True)
class DecodedFrame:
    """One frame of a fixed-GOP file. Its pixels are read only when asked for."""

    index: int
    """Position in the file, from 0."""
    is_keyframe: bool
    codec: str
    """`h264` or `mpeg4`."""
    packet_bytes: int
    rounding: int
    """MPEG-4 rounding control (0 or 1); 0 for H.264."""
    frame: av.VideoFrame = field(repr=False)

    def vectors(self) -> np.ndarray:
        """int32 [num_vectors, 10]: FFmpeg's AVMotionVector records; none in an I-frame."""
        side_data = self.frame.side_data.get("MOTION_VECTORS")
        if side_data is None:
            return _NO_VECTORS
        return np.frombuffer(side_data, np.int32).reshape(-1, 10)

    def picture(self, out: np.ndarray | None = None) -> np.ndarray:
        """uint8 [3H/2, W], in `out` if given: Y above, U and V side by side below; full range, BT.601."""
        return picture_of(self.frame, out)

    def motion_field(self) -> MotionField:
        """The dense motion of this frame, relative to the frame before."""
        grid = (self.frame.height // CELL_PX, self.frame.width // CELL_PX)
        motion = np.empty((*grid, 2), np.int16)
        covered = np.empty(grid, np.uint8)
        scatter_vectors(self.vectors(), motion, covered)
        return MotionField(motion=motion, intra=covered == 0, coverage=float(covered.mean()))


def read_frames(video_uri: str) -> Iterator[DecodedFrame]:
    """The frames of a fixed-GOP file in order.

    Raises:
        SourceNotFoundError: there is no such file.
        BitstreamError: it cannot be decoded, or holds something that an EncodeSpec never makes.
    """
    with contextlib.ExitStack() as stack:
        if storage.is_local(video_uri):
            storage.stat(video_uri)
            opened = storage.local_path(video_uri)
        else:
            opened = stack.enter_context(storage.open_read(video_uri))
        try:
            container = stack.enter_context(av.open(opened, options={"protocol_whitelist": "file"}))
            stream = container.streams.video[0]
        except (av.error.FFmpegError, IndexError) as exc:
            raise BitstreamError(video_uri, f"cannot be opened as video ({exc})", _REMEDY) from exc
        codec = _check_stream(stream, video_uri)
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"flags2": "+export_mvs"}
        vop_parser = VopParser(stream.codec_context.extradata or b"") if codec == "mpeg4" else None
        packets: dict[int | None, tuple[int, int]] = {}
        index = 0
        try:
            for packet in container.demux(stream):
                if packet.size:
                    rounding = vop_parser.rounding(bytes(packet)) if vop_parser else 0
                    packets[packet.pts] = (packet.size, rounding)
                for frame in packet.decode():
                    packet_bytes, rounding = packets.pop(frame.pts, (0, 0))
                    if frame.pict_type == PictureType.B:
                        raise BitstreamError(video_uri, f"holds a B-frame at {index}", _REMEDY)
                    yield DecodedFrame(
                        index=index,
                        is_keyframe=bool(frame.key_frame),
                        codec=codec,
                        packet_bytes=packet_bytes,
                        rounding=rounding,
                        frame=frame,
                    )
                    index += 1
        except av.error.FFmpegError as exc:
            raise BitstreamError(video_uri, f"does not decode at frame {index} ({exc})", _REMEDY) from exc


def picture_of(frame: av.VideoFrame, out: np.ndarray | None = None) -> np.ndarray:
    """A copy of the planes of a 4:2:0 frame, uint8 [3H/2, W]: Y above, U and V side by side below."""
    height, width = frame.height, frame.width
    half_h, half_w = height // 2, width // 2
    if out is None:
        out = np.empty((height + half_h, width), np.uint8)
    targets = (out[:height], out[height:, :half_w], out[height:, half_w:])
    for plane, target in zip(frame.planes, targets, strict=True):
        rows, cols = target.shape
        stored = np.frombuffer(plane, np.uint8, count=rows * plane.line_size)
        target[:] = stored.reshape(rows, plane.line_size)[:, :cols]
    return out


def _check_stream(stream: av.VideoStream, video_uri: str) -> str:
    context = stream.codec_context
    codec = context.name
    if codec not in ("h264", "mpeg4"):
        raise BitstreamError(video_uri, f"is {codec}, expected h264 or mpeg4", _REMEDY)
    if context.pix_fmt not in ("yuv420p", "yuvj420p"):
        raise BitstreamError(video_uri, f"is {context.pix_fmt}, expected 4:2:0", _REMEDY)
    if not context.width or context.width % 16 or context.height % 16:
        raise BitstreamError(
            video_uri, f"is {context.width} x {context.height}, expected multiples of 16", _REMEDY
        )
    return codec
