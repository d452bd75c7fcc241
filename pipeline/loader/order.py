"""The one global order of an epoch: a function of the units' places in the shards, the seed and the epoch.

Ranks, workers and batch size do not enter, so a run can stop anywhere and go on with others. The order is
shuffled, and yet every shard is read in large sequential pieces:

    chunks   neighbouring units of one shard, about `chunk_bytes` together: what is read, or fetched, at once
    list     the chunks in random order, the units of each chunk in random order
    lanes    the list cut into `lanes` pieces of equal length
    jitter   in its lane a unit moves back by up to `window_chunks` chunks: what is open at a time
    order    one unit of each lane in turn, the lanes in random order: row 0, row 1, ...

Neighbours in a shard lie in one lane mostly, so they are `lanes` units apart at least, and a third of a window
of rows on average. If the global batch divides `lanes`, or `lanes` divides the global batch, each rank meets
its own lanes only, and so its own shards: the machines of a cluster fetch every byte about once together.

Cost: three sorts; 1.4 million units take about 0.3 s and 100 MB for a moment, 4 bytes a unit afterwards.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cope_prep.pipeline.hashing import hash_positions, ranks, uniform_positions


class Shuffle(BaseModel):
    """How an epoch is shuffled. Part of the order's identity: another choice is another order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lanes: int = Field(default=512, ge=1, le=1 << 16)
    """Units that are surely of different places in the list; best a multiple of the global batch."""
    chunk_bytes: int = Field(default=8 << 20, ge=1 << 16, le=1 << 32)
    """Bytes that are read in one piece."""
    window_chunks: int = Field(default=4, ge=1, le=1 << 10)
    """How many chunks of a lane are mixed with one another."""


DEFAULT_SHUFFLE = Shuffle()


def epoch_order(chunk_of_unit: np.ndarray, *, shuffle: Shuffle | None, seed: int, epoch: int) -> np.ndarray:
    """uint32 [num_units]: the units in the order in which the epoch visits them.

    chunk_of_unit: int [num_units], ascending from 0: the chunk in which each unit begins, in storage order.
    shuffle: None for storage order.
    """
    num_units = len(chunk_of_unit)
    if shuffle is None or num_units == 0:
        return np.arange(num_units, dtype=np.uint32)
    key = f"order\0{seed}\0{epoch}\0"
    num_chunks = int(chunk_of_unit[-1]) + 1
    listed = _list_units(chunk_of_unit, num_chunks, key)

    num_lanes = min(shuffle.lanes, num_units)
    lane_sizes = np.full(num_lanes, num_units // num_lanes)
    lane_sizes[: num_units % num_lanes] += 1
    lane = np.repeat(np.arange(num_lanes), lane_sizes)
    lane_starts = np.cumsum(lane_sizes) - lane_sizes
    row = np.arange(num_units) - lane_starts[lane]

    window = min(shuffle.window_chunks * num_units / num_chunks, float(lane_sizes[0]))
    place = row + uniform_positions(num_units, key=key + "jitter") * window
    place += lane * (2.0 * lane_sizes[0] + 1)  # lanes stay apart: one sort serves them all
    listed = listed[np.argsort(place)]

    column = ranks(num_lanes, key=key + "lanes")[lane]
    return listed[np.argsort(row * num_lanes + column)]


def visit_order(
    chunk_of_unit: np.ndarray,
    group_of_unit: np.ndarray,
    *,
    visit_size: int,
    shuffle: Shuffle | None,
    seed: int,
    epoch: int,
) -> np.ndarray:
    """As epoch_order, but up to visit_size neighbouring units of one group stay side by side.

    group_of_unit: int [num_units]: equal for neighbours that belong together, the questions of one video.
    """
    if visit_size == 1 or len(chunk_of_unit) == 0:
        return epoch_order(chunk_of_unit, shuffle=shuffle, seed=seed, epoch=epoch)
    is_first = np.concatenate([[True], group_of_unit[1:] != group_of_unit[:-1]])
    group_start = np.flatnonzero(is_first)[np.cumsum(is_first) - 1]
    starts = np.flatnonzero((np.arange(len(chunk_of_unit)) - group_start) % visit_size == 0)
    sizes = np.diff(np.append(starts, len(chunk_of_unit)))
    visits = epoch_order(compact(chunk_of_unit[starts]), shuffle=shuffle, seed=seed, epoch=epoch)
    sizes = sizes[visits]
    within = np.arange(len(chunk_of_unit)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return (np.repeat(starts[visits], sizes) + within).astype(np.uint32)


def compact(chunk: np.ndarray) -> np.ndarray:
    """int64: ascending chunk numbers without gaps, from 0."""
    return np.cumsum(np.diff(chunk, prepend=chunk[:1]) != 0)


def _list_units(chunk_of_unit: np.ndarray, num_chunks: int, key: str) -> np.ndarray:
    """uint32 [num_units]: chunks in random order, and each chunk's units in random order."""
    rank_of_chunk = np.empty(num_chunks, np.uint64)
    rank_of_chunk[ranks(num_chunks, key=key + "chunks")] = np.arange(num_chunks, dtype=np.uint64)
    # The rank in the upper bits, randomness in the lower ones: 2^32 of them for units of one chunk.
    random = hash_positions(len(chunk_of_unit), key=key + "units") >> np.uint64(32)
    sort_key = (rank_of_chunk[chunk_of_unit] << np.uint64(32)) | random
    return np.argsort(sort_key, kind="stable").astype(np.uint32)


def cut_chunks(
    shard: np.ndarray,
    offset_bytes: np.ndarray,
    size_bytes: np.ndarray,
    *,
    chunk_bytes: int,
    max_gap_bytes: int,
    group: np.ndarray | None = None,
) -> np.ndarray:
    """int64 [num_samples]: which chunk each sample belongs to, ascending from 0.

    shard, offset_bytes, size_bytes: int [num_samples] in storage order; only the samples that are wanted. A
    chunk never spans two shards, nor a gap of unwanted bytes beyond max_gap_bytes.
    group: int [num_samples], equal for neighbours that are wanted together, the GOPs of one video: they stay in
    one chunk, unless they are more than MAX_GROUP_CHUNKS chunks long.
    """
    if len(shard) == 0:
        return np.zeros(0, np.int64)
    gap = offset_bytes[1:] - (offset_bytes[:-1] + size_bytes[:-1])
    run_start = np.concatenate([[True], (shard[1:] != shard[:-1]) | (gap > max_gap_bytes)])
    place = offset_bytes - _at_last(run_start, offset_bytes)
    is_new = run_start.copy()
    if group is not None:
        group_start = run_start.copy()
        group_start[1:] |= group[1:] != group[:-1]
        within = place - _at_last(group_start, place)
        is_new |= _changes(within // (MAX_GROUP_CHUNKS * chunk_bytes)) & ~group_start
        place = _at_last(group_start, place)
    is_new |= _changes(place // chunk_bytes)
    return np.cumsum(is_new) - 1


MAX_GROUP_CHUNKS = 8
"""A longer video is cut after all: what is fetched at once has to fit in memory."""


def _at_last(is_start: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The value at the last start, for each place."""
    return values[is_start][np.cumsum(is_start) - 1]


def _changes(values: np.ndarray) -> np.ndarray:
    """bool: True where a value differs from the one before; False at the first."""
    return np.concatenate([[False], values[1:] != values[:-1]])
