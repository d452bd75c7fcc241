"""The vision tower: SigLIP's patch tokens of a picture, as LLaVA-Video takes them.

Pictures are resized straight to the tower's square (384 x 384 for so400m), aspect ratio ignored, and
normalized to [-1, 1]. The last encoder layer is left out, and so are the final norm and the head (LLaVA-NeXT;
FACTS section 4).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - as torch has it
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from cope_prep.encoders.pretrained import load_pretrained
from cope_prep.schemas.errors import ConfigurationError

# Letters: B pictures, C channels, H, W picture, M patches, D width.


class VisionTower(nn.Module):
    """SigLIP without its last layer, final norm and head. `model` is theirs, from transformers."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        """`config` is that of the whole tower: one layer more than is built."""
        super().__init__()
        if config.num_hidden_layers < 2:
            raise ConfigurationError("the vision tower", "has one layer, and the last one is not used")
        self.model = SiglipVisionModel(_cut(config))
        self.model.post_layernorm = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def width(self) -> int:
        """D of the patch tokens."""
        return self.model.config.hidden_size

    @property
    def side_px(self) -> int:
        """Of the square that the tower sees."""
        return cast(int, self.model.config.image_size)

    @property
    def patches_per_side(self) -> int:
        return self.side_px // cast(int, self.model.config.patch_size)

    def forward(self, rgb_BCHW: torch.Tensor) -> torch.Tensor:
        """float [B, 3, H, W] in [0, 1] -> patch tokens [B, M, D], row by row."""
        if len(rgb_BCHW) == 0:  # transformers' SigLIP takes no batch of none
            return rgb_BCHW.new_zeros(0, self.patches_per_side**2, self.width)
        return self.model(to_square(rgb_BCHW, self.side_px) * 2 - 1).last_hidden_state

    @classmethod
    def from_folder(cls, folder: str) -> VisionTower:
        """The tower of a local folder of transformers' SigLIP (the vision part, or the whole model).

        Raises:
            ConfigurationError: there is no such model.
            FormatError: a file in it is damaged.
        """
        # The head is not used, and not every checkpoint has it.
        whole = load_pretrained(SiglipVisionModel, folder, may_miss=("head.",))
        tower = cls(whole.config)
        stored = whole.state_dict()
        tower.model.load_state_dict({name: stored[name] for name in tower.model.state_dict()})
        return tower


def to_square(rgb_BCHW: torch.Tensor, side_px: int) -> torch.Tensor:
    """float [B, 3, H, W] in [0, 1] -> [B, 3, side_px, side_px], resized if they are not square already."""
    if rgb_BCHW.shape[-2:] == (side_px, side_px):
        return rgb_BCHW
    return F.interpolate(
        rgb_BCHW, size=(side_px, side_px), mode="bicubic", align_corners=False, antialias=True
    ).clamp(0, 1)


def _cut(config: SiglipVisionConfig) -> SiglipVisionConfig:
    values = config.to_dict()
    values.update(num_hidden_layers=config.num_hidden_layers - 1, vision_use_head=False)
    return SiglipVisionConfig.from_dict(values)
