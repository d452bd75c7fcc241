"""A fixed-GOP file -> its frames, each with the motion that the codec coded.

One pass over the packets with one decoder thread. FFmpeg exports the vectors (`export_mvs`); packet sizes are
matched by pts; for MPEG-4 part 2 the rounding control is read from each VOP header, because FFmpeg does not
export it. The file is checked on the way: I- and P-frames only, 4:2:0, a size in multiples of 16.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import PictureType

from cope_prep.pipeline import storage
from cope_prep.pipeline.bits import VopParser
from cope_prep.pipeline.container import MAX_AREA_PX, open_container, open_container_at
from cope_prep.pipeline.kernels.vectors import CELL_PX, scatter_vectors
from cope_prep.pipeline.source import MAX_SIDE_PX
from cope_prep.schemas.errors import BitstreamError
from cope_prep.schemas.records import MotionField

_B_FRAME = int(PictureType.B)
_HEAD_BYTES = 64
"""Of an MPEG-4 packet, kept for its VOP header; P-VOPs begin with it."""
_DECODER_OPTIONS = {"max_pixels": str(MAX_AREA_PX)}
"""A stream may say another size than its container, and midway."""
_NO_VECTORS = np.zeros((0, 10), np.int32)
_REMEDY = "Delete it and run cope-prep reencode again."


@dataclass(slots=True, kw_only=True)
class DecodedFrame:
    """One frame of a fixed-GOP file. Its pixels and header bits are read only when asked for."""

    index: int
    """Position in the file, from 0."""
    is_keyframe: bool
    codec: Literal["h264", "mpeg4"]
    packet_bytes: int
    frame: av.VideoFrame = field(repr=False)
    vop_parser: VopParser | None = field(repr=False)
    packet_head: bytes = field(repr=False)

    def vectors(self) -> np.ndarray:
        """int32 [num_vectors, 10]: FFmpeg's AVMotionVector records; none in an I-frame."""
        # Not `frame.side_data`: that keeps the container in the frame and the frame in the container, and frames
        # then wait for the cycle collector (measured: 8 % of the time and hundreds of MiB of pictures).
        side_data = SideDataContainer(self.frame).get(  # pyright: ignore[reportCallIssue] - not in the stub
            "MOTION_VECTORS"
        )
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

    @property
    def rounding(self) -> int:
        """MPEG-4 rounding control (0 or 1); 0 for H.264."""
        return self.vop_parser.rounding(self.packet_head) if self.vop_parser else 0


class FrameReader:
    """Iterates over the frames of a fixed-GOP file, in order.

    Raises, while iterating:
        SourceNotFoundError: there is no such file.
        BitstreamError: it cannot be decoded, or holds something that an EncodeSpec never makes.
    """

    def __init__(
        self,
        video_uri: str,
        *,
        gop_size: int | None = None,
        frames_per_gop: int | None = None,
        first: int = 0,
        fps: int = 0,
    ) -> None:
        """With `gop_size`, the I-frames must be its multiples, and only `frames_per_gop` of each are decoded.

        With `first`, the index of an I-frame, and `fps`, the file is read from that frame on.
        """
        self._uri = video_uri
        self._gop_size = gop_size
        self._frames_per_gop = frames_per_gop
        self._first = first
        self._fps = fps
        self.num_frames = first
        """Frames seen so far, those left out included; all of the file's after the last one."""

    def __iter__(self) -> Iterator[DecodedFrame]:
        with contextlib.ExitStack() as stack:
            stream = open_stream(stack, self._uri)
            container = stream.container
            assert isinstance(container, InputContainer)
            codec = _check_stream(stream, self._uri)
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {**_DECODER_OPTIONS, "flags2": "+export_mvs"}
            vop_parser = VopParser(stream.codec_context.extradata or b"") if codec == "mpeg4" else None
            waiting: dict[int | None, tuple[int, int, bytes]] = {}
            begin = self._enter(container, stream) if self._first else None
            try:
                for packet in container.demux(stream):
                    if packet.size:
                        index = self.num_frames
                        if begin is not None and index == self._first and packet.pts != begin:
                            raise BitstreamError(self._uri, f"has no I-frame {index}", _REMEDY)
                        self.num_frames += 1
                        if self._gop_size and not self._takes(packet, index, self._gop_size):
                            continue
                        head = bytes(memoryview(packet)[:_HEAD_BYTES]) if vop_parser else b""
                        waiting[packet.pts] = (index, packet.size, head)
                    for frame in packet.decode():
                        # In order and without a gap: a frame that the decoder dropped would shift all motion.
                        if next(iter(waiting), None) != frame.pts:
                            raise BitstreamError(self._uri, "loses a frame in decoding", _REMEDY)
                        index, packet_bytes, head = waiting.pop(frame.pts)
                        if frame.pict_type == _B_FRAME:
                            raise BitstreamError(self._uri, f"holds a B-frame at {index}", _REMEDY)
                        if frame.is_corrupt:
                            raise BitstreamError(self._uri, f"is damaged at frame {index}", _REMEDY)
                        yield DecodedFrame(
                            index=index,
                            is_keyframe=bool(frame.key_frame),
                            codec=codec,
                            packet_bytes=packet_bytes,
                            frame=frame,
                            vop_parser=vop_parser,
                            packet_head=head,
                        )
            except av.error.FFmpegError as exc:
                found = f"does not decode near frame {self.num_frames - 1} ({exc.strerror})"
                raise BitstreamError(self._uri, found, _REMEDY) from exc
            if waiting:
                raise BitstreamError(self._uri, f"loses {len(waiting)} frames in decoding", _REMEDY)

    def _enter(self, container: InputContainer, stream: av.VideoStream) -> int:
        """Seek to the first frame that is wanted; its timestamp."""
        assert stream.time_base is not None
        begin = round(self._first / (self._fps * stream.time_base))
        try:
            container.seek(begin, stream=stream)
        except av.error.FFmpegError as exc:
            raise BitstreamError(self._uri, f"has no frame {self._first} ({exc.strerror})", _REMEDY) from exc
        return begin

    def _takes(self, packet: av.Packet, index: int, gop_size: int) -> bool:
        position = index % gop_size
        if packet.is_keyframe != (position == 0):
            raise BitstreamError(
                self._uri,
                f"frame {index} is {'an I' if packet.is_keyframe else 'a P'}-frame, but the GOP is {gop_size}",
                "Extract it with the EncodeSpec that it was made with, or re-encode it.",
            )
        return self._frames_per_gop is None or position < self._frames_per_gop


