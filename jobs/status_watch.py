"""`cope-prep status --watch`: look again and again, until nothing is left to do.

    on a terminal    one screen that changes (status_screen.py), and the usual tables when it ends
    elsewhere        a line a stage and look
    --json           one object a line

It ends by itself when no video is pending and the shards have them all. While shards are made, or between two
stages of `cope-prep run`, nothing is pending either: it then ends once nothing has moved for fifteen or for two
minutes. What cannot be read (a store that does not answer, a damaged table) is said in one line, and asked for
again at the next look.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Protocol

import typer
from rich.console import Console
from rich.live import Live

from cope_prep.jobs.progress import format_duration
from cope_prep.jobs.session import Terminated
from cope_prep.jobs.status import StatusReader
from cope_prep.jobs.status_rates import RUNNING_WITHIN_S
from cope_prep.jobs.status_records import DatasetStatus, StageStatus
from cope_prep.jobs.status_screen import Screen, begun_text, speed_text
from cope_prep.jobs.status_table import print_status
from cope_prep.pipeline.printable import printable_json
from cope_prep.pipeline.redact import redacted
from cope_prep.schemas.errors import ConfigurationError

TERMINAL_EVERY_S = 2.0
LINES_EVERY_S = 10.0
SHARD_WITHIN_S = 900.0
"""Shards are not pending anywhere. At 1 MiB/s, slow for a bucket, one of 512 MiB takes nine minutes to come."""


class View(Protocol):
    """Where looks are shown."""

    def show(self, status: DatasetStatus, note: str, left_s: float | None = None) -> None:
        """The status, and what is waited for and for how long at most, if anything."""
        ...

    def fail(self, error_class: str, message: str) -> None:
        """A look that failed."""
        ...

    def end(self, status: DatasetStatus) -> None:
        """Nothing is left to do."""
        ...


class TerminalView:
    """A Live screen. What was in the terminal before comes back at the end."""

    def __init__(self, console: Console, live: Live, screen: Screen) -> None:
        self._console = console
        self._live = live
        self._screen = screen

    def show(self, status: DatasetStatus, note: str, left_s: float | None = None) -> None:
        """Replace what is shown."""
        self._screen.status, self._screen.problem = status, ""
        self._screen.note = _with_time(note, left_s)
        self._screen.seen_unix_s = time.time()
        self._live.refresh()

    def fail(self, error_class: str, message: str) -> None:
        """Keep what is shown, and say why it is old."""
        self._screen.problem = message
        self._live.refresh()

    def end(self, status: DatasetStatus) -> None:
        """The usual tables."""
        self._live.stop()
        print_status(status, self._console)


class LinesView:
    """Plain lines, for a log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._printed: dict[tuple[str, str], str] = {}
        self._note = ""

    def show(self, status: DatasetStatus, note: str, left_s: float | None = None) -> None:
        """A line for each stage that has work left, or has changed."""
        lines = {(stage.stage, stage.spec_hash): _stage_line(stage) for stage in status.stages}
        pending = {(stage.stage, stage.spec_hash) for stage in status.stages if stage.num_pending}
        for shards in status.begun_shards:
            lines["shards", shards.spec_hash] = begun_text(shards)
        for damaged in status.damaged_shards:
            lines["shards", damaged.spec_hash] = damaged.message
        if not lines:
            lines["", ""] = f"{status.num_videos} videos"
        for (stage, spec_hash), line in lines.items():
            if (stage, spec_hash) in pending or self._printed.get((stage, spec_hash)) != line:
                self._print(f"{stage} {spec_hash}: {line}" if stage else f"{status.dataset}: {line}")
        self._printed = lines
        if note and note != self._note:
            self._print(_with_time(note, left_s))
        self._note = note

    def fail(self, error_class: str, message: str) -> None:
        """One line."""
        self._print(message)

    def end(self, status: DatasetStatus) -> None:
        """The usual tables."""
        print_status(status, self._console)

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class JsonView:
    """One object a line: as `status --json`, without the lists of everything that ever failed."""

    def show(self, status: DatasetStatus, note: str, left_s: float | None = None) -> None:
        """The status."""
        document = status.to_dict()
        for stage in document["stages"]:
            del stage["failures"], stage["partials"]
        self._print(document)

    def fail(self, error_class: str, message: str) -> None:
        """As a command's error."""
        self._print({"error": {"class": error_class, "message": message}})

    def end(self, status: DatasetStatus) -> None:
        """The last object was the end."""

    def _print(self, document: dict[str, Any]) -> None:
        print(printable_json(json.dumps(document, ensure_ascii=False)), flush=True)


