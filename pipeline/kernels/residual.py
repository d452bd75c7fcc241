"""The loops around the residual codings: subtract, code, add back, and the figures of a window.

Each runs once over [3H/2, W]; written out so that LLVM vectorises them (about 30 us each at 384 x 384).
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def residual_to_half(current: np.ndarray, prediction: np.ndarray, out: np.ndarray) -> int:
    """`(current - prediction) / 2 + 128`, halves toward zero; all uint8 [3H/2, W].

    -255 .. 255 becomes 1 .. 255: nothing is clipped. Returns the sum of squares of the residual.
    """
    energy = np.int64(0)
    for y in range(np.uint64(current.shape[0])):
        row_energy = np.int32(0)
        for x in range(np.uint64(current.shape[1])):
            value = np.int32(current[y, x]) - np.int32(prediction[y, x])
            row_energy += value * value
            # >> rounds down; adding the sign bit first rounds toward zero
            out[y, x] = np.uint8(((value + (np.uint32(value) >> np.uint32(31))) >> 1) + 128)
        energy += row_energy
    return int(energy)


@njit(cache=True, nogil=True)
def add_half(prediction: np.ndarray, coded: np.ndarray, out: np.ndarray) -> int:
    """`clip(prediction + 2 * (coded - 128))`, all uint8 [3H/2, W]. Returns how many of `coded` are not 128."""
    num_nonzero = np.int64(0)
    for y in range(np.uint64(out.shape[0])):
        row_nonzero = np.int32(0)
        for x in range(np.uint64(out.shape[1])):
            value = np.int32(prediction[y, x]) + ((np.int32(coded[y, x]) - 128) << 1)
            row_nonzero += np.int32(coded[y, x] != 128)
            out[y, x] = np.uint8(min(max(value, 0), 255))
        num_nonzero += row_nonzero
    return int(num_nonzero)


@njit(cache=True, nogil=True)
def residual_to_int8(
    current: np.ndarray, prediction: np.ndarray, step: int, deadzone: int, out: np.ndarray
) -> tuple[int, int]:
    """Nearest multiple of `step` as int8 [3H/2, W]; |residual| <= deadzone becomes 0.

    Returns (sum of squares of the residual, how many were beyond 127 steps and clamped).
    """
    energy = np.int64(0)
    clipped = np.int64(0)
    half = step // 2
    for y in range(np.uint64(current.shape[0])):
        for x in range(np.uint64(current.shape[1])):
            value = np.int32(current[y, x]) - np.int32(prediction[y, x])
            energy += value * value
            magnitude = abs(value)
            level = 0 if magnitude <= deadzone else (magnitude + half) // step
            if level > 127:
                level = 127
                clipped += 1
            out[y, x] = np.int8(level if value >= 0 else -level)
    return int(energy), int(clipped)


@njit(cache=True, nogil=True)
def residual_exact(current: np.ndarray, prediction: np.ndarray, out: np.ndarray) -> tuple[int, int, bool]:
    """`current - prediction` as int8 or int16 [3H/2, W], whichever `out` is.

    Returns (sum of squares, number of values not zero, whether all values fit into int8).
    """
    energy = np.int64(0)
    num_nonzero = np.int64(0)
    low = np.int32(0)
    high = np.int32(0)
    for y in range(np.uint64(current.shape[0])):
        row_energy = np.int32(0)
        row_nonzero = np.int32(0)
        for x in range(np.uint64(current.shape[1])):
            value = np.int32(current[y, x]) - np.int32(prediction[y, x])
            row_energy += value * value
            row_nonzero += np.int32(value != 0)
            low = min(low, value)
            high = max(high, value)
            out[y, x] = value
        energy += row_energy
        num_nonzero += row_nonzero
    return int(energy), int(num_nonzero), bool(low >= -128 and high <= 127)


@njit(cache=True, nogil=True)
def add_scaled(prediction: np.ndarray, coded: np.ndarray, step: int, out: np.ndarray) -> int:
    """`clip(prediction + step * coded)`; coded int8 or int16 [3H/2, W], the others uint8.

    Returns how many of `coded` are not 0.
    """
    num_nonzero = np.int64(0)
    for y in range(np.uint64(out.shape[0])):
        row_nonzero = np.int32(0)
        for x in range(np.uint64(out.shape[1])):
            value = np.int32(prediction[y, x]) + np.int32(coded[y, x]) * np.int32(step)
            row_nonzero += np.int32(coded[y, x] != 0)
            out[y, x] = np.uint8(min(max(value, 0), 255))
        num_nonzero += row_nonzero
    return int(num_nonzero)


@njit(cache=True, nogil=True)
def compare(rebuilt: np.ndarray, current: np.ndarray) -> tuple[int, int]:
    """(sum of squared luma errors, largest absolute error over Y, U and V) of two uint8 [3H/2, W]."""
    num_luma_rows = rebuilt.shape[0] * 2 // 3
    squares = np.int64(0)
    worst = np.int32(0)
    for y in range(np.uint64(rebuilt.shape[0])):
        row_squares = np.int32(0)
        for x in range(np.uint64(rebuilt.shape[1])):
            error = np.int32(rebuilt[y, x]) - np.int32(current[y, x])
            row_squares += error * error
            worst = max(worst, abs(error))
        if y < num_luma_rows:
            squares += row_squares
    return int(squares), int(worst)


@njit(cache=True, nogil=True)
def motion_figures(motion: np.ndarray, intra: np.ndarray) -> tuple[float, float, int]:
    """(mean length, 95th percentile of the length by nearest rank, number of zero vectors), without intra blocks.

    motion: int [Hb, Wb, 2] in steps; the lengths are in steps too, and 0 when all blocks are intra.
    intra: bool [Hb, Wb].
    """
    squares = np.empty(intra.size, np.int64)
    num_vectors = 0
    num_zero = 0
    total = 0.0
    for row in range(intra.shape[0]):
        for col in range(intra.shape[1]):
            if intra[row, col]:
                continue
            dx = np.int64(motion[row, col, 0])
            dy = np.int64(motion[row, col, 1])
            square = dx * dx + dy * dy
            squares[num_vectors] = square
            num_vectors += 1
            num_zero += square == 0
            total += np.sqrt(np.float64(square))
    if num_vectors == 0:
        return 0.0, 0.0, 0
    rank = max((num_vectors * 95 + 99) // 100 - 1, 0)
    p95 = np.sqrt(np.float64(np.partition(squares[:num_vectors], rank)[rank]))
    return total / num_vectors, p95, num_zero
