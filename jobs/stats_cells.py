"""The tables with a row a subset, or a stage, as text: the terminal and the report show the same cells."""

from __future__ import annotations

from collections.abc import Sequence

from cope_prep.jobs.progress import format_bytes
from cope_prep.jobs.stats_words import KIND_TITLES, hours
from cope_prep.pipeline.stats_records import GroupStats, StageStats

STAGES = ("OK", "Partial", "Failed", "Hours", "Input", "Output")


def stage_cells(stage: StageStats) -> list[str]:
    """Videos by how they ended, hours and bytes."""
    return [
        f"{stage.num_ok:,}",
        f"{stage.num_partial:,}",
        f"{stage.num_failed:,}",
        hours(stage.duration_s),
        format_bytes(stage.source_bytes),
        format_bytes(stage.output_bytes),
    ]


COUNTS = ("Listed", "Failed", "Partial", "Sharded", "Hours", "GOPs", "Windows")


def count_cells(group: GroupStats) -> list[str]:
    """Videos, hours and samples."""
    return [
        f"{group.num_listed:,}",
        f"{group.num_failed:,}",
        f"{group.num_partial:,}",
        f"{group.num_videos:,}",
        hours(group.duration_s),
        f"{group.num_gops:,}",
        f"{group.num_windows:,}",
    ]


def question_cells(group: GroupStats, kinds: Sequence[str]) -> list[str]:
    """Questions by kind, in all, and a video."""
    number = sum(group.num_questions.values())
    each = f"{number / group.num_listed:.1f}" if group.num_listed else ""
    return [*(f"{group.num_questions.get(kind, 0):,}" for kind in kinds), f"{number:,}", each]


BYTES = ("I-frame", "Motion", "Residual", "Overhead", "All")


def byte_cells(group: GroupStats) -> list[str]:
    """KiB a second of video, by part."""
    parts = (group.iframe_bytes, group.motion_bytes, group.residual_bytes, group.overhead_bytes)
    rates = [group.per_second(size) for size in (*parts, group.sample_bytes)]
    return ["" if rate is None else f"{rate / 1024:,.2f}" for rate in rates]


OTHERS = ("RGB at 1 FPS", "JPEG at 1 FPS", "Re-encoded", "Source")


IN_BRACKETS = "In brackets: the share of the videos of which the other size is known; the ratio is of these."


def other_cells(group: GroupStats) -> list[str]:
    """Samples over each other form; IN_BRACKETS, where not all videos are in that."""
    cells = []
    for other in (group.rgb, group.jpeg_estimate, group.reencoded, group.source):
        text = "unknown" if other.ratio is None else f"{other.ratio:,.3f} ×"
        if other.ratio is not None and other.num_videos < group.num_videos:
            share = 100 * other.num_videos // group.num_videos  # 100 % is all of them
            text += f" ({share or '<1'} %)"
        cells.append(text)
    return cells


CLIPPED = ("Vectors", "Share", "Residuals", "Share", "No vector", "Share")
"""Windows with a clipped vector, with a clipped value of the residual, and of intra blocks alone."""


def clipped_cells(group: GroupStats) -> list[str]:
    """Windows with clipped values, or without any vector, and their share."""
    cells = []
    for number in (
        group.num_clipped_vector_windows,
        group.num_clipped_residual_windows,
        group.num_intra_windows,
    ):
        share = group.window_share(number)
        cells += [f"{number:,}", "" if share is None else f"{share:.2%}"]
    return cells


def question_titles(kinds: Sequence[str]) -> list[str]:
    """Titles of the columns of `question_cells`."""
    return [*(KIND_TITLES.get(kind, kind) for kind in kinds), "All", "A video"]
