"""Open a source for reading, whatever it is and wherever it is, and choose its video stream.

A source is read through a Python file object, local or remote, and FFmpeg may open nothing else
(container.py). Every error on the way says what it means for the source; only a store that fails is not the
source's fault.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import av
import av.error
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from cope_prep.pipeline import storage
from cope_prep.pipeline.container import MAX_AREA_PX, is_sound, is_text, open_container, still_picture
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

_READ_BYTES = 1 << 20
# Fewer calls into Python: PyAV's default is 32 KiB.

_PICTURE_ONLY = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
_SECONDARY = Disposition.dependent | Disposition.descriptions


@dataclass(slots=True, kw_only=True)
class Source:
    """An open source and the stream that is used of it."""

    uri: str
    container: InputContainer
    stream: VideoStream
    num_video_streams: int
    """Attached pictures not counted."""
    reader: _Reader
    read_error: str = ""
    """Why the demuxer stopped before the end of the file; empty if it did not."""

    def packets(self) -> Iterator[av.Packet | None]:
        """The stream's packets, then None to flush the decoder.

        Raises:
            StorageError: the store failed midway; what was read is not all there is.
        """
        try:
            for packet in self.container.demux(self.stream):
                if packet.size:
                    yield packet
        except MemoryError:
            raise
        except av.error.FFmpegError as exc:
            self.read_error = exc.strerror or type(exc).__name__
        except IndexError:
            # All is read, but PyAV cannot flush a stream that it did not know at the start.
            pass
        self.reader.check(self.uri)
        yield None

    def nothing_decodes(self) -> SourceError:
        """The error for a video stream without one decodable frame."""
        return CorruptVideoError(
            self.uri,
            f"has a {self.stream.codec_context.name} video stream, but no frame of it decodes",
            "Download or copy it again.",
        )


class _Reader:
    """What PyAV reads from. It raises nothing: PyAV prints exceptions that FFmpeg chooses to survive."""

    def __init__(self, file: IO[bytes], *, name: str, size_bytes: int) -> None:
        self._file = file
        self._size_bytes = size_bytes
        self.name = name  # FFmpeg looks at the extension where the content is ambiguous
        self._error: OSError | StorageError | None = None

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except (OSError, StorageError) as exc:
            self._error = exc
            return b""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET and not 0 <= offset <= self._size_bytes:
            return -1  # where a damaged header points
        try:
            return self._file.seek(offset, whence)
        except (OSError, StorageError) as exc:
            self._error = exc
            return -1

    def tell(self) -> int:
        return self._file.tell()

    def check(self, uri: str) -> None:
        """Raise StorageError if the store ever failed."""
        if isinstance(self._error, StorageError):
            raise self._error
        if self._error is not None:
            raise StorageError(uri, f"cannot be read ({self._error})", "Try again.") from self._error


@contextlib.contextmanager
def open_source(uri: str) -> Iterator[Source]:
    """Open a source and its best video stream, decoding with one thread.

    Raises:
        SourceError: a subclass, see `probe_source`.
        StorageError: the store failed.
    """
    size_bytes = storage.stat(uri).size_bytes
    if storage.is_local(uri) and not os.path.isfile(storage.local_path(uri)):
        raise NotAVideoError(uri, "is not a file", "A pipe, a device or a folder has taken its place.")
    if size_bytes == 0:
        raise NotAVideoError(uri, "is empty (0 bytes)", "Download or copy it again.")
    with storage.open_read(uri) as file:
        reader = _Reader(file, name=posixpath.basename(uri), size_bytes=size_bytes)
        head = reader.read(16)
        reader.seek(0)
        reader.check(uri)
        try:
            container = open_container(reader, buffer_size=_READ_BYTES, metadata_errors="replace")
        except av.error.FFmpegError as exc:
            reader.check(uri)
            raise _unreadable(uri, head, exc) from exc
        with container:
            reader.check(uri)
            streams = _moving_streams(uri, container)
            stream = max(streams, key=_preference)
            check_size(uri, stream.width, stream.height)
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"max_pixels": str(MAX_AREA_PX)}
            for other in container.streams:
                if other.index != stream.index:
                    other.discard = Discard.all  # not even read, where the container has an index
            yield Source(
                uri=uri, container=container, stream=stream, num_video_streams=len(streams), reader=reader
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


def _moving_streams(uri: str, container: InputContainer) -> list[VideoStream]:
    """The video streams that FFmpeg can decode and that are more than a picture."""
    moving = [stream for stream in container.streams.video if not stream.disposition & _PICTURE_ONLY]
    if not moving:
        kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
        pictures = " (only an attached picture)" if container.streams.video else ""
        raise NoVideoStreamError(
            uri, f"holds {' and '.join(kinds)}, but no video stream{pictures}", "Remove it from the folder."
        )
    known = [stream for stream in moving if stream.codec_context is not None]
    if not known:
        raise UnsupportedVideoError(
            uri, "its video codec is unknown to FFmpeg", "Convert it with the tool that made it."
        )
    return known


def _preference(stream: VideoStream) -> tuple[bool, bool, int, int]:
    """Larger is better: default before others, then the largest picture, then the first."""
    disposition = stream.disposition
    return (
        not disposition & _SECONDARY,
        bool(disposition & Disposition.default),
        stream.width * stream.height,
        -stream.index,
    )


def _unreadable(uri: str, head: bytes, exc: av.error.FFmpegError) -> SourceError:
    """What an error of av.open means for the source."""
    reason = exc.strerror or type(exc).__name__
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return CorruptVideoError(
            uri,
            f"is an MP4 or QuickTime file whose index (moov) is missing or broken ({reason})",
            "The recording or the download was cut off: fetch it again, or repair it.",
        )
    if head[:4] == b"\x1aE\xdf\xa3":
        return CorruptVideoError(
            uri, f"is a Matroska or WebM file whose header is broken ({reason})", "Download or copy it again."
        )
    if picture := still_picture(head):
        return NoVideoStreamError(uri, f"is a still picture ({picture})", "Remove it from the folder.")
    if is_sound(head):
        return NoVideoStreamError(uri, "holds audio, but no video stream", "Remove it from the folder.")
    if is_text(head):
        return NotAVideoError(uri, "is a text or playlist file", "List the video files themselves.")
    if isinstance(exc, av.error.ArgumentError):  # what FFmpeg says of a format that is not on the list
        return NotAVideoError(
            uri, "is not a video in a container that is read here", "docs/security.md lists them: convert it."
        )
    return NotAVideoError(
        uri,
        f"is not a video that FFmpeg can read ({reason})",
        "Remove it from the folder, or download it again.",
    )
