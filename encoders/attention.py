"""Transformer blocks of the Δ-encoder and of the stage-1 model, and where a token is in its frame.

Letters: B batch, L tokens, S tokens that are attended to, D width, H heads, E width of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - as torch has it
from torch import nn

_COARSEST, _FINEST = 0.5, 64.0
"""Periods a frame side: the slowest turns half, so that no two places have one code; the finest resolves 1/128."""


def frame_positions(
    height: int, width: int, dim: int, *, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """[height * width, dim]: sines and cosines of where the centre of each cell of a grid is in its frame.

    Coordinates are shares of the frame's sides, so that one place has one code in every grid over it (blocks
    of motion, cells of a residual map, patches), at every frame size. Nothing is learned, nothing is fixed to
    a size.
    """
    if dim % 4:
        raise ValueError(f"width must be a multiple of 4, not {dim}")
    steps = torch.linspace(math.log(_COARSEST), math.log(_FINEST), dim // 4, device=device)
    frequency = 2 * math.pi * torch.exp(steps)

    def code(size: int) -> torch.Tensor:
        centre = (torch.arange(size, device=device) + 0.5) / size
        angle = centre[:, None] * frequency
        return torch.cat((angle.sin(), angle.cos()), dim=-1)  # [size, dim / 2]

    rows = code(height)[:, None].expand(height, width, -1)
    columns = code(width)[None].expand(height, width, -1)
    return torch.cat((rows, columns), dim=-1).reshape(height * width, dim).to(dtype)


class Attention(nn.Module):
    """Multi-head attention of x on a context, or on x itself."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of {num_heads} heads")
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BLD: torch.Tensor, context_BSD: torch.Tensor | None = None) -> torch.Tensor:
        context_BSD = x_BLD if context_BSD is None else context_BSD
        query_BHLE = self._heads(self.query(x_BLD))
        key_BSD, value_BSD = self.key_value(context_BSD).chunk(2, dim=-1)
        mixed_BHLE = F.scaled_dot_product_attention(query_BHLE, self._heads(key_BSD), self._heads(value_BSD))
        return self.out(mixed_BHLE.transpose(1, 2).flatten(2))

    def _heads(self, x_BLD: torch.Tensor) -> torch.Tensor:
        return x_BLD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm transformer block: attention on itself, optionally on a context, then an MLP."""

    def __init__(self, width: int, num_heads: int, *, has_context: bool = False, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = Attention(width, num_heads)
        self.cross_norm = nn.LayerNorm(width) if has_context else None
        self.cross_attention = Attention(width, num_heads) if has_context else None
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width)
        )

    def forward(self, x_BLD: torch.Tensor, context_BSD: torch.Tensor | None = None) -> torch.Tensor:
        x_BLD = x_BLD + self.self_attention(self.self_norm(x_BLD))
        if self.cross_norm is not None and self.cross_attention is not None:
            x_BLD = x_BLD + self.cross_attention(self.cross_norm(x_BLD), context_BSD)
        return x_BLD + self.mlp(self.mlp_norm(x_BLD))


def init_linear(module: nn.Module) -> None:
    """Normal weights of variance 1 / fan-in and zero biases, for the linear layers below a module."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.normal_(child.weight, std=child.in_features**-0.5)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
