"""Presentation times to a constant rate: exact against a slow reference, and honest about broken clocks."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cope_prep.pipeline.resample import Clock, Resampler


def shown(
    times_ticks: list[int], end_ticks: int, *, time_base: Fraction, fps: int, start: int = 0
) -> list[int]:
    """Which picture each output frame shows, by the code under test."""
    resampler = Resampler(time_base=time_base, fps=fps, start=start)
    frames: list[int] = []
    for index, until in enumerate([*times_ticks[1:], end_ticks]):
        frames += [index] * len(resampler.fill_until(until))
    return frames


def shown_slowly(times_s: list[Fraction], end_s: Fraction, *, fps: int, slack_s: Fraction) -> list[int]:
    """The definition: at k/fps a viewer sees the last picture that has begun, until the video ends."""
    frames = []
    k = 0
    while Fraction(k, fps) + slack_s < end_s:
        begun = [index for index, time_s in enumerate(times_s) if time_s <= Fraction(k, fps) + slack_s]
        frames.append(begun[-1])
        k += 1
    return frames


@given(
    steps=st.lists(st.integers(0, 120), min_size=1, max_size=40),
    time_base=st.sampled_from(
        [Fraction(1, 1000), Fraction(1, 90000), Fraction(1, 25), Fraction(1001, 30000), Fraction(1, 600)]
    ),
    fps=st.sampled_from([30, 24, 1]),
    start=st.sampled_from([0, 17]),
)
def test_frame_k_is_what_a_viewer_sees(steps: list[int], time_base: Fraction, fps: int, start: int) -> None:
    times = [sum(steps[:index]) for index in range(len(steps))]
    end = sum(steps) + 1
    slack_s = min(time_base if start else time_base / 2, Fraction(1, 1000))
    expected = shown_slowly([time * time_base for time in times], end * time_base, fps=fps, slack_s=slack_s)
    assert shown(times, end, time_base=time_base, fps=fps, start=start) == expected


@pytest.mark.parametrize("start", [0, 33, 67])
def test_millisecond_timestamps_of_30_fps_neither_repeat_nor_drop(start: int) -> None:
    num_frames = 10_000
    first = round(start * 30 / 1000)
    times = [round((first + index) * 1000 / 30) - start for index in range(num_frames + 1)]
    frames = shown(times[:-1], times[-1], time_base=Fraction(1, 1000), fps=30, start=start)
    assert frames == list(range(num_frames))


def test_coarse_time_base_is_exact() -> None:
    assert shown([0, 1, 2, 3, 4], 5, time_base=Fraction(1, 25), fps=30) == [0, 0, 1, 2, 3, 4]


def test_no_drift_after_a_day_of_ntsc() -> None:
    num_frames = 24 * 3600 * 30
    resampler = Resampler(time_base=Fraction(1001, 30000), fps=30)
    resampler.fill_until(num_frames)
    assert resampler.num_emitted == -(-num_frames * 1001 // 1000)


def make_clock() -> Clock:
    return Clock(time_base=Fraction(1, 1000), nominal_ticks=40)


def test_clock_starts_at_zero_whatever_the_first_timestamp() -> None:
    for start in (-500, 0, 123456):
        clock = make_clock()
        assert [clock.tick(start + ticks) for ticks in (0, 40, 90)] == [0, 40, 90]


def test_clock_closes_jumps_and_keeps_gaps() -> None:
    clock = make_clock()
    raw = [0, 40, 59_000, 159_000, 159_040, 0, 40]
    assert [clock.tick(pts) for pts in raw] == [0, 40, 59_000, 59_040, 59_080, 59_120, 59_160]
    assert (clock.num_jumps, clock.num_backward, clock.num_missing) == (2, 0, 0)


def test_clock_mends_jitter_and_missing_timestamps() -> None:
    clock = make_clock()
    assert [clock.tick(pts) for pts in (0, 40, 30, 80, None, 160)] == [0, 40, 40, 80, 120, 160]
    assert (clock.num_jumps, clock.num_backward, clock.num_missing) == (0, 1, 1)


def test_clock_takes_dts_once_pts_is_the_worse_of_the_two() -> None:
    clock = make_clock()
    pts, dts = [40, 120, 160, 80, 240], [40, 80, 120, 160, 200]
    assert [clock.tick(*pair) for pair in zip(pts, dts, strict=True)] == [0, 80, 120, 120, 160]


def test_last_picture_stays_for_its_duration() -> None:
    clock = make_clock()
    assert [clock.last_ticks(duration) for duration in (25, 0, None, -3, 10**9)] == [25, 40, 40, 40, 40]
