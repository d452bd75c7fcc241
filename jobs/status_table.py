"""`cope-prep status` for people: one table of the stages, one of what failed and why."""

from __future__ import annotations

import dataclasses

from rich.console import Console
from rich.table import Table

from cope_prep.jobs.failure_limit import TRIED_AGAIN
from cope_prep.jobs.progress import format_bytes, format_duration
from cope_prep.jobs.report import failure_table
from cope_prep.jobs.status_records import DatasetStatus, StageStatus
from cope_prep.jobs.status_screen import odd_texts, shards_rows, stage_rows


def print_status(status: DatasetStatus, console: Console) -> None:
    """Print the tables."""
    # No markup: a path may hold [brackets].
    console.print(
        f"{status.dataset}: {status.num_videos} videos, {format_bytes(status.source_bytes)}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    table = _stage_table(status)
    unbounded = console.options.update(max_width=10_000)
    if status.stages and console.measure(table, options=unbounded).maximum <= console.width:
        console.print(table)
        for stage in status.stages:  # the other form has a line for it
            if odd := odd_texts(stage):
                console.print(f"{stage.stage} {stage.spec_hash}: {', '.join(odd)}", highlight=False)
    elif status.stages:  # a table of so many columns would be all ellipses
        rows = [row for stage in status.stages for row in stage_rows(stage, width=console.width)]
        whole = dataclasses.replace(status, damaged_shards=())  # they follow, in full
        console.print(*rows, *shards_rows(whole), sep="\n", highlight=False)
    else:
        console.print(
            f"Nothing is done yet. Run: cope-prep run {status.dataset}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    for damaged in status.damaged_shards:
        text = f"shards {damaged.spec_hash}: {damaged.message}"
        console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    failures = [item for stage in status.stages for item in stage.failures]
    partials = [item for stage in status.stages for item in stage.partials]
    if failures:
        console.print(failure_table(failures, title=f"{len(failures)} failed"))
        *classes, last = sorted(TRIED_AGAIN)
        again = f"{', '.join(classes)} and {last}"
        console.print(
            f"The next run tries {again} again, and the others if asked: --retry-failed,"
            " or --retry-failed CLASS, which tries those in quarantine, too.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if status.num_quarantined:
        console.print(
            f"{status.num_quarantined} in quarantine, which no run tries unless asked:"
            f" cope-prep quarantine {status.dataset}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if partials:
        console.print(failure_table(partials, title=f"{len(partials)} partial: done as far as possible"))


def _stage_table(status: DatasetStatus) -> Table:
    table = Table()
    for name in ("Stage", "Spec"):
        table.add_column(name, no_wrap=True)
    for name in ("Done", "Partial", "Failed", "Pending", "Waiting", "Video", "Output", "Rate", "Left"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in status.stages:
        rate = "" if stage.videos_per_s is None else f"{stage.videos_per_s:.2f}/s"
        table.add_row(
            stage.stage,
            stage.spec_hash,
            f"{stage.num_ok + stage.num_partial}/{stage.num_videos}",
            str(stage.num_partial),
            str(stage.num_failed),
            str(stage.num_pending),
            str(stage.num_waiting),
            format_duration(stage.duration_s),
            format_bytes(stage.output_bytes),
            rate,
            _left(stage),
        )
    for shards in status.shards:
        table.add_row(
            "shards",
            shards.spec_hash,
            f"{shards.num_videos}/{status.num_videos}",
            *("", "", "", ""),
            format_duration(shards.duration_s),
            format_bytes(shards.output_bytes),
            f"{shards.num_shards} shards",
            "",
        )
    for begun in status.begun_shards:
        planned = "" if begun.num_planned is None else f"/{begun.num_planned}"
        index = "not all indexed" if begun.has_index else "no index yet"
        table.add_row("shards", begun.spec_hash, *([""] * 7), f"{begun.num_shards}{planned} shards", index)
    return table


def _left(stage: StageStatus) -> str:
    if not stage.num_pending:
        return ""
    if stage.last_unix_s is None:
        return "none ended yet"
    return "not running" if stage.left_s is None else format_duration(stage.left_s)
