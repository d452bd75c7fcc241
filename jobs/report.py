"""How a command speaks: results on stdout, everything else on stderr, and one exit code.

0    all done
1    finished, but some videos failed; or the store or the cluster failed on the way
2    wrong usage or configuration: one line, before any work
130  Ctrl-C, 143 SIGTERM: what was done is recorded
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cope_prep.jobs.options import Terminated
from cope_prep.jobs.progress import format_bytes, format_duration
from cope_prep.jobs.video_stage import StageSummary
from cope_prep.pipeline.ledger import LedgerRow
from cope_prep.pipeline.manifest_report import ManifestReport
from cope_prep.schemas.errors import ConfigurationError, CopePrepError, FormatError, SourceNotFoundError

_EXAMPLES_PER_CLASS = 3
_PLAIN_WIDTH = 140
"""Columns of a table in a log file, where there is no terminal to fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlet:
    """Where one command's output goes."""

    console: Console
    """On stderr."""
    json_output: bool

    def result(self, document: dict[str, Any], text: str) -> None:
        """Print the command's result on stdout: the document with `--json`, else the text."""
        if self.json_output:
            print(json.dumps(document, indent=2, ensure_ascii=False))
        elif text:
            print(text)

    def fail(self, error_class: str, message: str, exit_code: int) -> NoReturn:
        """End the command with a message."""
        self.console.print(
            f"cope-prep: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True
        )
        if self.json_output:
            self.result({"error": {"class": error_class, "message": message}}, "")
        raise typer.Exit(exit_code)


@contextlib.contextmanager
def outlet(*, json_output: bool) -> Iterator[Outlet]:
    """The outlet of a command, and the meaning of every error that leaves the command."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console = Console(stderr=True, width=_PLAIN_WIDTH)
    out = Outlet(console=console, json_output=json_output)
    try:
        yield out
    except (ConfigurationError, FormatError, SourceNotFoundError) as exc:
        out.fail(type(exc).__name__, str(exc), 2)
    except CopePrepError as exc:
        out.fail(type(exc).__name__, f"{exc} Run the same command again to go on.", 1)
    except KeyboardInterrupt as exc:
        out.fail(
            "Interrupted",
            "stopped. What is done is recorded; run the same command again to go on.",
            143 if isinstance(exc, Terminated) else 130,
        )


def end_stages(out: Outlet, *, command: str, dataset: str, summaries: Sequence[StageSummary]) -> None:
    """Print how the stages stand, and exit with 1 if any video failed or could not be tried."""
    document = {
        "command": command,
        "dataset": dataset,
        "stages": [summary.to_dict() for summary in summaries],
    }
    failures = [row for summary in summaries for row in summary.failures]
    num_missing_input = max((summary.num_missing_input for summary in summaries), default=0)
    if failures:
        out.console.print(failure_table(failures))
        out.console.print(
            f"All of them: cope-prep status {dataset} --json. Try them again: --retry-failed.",
            highlight=False,
        )
    if num_missing_input and len(summaries) == 1:
        out.console.print(
            f"{num_missing_input} videos were left out: the stage before has no output of them.",
            highlight=False,
        )
    out.result(document, "\n".join(summary_line(summary) for summary in summaries))
    if failures or num_missing_input:
        raise typer.Exit(1)


def summary_line(summary: StageSummary) -> str:
    """One line about one stage."""
    ended = f"{summary.num_ok} ok, {summary.num_partial} partial, {summary.num_failed} failed"
    return (
        f"{summary.stage} {summary.spec_hash}: {ended} of {summary.num_videos} videos"
        f" ({summary.num_run} in this run); {format_duration(summary.duration_s)} of video,"
        f" {format_bytes(summary.output_bytes)}; took {format_duration(summary.wall_s)}"
    )


def failure_table(failures: Sequence[LedgerRow]) -> Table:
    """Failures by stage and class: how many, and the messages of the first ones."""
    groups: dict[tuple[str, str], list[LedgerRow]] = defaultdict(list)
    for row in failures:
        groups[row.stage, row.error_class].append(row)
    table = Table(title=f"{len(failures)} failed", title_justify="left")
    table.add_column("Stage")
    table.add_column("Error", style="red")
    table.add_column("Count", justify="right")
    table.add_column("For instance", overflow="fold")
    for (stage, error_class), rows in sorted(groups.items(), key=lambda group: -len(group[1])):
        # Text, because file names may hold [brackets], which are markup in a string.
        examples = "\n".join(row.error_message for row in rows[:_EXAMPLES_PER_CLASS])
        table.add_row(stage, error_class, str(len(rows)), Text(examples))
    return table


def manifest_text(result: ManifestReport, dataset: str) -> str:
    """What a manifest holds, and what was left out."""
    lines = [
        f"{result.num_videos} videos ({format_bytes(result.total_bytes)})"
        f" and {result.num_questions} questions: {dataset}"
    ]
    for (subset, kind), count in sorted(result.counts.items()):
        lines.append(f"  {subset} {kind}: {count}")
    for entry in result.skipped:
        lines.append(f"left out {entry.count}: {entry.what} ({entry.reason})")
    missing = result.missing_videos
    if missing.count:
        lines.append(f"missing {missing.count} videos, for instance {', '.join(missing.examples[:3])}")
    for folder, count in result.unknown_folders.items():
        lines.append(f"unknown folder {folder}: {count} files")
    return "\n".join(lines)
