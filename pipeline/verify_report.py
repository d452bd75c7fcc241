"""What verify finds: problems that say what is wrong and where, a bounded number of each kind."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

ProblemKind = Literal[
    "missing-file",
    "unreadable",
    "tar",
    "duplicate-key",
    "adjacency",
    "checksum",
    "index",
    "members",
    "schema-version",
    "spec-hash",
    "format",
    "rebuild",
    "source",
    "count",
    "provenance",
]
"""
missing-file    a shard, index.parquet or dataset.json is not there
unreadable      a file is there, but the store or its format refuses
tar             a shard is truncated, or a header in it is damaged
duplicate-key   a key occurs twice
adjacency       the GOPs of a video are not all there, in order, side by side in one shard
checksum        stored bytes are not those that were written
index           index.parquet and the shards disagree
members         a sample lacks a member, has one too many, or has them in another order
schema-version  written by a newer version of the format
spec-hash       made with other specs than the dataset's
format          a sample is not what docs/format.md says
rebuild         the anchors do not rebuild as they were written
source          the rebuilt anchors differ from the re-encoded file by more, or less, than was recorded
count           dataset.json counts something else than what is there
provenance      it is not known, or no longer true, from what and with what the samples were made
"""

MAX_LISTED = 100
"""Problems of one kind that are listed; the rest are counted."""
_MAX_CHARS = 1000
"""Of a problem's texts: a crafted table may have names of megabytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong."""

    kind: ProblemKind
    shard: str
    """File name; empty where the problem is not in a shard."""
    key: str
    """Of the sample; empty where it is not one sample's."""
    offset_bytes: int
    """Where in the shard; -1 where that has no meaning."""
    message: str


@dataclass(slots=True, kw_only=True)
class VerifyCounts:
    """What was looked at."""

    shards: int = 0
    videos: int = 0
    gops: int = 0
    windows: int = 0
    gops_rebuilt: int = 0
    gops_compared: int = 0
    """Rebuilt and compared with the re-encoded file."""
    gops_without_source: int = 0
    """Rebuilt, but the re-encoded file has been consumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """The verdict."""

    counts: VerifyCounts
    problems: tuple[Problem, ...]
    """At most MAX_LISTED of a kind, in the order in which they were found."""
    num_problems: dict[str, int]
    """All of them, by kind."""

    @property
    def ok(self) -> bool:
        """True if nothing is wrong."""
        return not self.num_problems

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ok": self.ok,
            "counts": asdict(self.counts),
            "num_problems": dict(self.num_problems),
            "problems": [asdict(problem) for problem in self.problems],
        }


class ProblemLog:
    """Collects problems; the place where they occur is set once and kept until it changes."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []
        self._num_by_kind: Counter[str] = Counter()
        self._shard = ""
        self._key = ""
        self._offset_bytes = -1

    def at(self, shard: str = "", key: str = "", offset_bytes: int = -1) -> None:
        """What the next problems are about."""
        self._shard, self._key, self._offset_bytes = shard, key, offset_bytes

    def add(self, kind: ProblemKind, message: str) -> None:
        """Record a problem at the current place."""
        self._num_by_kind[kind] += 1
        if self._num_by_kind[kind] <= MAX_LISTED:
            self._problems.append(
                Problem(
                    kind=kind,
                    shard=_cut(self._shard),
                    key=_cut(self._key),
                    offset_bytes=self._offset_bytes,
                    message=_cut(message),
                )
            )

    def __len__(self) -> int:
        return self._num_by_kind.total()

    def report(self, counts: VerifyCounts) -> VerifyReport:
        """The verdict on what was counted."""
        return VerifyReport(
            counts=counts, problems=tuple(self._problems), num_problems=dict(self._num_by_kind)
        )


def _cut(text: str) -> str:
    """The text, without its middle if it is long."""
    return text if len(text) <= _MAX_CHARS else f"{text[:700]}... ({len(text)} characters) ...{text[-250:]}"
