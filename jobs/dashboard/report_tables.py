"""The tables and tiles of the report, as text: the same cells as on the terminal, but with every row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cope_prep.jobs import stats_cells as cells
from cope_prep.jobs.dashboard.report_sheets import Sheet
from cope_prep.jobs.progress import format_bytes, format_duration
from cope_prep.jobs.stats_words import FIGURES, PROPERTIES, hours, length, shown, sorted_kinds, titled
from cope_prep.pipeline.finding_shares import Finding, named, percent
from cope_prep.pipeline.stats_records import DatasetStats, GroupStats

MAX_SOURCE_ROWS = 40
MAX_SUBSET_ROWS = 200
"""Subsets of a table; those with the most videos are kept. --csv has all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns of text, then columns of numbers."""

    texts: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    last_is_sum: bool = False
    """The last row is of all together."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One headline figure."""

    value: str
    label: str
    detail: str = ""
    severity: str = ""
    """`problem` or `warning` where the findings have one about it."""


def tiles(stats: DatasetStats, findings: Sequence[Finding]) -> list[Tile]:
    """The headline: what there is, and what failed."""
    total = stats.total
    by_rule = {finding.rule: finding.severity for finding in findings}
    questions = sum(total.num_questions.values())
    share = total.num_failed / total.num_listed if total.num_listed else 0.0
    found = [
        Tile(
            value=f"{total.num_videos:,}" if stats.has_index else f"{total.num_listed:,}",
            label="videos in the shards" if stats.has_index else "videos listed",
            detail=_listed(stats) if stats.has_index else "none in shards yet",
            severity=by_rule.get("not-in-shards", ""),
        ),
        Tile(
            value=f"{total.num_failed:,}",
            label="failed",
            detail=f"{percent(share)} of the listed; {total.num_partial:,} partial",
            severity=by_rule.get("failures", ""),
        ),
    ]
    if stats.has_index:
        rate = total.per_second(total.sample_bytes)
        found += [
            Tile(value=length(total.duration_s), label="of video", detail=f"{total.num_frames:,} frames"),
            Tile(
                value=f"{total.num_windows:,}",
                label="windows",
                detail=f"in {total.num_gops:,} GOPs (samples)",
            ),
            Tile(
                value=format_bytes(total.sample_bytes),
                label="of samples",
                detail="" if rate is None else f"{rate / 1024:,.1f} KiB a second of video",
            ),
        ]
    elif stats.stages:
        stage = stats.stages[-1]
        found.append(
            Tile(
                value=f"{stage.num_ok + stage.num_partial:,}",
                label=f"through {stage.stage}",
                detail=f"{length(stage.duration_s)} of video",
            )
        )
    if stats.tokens is not None and stats.tokens.budgets and total.num_videos:
        few = min(stats.tokens.budgets, key=lambda budget: budget.num_tokens)
        found.append(
            Tile(
                value=_rounded(few.num_tokens),
                label="tokens",
                detail=f"{few.key_frames} of {few.num_anchors} key frames: {percent(few.ratio)} of dense RGB",
            )
        )
    for one in stats.distributions:
        if one.name == "psnr_y_db" and one.subset is None:
            found.append(
                Tile(
                    value=f"{one.median:.1f} dB",
                    label="luma PSNR",
                    detail="of rebuilt anchors, the median",
                    severity=by_rule.get("low-psnr", ""),
                )
            )
    each = f"{questions / total.num_listed:.1f} a video" if total.num_listed else ""
    return [*found, Tile(value=f"{questions:,}", label="questions", detail=each)]


def _listed(stats: DatasetStats) -> str:
    number = f"{stats.total.num_listed:,} listed"
    return number if stats.num_unlisted_videos else f"of {number}"


def _rounded(number: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:,}"


def all_tables(stats: DatasetStats) -> dict[str, Table]:
    """By name; of what there is nothing, a table without rows."""
    total = stats.total
    kinds = sorted_kinds(total.num_questions)
    nothing = Table(texts=())
    made = {
        "counts": _by_group(stats, cells.COUNTS, cells.count_cells),
        "stages": _stages(stats),
        "failures": _failures(stats),
        "failing_subsets": _failing_subsets(stats),
        "sources": _sources(stats),
        "questions": nothing,
        **dict.fromkeys(("bytes", "sizes", "clipped", "distributions", "tokens"), nothing),
    }
    if kinds:
        titles = cells.question_titles(kinds)
        made["questions"] = _by_group(stats, titles, lambda group: cells.question_cells(group, kinds))
    if total.num_videos:
        clipped = ("Vectors clipped", "Share", "Residuals clipped", "Share", "No vector", "Share")
        made["bytes"] = _by_group(stats, cells.BYTES, cells.byte_cells)
        made["sizes"] = _with_brackets(_by_group(stats, cells.OTHERS, cells.other_cells))
        made["clipped"] = _by_group(stats, clipped, cells.clipped_cells)
        made["distributions"] = _distributions(stats)
        made["tokens"] = _tokens(stats)
    return made


