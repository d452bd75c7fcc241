"""`cope-prep stats` for people: tables of at most 100 columns, in the order in which a run makes their figures.

Of distributions the terminal shows those of all videos, and of outliers the first five: `--json` and `--csv` have
the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from cope_prep.jobs.progress import format_bytes, format_duration
from cope_prep.jobs.stats_cells import (
    BYTES,
    CLIPPED,
    COUNTS,
    IN_BRACKETS,
    OTHERS,
    STAGES,
    byte_cells,
    clipped_cells,
    count_cells,
    other_cells,
    question_cells,
    question_titles,
    stage_cells,
)
from cope_prep.jobs.stats_words import PROPERTIES, hours, shown, sorted_kinds, titled
from cope_prep.pipeline.finding_shares import named
from cope_prep.pipeline.findings import findings
from cope_prep.pipeline.stats_records import DatasetStats, GroupStats, SourceShare

WIDTH = 100
_NUM_SHOWN = 5
"""Outliers of a figure, and values of a property of the sources."""
_LEAST_WIDTH = 14
"""A column that folds is not narrower than this: else its words fall apart."""
Cells = Callable[[GroupStats], Sequence[str]]


def print_stats(stats: DatasetStats, console: Console) -> None:
    """Print all tables that have rows."""
    _say(console, stats.dataset)
    _say(console, _headline(stats))
    for note in stats.notes:
        _say(console, f"Note: {note}", style="yellow")
    _print_table(console, _finding_table(stats))
    total = stats.total
    tables = [_stage_table(stats)] if stats.stages else []
    tables.append(_group_table(stats, "Videos", COUNTS, count_cells))
    if total.num_questions:
        kinds = sorted_kinds(total.num_questions)
        titles = question_titles(kinds)
        tables.append(_group_table(stats, "Questions", titles, lambda group: question_cells(group, kinds)))
    if stats.failures:
        tables.append(_failure_table(stats))
    if stats.sources:
        tables.append(_source_table(stats))
    if total.num_videos:
        tables.append(_group_table(stats, "KiB a second of video", BYTES, byte_cells))
        tables.append(_group_table(stats, "Size of the samples against other forms", OTHERS, other_cells))
        tables.append(
            _group_table(stats, "Windows with clipped values, or without any vector", CLIPPED, clipped_cells)
        )
    if stats.distributions:
        tables.append(_distribution_table(stats))
    if stats.tokens is not None and total.num_videos:
        tables.append(_token_table(stats))
    if any(stats.outliers.values()):
        tables.append(_outlier_table(stats))
    for table in tables:
        _print_table(console, table)
    if any("(" in cell for group in (total, *stats.subsets) for cell in other_cells(group)):
        _say(console, IN_BRACKETS)
    if total.num_videos and total.jpeg_estimate.ratio is not None:
        _say(
            console, "JPEG at 1 FPS is an estimate: as many pictures of the mean size of the stored I-frames."
        )


def _say(console: Console, text: str, *, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _headline(stats: DatasetStats) -> str:
    total = stats.total
    if not stats.has_index:
        return f"{total.num_listed:,} videos, none in shards yet"
    videos = f"{total.num_videos:,} of {total.num_listed:,} videos in the shards"
    if stats.num_unlisted_videos:
        videos = f"{total.num_videos:,} videos in the shards, {total.num_listed:,} listed"
    return (
        f"{videos}, {hours(total.duration_s)} h, {total.num_gops:,} GOPs, {total.num_windows:,} windows,"
        f" {format_bytes(total.sample_bytes)}"
    )


def _table(title: str, texts: Iterable[str], numbers: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in texts:
        table.add_column(Text(name), overflow="fold")
    for name in numbers:
        table.add_column(Text(name), justify="right", no_wrap=True)
    return table


def _add(table: Table, *cells: str | Text) -> None:
    # Text, because names and messages may hold [brackets], which are markup in a string.
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def _print_table(console: Console, table: Table) -> None:
    """A table, or the same in lines where the terminal is too narrow for it."""
    width = min(WIDTH, console.width)
    columns = [[column.header, *column.cells] for column in table.columns]
    widest = [max(cell_len(str(cell)) for cell in cells) for cells in columns]
    needed = [
        wide if column.no_wrap else min(wide, _LEAST_WIDTH)
        for wide, column in zip(widest, table.columns, strict=True)
    ]
    if sum(needed) + 3 * len(needed) + 1 <= width:
        console.print(table, width=width)
        return
    (names, *rows) = zip(*columns, strict=True)
    console.print(Text(str(table.title or ""), style="italic"))
    for row in rows:
        first = " ".join(
            str(cell) for cell, column in zip(row, table.columns, strict=True) if not _named(column)
        )
        rest = ", ".join(
            f"{name} {cell}"
            for name, cell, column in zip(names, row, table.columns, strict=True)
            if _named(column) and str(cell)
        )
        console.print(Text(f"{first}: {rest}" if rest else first), width=width)


def _named(column: Column) -> bool:
    """Its cells are numbers, which say nothing without the column's name."""
    return column.justify == "right"


