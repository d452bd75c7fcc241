"""How far a stage is: a bar on a terminal, a plain line every ten seconds elsewhere, nothing when quiet.

Everything goes to stderr, so that stdout stays free for `--json`. The time left is estimated by weight
(bytes, or seconds of video), not by count: the longest videos come first, and a count would promise too much
at the beginning and too little at the end.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

LINE_INTERVAL_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a progress line says."""

    num_done: int
    num_failed: int
    items_per_s: float
    video_seconds_per_s: float
    left_s: float | None
    """None until something is done."""

    def __str__(self) -> str:
        left = "time left unknown" if self.left_s is None else f"{format_duration(self.left_s)} left"
        rate = f"{self.items_per_s:.2f}/s"
        if self.video_seconds_per_s:
            rate += f" ({self.video_seconds_per_s:.1f} s of video/s)"
        return f"{rate}, {self.num_failed} failed, {left}"


class Progress:
    """Counts what has ended, and shows it."""

    def __init__(
        self,
        *,
        label: str,
        num_items: int,
        weight: float,
        console: Console,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = label
        self._num_items = num_items
        self._weight = weight
        self._console = console
        self._clock = clock
        self._start_s = self._line_s = clock()
        self._num_done = self._num_failed = 0
        self._weight_done = self._video_s = 0.0
        self._quiet = quiet or num_items == 0
        self._bar: Bar | None = None
        self._task = TaskID(0)
        if console.is_terminal and not self._quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Bar(*columns, TextColumn("{task.fields[rates]}"), console=console, transient=True)
            self._task = self._bar.add_task(label, total=num_items, rates="")
            self._bar.start()

    def advance(self, *, weight: float, failed: bool, video_s: float = 0.0) -> None:
        """One item has ended."""
        self._num_done += 1
        self._num_failed += failed
        self._weight_done += weight
        self._video_s += video_s

    def rates(self) -> Rates:
        """Rates since the beginning, and the time left at that rate."""
        elapsed_s = max(self._clock() - self._start_s, 1e-9)
        left_s = None
        if self._num_done == self._num_items:
            left_s = 0.0
        elif self._weight_done > 0:
            left_s = elapsed_s * (self._weight - self._weight_done) / self._weight_done
        return Rates(
            num_done=self._num_done,
            num_failed=self._num_failed,
            items_per_s=self._num_done / elapsed_s,
            video_seconds_per_s=self._video_s / elapsed_s,
            left_s=left_s,
        )

    def tick(self) -> None:
        """Show what has changed; call it at least twice a second."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._num_done, rates=str(self.rates()))
        elif not self._quiet and self._clock() - self._line_s >= LINE_INTERVAL_S:
            self._print_line()

    def close(self) -> None:
        """Remove the bar and leave one line that says how it ended."""
        if self._bar is not None:
            self._bar.stop()
        if not self._quiet:
            self._print_line()

    def _print_line(self) -> None:
        self._line_s = self._clock()
        self._console.print(
            f"{self._label}: {self._num_done}/{self._num_items}, {self.rates()}", highlight=False
        )


@contextlib.contextmanager
def counting(label: str, *, console: Console, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A callback (number done, number in all) that shows a Progress, for work whose extent it learns late."""
    shown: list[Progress] = []
    num_before = 0

    def count(num_done: int, num_items: int) -> None:
        nonlocal num_before
        if not shown:
            shown.append(
                Progress(label=label, num_items=num_items, weight=num_items, console=console, quiet=quiet)
            )
        for _ in range(num_done - num_before):
            shown[0].advance(weight=1, failed=False)
        num_before = num_done
        shown[0].tick()

    try:
        yield count
    finally:
        for progress in shown:
            progress.close()


def format_duration(duration_s: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 07 min` or `3 d 04 h`."""
    whole = round(duration_s)
    units = (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1))
    for unit, size, lower, lower_size in units:
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // lower_size:02d} {lower}"
    return f"{whole} s"


def format_bytes(size_bytes: float) -> str:
    """`512 B`, `3.4 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size_bytes < 1024 or unit == "TiB":
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    raise AssertionError(size_bytes)
