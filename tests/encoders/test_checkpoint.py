"""Checkpoints: complete or not there, the last ones kept, weights for others, and clear refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from cope_prep.encoders import tensor_files
from cope_prep.encoders.checkpoint import find_checkpoints, load_model_weights, read_trainer
from cope_prep.pipeline.layout import Layout
from cope_prep.schemas.errors import ConfigurationError, FormatError, StorageError


@pytest.fixture
def toy(load_helper: Callable[[str], ModuleType]) -> ModuleType:
    return load_helper("toy_task")


@pytest.fixture
def run(toy: ModuleType, small: Layout, tmp_path: Path) -> Path:
    """Of 6 steps, a checkpoint every 2, with an average."""
    toy.run(small.dataset, tmp_path / "run", ema_decay=0.5, checkpoint_every=2, keep_checkpoints=2)
    return tmp_path / "run"


def test_the_last_ones_are_kept(run: Path):
    assert [path.name for path in find_checkpoints(run)] == ["step-00000004", "step-00000006"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]


def test_checkpoint_says_what_it_is(run: Path):
    document = read_trainer(find_checkpoints(run)[-1])
    assert document["task"] == "toy"
    assert document["progress"]["step"] == 6
    assert document["progress"]["num_samples"] == 24
    assert document["config"]["ema_decay"] == 0.5
    assert document["versions"]["torch"] == torch.__version__
    assert len(document["architecture"]) == 64


def test_tied_weights_are_stored_once_and_come_back_tied(toy: ModuleType, run: Path):
    for name, average in (("model.safetensors", False), ("ema.safetensors", True)):
        with safe_open(find_checkpoints(run)[-1] / name, "pt") as stored:
            names, weight = set(stored.keys()), stored.get_tensor("head.weight")
        assert "second_head.weight" not in names
        model = toy.ToyModel(toy.ToyConfig())
        load_model_weights(model, run, average=average)
        assert model.second_head.weight is model.head.weight
        assert torch.equal(model.head.weight, weight)


def test_weights_come_from_run_checkpoint_or_file(toy: ModuleType, run: Path):
    newest = find_checkpoints(run)[-1]
    models = []
    for path in (run, newest, newest / "model.safetensors"):
        model = toy.ToyModel(toy.ToyConfig())
        assert load_model_weights(model, path) == newest / "model.safetensors"
        models.append(model.state_dict())
    for name in models[0]:
        assert torch.equal(models[0][name], models[1][name])
        assert torch.equal(models[0][name], models[2][name])
    averaged = toy.ToyModel(toy.ToyConfig())
    load_model_weights(averaged, run, average=True)
    assert not torch.equal(averaged.stem.weight, models[0]["stem.weight"])
    assert torch.equal(averaged.frozen.weight, models[0]["frozen.weight"])


def test_part_of_a_model_is_chosen_by_prefix(toy: ModuleType, run: Path):
    branch, whole = nn.Linear(2, 16), toy.ToyModel(toy.ToyConfig())
    load_model_weights(branch, run, prefix="delta_branch.")
    load_model_weights(whole, run)
    assert torch.equal(branch.weight, whole.delta_branch.weight)
    assert torch.equal(branch.bias, whole.delta_branch.bias)


@pytest.mark.parametrize(
    ("module", "prefix", "message"),
    [
        (nn.Linear(2, 16, bias=False), "delta_branch.", r"has bias, which this model has not"),
        (nn.Sequential(nn.Linear(2, 16)), "delta_branch.", r"lacks 0\.bias, 0\.weight; it has bias, weight"),
        (nn.Linear(3, 16), "delta_branch.", r"weight \[16, 2\] instead of \[16, 3\]"),
        (nn.Linear(2, 16), "delta_encoder.", r"no tensor whose name begins with 'delta_encoder\.'"),
    ],
)
def test_other_architecture_fails_and_leaves_the_module(
    run: Path, module: nn.Module, prefix: str, message: str
):
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ConfigurationError, match=message):
        load_model_weights(module, run, prefix=prefix)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_no_weights_there_fails(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"holds no model\.safetensors"):
        load_model_weights(nn.Linear(1, 1), tmp_path)


def test_run_of_another_architecture_is_not_gone_on_with(toy: ModuleType, small: Layout, run: Path):
    with pytest.raises(
        ConfigurationError, match=r"has other shapes: stem\.weight \[16, 48\] instead of \[8, 48\]"
    ):
        toy.run(small.dataset, run, toy={"width": 8}, ema_decay=0.5, max_steps=8)
    with pytest.raises(ConfigurationError, match=r"it lacks norm\.bias, norm\.weight"):
        toy.run(small.dataset, run, toy={"batch_norm": True}, ema_decay=0.5, max_steps=8)


def test_run_of_another_task_is_not_gone_on_with(toy: ModuleType, small: Layout, run: Path):
    document = find_checkpoints(run)[-1] / "trainer.json"
    document.write_text(json.dumps(json.loads(document.read_text()) | {"task": "pretrain"}))
    with pytest.raises(ConfigurationError, match="is of the task 'pretrain', this is 'toy'"):
        toy.run(small.dataset, run, max_steps=8)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "trainer.json", "rng-00000.safetensors"]
)
def test_damaged_checkpoint_is_named(toy: ModuleType, small: Layout, run: Path, name: str):
    path = find_checkpoints(run)[-1] / name
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(FormatError, match=rf"step-00000006/{name}: cannot be read.*Delete this checkpoint"):
        toy.run(small.dataset, run, ema_decay=0.5, max_steps=8)


def test_checkpoint_that_could_not_be_written_leaves_the_one_before(
    toy: ModuleType, small: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write, calls = tensor_files.save_file, []

    def full(tensors: dict, file: Path, metadata: dict | None) -> None:
        calls.append(file.name)
        if calls.count("optimizer.safetensors") == 2:
            raise OSError(28, "No space left on device")
        write(tensors, file, metadata)

    monkeypatch.setattr(tensor_files, "save_file", full)
    with pytest.raises(StorageError, match="No space left"):
        toy.run(small.dataset, tmp_path, checkpoint_every=2)
    monkeypatch.undo()
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000002"]
    toy.run(small.dataset, tmp_path, checkpoint_every=2)
    assert [path.name for path in find_checkpoints(tmp_path)] == [f"step-0000000{step}" for step in (2, 4, 6)]
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))


def test_frozen_part_that_trained_before_is_refused(toy: ModuleType, small: Layout, run: Path):
    document = find_checkpoints(run)[-1] / "trainer.json"
    values = json.loads(document.read_text())
    document.write_text(json.dumps(values | {"trained": [*values["trained"], "frozen.weight"]}))
    with pytest.raises(ConfigurationError, match=r"other parameters that train: it has frozen\.weight"):
        toy.run(small.dataset, run, ema_decay=0.5, max_steps=8)


def test_average_can_begin_later(toy: ModuleType, small: Layout, tmp_path: Path):
    toy.run(small.dataset, tmp_path, max_steps=2)
    toy.run(small.dataset, tmp_path, max_steps=4, ema_decay=0.5)
    assert (find_checkpoints(tmp_path)[-1] / "ema.safetensors").exists()


def test_plain_file_of_tensors_can_be_loaded(tmp_path: Path):
    save_file({"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, tmp_path / "any.safetensors")
    module = nn.Linear(2, 1)
    load_model_weights(module, tmp_path / "any.safetensors")
    assert module.weight.tolist() == [[1.0, 1.0]]
