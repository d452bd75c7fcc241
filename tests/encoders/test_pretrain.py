"""Stage 1 as a run: from shards to weights, reports and checkpoints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cope_prep.encoders.build import TowerConfig
from cope_prep.encoders.checkpoint import find_checkpoints
from cope_prep.encoders.data import DataConfig, ExpectedGeometry
from cope_prep.encoders.engine import train
from cope_prep.encoders.pretrain import PretrainConfig, PretrainTask
from cope_prep.encoders.program import run_training
from cope_prep.encoders.run_record import read_record
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader import GopDataset, to_device
from cope_prep.pipeline.loader.batch import GopBatch
from cope_prep.schemas.errors import ConfigurationError

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
import small_models

pytestmark = pytest.mark.usefixtures("one_thread")


def run(small: Layout, models: Path, output: Path, **values: Any) -> PretrainConfig:
    config = small_models.pretrain_config(small, models, output, **values)
    run_training(config, PretrainTask)
    return config


def test_loss_falls_and_stands_beside_both_baselines(small: Layout, models: Path, tmp_path: Path) -> None:
    training = small_models.training(max_steps=40, eval_every=20, batch_size=8, lr=3e-3)
    run(small, models, tmp_path, training=training, eval_data=small_models.data(small), eval_batches=4)
    lines = small_models.lines(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 41))
    for line in lines:
        assert {"loss", "loss/copy_reference", "loss/zero_delta"} <= line.keys()
        assert line["weight"] == 8 * 9  # patches
    first, last = lines[0], lines[-1]
    assert first["loss"] == pytest.approx(first["loss/copy_reference"], rel=1e-6)
    assert first["loss"] == pytest.approx(first["loss/zero_delta"], rel=1e-6)
    assert sum(line["loss"] for line in lines[-10:]) < sum(
        line["loss/copy_reference"] for line in lines[-10:]
    )
    assert [line["step"] for line in lines if "eval/loss" in line] == [20, 40]
    assert last["eval/loss"] < last["eval/copy_reference"]
    assert last["eval/loss"] != last["eval/zero_delta"]
    record = read_record(tmp_path)
    assert record is not None
    assert record["geometry"]["window"] == 4
    assert record["config"]["training"]["max_steps"] == 40


def test_targets_are_the_frozen_towers_tokens(small: Layout, models: Path, tmp_path: Path) -> None:
    task = PretrainTask(small_models.pretrain_config(small, models, tmp_path))
    batch = next(iter(task.dataset))
    with torch.no_grad():
        prepared = task.prepare(batch, torch.device("cpu"))
        rgb = to_device(batch, "cpu").rgb
        for name, which in (("reference_FMD", 0), ("target_FMD", 1)):
            for row in range(4):
                expected = task.tower(rgb[row, which][None])[0]
                torch.testing.assert_close(prepared.inputs[name][row], expected)
    assert (prepared.weight, prepared.num_samples) == (4 * 9, 4)
    assert not any(parameter.requires_grad for parameter in task.tower.parameters())
    assert not any("tower" in name for name, _ in task.model.named_parameters())
    (group,) = task.parameter_groups()
    assert group.parameters.keys() == dict(task.model.named_parameters()).keys()


@pytest.fixture(scope="module")
def tall(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """4 videos of 32 x 96."""
    return small_models.make_tall(media, tmp_path_factory.mktemp("tall"))


def task_of(layouts: tuple[Layout, ...], models: Path, folder: Path, **values: Any) -> PretrainTask:
    """Of all short videos of these datasets, in batches of 12 windows."""
    parts = [{"dataset": layout.dataset, "filter": {"max_duration_s": 2}} for layout in layouts]
    mix = folder / f"mix-{len(list(folder.glob('mix-*')))}.yaml"
    mix.write_text(json.dumps({"datasets": parts}))
    training = small_models.training(batch_size=12, micro_batch_size=12)
    data = DataConfig(dataset=str(mix), last="wrap")
    config = small_models.pretrain_config(
        layouts[0], models, folder / "run", data=data, training=training, **values
    )
    return PretrainTask(config)


def windows_of(batch: GopBatch) -> list[tuple[str, float]]:
    """Key of the GOP, and the time to which it leads."""
    return [(key, float(end_s)) for key, end_s in zip(batch.info.keys, batch.delta_s[:, 0], strict=True)]


@torch.no_grad()
def test_a_window_is_the_same_among_other_sizes(
    small: Layout, tall: Layout, models: Path, tmp_path: Path
) -> None:
    """Reference, target, Δ-tokens, and whether it moves enough: none of them sees the padding to larger frames."""
    task = task_of((small, tall), models, tmp_path)
    encoder = task.model.delta_encoder.eval()

    def computed(batch: GopBatch) -> dict[tuple[str, float], list[torch.Tensor]]:
        inputs = task.prepare(batch, torch.device("cpu")).inputs
        values = (inputs["reference_FMD"], inputs["target_FMD"], encoder(**inputs["delta"])[:, 0])
        return {window: list(own) for window, *own in zip(windows_of(batch), *values, strict=True)}

    alone: dict[tuple[str, float], list[torch.Tensor]] = {}
    length_px: dict[tuple[str, float], float] = {}
    for layout in (small, tall):
        for batch in task_of((layout,), models, tmp_path).dataset:
            assert len(batch.size_px.unique(dim=0)) == 1
            alone |= computed(batch)
            found_px = to_device(batch, "cpu").motion_px[:, 0].norm(dim=1).mean(dim=(1, 2))
            length_px |= dict(zip(windows_of(batch), found_px.tolist(), strict=True))
    mixed = next(iter(task.dataset))
    assert len(mixed.size_px.unique(dim=0)) == 2
    found = computed(mixed)
    assert len(found) > 6
    for window, values in found.items():
        for value, expected in zip(values, alone[window], strict=True):
            torch.testing.assert_close(value, expected)

    # Over the padding as well, the mean of the slowest would be two thirds or half of what it is.
    of_mixed = [length_px[window] for window in windows_of(mixed)]
    limit_px = 0.75 * min(length for length in of_mixed if length > 0)
    moving = task_of((small, tall), models, tmp_path, min_motion_px=limit_px)
    num_moving = sum(length >= limit_px for length in of_mixed)
    assert moving.prepare(mixed, torch.device("cpu")).num_samples == num_moving


def test_interrupted_is_as_not_interrupted(small: Layout, models: Path, tmp_path: Path) -> None:
    whole = small_models.training(max_steps=6, checkpoint_every=3, warmup_steps=2)
    run(small, models, tmp_path / "whole", training=whole)

    class Interrupted(PretrainTask):
        num_left = 5

        def prepare(self, *arguments: Any) -> Any:
            if self.num_left == 0:
                raise OSError("unplugged")
            self.num_left -= 1
            return super().prepare(*arguments)

    config = small_models.pretrain_config(small, models, tmp_path / "cut", training=whole)
    with pytest.raises(OSError, match="unplugged"):
        run_training(config, Interrupted)
    assert [path.name for path in find_checkpoints(tmp_path / "cut")] == ["step-00000003"]
    run_training(config, PretrainTask)
    first, second = (find_checkpoints(tmp_path / name)[-1] for name in ("whole", "cut"))
    for name in ("model.safetensors", "optimizer.safetensors"):
        expected, found = load_file(first / name), load_file(second / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(value, found[key]) for key, value in expected.items())
    losses = [[line["loss"] for line in small_models.lines(tmp_path / name)] for name in ("whole", "cut")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def test_skipped_windows_weigh_nothing(small: Layout, models: Path, tmp_path: Path) -> None:
    """Only windows that could be read are in loss and weight; a batch without any leaves the weights alone."""
    copied = small_models.copy_dataset(small, tmp_path)
    key = small_models.damage(copied)
    data = small_models.data(copied, on_error="skip", shuffle=None)
    num_windows = len(GopDataset(small.dataset, unit="window"))
    training = small_models.training(max_steps=num_windows // 2, batch_size=2, micro_batch_size=2, lr=1e-4)
    run(copied, models, tmp_path / "run", data=data, training=training)
    lines = small_models.lines(tmp_path / "run")
    skipped = [line.get("num_skipped", 0) for line in lines]
    lost = sum(key == name for batch in GopDataset(small.dataset, unit="window") for name in batch.info.keys)
    assert sum(line.get("weight", 0) for line in lines) == (num_windows // 2 * 2 - lost) * 9
    assert 0 <= sum(skipped) <= lost
    assert lines[-1]["num_empty_steps"] >= 1
    assert lines[-1]["samples"] == num_windows // 2 * 2 - lost
    assert all(torch.tensor(line["loss"]).isfinite() for line in lines if "loss" in line)


def test_widths_that_differ_fail(small: Layout, models: Path, tmp_path: Path) -> None:
    delta = small_models.DELTA.model_copy(update={"output_width": 16})
    with pytest.raises(
        ConfigurationError, match=r"output_width: is 16, but the vision tower's tokens have 32"
    ):
        PretrainTask(small_models.pretrain_config(small, models, tmp_path, delta_encoder=delta))


def test_other_data_or_architecture_fails(small: Layout, models: Path, tmp_path: Path) -> None:
    data = small_models.data(small, expect=ExpectedGeometry(window=30))
    with pytest.raises(ConfigurationError, match=r"has window 4, the configuration expects 30"):
        run(small, models, tmp_path / "a", data=data)
    assert not (tmp_path / "a").exists()

    training = small_models.training(max_steps=1)
    run(small, models, tmp_path / "b", training=training)
    before = (tmp_path / "b" / "run.json").read_text()
    wide = small_models.DELTA.model_copy(update={"width": 20})
    longer = small_models.training(max_steps=2)
    with pytest.raises(ConfigurationError, match=r"was begun with delta_encoder\.width 16 \(here 20\)"):
        run(small, models, tmp_path / "b", delta_encoder=wide, training=longer)
    merged = small_models.data(small, window=8)
    with pytest.raises(ConfigurationError):
        run(small, models, tmp_path / "b", data=merged, training=longer)
    # A run that was refused must not say that it learned from other data.
    record = json.loads((tmp_path / "b" / "run.json").read_text())
    assert record["geometry"] == json.loads(before)["geometry"]


def test_tower_of_a_llava_checkpoint(small: Layout, models: Path, tmp_path: Path) -> None:
    import llava_checkpoint

    checkpoint = llava_checkpoint.write_checkpoint(tmp_path / "llava")
    config = small_models.pretrain_config(
        small, models, tmp_path / "run", tower=TowerConfig(llava=str(checkpoint.folder))
    )
    task = PretrainTask(config)
    result = train(task, config.training, output_dir=tmp_path / "run")
    assert result.metrics["loss"] > 0
    assert task.tower.patches_per_side == 2
