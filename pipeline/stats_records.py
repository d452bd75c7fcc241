"""What `dataset_stats` found: plain records, from the whole down to one outlier.

    DatasetStats
    ├── stages        StageStats         what the ledgers say of a stage
    ├── total         GroupStats         all subsets together
    ├── subsets       GroupStats         one a subset
    ├── failures      FailureStats       one a stage, status and class of error
    ├── sources       SourceShare        codecs, resolutions and frame rates of the source videos
    ├── distributions Distribution       one a figure, in all and by subset
    ├── tokens        TokenBudget        for a language model, by key-frame density
    └── outliers      Outlier            the videos with the largest values

docs/stats.md says what each figure means. A ratio or rate that cannot be told is None. What is in the shards is
counted as 0 while there is no index, which has_index tells.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStats:
    """The last rows of a stage's ledger, as far as they speak of videos of the manifest as they are listed."""

    stage: str
    spec_hash: str
    num_ok: int = 0
    num_partial: int = 0
    num_failed: int = 0
    duration_s: float = 0.0
    """Of the re-encoded videos that are ok or partial."""
    source_bytes: int = 0
    """Input of the stage, of the same videos."""
    output_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Bytes of samples beside the bytes of something else that holds the same videos."""

    num_videos: int = 0
    """Of which both are known."""
    sample_bytes: int = 0
    other_bytes: int = 0

    @property
    def ratio(self) -> float | None:
        """Samples over the other; below 1 the samples are smaller. None if nothing can be compared."""
        return self.sample_bytes / self.other_bytes if self.other_bytes else None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStats:
    """The videos of one subset, or of all."""

    subset: str | None
    """None: of all subsets."""
    num_listed: int = 0
    """Videos in the manifest."""
    num_failed: int = 0
    """Of them, those that failed in a stage."""
    num_partial: int = 0
    """Of them, those of which only a part could be used, and that did not fail in another stage."""
    num_missing: int = 0
    """Of them, those that neither failed nor are in the shards. `num_failed` may be in older shards."""
    num_questions: dict[str, int] = field(default_factory=dict)
    """Kind -> records of questions.parquet about listed videos."""
    num_videos: int = 0
    """In the shards, listed or not; what follows is of these, and 0 without an index."""
    duration_s: float = 0.0
    num_frames: int = 0
    """Of the re-encoded videos."""
    num_gops: int = 0
    num_windows: int = 0
    iframe_bytes: int = 0
    motion_bytes: int = 0
    """Vectors and intra masks."""
    residual_bytes: int = 0
    sample_bytes: int = 0
    """All of it, with the .json members, tar headers and padding."""
    num_pictures: int = 0
    """At one frame a second: one for every second that begins."""
    rgb: Compared = Compared()
    """Against those pictures as 24-bit RGB of the stored size."""
    jpeg_estimate: Compared = Compared()
    """Against those pictures as JPEGs, each taken to be as large as an I-frame of its subset is on average."""
    reencoded: Compared = Compared()
    """Against the re-encoded files."""
    source: Compared = Compared()
    """Against the source files."""
    num_clipped_vector_windows: int = 0
    """Windows in which at least one vector was beyond the coding's range."""
    num_clipped_residual_windows: int = 0
    num_intra_windows: int = 0
    """Windows of intra blocks alone: they have no vector, and are in no figure of motion."""

    @property
    def overhead_bytes(self) -> int:
        """The .json members, tar headers and padding."""
        return self.sample_bytes - self.iframe_bytes - self.motion_bytes - self.residual_bytes

    def per_second(self, num_bytes: int) -> float | None:
        """Bytes a second of video; None without any video."""
        return num_bytes / self.duration_s if self.duration_s else None

    def window_share(self, num_windows: int) -> float | None:
        """Of all windows; None if there are none."""
        return num_windows / self.num_windows if self.num_windows else None

    def to_dict(self) -> dict[str, Any]:
        """The record and what follows from it."""
        parts = {
            "iframe": self.iframe_bytes,
            "motion": self.motion_bytes,
            "residual": self.residual_bytes,
            "overhead": self.overhead_bytes,
            "total": self.sample_bytes,
        }
        compared = {
            "rgb_1fps": self.rgb,
            "jpeg_1fps_estimate": self.jpeg_estimate,
            "reencoded": self.reencoded,
            "source": self.source,
        }
        return {
            "subset": self.subset,
            "num_listed": self.num_listed,
            "num_failed": self.num_failed,
            "num_partial": self.num_partial,
            "num_missing": self.num_missing,
            "num_videos": self.num_videos,
            "duration_s": self.duration_s,
            "hours": self.duration_s / 3600,
            "num_frames": self.num_frames,
            "num_gops": self.num_gops,
            "num_windows": self.num_windows,
            "num_questions": dict(self.num_questions),
            "bytes": parts,
            "bytes_per_s": {name: self.per_second(size) for name, size in parts.items()},
            "size_against": {
                name: {**asdict(other), "ratio": other.ratio} for name, other in compared.items()
            },
            "clipped_vector_windows": self.num_clipped_vector_windows,
            "clipped_vector_share": self.window_share(self.num_clipped_vector_windows),
            "clipped_residual_windows": self.num_clipped_residual_windows,
            "clipped_residual_share": self.window_share(self.num_clipped_residual_windows),
            "intra_windows": self.num_intra_windows,
            "intra_window_share": self.window_share(self.num_intra_windows),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureStats:
    """Videos that ended alike."""

    stage: str
    status: Literal["failed", "partial"]
    error_class: str
    num_videos: int
    by_subset: dict[str, int]
    example_video_id: str
    """The first by id."""
    example_message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceShare:
    """The source videos that are alike in one property."""

    what: Literal["codec", "resolution", "frame_rate"]
    value: str
    """For instance `h264`, `1920x1080`, `29.97`; `unknown` where the ledger does not say."""
    num_videos: int
    duration_s: float
    """Of the re-encoded videos."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How many values lie between fixed edges."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    """One more than edges: up to the first, (edge, next edge] between them, beyond the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """One figure over all windows or videos, or over those of a subset."""

    name: str
    """As the index's column, for instance `motion_mean_px`; `duration_s` for videos."""
    unit: str
    of: Literal["window", "video"]
    subset: str | None
    """None: of all subsets."""
    count: int
    minimum: float
    p25: float
    median: float
    p75: float
    p95: float
    """Quantiles are interpolated linearly."""
    maximum: float
    mean: float
    histogram: Histogram


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBudget:
    """What all videos once are to a language model, at one density of key frames."""

    key_frames: int
    """Pictures of a full GOP."""
    num_anchors: int
    """Of a full GOP."""
    num_tokens: int
    tokens_per_s: float
    ratio: float
    """Over dense RGB: every second's frame as a picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The budgets, and what they are measured against."""

    picture_tokens: int
    delta_tokens: int
    dense_rgb_tokens: int
    """Of all videos once at one picture a second."""
    budgets: tuple[TokenBudget, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlier:
    """A video with one of the largest values of a figure."""

    video_id: str
    subset: str
    value: float
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetStats:
    """All of it."""

    dataset: str
    spec_hashes: dict[str, str]
    """Stage -> hash, as far as there are outputs."""
    notes: tuple[str, ...]
    """What is missing, and what the figures lack for it. One sentence each."""
    has_index: bool
    """False in the middle of a run: there is only what the manifest and the ledgers know."""
    stages: tuple[StageStats, ...]
    total: GroupStats
    subsets: tuple[GroupStats, ...]
    failures: tuple[FailureStats, ...]
    sources: tuple[SourceShare, ...]
    distributions: tuple[Distribution, ...]
    tokens: Tokens | None
    """None without an index."""
    outliers: dict[str, tuple[Outlier, ...]]
    """`motion_mean_px`, `residual_energy`, `bytes_per_s`, `clipped_share` -> largest first."""
    num_unlisted_questions: int = 0
    """About videos that are not listed: counted in no group."""
    num_unlisted_videos: int = 0
    """In the index, though not in the manifest: counted among the samples alone."""

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        plain = ("dataset", "spec_hashes", "has_index", "num_unlisted_questions", "num_unlisted_videos")
        return {
            **{name: getattr(self, name) for name in plain},
            "notes": list(self.notes),
            "stages": [asdict(stage) for stage in self.stages],
            "total": self.total.to_dict(),
            "subsets": [group.to_dict() for group in self.subsets],
            "failures": [asdict(failure) for failure in self.failures],
            "sources": [asdict(share) for share in self.sources],
            "distributions": [asdict(distribution) for distribution in self.distributions],
            "tokens": None if self.tokens is None else asdict(self.tokens),
            "outliers": {
                name: [asdict(outlier) for outlier in found] for name, found in self.outliers.items()
            },
        }
