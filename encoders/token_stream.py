"""What a video becomes in the language model: how many tokens, of which kind, in which order.

An anchor given as a picture becomes pooled patches, an anchor given as motion and residual a few Δ-tokens. The runs
of all anchors follow each other in order of time at the chat's one `<image>` slot:

    patches        27 x 27 of SigLIP so400m-patch14-384, already projected to the language model's width
    pooling        by 2 in both directions: bilinear 14 x 14 (rounds up), average or max 13 x 13 (rounds down)
    newline        one learned vector: after each row (grid), after each picture (frame), once behind the last
                   token of the whole stream (one_token), or nowhere (none)

The defaults are LLaVA-Video's training layout: 14 x (14 + 1) = 210 tokens a picture. Harnesses that pool by average
get 13 x (13 + 1) = 182. Δ-tokens never get a newline. docs/tokens.md has the counts of every combination.

Letters: n pictures, M patches of a picture, h and w the sides of the pooled grid, T tokens of a picture, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch.nn import functional

from cope_prep.encoders.settings import Settings
from cope_prep.pipeline.loader.batch import PAD, QABatch
from cope_prep.pipeline.token_counts import TokenCounts
from cope_prep.schemas.errors import ConfigurationError

Pooling = Literal["bilinear", "average", "max"]
Newline = Literal["grid", "frame", "one_token", "none"]


class TokenLayout(Settings):
    """How pictures and Δ-frames become tokens of the language model."""

    patches_per_side: int = Field(default=27, ge=1)
    """Of the vision tower's square grid."""
    pool_stride: int = Field(default=2, ge=1)
    pooling: Pooling = "bilinear"
    newline: Newline = "grid"
    delta_tokens: int = Field(default=8, ge=0)
    """Of one Δ-frame: the Δ-encoder's motion and residual tokens together; 0 leaves Δ-frames out."""

    @model_validator(mode="after")
    def _leaves_a_token(self) -> Self:
        if self.pooled_side < 1:
            raise ValueError(
                f"pool_stride {self.pool_stride} with {self.pooling} pooling leaves nothing of"
                f" {self.patches_per_side} x {self.patches_per_side} patches"
            )
        return self

    @property
    def pooled_side(self) -> int:
        """Side of the pooled grid: bilinear rounds up, average and max leave out what does not fill a cell."""
        if self.pooling == "bilinear":
            return -(-self.patches_per_side // self.pool_stride)
        return self.patches_per_side // self.pool_stride

    @property
    def picture_tokens(self) -> int:
        """T: tokens of one picture, its newlines included."""
        newlines = {"grid": self.pooled_side, "frame": 1, "one_token": 0, "none": 0}[self.newline]
        return self.pooled_side**2 + newlines

    @property
    def stream_tokens(self) -> int:
        """Tokens that a stream has once, behind its last run: the newline of `one_token`."""
        return 1 if self.newline == "one_token" else 0

    def counts(self) -> TokenCounts:
        """For the loader: `QADataset(..., tokens=layout.counts())`."""
        return TokenCounts(picture=self.picture_tokens, delta=self.delta_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRun:
    """The tokens of one anchor in a stream."""

    kind: int
    """PICTURE or DELTA, as in the loader's batches."""
    time_s: float
    """In the video."""
    num_tokens: int


def pool_patches(patches_nMD: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
    """Patches [n, M, D] pooled to [n, h * w, D], as LLaVA-NeXT's `get_2dPool` does.

    Bilinear is an interpolation to the smaller size, with corners not aligned: it looks at the 4 nearest patches
    only, whatever the stride.
    """
    num_pictures, num_patches, width = patches_nMD.shape
    side, stride = layout.patches_per_side, layout.pool_stride
    if num_patches != side**2:
        raise ConfigurationError(
            f"patches_per_side {side}",
            f"{side} x {side} = {side**2} patches a picture, the vision tower makes {num_patches}",
            "Set patches_per_side to the tower's image_size // patch_size.",
        )
    if stride == 1:
        return patches_nMD
    patches_nDhw = patches_nMD.transpose(1, 2).reshape(num_pictures, width, side, side)
    if layout.pooling == "bilinear":
        size = (layout.pooled_side, layout.pooled_side)
        pooled_nDhw = functional.interpolate(patches_nDhw, size=size, mode="bilinear", align_corners=False)
    elif layout.pooling == "average":
        pooled_nDhw = functional.avg_pool2d(patches_nDhw, stride)
    else:
        pooled_nDhw = functional.max_pool2d(patches_nDhw, stride)
    return pooled_nDhw.flatten(2).transpose(1, 2)


def picture_features(patches_nMD: torch.Tensor, newline_D: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
    """The tokens [n, T, D] of pictures: projected patches, pooled, with the newlines of `grid` or `frame`.

    The newline of `one_token` belongs to the stream, not to a picture: sequences.py puts it there.
    """
    pooled_nTD = pool_patches(patches_nMD, layout)
    num_pictures, _, width = pooled_nTD.shape
    side = layout.pooled_side
    if layout.newline == "grid":
        pooled_nhwD = pooled_nTD.reshape(num_pictures, side, side, width)
        newline_nh1D = newline_D.to(pooled_nhwD.dtype).expand(num_pictures, side, 1, width)
        return torch.cat((pooled_nhwD, newline_nh1D), dim=2).flatten(1, 2)
    if layout.newline == "frame":
        newline_n1D = newline_D.to(pooled_nTD.dtype).expand(num_pictures, 1, width)
        return torch.cat((pooled_nTD, newline_n1D), dim=1)
    return pooled_nTD


def gop_tokens(num_anchors: int, key_frames: int, layout: TokenLayout) -> int:
    """Tokens of a full GOP of `num_anchors`, of which `key_frames` are pictures; without `stream_tokens`.

    Raises:
        ConfigurationError: so many pictures cannot be spread evenly.
    """
    if key_frames < 1 or num_anchors % key_frames:
        raise ConfigurationError(
            f"key_frames {key_frames}", f"must divide the {num_anchors} anchors of a GOP", "Use 1, or all."
        )
    return key_frames * layout.picture_tokens + (num_anchors - key_frames) * layout.delta_tokens


def stream_length(num_pictures: int, num_deltas: int, layout: TokenLayout) -> int:
    """Tokens at the `<image>` slot of a video with so many pictures and Δ-frames; 0 without any."""
    if num_pictures + num_deltas == 0:
        return 0
    return num_pictures * layout.picture_tokens + num_deltas * layout.delta_tokens + layout.stream_tokens


def runs_of_question(batch: QABatch, question: int) -> list[TokenRun]:
    """The runs of one question of a batch, in order of time; none if the question was skipped."""
    kinds = batch.run_kind[question].tolist()
    times_s = batch.run_s[question].tolist()
    counts = batch.run_tokens[question].tolist()
    return [
        TokenRun(kind=kind, time_s=time_s, num_tokens=count)
        for kind, time_s, count in zip(kinds, times_s, counts, strict=True)
        if kind != PAD
    ]
