"""A long video re-encoded in parts, side by side, and joined: the same bytes as in one piece.

    reencode_or_split ──> Split: source_sha256, reencode_part x n ──> join_reencode ──> ReencodeReport
            |                                      |                        |
    one piece is best                      Unfit: something       Unfit: neighbours saw different
    (ReencodeReport)                       is not plain           pictures, or the source changed

A part makes the packets of whole segments (encode.py), which depend on their own pictures alone. So all that is
to be shown is that a part sees the pictures that one pass over the source would have seen. It enters the source
one key frame earlier than it must, which gives the decoder a whole GOP to forget that it did not begin at the
beginning. It expects a source without surprises: timestamps that rise, pictures of one kind, progressive,
undamaged. At each cut both neighbours decode the same few pictures, and `join_reencode` compares their checksums.
Whatever is not as expected ends in `Unfit`, and the video is re-encoded in one piece.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from itertools import pairwise

import google_crc32c
from av.video.frame import VideoFrame

from cope_prep.pipeline import storage
from cope_prep.pipeline.decode import picture_of
from cope_prep.pipeline.encode import (
    Muxer,
    PacketFile,
    SegmentEncoder,
    read_packets,
    segment_frames,
    stream_header,
)
from cope_prep.pipeline.memory import reencoding_memory_bytes
from cope_prep.pipeline.picture import output_size, picture_key
from cope_prep.pipeline.probe import SourceInfo
from cope_prep.pipeline.reencode import (
    ReencodeReport,
    Stopwatch,
    is_unchanged,
    reencode_opened,
    reencode_video,
    report_of,
    source_sha256,
)
from cope_prep.pipeline.resample import Resampler
from cope_prep.pipeline.source import Source, open_source
from cope_prep.pipeline.source_range import can_enter, timed_pictures
from cope_prep.pipeline.split import NeedsMemory, Split, Unfit, UnfitError, cut, parts_folder, remove_parts
from cope_prep.pipeline.storage import FileStat
from cope_prep.pipeline.transcode import Fitter, Transcoder, clock_of, is_cut_short
from cope_prep.schemas.errors import SourceNotFoundError
from cope_prep.schemas.specs import EncodeSpec

PART_WORK_S = 60.0
"""Enough that starting and joining cost nothing, little enough that a part is no long video itself."""
_WORK_PER_FRAME_S, _WORK_PER_MEGAPIXEL_S = 0.0025, 0.009
# Measured (docs/decisions/0016): 640 x 272 to 1280 x 720, H.264, the default spec.
_MAX_PARTS = 500
_NUM_WITNESSES = 8
"""Pictures from a cut on that both neighbours look at."""
_EXACT_SEEKS = ("mov", "matroska")
"""Containers with an index of key frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a part is to do: some of the output's frames."""

    uri: str
    """Where its packets go."""
    first: int
    """Index of its first frame; the start of a segment."""
    stop: int | None
    """Index after its last frame; None: to the end of the source."""
    info: SourceInfo
    stat: FileStat
    start: int
    """Raw timestamp of the source's first picture."""
    picture: tuple[int, int, str, int, int]
    """picture_key of the source's first picture, and of all others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReport:
    """What a part did."""

    part: Part
    num_frames: int
    packets_crc32c: int
    """Of the part file's packets, one after the other."""
    header_crc32c: int
    """Of what the encoder puts before all packets."""
    head: tuple[tuple[int, int], ...]
    """(ticks, CRC-32C) of the first pictures shown."""
    tail: tuple[tuple[int, int], ...]
    """The same of the first pictures after the part."""


def reencode_or_split(
    source_uri: str,
    out_uri: str,
    *,
    spec: EncodeSpec,
    memory_bytes: int | None = None,
    part_work_s: float = PART_WORK_S,
) -> ReencodeReport | Split | NeedsMemory:
    """Re-encode a source as `reencode_video` does, or say that it takes several calls, or more memory.

    `memory_bytes` is what this process may use, None if there is no limit; `part_work_s` about how long one part
    should take on one core. Errors as `reencode_video`.
    """
    start = Stopwatch()
    stat = storage.stat(source_uri)
    with open_source(source_uri) as source:
        transcoder = Transcoder(source, spec=spec)
        needed = reencoding_memory_bytes(transcoder.first, output_px=transcoder.size_px)
        if memory_bytes is not None and needed > memory_bytes:
            again = functools.partial(
                reencode_or_split,
                source_uri,
                out_uri,
                spec=spec,
                memory_bytes=needed,
                part_work_s=part_work_s,
            )
            return NeedsMemory(memory_bytes=needed, call=again)
        parts = _plan(transcoder, out_uri, spec=spec, stat=stat, part_work_s=part_work_s)
        if len(parts) < 2:
            return reencode_opened(transcoder, out_uri, spec=spec, stat=stat, start=start)
    return Split(
        # The checksum first: it reads the whole source, beside the parts.
        parts=(
            functools.partial(source_sha256, source_uri),
            *(functools.partial(reencode_part, source_uri, part, spec=spec) for part in parts),
        ),
        join=functools.partial(join_reencode, out_uri, spec=spec),
        whole=functools.partial(reencode_whole, source_uri, out_uri, spec=spec),
    )


