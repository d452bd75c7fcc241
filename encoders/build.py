"""Models from local folders: towers, language models, LLaVA-Video, and what earlier runs of ours have left.

Nothing is ever downloaded. A folder is what transformers' `save_pretrained` writes, or a LLaVA-Video checkpoint
(llava.py), or a run of ours: its output folder, or one checkpoint in it.
"""

from __future__ import annotations

import json
import logging
from typing import Literal

import torch
import torch.distributed as dist
from pydantic import ValidationError, model_validator
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
)

from cope_prep.encoders.chat import check_tokenizer
from cope_prep.encoders.checkpoint import load_model_weights
from cope_prep.encoders.delta_encoder import DeltaEncoder, DeltaEncoderConfig
from cope_prep.encoders.llava import LoadReport, load_llava_weights
from cope_prep.encoders.llava_config import read_llava_config, read_llava_tokenizer
from cope_prep.encoders.pretrained import load_config, load_pretrained
from cope_prep.encoders.safetensors_folder import local_folder
from cope_prep.encoders.settings import Settings
from cope_prep.encoders.token_stream import Newline, Pooling, TokenLayout
from cope_prep.encoders.video_lm import VideoLM
from cope_prep.encoders.vision_tower import VisionTower
from cope_prep.schemas.errors import ConfigurationError

logger = logging.getLogger(__name__)

Part = Literal["vision_tower", "projector", "delta", "language_model"]
PARTS: dict[Part, tuple[str, ...]] = {
    "vision_tower": ("vision_tower.",),
    "projector": ("projector.", "image_newline"),
    "delta": ("delta_encoder.", "delta_projector."),
    "language_model": ("language_model.",),
}
"""Parts of a VideoLM: what the names of their parameters begin with."""


class TowerConfig(Settings):
    """A vision tower alone, for stage 1. Give one of the two."""

    siglip: str | None = None
    """Folder of transformers' SigLIP: the vision part, or the whole."""
    llava: str | None = None
    """Folder of a LLaVA-Video checkpoint."""
    video_lm: str | None = None
    """With `siglip`: take the weights from a fine-tuning run of ours instead, or one of its checkpoints."""

    @model_validator(mode="after")
    def _check(self) -> TowerConfig:
        if (self.siglip is None) == (self.llava is None):
            raise ValueError("give siglip or llava, one of the two")
        if self.video_lm is not None and self.siglip is None:
            raise ValueError("video_lm goes with siglip, whose config.json it needs")
        return self


class LayoutConfig(Settings):
    """How patches become tokens, where the tower's grid and the Δ-encoder say the rest (token_stream.py)."""

    pool_stride: int = 2
    pooling: Pooling = "bilinear"
    newline: Newline = "grid"


class ModelConfig(Settings):
    """A VideoLM: LLaVA-Video as a whole, or a SigLIP and a Qwen2."""

    llava: str | None = None
    siglip: str | None = None
    qwen2: str | None = None
    weights: Literal["stored", "random"] = "stored"
    """random: of `siglip` and `qwen2` only the config.json is read."""
    tokenizer: str | None = None
    """None: in the folder of `llava` or `qwen2`."""
    layout: LayoutConfig | None = None
    """None: LLaVA-Video's, or what the checkpoint's config.json says."""
    delta_encoder: DeltaEncoderConfig = DeltaEncoderConfig()
    delta_frames: bool = True
    """False: pictures alone, the baseline of sparse key frames. The Δ-encoder is there, and not used."""
    stage1: str | None = None
    """Run of stage 1, or one of its checkpoints, to take the Δ-encoder from; not from `start_from`, then."""
    start_from: str | None = None
    """Fine-tuning run of ours, or one of its checkpoints, to take the weights from."""
    start_parts: tuple[Part, ...] = tuple(PARTS)
    """What of `start_from` is taken; the rest begins as it would without."""

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        parts = (self.siglip is not None, self.qwen2 is not None)
        if (self.llava is None and parts != (True, True)) or (self.llava is not None and any(parts)):
            raise ValueError("give llava, or siglip and qwen2")
        if self.llava is not None and self.weights == "random":
            raise ValueError("weights = 'random' goes with siglip and qwen2")
        if self.start_parts != tuple(PARTS) and self.start_from is None:
            raise ValueError("start_parts goes with start_from")
        if self.stage1 is not None and self.start_from is not None and "delta" in self.start_parts:
            others = [part for part in self.start_parts if part != "delta"]
            raise ValueError(
                "stage1 and start_from both have a Δ-encoder: leave out stage1 to take that of start_from, or take"
                f" the rest alone from start_from with start_parts = {json.dumps(others)}"
            )
        return self

    @property
    def delta_tokens(self) -> int:
        """Of one Δ-frame; 0 where there are pictures alone."""
        return self.delta_encoder.num_tokens if self.delta_frames else 0