def watch(
    dataset: str, *, every_s: float | None, json_output: bool, console: Console, errors: Console
) -> None:
    """Show the status until nothing is left to do.

    Raises:
        ConfigurationError: at the first look, there is no dataset.
        typer.Exit: with 130 after Ctrl-C, 143 after SIGTERM.
    """
    if every_s is None:
        every_s = TERMINAL_EVERY_S if console.is_terminal and not json_output else LINES_EVERY_S
    try:
        with (
            _sigterm_as_interrupt(),
            _view(dataset, every_s, json_output=json_output, console=console) as view,
        ):
            _watch(StatusReader(dataset), view, every_s=every_s)
    except KeyboardInterrupt as exc:
        errors.print("cope-prep: no longer watching; a job that runs goes on.", highlight=False)
        raise typer.Exit(143 if isinstance(exc, Terminated) else 130) from None


def _watch(
    reader: StatusReader, view: View, *, every_s: float, sleep: Callable[[float], None] = time.sleep
) -> None:
    waiting = _Waiting()
    looked = False
    while True:
        try:
            status = reader.read()
        except ConfigurationError as exc:
            if not looked:
                raise
            view.fail(type(exc).__name__, redacted(str(exc)))
        except Exception as exc:  # a store's client has errors of its own, and a watcher outlives them all
            view.fail(type(exc).__name__, redacted(" ".join(str(exc).split())) or type(exc).__name__)
        else:
            left_s = waiting.left_s(status, now_unix_s=time.time())
            view.show(status, _note(status, left_s), left_s)
            if left_s == 0.0:
                view.end(status)
                return
        looked = True
        sleep(every_s)


class _Waiting:
    """For how long it is still worth to watch a dataset in which nothing is pending."""

    def __init__(self) -> None:
        self._begun: dict[str, int] = {}
        self._moved_unix_s = 0.0

    def left_s(self, status: DatasetStatus, *, now_unix_s: float) -> float | None:
        """0.0: nothing is left to do. None: there is work."""
        begun = {shards.spec_hash: shards.num_shards for shards in status.begun_shards}
        if begun != self._begun:  # at the first look too: nobody knows how old the newest of them is
            self._begun, self._moved_unix_s = begun, now_unix_s
        if not status.stages or any(stage.num_pending for stage in status.stages):
            return None
        if _is_complete(status):
            return 0.0
        idle_s = [stage.idle_s for stage in status.stages if stage.idle_s is not None]
        ended_unix_s = now_unix_s - min(idle_s) if idle_s else 0.0
        patience_s = SHARD_WITHIN_S if begun else RUNNING_WITHIN_S
        return max(max(ended_unix_s, self._moved_unix_s) + patience_s - now_unix_s, 0.0)


def _is_complete(status: DatasetStatus) -> bool:
    """Every extraction is in shards, and there is one."""
    packed = {(shards.extract_hash, shards.num_videos) for shards in status.shards}
    extracted = [stage for stage in status.stages if stage.stage == "extract"]
    return bool(extracted) and all(
        (stage.spec_hash, stage.num_ok + stage.num_partial) in packed for stage in extracted
    )


def _note(status: DatasetStatus, left_s: float | None) -> str:
    """What is waited for; for how long is said by whoever shows it."""
    if not status.num_videos:
        return "The manifest lists no video."
    if not status.stages:
        return f"Nothing is done yet. Run: cope-prep run {status.dataset}"
    if not left_s:
        return ""
    if status.begun_shards:
        return "Nothing is pending. Waiting for the next shard, or the index of all"
    return "Nothing is pending. Waiting for another stage to begin"


def _with_time(note: str, left_s: float | None) -> str:
    return f"{note}: up to {format_duration(left_s)}." if note and left_s else note


def _stage_line(stage: StageStatus) -> str:
    num_done = stage.num_ok + stage.num_partial
    speed = speed_text(stage)
    counts = f"{stage.num_partial} partial, {stage.num_failed} failed, {stage.num_pending} pending"
    return f"{num_done}/{stage.num_videos} done, {counts}{'; ' if speed else ''}{speed}"


@contextlib.contextmanager
def _view(dataset: str, every_s: float, *, json_output: bool, console: Console) -> Iterator[View]:
    if json_output:
        yield JsonView()
    elif not console.is_terminal:
        yield LinesView(console)
    else:
        screen = Screen(redacted(dataset), every_s=every_s)
        with Live(
            screen, console=console, screen=True, refresh_per_second=1, vertical_overflow="crop"
        ) as live:
            yield TerminalView(console, live, screen)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """So that the terminal is put in order on the way out."""

    def terminate(signum: int, frame: object) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