def _plan(
    transcoder: Transcoder, out_uri: str, *, spec: EncodeSpec, stat: FileStat, part_work_s: float
) -> list[Part]:
    """The parts of a long video; fewer than two where it is better done in one piece."""
    info, first = transcoder.info, transcoder.first
    num_frames = int((info.claimed_duration_s or 0) * spec.fps)
    segment = segment_frames(spec)
    megapixels = info.width_px * info.height_px / 1e6
    segment_work_s = segment * (_WORK_PER_FRAME_S + _WORK_PER_MEGAPIXEL_S * megapixels)
    units = max(1, int(min(part_work_s / segment_work_s, num_frames)), num_frames // (segment * _MAX_PARTS))
    starts = cut(num_frames, unit=segment, units_per_part=units)
    plain = info.container.startswith(_EXACT_SEEKS) and first.pts is not None and not first.interlaced_frame
    if len(starts) < 2 or not plain:
        return []
    parts = [
        Part(
            uri=storage.join(parts_folder(out_uri), f"{first_frame:09d}.packets"),
            first=first_frame,
            stop=stop,
            info=info,
            stat=stat,
            start=first.pts or 0,
            picture=picture_key(first),
        )
        for first_frame, stop in zip(starts, (*starts[1:], None), strict=True)
    ]
    # Is the last part where the header promises it, and can it be reached? A source of its own, for seeking
    # would disturb the first one.
    with open_source(info.uri) as source:
        resampler = Resampler(time_base=info.time_base, fps=spec.fps, start=parts[-1].start)
        enter_at = parts[-1].start + resampler.latest_ticks(parts[-1].first)
        return parts if can_enter(source, enter_at, start=parts[-1].start) else []


def reencode_part(source_uri: str, part: Part, *, spec: EncodeSpec) -> PartReport | Unfit:
    """Encode some frames of a source into a part file.

    Errors as `reencode_video`.
    """
    if not is_unchanged(source_uri, part.stat):
        return Unfit(reason="the source changed meanwhile")
    try:
        with open_source(source_uri) as source:
            return _encode_part(source, part, spec=spec)
    except UnfitError as exc:
        return Unfit(reason=str(exc))


def _encode_part(source: Source, part: Part, *, spec: EncodeSpec) -> PartReport:
    info = part.info
    fitter = Fitter(source, info, spec=spec)
    resampler = Resampler(time_base=info.time_base, fps=spec.fps, start=part.start, num_emitted=part.first)
    head, tail = (_Witness(fitter, cut_at) for cut_at in (part.first, part.stop))
    shown: VideoFrame | None = None
    with storage.publish(part.uri) as path, open(path, "wb") as file:
        packets = PacketFile(file)
        with SegmentEncoder(packets, spec=spec, size_px=fitter.size_px, first=part.first) as encoder:
            ticks = 0
            for frame, ticks in timed_pictures(
                source,
                clock_of(info, fps=spec.fps),
                start=part.start,
                picture=part.picture,
                enter_at=resampler.latest_ticks(part.first),
            ):
                begins = resampler.first_frame(ticks)
                fill = resampler.fill_until(ticks)
                if part.stop is not None:
                    fill = range(fill.start, min(fill.stop, part.stop))
                if fill:
                    if shown is None:
                        raise UnfitError("a picture before a cut is missing")
                    encoder.write(fitter.fit(shown), fill)
                shown = frame
                if frame is not None:
                    head.see(frame, ticks, begins)
                    tail.see(frame, ticks, begins)
                if tail.is_done:
                    break
            else:
                if part.stop is not None or resampler.num_emitted == part.first:
                    raise UnfitError("it ends before its header says")
                if is_cut_short(info.claimed_duration_s, ticks * info.time_base):
                    raise UnfitError("it is truncated")
    return PartReport(
        part=part,
        num_frames=packets.num_packets,
        packets_crc32c=packets.crc32c,
        header_crc32c=google_crc32c.value(stream_header(spec, fitter.size_px)),
        head=tuple(head.marks),
        tail=tuple(tail.marks),
    )


class _Witness:
    """Checksums of the pictures from a cut on, as they would be encoded."""

    def __init__(self, fitter: Fitter, cut_at: int | None) -> None:
        """`cut_at` is an index of the output's frames; None: there is nothing to see."""
        self._fitter = fitter
        self._cut_at = cut_at
        self._waiting: tuple[VideoFrame, int] | None = None
        self.marks: list[tuple[int, int]] = []
        """(ticks, CRC-32C)."""

    @property
    def is_done(self) -> bool:
        """True once all pictures that matter were seen."""
        return len(self.marks) == _NUM_WITNESSES

    def see(self, frame: VideoFrame, ticks: int, begins: int) -> None:
        """Look at the next picture; `begins` is the first frame that may show it."""
        if self._cut_at is None or self.is_done:
            return
        if begins <= self._cut_at:  # the last of these is the one that is shown at the cut
            self._waiting = frame, ticks
            return
        if self._waiting is not None:
            self._mark(*self._waiting)
            self._waiting = None
        self._mark(frame, ticks)

    def _mark(self, frame: VideoFrame, ticks: int) -> None:
        if not self.is_done:
            picture = picture_of(self._fitter.fit(frame))
            self.marks.append((ticks, google_crc32c.value(picture.tobytes())))


def join_reencode(
    out_uri: str, results: list[str | PartReport], *, spec: EncodeSpec
) -> ReencodeReport | Unfit:
    """Join the part files into the re-encoded file, if they agree with each other.

    Unfit, too, if one is gone: this join was done before, and its worker lost; or if the source is not what it was
    when the first of them began: its hash may be of another file.

    Raises:
        SourceNotFoundError: the source is gone.
        StorageError: the store failed.
    """
    start = Stopwatch()
    sha256, *reports = results
    assert isinstance(sha256, str)
    parts = [report for report in reports if isinstance(report, PartReport)]
    info, stat = parts[0].part.info, parts[0].part.stat
    if not is_unchanged(info.uri, stat):
        return Unfit(reason="the source changed meanwhile")
    size_px = output_size(spec, info.display_size_px)
    header_crc32c = google_crc32c.value(stream_header(spec, size_px))
    if any(part.header_crc32c != header_crc32c for part in parts):
        return Unfit(reason="its parts were encoded by different versions of the encoder", noted=True)
    for left, right in pairwise(parts):
        if left.tail != right.head:
            return Unfit(reason=f"its parts differ around frame {right.part.first}", noted=True)
    try:
        with storage.publish(out_uri) as path:
            with Muxer(path, spec=spec, size_px=size_px) as muxer:
                for part in parts:
                    _append(muxer, part)
            output_bytes = storage.stat(path).size_bytes
            output_crc32c = storage.crc32c(path)
    except UnfitError as exc:
        return Unfit(reason=str(exc), noted=True)
    except SourceNotFoundError:
        return Unfit(reason="a part is gone")
    remove_parts(out_uri)
    return report_of(
        info,
        spec=spec,
        num_frames=muxer.num_frames,
        output_bytes=output_bytes,
        output_crc32c=output_crc32c,
        stat=stat,
        source_sha256=sha256,
        notes=info.notes,
        damage=(),
        start=start,
    )


def _append(muxer: Muxer, report: PartReport) -> None:
    crc32c, before = 0, muxer.num_frames
    with storage.open_read(report.part.uri) as file:
        for packet in read_packets(file):
            crc32c = google_crc32c.extend(crc32c, packet)
            muxer.add(packet)
    if (muxer.num_frames - before, crc32c) != (report.num_frames, report.packets_crc32c):
        raise UnfitError(f"the part from frame {before} on was damaged in the store")


def reencode_whole(source_uri: str, out_uri: str, unfit: Unfit | None, *, spec: EncodeSpec) -> ReencodeReport:
    """Re-encode in one piece what was to be done in parts, and remove what the parts left first."""
    remove_parts(out_uri)  # the disk may be full of them
    report = reencode_video(source_uri, out_uri, spec=spec)
    if unfit is None or not unfit.noted:
        return report
    note = f"was re-encoded in one piece, for {unfit.reason}"
    return dataclasses.replace(report, notes=(*report.notes, note))
