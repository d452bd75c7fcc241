"""What is unusual about the samples: motion, residuals, fidelity, size, and what they are to a language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cope_prep.pipeline.finding_shares import (
    Finding,
    ShareRule,
    count_groups,
    count_values,
    named,
    percent,
    share_finding,
)
from cope_prep.pipeline.stats_records import Compared, DatasetStats, GroupStats

CLIPPED_VECTORS_SHARE, CLIPPED_VECTORS_PROBLEM_SHARE = 0.001, 0.02
"""The coarsest step reaches 1,016 px. Further than that nothing moves in a second: the search was misled."""
CLIPPED_RESIDUALS_SHARE, CLIPPED_RESIDUALS_PROBLEM_SHARE = 0.01, 0.10
"""Only the int8 coding clips, at 127 steps. Its anchors then differ by more than its bound."""
INTRA_BLOCKS, INTRA_SHARE, INTRA_PROBLEM_SHARE = 0.5, 0.25, 0.5
"""A window with more than half of its blocks intra has no motion to speak of: cuts, flashes, noise."""
STILL_BLOCKS, STILL_SHARE, STILL_PROBLEM_SHARE = 0.95, 0.25, 0.75
"""A window with 95 % of its blocks at rest is a slide or a fixed camera before nothing."""
LOW_PSNR_DB, LOW_PSNR_SHARE, LOW_PSNR_PROBLEM_SHARE = 30.0, 0.01, 0.10
"""Below 30 dB of luma errors are plain to see beside the re-encoded frame."""
OVERHEAD_SHARE = 0.25
"""Headers are about 8 KiB a GOP: this much of a sample means that GOPs are short or pictures small."""

_CLIPPED_VECTORS = ShareRule(
    name="clipped-vectors",
    warning=CLIPPED_VECTORS_SHARE,
    problem=CLIPPED_VECTORS_PROBLEM_SHARE,
    does="clip motion vectors",
    advice="Look at the sheets of the clipped outliers; a shorter --window makes shorter vectors.",
)
_CLIPPED_RESIDUALS = ShareRule(
    name="clipped-residuals",
    warning=CLIPPED_RESIDUALS_SHARE,
    problem=CLIPPED_RESIDUALS_PROBLEM_SHARE,
    does="clip residuals",
    advice="Take a larger step of the int8 residual, or the dct coding, which never clips.",
)
_INTRA = ShareRule(
    name="intra",
    warning=INTRA_SHARE,
    problem=INTRA_PROBLEM_SHARE,
    does=f"are intra in more than {100 * INTRA_BLOCKS:.0f} % of their blocks, where there is no motion",
    advice="Cuts and flashes do it, and long windows; a shorter --window follows more of the motion.",
)
_STILL = ShareRule(
    name="still",
    warning=STILL_SHARE,
    problem=STILL_PROBLEM_SHARE,
    does=f"have no motion in more than {100 * STILL_BLOCKS:.0f} % of their blocks",
    advice="Slides and fixed cameras: they teach little of motion. Weigh such subsets less in the mix.",
)
_LOW_PSNR = ShareRule(
    name="low-psnr",
    warning=LOW_PSNR_SHARE,
    problem=LOW_PSNR_PROBLEM_SHARE,
    does=f"are rebuilt with {LOW_PSNR_DB:.0f} dB of luma PSNR or less",
    advice="Raise the quality of the residual; draw a sheet of a video of the affected subset.",
)


def sample_findings(stats: DatasetStats) -> Iterator[Finding]:
    """What the index tells; nothing if there is none."""
    if not stats.total.num_videos:
        return
    vectors = count_groups(
        stats,
        "windows",
        number_of=lambda group: group.num_clipped_vector_windows,
        of=lambda group: group.num_windows,
    )
    residuals = count_groups(
        stats,
        "windows",
        number_of=lambda group: group.num_clipped_residual_windows,
        of=lambda group: group.num_windows,
    )
    counts = (
        (_CLIPPED_VECTORS, vectors),
        (_CLIPPED_RESIDUALS, residuals),
        (_INTRA, count_values(stats, "intra_share", what="windows", above=INTRA_BLOCKS)),
        (_STILL, count_values(stats, "zero_motion_share", what="windows", above=STILL_BLOCKS)),
        (_LOW_PSNR, count_values(stats, "psnr_y_db", what="windows", up_to=LOW_PSNR_DB)),
    )
    for rule, count in counts:
        finding = share_finding(rule, count)
        if finding is not None:
            yield finding
    yield from _sizes(stats)
    yield from _tokens(stats)


def _sizes(stats: DatasetStats) -> Iterator[Finding]:
    yield from _larger(
        stats,
        lambda group: group.source,
        rule="larger-than-source",
        than="the source files",
        advice="Small or heavily compressed sources were enlarged: choose a smaller --size.",
    )
    yield from _larger(
        stats,
        lambda group: group.jpeg_estimate,
        rule="larger-than-jpeg",
        than="JPEG pictures at 1 FPS would be (an estimate)",
        advice="Lower the quality of the residual, if size is what matters.",
    )
    total = stats.total
    share = total.overhead_bytes / total.sample_bytes if total.sample_bytes else 0.0
    if share >= OVERHEAD_SHARE:
        yield Finding(
            rule="overhead",
            severity="warning",
            text=f"{percent(share)} of the bytes are headers, padding and .json members, not primitives.",
            advice="GOPs are short or pictures small: a longer --gop-size has fewer samples.",
        )


def _larger(
    stats: DatasetStats, of: Callable[[GroupStats], Compared], *, rule: str, than: str, advice: str
) -> Iterator[Finding]:
    ratio = of(stats.total).ratio
    larger = [
        (group, value) for group in stats.subsets if (value := of(group).ratio) is not None and value > 1
    ]
    larger.sort(key=lambda pair: -pair[1])
    if ratio is not None and ratio > 1:
        number, of_all = of(stats.total).num_videos, stats.total.num_videos
        known = "" if number == of_all else f" (of {number:,} of {of_all:,} videos that is known)"
        text = f"The samples are {ratio:.3g} times as large as {than}{known}."
    elif larger and len(stats.subsets) > 1:
        group, value = larger[0]
        more = f", and so in {len(larger) - 1:,} more subsets" if len(larger) > 1 else ""
        text = f"The samples of subset {named(group.subset)} are {value:.3g} times as large as {than}{more}."
    else:
        return
    yield Finding(rule=rule, severity="warning", text=text, advice=advice)


def _tokens(stats: DatasetStats) -> Iterator[Finding]:
    tokens = stats.tokens
    if tokens is None or not tokens.budgets or not tokens.dense_rgb_tokens:
        return
    fewest = min(tokens.budgets, key=lambda budget: budget.num_tokens)
    most = max(tokens.budgets, key=lambda budget: budget.num_tokens)
    yield Finding(
        rule="tokens",
        severity="note",
        text=(
            f"All videos once are {fewest.num_tokens:,} tokens with {fewest.key_frames} of {fewest.num_anchors}"
            f" key frames a GOP ({percent(fewest.ratio)} of dense RGB at 1 FPS),"
            f" {most.num_tokens:,} with {most.key_frames} ({percent(most.ratio)})."
        ),
    )
    if fewest.ratio > 1:
        yield Finding(
            rule="tokens-above-rgb",
            severity="problem",
            text=f"At every density there are more tokens than of dense RGB: {percent(fewest.ratio)} and more.",
            advice="GOPs or windows are shorter than a second: that saves no tokens.",
        )