def read_frames(video_uri: str) -> Iterator[DecodedFrame]:
    """All frames of a fixed-GOP file; see FrameReader."""
    return iter(FrameReader(video_uri))


def read_pictures(video_uri: str, indices: Sequence[int], *, fps: int) -> np.ndarray:
    """Some frames of a fixed-GOP file, in ascending order: uint8 [num_indices, 3H/2, W], as picture_of.

    It is decoded from the I-frame before the first of them, not from the beginning.

    Raises:
        SourceNotFoundError: there is no such file.
        BitstreamError: it cannot be decoded, or has no such frames.
    """
    found: list[np.ndarray] = []
    with contextlib.ExitStack() as stack:
        stream = open_stream(stack, video_uri)
        container, time_base = stream.container, stream.time_base
        assert isinstance(container, InputContainer)
        _check_stream(stream, video_uri)
        if time_base is None:
            raise BitstreamError(video_uri, "says nothing of its time base", _REMEDY)
        stream.codec_context.thread_count = 1
        try:
            container.seek(int(indices[0] / (fps * time_base)), stream=stream)
            for frame in container.decode(stream):
                index = -1 if frame.pts is None else round(frame.pts * time_base * fps)
                if index == indices[len(found)]:
                    found.append(picture_of(frame))
                if len(found) == len(indices) or index > indices[len(found)]:
                    break
        except av.error.FFmpegError as exc:
            found_text = f"does not decode near frame {indices[0]} ({exc.strerror})"
            raise BitstreamError(video_uri, found_text, _REMEDY) from exc
    if len(found) < len(indices):
        raise BitstreamError(video_uri, f"has no frame {indices[len(found)]}", _REMEDY)
    return np.stack(found)


def picture_of(frame: av.VideoFrame, out: np.ndarray | None = None) -> np.ndarray:
    """A copy of the planes of a 4:2:0 frame, uint8 [3H/2, W]: Y above, U and V side by side below."""
    height, width = frame.height, frame.width
    half_h, half_w = height // 2, width // 2
    if out is None:
        out = np.empty((height + half_h, width), np.uint8)
    targets = (out[:height], out[height:, :half_w], out[height:, half_w:])
    for plane, target in zip(frame.planes, targets, strict=True):
        rows, cols = target.shape
        # numpy's stub knows the buffer protocol from Python 3.12 on.
        stored = np.frombuffer(  # pyright: ignore[reportCallIssue]
            plane,  # pyright: ignore[reportArgumentType]
            np.uint8,
            count=rows * plane.line_size,
        )
        target[:] = stored.reshape(rows, plane.line_size)[:, :cols]
    return out


def open_stream(stack: contextlib.ExitStack, video_uri: str) -> av.VideoStream:
    """The video stream of a file, local or remote; `stack` closes it.

    Raises:
        SourceNotFoundError: there is no such file.
        BitstreamError: it is not a video, or a pipe, a device or a folder.
    """
    try:
        if storage.is_local(video_uri):
            storage.stat(video_uri)
            if not os.path.isfile(storage.local_path(video_uri)):  # a pipe would hang
                raise BitstreamError(video_uri, "is not a file", _REMEDY)
            container = stack.enter_context(open_container_at(storage.local_path(video_uri)))
        else:
            file = stack.enter_context(storage.open_read(video_uri))
            container = stack.enter_context(open_container(file))
        stream = container.streams.video[0]
        stream.codec_context.options = _DECODER_OPTIONS
        return stream
    except (av.error.FFmpegError, IndexError) as exc:
        raise BitstreamError(video_uri, f"cannot be opened as video ({exc})", _REMEDY) from exc


def _check_stream(stream: av.VideoStream, video_uri: str) -> Literal["h264", "mpeg4"]:
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
    if max(context.width, context.height) > MAX_SIDE_PX or context.width * context.height > MAX_AREA_PX:
        raise BitstreamError(video_uri, f"is {context.width} x {context.height}, no size of a video", _REMEDY)
    return codec
