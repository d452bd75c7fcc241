"""Tokens of pictures, GOPs and videos: the published numbers, and pooling against plain loops."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from pydantic import ValidationError

from cope_prep.encoders.token_stream import (
    Newline,
    Pooling,
    TokenLayout,
    TokenRun,
    gop_tokens,
    picture_features,
    pool_patches,
    runs_of_question,
    stream_length,
)
from cope_prep.pipeline.loader.batch import DELTA, PAD, PICTURE, QABatch
from cope_prep.pipeline.token_counts import TokenCounts
from cope_prep.schemas.errors import ConfigurationError

POOLINGS: tuple[Pooling, ...] = ("bilinear", "average", "max")
NEWLINES: tuple[Newline, ...] = ("grid", "frame", "one_token", "none")

PICTURE_TOKENS = {
    ("bilinear", "grid"): 210,
    ("bilinear", "frame"): 197,
    ("bilinear", "one_token"): 196,
    ("bilinear", "none"): 196,
    ("average", "grid"): 182,
    ("average", "frame"): 170,
    ("average", "one_token"): 169,
    ("average", "none"): 169,
    ("max", "grid"): 182,
    ("max", "frame"): 170,
    ("max", "one_token"): 169,
    ("max", "none"): 169,
}
"""FACTS section 4 names 210 and 182; the others by hand from 14 x 14 and 13 x 13."""


def slow_pool(patches: torch.Tensor, layout: TokenLayout) -> list[list[torch.Tensor]]:
    """One picture's patches [M, D] as rows of cells, a cell at a time."""
    side, stride = layout.patches_per_side, layout.pool_stride
    grid = [[patches[y * side + x] for x in range(side)] for y in range(side)]
    if layout.pooling == "bilinear":
        size = math.ceil(side / stride)

        def taps(index: int) -> list[tuple[int, float]]:
            # Centres of cells on centres of patches; nothing is read outside the grid.
            place = max((index + 0.5) * side / size - 0.5, 0.0)
            below = min(int(place), side - 1)
            return [(below, 1 - (place - below)), (min(below + 1, side - 1), place - below)]

        return [
            [
                sum((wy * wx * grid[y][x] for y, wy in taps(row) for x, wx in taps(column)), torch.zeros(1))
                for column in range(size)
            ]
            for row in range(size)
        ]
    size = side // stride
    cells = []
    for row, column in itertools.product(range(size), repeat=2):
        square = torch.stack(
            [grid[row * stride + dy][column * stride + dx] for dy in range(stride) for dx in range(stride)]
        )
        cells.append(square.mean(dim=0) if layout.pooling == "average" else square.max(dim=0).values)
    return [cells[row * size : (row + 1) * size] for row in range(size)]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("side", "stride"), [(27, 2), (8, 2), (7, 3), (5, 1), (4, 4)])
def test_pooling_is_that_of_plain_loops(pooling: Pooling, side: int, stride: int) -> None:
    torch.manual_seed(0)
    layout = TokenLayout(patches_per_side=side, pool_stride=stride, pooling=pooling)
    patches_nMD = torch.randn(2, side**2, 3, dtype=torch.float64)
    pooled = pool_patches(patches_nMD, layout)
    expected = [
        torch.stack([cell for row in slow_pool(patches, layout) for cell in row]) for patches in patches_nMD
    ]
    assert pooled.shape == (2, layout.pooled_side**2, 3)
    torch.testing.assert_close(pooled, torch.stack(expected))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("newline", NEWLINES)
def test_newlines_are_where_the_layout_says(pooling: Pooling, newline: Newline) -> None:
    torch.manual_seed(1)
    layout = TokenLayout(patches_per_side=5, pooling=pooling, newline=newline)
    patches_nMD, newline_D = torch.randn(3, 25, 4), torch.randn(4)
    features = picture_features(patches_nMD, newline_D, layout)
    assert features.shape == (3, layout.picture_tokens, 4)
    for picture, patches in zip(features, patches_nMD, strict=True):
        expected = []
        for row in slow_pool(patches, layout):
            expected += row + ([newline_D] if newline == "grid" else [])
        expected += [newline_D] if newline == "frame" else []
        torch.testing.assert_close(picture, torch.stack(expected))


