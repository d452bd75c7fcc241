"""The three residual codings, each as a writer's half and a reader's half.

The writer codes `current - prediction`, then decodes what it wrote with the reader's half, so both hold the
same rebuilt anchor bit for bit. What differs from the re-encoded frame is only this one window's coding error:
the next window's residual is taken against the rebuilt anchor and cannot inherit it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import zstandard

from cope_prep.pipeline import jpeg
from cope_prep.pipeline.kernels import residual as kernels
from cope_prep.schemas.specs import DctResidual, Int8Residual, LosslessResidual
from cope_prep.schemas.wire import pack_array, unpack_array

_ZSTD_LEVEL = 1
"""Residuals are mostly zeros: level 3 takes a third longer for 2 % fewer bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedResidual:
    """What the writer made of one window's residual."""

    payload: bytes
    """As FusedPFrame.residual."""
    energy: int
    """Sum of squares of the residual before coding."""
    num_nonzero: int
    """Values of the decoded residual that are not zero."""
    num_clipped: int
    """Residuals beyond the coding's range."""


class ResidualWriter:
    """Codes the residuals of one GOP after another; keeps its buffers, because fresh memory costs page faults."""

    def __init__(self, spec: DctResidual | Int8Residual | LosslessResidual, shape: tuple[int, ...]) -> None:
        """`shape` is [3H/2, W]."""
        self._spec = spec
        self._bytes = np.empty(shape, np.uint8)
        self._wide = np.empty(shape if isinstance(spec, LosslessResidual) else (0, 0), np.int16)
        self._compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)

    def code(self, *, current: np.ndarray, prediction: np.ndarray, rebuilt: np.ndarray) -> CodedResidual:
        """Code `current - prediction` and write to `rebuilt` what a reader will have; uint8 [3H/2, W]."""
        spec = self._spec
        num_clipped = 0
        if isinstance(spec, DctResidual):
            energy = kernels.residual_to_half(current, prediction, self._bytes)
            payload = jpeg.encode_grey(self._bytes, quality=spec.quality)
            decoded = jpeg.decode_grey(payload, shape=current.shape, name="residual", out=self._bytes)
        elif isinstance(spec, Int8Residual):
            decoded = self._bytes.view(np.int8)
            energy, num_clipped = kernels.residual_to_int8(
                current, prediction, spec.step, spec.deadzone, decoded
            )
            payload = pack_array(decoded, self._compressor)
        else:
            decoded = self._bytes.view(np.int8)
            energy, num_nonzero, fits = kernels.residual_exact(current, prediction, decoded)
            if not fits:
                decoded = self._wide
                kernels.residual_exact(current, prediction, decoded)
            payload = pack_array(decoded, self._compressor)
            np.copyto(rebuilt, current)  # prediction + (current - prediction), without the sum
            return CodedResidual(payload=payload, energy=energy, num_nonzero=num_nonzero, num_clipped=0)
        num_nonzero = _add(spec, prediction, decoded, rebuilt)
        return CodedResidual(payload=payload, energy=energy, num_nonzero=num_nonzero, num_clipped=num_clipped)


def apply_residual(
    spec: DctResidual | Int8Residual | LosslessResidual,
    payload: bytes,
    *,
    prediction: np.ndarray,
    rebuilt: np.ndarray,
    name: str,
) -> None:
    """Write `clip(prediction + decoded residual)` to `rebuilt`; uint8 [3H/2, W]. `name` is for messages.

    Raises:
        FormatError: the payload is not a residual of the prediction's shape.
    """
    _add(spec, prediction, decode_residual(spec, payload, shape=prediction.shape, name=name), rebuilt)


def decode_residual(
    spec: DctResidual | Int8Residual | LosslessResidual, payload: bytes, *, shape: tuple[int, ...], name: str
) -> np.ndarray:
    """A stored residual as an array of `shape`, [3H/2, W].

    dct: uint8, `residual / 2 + 128`. int8: int8, in steps. lossless: int8 or int16, grey levels.

    Raises:
        FormatError: the payload is not such a residual.
    """
    if isinstance(spec, DctResidual):
        return jpeg.decode_grey(payload, shape=shape, name=name)
    dtypes = (np.int8,) if isinstance(spec, Int8Residual) else (np.int8, np.int16)
    return unpack_array(payload, dtypes=dtypes, shape=shape, name=name)


def _add(
    spec: DctResidual | Int8Residual | LosslessResidual,
    prediction: np.ndarray,
    decoded: np.ndarray,
    rebuilt: np.ndarray,
) -> int:
    """Returns how many values of the decoded residual are not zero."""
    if isinstance(spec, DctResidual):
        return kernels.add_half(prediction, decoded, rebuilt)
    step = spec.step if isinstance(spec, Int8Residual) else 1
    return kernels.add_scaled(prediction, decoded, step, rebuilt)
