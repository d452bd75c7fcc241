"""replay_lru against an OrderedDict that is told the same uses."""

from __future__ import annotations

from collections import Counter, OrderedDict

import numpy as np
import pytest

from cope_prep.pipeline.kernels.lru import empty_ring, replay_lru

NUM_UNITS, GLOBAL_BATCH, NUM_STEPS = 600, 12, 40


class SlowCache:
    """Chunks by last use, oldest first; makes room as pipeline/loader/cache.py does."""

    def __init__(self, limit_bytes: int, keep_bytes: int) -> None:
        self.limit_bytes, self.keep_bytes = limit_bytes, keep_bytes
        self.chunks: OrderedDict[int, int] = OrderedDict()
        self.fetched: Counter[int] = Counter()

    @property
    def used_bytes(self) -> int:
        return sum(self.chunks.values())

    def use(self, chunk: int, size_bytes: int) -> int:
        """Bytes fetched for it."""
        if chunk in self.chunks:
            self.chunks.move_to_end(chunk)
            return 0
        if self.used_bytes + size_bytes > self.limit_bytes:
            while self.chunks and self.used_bytes > max(self.keep_bytes - size_bytes, 0):
                self.chunks.popitem(last=False)
        self.chunks[chunk] = size_bytes
        self.fetched[chunk] += 1
        return size_bytes


@pytest.mark.parametrize("limit_bytes", [120, 400, 1000, 100_000])
@pytest.mark.parametrize("places", [(0, 12), (4, 8)])
def test_fetches_what_a_plain_cache_fetches(limit_bytes: int, places: tuple[int, int]) -> None:
    rng = np.random.default_rng(limit_bytes)
    first_chunk = rng.integers(0, 58, NUM_UNITS).astype(np.int32)
    last_chunk = first_chunk + rng.integers(0, 3, NUM_UNITS).astype(np.int32)
    chunk_bytes = rng.integers(1, 100, 60)
    keep_bytes = int(limit_bytes * 0.9)
    slow = SlowCache(limit_bytes, keep_bytes)
    newer, older = empty_ring(60)
    used_bytes = 0
    num_fetches = np.zeros(60, np.int64)
    for _ in range(3):  # the cache lives on
        order = rng.permutation(NUM_UNITS).astype(np.uint32)
        expected = np.zeros(NUM_STEPS, np.int64)
        for step in range(NUM_STEPS):
            start = step * GLOBAL_BATCH
            for unit in order[start + places[0] : start + places[1]]:
                for chunk in range(first_chunk[unit], last_chunk[unit] + 1):
                    expected[step] += slow.use(chunk, int(chunk_bytes[chunk]))
        step_bytes = np.zeros(NUM_STEPS, np.int64)
        used_bytes = replay_lru(
            order, first_chunk, last_chunk, chunk_bytes, GLOBAL_BATCH, *places, limit_bytes, keep_bytes,
            used_bytes, newer, older, step_bytes, num_fetches,
        )  # fmt: skip
        np.testing.assert_array_equal(step_bytes, expected)
        assert used_bytes == slow.used_bytes
        assert used_bytes <= limit_bytes
    assert dict(slow.fetched) == {chunk: count for chunk, count in enumerate(num_fetches.tolist()) if count}
    if limit_bytes == 100_000:
        assert num_fetches.max() == 1
    else:
        assert num_fetches.max() > 1, "nothing was ever evicted: the test shows nothing"