def test_newline_learns_and_takes_the_type_of_the_patches() -> None:
    layout = TokenLayout(patches_per_side=4)
    newline_D = torch.zeros(3, requires_grad=True)
    features = picture_features(torch.ones(2, 16, 3, dtype=torch.bfloat16), newline_D, layout)
    assert features.dtype == torch.bfloat16
    features.sum().backward()
    assert newline_D.grad is not None
    assert newline_D.grad.tolist() == [4.0] * 3  # 2 pictures of 2 rows


def test_defaults_are_those_of_llava_video() -> None:
    layout = TokenLayout()
    assert (layout.pooled_side, layout.picture_tokens) == (14, 210)
    assert layout.counts() == TokenCounts() == TokenCounts(picture=210, delta=8)
    assert stream_length(64, 0, layout) == 13_440
    assert TokenLayout(pooling="average").picture_tokens == 182
    assert [gop_tokens(8, key_frames, layout) for key_frames in (8, 4, 2, 1)] == [1680, 872, 468, 266]


def test_tokens_of_every_mode_and_density() -> None:
    num_checked = 0
    for (pooling, newline), picture in PICTURE_TOKENS.items():
        layout = TokenLayout(pooling=pooling, newline=newline)
        assert layout.picture_tokens == picture
        assert layout.stream_tokens == (newline == "one_token")
        assert layout.counts() == TokenCounts(picture=picture, delta=8)
        for key_frames in (1, 2, 4, 8):
            num_deltas = 8 - key_frames
            expected = sum([picture] * key_frames + [8] * num_deltas)
            assert gop_tokens(8, key_frames, layout) == expected
            with_newline = expected * 8 + (newline == "one_token")
            assert stream_length(8 * key_frames, 8 * num_deltas, layout) == with_newline
            num_checked += 1
    assert num_checked == 3 * 4 * 4


def test_a_stream_of_nothing_has_no_tokens() -> None:
    assert stream_length(0, 0, TokenLayout(newline="one_token")) == 0


def test_uneven_key_frames_fails() -> None:
    for key_frames in (0, 3, 16):
        with pytest.raises(ConfigurationError, match=f"key_frames {key_frames}: must divide the 8 anchors"):
            gop_tokens(8, key_frames, TokenLayout())


def test_patches_of_another_grid_fails() -> None:
    with pytest.raises(
        ConfigurationError, match=r"27 x 27 = 729 patches a picture, the vision tower makes 576"
    ):
        pool_patches(torch.zeros(1, 576, 2), TokenLayout())


@pytest.mark.parametrize(
    "values",
    [
        {"pooling": "nearest"},
        {"newline": "no_token"},
        {"pool_stride": 0},
        {"delta_tokens": -1},
        {"pooling": "average", "patches_per_side": 2, "pool_stride": 3},
    ],
)
def test_a_layout_that_cannot_be_fails(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=str(next(iter(values)))):
        TokenLayout.model_validate(values)


def test_runs_of_a_question_are_in_order_of_time() -> None:
    batch = cast(
        QABatch,
        SimpleNamespace(
            run_kind=torch.tensor(
                [[PICTURE, DELTA, PICTURE], [PAD, PAD, PAD], [PICTURE, DELTA, PAD]], dtype=torch.int8
            ),
            run_s=torch.tensor([[0.0, 1.0, 8.0], [0.0, 0.0, 0.0], [16.0, 17.0, 0.0]], dtype=torch.float64),
            run_tokens=torch.tensor([[210, 8, 210], [0, 0, 0], [182, 16, 0]], dtype=torch.int32),
        ),
    )
    assert runs_of_question(batch, 0) == [
        TokenRun(kind=PICTURE, time_s=0.0, num_tokens=210),
        TokenRun(kind=DELTA, time_s=1.0, num_tokens=8),
        TokenRun(kind=PICTURE, time_s=8.0, num_tokens=210),
    ]
    assert runs_of_question(batch, 1) == []
    assert [run.num_tokens for run in runs_of_question(batch, 2)] == [182, 16]
