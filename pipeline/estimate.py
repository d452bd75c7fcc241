"""From a few videos to all of them: which ones to measure, and what their figures say of the rest.

    manifest ──draw_sample──> some videos ──(somebody runs them)──> figures ──estimate_total──> total, interval

What a video costs is not known before it is opened, and opening 178,510 of them is a job of its own. Its size is
in the manifest, and cost goes with size. So the sample is drawn with probabilities proportional to size: the
largest videos, in which most of the work is, are nearly all in it, and each figure counts by 1 / probability
(Horvitz and Thompson), which is right on average whatever the relation between size and cost. The draw is
systematic, along the manifest ordered by subset, file type and size, so that each of them is in the sample in
proportion: strata without their borders. The interval is from the differences between neighbours in that order
(Wolter, Introduction to Variance Estimation, chapter 8).

Which videos are drawn depends on their ids and sizes, on the seed and on the size of the sample: on nothing else.
On made-up datasets of 3,000 videos the true total lay within the interval in 92 to 96 of 100 draws.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import posixpath
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cope_prep.schemas.errors import ConfigurationError
from cope_prep.schemas.records import VideoRecord

CONFIDENCE = 0.95
MIN_SAMPLE = 2
"""One alone says nothing of the spread."""
_FLOOR = 0.1
"""Of the mean size, added to every size: small videos cost something, too, and must not count by millions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One video of the sample."""

    video: VideoRecord
    probability: float
    """With which it was to be drawn, in (0, 1]; 1: it is there for itself alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A total over all videos, in the unit of what was measured."""

    value: float
    low: float
    """The 95 % interval. It knows of the draw alone: not of another machine, nor of a busy one."""
    high: float

    def scaled(self, factor: float) -> Estimate:
        """In another unit."""
        return Estimate(value=self.value * factor, low=self.low * factor, high=self.high * factor)


def draw_sample(videos: Sequence[VideoRecord], *, size: int, seed: int) -> list[Drawn]:
    """`size` videos, or all if there are no more, in the order in which `estimate_total` wants them.

    Raises:
        ConfigurationError: no videos, or a sample of fewer than two.
    """
    if not videos:
        raise ConfigurationError("manifest.parquet", "lists no video")
    if size >= len(videos):
        return [Drawn(video=video, probability=1.0) for video in videos]
    if size < MIN_SAMPLE:
        raise ConfigurationError(
            f"--sample {size}", "says nothing of the spread", "Take 2 or more; 40 is good."
        )
    floor_bytes = 1.0 + _FLOOR * sum(video.size_bytes for video in videos) / len(videos)
    by_size = sorted(videos, key=lambda video: (-video.size_bytes, video.video_id))
    left_bytes = sum(video.size_bytes + floor_bytes for video in by_size)
    num_certain = 0
    # A video with more than a step's bytes would be drawn twice: it is taken, and the others share what is left.
    while num_certain < size - 1:
        weight = by_size[num_certain].size_bytes + floor_bytes
        if weight < left_bytes / (size - num_certain):
            break
        left_bytes -= weight
        num_certain += 1
    step = left_bytes / (size - num_certain)
    drawn = [Drawn(video=video, probability=1.0) for video in by_size[:num_certain]]
    next_bytes = step * _fraction(seed)
    reached_bytes = 0.0
    for video in _ordered(by_size[num_certain:]):
        reached_bytes += video.size_bytes + floor_bytes
        if reached_bytes > next_bytes and len(drawn) < size:
            probability = (video.size_bytes + floor_bytes) / step
            drawn.append(Drawn(video=video, probability=probability))
            next_bytes += step
    return drawn


def estimate_total(drawn: Sequence[Drawn], figures: Mapping[str, float]) -> Estimate:
    """The sum of a figure over all videos. `figures`: video id -> its value, for every video of the sample."""
    value = sum(figures[entry.video.video_id] / entry.probability for entry in drawn)
    chosen = [entry for entry in drawn if entry.probability < 1]
    expanded = [figures[entry.video.video_id] / entry.probability for entry in chosen]
    if len(chosen) < MIN_SAMPLE:  # none: all videos were measured. One: it says nothing of the others
        unseen = sum(expanded) - sum(figures[entry.video.video_id] for entry in chosen)
        return Estimate(value=value, low=value - unseen, high=value + unseen)
    pairs = zip(itertools.pairwise(chosen), itertools.pairwise(expanded), strict=True)
    squares = sum(
        (1 - (one.probability + two.probability) / 2) * (first - second) ** 2
        for (one, two), (first, second) in pairs
    )
    variance = len(chosen) / (2 * (len(chosen) - 1)) * squares
    # Neighbouring differences share a video each: they are worth about two thirds of as many independent ones.
    margin = student_t(max(1, len(chosen) * 2 // 3)) * math.sqrt(variance)
    return Estimate(value=value, low=max(0.0, value - margin), high=value + margin)


def largest(drawn: Sequence[Drawn], figures: Mapping[str, float], videos: Sequence[VideoRecord]) -> float:
    """The figure of the video that has the greatest, likely: the largest at the ratio of the largest ones drawn."""
    top = sorted(drawn, key=lambda entry: -entry.video.size_bytes)[: max(1, len(drawn) // 10)]
    ratio = sum(figures[entry.video.video_id] for entry in top) / max(
        1, sum(entry.video.size_bytes for entry in top)
    )
    return max(
        ratio * max(video.size_bytes for video in videos),
        max(figures[entry.video.video_id] for entry in drawn),
    )


def student_t(freedom: int) -> float:
    """The two-sided 95 % point of Student's t, from the normal one (Abramowitz and Stegun 26.7.5).

    Below 3 degrees of freedom the expansion is too short, and the exact values stand.
    """
    if freedom < 3:
        return {1: 12.706, 2: 4.303}[freedom]
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def _ordered(videos: Sequence[VideoRecord]) -> list[VideoRecord]:
    """By subset and file type; in each by size, up and down in turn, so that neighbours are alike."""

    def group_of(video: VideoRecord) -> tuple[str, str]:
        return video.subset, posixpath.splitext(video.uri)[1].lower()

    ordered: list[VideoRecord] = []
    for index, (_, members) in enumerate(itertools.groupby(sorted(videos, key=group_of), key=group_of)):
        sign = -1 if index % 2 else 1
        ordered += sorted(members, key=lambda video: (sign * video.size_bytes, video.video_id))
    return ordered


def _fraction(seed: int) -> float:
    """Where the draw begins, in [0, 1). By a hash: the same with every version of Python."""
    digest = hashlib.sha256(f"cope-prep estimate {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
