"""The screen of `cope-prep status --watch`: the stages with a bar each, the machines, the latest failures.

It fits its terminal: what there is too much of is cut short, and how much was left out is said.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from cope_prep.jobs.progress import format_bytes, format_duration
from cope_prep.jobs.status_rates import RUNNING_WITHIN_S
from cope_prep.jobs.status_records import BegunShards, DatasetStatus, RatePoint, RecentFailure, StageStatus

_LEVELS = " ▁▂▃▄▅▆▇█"
_COLOURS = (
    ("ok", "green"),
    ("partial", "yellow"),
    ("failed", "red"),
    ("pending", "cyan"),
    ("waiting", "dim"),
)
_NARROW_WIDTH = 60
"""Columns. With fewer, a line of all counts is cut."""
_MAX_PROBLEM_LINES = 3


class Screen:
    """What is shown until something newer is known; drawn anew each second, so that its age is right."""

    def __init__(self, dataset: str, *, every_s: float) -> None:
        self.status: DatasetStatus | None = None
        self.seen_unix_s = 0.0
        self.note = ""
        """One line: what is waited for."""
        self.problem = ""
        """Why what is shown is old."""
        self._dataset = dataset
        self._every_s = every_s

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.height or console.height
        # The age comes last and the problem second: stale figures are never shown without a word.
        top = [self._title(), *self._problem_lines(console, width)][: max(height - 1, 0)]
        yield from top
        rows_left = height - len(top) - 1
        if self.status is None:
            yield from [_line(self.note)] if self.note and rows_left > 0 else []
        else:
            rows = _fitted(self.status, self.note, width=width, num_rows=rows_left)
            yield from rows
            # Their lines are what is left of the terminal; a third of it is for failures, if there are any.
            rows_left -= len(rows)
            failures = latest_failures(self.status)
            for_failures = min(len(failures) + 2, rows_left // 3) if failures else 0
            nodes, num_used = node_rows(self.status, num_rows=rows_left - for_failures)
            yield from nodes
            yield from failure_rows(failures, num_rows=rows_left - num_used, width=width)
        yield self._age()

    def _title(self) -> Text:
        if self.status is None:
            return _line(self._dataset, "bold")
        videos = f"{self.status.num_videos:,} videos, {format_bytes(self.status.source_bytes)}"
        return _line(f"{self.status.dataset}: {videos}", "bold")

    def _problem_lines(self, console: Console, width: int) -> list[Text]:
        lines = list(Text(self.problem, style="bold red").wrap(console, width)) if self.problem else []
        if len(lines) > _MAX_PROBLEM_LINES:
            lines = lines[:_MAX_PROBLEM_LINES]
            lines[-1].append(" …")
            lines[-1].truncate(width, overflow="ellipsis")
        return lines

    def _age(self) -> Text:
        if self.status is None:
            return _line("Ctrl-C ends the watching.", "dim")
        age = format_duration(max(time.time() - self.seen_unix_s, 0.0))
        return _line(
            f"As of {age} ago; every {self._every_s:g} s. Ctrl-C ends the watching, not the job.", "dim"
        )


def _fitted(status: DatasetStatus, note: str, *, width: int, num_rows: int) -> list[RenderableType]:
    """Stages, shards and note in at most so many lines: finished stages get one each, and if need be all do."""
    rest: list[RenderableType] = [*shards_rows(status), *([_line(note)] if note else [])]
    whole = [stage_rows(stage, width=width) for stage in status.stages]
    short = [[_stage_row(stage, width=width)] for stage in status.stages]
    mixed = [
        few if not (stage.num_pending or stage.is_running) else many
        for stage, few, many in zip(status.stages, short, whole, strict=True)
    ]
    for choice in (whole, mixed, short):
        rows = [row for of_stage in choice for row in of_stage] + rest
        if len(rows) <= num_rows:
            return rows
    # What has work left first: the rest is done, and stays as it is.
    by_work = sorted(zip(status.stages, short, strict=True), key=lambda pair: not pair[0].num_pending)
    rows = [*(row for _, of_stage in by_work for row in of_stage), *rest]
    if num_rows < 2:
        return rows[: max(num_rows, 0)]
    return [
        *rows[: num_rows - 1],
        _line(f"and {len(rows) - num_rows + 1} more lines: a higher terminal", "dim"),
    ]


def _stage_row(stage: StageStatus, *, width: int) -> Text:
    """A stage in one line: what is left first."""
    num_ended = stage.num_ok + stage.num_partial + stage.num_failed
    share = f"{num_ended:,}/{stage.num_videos:,}"
    pending = f"{stage.num_pending:,} pending, " if stage.num_pending else ""
    failed = f", {stage.num_failed:,} failed" if stage.num_failed else ""
    said = f"{pending}{speed_text(stage, is_narrow=True)}" if pending else f"nothing pending{failed}"
    name = stage.stage if width < _NARROW_WIDTH else f"{stage.stage:8s} {stage.spec_hash} "
    return _line(f"{name} {share} {said}", "" if stage.is_running else "dim")


def stage_rows(stage: StageStatus, *, width: int) -> list[RenderableType]:
    """A stage in three or four lines: bar, counts, rate, what the last run looks like over time."""
    is_narrow = width < _NARROW_WIDTH
    counts = {
        "ok": stage.num_ok,
        "partial": stage.num_partial,
        "failed": stage.num_failed,
        "pending": stage.num_pending,
        "waiting": stage.num_waiting,
    }
    num_ended = stage.num_ok + stage.num_partial + stage.num_failed
    name = f"{stage.stage:8s} {stage.spec_hash}  "
    share = f" {100 * num_ended / stage.num_videos:5.1f} %" if stage.num_videos else ""
    share = f"  {num_ended:,}/{stage.num_videos:,}{share}"
    first = Text(name, style="bold", no_wrap=True, overflow="ellipsis")
    first.append_text(bar(counts, width=max(width - len(name) - len(share), 8))).append(share)
    second = Text("  ", no_wrap=True, overflow="ellipsis")
    for what, colour in sorted(_COLOURS, key=lambda pair: is_narrow and pair[0] != "pending"):
        second.append(f"{what} ", "dim").append(f"{counts[what]:,}   ", colour if counts[what] else "dim")
    rows: list[RenderableType] = [first, second]
    speed = speed_text(stage)
    if len(speed) + 2 > width:
        speed = speed_text(stage, is_narrow=True)
    if speed:
        rows.append(_line(f"  {speed}", "" if stage.is_running else "dim"))
    if stage.is_running and len(stage.history) > 1:
        rows.append(_line(f"  {sparkline(stage.history[-(width - 4) :])}", "cyan"))
    return rows


def shards_rows(status: DatasetStatus) -> list[Text]:
    """A line a set of shards."""
    done = [
        f"shards   {shards.spec_hash}  {shards.num_shards:,} with {shards.num_videos:,} videos,"
        f" {format_duration(shards.duration_s)}, {format_bytes(shards.output_bytes)}"
        for shards in status.shards
    ]
    begun = [f"shards   {begun.spec_hash}  {begun_text(begun)}" for begun in status.begun_shards]
    damaged = [f"shards   {damaged.spec_hash}  {damaged.message}" for damaged in status.damaged_shards]
    return [_line(text) for text in (*done, *begun)] + [_line(text, "red") for text in damaged]


def begun_text(begun: BegunShards) -> str:
    """How many shards there are, and what is missing."""
    number = f"{begun.num_shards:,}"
    number += " so far" if begun.num_planned is None else f" of {begun.num_planned:,}"
    return f"{number}, {'not all in the index' if begun.has_index else 'no index'} yet"


def speed_text(stage: StageStatus, *, is_narrow: bool = False) -> str:
    """Rate and time left of a stage that runs; of one with work left in which nothing ends, since when.

    What matters most comes first where the line may be cut.
    """
    rates, state = [], []
    if stage.videos_per_s is not None:
        rates.append(f"{stage.videos_per_s:.2f} videos/s")
    if stage.video_seconds_per_s:
        rates.append(f"{stage.video_seconds_per_s:.1f} s of video/s")
    if stage.is_running and stage.left_s is not None:
        state.append(f"{format_duration(stage.left_s)} left")
    if not stage.num_pending:
        if stage.num_ok + stage.num_partial + stage.num_failed:
            state.append("nothing left to do" if not stage.num_waiting else "nothing left that can be done")
    elif stage.idle_s is None:
        state.append("nothing ended yet")
    elif not stage.is_running:
        state.append(f"not running: nothing ended for {format_duration(stage.idle_s)}")
    state += odd_texts(stage)
    return ", ".join(state + rates if is_narrow else rates + state)


def odd_texts(stage: StageStatus) -> list[str]:
    """What makes the rate and the time left of a stage doubtful."""
    texts = []
    if stage.is_running and stage.idle_s is not None and stage.idle_s >= RUNNING_WITHIN_S:
        texts.append(f"nothing ended for {format_duration(stage.idle_s)}")
    if stage.clock_ahead_s:
        texts.append(f"clocks differ by {format_duration(stage.clock_ahead_s)}")
    return texts


def bar(counts: dict[str, int], *, width: int) -> Text:
    """A bar in the colours of the counts; what is there has a cell, however little it is."""
    total = max(sum(counts.values()), 1)
    cells = {what: width * number // total or 1 for what, number in counts.items() if number}
    while sum(cells.values()) > width:
        cells[max(cells, key=lambda what: cells[what])] -= 1
    if cells and (left := width - sum(cells.values())):
        cells[max(cells, key=lambda what: cells[what])] += left
    text = Text()
    for what, colour in _COLOURS:
        # Not by colour alone: what is done looks different from what is not.
        text.append(("━" if what in ("ok", "partial", "failed") else "╌") * cells.get(what, 0), colour)
    return text if cells else Text("╌" * width, "dim")


def sparkline(points: Sequence[RatePoint]) -> str:
    """Videos over time, a cell a piece."""
    most = max(point.num_videos for point in points) or 1
    return "".join(_LEVELS[-(-point.num_videos * (len(_LEVELS) - 1) // most)] for point in points)


def node_rows(status: DatasetStatus, *, num_rows: int) -> tuple[list[RenderableType], int]:
    """The machines of the stages that run, the fastest first, and how many lines they take: at most so many."""
    found = [
        (stage.stage, node)
        for stage in status.stages
        if stage.is_running
        for node in sorted(stage.nodes, key=lambda node: -node.videos_per_s)
    ]
    room = num_rows - 2  # an empty line and the names of the columns
    shown = found if len(found) <= room else found[: max(room - 1, 0)]
    if not shown:
        return [], 0
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    table.add_column("Machine", no_wrap=True, overflow="ellipsis")
    table.add_column("Stage", no_wrap=True)
    for name in ("Videos/s", "s of video/s", "Videos in 10 min"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage, node in shown:
        table.add_row(
            Text(node.node or "not recorded"),
            stage,
            f"{node.videos_per_s:.2f}",
            f"{node.video_seconds_per_s:.1f}",
            f"{node.num_videos:,}",
        )
    rows: list[RenderableType] = ["", table]
    if len(shown) < len(found):
        rows.append(_line(f"and {len(found) - len(shown):,} more", "dim"))
    return rows, 2 + len(shown) + (len(shown) < len(found))


def latest_failures(status: DatasetStatus) -> list[RecentFailure]:
    """Of all stages, the latest first."""
    failures = [failure for stage in status.stages for failure in stage.recent_failures]
    return sorted(failures, key=lambda failure: -failure.finished_unix_s)


def failure_rows(failures: Sequence[RecentFailure], *, num_rows: int, width: int) -> list[RenderableType]:
    """One line each, as far as there is room."""
    shown = failures[: max(num_rows - 2, 0)]
    if not shown:
        return []
    rows: list[RenderableType] = ["", _line("Latest failures", "bold")]
    for failure in shown:
        row = Text(no_wrap=True, overflow="ellipsis")
        row.append(time.strftime("%H:%M:%S ", time.localtime(failure.finished_unix_s)), "dim")
        row.append(f"{failure.stage} ").append(f"{failure.error_class} ", "red")
        row.append(" ".join(failure.error_message.split()))
        row.truncate(width, overflow="ellipsis")
        rows.append(row)
    return rows


def _line(text: str, style: str = "") -> Text:
    # Text, because names may hold [brackets], which are markup in a string.
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
