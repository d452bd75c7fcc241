"""The engine on one process: steps, batches, reports, evaluation, and what ends a run."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule

from cope_prep.encoders.checkpoint import find_checkpoints
from cope_prep.encoders.distributed import Ranks, check_parallel
from cope_prep.encoders.engine import TrainingConfig, check_shared
from cope_prep.encoders.interruption import StopSignals
from cope_prep.encoders.replay import load_saved_batch
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader import GopDataset
from cope_prep.schemas.errors import ConfigurationError, NonFiniteLossError, SourceNotFoundError


@pytest.fixture
def toy(load_helper: Callable[[str], ModuleType]) -> ModuleType:
    return load_helper("toy_task")


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(find_checkpoints(run)[-1] / "model.safetensors")


def assert_equal_weights(first: Path, second: Path) -> None:
    expected, found = weights(first), weights(second)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_loss_falls_and_beats_its_baseline(toy: ModuleType, small: Layout, tmp_path: Path):
    _, result = toy.run(small.dataset, tmp_path, max_steps=60, tensorboard=True)
    written = lines(tmp_path)
    assert [line["step"] for line in written] == list(range(1, 61))
    assert written[-1]["loss"] < written[0]["loss"] / 4
    assert written[-1]["loss"] < written[-1]["loss/zero"]
    assert result.metrics == {name: value for name, value in written[-1].items() if name != "step"}
    assert (result.num_steps, result.was_stopped) == (60, False)
    assert list((tmp_path / "tensorboard").iterdir())


def test_line_of_metrics_has_what_a_reader_needs(toy: ModuleType, small: Layout, tmp_path: Path):
    """Ten steps of four are one epoch of 36, and the second one's beginning."""
    toy.run(small.dataset, tmp_path, max_steps=10, warmup_steps=2, micro_batch_size=2)
    first, last = lines(tmp_path)[0], lines(tmp_path)[-1]
    assert (first["epoch"], first["samples"], first["weight"]) == (0, 4, 4)
    assert (last["epoch"], last["samples"]) == (1, 40)
    assert first["half"] == pytest.approx(first["loss"] / 2)
    assert (first["lr/trunk"], first["lr/heads"]) == pytest.approx((0.005, 0.01))
    assert first["grad_norm"] > 0
    assert 0 < first["loader_share"] < 1
    assert first["samples_per_s"] > 0
    assert first["peak_memory_gb"] > 0
    assert "eval/error" not in first
    assert "eval/error" in last


def test_only_the_steps_asked_for_are_reported(toy: ModuleType, small: Layout, tmp_path: Path):
    toy.run(small.dataset, tmp_path, max_steps=7, log_every=3, eval_every=2)
    assert [(line["step"], "loss" in line, "eval/error" in line) for line in lines(tmp_path)] == [
        (2, False, True), (3, True, False), (4, False, True), (6, True, True), (7, True, True),
    ]  # fmt: skip


@pytest.mark.parametrize("changes", [{"eval_every": 1}, {"log_every": 100}, {"checkpoint_every": 1}])
def test_looking_at_a_run_does_not_change_it(
    toy: ModuleType, small: Layout, tmp_path: Path, changes: dict[str, Any]
):
    """Baselines and evaluation draw random numbers, and the model has dropout and BatchNorm."""
    drawing = {"dropout": 0.3, "batch_norm": True}
    toy.run(small.dataset, tmp_path / "one", toy=drawing)
    toy.run(small.dataset, tmp_path / "other", toy=drawing, **changes)
    assert_equal_weights(tmp_path / "one", tmp_path / "other")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputing_blocks_changes_nothing(toy: ModuleType, small: Layout, tmp_path: Path, precision: str):
    common = {"toy": {"dropout": 0.3}, "precision": precision}
    toy.run(small.dataset, tmp_path / "kept", **common)
    task, _ = toy.run(small.dataset, tmp_path / "again", activation_checkpointing=True, **common)
    assert_equal_weights(tmp_path / "kept", tmp_path / "again")
    assert all("forward" not in vars(block) for block in task.blocks())


def test_another_seed_is_another_run(toy: ModuleType, small: Layout, tmp_path: Path):
    for seed in (0, 1):
        toy.run(small.dataset, tmp_path / str(seed), toy={"dropout": 0.3}, seed=seed)
    assert not torch.equal(weights(tmp_path / "0")["stem.weight"], weights(tmp_path / "1")["stem.weight"])


