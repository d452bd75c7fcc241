"""Random numbers that are the same on every machine and in every version of numpy: SplitMix64, by position."""

from __future__ import annotations

import hashlib

import numpy as np


def hash_positions(num_positions: int, *, key: str) -> np.ndarray:
    """uint64 [num_positions]: SplitMix64 (Steele et al. 2014), started from a hash of `key`.

    Position i has the same number whatever num_positions is. Cost: about 10 ns a position.
    """
    start = hashlib.sha256(key.encode()).digest()[:8]
    state = np.arange(1, num_positions + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state += np.uint64(int.from_bytes(start, "little"))
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniform_positions(num_positions: int, *, key: str) -> np.ndarray:
    """float64 [num_positions] in [0, 1), from the upper 53 bits of `hash_positions`."""
    return (hash_positions(num_positions, key=key) >> np.uint64(11)) * 2.0**-53


def ranks(num_positions: int, *, key: str) -> np.ndarray:
    """int64 [num_positions]: a random permutation."""
    return np.argsort(hash_positions(num_positions, key=key), kind="stable")
