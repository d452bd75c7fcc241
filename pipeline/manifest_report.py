"""What building a manifest found: how much is in it, and everything that was left out, and why.

Nothing is left out silently: whatever the builders skip goes through a `SkipCounter`, which keeps one entry
for each (what, reason) with a count and the first few examples, however many million there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

NUM_EXAMPLES = 5
"""Examples kept of each thing that was skipped."""

Progress = Callable[[str, int, int], None]
"""Called as (what, num_done, num_total) from time to time; num_total is 0 while it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """Some things that are not in the manifest, for one reason."""

    what: str
    """A file, or a class of files (`.jpg`, `links`)."""
    reason: str
    count: int
    """Of files, or of records if `what` is a question file of which others are used."""
    examples: tuple[str, ...]
    """The first ones: paths, or positions of records."""


class SkipCounter:
    """Collects what is skipped, in order of first occurrence."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[int, list[str]]] = {}

    def add(self, what: str, reason: str, *examples: str, count: int = 1) -> None:
        """Count `count` more of `what`; of the examples the first few are kept."""
        total, kept = self._found.get((what, reason), (0, []))
        kept.extend(examples[: NUM_EXAMPLES - len(kept)])
        self._found[what, reason] = (total + count, kept)

    def result(self) -> tuple[Skipped, ...]:
        """All that was counted."""
        return tuple(
            Skipped(what=what, reason=reason, count=count, examples=tuple(examples))
            for (what, reason), (count, examples) in self._found.items()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingVideos:
    """Videos that questions name and that are not there. Their questions are not in questions.parquet."""

    count: int = 0
    """Distinct videos."""
    examples: tuple[str, ...] = ()
    """The first of them, sorted by video id."""
    videos_by_subset: dict[str, int] = field(default_factory=dict)
    """Subset -> distinct videos; one that two subsets name counts in both."""
    questions_by_subset: dict[str, int] = field(default_factory=dict)
    """Subset -> questions left out because their video is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestReport:
    """What manifest.parquet and questions.parquet hold now, and what they do not."""

    num_videos: int
    num_questions: int
    total_bytes: int
    """Size of all source videos."""
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    """(subset, kind) -> questions, as the columns of questions.parquet have them."""
    skipped: tuple[Skipped, ...] = ()
    missing_videos: MissingVideos = MissingVideos()
    unknown_folders: dict[str, int] = field(default_factory=dict)
    """Top-level folder that is neither a subset nor named by a question -> number of files in it."""
    json_hashes: dict[str, str] = field(default_factory=dict)
    """Question file, relative to the root -> sha256 of its bytes."""

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        missing = self.missing_videos
        return {
            "num_videos": self.num_videos,
            "num_questions": self.num_questions,
            "total_bytes": self.total_bytes,
            "counts": [
                {"subset": subset, "kind": kind, "num_questions": count}
                for (subset, kind), count in sorted(self.counts.items())
            ],
            "skipped": [
                {
                    "what": entry.what,
                    "reason": entry.reason,
                    "count": entry.count,
                    "examples": list(entry.examples),
                }
                for entry in self.skipped
            ],
            "missing_videos": {
                "count": missing.count,
                "examples": list(missing.examples),
                "videos_by_subset": dict(missing.videos_by_subset),
                "questions_by_subset": dict(missing.questions_by_subset),
            },
            "unknown_folders": dict(self.unknown_folders),
            "json_hashes": dict(self.json_hashes),
        }