def _by_group(
    stats: DatasetStats, columns: Sequence[str], cells_of: Callable[[GroupStats], Sequence[str]]
) -> Table:
    largest = sorted(stats.subsets, key=lambda group: -max(group.num_listed, group.num_videos))
    kept = {group.subset for group in largest[:MAX_SUBSET_ROWS]} if len(largest) > 1 else set()
    groups = [group for group in stats.subsets if group.subset in kept]
    rows = [(named(group.subset), *cells_of(group)) for group in groups]
    return Table(
        texts=("Subset",),
        numbers=tuple(columns),
        rows=(*rows, (named(None), *cells_of(stats.total))),
        last_is_sum=bool(rows),
        note=f"{len(largest) - len(kept):,} smaller subsets are left out; --csv has them."
        if len(largest) > MAX_SUBSET_ROWS
        else "",
    )


def _with_brackets(table: Table) -> Table:
    if any("(" in cell for row in table.rows for cell in row[1:]):
        return replace(table, note=f"{cells.IN_BRACKETS} {table.note}".strip())
    return table


def _stages(stats: DatasetStats) -> Table:
    return Table(
        texts=("Stage", "Spec"),
        numbers=cells.STAGES,
        rows=tuple((stage.stage, stage.spec_hash, *cells.stage_cells(stage)) for stage in stats.stages),
    )


def _failures(stats: DatasetStats) -> Table:
    return Table(
        texts=("Stage", "Ended", "Error", "For instance", "Message"),
        numbers=("Videos",),
        rows=tuple(
            (
                failure.stage,
                failure.status,
                failure.error_class,
                failure.example_video_id,
                failure.example_message,
                f"{failure.num_videos:,}",
            )
            for failure in stats.failures
        ),
    )


def _failing_subsets(stats: DatasetStats) -> Table:
    """Classes down, subsets across would be wide: one row a subset and class instead, most frequent first."""
    rows = [
        (subset, failure.error_class, failure.status, number)
        for failure in stats.failures
        for subset, number in failure.by_subset.items()
    ]
    rows.sort(key=lambda row: -row[3])
    listed = {group.subset: group.num_listed for group in stats.subsets}
    return Table(
        texts=("Subset", "Error", "Ended"),
        numbers=("Videos", "Of the listed"),
        rows=tuple(
            (
                named(subset),
                error,
                status,
                f"{number:,}",
                f"{number / listed[subset]:.2%}" if listed.get(subset) else "",
            )
            for subset, error, status, number in rows[:MAX_SUBSET_ROWS]
        )
        if len(stats.subsets) > 1
        else (),
    )


def _sources(stats: DatasetStats) -> Table:
    rows: list[tuple[str, ...]] = []
    left_out = 0
    for what, title in PROPERTIES.items():
        shares = [share for share in stats.sources if share.what == what]
        number = sum(share.num_videos for share in shares)
        left_out += max(len(shares) - MAX_SOURCE_ROWS, 0)
        rows += [
            (
                title,
                share.value,
                f"{share.num_videos:,}",
                f"{share.num_videos / number:.1%}",
                hours(share.duration_s),
            )
            for share in shares[:MAX_SOURCE_ROWS]
        ]
    note = f"{left_out:,} rarer values are left out; --csv has them." if left_out else ""
    return Table(texts=("", "Value"), numbers=("Videos", "Share", "Hours"), rows=tuple(rows), note=note)


def _distributions(stats: DatasetStats) -> Table:
    return Table(
        texts=("Figure",),
        numbers=("Min", "25 %", "Median", "75 %", "95 %", "Max", "Mean"),
        rows=tuple(
            (
                titled(one.name),
                *(
                    shown(one.name, value)
                    for value in (
                        one.minimum,
                        one.p25,
                        one.median,
                        one.p75,
                        one.p95,
                        one.maximum,
                        one.mean,
                    )
                ),
            )
            for one in stats.distributions
            if one.subset is None
        ),
    )


def _tokens(stats: DatasetStats) -> Table:
    tokens, total = stats.tokens, stats.total
    if tokens is None:
        return Table(texts=())
    every = [
        (f"{one.key_frames} of {one.num_anchors}", one.num_tokens, f"{one.ratio:.1%}")
        for one in tokens.budgets
    ]
    return Table(
        texts=("Key frames a GOP",),
        numbers=("Tokens", "A second", "A video", "Of dense RGB"),
        rows=tuple(
            (
                name,
                f"{number:,}",
                f"{number / total.duration_s:,.1f}",
                f"{number / total.num_videos:,.0f}",
                ratio,
            )
            for name, number, ratio in (*every, ("dense RGB, 1 FPS", tokens.dense_rgb_tokens, ""))
        ),
        note=f"{tokens.picture_tokens} tokens a picture, {tokens.delta_tokens} a Δ; no text is counted.",
    )


def outlier_tables(stats: DatasetStats, sheets: Sequence[Sheet]) -> list[tuple[str, Table, dict[str, int]]]:
    """(title, table, video id -> number of its sheet) of each figure."""
    numbers = {sheet.video_id: number for number, sheet in enumerate(sheets)}
    found = []
    for name, outliers in stats.outliers.items():
        if not outliers:
            continue
        unit = FIGURES[name][1]
        rows = tuple(
            (
                outlier.video_id,
                named(outlier.subset),
                f"{shown(name, outlier.value)} {unit}",
                format_duration(outlier.duration_s),
            )
            for outlier in outliers
        )
        table = Table(texts=("Video", "Subset"), numbers=("Value", "Duration"), rows=rows)
        found.append((titled(name), table, numbers))
    return found
