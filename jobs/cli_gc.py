"""The command that cleans up: gc."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Annotated

import typer

from cope_prep.jobs import options as opt
from cope_prep.jobs import report
from cope_prep.jobs.progress import format_bytes
from cope_prep.schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from cope_prep.pipeline.gc import Garbage, GcReport

_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_WORDS = {
    "temporary": "temporary files of writes that never ended",
    "upload": "unfinished uploads",
    "part": "parts of long videos that were never joined",
    "orphan": "outputs of no video, without a row",
    "removed": "outputs of videos that the manifest no longer lists",
}
_SHOWN = 20
"""Names of a kind; `--json` has them all."""


def gc(
    dataset: opt.Dataset,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    older_than: Annotated[
        str,
        typer.Option(metavar="AGE", help="Keep what was written since then: 90m, 24h or 7d."),
    ] = "24h",
    removed_videos: Annotated[
        bool,
        typer.Option(
            "--removed-videos", help="Also delete outputs of videos that the manifest no longer lists."
        ),
    ] = False,
    json_output: opt.JsonOutput = False,
) -> None:
    """Delete what killed runs left behind: temporary files, unfinished uploads, parts, orphaned outputs.

    It never deletes a source, and nothing while a run is alive.

    Example: `cope-prep gc ./dataset --dry-run`
    """
    from cope_prep.pipeline.gc import collect

    with report.outlet(json_output=json_output) as out:
        found = collect(dataset, older_than_s=parse_age(older_than), removed=removed_videos, dry_run=dry_run)
        out.result(found.to_dict(), _text(found))


def parse_age(text: str) -> float:
    """Seconds of `90s`, `90m`, `24h` or `7d`.

    Raises:
        ConfigurationError: it is none of these.
    """
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError("--older-than", f"is {text!r}", "Give for instance 90m, 24h or 7d.")
    return float(match[1]) * _SECONDS[match[2]]


def _text(found: GcReport) -> str:
    kinds: dict[str, list[Garbage]] = defaultdict(list)
    for one in found.garbage:
        kinds[one.kind].append(one)
    lines = []
    for kind, garbage in kinds.items():
        size = format_bytes(sum(one.size_bytes for one in garbage))
        lines.append(f"{len(garbage)} {_WORDS[kind]}, {size}:")
        lines += [f"  {one.uri} ({format_bytes(one.size_bytes)})" for one in garbage[:_SHOWN]]
        if len(garbage) > _SHOWN:
            lines.append(f"  and {len(garbage) - _SHOWN} more")
    verb = "would be deleted" if found.dry_run else "deleted"
    lines.append(f"{verb}: {len(found.garbage)}, {format_bytes(found.total_bytes)}")
    if found.kept_removed:
        size = format_bytes(sum(one.size_bytes for one in found.kept_removed))
        lines.append(
            f"kept: {len(found.kept_removed)} {_WORDS['removed']}, {size} (--removed-videos deletes them)"
        )
    if found.num_unrecorded:
        lines.append(f"kept: {found.num_unrecorded} outputs without a row, which the next run makes again")
    lines += [f"left alone: {folder} (a link to outside the dataset)" for folder in found.outside]
    if not found.is_clock_of_store:
        lines.append("ages by this machine's clock: the dataset cannot be written")
    if found.num_young:
        lines.append(f"kept: {found.num_young} too young to tell (--older-than)")
    return "\n".join(lines)
