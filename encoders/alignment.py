"""Stage 1: teach the Δ-encoder what the vision tower would see, without showing the frame to it.

    reference frame -> frozen tower -> patch tokens -> reference transformer ─┐ queries
    motion, residual -> Δ-encoder -> Δ-tokens ────────────────────────────────┴ context -> warp transformer
        -> + reference's patch tokens = predicted patch tokens of the next anchor; loss: patch-wise MSE
           against the frozen tower's tokens of the rebuilt anchor

Both transformers are thrown away afterwards; the Δ-encoder stays. CoPE-VideoLM (arXiv 2602.13191) names the
parts and the loss; their wiring is not published, so this is ours: the reference transformer looks at the
reference frame alone (once a frame, whatever the Δ), the warp transformer's patch tokens attend to one
another and to the Δ-tokens. What it adds to the reference's tokens starts at zero: training begins exactly at
the baseline that copies the reference.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field, model_validator
from torch import nn

from cope_prep.encoders.attention import Block, frame_positions, init_linear
from cope_prep.encoders.delta_encoder import DeltaEncoder, DeltaEncoderConfig
from cope_prep.encoders.settings import Settings
from cope_prep.encoders.task import StepLoss

# Letters: F windows (pairs of anchors), P = 1 Δ-frame of each, M patches, N Δ-tokens, D width.


class AlignmentConfig(Settings):
    """Sizes of the two transformers of stage 1, which do not outlive it."""

    width: int = 768
    num_heads: int = Field(default=12, ge=1)
    reference_layers: int = Field(default=2, ge=0)
    warp_layers: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _check(self) -> AlignmentConfig:
        if self.width < 4 or self.width % self.num_heads or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 and of num_heads {self.num_heads}")
        return self


class AlignmentModel(nn.Module):
    """Δ-encoder, reference transformer and warp transformer; the frozen tower is not part of it."""

    def __init__(
        self, config: AlignmentConfig, delta_config: DeltaEncoderConfig, *, patches_per_side: int
    ) -> None:
        super().__init__()
        self.grid = (patches_per_side, patches_per_side)
        patch_width = delta_config.output_width
        self.delta_encoder = DeltaEncoder(delta_config)
        self.patch_in = nn.Sequential(nn.LayerNorm(patch_width), nn.Linear(patch_width, config.width))
        self.delta_in = nn.Sequential(nn.LayerNorm(patch_width), nn.Linear(patch_width, config.width))
        self.reference = nn.ModuleList(
            Block(config.width, config.num_heads) for _ in range(config.reference_layers)
        )
        self.warp = nn.ModuleList(
            Block(config.width, config.num_heads, has_context=True) for _ in range(config.warp_layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, patch_width)
        for part in (self.patch_in, self.delta_in, self.reference, self.warp):
            init_linear(part)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def predict(self, reference_FMD: torch.Tensor, delta_FND: torch.Tensor) -> torch.Tensor:
        """Patch tokens of the anchor that the Δ-tokens lead to, [F, M, patch width]."""
        x_FMD = self.patch_in(reference_FMD)
        x_FMD = x_FMD + frame_positions(*self.grid, x_FMD.shape[-1], device=x_FMD.device, dtype=x_FMD.dtype)
        for block in self.reference:
            x_FMD = block(x_FMD)
        context_FND = self.delta_in(delta_FND)
        for block in self.warp:
            x_FMD = block(x_FMD, context_FND)
        # In units of the frame's own tokens, whose size differs by orders of magnitude between towers.
        # Not Tensor.std, which warns of a batch without a frame: every window of it was skipped.
        centred_FMD = reference_FMD.float() - reference_FMD.float().mean(dim=(1, 2), keepdim=True)
        scale_F11 = centred_FMD.square().mean(dim=(1, 2), keepdim=True).sqrt().to(x_FMD.dtype)
        return reference_FMD + scale_F11 * self.out(self.norm(x_FMD))

    def forward(
        self,
        *,
        delta: Mapping[str, torch.Tensor],
        reference_FMD: torch.Tensor,
        target_FMD: torch.Tensor,
        has_delta: bool = True,
    ) -> StepLoss:
        """
        delta: the arguments of DeltaEncoder.forward, of the same F windows, P = 1.
        reference_FMD, target_FMD: the frozen tower's tokens of the windows' two anchors.
        has_delta: False puts zeros in place of the Δ-tokens.

        The loss is the sum over patches of the mean square over their width.
        """
        if has_delta:
            tokens_FND = self.delta_encoder(**delta).flatten(1, 2)
        else:
            num_tokens = self.delta_encoder.config.num_tokens
            tokens_FND = reference_FMD.new_zeros(len(reference_FMD), num_tokens, reference_FMD.shape[-1])
        predicted_FMD = self.predict(reference_FMD, tokens_FND)
        return StepLoss(loss_sum=patch_error(predicted_FMD, target_FMD), metrics={})


def patch_error(predicted_FMD: torch.Tensor, target_FMD: torch.Tensor) -> torch.Tensor:
    """Sum over frames and patches of the mean square error over a patch token's width; float32."""
    return (predicted_FMD.float() - target_FMD.float()).square().mean(dim=-1).sum()
