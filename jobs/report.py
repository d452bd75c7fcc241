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
from cope_prep.jobs.progress import format_bytes
from cope_prep.jobs.summary import FailedItem, Summary
from cope_prep.pipeline.manifest_report import ManifestReport
from cope_prep.pipeline.verify_report import VerifyReport
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
    out = Outlet(console=make_console(stderr=True), json_output=json_output)
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


def make_console(*, stderr: bool) -> Console:
    """A console as wide as its terminal, or wide enough for tables where there is none."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=_PLAIN_WIDTH)


def end_stages(out: Outlet, *, command: str, dataset: str, summaries: Sequence[Summary]) -> None:
    """Print how the stages stand, and exit with 1 if anything failed or could not be tried."""
    failures = [item for summary in summaries for item in summary.failures]
    num_left_out = max(summary.num_missing_input for summary in summaries)
    if failures:
        out.console.print(failure_table(failures, title=f"{len(failures)} failed"))
        out.console.print(
            f"All of them: cope-prep status {dataset} --json. To try them again: --retry-failed.",
            highlight=False,
            soft_wrap=True,
        )
    elif num_left_out:
        out.console.print(
            f"{num_left_out} videos were left out: the stage before has no output of them.", highlight=False
        )
    document = {
        "command": command,
        "dataset": dataset,
        "stages": [summary.to_dict() for summary in summaries],
    }
    out.result(document, "\n".join(summary.text() for summary in summaries))
    if failures or num_left_out:
        raise typer.Exit(1)


def failure_table(failures: Sequence[FailedItem], *, title: str) -> Table:
    """Items by stage and class: how many, and the messages of the first ones."""
    groups: dict[tuple[str, str], list[FailedItem]] = defaultdict(list)
    for item in failures:
        groups[item.stage, item.error_class].append(item)
    table = Table(title=title, title_justify="left")
    table.add_column("Stage")
    table.add_column("Error", style="red")
    table.add_column("Count", justify="right")
    table.add_column("For instance", overflow="fold")
    for (stage, error_class), items in sorted(groups.items(), key=lambda group: -len(group[1])):
        # Text, because file names may hold [brackets], which are markup in a string.
        examples = Text("\n".join(item.error_message for item in items[:_EXAMPLES_PER_CLASS]))
        table.add_row(stage, error_class, str(len(items)), examples)
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


def verify_text(result: VerifyReport) -> str:
    """The verdict, and what is wrong where."""
    counts = result.counts
    looked_at = (
        f"{counts.shards} shards, {counts.videos} videos, {counts.gops} GOPs, {counts.windows} windows;"
        f" {counts.gops_rebuilt} GOPs rebuilt, {counts.gops_compared} compared with the re-encoded video"
    )
    lines = [f"{looked_at}: {'all as recorded' if result.ok else 'NOT as recorded'}"]
    for problem in result.problems:
        where = ", ".join(part for part in (problem.shard, problem.key) if part)
        where += f" at byte {problem.offset_bytes}" if problem.offset_bytes >= 0 else ""
        lines.append(f"{problem.kind}: {where}: {problem.message}")
    lines += [f"{count} problems of kind {kind}" for kind, count in result.num_problems.items()]
    return "\n".join(lines)
