"""What is unusual about the videos: failures, what is missing, questions, durations, and the sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from cope_prep.pipeline.finding_shares import (
    MIN_IN_SUBSET,
    STANDS_OUT,
    Count,
    Finding,
    ShareRule,
    count_groups,
    count_values,
    named,
    percent,
    share_finding,
)
from cope_prep.pipeline.stats_records import DatasetStats

FAILED_SHARE, FAILED_PROBLEM_SHARE = 0.02, 0.10
"""Of crawled videos one in a hundred is broken on arrival; beyond a tenth the cause is rarely the videos."""
DOMINANT_SHARE, DOMINANT_NUMBER = 0.8, 10
"""So many failures of one class have one cause, which can be removed at once."""
NUM_SUBSETS_NAMED = 3
"""Of the subsets that fail often, the worst have a line of their own."""
PARTIAL_SHARE, PARTIAL_PROBLEM_SHARE = 0.01, 0.10
"""As rare as broken files are; a partial video's questions may be about the part that is missing."""
UNLISTED_SHARE = 0.01
"""Of the questions. Below, videos have been removed one by one; above, the tables do not belong together."""
SHORT_S, SHORT_SHARE = 1.0, 0.01
"""At the default settings a window is a second: a video of less has an I-frame and no motion."""
LONG_S, LONG_SHARE = 600.0, 0.01
"""LLaVA-Video-178K ends at three minutes. Ten are 20,000 tokens at one key frame a GOP, more than half
of a context of 32,768."""
VERY_LONG_S = 3600.0
"""A single one of these is hundreds of the others' samples."""
SMALL_AREA, SMALL_SHARE = 0.5, 0.05
"""Sources with less than half of the stored picture's pixels: what is stored of them is interpolation."""
SLOW_RATE, SLOW_SHARE = 0.5, 0.05
"""At half the stored frame rate every second frame repeats the one before."""
FAST_RATE = 2.0
"""At twice the stored frame rate every second frame is dropped."""
KNOWN_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "mpeg4"})
ODD_CODEC_SHARE = 0.01
"""Other codecs (screen recorders, old cameras, GIF) come with odd timing and odd pixels."""
UNKNOWN_SHARE = 0.10
"""Sources of which the ledger does not say what they were."""

RETRYABLE = frozenset({"WorkerDiedError", "TimeLimitError", "StorageError"})
"""Classes of error that are not about the video."""
_CLASS_ADVICE = {
    "SourceNotFoundError": "The files are not where the manifest says: rebuild it, or mount the storage.",
    "NotAVideoError": "Such files are empty or no videos: compare with the download, and fetch them again.",
    "NoVideoStreamError": "Such files hold sound only: leave them out of the manifest.",
    "StoreRefusedError": "The store refuses these files: check the rights, or leave them out of the manifest.",
    "CorruptVideoError": "Such files were cut off or damaged: compare sizes with the origin, fetch them again.",
}

_FAILED = ShareRule(
    name="failures",
    warning=FAILED_SHARE,
    problem=FAILED_PROBLEM_SHARE,
    does="failed",
    advice="Look at the classes of error and their examples.",
)
_PARTIAL = ShareRule(
    name="partial",
    warning=PARTIAL_SHARE,
    problem=PARTIAL_PROBLEM_SHARE,
    does="are partial: the rest of their source could not be read",
    advice="Fetch them again, or leave them out where questions are about the whole video.",
)
_SHORT = ShareRule(
    name="short-videos",
    warning=SHORT_SHARE,
    problem=2.0,
    does=f"last {SHORT_S:.0f} s or less",
    advice="They hardly have a window: they are pictures, not videos. Leave them out, or train on them as such.",
)
_LONG = ShareRule(
    name="long-videos",
    warning=LONG_SHARE,
    problem=2.0,
    severity="note",
    does=f"last more than {LONG_S / 60:.0f} minutes",
    advice="Check that they fit the language model's context, and that no question is about a short part.",
)


def video_findings(stats: DatasetStats) -> Iterator[Finding]:
    """What the manifest, the ledgers and the questions tell."""
    yield from _failures(stats)
    partial = count_groups(
        stats, "videos", number_of=lambda group: group.num_partial, of=lambda group: group.num_listed
    )
    yield from _said(share_finding(_PARTIAL, partial))
    yield from _missing(stats)
    yield from _questions(stats)
    yield from _durations(stats)
    yield from _sources(stats)