def build_tower(config: TowerConfig) -> VisionTower:
    """
    Raises:
        ConfigurationError: a folder does not hold what it should.
        FormatError: a file in it is damaged.
    """
    if config.llava is not None:
        described = read_llava_config(config.llava)
        tower = VisionTower(described.vision)
        holder = torch.nn.Module()
        holder.vision_tower = tower
        _tell(f"{config.llava}: {load_llava_weights(holder, config.llava, only=('vision_tower.',))}")
        return tower
    assert config.siglip is not None
    if config.video_lm is None:
        return VisionTower.from_folder(config.siglip)
    tower = VisionTower(load_config(SiglipVisionConfig, config.siglip))
    load_model_weights(tower, config.video_lm, prefix="vision_tower.")
    return tower


def build_video_lm(config: ModelConfig) -> VideoLM:
    """
    Raises:
        ConfigurationError: a folder does not hold what it should, or parts do not fit one another.
        FormatError: a file in it is damaged.
    """
    if config.llava is not None:
        model = _from_llava(config, config.llava)
    else:
        model = _from_parts(config)
    if config.start_from is not None:
        left_out: list[Part] = [part for part in PARTS if part not in config.start_parts]
        skip = tuple(prefix for part in left_out for prefix in PARTS[part])
        load_model_weights(model, config.start_from, skip=skip)
    if config.stage1 is not None:
        load_model_weights(model.delta_encoder, config.stage1, prefix="delta_encoder.")
    return model


def build_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """
    Raises:
        ConfigurationError: there is none, or it lacks the template's tokens.
    """
    if config.tokenizer is None and config.llava is not None:
        tokenizer = read_llava_tokenizer(config.llava)
    else:
        folder = local_folder(config.tokenizer or config.qwen2 or "")
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as exc:  # tokenizers raises that very class for a file it cannot parse
            raise ConfigurationError(
                str(folder),
                f"has no tokenizer that transformers can load: {' '.join(str(exc).split())}",
                "Name one with model.tokenizer.",
            ) from exc
    check_tokenizer(tokenizer)
    return tokenizer


def _from_llava(config: ModelConfig, folder: str) -> VideoLM:
    described = read_llava_config(folder, delta_tokens=config.delta_tokens)
    layout = described.layout
    if config.layout is not None:
        layout = token_layout(
            config.layout, patches_per_side=layout.patches_per_side, delta_tokens=config.delta_tokens
        )
    model = VideoLM(
        vision_tower=VisionTower(described.vision),
        delta_encoder=DeltaEncoder(config.delta_encoder),
        language_model=Qwen2ForCausalLM(described.language),
        layout=layout,
    )
    report = load_llava_weights(model, folder)
    untrained = ", ".join(_untrained(config, report))
    _tell(f"{folder}: {report}" + (f"; untrained in a new run: {untrained}" if untrained else ""))
    return model


def _untrained(config: ModelConfig, report: LoadReport) -> list[str]:
    """What a LLaVA checkpoint does not have, and no run of ours is to give."""
    given = ("delta_encoder.",) if config.stage1 is not None else ()
    if config.start_from is not None:
        given += tuple(prefix for part in config.start_parts for prefix in PARTS[part])
    return [part for part in report.missing_parts if not f"{part}.".startswith(given)]


def _tell(text: str) -> None:
    """Once for all ranks, and as a warning: programs show nothing below."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        logger.warning("%s", text)


def _from_parts(config: ModelConfig) -> VideoLM:
    assert config.siglip is not None
    assert config.qwen2 is not None
    if config.weights == "random":
        tower = VisionTower(load_config(SiglipVisionConfig, config.siglip))
        language_model = Qwen2ForCausalLM(load_config(Qwen2Config, config.qwen2))
    else:
        tower = VisionTower.from_folder(config.siglip)
        language_model = load_pretrained(Qwen2ForCausalLM, config.qwen2)
    return VideoLM(
        vision_tower=tower,
        delta_encoder=DeltaEncoder(config.delta_encoder),
        language_model=language_model,
        layout=token_layout(
            config.layout or LayoutConfig(),
            patches_per_side=tower.patches_per_side,
            delta_tokens=config.delta_tokens,
        ),
    )


def token_layout(layout: LayoutConfig, *, patches_per_side: int, delta_tokens: int) -> TokenLayout:
    """
    Raises:
        ConfigurationError: nothing of a picture would be left.
    """
    try:
        return TokenLayout(
            patches_per_side=patches_per_side, delta_tokens=delta_tokens, **layout.model_dump()
        )
    except ValidationError as exc:
        reasons = "; ".join(error["msg"].removeprefix("Value error, ") for error in exc.errors())
        raise ConfigurationError("model.layout", reasons) from exc
