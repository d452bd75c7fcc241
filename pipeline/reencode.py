"""Source video -> fixed-GOP file: constant frame rate, I-frames at every multiple of the GOP, P elsewhere.

    open -> decode -> [deinterlace] -> resample by presentation time -> convert -> encode -> publish

A decoded picture is converted only if an output frame shows it, and encoded as often as it is shown. All
times are exact rationals. One thread decodes and one encodes, so that the same source and spec give the
same bytes; many videos run side by side instead. What is damaged is skipped and said: a source of which
anything decodes gives a file and the status `partial`, one of which nothing does raises.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Literal

from cope_prep.pipeline import storage
from cope_prep.pipeline.probe import SourceInfo
from cope_prep.pipeline.redact import redacted
from cope_prep.pipeline.source import open_source
from cope_prep.pipeline.storage import FileStat
from cope_prep.pipeline.transcode import Transcoder
from cope_prep.schemas.errors import CorruptVideoError, StorageError
from cope_prep.schemas.specs import EncodeSpec

_LOOKS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ReencodeReport:
    """What one re-encoding did: most of a row of the ledger."""

    status: Literal["ok", "partial"]
    num_frames: int
    """Frames of the re-encoded file."""
    num_gops: int
    duration_s: float
    """Of the re-encoded file."""
    output_bytes: int
    output_crc32c: int
    source_size_bytes: int
    source_version: str
    source_sha256: str
    """Hash of the source file's bytes."""
    notes: tuple[str, ...]
    """What happened on the way, one sentence each."""
    error_class: str
    """When partial, the class of error that describes the damage; else empty."""
    error_message: str
    wall_s: float
    cpu_s: float
    source_codec: str
    """FFmpeg's name of it."""
    source_width_px: int
    """Of the first decoded picture, before it is turned."""
    source_height_px: int
    source_fps: float | None
    """By the header, as the duration; None if it does not say."""
    source_duration_s: float | None


def reencode_video(source_uri: str, out_uri: str, *, spec: EncodeSpec) -> ReencodeReport:
    """Re-encode one source as `spec` says and publish it at `out_uri`.

    Raises:
        SourceError: a subclass says why not one frame could be had; nothing is published.
        StorageError: the store failed while reading or writing, or the source was replaced meanwhile.
    """
    start = Stopwatch()
    stat = storage.stat(source_uri)
    with open_source(source_uri) as source:
        return reencode_opened(Transcoder(source, spec=spec), out_uri, spec=spec, stat=stat, start=start)


def reencode_opened(
    transcoder: Transcoder, out_uri: str, *, spec: EncodeSpec, stat: FileStat, start: Stopwatch
) -> ReencodeReport:
    """`reencode_video` from the first picture on. `stat` is of the source before it was opened."""
    source_uri = transcoder.info.uri
    with storage.publish(out_uri) as path:
        num_frames = transcoder.run(path)
        sha256 = source_sha256(source_uri)
        if not is_unchanged(source_uri, stat):  # the pictures may be of one file, the hash of another
            raise StorageError(source_uri, "was replaced while it was read", "Run again.")
        output_bytes = storage.stat(path).size_bytes
        output_crc32c = storage.crc32c(path)
    return report_of(
        transcoder.info,
        spec=spec,
        num_frames=num_frames,
        output_bytes=output_bytes,
        output_crc32c=output_crc32c,
        stat=stat,
        source_sha256=sha256,
        notes=transcoder.notes,
        damage=transcoder.damage(),
        start=start,
    )


class Stopwatch:
    """When some work began, by the wall and by this process's CPU time."""

    def __init__(self) -> None:
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    @property
    def wall_s(self) -> float:
        """Seconds since then."""
        return time.perf_counter() - self._wall_s

    @property
    def cpu_s(self) -> float:
        """CPU seconds since then."""
        return time.process_time() - self._cpu_s


def report_of(
    info: SourceInfo,
    *,
    spec: EncodeSpec,
    num_frames: int,
    output_bytes: int,
    output_crc32c: int,
    stat: FileStat,
    source_sha256: str,
    notes: tuple[str, ...],
    damage: tuple[str, ...],
    start: Stopwatch,
) -> ReencodeReport:
    """The report of a file that was made, in one piece or in several. No text of it holds credentials."""
    message = f"{info.uri}: {'; '.join(damage)}. What decodes was kept." if damage else ""
    return ReencodeReport(
        status="partial" if damage else "ok",
        num_frames=num_frames,
        num_gops=-(-num_frames // spec.gop_size),
        duration_s=num_frames / spec.fps,
        output_bytes=output_bytes,
        output_crc32c=output_crc32c,
        source_size_bytes=stat.size_bytes,
        source_version=stat.version,
        source_sha256=source_sha256,
        notes=tuple(redacted(note) for note in (*notes, *damage)),
        error_class=CorruptVideoError.__name__ if damage else "",
        error_message=redacted(message),
        wall_s=start.wall_s,
        cpu_s=start.cpu_s,
        source_codec=info.codec,
        source_width_px=info.width_px,
        source_height_px=info.height_px,
        source_fps=None if info.claimed_rate is None else float(info.claimed_rate),
        source_duration_s=info.claimed_duration_s,
    )


def is_unchanged(uri: str, stat: FileStat) -> bool:
    """True if the file at `uri` is still the one that `stat` is of.

    A web server of several machines may give another tag on each: it looks some times before it says no.

    Raises:
        SourceNotFoundError: there is no file any more.
        StorageError: the store could not answer.
    """
    return any(storage.stat(uri) == stat for _ in range(_LOOKS))


def source_sha256(uri: str) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with storage.open_read(uri) as file:
        digest = hashlib.file_digest(file, "sha256")  # pyright: ignore[reportArgumentType] - IO lacks readinto
        return digest.hexdigest()
