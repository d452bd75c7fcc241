"""Both stages on two ranks, DDP and FSDP2: what one process gives, held-out figures and baselines too."""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cope_prep.encoders.checkpoint import find_checkpoints
from cope_prep.encoders.data import DataConfig
from cope_prep.encoders.engine import TrainingConfig
from cope_prep.encoders.finetune import FinetuneConfig, FinetuneTask
from cope_prep.encoders.pretrain import PretrainConfig, PretrainTask
from cope_prep.encoders.program import run_training
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader import GopDataset, QADataset

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
import small_models
from ranks import run_ranks

PROGRAM = Path(__file__).parent / "run_task.py"
# Batch statistics are those of a rank's own frames: with stored ones, ranks make no difference.
DELTA = small_models.DELTA.model_copy(update={"freeze_batch_norm": True})


def training(**values: Any) -> TrainingConfig:
    return small_models.training(max_steps=2, batch_size=8, eval_every=1, **values)


@pytest.fixture(scope="module")
def tall(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """4 videos of 32 x 96."""
    return small_models.make_tall(media, tmp_path_factory.mktemp("tall"))


def config_of(
    kind: str, small: Layout, models: Path, output: Path, *, data: DataConfig | None = None, **values: Any
) -> Any:
    """On one rank the whole batch at once, on two a quarter of it twice."""
    data = data or small_models.data(small)
    common: dict[str, Any] = {
        "training": training(**values),
        "data": data,
        "eval_data": data,
        "eval_batches": 100,
    }
    if kind == "pretrain":
        return small_models.pretrain_config(small, models, output, delta_encoder=DELTA, **common)
    model = small_models.model_config(models, delta_encoder=DELTA)
    return small_models.finetune_config(small, models, output, model=model, **common)


def run_two_ranks(kind: str, config: PretrainConfig | FinetuneConfig) -> None:
    for code, _, err in run_ranks(str(PROGRAM), kind, config.model_dump_json(), timeout_s=100):
        assert code == 0, err


def assert_two_ranks_give_what_one_does(
    kind: str, parallel: str, small: Layout, folder: Path, data: DataConfig | None = None
) -> None:
    """Weights, and all figures of reports and evaluations."""
    small_models.write_models(folder / "models")
    alone, together = (folder / name for name in ("alone", "together"))
    models = folder / "models"
    task = {"pretrain": PretrainTask, "finetune": FinetuneTask}[kind]
    with small_models.one_thread():
        run_training(config_of(kind, small, models, alone, data=data, micro_batch_size=8), task)
    config = config_of(kind, small, models, together, data=data, micro_batch_size=2, parallel=parallel)
    run_two_ranks(kind, config)

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


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_two_ranks_give_what_one_does(kind: str, parallel: str, small: Layout, tmp_path: Path) -> None:
    assert_two_ranks_give_what_one_does(kind, parallel, small, tmp_path)


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_ranks_that_meet_other_numbers_of_sizes(
    kind: str, small: Layout, tall: Layout, tmp_path: Path
) -> None:
    """Under FSDP2 a rank that called a block more often than another would wait for it forever."""
    short = {"max_duration_s": 2}
    parts = [{"dataset": layout.dataset, "filter": short} for layout in (small, tall)]
    (tmp_path / "mix.yaml").write_text(json.dumps({"datasets": parts}))
    data = DataConfig(dataset=str(tmp_path / "mix.yaml"))
    of_ranks = [num_sizes(kind, data, rank) for rank in range(2)]
    assert any(first != second for first, second in zip(*of_ranks, strict=True)), of_ranks
    assert_two_ranks_give_what_one_does(kind, "fsdp2", small, tmp_path, data)


def num_sizes(kind: str, data: DataConfig, rank: int) -> list[int]:
    """Frame sizes of each micro-batch of a rank in the run's two steps."""
    options: dict[str, Any] = {"batch_size": 2, "shuffle": data.shuffle, "rank": rank, "world_size": 2}
    if kind == "pretrain":
        dataset: Any = GopDataset(data.source(), unit="window", **options)
    else:
        dataset = QADataset(data.source(), **options)
    batches = (getattr(batch, "gops", batch) for batch in islice(dataset, 4))
    return [len(batch.size_px.unique(dim=0)) for batch in batches]
