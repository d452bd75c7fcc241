"""What a simulation found, as plain numbers: `cope-prep simulate --json` prints these fields."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCost:
    """What it takes to know an epoch's order, measured here."""

    index_s: float
    questions_s: float
    order_s: float
    """Cutting chunks and ordering one epoch."""
    total_s: float
    memory_bytes: int
    """That a rank keeps; its workers share it when they are forked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstBatch:
    """From nothing to the first step, every cache empty, on the node that has to fetch most."""

    fetch_bytes: int
    """Chunks of step 0."""
    total_s: float
    """With the plan."""
    all_workers_bytes: int
    """Chunks of the first step of every worker: they all begin at once."""
    all_workers_total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """How even the ranks' work is in epoch 0. They all have the same number of steps, by construction."""

    rank_bytes_max_over_mean: float
    rank_tokens_max_over_mean: float
    longest_step_tokens: int
    """Of the rank that has most in the longest step."""
    mean_step_tokens: float
    """Of a rank."""
    slowest_over_mean: float
    """Tokens of the rank that has most over the mean rank's, mean over the steps: what waiting costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NeededRate:
    """What a node's line must give so that the model never waits, for a step of `step_time_s`."""

    step_time_s: float
    mean_bytes_per_s: float
    """Of the node that fetches most, over the epoch."""
    epoch_s: float
    """At the given bandwidth."""
    wait_s: float
    """Of it, waiting for data; the first batch included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReplay:
    """Who fetched what in one epoch."""

    epoch: int
    node_bytes: tuple[int, ...]
    """Fetched by each node."""
    fetch_s: float
    """That the busiest node needs at the given bandwidth: no epoch is shorter."""
    num_reads: int
    """Samples read, over all ranks."""
    num_fetches: int
    """Chunks fetched, over all nodes."""
    hit_share: float
    """Of the reads, those that fetched nothing."""
    wanted_bytes: int
    """Of the chunks that this epoch needs, each once."""
    egress: float
    """Bytes fetched over bytes wanted: 1 is every byte once."""
    hottest_shard: str
    hottest_shard_egress: float
    needed: NeededRate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What `simulate` found."""

    unit: str
    """GOPs or questions."""
    num_units: int
    num_gops: int
    num_videos: int
    num_shards: int
    num_chunks: int
    num_nodes: int
    num_steps: int
    global_batch: int
    num_dropped: int
    """Units of each epoch that no rank gets."""
    num_without_video: int
    plan: PlanCost
    first_batch: FirstBatch
    balance: Balance
    epochs: tuple[EpochReplay, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)