def _said(finding: Finding | None) -> Iterator[Finding]:
    if finding is not None:
        yield finding


def _failures(stats: DatasetStats) -> Iterator[Finding]:
    count = count_groups(
        stats, "videos", number_of=lambda group: group.num_failed, of=lambda group: group.num_listed
    )
    yield from _said(share_finding(_FAILED, replace(count, by_subset={})))
    yield from _failing_subsets(count)
    classes: Counter[str] = Counter()
    for end in stats.failures:
        if end.status == "failed":
            classes[end.error_class] += end.num_videos
    number = classes.total()
    if number >= DOMINANT_NUMBER:
        name, most = classes.most_common(1)[0]
        if most >= DOMINANT_SHARE * number:
            yield Finding(
                rule="one-cause",
                severity="warning",
                text=f"{percent(most / number)} of the failures ({most:,} of {number:,}) are {name}.",
                advice=_CLASS_ADVICE.get(name, "They will have one cause: look at the example."),
            )
    again = {name: classes[name] for name in sorted(RETRYABLE & classes.keys())}
    if again:
        names = ", ".join(f"{name} {videos:,}" for name, videos in again.items())
        yield Finding(
            rule="try-again",
            severity="warning",
            text=f"{sum(again.values()):,} failures are not about the video ({names}).",
            advice="Run the stage again with --retry-failed.",
        )


def _failing_subsets(count: Count) -> Iterator[Finding]:
    """Subsets that fail more often than all others together, below the threshold of `failures` too; worst first."""
    found: list[tuple[float, float, str]] = []
    for subset, (number, of) in count.by_subset.items():
        num_others, of_others = count.number - number, count.of - of
        if number < MIN_IN_SUBSET or not of_others:
            continue
        share, others = number / of, num_others / of_others
        if share >= STANDS_OUT * others:
            found.append((share, others, subset))
    found.sort(key=lambda one: (-one[0], one[2]))
    for share, others, subset in found[:NUM_SUBSETS_NAMED]:
        number, of = count.by_subset[subset]
        often = f"fails {share / others:,.0f} times as often as the others" if others else "has all failures"
        yield Finding(
            rule="failing-subset",
            severity="problem" if share >= FAILED_PROBLEM_SHARE else "warning",
            text=(
                f"Subset {named(subset)} {often}: {percent(share)} of its videos ({number:,} of {of:,}),"
                f" against {percent(others)}."
            ),
            advice="Look at the errors of that subset alone: a mount, a download or a format of its own.",
        )
    if rest := found[NUM_SUBSETS_NAMED:]:
        number = sum(count.by_subset[subset][0] for _, _, subset in rest)
        yield Finding(
            rule="failing-subset",
            severity="problem" if rest[0][0] >= FAILED_PROBLEM_SHARE else "warning",
            text=f"{len(rest):,} more subsets fail far more often than the others ({number:,} videos).",
            advice="The tables by subset have them all.",
        )


def _missing(stats: DatasetStats) -> Iterator[Finding]:
    total = stats.total
    number = total.num_missing
    if not stats.has_index or not number:
        return
    has_ledgers = {stage.stage for stage in stats.stages} >= {"reencode", "extract"}
    yield Finding(
        rule="not-in-shards",
        severity="problem" if number >= FAILED_PROBLEM_SHARE * total.num_listed else "warning",
        text=(
            f"{percent(number / total.num_listed)} of the listed videos ({number:,} of {total.num_listed:,})"
            f" are not in the shards, {'and have not failed' if has_ledgers else 'and no ledger says why'}."
        ),
        advice=(
            "The run has not come to them: go on with the same cope-prep run and its flags."
            if has_ledgers
            else "What failed is not known without the ledgers of both stages."
        ),
    )


def _questions(stats: DatasetStats) -> Iterator[Finding]:
    listed = sum(stats.total.num_questions.values())
    number = listed + stats.num_unlisted_questions
    if stats.num_unlisted_questions:
        share = stats.num_unlisted_questions / number
        yield Finding(
            rule="questions-without-video",
            severity="warning" if share >= UNLISTED_SHARE else "note",
            text=(
                f"{percent(share)} of the questions ({stats.num_unlisted_questions:,} of {number:,}) are about"
                " videos that the manifest does not list."
            ),
            advice="They are never used. Add the videos, or make manifest and questions together.",
        )
    silent = [group for group in stats.subsets if group.num_listed and not group.num_questions]
    if listed and silent:
        names = ", ".join(named(group.subset) for group in silent[:5])
        more = f" and {len(silent) - 5:,} more" if len(silent) > 5 else ""
        videos = sum(group.num_listed for group in silent)
        yield Finding(
            rule="subsets-without-questions",
            severity="warning",
            text=f"There is no question about the {videos:,} videos of subset {names}{more}.",
            advice="Such videos serve pre-training only. Were their question files left out?",
        )