def test_run_that_is_done_is_not_repeated_but_can_be_made_longer(
    toy: ModuleType, small: Layout, tmp_path: Path
):
    _, first = toy.run(small.dataset, tmp_path, max_steps=4)
    task, again = toy.run(small.dataset, tmp_path, max_steps=4)
    assert again == first
    assert task.num_prepared == 0
    task, longer = toy.run(small.dataset, tmp_path, max_steps=6)
    assert task.num_prepared == 2
    assert longer.num_steps == 6


def test_evaluation_that_fails_at_the_end_costs_no_step(toy: ModuleType, small: Layout, tmp_path: Path):
    with pytest.raises(OSError, match="no evaluation today"):
        toy.run(small.dataset, tmp_path, toy={"evaluation_fails": True}, max_steps=4, checkpoint_every=100)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    task, result = toy.run(small.dataset, tmp_path, max_steps=4, checkpoint_every=100)
    assert (task.num_prepared, task.num_evaluations) == (0, 1)
    assert lines(tmp_path)[-1].items() >= {"step": 4, "eval/error": result.metrics["eval/error"]}.items()
    task, _ = toy.run(small.dataset, tmp_path, max_steps=4, checkpoint_every=100)
    assert task.num_evaluations == 0
    toy.run(small.dataset, tmp_path / "whole", max_steps=4, checkpoint_every=100)
    assert_equal_weights(tmp_path, tmp_path / "whole")


def test_folder_that_is_not_shared_fails(tmp_path: Path):
    class HalfBlind(Ranks):
        def on_first(self, action: Callable[[], Any]) -> Any:
            return action()

        def gather(self, value: Any) -> list[Any]:
            return [value, False]

    with pytest.raises(ConfigurationError, match="is not the same folder for all ranks: 1 of 2 do not see"):
        check_shared(tmp_path, HalfBlind(rank=0, world_size=2, device=torch.device("cpu")))
    assert list(tmp_path.iterdir()) == []
    check_shared(tmp_path, Ranks(rank=0, world_size=1, device=torch.device("cpu")))


