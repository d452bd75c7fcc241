"""Both stages on two ranks, DDP and FSDP2: what one process gives, held-out figures and baselines too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cope_prep.encoders.checkpoint import find_checkpoints
from cope_prep.encoders.engine import TrainingConfig
from cope_prep.encoders.finetune import FinetuneConfig, FinetuneTask
from cope_prep.encoders.pretrain import PretrainConfig, PretrainTask
from cope_prep.encoders.program import run_training
from cope_prep.pipeline.layout import Layout

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
import small_models
from ranks import run_ranks

PROGRAM = Path(__file__).parent / "run_task.py"
# Batch statistics are those of a rank's own frames: with stored ones, ranks make no difference.
DELTA = small_models.DELTA.model_copy(update={"freeze_batch_norm": True})


def training(**values: Any) -> TrainingConfig:
    return small_models.training(max_steps=2, batch_size=8, eval_every=1, **values)


def config_of(kind: str, small: Layout, models: Path, output: Path, **values: Any) -> Any:
    """On one rank the whole batch at once, on two a quarter of it twice."""
    common: dict[str, Any] = {
        "training": training(**values),
        "eval_data": small_models.data(small),
        "eval_batches": 100,
    }
    if kind == "pretrain":
        return small_models.pretrain_config(small, models, output, delta_encoder=DELTA, **common)
    model = small_models.model_config(models, delta_encoder=DELTA)
    return small_models.finetune_config(small, models, output, model=model, **common)


def run_two_ranks(kind: str, config: PretrainConfig | FinetuneConfig) -> None:
    for code, _, err in run_ranks(str(PROGRAM), kind, config.model_dump_json()):
        assert code == 0, err


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_two_ranks_give_what_one_does(kind: str, parallel: str, small: Layout, tmp_path: Path) -> None:
    small_models.write_models(tmp_path / "models")
    alone, together = (tmp_path / name for name in ("alone", "together"))
    models = tmp_path / "models"
    task = {"pretrain": PretrainTask, "finetune": FinetuneTask}[kind]
    with small_models.one_thread():
        run_training(config_of(kind, small, models, alone, micro_batch_size=8), task)
    run_two_ranks(kind, config_of(kind, small, models, together, micro_batch_size=2, parallel=parallel))

    expected, found = (
        load_file(find_checkpoints(run)[-1] / "model.safetensors") for run in (alone, together)
    )
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-3, atol=2e-4, msg=name)
    for ours, theirs in zip(small_models.lines(alone), small_models.lines(together), strict=True):
        figures = [name for name in ours if name.startswith(("loss", "eval/", "token_accuracy"))]
        assert len(figures) >= 3
        for name in figures:
            assert theirs[name] == pytest.approx(ours[name], rel=2e-2, abs=2e-2), name
