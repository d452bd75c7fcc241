"""The global order: a permutation, well shuffled, and read from the shards in large sequential pieces."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from cope_prep.pipeline.hashing import hash_positions, uniform_positions
from cope_prep.pipeline.loader.order import (
    MAX_GROUP_CHUNKS,
    Shuffle,
    compact,
    cut_chunks,
    epoch_order,
    visit_order,
)

CHUNK_UNITS = 40
NUM_UNITS = 200_000
CHUNKS = np.arange(NUM_UNITS) // CHUNK_UNITS
RANDOM_CORRELATION = 4 / np.sqrt(NUM_UNITS / CHUNK_UNITS)
"""Four standard deviations of the correlation of chunks that are placed at random: 0.057."""


def positions(order: np.ndarray) -> np.ndarray:
    """int64: the place in the epoch of each unit."""
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return places


@pytest.mark.parametrize("num_units", [1, 2, 7, 511, 512, 513, 5000])
@pytest.mark.parametrize("shuffle", [Shuffle(), Shuffle(lanes=3, window_chunks=1), None])
def test_every_unit_occurs_once(num_units: int, shuffle: Shuffle | None):
    order = epoch_order(np.arange(num_units) // 7, shuffle=shuffle, seed=0, epoch=0)
    assert sorted(order.tolist()) == list(range(num_units))


def test_no_units_give_an_empty_order():
    assert len(epoch_order(np.zeros(0, np.int64), shuffle=Shuffle(), seed=0, epoch=0)) == 0


def test_storage_order_without_shuffle():
    assert epoch_order(CHUNKS[:100], shuffle=None, seed=3, epoch=1).tolist() == list(range(100))


def test_order_is_the_same_again_and_on_every_machine():
    order = epoch_order(np.arange(12) // 4, shuffle=Shuffle(lanes=2), seed=1, epoch=2)
    again = epoch_order(np.arange(12) // 4, shuffle=Shuffle(lanes=2), seed=1, epoch=2)
    assert order.tolist() == again.tolist()
    # Written down once: a state that was saved today must mean the same order for ever.
    assert order.tolist() == [10, 1, 4, 2, 8, 0, 7, 3, 5, 11, 6, 9]


def test_hash_is_splitmix64():
    state, expected = 0, []
    start = int.from_bytes(hashlib.sha256(b"key").digest()[:8], "little")
    for index in range(1, 5):
        state = (start + index * 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        expected.append(state ^ (state >> 31))
    assert hash_positions(4, key="key").tolist() == expected
    assert uniform_positions(4, key="key").tolist() == [(value >> 11) / 2**53 for value in expected]


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (1, 0)])
def test_every_epoch_and_seed_has_its_own_order(seed: int, epoch: int):
    first = epoch_order(CHUNKS, shuffle=Shuffle(), seed=0, epoch=0)
    other = epoch_order(CHUNKS, shuffle=Shuffle(), seed=seed, epoch=epoch)
    assert (first == other).mean() < 0.001
    # Not the same sequence shifted either: places in the one say nothing about places in the other.
    assert abs(np.corrcoef(positions(first), positions(other))[0, 1]) < RANDOM_CORRELATION


def test_order_says_nothing_of_storage_order():
    """Measured as the rank correlation between places in storage and in the epoch."""
    for epoch in range(3):
        places = positions(epoch_order(CHUNKS, shuffle=Shuffle(), seed=0, epoch=epoch))
        assert abs(np.corrcoef(places, np.arange(NUM_UNITS))[0, 1]) < RANDOM_CORRELATION


def test_neighbours_in_a_shard_end_up_far_apart():
    """Half of all neighbours are more than 10,000 of 200,000 places apart, 99.9 % not in one batch of 512."""
    distance = np.abs(np.diff(positions(epoch_order(CHUNKS, shuffle=Shuffle(), seed=0, epoch=0))))
    assert np.median(distance) > 10_000
    assert (distance >= 512).mean() > 0.999


def test_a_batch_is_of_many_chunks():
    order = epoch_order(CHUNKS, shuffle=Shuffle(), seed=0, epoch=0)
    batches = CHUNKS[order][: NUM_UNITS // 256 * 256].reshape(-1, 256)
    num_chunks = np.array([len(np.unique(batch)) for batch in batches])
    assert num_chunks.min() >= 250  # 256 random ones of 5,000 would be 249 on average


def test_few_chunks_are_still_mixed():
    """A dataset of 3 chunks: every batch of 24 has units of all of them."""
    chunk = np.arange(300) // 100
    order = epoch_order(chunk, shuffle=Shuffle(), seed=0, epoch=0)
    batches = chunk[order][:288].reshape(-1, 24)
    assert all(len(np.unique(batch)) == 3 for batch in batches)


def test_only_a_window_of_each_lane_is_open_at_a_time():
    """What a cache must hold: chunks that have begun and not ended, a few a lane and no more."""
    shuffle = Shuffle(lanes=16, window_chunks=4)
    order = epoch_order(CHUNKS, shuffle=shuffle, seed=0, epoch=0)
    visited = CHUNKS[order]
    first = np.full(CHUNKS[-1] + 1, NUM_UNITS)
    np.minimum.at(first, visited, np.arange(NUM_UNITS))
    last = np.zeros(CHUNKS[-1] + 1, np.int64)
    np.maximum.at(last, visited, np.arange(NUM_UNITS))
    changes = np.zeros(NUM_UNITS + 1, np.int64)
    np.add.at(changes, first, 1)
    np.add.at(changes, last + 1, -1)
    open_chunks = np.cumsum(changes)[:-1]
    assert open_chunks.max() <= 16 * (2 * 4 + 2)
    assert open_chunks.max() < len(first) / 10


def test_a_rank_keeps_to_its_own_lanes_when_the_global_batch_is_the_lanes():
    """So each chunk is fetched by one rank, or by two where a lane ends inside it."""
    shuffle = Shuffle(lanes=64)
    order = epoch_order(CHUNKS, shuffle=shuffle, seed=0, epoch=0)
    rank = np.arange(NUM_UNITS) % 64 // 8  # 8 ranks of 8
    ranks_of_chunk = np.zeros((CHUNKS[-1] + 1, 8), np.bool_)
    ranks_of_chunk[CHUNKS[order], rank] = True
    assert ranks_of_chunk.sum() < 1.03 * len(ranks_of_chunk)


def test_visits_stay_together_and_hold_every_unit():
    group = np.repeat(np.arange(500), 5)
    chunk = group // 10
    order = visit_order(chunk, group, visit_size=2, shuffle=Shuffle(lanes=8), seed=0, epoch=0)
    assert sorted(order.tolist()) == list(range(2500))
    # 5 questions make visits of 2, 2 and 1: two of five units begin a pair.
    is_pair = (np.diff(order.astype(np.int64)) == 1) & (order[:-1] % 5 % 2 == 0)
    assert is_pair.sum() == 500 * 2
    assert abs(np.corrcoef(positions(order), np.arange(2500))[0, 1]) < 0.2


def test_compact_numbers_have_no_gaps():
    assert compact(np.array([3, 3, 7, 8, 8, 12])).tolist() == [0, 0, 1, 2, 2, 3]
    assert compact(np.zeros(0, np.int64)).tolist() == []


def test_chunks_end_at_shards_gaps_and_sizes():
    shard = np.array([0, 0, 0, 0, 1, 1])
    offset = np.array([0, 100, 200, 5000, 0, 100])
    size = np.full(6, 100)
    chunks = cut_chunks(shard, offset, size, chunk_bytes=200, max_gap_bytes=1000)
    assert chunks.tolist() == [0, 0, 1, 2, 3, 3]


def test_chunks_of_a_whole_shard_cover_it_in_pieces_of_the_size_asked_for():
    rng = np.random.default_rng(0)
    size = rng.integers(50, 300, 4000)
    shard = np.arange(4000) // 1000
    offset = np.concatenate([np.cumsum(part) - part for part in size.reshape(4, 1000)])
    chunks = cut_chunks(shard, offset, size, chunk_bytes=8000, max_gap_bytes=1000)
    assert np.array_equal(compact(chunks), chunks)
    bytes_of_chunk = np.bincount(chunks, size)
    assert bytes_of_chunk.max() < 8000 + 300
    assert np.median(bytes_of_chunk) > 7500


def test_chunks_begin_where_videos_do():
    """Against a plain loop: a video stays in the chunk of its first sample, unless it is very long."""
    rng = np.random.default_rng(1)
    size = rng.integers(50, 300, 3000)
    shard = np.arange(3000) // 1000
    offset = np.concatenate([np.cumsum(part) - part for part in size.reshape(3, 1000)])
    video = np.cumsum(rng.random(3000) < 0.2)
    video[1200:1900] = video[1200]  # some 120 KB: 15 chunks of 8 KB
    chunks = cut_chunks(shard, offset, size, chunk_bytes=8000, max_gap_bytes=1000, group=video)
    expected, names = [], {}
    for index in range(3000):
        first = next(
            k for k in range(index, -1, -1) if k == 0 or video[k - 1] != video[k] or shard[k - 1] != shard[k]
        )
        piece = (offset[index] - offset[first]) // (MAX_GROUP_CHUNKS * 8000)
        name = (shard[index], offset[first] // 8000, piece, first if piece else -1)
        expected.append(names.setdefault(name, len(names)))
    assert chunks.tolist() == expected
    assert len(names) > 40
    bytes_of_chunk = np.bincount(chunks, size)
    assert bytes_of_chunk.max() <= (MAX_GROUP_CHUNKS + 1) * 8000 + 300
