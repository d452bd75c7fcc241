"""The recipes in configs/ are configurations that parse, and those of the paper have its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from cope_prep.encoders.finetune import FinetuneConfig
from cope_prep.encoders.pretrain import PretrainConfig
from cope_prep.jobs.train_config import read_run

CONFIGS = Path(__file__).parents[1] / "configs"
GEOMETRY = {
    "fps": 30, "gop_size": 240, "window": 30, "block_px": 16, "width_px": 384, "height_px": 384,
}  # fmt: skip


def pretrain(name: str) -> PretrainConfig:
    kind, config = read_run(str(CONFIGS / name))
    assert kind == "pretrain"
    assert isinstance(config, PretrainConfig)
    return config


def finetune(name: str) -> FinetuneConfig:
    kind, config = read_run(str(CONFIGS / name))
    assert kind == "finetune"
    assert isinstance(config, FinetuneConfig)
    return config


def test_every_recipe_parses() -> None:
    paths = sorted(CONFIGS.glob("*.toml"))
    assert [path.name for path in paths] == [
        "one_gpu_finetune.toml",
        "one_gpu_pretrain.toml",
        "paper_finetune.toml",
        "paper_pretrain.toml",
    ]
    for path in paths:
        kind, config = read_run(str(path))
        assert config.task == kind
        assert path.stem.endswith(kind)
        assert config.data.expect.model_dump(exclude_none=True) == GEOMETRY


def test_paper_pretrain_has_the_papers_numbers() -> None:
    config = pretrain("paper_pretrain.toml")
    assert config.training.max_steps == 113_000
    assert (config.delta_encoder.motion_tokens, config.delta_encoder.residual_tokens) == (4, 4)
    assert config.training.accumulation(16) == 1


def test_paper_finetune_has_the_papers_numbers() -> None:
    config = finetune("paper_finetune.toml")
    assert config.training.lr == 1e-5
    assert config.training.batch_size == 128
    assert config.key_frames == 4
    assert config.model.delta_encoder.num_tokens == 8
    assert all(group.train for group in (config.groups.vision_tower, config.groups.language_model))
    assert config.training.parallel == "fsdp2"
    assert config.training.precision == "bf16"
    assert config.training.activation_checkpointing
    assert config.training.accumulation(64) == 2
    questions = config.training.max_steps * config.training.batch_size
    assert questions == pytest.approx(1_395_547, rel=0.001)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("paper_pretrain.toml", "paper_finetune.toml"),
        ("one_gpu_pretrain.toml", "one_gpu_finetune.toml"),
    ],
)
def test_stage_two_takes_the_delta_encoder_of_stage_one(first: str, second: str) -> None:
    stage1, stage2 = pretrain(first), finetune(second)
    assert stage2.model.stage1 == stage1.output_dir
    of_stage2 = stage2.model.delta_encoder.model_copy(update={"freeze_batch_norm": False})
    assert of_stage2 == stage1.delta_encoder
