"""The Δ-encoder: motion vectors and residual of a fused P-frame -> a handful of Δ-tokens.

    motion   [Hb, Wb] vectors -> MLP per block  ─┐
                                                 ├─ + place in the frame -> learnable queries -> 4 tokens
    residual [H, W]   levels  -> ResNet-18, cut ─┘                                            -> 4 tokens

As CoPE-VideoLM has it (arXiv 2602.13191; digest in FACTS section 1). What it does not publish is our choice:

- A branch's transformer is queries that attend to one another and to the grid (cross-attention), so that its
  cost is linear in the grid's size: at 384 x 384, 576 blocks and 576 cells of the residual map.
- A vector goes in as soft bands of length, one an octave from a quarter pixel to 256, each alone and times the
  vector's direction: a code in which lengths differ by pattern, not by size alone, at any frame size. Whether
  a block is intra is one more input: its vector, 0, then means nothing.
- ResNet-18 is cut after its third stage (1/16 of the frame, the size of a block of the motion grid), and sees
  the residual as the difference of two ImageNet-normalized RGB pictures, so that ImageNet's weights fit it.
- Its batch norms see the frames that are there, and one at rest: padding does not enter their statistics.
- Tokens are differences from those of a frame in which nothing happens, which goes along with each batch: what is
  still has Δ-tokens of 0, but for rounding. Otherwise nearly all of a token is what all frames have in common (95 %
  of its mean square, untrained and after stage 1 alike), and a language model needs long to see the rest.
- Positions are shares of the frame (attention.py): any grid and any frame size, together or one after the other.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F  # noqa: N812 - as torch has it
from pydantic import model_validator
from torch import nn
from transformers import ResNetConfig, ResNetModel

from cope_prep.encoders.attention import Block, frame_positions, init_linear
from cope_prep.encoders.frame_sizes import rows_by_size
from cope_prep.encoders.pretrained import load_pretrained
from cope_prep.encoders.settings import Settings
from cope_prep.pipeline.loader import DeviceGops
from cope_prep.schemas.errors import ConfigurationError

# Letters: B GOPs, P Δ-frames of a GOP, F Δ-frames that are there, C channels, H, W frame, Hb, Wb grid of blocks,
# N Δ-tokens of a frame, Q queries of a branch, S cells of a grid, D width.

logger = logging.getLogger(__name__)

_RGB_OF_YUV = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
_IMAGENET_STD = (0.229, 0.224, 0.225)
_LENGTH_BANDS_OCTAVES = tuple(range(-2, 9))
"""Centres, as powers of 2 of a pixel: 0.25 to 256 px."""
_BAND_WIDTH_OCTAVES = 0.75
"""Standard deviation."""
_LENGTH_WEIGHT = 0.4
"""Of the bands alone, beside those with a direction: at 1 "which way" is learned late, at 0 "how fast"."""
VECTOR_CODE_WIDTH = 3 * len(_LENGTH_BANDS_OCTAVES)
MIN_TOKENS, MAX_TOKENS = 2, 32


class DeltaEncoderConfig(Settings):
    """Sizes of a Δ-encoder; the defaults are those of the paper where it says, for SigLIP so400m."""

    motion_tokens: int = 4
    residual_tokens: int = 4
    """0 leaves a branch out."""
    width: int = 512
    num_layers: int = 4
    """Of the transformer of each branch."""
    num_heads: int = 8
    resnet_widths: tuple[int, ...] = (64, 128, 256)
    """Channels of ResNet-18's stages, as many as are kept of the four."""
    resnet_checkpoint: str | None = None
    """A local folder of transformers' ResNet-18 (microsoft/resnet-18) to start from."""
    freeze_batch_norm: bool = False
    """Use the stored statistics in training too: with few videos a rank, after stage 1."""
    output_width: int = 1152
    """Width of the vision tower's patch tokens."""

    @model_validator(mode="after")
    def _check(self) -> DeltaEncoderConfig:
        if min(self.motion_tokens, self.residual_tokens) < 0:
            raise ValueError("motion_tokens and residual_tokens must not be negative")
        if not MIN_TOKENS <= self.num_tokens <= MAX_TOKENS:
            raise ValueError(
                f"motion_tokens + residual_tokens is {self.num_tokens}: must be {MIN_TOKENS} to {MAX_TOKENS}"
            )
        if not 1 <= len(self.resnet_widths) <= 4:
            raise ValueError(f"resnet_widths has {len(self.resnet_widths)} stages: must be 1 to 4")
        if self.width % self.num_heads or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 and of num_heads {self.num_heads}")
        return self

    @property
    def num_tokens(self) -> int:
        """N: Δ-tokens of a P-frame."""
        return self.motion_tokens + self.residual_tokens


