"""Replay an epoch of a cluster on the index alone: who fetches what, how often, and who waits for whom.

    order      as the loader makes it (order.py); rank r takes the r-th slice of each global batch (plan.py)
    node       ranks_per_node ranks that share one chunk cache and one line of `bandwidth`
    a use      a unit needs all chunks from its first sample's to its last one's, step by step, rank by rank
    a fetch    a use of a chunk that is not in the node's cache; the cache forgets as cache.py does
    a step     begins on all ranks when it is there on all nodes; the loader fetches `lookahead` steps ahead

No byte of a shard is read. What is not modelled: requests that fail, the limit on bytes ahead, records that a
worker keeps, the page cache, and the order in which the workers of a node meet within one step.

Cost: one pass over the uses of each node, compiled; 64 ranks and 1.4 million questions take about a second.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cope_prep.pipeline.kernels.lru import empty_ring, replay_lru
from cope_prep.pipeline.loader.cache import FREED_SHARE
from cope_prep.pipeline.loader.order import DEFAULT_SHUFFLE, Shuffle
from cope_prep.pipeline.loader.plan import PREFETCH_STEPS, StepPlan
from cope_prep.pipeline.loader.simulate_report import (
    Balance,
    EpochReplay,
    FirstBatch,
    NeededRate,
    PlanCost,
    Simulation,
)
from cope_prep.pipeline.loader.simulate_units import EpochUnits, order_of
from cope_prep.pipeline.token_counts import gop_tokens
from cope_prep.schemas.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What the simulated run has."""

    num_ranks: int
    num_workers: int
    """Loader processes of a rank."""
    cache_bytes: int
    """Of a node."""
    bandwidth: float
    """Bytes a second from the store to a node."""
    batch_size: int = 8
    """Units of one rank's batch."""
    ranks_per_node: int = 8
    num_epochs: int = 1
    shuffle: Shuffle = DEFAULT_SHUFFLE
    seed: int = 0
    step_time_s: float | None = None
    """What the model takes for a step; None: do not compute who waits."""
    prefetch_steps: int = PREFETCH_STEPS
    """Steps that each worker asks for ahead."""

    @property
    def num_nodes(self) -> int:
        """The last one may have fewer ranks."""
        return -(-self.num_ranks // self.ranks_per_node)

    def steps(self, num_units: int) -> StepPlan:
        """The steps of an epoch; what does not fill a global batch is dropped."""
        return StepPlan(
            num_units=num_units,
            consumed=0,
            batch_size=self.batch_size,
            world_size=self.num_ranks,
            rank=0,
            last="drop",
        )


def simulate(
    units: EpochUnits, cluster: Cluster, *, key_frames: int, picture_tokens: int, delta_tokens: int
) -> Simulation:
    """Replay the epochs of a cluster.

    Raises:
        ConfigurationError: fewer units than one global batch, or a cache that cannot hold a chunk.
    """
    steps = cluster.steps(len(units))
    if steps.num_steps == 0:
        raise ConfigurationError(
            f"{len(units)} {units.name}",
            f"are fewer than one global batch of {steps.global_batch}",
            "Use fewer ranks, or a smaller batch.",
        )
    if units.chunk_bytes.max() > cluster.cache_bytes:
        raise ConfigurationError(
            f"--cache {cluster.cache_bytes}",
            f"cannot hold a chunk of {units.chunk_bytes.max()} bytes",
            "Raise it, or lower --chunk-bytes.",
        )
    replay = _Replay(units, cluster, steps)
    epochs, orders_s, first_steps, balance = [], [], np.zeros(0), None
    for epoch in range(cluster.num_epochs):
        start_s = time.perf_counter()
        order = order_of(units, shuffle=cluster.shuffle, seed=cluster.seed, epoch=epoch)
        orders_s.append(time.perf_counter() - start_s)
        step_bytes, found = replay.run(order, epoch)
        epochs.append(found)
        if balance is None:
            first_steps = step_bytes[:, : cluster.num_workers]
            tokens = sample_tokens(
                units, key_frames=key_frames, picture_tokens=picture_tokens, delta_tokens=delta_tokens
            )
            balance = _balance(units, order, steps, tokens)
    assert balance is not None
    plan_s = sum(units.seconds.values()) + orders_s[0]
    return Simulation(
        unit=units.name,
        num_units=len(units),
        num_gops=len(units.catalog),
        num_videos=len(units.catalog.video_ids),
        num_shards=len(units.catalog.shard_uris),
        num_chunks=len(units.chunk_bytes),
        num_nodes=cluster.num_nodes,
        num_steps=steps.num_steps,
        global_batch=steps.global_batch,
        num_dropped=steps.num_dropped,
        num_without_video=units.num_without_video,
        plan=PlanCost(
            index_s=units.seconds["index"],
            questions_s=units.seconds.get("questions", 0.0),
            order_s=units.seconds["chunks"] + orders_s[0],
            total_s=plan_s,
            memory_bytes=units.memory_bytes,
        ),
        first_batch=_first_batch(first_steps, plan_s, cluster.bandwidth),
        balance=balance,
        epochs=tuple(epochs),
        warnings=tuple(_warnings(units, cluster, steps)),
    )


def sample_tokens(
    units: EpochUnits, *, key_frames: int, picture_tokens: int, delta_tokens: int
) -> np.ndarray:
    """int64 [num_samples]: tokens of each GOP."""
    specs = units.specs
    return gop_tokens(
        units.catalog.num_frames,
        gop_size=specs.encode.gop_size,
        window=specs.extract.window,
        key_frames=key_frames,
        picture_tokens=picture_tokens,
        delta_tokens=delta_tokens,
    )


class _Replay:
    """The caches of all nodes, from epoch to epoch."""

    def __init__(self, units: EpochUnits, cluster: Cluster, steps: StepPlan) -> None:
        self._units, self._cluster, self._steps = units, cluster, steps
        self._first_chunk, self._last_chunk = units.chunks()
        num_chunks = len(units.chunk_bytes)
        self._rings = [empty_ring(num_chunks) for _ in range(cluster.num_nodes)]
        self._used_bytes = [0] * cluster.num_nodes
        chunk_first = np.flatnonzero(np.diff(units.chunk, prepend=-1))
        self._shard_of_chunk = units.catalog.shard[chunk_first]

    def run(self, order: np.ndarray, epoch: int) -> tuple[np.ndarray, EpochReplay]:
        """int64 [num_nodes, num_steps], what each node fetches in each step; and the sums."""
        cluster, steps, units = self._cluster, self._steps, self._units
        num_chunks = len(units.chunk_bytes)
        step_bytes = np.zeros((cluster.num_nodes, steps.num_steps), np.int64)
        num_fetches = np.zeros(num_chunks, np.int64)
        places_per_node = cluster.ranks_per_node * cluster.batch_size
        for node, (newer, older) in enumerate(self._rings):
            self._used_bytes[node] = replay_lru(
                order,
                self._first_chunk,
                self._last_chunk,
                units.chunk_bytes,
                steps.global_batch,
                node * places_per_node,
                min((node + 1) * places_per_node, steps.global_batch),
                cluster.cache_bytes,
                int(cluster.cache_bytes * (1 - FREED_SHARE)),
                self._used_bytes[node],
                newer,
                older,
                step_bytes[node],
                num_fetches,
            )
        used = order[: steps.num_steps * steps.global_batch]
        # One more at the first chunk of each unit, one less behind its last: a sum tells which are used.
        edges = np.bincount(self._first_chunk[used], minlength=num_chunks + 1)
        edges -= np.bincount(self._last_chunk[used] + 1, minlength=num_chunks + 1)
        is_wanted = np.cumsum(edges)[:-1] > 0
        wanted = units.chunk_bytes * is_wanted
        shards = len(units.catalog.shard_uris)
        shard_wanted = np.bincount(self._shard_of_chunk, wanted, shards)
        shard_fetched = np.bincount(self._shard_of_chunk, units.chunk_bytes * num_fetches, shards)
        shard_egress = shard_fetched / np.maximum(shard_wanted, 1)
        hottest = int(np.argmax(shard_egress))
        num_reads = int(units.num_samples[used].sum())
        node_bytes = step_bytes.sum(axis=1)
        return step_bytes, EpochReplay(
            epoch=epoch,
            node_bytes=tuple(node_bytes.tolist()),
            fetch_s=float(node_bytes.max()) / cluster.bandwidth,
            num_reads=num_reads,
            num_fetches=int(num_fetches.sum()),
            hit_share=1 - int(num_fetches.sum()) / num_reads,
            wanted_bytes=int(wanted.sum()),
            egress=float(node_bytes.sum() / wanted.sum()),
            hottest_shard=units.catalog.shard_uris[hottest],
            hottest_shard_egress=float(shard_egress[hottest]),
            needed=_needed_rate(step_bytes, cluster),
        )


def _needed_rate(step_bytes: np.ndarray, cluster: Cluster) -> NeededRate | None:
    """Who waits: a node fetches step by step, at most `lookahead` steps ahead of the model."""
    if cluster.step_time_s is None:
        return None
    num_nodes, num_steps = step_bytes.shape
    lookahead = cluster.num_workers * cluster.prefetch_steps
    starts_s = np.zeros(num_steps)
    ready_s = np.zeros(num_nodes)
    end_s = 0.0
    for step in range(num_steps):
        may_begin_s = starts_s[step - lookahead] if step >= lookahead else 0.0
        ready_s = np.maximum(ready_s, may_begin_s) + step_bytes[:, step] / cluster.bandwidth
        starts_s[step] = max(end_s, ready_s.max())
        end_s = starts_s[step] + cluster.step_time_s
    return NeededRate(
        step_time_s=cluster.step_time_s,
        mean_bytes_per_s=float(step_bytes.sum(axis=1).max()) / (num_steps * cluster.step_time_s),
        epoch_s=float(end_s),
        wait_s=float(end_s) - num_steps * cluster.step_time_s,
    )


def _first_batch(first_steps: np.ndarray, plan_s: float, bandwidth: float) -> FirstBatch:
    """first_steps: int64 [num_nodes, <= num_workers]."""
    one, every = int(first_steps[:, 0].max()), int(first_steps.sum(axis=1).max())
    return FirstBatch(
        fetch_bytes=one,
        total_s=plan_s + one / bandwidth,
        all_workers_bytes=every,
        all_workers_total_s=plan_s + every / bandwidth,
    )


def _balance(units: EpochUnits, order: np.ndarray, steps: StepPlan, tokens: np.ndarray) -> Balance:
    used = order[: steps.num_steps * steps.global_batch]

    def of_ranks(per_sample: np.ndarray) -> np.ndarray:
        shape = (steps.num_steps, steps.world_size, steps.batch_size)
        return units.sums(per_sample)[used].reshape(shape).sum(axis=2)

    token_sums = of_ranks(tokens)  # [num_steps, num_ranks]
    rank_bytes = of_ranks(units.catalog.size_bytes).sum(axis=0)
    rank_tokens = token_sums.sum(axis=0)
    return Balance(
        rank_bytes_max_over_mean=float(rank_bytes.max() / rank_bytes.mean()),
        rank_tokens_max_over_mean=float(rank_tokens.max() / rank_tokens.mean()),
        longest_step_tokens=int(token_sums.max()),
        mean_step_tokens=float(token_sums.mean()),
        slowest_over_mean=float((token_sums.max(axis=1) / token_sums.mean(axis=1)).mean()),
    )


def _warnings(units: EpochUnits, cluster: Cluster, steps: StepPlan) -> Iterator[str]:
    batch = steps.global_batch
    lanes = min(cluster.shuffle.lanes, steps.num_units)
    node_lanes = lanes
    if lanes % batch and batch % lanes:
        if cluster.num_nodes > 1:
            yield (
                f"the global batch of {batch} and {lanes} lanes do not divide each other: every node meets every"
                f" shard. Use --lanes {max(round(lanes / batch), 1) * batch}"
            )
    else:
        places_per_node = min(cluster.ranks_per_node, cluster.num_ranks) * cluster.batch_size
        node_lanes = min(places_per_node * max(lanes // batch, 1), lanes)
        if batch > lanes and cluster.num_nodes > 1:
            yield (
                f"the global batch of {batch} is {batch // lanes} times the {lanes} lanes: as many ranks read"
                f" each byte, maybe on as many nodes. Use --lanes {batch}"
            )
    # A window of chunks is open in each lane, and the one that the window is moving on to.
    open_chunks = min(node_lanes * (cluster.shuffle.window_chunks + 1), len(units.chunk_bytes))
    open_bytes = int(open_chunks * units.chunk_bytes.mean())
    if cluster.cache_bytes < open_bytes:
        yield (
            f"a node reads from {open_chunks} chunks at a time, {open_bytes / 1e9:.1f} GB, and its cache holds"
            f" {cluster.cache_bytes / 1e9:.1f} GB: it fetches the same chunks again and again. Raise --cache, or"
            " lower --lanes, --window-chunks or --chunk-bytes"
        )
