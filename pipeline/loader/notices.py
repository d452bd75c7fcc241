"""What a dataset says: in the log, once an epoch or when it is made, and beside each batch."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from cope_prep.pipeline import storage
from cope_prep.pipeline.loader.batch import BatchInfo, Skipped
from cope_prep.pipeline.loader.order import Shuffle
from cope_prep.pipeline.loader.plan import StepPlan
from cope_prep.pipeline.loader.primitives import ResidualScale
from cope_prep.pipeline.loader.samples import SampleStore

logger = logging.getLogger("cope_prep.loader")


def announce(epoch: int, plan: StepPlan, composition: list[dict[str, Any]]) -> None:
    """Once an epoch; Python shows warnings by default, so what is left out or repeated is one."""
    parts = ", ".join(f"{part['num_units']} of {part['name']}" for part in composition)
    logger.log(
        logging.WARNING if plan.num_dropped or plan.num_repeated else logging.INFO,
        "epoch %d: %d samples (%s), %d seen before; %d steps of %d; %d dropped, %d repeated",
        epoch, plan.num_units, parts, plan.consumed, plan.num_steps, plan.global_batch, plan.num_dropped,
        plan.num_repeated,
    )  # fmt: skip


def warn_of_fetching_twice(store: SampleStore, shuffle: Shuffle, plan: StepPlan) -> None:
    """Remote shards only: what would make a cluster fetch the same bytes again and again."""
    if all(storage.is_local(uri) for uri in store.catalog.shard_uris):
        return
    if max(plan.global_batch, shuffle.lanes) % min(plan.global_batch, shuffle.lanes) and plan.world_size > 1:
        logger.warning(
            "%d lanes and a global batch of %d do not divide each other: every rank meets every shard. Choose"
            " Shuffle(lanes=%d), or another batch size",
            shuffle.lanes, plan.global_batch, -(-shuffle.lanes // plan.global_batch) * plan.global_batch,
        )  # fmt: skip
    in_use = shuffle.lanes * (shuffle.window_chunks + 1) * shuffle.chunk_bytes
    in_use = min(in_use, int(store.chunk_bytes.sum()))
    limit = store.reader.cache_bytes
    num_machines = -(-plan.world_size // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # torchrun sets it
    if in_use > limit * num_machines:
        logger.warning(
            "the shuffle has %.1f GB in use at a time, the cache holds %.1f GB: chunks are fetched again and"
            " again. Give the cache more room, or choose a smaller Shuffle",
            in_use / 1e9, limit / 1e9,
        )  # fmt: skip


class InfoMaker:
    """What a batch's BatchInfo says of its place in the order."""

    def __init__(self, positions: np.ndarray, state: dict[str, Any]) -> None:
        self.positions: list[int] = positions.tolist()
        self._state = state

    def of(
        self, samples: Sequence[int], skipped: Sequence[Skipped], store: SampleStore, scale: ResidualScale
    ) -> BatchInfo:
        """The BatchInfo of a batch of these samples."""
        return BatchInfo(
            keys=tuple(store.key(sample) for sample in samples),
            video_ids=tuple(store.catalog.video_id(sample) for sample in samples),
            positions=tuple(self.positions),
            skipped=tuple(skipped),
            residual_offset=scale.offset,
            residual_scale=scale.scale,
            state=self._state,
        )
