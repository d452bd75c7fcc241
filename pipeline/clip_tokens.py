"""The tokens of one GOP, run by run, at each density of key frames and as dense RGB.

The layout is the loader's (docs/tokens.md): a picture for every key frame, Δ-tokens for the other anchors. Dense
RGB is a picture for every second that begins, as in the statistics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cope_prep.pipeline.stats import KEY_FRAMES
from cope_prep.pipeline.token_counts import TokenCounts, pictures_of_gop


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRun:
    """Tokens of one anchor, or of one picture of dense RGB."""

    kind: Literal["I", "Δ", "RGB"]
    time_s: float
    """In the video."""
    first_token: int
    """In the GOP."""
    num_tokens: int
    anchor: int | None
    """Of the GOP; None if dense RGB has a picture where the GOP has no anchor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """One way to make tokens of the GOP."""

    name: str
    about: str
    """What share of dense RGB it is."""
    runs: tuple[TokenRun, ...]

    @property
    def num_tokens(self) -> int:
        """Of all runs."""
        return sum(run.num_tokens for run in self.runs)


def token_rows(
    *,
    num_frames: int,
    start_s: float,
    fps: int,
    gop_size: int,
    window: int,
    tokens: TokenCounts | None = None,
) -> tuple[TokenRow, ...]:
    """A row a density, sparsest first, and one of dense RGB."""
    tokens = tokens or TokenCounts()
    full = (gop_size - 1) // window + 1
    dense = _dense_rgb(num_frames=num_frames, start_s=start_s, fps=fps, window=window, tokens=tokens)
    num_dense = sum(run.num_tokens for run in dense)
    rows = []
    for key_frames in KEY_FRAMES:
        if full % key_frames:
            continue
        pictures = pictures_of_gop(num_frames, gop_size=gop_size, window=window, key_frames=key_frames)
        runs: list[TokenRun] = []
        first = 0
        for anchor, is_picture in enumerate(pictures.tolist()):
            count = tokens.picture if is_picture else tokens.delta
            runs.append(
                TokenRun(
                    kind="I" if is_picture else "Δ",
                    time_s=start_s + anchor * window / fps,
                    first_token=first,
                    num_tokens=count,
                    anchor=anchor,
                )
            )
            first += count
        rows.append(
            TokenRow(
                name=f"{key_frames} of {full} key frames",
                about=f"({first / num_dense:.0%})",
                runs=tuple(runs),
            )
        )
    return (*rows, TokenRow(name="dense RGB, 1 FPS", about="", runs=dense))


def _dense_rgb(
    *, num_frames: int, start_s: float, fps: int, window: int, tokens: TokenCounts
) -> tuple[TokenRun, ...]:
    return tuple(
        TokenRun(
            kind="RGB",
            time_s=start_s + second,
            first_token=second * tokens.picture,
            num_tokens=tokens.picture,
            anchor=None if second * fps % window else second * fps // window,
        )
        for second in range(math.ceil(num_frames / fps))
    )