class DeltaEncoder(nn.Module):
    """Motion vectors and residuals -> Δ-tokens in the width of the vision tower's patch tokens."""

    def __init__(self, config: DeltaEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.motion = MotionBranch(config) if config.motion_tokens else None
        self.residual = ResidualBranch(config) if config.residual_tokens else None

    def forward(
        self,
        motion_px_BPCHW: torch.Tensor,
        intra_BPHW: torch.Tensor,
        residual_y_BPCHW: torch.Tensor,
        residual_uv_BPCHW: torch.Tensor,
        delta_mask_BP: torch.Tensor,
        size_px_B2: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        motion_px_BPCHW: float [B, P, 2, Hb, Wb], (x, y) in pixels, backward.
        intra_BPHW: bool [B, P, Hb, Wb].
        residual_y_BPCHW, residual_uv_BPCHW: float [B, P, 1, H, W], [B, P, 2, H/2, W/2] in [-1, 1].
        delta_mask_BP: bool [B, P]: which Δ-frames are there; of the others the tokens are 0.
        size_px_B2: int [B, 2]: height and width of each GOP's frames, at the top left of what is given; the rest is
            padding, which is not looked at. None: there is none.

        Returns: [B, P, N, output_width].
        """
        num_gops, num_frames = delta_mask_BP.shape
        (frames_F,) = delta_mask_BP.flatten().nonzero(as_tuple=True)
        shape = (num_gops * num_frames, self.config.num_tokens, self.config.output_width)
        if len(frames_F) == 0:
            # Every parameter keeps a gradient, of zero, so that ranks with and without Δ-frames can meet.
            nothing = sum((p.sum() * 0 for p in self.parameters()), motion_px_BPCHW.new_zeros(()))
            return (motion_px_BPCHW.new_zeros(shape) + nothing).unflatten(0, (num_gops, num_frames))
        groups: list[tuple[torch.Tensor, tuple[int, int] | None]] = [(frames_F, None)]
        if size_px_B2 is not None:
            sizes_F2 = size_px_B2[frames_F // num_frames]
            groups = [(frames_F[rows], size_px) for size_px, rows in rows_by_size(sizes_F2)]
        block_px = residual_y_BPCHW.shape[-1] // intra_BPHW.shape[-1]
        tokens = []
        for group in groups:
            branches = []
            if self.motion is not None:
                motion_FCHW = _take(motion_px_BPCHW, *group, cell_px=block_px)
                branches.append(self.motion(motion_FCHW, _take(intra_BPHW, *group, cell_px=block_px)))
            if self.residual is not None:
                luma_FCHW = _take(residual_y_BPCHW, *group)
                branches.append(self.residual(luma_FCHW, _take(residual_uv_BPCHW, *group, cell_px=2)))
            tokens.append(torch.cat(branches, dim=1))
        tokens_FND = torch.cat(tokens)
        frames_F = torch.cat([frames for frames, _ in groups])
        every = tokens_FND.new_zeros(shape).index_copy(0, frames_F, tokens_FND)
        return every.unflatten(0, (num_gops, num_frames))

    def encode(self, gops: DeviceGops) -> torch.Tensor:
        """Δ-tokens [B, P, N, output_width] of a loader's batch (`to_device`)."""
        mask_BP, size_px_B2 = gops.batch.delta_mask, gops.batch.size_px
        return self(gops.motion_px, gops.intra, gops.residual_y, gops.residual_uv, mask_BP, size_px_B2)

    def train(self, mode: bool = True) -> DeltaEncoder:
        super().train(mode)
        # A frozen encoder's statistics must not drift: they are buffers, which no optimizer leaves alone.
        if self.config.freeze_batch_norm or not any(p.requires_grad for p in self.parameters()):
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


class Summary(nn.Module):
    """A transformer whose learnable queries read a grid of cells."""

    def __init__(self, config: DeltaEncoderConfig, num_queries: int) -> None:
        super().__init__()
        self.queries_QD = nn.Parameter(torch.randn(num_queries, config.width) * config.width**-0.5)
        self.cell_norm = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(
            Block(config.width, config.num_heads, has_context=True) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, config.output_width, bias=False)

    def forward(self, cells_FSD: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Cells of a grid, row by row -> tokens [F - 1, Q, output_width], less those of the last frame."""
        positions_SD = frame_positions(
            *grid, cells_FSD.shape[-1], device=cells_FSD.device, dtype=cells_FSD.dtype
        )
        cells_FSD = self.cell_norm(cells_FSD) + positions_SD
        tokens_FQD = self.queries_QD.expand(len(cells_FSD), -1, -1)
        for block in self.blocks:
            tokens_FQD = block(tokens_FQD, cells_FSD)
        tokens_FQD = self.out(self.norm(tokens_FQD))
        return tokens_FQD[:-1] - tokens_FQD[-1:]


class MotionBranch(nn.Module):
    """MLP over the grid of vectors, then queries."""

    def __init__(self, config: DeltaEncoderConfig) -> None:
        super().__init__()
        num_inputs = VECTOR_CODE_WIDTH + 1  # whether it is intra
        self.mlp = nn.Sequential(
            nn.Linear(num_inputs, config.width), nn.GELU(), nn.Linear(config.width, config.width)
        )
        self.summary = Summary(config, config.motion_tokens)
        # Biases of zero: a block at rest is nothing but its place, and what moves stands out against it.
        init_linear(self)

    def forward(self, motion_px_FCHW: torch.Tensor, intra_FHW: torch.Tensor) -> torch.Tensor:
        coded_FCHW = length_and_direction(motion_px_FCHW)
        cells_FCHW = torch.cat((coded_FCHW, intra_FHW[:, None].to(coded_FCHW.dtype)), dim=1)
        cells_FSC = _with_rest(cells_FCHW).flatten(2).transpose(1, 2)  # [F, C, Hb, Wb] -> [F, Hb * Wb, C]
        height, width = intra_FHW.shape[-2:]
        return self.summary(self.mlp(cells_FSC), (height, width))


class ResidualBranch(nn.Module):
    """The first stages of ResNet-18 over the residual, then queries."""

    def __init__(self, config: DeltaEncoderConfig) -> None:
        super().__init__()
        self.resnet = _make_resnet(config)
        self.narrow = nn.Linear(config.resnet_widths[-1], config.width)
        self.summary = Summary(config, config.residual_tokens)
        init_linear(self.narrow)
        init_linear(self.summary)
        matrix = torch.tensor(_RGB_OF_YUV) / torch.tensor(_IMAGENET_STD)[:, None]
        self.register_buffer("rgb_of_yuv", matrix, persistent=False)

    def forward(self, luma_FCHW: torch.Tensor, chroma_FCHW: torch.Tensor) -> torch.Tensor:
        full_FCHW = F.interpolate(
            chroma_FCHW, size=luma_FCHW.shape[-2:], mode="bilinear", align_corners=False
        )
        yuv_FCHW = torch.cat((luma_FCHW, full_FCHW), dim=1)
        rgb_FCHW = torch.einsum("cd,ndhw->nchw", self.rgb_of_yuv.to(yuv_FCHW.dtype), yuv_FCHW)
        map_FCHW = self.resnet(_with_rest(rgb_FCHW)).last_hidden_state
        height, width = map_FCHW.shape[-2:]
        return self.summary(self.narrow(map_FCHW.flatten(2).transpose(1, 2)), (height, width))


def length_and_direction(motion_px_FCHW: torch.Tensor) -> torch.Tensor:
    """Vectors (x, y) -> K bands of their length, then the bands times x and times y of their direction:
    [F, 3 K, Hb, Wb]. A vector of zero is all zeros.
    """
    centres_K = motion_px_FCHW.new_tensor(_LENGTH_BANDS_OCTAVES)[:, None, None]
    length_F1HW = motion_px_FCHW.norm(dim=1, keepdim=True).clamp(min=1e-3)
    bands_FKHW = (-0.5 * ((length_F1HW.log2() - centres_K) / _BAND_WIDTH_OCTAVES) ** 2).exp()
    x_F1HW, y_F1HW = (motion_px_FCHW / length_F1HW).split(1, dim=1)
    return torch.cat((_LENGTH_WEIGHT * bands_FKHW, bands_FKHW * x_F1HW, bands_FKHW * y_F1HW), dim=1)


def _take(
    planes_BPCHW: torch.Tensor, frames_F: torch.Tensor, size_px: tuple[int, int] | None, *, cell_px: int = 1
) -> torch.Tensor:
    """Some of the frames, [F, C, H, W]; of those of one size, without the padding to a larger one."""
    planes_FCHW = planes_BPCHW.flatten(0, 1)[frames_F]
    if size_px is None:
        return planes_FCHW
    return planes_FCHW[..., : size_px[0] // cell_px, : size_px[1] // cell_px]


def _with_rest(inputs_FCHW: torch.Tensor) -> torch.Tensor:
    """With one more frame behind them, in which nothing happens: no vector, no residual."""
    return torch.cat((inputs_FCHW, torch.zeros_like(inputs_FCHW[:1])))


def _make_resnet(config: DeltaEncoderConfig) -> ResNetModel:
    stages = len(config.resnet_widths)
    resnet_config = ResNetConfig(
        num_channels=3,
        embedding_size=config.resnet_widths[0],
        hidden_sizes=list(config.resnet_widths),
        depths=[2] * stages,
        layer_type="basic",
    )
    resnet = ResNetModel(resnet_config)
    if config.resnet_checkpoint is None:
        return resnet
    whole = load_pretrained(ResNetModel, config.resnet_checkpoint)
    stored, wanted = whole.state_dict(), resnet.state_dict()
    wrong = [name for name in wanted if name not in stored or stored[name].shape != wanted[name].shape]
    if wrong:
        raise ConfigurationError(
            config.resnet_checkpoint,
            f"has other weights than ResNet-18 with widths {config.resnet_widths}: {wrong[0]}",
            "Set resnet_widths to the first of its stages.",
        )
    resnet.load_state_dict({name: stored[name] for name in wanted})
    logger.info(
        "ResNet-18 from %s, %d of its tensors not used", config.resnet_checkpoint, len(stored) - len(wanted)
    )
    return resnet
