"""The pictures of a plain source from some time on, without decoding what comes before.

"Plain" means that the timestamps rise, and that all pictures are progressive, of one kind and undamaged. Whatever
else is met raises UnfitError: then only one pass over the whole source tells what a viewer would see.
"""

from __future__ import annotations

from collections.abc import Iterator

import av
import av.error
from av.video.frame import VideoFrame

from cope_prep.pipeline.picture import picture_key
from cope_prep.pipeline.resample import MAX_GAP_S, Clock
from cope_prep.pipeline.source import Source
from cope_prep.pipeline.split import UnfitError

_MAX_RUN_UP_S = 60
"""With key frames farther apart than this, too much would be decoded in vain."""
_MAX_STEPS_BACK = 8


def can_enter(source: Source, at: int, *, start: int) -> bool:
    """True if there is a key frame to begin at, not far before the raw timestamp `at`."""
    try:
        _enter(source, at, start=start)
    except UnfitError:
        return False
    return True


def timed_pictures(
    source: Source, clock: Clock, *, start: int, picture: tuple[int, int, str, int, int], enter_at: int
) -> Iterator[tuple[VideoFrame | None, int]]:
    """(picture, ticks at which it begins), then (None, ticks at which the video ends).

    The first one begins at `enter_at` or before; 0 is the source's first. Ticks count from the raw timestamp
    `start`, as `clock` would count them; `picture` is what picture_key gives for each picture.

    Raises:
        UnfitError: the source is not plain.
        StorageError: the store failed.
    """
    known_from = start if enter_at <= 0 else _enter(source, start + enter_at, start=start)
    max_gap = MAX_GAP_S / clock.time_base
    last: int | None = None
    duration = 0
    for frame in _decoded(source, known_from=known_from):
        if frame.pts is None:
            raise UnfitError("a picture has no timestamp")
        if frame.pts < known_from:
            if last is not None:
                raise UnfitError("its timestamps jump")
            continue  # of a GOP that was entered midway, or shown before the video begins
        if frame.is_corrupt:
            raise UnfitError("a picture is damaged")
        if frame.interlaced_frame or picture_key(frame) != picture:
            raise UnfitError("its pictures are not all of one kind")
        if last is not None and not 0 < frame.pts - last <= max_gap:
            raise UnfitError("its timestamps jump")
        if last is None and enter_at <= 0 and frame.pts != start:
            raise UnfitError("it does not begin as it did")
        last, duration = frame.pts, frame.duration
        yield frame, frame.pts - start
    if source.read_error:
        raise UnfitError("reading stops early")
    if last is None:
        raise UnfitError("it ends before its header says")
    yield None, last - start + clock.last_ticks(duration)


def _decoded(source: Source, *, known_from: int) -> Iterator[VideoFrame]:
    """Every picture that decodes; from `known_from` on none may be missing."""
    decode = source.stream.codec_context.decode
    # A stream of H.264 need not say how far its pictures are out of order. FFmpeg learns it as it goes, and drops a
    # picture at each new depth: not the same ones when it begins elsewhere. Other codecs have no such guess, and
    # some of them (VP8) packets without a picture.
    is_guessed = source.stream.codec_context.name == "h264"
    awaited: set[int] = set()
    last = known_from
    for packet in source.packets():
        pts = None if packet is None else packet.pts
        has_picture = packet is not None and not packet.is_discard
        if is_guessed and has_picture and pts is not None and pts >= known_from:
            awaited.add(pts)
        try:
            frames = decode(packet)
        except MemoryError:
            raise  # PyAV's is an FFmpegError too: the worker's limit, and no damage of the file
        except av.error.FFmpegError as exc:
            # What comes before the key frame may need what comes before that: the neighbour looks at it.
            if pts is not None and pts < known_from:
                continue
            raise UnfitError("a packet is damaged") from exc
        for frame in frames:
            if frame.pts is not None and frame.pts >= known_from:
                last = frame.pts
                awaited.discard(last)
                _expect_none_before(last, awaited)
            yield frame
    _expect_none_before(last, awaited)


def _expect_none_before(pts: int, awaited: set[int]) -> None:
    if awaited and min(awaited) < pts:
        raise UnfitError("a picture is lost in decoding")


def _enter(source: Source, at: int, *, start: int) -> int:
    """Go to a key frame such that what follows decodes as from the beginning; from where on it is so (raw).

    That is the last key frame at or before `at`; the source is placed at the key frame before that one. The
    pictures that are shown between the two and need a reference from before are none of ours.
    """
    key = _seek(source, at)
    for _ in range(_MAX_STEPS_BACK):
        if key.pts <= at:
            break
        key = _seek(source, key.begins - 1)
    else:
        raise UnfitError("no key frame is found where it should be")
    time_base = source.stream.time_base
    assert time_base is not None
    before = _seek(source, place := key.begins - 1)
    if before.pts >= key.pts and key.pts > start:
        raise UnfitError("no key frame is found where it should be")
    if (at - before.pts) * time_base > _MAX_RUN_UP_S:
        raise UnfitError("its key frames are far apart")
    _seek_only(source, place)
    return key.pts


class _Key:
    """A key frame's times, raw."""

    def __init__(self, packet: av.Packet | None) -> None:
        if packet is None or packet.pts is None or not packet.is_keyframe:
            raise UnfitError("no key frame is found where it should be")
        self.pts = packet.pts
        self.begins = packet.pts if packet.dts is None else min(packet.dts, packet.pts)
        """What a seek must go below to reach the key frame before. Matroska has no decoding times."""


def _seek(source: Source, at: int) -> _Key:
    _seek_only(source, at)
    return _Key(next(source.packets(), None))


def _seek_only(source: Source, at: int) -> None:
    try:
        source.container.seek(at, stream=source.stream)
    except MemoryError:
        raise
    except (
        av.error.FFmpegError,
        OverflowError,
    ) as exc:  # the latter: no int64, where the header claims nonsense
        raise UnfitError("it cannot be entered midway") from exc
