"""Source video -> fixed-GOP file: constant frame rate, I-frames at every multiple of the GOP, P elsewhere.

    open -> decode -> [deinterlace] -> resample by presentation time -> convert -> encode -> publish

A decoded picture is converted only if an output frame shows it, and encoded as often as it is shown. All
times are exact rationals. One thread decodes and one encodes, so that the same source and spec give the
same bytes; many videos run side by side instead. What is damaged is skipped and said: a source of which
anything decodes gives a file and the status `partial`, one of which nothing does raises.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import av.error
from av.video.frame import VideoFrame

from cope_prep.pipeline import storage
from cope_prep.pipeline.encode import Encoder
from cope_prep.pipeline.picture import Converter, Deinterlacer, output_size, picture_key, plan_geometry
from cope_prep.pipeline.probe import SourceInfo, describe, sane_aspect
from cope_prep.pipeline.resample import MAX_GAP_S, Clock, Resampler
from cope_prep.pipeline.source import Source, check_size, open_source
from cope_prep.schemas.errors import CorruptVideoError, UnsupportedVideoError
from cope_prep.schemas.specs import EncodeSpec


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


def reencode_video(source_uri: str, out_uri: str, *, spec: EncodeSpec) -> ReencodeReport:
    """Re-encode one source as `spec` says and publish it at `out_uri`.

    Raises:
        SourceError: a subclass says why not one frame could be had; nothing is published.
        StorageError: the store failed while reading or writing.
    """
    wall_start, cpu_start = time.perf_counter(), time.process_time()
    stat = storage.stat(source_uri)
    with storage.publish(out_uri) as path:
        with open_source(source_uri) as source:
            transcoder = _Transcoder(source, spec=spec)
            num_frames = transcoder.run(path)
        output_bytes = storage.stat(path).size_bytes
        output_crc32c = storage.crc32c(path)
    damage = transcoder.damage()
    return ReencodeReport(
        status="partial" if damage else "ok",
        num_frames=num_frames,
        num_gops=-(-num_frames // spec.gop_size),
        duration_s=num_frames / spec.fps,
        output_bytes=output_bytes,
        output_crc32c=output_crc32c,
        source_size_bytes=stat.size_bytes,
        source_version=stat.version,
        source_sha256=_sha256(source_uri),
        notes=(*transcoder.notes, *damage),
        error_class=CorruptVideoError.__name__ if damage else "",
        error_message=f"{source_uri}: {'; '.join(damage)}. What decodes was kept." if damage else "",
        wall_s=time.perf_counter() - wall_start,
        cpu_s=time.process_time() - cpu_start,
    )


class _Transcoder:
    """One source on its way: the loop, and the count of everything that was not as it should be."""

    def __init__(self, source: Source, *, spec: EncodeSpec) -> None:
        self._source = source
        self._spec = spec
        self.notes: list[str] = []
        self._num_bad_packets = 0
        self._num_bad_frames = 0
        self._decoded_s = Fraction(0)
        self._converter: Converter | None = None
        self._converter_key: tuple[int, int, str, int, int] | None = None
        self._info: SourceInfo
        self._clock: Clock

    def run(self, path: str) -> int:
        """Write the re-encoded file; returns its number of frames."""
        frames = self._decoded()
        first = next(frames, None)
        if first is None:
            raise self._source.nothing_decodes()
        self._info = describe(self._source, first)
        self.notes += self._info.notes
        size_px = output_size(self._spec, self._info.display_size_px)
        time_base = self._info.time_base
        if time_base > MAX_GAP_S:
            raise UnsupportedVideoError(
                self._source.uri,
                f"its clock ticks once in {float(time_base):.0f} s, so that no picture has a time",
                "Its header is damaged: repair it, or download it again.",
            )
        rate = self._info.claimed_rate or Fraction(self._spec.fps)
        claimed_s = Fraction(self._info.claimed_duration_s or 0)
        self._clock = Clock(
            time_base=time_base,
            nominal_ticks=max(1, round(1 / (rate * time_base))),
            claimed_ticks=math.ceil(claimed_s / time_base),
        )

        resampler: Resampler | None = None
        shown: VideoFrame | None = None
        with Encoder(path, spec=self._spec, size_px=size_px) as encoder:
            for frame, ticks in self._timed(first, frames):
                if resampler is None:
                    resampler = Resampler(time_base=time_base, fps=self._spec.fps, start=self._clock.start)
                fill = resampler.fill_until(ticks)
                if frame is None and resampler.num_emitted == 0:  # a single picture of almost no duration
                    fill = resampler.fill_at_least(1)
                if shown is not None and fill:
                    encoder.write(self._convert(shown, size_px), fill)
                shown = frame
                self._decoded_s = ticks * time_base
        assert resampler is not None
        return resampler.num_emitted

    def damage(self) -> tuple[str, ...]:
        """What makes the result partial, one clause each; empty when the source was whole."""
        found = []
        if self._source.read_error:
            found.append(f"reading stopped early ({self._source.read_error})")
        if self._num_bad_packets:
            found.append(f"{_count(self._num_bad_packets, 'corrupt packet')} skipped")
        if self._num_bad_frames:
            found.append(f"{_count(self._num_bad_frames, 'frame')} damaged")
        claimed_s = self._info.claimed_duration_s or 0.0
        if self._clock.num_jumps:
            jumps = _count(self._clock.num_jumps, "jump")
            found.append(f"{jumps} of the timestamps (back, or far ahead) closed up")
        elif claimed_s - self._decoded_s > max(1.0, 0.02 * claimed_s):
            found.append(
                f"the header promises {claimed_s:.1f} s, {float(self._decoded_s):.1f} s decode:"
                " truncated, or a wrong header"
            )
        return tuple(found)

    def _decoded(self) -> Iterator[VideoFrame]:
        """Every picture that decodes, in presentation order."""
        decode = self._source.stream.codec_context.decode
        for packet in self._source.packets():
            try:
                frames = decode(packet)
            except av.error.FFmpegError:
                self._num_bad_packets += 1
                continue
            for frame in frames:
                self._num_bad_frames += frame.is_corrupt
                yield frame

    def _timed(
        self, first: VideoFrame, rest: Iterator[VideoFrame]
    ) -> Iterator[tuple[VideoFrame | None, int]]:
        """(picture, ticks at which it begins), progressive; at last (None, ticks at which the video ends)."""
        clock = self._clock
        # AVI stores no presentation times; what FFmpeg makes up for H.264 with B-frames there is wrong.
        dts_only = self._info.container == "avi" and first.dts is not None
        deinterlacer: Deinterlacer | None = None
        deinterlacer_key = None
        frame: VideoFrame | None = first
        duration = 0
        ticks = 0
        while frame is not None:
            ticks = clock.tick(None if dts_only else frame.pts, frame.dts)
            duration = frame.duration
            if deinterlacer and picture_key(frame) != deinterlacer_key:
                yield from deinterlacer.push(None)
                deinterlacer = None
            if deinterlacer is None and frame.interlaced_frame:
                deinterlacer, deinterlacer_key = self._deinterlacer(frame), picture_key(frame)
            if deinterlacer:
                frame.pts = ticks
                yield from deinterlacer.push(frame)
            else:
                yield frame, ticks
            frame = next(rest, None)
        if deinterlacer:
            yield from deinterlacer.push(None)
        yield None, ticks + clock.last_ticks(duration)

    def _deinterlacer(self, frame: VideoFrame) -> Deinterlacer:
        note = "interlaced frames were deinterlaced"
        if note not in self.notes:
            self.notes.append(note)
        return Deinterlacer(frame, time_base=self._clock.time_base)

    def _convert(self, frame: VideoFrame, size_px: tuple[int, int]) -> VideoFrame:
        try:
            key = picture_key(frame)
            if self._converter is None or key != self._converter_key:
                self._converter, self._converter_key = self._make_converter(frame, size_px), key
            return self._converter.convert(frame)
        except av.error.FFmpegError as exc:
            raise UnsupportedVideoError(
                self._source.uri,
                f"its {frame.format.name} pictures of {frame.width} x {frame.height} cannot be converted"
                f" ({exc.strerror or exc})",
                "Convert it with another tool first.",
            ) from exc

    def _make_converter(self, frame: VideoFrame, size_px: tuple[int, int]) -> Converter:
        check_size(self._source.uri, frame.width, frame.height)
        size = (frame.width, frame.height)
        if size != (self._info.width_px, self._info.height_px):
            note = f"the picture size changes midway, to {frame.width} x {frame.height}"
            if note not in self.notes:
                self.notes.append(note)
        geometry = plan_geometry(
            size,
            sample_aspect=sane_aspect(self._source.stream.sample_aspect_ratio),
            orientation=self._info.orientation,
            fit=self._spec.fit,
            output_px=size_px,
        )
        return Converter(frame, geometry=geometry, orientation=self._info.orientation)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _sha256(uri: str) -> str:
    with storage.open_read(uri) as file:
        digest = hashlib.file_digest(file, "sha256")  # pyright: ignore[reportArgumentType] - IO lacks readinto
        return digest.hexdigest()
