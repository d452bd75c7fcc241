"""How far a dataset is, as records: for `cope-prep status`, its `--json`, and the dashboard's Progress page."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cope_prep.jobs.summary import FailedItem


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRate:
    """What one machine has done in the time over which rates are taken."""

    node: str
    """Its host name; empty for videos of which it was not recorded."""
    num_videos: int
    """Ended there, failures too."""
    videos_per_s: float
    video_seconds_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RatePoint:
    """What ended in one piece of a run's time; pieces without an end are there too."""

    unix_s: float
    """Its beginning."""
    span_s: float
    """Its length, the same in the whole history."""
    num_videos: int
    """Ended, failures too."""
    num_failed: int
    video_s: float
    """Seconds of video of those that did not fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentFailure:
    """A video that failed, and when."""

    stage: str
    subject: str
    """Video id."""
    error_class: str
    error_message: str
    finished_unix_s: float
    node: str
    """As in NodeRate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """One stage with one set of specs."""

    stage: str
    spec_hash: str
    num_videos: int
    num_ok: int
    num_partial: int
    num_failed: int
    num_pending: int
    """Can be run now: in the manifest, with an input from the stage before, and not yet tried."""
    num_waiting: int
    """No output of the stage before yet, or never."""
    duration_s: float
    source_bytes: int
    """Of the videos that are ok or partial."""
    output_bytes: int
    cpu_s: float
    is_running: bool
    """Something is pending, and the last end is not longer ago than a job may be silent (status_rates.py)."""
    last_unix_s: float | None
    """When the last video ended, by the clock of the job; None if none has."""
    idle_s: float | None
    """How long ago that was, by the clock of who asks; None if none has."""
    clock_ahead_s: float
    """By how much the job's clock is ahead of that of who asks; 0.0 if nothing shows it."""
    videos_per_s: float | None
    """Of the last ten minutes without a pause; None if nothing ended yet."""
    video_seconds_per_s: float | None
    """Seconds of video that were done in a second of that time."""
    left_s: float | None
    """None if nothing is running."""
    nodes: tuple[NodeRate, ...]
    """The machines of that time, by name."""
    history: tuple[RatePoint, ...]
    """The last run in about 60 pieces. A run begins where nothing had ended for more than an hour."""
    failures: tuple[FailedItem, ...]
    partials: tuple[FailedItem, ...]
    """Done, but not all of the video could be used."""
    recent_failures: tuple[RecentFailure, ...]
    """The last 50, the latest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardsStatus:
    """The shards of one set of specs."""

    spec_hash: str
    extract_hash: str
    """Of the stage whose samples they hold."""
    num_shards: int
    num_videos: int
    num_gops: int
    num_windows: int
    duration_s: float
    output_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BegunShards:
    """Shards of one set of specs that are being made, or were: there is no index, or it lacks some of the plan."""

    spec_hash: str
    num_shards: int
    """Published so far."""
    num_planned: int | None
    """How many there are to be; None if there is no plan yet."""
    has_index: bool
    """Of earlier shards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedShards:
    """Shards of one set of specs of which it cannot be read how far they are."""

    spec_hash: str
    message: str
    """Which file, what about it, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetStatus:
    """All stages of a dataset."""

    dataset: str
    num_videos: int
    source_bytes: int
    stages: tuple[StageStatus, ...]
    shards: tuple[ShardsStatus, ...]
    """Those that have their index."""
    begun_shards: tuple[BegunShards, ...]
    """Those that do not, or lack some in it."""
    damaged_shards: tuple[DamagedShards, ...] = ()
    num_quarantined: int = 0
    """Videos that no run tries: quarantine.py. They count as failed where they failed."""

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)
