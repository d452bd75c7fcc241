"""How many tokens GOPs become in the language model: arithmetic for plans and statistics, without torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cope_prep.schemas.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """Tokens that an anchor becomes in the language model (FACTS: LLaVA-Video's training layout, N = 8)."""

    picture: int = 210
    """14 x 14 pooled patches and a newline token for each of the 14 rows."""
    delta: int = 8


def gop_tokens(
    num_frames: np.ndarray,
    *,
    gop_size: int,
    window: int,
    key_frames: int,
    picture_tokens: int,
    delta_tokens: int,
) -> np.ndarray:
    """int64 [num_gops]: tokens of GOPs of so many frames; `gop_layout` for all of them at once.

    Raises:
        ConfigurationError: key_frames does not divide the anchors of a full GOP.
    """
    spacing = _spacing(gop_size, window, key_frames)
    anchors = (num_frames.astype(np.int64) - 1) // window + 1
    pictures = -(-anchors // spacing)
    return pictures * picture_tokens + (anchors - pictures) * delta_tokens


def pictures_of_gop(num_frames: int, *, gop_size: int, window: int, key_frames: int) -> np.ndarray:
    """bool [num_anchors]: which anchors of a GOP are pictures, the rest being Δ; as `gop_layout` has it.

    Raises:
        ConfigurationError: key_frames does not divide the anchors of a full GOP.
    """
    return np.arange((num_frames - 1) // window + 1) % _spacing(gop_size, window, key_frames) == 0


def _spacing(gop_size: int, window: int, key_frames: int) -> int:
    """Anchors from one picture to the next."""
    full = (gop_size - 1) // window + 1
    if key_frames < 1 or full % key_frames:
        raise ConfigurationError(f"--key-frames {key_frames}", f"does not divide the {full} anchors of a GOP")
    return full // key_frames