def _durations(stats: DatasetStats) -> Iterator[Finding]:
    yield from _said(share_finding(_SHORT, count_values(stats, "duration_s", what="videos", up_to=SHORT_S)))
    long = share_finding(_LONG, count_values(stats, "duration_s", what="videos", above=LONG_S))
    yield from _said(long)
    whole = [one for one in stats.distributions if one.name == "duration_s" and one.subset is None]
    if long is None and whole and whole[0].maximum > VERY_LONG_S:
        number = count_values(stats, "duration_s", what="videos", above=VERY_LONG_S).number
        yield Finding(
            rule="long-videos",
            severity="note",
            text=(
                f"{number:,} {'videos last' if number > 1 else 'video lasts'} more than"
                f" {VERY_LONG_S / 3600:.0f} h, the longest {whole[0].maximum / 3600:.1f} h."
            ),
            advice=_LONG.advice,
        )


def _sources(stats: DatasetStats) -> Iterator[Finding]:
    total = stats.total
    stored_px = total.rgb.other_bytes / 3 / total.num_pictures if total.num_pictures else 0.0
    rate = total.num_frames / total.duration_s if total.duration_s else 0.0
    if stored_px:
        small = _matching(stats, "resolution", lambda value: _area_px(value) < SMALL_AREA * stored_px)
        rule = ShareRule(
            name="small-sources",
            warning=SMALL_SHARE,
            problem=2.0,
            does=f"have less than {100 * SMALL_AREA:.0f} % of the stored picture's pixels: they were enlarged",
            advice="Their detail is interpolation: choose a smaller --size, or leave them out.",
        )
        yield from _said(share_finding(rule, small))
    if rate:
        slow = _matching(stats, "frame_rate", lambda value: float(value) <= SLOW_RATE * rate)
        rule = ShareRule(
            name="slow-sources",
            warning=SLOW_SHARE,
            problem=2.0,
            does=f"have at most {SLOW_RATE * rate:g} frames a second: at {rate:g} frames are repeated",
            advice="Repeated frames are windows of less motion: that is no property of the scene.",
        )
        yield from _said(share_finding(rule, slow))
        fast = _matching(stats, "frame_rate", lambda value: float(value) >= FAST_RATE * rate)
        rule = ShareRule(
            name="fast-sources",
            warning=SLOW_SHARE,
            problem=2.0,
            severity="note",
            does=f"have {FAST_RATE * rate:g} frames a second or more: at {rate:g} frames were dropped",
            advice="",
        )
        yield from _said(share_finding(rule, fast))
    odd = _matching(stats, "codec", lambda value: value not in KNOWN_CODECS)
    rule = ShareRule(
        name="odd-codecs",
        warning=ODD_CODEC_SHARE,
        problem=2.0,
        severity="note",
        does="came in a codec that is rare for such data",
        advice="Draw an inspect sheet of one of each.",
    )
    yield from _said(share_finding(rule, odd))
    shares = [share for share in stats.sources if share.what == "codec"]
    number = sum(share.num_videos for share in shares)
    unknown = sum(share.num_videos for share in shares if share.value == "unknown")
    rule = ShareRule(
        name="unknown-sources",
        warning=UNKNOWN_SHARE,
        problem=2.0,
        severity="note",
        does="have no properties of their source in the ledger: an older version wrote it",
        advice="",
    )
    yield from _said(share_finding(rule, Count(what="videos", number=unknown, of=number)))


def _matching(stats: DatasetStats, what: str, matches: Callable[[str], bool]) -> Count:
    """Of the re-encoded videos of which a property is known, those whose value matches."""
    known = [share for share in stats.sources if share.what == what and share.value != "unknown"]
    return Count(
        what="videos",
        number=sum(share.num_videos for share in known if matches(share.value)),
        of=sum(share.num_videos for share in known),
    )


def _area_px(resolution: str) -> int:
    width, _, height = resolution.partition("x")
    return int(width) * int(height)
