"""Variable frame rate to a constant one, by presentation time, in exact integers.

    Clock       raw timestamps of decoded frames -> ticks that start at 0 and never go back
    Resampler   ticks -> how many output frames each picture fills

Output frame k is what a viewer sees k/fps seconds after the start: the last picture whose time is at most
k/fps. Times are compared with a slack for the rounding of timestamps: Matroska and FLV round to a
millisecond, so that a 30 FPS source has pictures at 33, 67 and 100 ms, and 67 ms must still count as 2/30 s.
The slack is half a tick for the picture's own rounding, and another half for the start's when the start is
not 0 (and may thus be rounded too). It is at most 1 ms: a coarser time base (AVI: one tick a frame) holds
exact times.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

MAX_GAP_S = 60
"""A longer silence between two pictures is a jump of the clock, and not a still picture..."""
MAX_STILL_S = 3600
"""...unless the header's duration has room for it, and it is no longer than this: slides, screen recordings."""
_MAX_BACKWARD_S = 1
# Less is jitter, and the next picture has the true time again; more is a clock that started anew.
_MAX_SLACK_S = Fraction(1, 1000)


@dataclass(slots=True, kw_only=True)
class Clock:
    """Turns raw timestamps into ticks from the first picture on, and counts what it had to mend."""

    time_base: Fraction
    """Seconds a tick, of the raw timestamps and of the result."""
    nominal_ticks: int
    """Ticks from one picture to the next where timestamps do not tell."""
    claimed_ticks: int = 0
    """Duration that the header claims; 0 if it does not."""
    num_missing: int = 0
    num_backward: int = 0
    num_jumps: int = 0
    start: int | None = None
    """Raw timestamp of the first picture; None when it had none."""
    _offset: int | None = None
    _last: int = 0
    _last_pts: int | None = None
    _last_dts: int | None = None
    _bad_pts: int = 0
    _bad_dts: int = 0

    def tick(self, pts: int | None, dts: int | None = None) -> int:
        """Ticks of the next picture in presentation order; the first is at 0."""
        raw = self._choose(pts, dts)
        if self._offset is None:
            self.start = raw
            self._offset = -(raw or 0)
            self.num_missing += raw is None
            return 0
        step = None if raw is None else raw + self._offset - self._last
        if step is None:
            self.num_missing += 1
            step = self.nominal_ticks
        elif self._is_jump(step):
            self.num_jumps += 1
            self._offset += self.nominal_ticks - step
            step = self.nominal_ticks
        elif step < 0:
            self.num_backward += 1
            step = 0
        self._last += step
        return self._last

    def _is_jump(self, step: int) -> bool:
        if step < 0:
            return step < -_MAX_BACKWARD_S / self.time_base
        if step <= MAX_GAP_S / self.time_base:
            return False
        return step > MAX_STILL_S / self.time_base or self._last + step > self.claimed_ticks

    def _choose(self, pts: int | None, dts: int | None) -> int | None:
        """pts, unless it ran backward more often than dts did: players' rule, for H.264 with B-frames in AVI."""
        if pts is not None:
            self._bad_pts += self._last_pts is not None and pts <= self._last_pts
            self._last_pts = pts
        if dts is not None:
            self._bad_dts += self._last_dts is not None and dts <= self._last_dts
            self._last_dts = dts
        if dts is None or (pts is not None and self._bad_pts <= self._bad_dts):
            return pts
        return dts

    def last_ticks(self, duration: int | None) -> int:
        """Ticks that the last picture stays, given the duration that its packet claims."""
        if duration and 0 < duration <= MAX_GAP_S / self.time_base:
            return duration
        return self.nominal_ticks


@dataclass(slots=True, kw_only=True)
class Resampler:
    """Counts the output frames that each picture fills. Integers only, so exact at any length."""

    time_base: Fraction
    fps: int
    start: int | None = 0
    """Raw timestamp of the first picture."""
    num_emitted: int = 0
    """Output frames up to now."""
    _multiplier: int = field(init=False)
    _shift: int = field(init=False)
    _divisor: int = field(init=False)

    def __post_init__(self) -> None:
        # first output frame of a picture = ceil((ticks * time_base - slack_s) * fps)
        slack_s = min(self.time_base * Fraction(1 if self.start else Fraction(1, 2)), _MAX_SLACK_S)
        scale, shift = self.time_base * self.fps, slack_s * self.fps
        self._divisor = scale.denominator * shift.denominator
        self._multiplier = scale.numerator * shift.denominator
        self._shift = shift.numerator * scale.denominator

    def first_frame(self, ticks: int) -> int:
        """Index of the first output frame that shows a picture which begins at `ticks`."""
        return max(0, -((self._shift - ticks * self._multiplier) // self._divisor))

    def latest_ticks(self, frame: int) -> int:
        """The last tick at which a picture may begin that is shown at this frame or earlier."""
        return (frame * self._divisor + self._shift) // self._multiplier

    def fill_until(self, ticks: int) -> range:
        """Indices of the output frames that the current picture fills, the next one beginning at `ticks`."""
        filled = range(self.num_emitted, max(self.num_emitted, self.first_frame(ticks)))
        self.num_emitted = filled.stop
        return filled

    def fill_at_least(self, num_frames: int) -> range:
        """Indices up to `num_frames`, for a video that is shorter than one output frame."""
        filled = range(self.num_emitted, max(self.num_emitted, num_frames))
        self.num_emitted = filled.stop
        return filled
