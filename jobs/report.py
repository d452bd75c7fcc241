"""How a command speaks: results on stdout, everything else on stderr, and one exit code.

0    all done
1    finished, but some videos failed (0 with --failed-ok); or stopped by --max-failures; or the store or the
     cluster failed, or a table of the dataset was found damaged in the middle of the work
2    wrong usage or configuration, or a dataset that cannot be read: one line, before any work
130  Ctrl-C, 143 SIGTERM: what was done is recorded
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from cope_prep.jobs.failure_limit import WORTH_ANOTHER_RUN
from cope_prep.jobs.progress import format_bytes
from cope_prep.jobs.session import Terminated, had_begun
from cope_prep.jobs.summary import FailedItem, Summary
from cope_prep.pipeline.manifest_report import ManifestReport
from cope_prep.pipeline.printable import log_printably, printable, printable_json
from cope_prep.pipeline.provenance_report import ProvenanceReport
from cope_prep.pipeline.redact import redacted, redacted_document
from cope_prep.pipeline.verify_report import VerifyReport
from cope_prep.schemas.errors import (
    ConfigurationError,
    CopePrepError,
    FormatError,
    RunLockLostError,
    SourceNotFoundError,
)

_EXAMPLES_PER_CLASS = 3
_STOPPED = "stopped. What is done is recorded; run the same command again to go on."
_PLAIN_WIDTH = 140
"""Columns of a table in a log file, where there is no terminal to fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlet:
    """Where one command's output goes."""

    console: Console
    """On stderr."""
    json_output: bool

    def result(self, document: dict[str, Any], text: str) -> None:
        """Print the command's result on stdout: the document with `--json`, else the text; no URL's secrets."""
        if self.json_output:
            print(printable_json(json.dumps(redacted_document(document), indent=2, ensure_ascii=False)))
        elif text:
            print(printable(redacted_document(text)))

    def say_failed(self, message: str) -> None:
        """Print why a command ends as it does."""
        message = printable(redacted(message))
        self.console.print(
            f"cope-prep: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True
        )

    def fail(self, error_class: str, message: str, exit_code: int) -> NoReturn:
        """End the command with a message."""
        self.say_failed(message)
        if self.json_output:
            self.result({"error": {"class": error_class, "message": message}}, "")
        raise typer.Exit(exit_code)


@contextlib.contextmanager
def outlet(*, json_output: bool, stopped: str = _STOPPED) -> Iterator[Outlet]:
    """The outlet of a command, and the meaning of every error that leaves the command.

    `stopped`: what to say after Ctrl-C and SIGTERM.
    """
    log_printably()
    out = Outlet(console=make_console(stderr=True), json_output=json_output)
    try:
        yield out
    except (FormatError, SourceNotFoundError) as exc:  # the same command would meet them again
        out.fail(type(exc).__name__, str(exc), 1 if had_begun(exc) else 2)
    except ConfigurationError as exc:
        out.fail(type(exc).__name__, str(exc), 2)
    except RunLockLostError as exc:  # another run goes on, which is to be left alone
        out.fail(type(exc).__name__, str(exc), 1)
    except CopePrepError as exc:
        out.fail(type(exc).__name__, f"{str(exc).removesuffix('.')}. Run the same command again to go on.", 1)
    except KeyboardInterrupt as exc:
        out.fail(
            "Interrupted",
            stopped,
            143 if isinstance(exc, Terminated) else 130,
        )


def make_console(*, stderr: bool) -> Console:
    """A console as wide as its terminal, or wide enough for tables where there is none."""
    console = _PrintableConsole(stderr=stderr)
    return console if console.is_terminal else _PrintableConsole(stderr=stderr, width=_PLAIN_WIDTH)


