"""How the stages stand when a command ends: for the line on the terminal, the table of failures, and `--json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from cope_prep.jobs.progress import format_bytes, format_duration


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedItem:
    """One video, or one shard, that failed."""

    stage: str
    subject: str
    """Video id, or name of the shard."""
    error_class: str
    error_message: str


class Summary(Protocol):
    """What the end of a command needs to know of a stage."""

    @property
    def failures(self) -> tuple[FailedItem, ...]:
        """All that failed, in this run or before."""
        ...

    @property
    def num_missing_input(self) -> int:
        """Items that could not be tried, because the stage before has no output of them."""
        ...

    @property
    def stopped(self) -> str:
        """Why it ended before its work did, in whole sentences; empty if it did not."""
        ...

    def text(self) -> str:
        """One line."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSummary:
    """A stage over videos."""

    stage: str
    spec_hash: str
    num_videos: int
    num_run: int
    """Videos that ended in this run; the others were done, or had failed, before, or it was stopped."""
    num_ok: int
    num_partial: int
    num_failed: int
    num_missing_input: int
    duration_s: float
    """Of the videos that are ok or partial."""
    output_bytes: int
    wall_s: float
    failures: tuple[FailedItem, ...]
    num_quarantined: int = 0
    """Videos that this run would have tried, had they not been in quarantine."""
    stopped: str = ""
    """As in Summary."""

    def text(self) -> str:
        """One line."""
        ended = f"{self.num_ok} ok, {self.num_partial} partial, {self.num_failed} failed"
        return (
            f"{self.stage} {self.spec_hash}: {ended} of {self.num_videos} videos ({self.num_run} in this run);"
            f" {format_duration(self.duration_s)} of video, {format_bytes(self.output_bytes)};"
            f" took {format_duration(self.wall_s)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self) | {"failures": _failures(self.failures, name="video_id")}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSummary:
    """The packing of samples into shards."""

    stage: str
    spec_hash: str
    num_shards: int
    num_run: int
    """Shards that this run wrote, or whose inputs it deleted."""
    num_failed: int
    num_videos: int
    """In the index, as the following figures."""
    num_gops: int
    num_windows: int
    duration_s: float
    output_bytes: int
    num_missing_input: int
    wall_s: float
    failures: tuple[FailedItem, ...]
    stopped: str = ""
    """As in Summary."""

    def text(self) -> str:
        """One line."""
        return (
            f"{self.stage} {self.spec_hash}: {self.num_shards} shards ({self.num_run} in this run),"
            f" {self.num_failed} failed; {self.num_videos} videos, {self.num_gops} GOPs,"
            f" {format_duration(self.duration_s)}, {format_bytes(self.output_bytes)};"
            f" took {format_duration(self.wall_s)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self) | {"failures": _failures(self.failures, name="shard")}


def _failures(failures: tuple[FailedItem, ...], *, name: str) -> list[dict[str, str]]:
    return [
        {name: item.subject, "error_class": item.error_class, "error_message": item.error_message}
        for item in failures
    ]
