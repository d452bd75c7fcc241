"""The re-encoded file as something that a browser plays.

H.264 plays as it is. MPEG-4 part 2 does not, so its beginning becomes H.264, in memory. No more than MAX_PLAY_BYTES
of a file are loaded, for they all stay in the server's memory: of a longer one the packets up to there, as they
are. Whatever is not the whole file as it is says so in `note`.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import av
import av.error
from av.container import InputContainer, OutputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from cope_prep.pipeline import storage
from cope_prep.pipeline.decode import open_stream
from cope_prep.pipeline.layout import Layout
from cope_prep.schemas.errors import BitstreamError, CopePrepError, SourceNotFoundError, StorageError

MAX_PLAY_BYTES = 64 << 20
"""35 minutes of 384 x 384 at the default quality."""
PREVIEW_S = 30
"""Of an MPEG-4 part 2 file: some 900 frames, a second of work."""
_REMEDY = "Check it with cope-prep verify."
_MP4 = {"fflags": "+bitexact"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayableVideo:
    """An MP4 with H.264, for a <video> element."""

    content: bytes
    size_bytes: int
    """Of the re-encoded file, not of `content`."""
    note: str
    """What differs from the file; empty if nothing does."""


def playable_video(
    layout: Layout, video_key: str, *, max_bytes: int = MAX_PLAY_BYTES, preview_s: int = PREVIEW_S
) -> PlayableVideo | None:
    """The re-encoded video, or what can be played of it; None if the file is gone, or was never made.

    Raises:
        BitstreamError: the file is damaged.
        StorageError: the store could not answer.
    """
    uri = layout.reencoded(video_key)
    try:
        size_bytes = storage.stat(uri).size_bytes
        if layout.specs.encode.codec != "h264":
            content, num_frames, is_whole = _as_h264(uri, fps=layout.specs.encode.fps, max_s=preview_s)
            part = "" if is_whole else f", of its first {num_frames / layout.specs.encode.fps:g} s"
            note = f"The re-encoded file is MPEG-4 part 2, which browsers do not play. This is an H.264 copy{part}."
        elif size_bytes > max_bytes:
            content, num_frames = _beginning(uri, max_bytes=max_bytes)
            note = (
                f"The first {num_frames / layout.specs.encode.fps:.1f} s: the file has {size_bytes / 1e6:,.1f} MB,"
                f" and at most {max_bytes / 1e6:,.1f} MB are loaded."
            )
        else:
            content, note = storage.read_bytes(uri), ""
    except SourceNotFoundError:
        return None
    except CopePrepError:
        raise
    except av.error.FFmpegError as exc:
        raise BitstreamError(uri, f"cannot be made playable ({exc.strerror})", _REMEDY) from exc
    except Exception as exc:  # of the store: aiohttp's and botocore's are no OSErrors
        raise StorageError(uri, f"cannot be read ({exc})") from exc
    return PlayableVideo(content=content, size_bytes=size_bytes, note=note)


def _beginning(uri: str, *, max_bytes: int) -> tuple[bytes, int]:
    """The first packets of a file in a new MP4, and how many."""
    out = io.BytesIO()
    num_packets = num_bytes = 0
    with contextlib.ExitStack() as stack:
        source = open_stream(stack, uri)
        container = stack.enter_context(_mp4(out))
        stream = container.add_stream_from_template(source)
        for packet in cast(InputContainer, source.container).demux(source):
            num_bytes += packet.size
            if not packet.size or num_bytes > max_bytes:
                break
            packet.stream = stream
            container.mux_one(packet)
            num_packets += 1
    return out.getvalue(), num_packets


def _as_h264(uri: str, *, fps: int, max_s: int) -> tuple[bytes, int, bool]:
    """The first seconds of a file as H.264 in an MP4, how many frames, and whether these are all."""
    out = io.BytesIO()
    num_frames, is_whole = 0, True
    with contextlib.ExitStack() as stack:
        source = open_stream(stack, uri)
        container = stack.enter_context(_mp4(out))
        stream = cast(
            VideoStream,
            container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "18"}),
        )
        context = cast(VideoCodecContext, stream.codec_context)
        stream.width, stream.height = source.codec_context.width, source.codec_context.height
        stream.pix_fmt = "yuv420p"
        context.thread_count = 1
        context.color_range, context.colorspace = 2, 6  # full range, BT.601, as the file itself
        for frame in cast(InputContainer, source.container).decode(source):
            if num_frames == max_s * fps:
                is_whole = False
                break
            frame.pts, frame.time_base = num_frames, Fraction(1, fps)
            container.mux(stream.encode(frame))
            num_frames += 1
        container.mux(stream.encode(None))
    return out.getvalue(), num_frames, is_whole


def _mp4(out: io.BytesIO) -> OutputContainer:
    return cast(OutputContainer, av.open(out, "w", format="mp4", options=_MP4))
