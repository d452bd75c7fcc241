"""The three residual codings, each as a writer's half and a reader's half.

The writer codes `current - prediction`, then decodes what it wrote with the reader's half, so both hold the
same rebuilt anchor bit for bit. What differs from the re-encoded frame is only this one window's coding error:
the next window's residual is taken against the rebuilt anchor and cannot inherit it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cope_prep.pipeline import jpeg
from cope_prep.pipeline.kernels import residual as kernels
from cope_prep.schemas.specs import DctResidual, Int8Residual, LosslessResidual


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedResidual:
    """What the writer made of one window's residual."""

    payload: bytes | np.ndarray
    """As FusedPFrame.residual."""
    rebuilt: np.ndarray
    """uint8 [3H/2, W]: the anchor as a reader will rebuild it."""
    energy: int
    """Sum of squares of the residual before coding."""
    num_nonzero: int
    """Values of the decoded residual that are not zero."""
    num_clipped: int
    """Residuals beyond the coding's range."""


def code_residual(
    spec: DctResidual | Int8Residual | LosslessResidual, *, current: np.ndarray, prediction: np.ndarray
) -> CodedResidual:
    """Code `current - prediction`; both uint8 [3H/2, W]."""
    num_clipped = 0
    payload: bytes | np.ndarray
    if isinstance(spec, DctResidual):
        decoded = np.empty_like(current)
        energy = kernels.residual_to_half(current, prediction, decoded)
        payload = jpeg.encode_grey(decoded, quality=spec.quality)
        decoded = jpeg.decode_grey(payload, shape=current.shape, name="residual")
        num_nonzero = kernels.count_not_equal(decoded, 128)
    elif isinstance(spec, Int8Residual):
        payload = decoded = np.empty(current.shape, np.int8)
        energy, num_clipped = kernels.residual_to_int8(current, prediction, spec.step, spec.deadzone, decoded)
        num_nonzero = kernels.count_not_equal(decoded, 0)
    else:
        payload = decoded = np.empty(current.shape, np.int16)
        energy, num_nonzero = kernels.residual_to_int16(current, prediction, decoded)
    return CodedResidual(
        payload=payload,
        rebuilt=_add(spec, prediction, decoded),
        energy=energy,
        num_nonzero=num_nonzero,
        num_clipped=num_clipped,
    )


def apply_residual(
    spec: DctResidual | Int8Residual | LosslessResidual,
    payload: bytes | np.ndarray,
    *,
    prediction: np.ndarray,
    name: str,
) -> np.ndarray:
    """`clip(prediction + decoded residual)`, uint8 [3H/2, W]. `name` is for messages.

    Raises:
        FormatError: the payload is not a residual of the prediction's shape.
    """
    if isinstance(payload, bytes):
        payload = jpeg.decode_grey(payload, shape=prediction.shape, name=name)
    return _add(spec, prediction, payload)


def _add(
    spec: DctResidual | Int8Residual | LosslessResidual, prediction: np.ndarray, decoded: np.ndarray
) -> np.ndarray:
    rebuilt = np.empty_like(prediction)
    if isinstance(spec, DctResidual):
        kernels.add_half(prediction, decoded, rebuilt)
    else:
        step = spec.step if isinstance(spec, Int8Residual) else 1
        kernels.add_scaled(prediction, decoded, step, rebuilt)
    return rebuilt