def test_fsdp2_of_an_older_torch_fails_before_anything(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(FSDPModule, "set_reduce_scatter_unused_params")
    check_parallel("ddp")
    with pytest.raises(ConfigurationError, match=r"parallel 'fsdp2': needs torch 2\.13 or newer"):
        check_parallel("fsdp2")


def test_every_checkpoint_is_reported(toy: ModuleType, small: Layout, tmp_path: Path):
    reported = []
    toy.run(small.dataset, tmp_path, checkpoint_every=4, on_report=lambda *given: reported.append(given))
    assert [(step, path) for step, _, path in reported] == [
        (step, tmp_path / "checkpoints" / f"step-0000000{step}") for step in (4, 6)
    ]
    assert [metrics["loss"] for _, metrics, _ in reported] == [
        lines(tmp_path)[index]["loss"] for index in (3, 5)
    ]


def test_step_without_a_valid_sample_is_skipped_and_counted(
    toy: ModuleType, small: Layout, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    toy.run(
        small.dataset, tmp_path, toy={"empty_at": tuple(range(8, 12))}, checkpoint_every=1, keep_checkpoints=9
    )
    assert "step 3: no valid sample on any rank; the weights stay" in caplog.text
    written = lines(tmp_path)
    assert [line["step"] for line in written] == [1, 2, 4, 5, 6]
    assert written[-1]["num_empty_steps"] == 1
    assert written[-1]["samples"] == 20
    second, third = (load_file(path / "model.safetensors") for path in find_checkpoints(tmp_path)[1:3])
    assert all(torch.equal(second[name], third[name]) for name in second)


def test_nan_stops_names_its_keys_and_keeps_the_batch(toy: ModuleType, small: Layout, tmp_path: Path):
    """Position 10 is in the second micro-batch of step 3."""
    with pytest.raises(NonFiniteLossError, match=r"step 3: the loss is nan on rank 0") as caught:
        toy.run(small.dataset, tmp_path, toy={"nan_at": (10,)}, micro_batch_size=2, checkpoint_every=2)
    folder = tmp_path / "nonfinite-step-3"
    first, second = load_saved_batch(folder)
    order = [batch.info.keys for batch in GopDataset(small.dataset, batch_size=2, seed=5)]
    assert [first.info.keys, second.info.keys] == order[4:6]
    assert all(key in str(caught.value) for key in second.info.keys)
    assert not any(key in str(caught.value) for key in set(first.info.keys) - set(second.info.keys))
    assert str(folder) in str(caught.value)
    document = json.loads((folder / "keys.json").read_text())
    assert (document["step"], document["what"]) == (3, "loss")
    assert [part["loss"] == "nan" for part in document["ranks"][0]["micro_batches"]] == [False, True]
    fresh = toy.ToyTask(small.dataset, 2, toy.ToyConfig())
    with torch.no_grad():
        assert math.isfinite(
            float(fresh.loss(fresh.model, fresh.prepare(second, torch.device("cpu"))).loss_sum)
        )
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000002"]
    assert lines(tmp_path)[-1]["step"] == 2


def test_gradient_that_is_not_finite_stops_too(toy: ModuleType, small: Layout, tmp_path: Path):
    with pytest.raises(NonFiniteLossError, match="step 2: the gradient is not finite, though the loss"):
        toy.run(small.dataset, tmp_path, toy={"bad_gradient_at": 5})
    assert json.loads((tmp_path / "nonfinite-step-2" / "keys.json").read_text())["what"] == "gradient"
    assert len(load_saved_batch(tmp_path / "nonfinite-step-2")) == 1


def test_after_nan_the_weights_are_those_before(toy: ModuleType, small: Layout, tmp_path: Path):
    config = TrainingConfig.model_validate(
        {"max_steps": 3, "batch_size": 4, "micro_batch_size": 4, "precision": "fp32", "num_workers": 0}
        | {"device": "cpu", "tensorboard": False}
    )
    task = toy.ToyTask(small.dataset, 4, toy.ToyConfig(nan_at=(0,)))
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    with pytest.raises(NonFiniteLossError):
        toy.train(task, config, output_dir=tmp_path)
    assert all(torch.equal(before[name], value) for name, value in task.model.state_dict().items())


def test_no_saved_batch_there_fails(tmp_path: Path):
    with pytest.raises(SourceNotFoundError, match=r"rank-00003\.pt"):
        load_saved_batch(tmp_path, rank=3)


def test_second_signal_is_obeyed_at_once():
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.is_set
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_batch_that_does_not_divide_fails(toy: ModuleType, small: Layout, tmp_path: Path):
    with pytest.raises(
        ConfigurationError, match=r"batch_size 6: is not a multiple of 1 ranks \* micro_batch_size 4"
    ):
        toy.run(small.dataset, tmp_path, batch_size=6)
    assert not (tmp_path / "checkpoints").exists()


def test_dataset_of_another_batch_size_fails(toy: ModuleType, small: Layout, tmp_path: Path):
    task = toy.ToyTask(small.dataset, 2, toy.ToyConfig())
    config = TrainingConfig(batch_size=4, micro_batch_size=4, device="cpu")
    with pytest.raises(ConfigurationError, match=r"has batches of 2 .* micro-batches of 4"):
        toy.train(task, config, output_dir=tmp_path)


def test_gpu_that_is_not_there_fails(toy: ModuleType, small: Layout, tmp_path: Path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigurationError, match="there is no GPU that torch can use"):
        toy.run(small.dataset, tmp_path, device="cuda")


def test_data_of_another_order_is_not_gone_on_with(toy: ModuleType, small: Layout, tmp_path: Path):
    toy.run(small.dataset, tmp_path, max_steps=2)
    task = toy.ToyTask(small.dataset, 4, toy.ToyConfig())
    task.dataset = GopDataset(small.dataset, batch_size=4, seed=6)
    config = TrainingConfig(batch_size=4, micro_batch_size=4, max_steps=4, device="cpu", tensorboard=False)
    with pytest.raises(ConfigurationError, match="seed"):
        toy.train(task, config, output_dir=tmp_path)


@pytest.mark.parametrize(
    "values", [{"precison": "bf16"}, {"precision": "fp16"}, {"batch_size": 0}, {"lr": "1"}]
)
def test_setting_that_is_unknown_or_wrong_fails(values: dict[str, Any]):
    with pytest.raises(ValidationError):
        TrainingConfig.model_validate(values)