def _group_table(stats: DatasetStats, title: str, columns: Sequence[str], cells: Cells) -> Table:
    """One row a subset, and one of all; of a single subset only the latter."""
    table = _table(title, ["Subset"], columns)
    if len(stats.subsets) > 1:
        for group in stats.subsets:
            _add(table, named(group.subset), *cells(group))
        table.add_section()
    _add(table, named(None), *cells(stats.total))
    return table


_STYLES = {"problem": "bold red", "warning": "yellow", "note": "", "good": "green"}


def _finding_table(stats: DatasetStats) -> Table:
    table = _table("What to look at", [], [])
    table.add_column("", no_wrap=True)
    table.add_column("What the figures say, and what to do about it", overflow="fold")
    for finding in findings(stats):
        said = Text(finding.text)
        if finding.advice:
            said.append(f" {finding.advice}", style="dim")
        _add(table, Text(finding.severity, style=_STYLES[finding.severity]), said)
    return table


def _stage_table(stats: DatasetStats) -> Table:
    table = _table("Stages", ["Stage", "Spec"], STAGES)
    for stage in stats.stages:
        _add(table, stage.stage, stage.spec_hash, *stage_cells(stage))
    return table


def _failure_table(stats: DatasetStats) -> Table:
    table = _table("Failures", [], [])
    for name in ("Stage", "Ended", "Error"):
        table.add_column(name, no_wrap=True)
    table.add_column("Videos", justify="right", no_wrap=True)
    table.add_column("For instance", overflow="fold")
    for failure in stats.failures:
        _add(
            table,
            failure.stage,
            failure.status,
            failure.error_class,
            f"{failure.num_videos:,}",
            failure.example_message,
        )
    return table


def _source_table(stats: DatasetStats) -> Table:
    table = _table("Source videos", ["", "Value"], ["Videos", "Share", "Hours"])
    for what, title in PROPERTIES.items():
        shares = [share for share in stats.sources if share.what == what]
        number = sum(share.num_videos for share in shares)
        rest = shares[_NUM_SHOWN:]
        shown = [(share.value, [share]) for share in shares[:_NUM_SHOWN]]
        if rest:
            shown.append((f"{len(rest):,} others", rest))
        for row, (value, together) in enumerate(shown):
            _add(table, title if row == 0 else "", value, *_source_cells(together, number))
        table.add_section()
    return table


def _source_cells(shares: Sequence[SourceShare], number: int) -> list[str]:
    own = sum(share.num_videos for share in shares)
    return [f"{own:,}", f"{own / number:.1%}", hours(sum(share.duration_s for share in shares))]


def _distribution_table(stats: DatasetStats) -> Table:
    columns = ["Min", "25 %", "Median", "75 %", "95 %", "Max", "Mean"]
    table = _table("Distributions over windows, and of durations", ["Figure"], columns)
    for one in stats.distributions:
        if one.subset is not None:
            continue
        values = (one.minimum, one.p25, one.median, one.p75, one.p95, one.maximum, one.mean)
        _add(table, titled(one.name), *(shown(one.name, value) for value in values))
    return table


def _token_table(stats: DatasetStats) -> Table:
    tokens, total = stats.tokens, stats.total
    assert tokens is not None
    table = _table(
        f"Tokens of all videos once ({tokens.picture_tokens} a picture, {tokens.delta_tokens} a Δ)",
        ["Key frames a GOP"],
        ["Tokens", "A second", "A video", "Against dense RGB"],
    )
    for budget in tokens.budgets:
        _add(
            table,
            f"{budget.key_frames} of {budget.num_anchors}",
            f"{budget.num_tokens:,}",
            f"{budget.tokens_per_s:,.1f}",
            f"{budget.num_tokens / total.num_videos:,.0f}",
            f"{budget.ratio:.1%}",
        )
    table.add_section()
    _add(
        table,
        "dense RGB, 1 FPS",
        f"{tokens.dense_rgb_tokens:,}",
        f"{tokens.dense_rgb_tokens / total.duration_s:,.1f}",
        f"{tokens.dense_rgb_tokens / total.num_videos:,.0f}",
        "",
    )
    return table


def _outlier_table(stats: DatasetStats) -> Table:
    table = _table("Outliers", ["Largest", "Video"], ["Value", "Duration"])
    for name, found in stats.outliers.items():
        for row, outlier in enumerate(found[:_NUM_SHOWN]):
            _add(
                table,
                titled(name) if row == 0 else "",
                outlier.video_id,
                shown(name, outlier.value),
                format_duration(outlier.duration_s),
            )
        table.add_section()
    return table
