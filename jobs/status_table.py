"""`cope-prep status` for people: one table of the stages, one of what failed and why."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from cope_prep.jobs.progress import format_bytes, format_duration
from cope_prep.jobs.report import failure_table
from cope_prep.jobs.status import DatasetStatus, StageStatus


def print_status(status: DatasetStatus, console: Console) -> None:
    """Print the tables."""
    console.print(
        f"{status.dataset}: {status.num_videos} videos, {format_bytes(status.source_bytes)}", highlight=False
    )
    if status.stages:
        console.print(_stage_table(status))
    else:
        console.print(f"Nothing is done yet. Run: cope-prep run {status.dataset}", highlight=False)
    failures = [item for stage in status.stages for item in stage.failures]
    partials = [item for stage in status.stages for item in stage.partials]
    if failures:
        console.print(failure_table(failures, title=f"{len(failures)} failed"))
        console.print("They are not tried again unless asked: --retry-failed.", highlight=False)
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
    return table


def _left(stage: StageStatus) -> str:
    if not stage.num_pending:
        return ""
    return "not running" if stage.left_s is None else format_duration(stage.left_s)
