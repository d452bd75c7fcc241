"""The models and runs of the motion benchmark: a tiny SigLIP and a tiny Qwen2, from nothing, in both stages.

    base      pictures alone, questions about what they show, random weights: what LLaVA-Video is to the paper
    stage1    the base's tower, frozen, gives the targets for a Δ-encoder
    stage2    from the base, with key frames and Δ-tokens

Every run is one of cope_prep.encoders' own, with a configuration that could stand in a TOML file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from make_data import QUESTION_FILE, STILL_FILE
from render import SIDE_PX
from scenes import FPS, NUM_FRAMES, WINDOW
from tokenizer import make_tokenizer, vocabulary

from cope_prep.encoders.finetune import FinetuneConfig
from cope_prep.encoders.pretrain import PretrainConfig

TOWER_WIDTH = 96
PATCH_PX = 16
LM_WIDTH = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How long the runs are."""

    base_steps: int = 250
    stage1_steps: int = 300
    stage2_steps: int = 320
    batch_size: int = 16
    eval_every: int = 40
    """Steps of stage 2."""
    num_eval_batches: int = 8
    """Of 32 questions, while training goes on; the score is taken on all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row of the table: what the model of stage 2 gets to see."""

    name: str
    motion_tokens: int = 4
    residual_tokens: int = 4
    key_frames: int = 1
    pool_stride: int = 2
    has_delta: bool = True
    has_stage1: bool = False


def write_models(folder: Path) -> None:
    """config.json of the tower and the language model, and a tokenizer, for `weights = "random"`."""
    tower = {
        "model_type": "siglip_vision_model",
        "hidden_size": TOWER_WIDTH,
        "intermediate_size": 2 * TOWER_WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIDE_PX,
        "patch_size": PATCH_PX,
    }
    language_model = {
        "model_type": "qwen2",
        "vocab_size": len(vocabulary()),
        "hidden_size": LM_WIDTH,
        "intermediate_size": 2 * LM_WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        # 1 / sqrt(LM_WIDTH): Qwen2's own 0.02 is for its width, and a narrow model then learns nothing for long.
        "initializer_range": 0.1,
    }
    for name, values in (("siglip", tower), ("qwen2", language_model)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(values, indent=1))
    for name, file in (("still", STILL_FILE), ("all", QUESTION_FILE)):
        (folder / f"{name}.yaml").write_text(f"datasets:\n  - json_path: {file}\n")
    # Not beside the language model's config.json: AutoTokenizer would then take it for Qwen2's own kind.
    make_tokenizer(folder / "tokenizer")


def delta_encoder(variant: Variant) -> dict[str, Any]:
    return {
        "motion_tokens": variant.motion_tokens,
        "residual_tokens": variant.residual_tokens,
        "width": 64,
        "num_layers": 2,
        "num_heads": 4,
        "resnet_widths": (8, 16, 32),
        "output_width": TOWER_WIDTH,
    }


def training(
    *, steps: int, batch_size: int, seed: int, report_every: int, lr: float = 2e-3
) -> dict[str, Any]:
    return {
        "max_steps": steps,
        "batch_size": batch_size,
        "micro_batch_size": batch_size,
        "lr": lr,
        "weight_decay": 0.01,
        "warmup_steps": min(50, steps // 5),
        "precision": "fp32",
        "seed": seed,
        "device": "cpu",
        "num_workers": 0,
        "log_every": 25,
        "eval_every": report_every,
        "checkpoint_every": steps,
        "keep_checkpoints": 1,
        "tensorboard": False,
    }


def finetune_config(
    folder: Path,
    data: Path,
    variant: Variant,
    *,
    output: Path,
    seed: int,
    sizes: Sizes,
    base: Path | None,
    stage1: Path | None,
) -> FinetuneConfig:
    """Stage 2 of a variant, or the base itself if there is none to begin with."""
    is_base = base is None
    geometry = {"fps": FPS, "gop_size": NUM_FRAMES, "window": WINDOW}
    return FinetuneConfig.model_validate(
        {
            "output_dir": str(output),
            "model": {
                "siglip": str(folder / "siglip"),
                "qwen2": str(folder / "qwen2"),
                "weights": "random",
                "delta_frames": variant.has_delta,
                "tokenizer": str(folder / "tokenizer"),
                "layout": {"pool_stride": variant.pool_stride},
                "delta_encoder": delta_encoder(variant),
                "stage1": stage1 and str(stage1),
                "start_from": base and str(base),
                **({} if is_base else {"start_parts": ("vision_tower", "projector")}),
            },
            "groups": {
                "vision_tower": {"lr_scale": 1.0 if is_base else 0.2},
                "delta": {"train": not is_base},
            },
            "data": {
                "dataset": str(data / "train"),
                "questions_mix": str(folder / ("still.yaml" if is_base else "all.yaml")),
                "expect": geometry,
                "seed": seed,
            },
            "eval_data": {"dataset": str(data / "test"), "expect": geometry},
            "eval_batches": sizes.num_eval_batches,
            "eval_batch_size": 32,
            "key_frames": variant.key_frames,
            "time_prompt": False,
            "training": training(
                steps=sizes.base_steps if is_base else sizes.stage2_steps,
                batch_size=sizes.batch_size,
                seed=seed,
                report_every=sizes.base_steps if is_base else sizes.eval_every,
            ),
        }
    )


def pretrain_config(
    folder: Path, data: Path, variant: Variant, *, output: Path, base: Path, seed: int, sizes: Sizes
) -> PretrainConfig:
    """Stage 1 of a variant, against the base's tower."""
    return PretrainConfig.model_validate(
        {
            "output_dir": str(output),
            "tower": {"siglip": str(folder / "siglip"), "video_lm": str(base)},
            "delta_encoder": delta_encoder(variant),
            "alignment": {"width": 96, "num_heads": 4, "reference_layers": 1, "warp_layers": 2},
            "data": {"dataset": str(data / "train"), "seed": seed},
            "windows_per_visit": 7,
            "min_motion_px": 0.05,
            "eval_data": {"dataset": str(data / "test")},
            "eval_batches": 10,
            "training": training(
                steps=sizes.stage1_steps,
                batch_size=98,
                seed=seed,
                report_every=sizes.stage1_steps,
                lr=3e-3,
            ),
        }
    )
