"""What `verify --provenance` finds: the problems, and which programs made the samples."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cope_prep.pipeline.verify_report import Problem


@dataclass(slots=True, kw_only=True)
class ProvenanceCounts:
    """What was looked at."""

    shards: int = 0
    videos: int = 0
    samples_read: int = 0
    sources_hashed: int = 0
    sources_gone: int = 0
    """Asked for, and no longer there: nothing is wrong with that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenanceReport:
    """The verdict."""

    counts: ProvenanceCounts
    software: dict[str, list[dict[str, str]]]
    """By stage, the different sets of versions."""
    problems: tuple[Problem, ...]
    num_problems: dict[str, int]
    """All of them, by kind."""

    @property
    def ok(self) -> bool:
        """True if every shard can be traced, and nothing contradicts it."""
        return not self.num_problems

    @property
    def mixed(self) -> tuple[str, ...]:
        """Stages whose outputs were made with different versions: no error, but good to know."""
        return tuple(stage for stage, found in self.software.items() if len(found) > 1)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ok": self.ok,
            "counts": asdict(self.counts),
            "software": self.software,
            "mixed": list(self.mixed),
            "num_problems": dict(self.num_problems),
            "problems": [asdict(problem) for problem in self.problems],
        }
