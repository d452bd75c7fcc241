"""One source video on its way: decoded pictures, timed, made progressive, fitted, and shown to an encoder.

Transcoder   the whole of a source, whatever its state: what is damaged is skipped, mended and said
Fitter       decoded pictures -> pictures as the encoder wants them; also used for a part of a source
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import av.error
from av.video.frame import VideoFrame

from cope_prep.pipeline.encode import Muxer, SegmentEncoder
from cope_prep.pipeline.picture import Converter, Deinterlacer, output_size, picture_key, plan_geometry
from cope_prep.pipeline.probe import SourceInfo, describe, sane_aspect
from cope_prep.pipeline.resample import MAX_GAP_S, Clock, Resampler
from cope_prep.pipeline.source import Source, check_size
from cope_prep.schemas.errors import UnsupportedVideoError
from cope_prep.schemas.specs import EncodeSpec


def is_cut_short(claimed_s: float | None, decoded_s: Fraction) -> bool:
    """True if much less decodes than the header promises."""
    claimed_s = claimed_s or 0.0
    return claimed_s - decoded_s > max(1.0, 0.02 * claimed_s)


def clock_of(info: SourceInfo, *, fps: int) -> Clock:
    """The clock of a source.

    Raises:
        UnsupportedVideoError: it ticks too slowly to tell any picture's time.
    """
    time_base = info.time_base
    if time_base > MAX_GAP_S:
        raise UnsupportedVideoError(
            info.uri,
            f"its clock ticks once in {float(time_base):.0f} s, so that no picture has a time",
            "Its header is damaged: repair it, or download it again.",
        )
    rate = info.claimed_rate or Fraction(fps)
    return Clock(
        time_base=time_base,
        nominal_ticks=max(1, round(1 / (rate * time_base))),
        claimed_ticks=math.ceil(Fraction(info.claimed_duration_s or 0) / time_base),
    )


class Fitter:
    """Pictures of one source as the encoder wants them."""

    def __init__(self, source: Source, info: SourceInfo, *, spec: EncodeSpec) -> None:
        self._source = source
        self._info = info
        self._spec = spec
        self.size_px = output_size(spec, info.display_size_px)
        """(width, height) of the re-encoded pictures."""
        self.notes: list[str] = []
        self._converter: Converter | None = None
        self._converter_key: tuple[int, int, str, int, int] | None = None

    def fit(self, frame: VideoFrame) -> VideoFrame:
        """Scaled, turned, padded, and converted to I420 in full range.

        Raises:
            UnsupportedVideoError: FFmpeg cannot convert it, or its size is beyond what is sane.
        """
        try:
            key = picture_key(frame)
            if self._converter is None or key != self._converter_key:
                self._converter, self._converter_key = self._make_converter(frame), key
            return self._converter.convert(frame)
        except av.error.FFmpegError as exc:
            raise UnsupportedVideoError(
                self._source.uri,
                f"its {frame.format.name} pictures of {frame.width} x {frame.height} cannot be converted"
                f" ({exc.strerror or exc})",
                "Convert it with another tool first.",
            ) from exc

    def _make_converter(self, frame: VideoFrame) -> Converter:
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
            output_px=self.size_px,
        )
        return Converter(frame, geometry=geometry, orientation=self._info.orientation)


class Transcoder:
    """A whole source: the loop, and the count of everything that was not as it should be."""

    def __init__(self, source: Source, *, spec: EncodeSpec) -> None:
        """Decode the first picture.

        Raises:
            SourceError: a subclass says why there is none.
        """
        self._source = source
        self._spec = spec
        self._num_bad_packets = 0
        self._num_bad_frames = 0
        self._decoded_s = Fraction(0)
        self._frames = self._decoded()
        first = next(self._frames, None)
        if first is None:
            raise source.nothing_decodes()
        self.first = first
        """The first picture, as decoded."""
        self.info = describe(source, first)
        self._fitter = Fitter(source, self.info, spec=spec)
        self._clock = clock_of(self.info, fps=spec.fps)
        self._notes = list(self.info.notes)

    @property
    def size_px(self) -> tuple[int, int]:
        """(width, height) of the re-encoded video."""
        return self._fitter.size_px

    @property
    def notes(self) -> tuple[str, ...]:
        """What happened on the way, one sentence each; damage not counted."""
        return (*self._notes, *self._fitter.notes)

    def run(self, path: str) -> int:
        """Write the re-encoded file; returns its number of frames."""
        size_px = self._fitter.size_px
        resampler: Resampler | None = None
        shown: VideoFrame | None = None
        with (
            Muxer(path, spec=self._spec, size_px=size_px) as muxer,
            SegmentEncoder(muxer, spec=self._spec, size_px=size_px) as encoder,
        ):
            for frame, ticks in self._timed():
                if resampler is None:
                    resampler = Resampler(
                        time_base=self.info.time_base, fps=self._spec.fps, start=self._clock.start
                    )
                fill = resampler.fill_until(ticks)
                if frame is None and resampler.num_emitted == 0:  # a single picture of almost no duration
                    fill = resampler.fill_at_least(1)
                if shown is not None and fill:
                    encoder.write(self._fitter.fit(shown), fill)
                shown = frame
                self._decoded_s = ticks * self.info.time_base
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
        if self._clock.num_jumps:
            jumps = _count(self._clock.num_jumps, "jump")
            found.append(f"{jumps} of the timestamps (back, or far ahead) closed up")
        elif is_cut_short(self.info.claimed_duration_s, self._decoded_s):
            found.append(
                f"the header promises {self.info.claimed_duration_s:.1f} s, {float(self._decoded_s):.1f} s decode:"
                " truncated, or a wrong header"
            )
        return tuple(found)

    def _decoded(self) -> Iterator[VideoFrame]:
        """Every picture that decodes, in presentation order."""
        decode = self._source.stream.codec_context.decode
        for packet in self._source.packets():
            try:
                frames = decode(packet)
            except MemoryError:
                raise  # PyAV's is an FFmpegError too: the worker's limit, and no damage of the file
            except av.error.FFmpegError:
                self._num_bad_packets += 1
                continue
            for frame in frames:
                self._num_bad_frames += frame.is_corrupt
                yield frame

    def _timed(self) -> Iterator[tuple[VideoFrame | None, int]]:
        """(picture, ticks at which it begins), progressive; at last (None, ticks at which the video ends)."""
        clock = self._clock
        # AVI stores no presentation times; what FFmpeg makes up for H.264 with B-frames there is wrong.
        dts_only = self.info.container == "avi" and self.first.dts is not None
        deinterlacer: Deinterlacer | None = None
        deinterlacer_key = None
        frame: VideoFrame | None = self.first
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
            frame = next(self._frames, None)
        if deinterlacer:
            yield from deinterlacer.push(None)
        yield None, ticks + clock.last_ticks(duration)

    def _deinterlacer(self, frame: VideoFrame) -> Deinterlacer:
        note = "interlaced frames were deinterlaced"
        if note not in self._notes:
            self._notes.append(note)
        return Deinterlacer(frame, time_base=self._clock.time_base)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
