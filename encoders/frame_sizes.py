"""Batches that mix frame sizes: each frame is computed in its own size, without the padding to the largest one.

A padded frame would lie in a corner of the tower's square, its blocks would be a corner of the grid of vectors, and
both would depend on which other videos are in the batch. Nearly always a batch has one size: then nothing is cut.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from cope_prep.encoders.vision_tower import to_square
from cope_prep.pipeline.loader import DeviceGops

# Letters: B GOPs, K pictures, n pictures that are taken.


def rows_by_size(size_px_B2: torch.Tensor) -> Iterator[tuple[tuple[int, int], torch.Tensor]]:
    """Height and width in pixels, and the rows that have them, int64; one size after the other."""
    unique, which_B = torch.unique(size_px_B2, dim=0, return_inverse=True)
    for index, (height, width) in enumerate(unique.tolist()):
        yield (height, width), (which_B == index).nonzero(as_tuple=True)[0]


def picture_squares(gops: DeviceGops, mask_BK: torch.Tensor, *, side_px: int) -> torch.Tensor:
    """Pictures of a batch as a vision tower sees them: float [n, 3, side_px, side_px], whatever their sizes.

    mask_BK: bool: which pictures, all of them with one; they come row by row.
    """
    gop, picture = mask_BK.nonzero(as_tuple=True)
    squares = gops.rgb.new_zeros(len(gop), 3, side_px, side_px)
    for (height, width), rows in rows_by_size(gops.batch.size_px[gop]):
        own = gops.rgb[gop[rows], picture[rows]][..., :height, :width]
        squares[rows] = to_square(own, side_px)
    return squares


def mean_motion_px(gops: DeviceGops) -> torch.Tensor:
    """float [B, P]: mean length of the vectors of each Δ-frame, over the blocks that its own size has."""
    block_px = gops.residual_y.shape[-1] // gops.intra.shape[-1]
    num_blocks_B = (gops.batch.size_px // block_px).prod(dim=1)
    length_px = gops.motion_px.norm(dim=2)  # [B, P, Hb, Wb]; the padding has no vectors
    return length_px.sum(dim=(2, 3)) / num_blocks_B[:, None]
