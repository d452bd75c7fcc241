"""Progress: the time left by weight, lines where there is no terminal, and nothing when quiet."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cope_prep.jobs.progress import Progress, counting, format_bytes, format_duration


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make(
    *, num_items: int = 4, weight: float = 100.0, quiet: bool = False
) -> tuple[Progress, Clock, io.StringIO]:
    clock, stream = Clock(), io.StringIO()
    console = Console(file=stream, width=140)
    progress = Progress(
        label="reencode", num_items=num_items, weight=weight, console=console, quiet=quiet, clock=clock
    )
    return progress, clock, stream


def test_time_left_is_by_weight_not_by_count() -> None:
    progress, clock, _ = make(num_items=4, weight=100.0)
    clock.now_s += 30.0
    progress.advance(weight=60.0, failed=False, video_s=90.0)
    rates = progress.rates()
    assert rates.left_s == pytest.approx(20.0)
    assert rates.video_seconds_per_s == pytest.approx(3.0)
    assert rates.items_per_s == pytest.approx(1 / 30)


def test_time_left_is_unknown_at_first_and_zero_at_last() -> None:
    progress, clock, _ = make(num_items=1, weight=0.0)
    assert progress.rates().left_s is None
    clock.now_s += 1
    progress.advance(weight=0.0, failed=True)
    assert progress.rates().left_s == 0.0
    assert progress.rates().num_failed == 1


def test_lines_come_every_ten_seconds_and_at_the_end() -> None:
    progress, clock, stream = make()
    for _ in range(50):
        clock.now_s += 0.5
        progress.tick()
    assert len(stream.getvalue().splitlines()) == 2
    progress.advance(weight=10.0, failed=False, video_s=10.0)
    progress.close()
    last = stream.getvalue().splitlines()[-1]
    assert last.startswith("reencode: 1/4, 0.04/s (0.4 s of video/s), 0 failed, 3 min 45 s left")


def test_terminal_gets_a_bar_and_one_line_at_the_end() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=140, force_terminal=True)
    progress = Progress(label="extract", num_items=2, weight=2.0, console=console)
    progress.advance(weight=1.0, failed=True)
    progress.tick()
    progress.close()
    assert "\x1b[" in stream.getvalue()
    assert "1/2" in stream.getvalue().splitlines()[-1]


def test_quiet_says_nothing() -> None:
    progress, clock, stream = make(quiet=True)
    clock.now_s += 60
    progress.tick()
    progress.close()
    assert stream.getvalue() == ""


def test_nothing_to_do_says_nothing() -> None:
    progress, _, stream = make(num_items=0, weight=0.0)
    progress.close()
    assert stream.getvalue() == ""


def test_counting_follows_absolute_numbers() -> None:
    stream = io.StringIO()
    with counting("verify", console=Console(file=stream, width=140), quiet=False) as count:
        count(3, 10)
        count(10, 10)
    assert stream.getvalue().startswith("verify: 10/10")


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3725, "1 h 02 min"), (200_000, "2 d 07 h")],
)
def test_durations(duration_s: float, text: str) -> None:
    assert format_duration(duration_s) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 1024**4, "3.0 TiB"), (5 * 1024**5, "5120.0 TiB")],
)
def test_sizes(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text