class _PrintableConsole(Console):
    """Control characters of names are shown, not sent, in all that it prints; its own are sent.

    URLs lose their secrets, those in the cells of tables, too.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        if isinstance(renderable, str):
            renderable = redacted_document(renderable)
        elif isinstance(renderable, Text):
            renderable = _redacted_text(renderable)
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def _redacted_text(text: Text) -> Text:
    """The same text; if something is hidden in it, it has one style all over."""
    plain = redacted_document(text.plain)
    if plain == text.plain:
        return text
    return Text(
        plain,
        style=text.style,
        justify=text.justify,
        overflow=text.overflow,
        no_wrap=text.no_wrap,
        end=text.end,
        tab_size=text.tab_size,
    )


def end_stages(
    out: Outlet, *, command: str, dataset: str, summaries: Sequence[Summary], failed_ok: bool
) -> None:
    """Print how the stages stand, and exit with 1 if anything failed or could not be tried.

    With `failed_ok` only if the same command, given again, would have something to do: after a stop, or for what
    the store, a node or a shard lacked. Whoever starts a job again while it fails does not start it for nothing.
    """
    failures = [item for summary in summaries for item in summary.failures]
    shards = [item for item in failures if item.stage == "shards"]
    num_left_out = max(summary.num_missing_input for summary in summaries)
    stopped = next((summary.stopped for summary in summaries if summary.stopped), "")
    if failures:
        out.console.print(failure_table(failures, title=f"{len(failures)} failed"))
        if len(failures) > len(shards):
            out.console.print(
                f"All of them: cope-prep status {dataset} --json. To try them again: --retry-failed,"
                " or --retry-failed CLASS, which tries those in quarantine, too.",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        if shards:  # no ledger holds them back
            out.console.print(
                f"{len(shards)} shards failed: the same command, given again, tries them again.",
                highlight=False,
                soft_wrap=True,
            )
    elif num_left_out:
        out.console.print(
            f"{num_left_out} videos were left out: the stage before has no output of them.", highlight=False
        )
    if num_quarantined := max(getattr(summary, "num_quarantined", 0) for summary in summaries):
        out.console.print(
            f"{num_quarantined} of them are in quarantine, and were not tried: cope-prep quarantine {dataset}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    document = {
        "command": command,
        "dataset": dataset,
        "stages": [summary.to_dict() for summary in summaries],
        "stopped": stopped,
    }
    out.result(document, "\n".join(summary.text() for summary in summaries))
    if stopped:
        out.say_failed(stopped)
    again = [*shards, *(item for item in failures if item.error_class in WORTH_ANOTHER_RUN)]
    if stopped or again or (not failed_ok and (failures or num_left_out)):
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
        examples = Text(
            "\n".join(printable(redacted(item.error_message)) for item in items[:_EXAMPLES_PER_CLASS])
        )
        table.add_row(stage, Text(error_class), str(len(items)), examples)
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
    return "\n".join([*lines, *_problem_lines(result)])


def provenance_text(result: ProvenanceReport) -> str:
    """The verdict, what made the samples, and what is not known."""
    counts = result.counts
    verdict = "all can be traced" if result.ok else "NOT all can be traced"
    lines = [f"{counts.shards} shards, {counts.videos} videos, {counts.samples_read} samples: {verdict}"]
    if counts.sources_hashed or counts.sources_gone:
        lines.append(f"sources: {counts.sources_hashed} hashed, {counts.sources_gone} no longer there")
    for stage, found in result.software.items():
        lines += [
            f"{stage} by {', '.join(f'{name} {version}' for name, version in software.items())}"
            for software in found
        ]
    lines += [f"{stage}: made with different versions" for stage in result.mixed]
    return "\n".join([*lines, *_problem_lines(result)])


def _problem_lines(result: VerifyReport | ProvenanceReport) -> list[str]:
    lines = []
    for problem in result.problems:
        where = ", ".join(part for part in (problem.shard, problem.key) if part)
        where += f" at byte {problem.offset_bytes}" if problem.offset_bytes >= 0 else ""
        lines.append(f"{problem.kind}: {where}: {problem.message}")
    return lines + [f"{count} problems of kind {kind}" for kind, count in result.num_problems.items()]
