"""The token rows of a GOP add up to what the loader and the statistics count."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cope_prep.pipeline.clip_tokens import token_rows
from cope_prep.pipeline.loader.primitives import gop_layout
from cope_prep.pipeline.token_counts import TokenCounts, gop_tokens, pictures_of_gop
from cope_prep.schemas.errors import ConfigurationError


@pytest.mark.parametrize(
    ("num_frames", "gop_size", "window"),
    [(240, 240, 30), (61, 240, 30), (1, 240, 30), (60, 60, 5), (7, 16, 1)],
)
def test_rows_count_what_the_loader_counts(num_frames: int, gop_size: int, window: int) -> None:
    full = (gop_size - 1) // window + 1
    *rows, dense = token_rows(num_frames=num_frames, start_s=8.0, fps=30, gop_size=gop_size, window=window)
    densities = [count for count in (1, 2, 4, 8) if full % count == 0]
    assert [row.name for row in rows] == [f"{count} of {full} key frames" for count in densities]
    for key_frames, row in zip(densities, rows, strict=True):
        layout = gop_layout(
            num_frames=num_frames,
            gop_size=gop_size,
            fps=30,
            start_s=8.0,
            window=window,
            key_frames=key_frames,
        )
        assert [run.kind == "I" for run in row.runs] == layout.is_picture.tolist()
        assert [run.time_s for run in row.runs] == pytest.approx(layout.anchor_s.tolist())
        counted = gop_tokens(
            np.array([num_frames]),
            gop_size=gop_size,
            window=window,
            key_frames=key_frames,
            picture_tokens=210,
            delta_tokens=8,
        )
        assert row.num_tokens == counted[0]
    assert dense.num_tokens == 210 * math.ceil(num_frames / 30)
    for row in (*rows, dense):
        ends = [0, *(run.first_token + run.num_tokens for run in row.runs)]
        assert [run.first_token for run in row.runs] == ends[:-1]


def test_the_tables_of_docs_tokens() -> None:
    *rows, dense = token_rows(num_frames=240, start_s=0.0, fps=30, gop_size=240, window=30)
    assert [row.num_tokens for row in rows] == [266, 468, 872, 1680]
    assert [row.about for row in rows] == ["(16%)", "(28%)", "(52%)", "(100%)"]
    assert dense.num_tokens == 1680
    assert [run.anchor for run in dense.runs] == list(range(8))


def test_dense_rgb_knows_its_anchors() -> None:
    *_, dense = token_rows(num_frames=60, start_s=0.0, fps=30, gop_size=60, window=20)
    assert [run.anchor for run in dense.runs] == [0, None]


def test_other_token_counts() -> None:
    tokens = TokenCounts(picture=182, delta=4)
    sparse, *_ = token_rows(num_frames=240, start_s=0.0, fps=30, gop_size=240, window=30, tokens=tokens)
    assert sparse.num_tokens == 182 + 7 * 4


def test_pictures_must_be_evenly_spaced() -> None:
    with pytest.raises(ConfigurationError, match="does not divide the 8 anchors"):
        pictures_of_gop(240, gop_size=240, window=30, key_frames=3)
