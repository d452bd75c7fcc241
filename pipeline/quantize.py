"""Motion -> int8 and a step: the smallest of 1/4, 1/2, 1, ... 8 px that fits the window's largest vector."""

from __future__ import annotations

import numpy as np

_LIMIT = 127
_COARSEST_QPEL = 32
"""8 px a unit: +-1,016 px."""


def quantize_motion(motion: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Quantize a window's vectors.

    motion: int32 [Hb, Wb, 2], quarter pixels.
    Returns (int8 [Hb, Wb, 2] in steps, the step in quarter pixels, the number of blocks whose vector was
    beyond the coarsest step's range and was clamped). Rounded to nearest, halves away from zero.
    """
    magnitude = np.abs(motion)
    largest = int(magnitude.max(initial=0))
    step_qpel = 1
    while step_qpel < _COARSEST_QPEL and (largest + step_qpel // 2) // step_qpel > _LIMIT:
        step_qpel *= 2
    levels = (magnitude + step_qpel // 2) // step_qpel
    clipped = levels > _LIMIT
    num_clipped = int(np.count_nonzero(clipped.any(axis=-1))) if largest > _LIMIT else 0
    levels = np.minimum(levels, _LIMIT) * np.sign(motion)
    return levels.astype(np.int8), step_qpel, num_clipped
