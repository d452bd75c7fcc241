"""A small task on real shards for the engine's tests, and a program that trains it: `python toy_task.py '{...}'`.

Its model has what engines stumble over: dropout, BatchNorm, tied and frozen weights, a branch that some batches do
not use, and blocks.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as torch has it
from torch import nn

from cope_prep.encoders.distributed import connect
from cope_prep.encoders.engine import OnReport, TrainingConfig, TrainingResult, train
from cope_prep.encoders.settings import Settings
from cope_prep.encoders.task import ParameterGroup, Prepared, StepLoss, Task
from cope_prep.pipeline.loader import GopDataset, to_device
from cope_prep.pipeline.loader.batch import GopBatch

WIDTH = 16


class ToyConfig(Settings):
    """What the toy is made of, and what happens to it."""

    dropout: float = 0.0
    batch_norm: bool = False
    width: int = WIDTH
    no_delta_at: tuple[int, ...] = ()
    """Batches with these positions, in epoch 0, seem to have no Δ-frames."""
    nan_at: tuple[int, ...] = ()
    """Positions in epoch 0 whose loss is NaN."""
    empty_at: tuple[int, ...] = ()
    """Positions in epoch 0 that seem to have been skipped."""
    kill_at: int = -1
    """This position, in epoch 0, is the end of the process."""
    term_at: int = -1
    """This position, in epoch 0, is when somebody asks the process group to stop."""
    raise_at: int = -1
    evaluation_fails: bool = False
    bad_gradient_at: int = -1
    """This position, in epoch 0, has a finite loss without a finite gradient."""


class Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        return x_BD + self.dropout(F.gelu(self.linear(self.norm(x_BD))))


class ToyModel(nn.Module):
    """Predicts how the picture is distributed and moves, from itself."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.frozen = nn.Linear(48, 48).requires_grad_(False)
        self.stem = nn.Linear(48, config.width)
        self.delta_branch = nn.Linear(2, config.width)
        self.norm = nn.BatchNorm1d(config.width) if config.batch_norm else nn.Identity()
        self.trunk = nn.ModuleList(Block(config.width, config.dropout) for _ in range(2))
        self.head = nn.Linear(config.width, 48)
        self.second_head = nn.Linear(config.width, 48)
        self.second_head.weight = self.head.weight

    def forward(
        self, pixels_BC: torch.Tensor, motion_B2: torch.Tensor, valid_B: torch.Tensor, use_delta: bool
    ) -> StepLoss:
        x_BD = self.stem(self.frozen(pixels_BC))
        if use_delta:
            x_BD = x_BD + self.delta_branch(motion_B2)
        x_BD = self.norm(x_BD)
        for block in self.trunk:
            x_BD = block(x_BD)
        guess_BC = self.head(x_BD) + self.second_head(x_BD)
        error_B = (guess_BC.float() - pixels_BC).square().mean(-1) * valid_B
        return StepLoss(loss_sum=error_B.sum(), metrics={"half": error_B.sum().detach() / 2})


class ToyTask(Task):
    name = "toy"

    def __init__(self, dataset: str, micro_batch_size: int, config: ToyConfig, *, seed: int = 3) -> None:
        torch.manual_seed(seed)
        self.config = config
        self.model = ToyModel(config)
        self.dataset = GopDataset(dataset, batch_size=micro_batch_size, seed=5)
        self.num_prepared = 0
        self.num_evaluations = 0
        self.has_bad_gradient = False

    def parameter_groups(self) -> list[ParameterGroup]:
        named = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        heads = {name: named.pop(name) for name in list(named) if "head" in name}
        return [
            ParameterGroup(name="trunk", parameters=named),
            ParameterGroup(name="heads", parameters=heads, lr_scale=2.0),
        ]

    def blocks(self) -> list[nn.Module]:
        return list(self.model.trunk)

    def prepare(self, batch: GopBatch, device: torch.device) -> Prepared:
        assert not torch.is_grad_enabled()
        self._suffer(batch)
        gops = to_device(batch, device)
        pixels_BC = F.adaptive_avg_pool2d(gops.rgb[:, 0], 4).flatten(1)
        motion_B2 = gops.motion_px.mean((3, 4)).sum(1)  # of no Δ-frame: 0
        valid_B = batch.is_valid.to(device).float()
        empty = [position in self.config.empty_at for position in batch.info.positions]
        if self._epoch(batch) == 0:
            valid_B = valid_B * (1 - torch.tensor(empty).to(valid_B))
        if self._epoch(batch) == 0 and set(batch.info.positions) & set(self.config.nan_at):
            pixels_BC = pixels_BC * float("nan")
        self.has_bad_gradient = (
            self._epoch(batch) == 0 and self.config.bad_gradient_at in batch.info.positions
        )
        hides = self._epoch(batch) == 0 and set(batch.info.positions) & set(self.config.no_delta_at)
        self.num_prepared += 1
        inputs = {
            "pixels_BC": pixels_BC,
            "motion_B2": motion_B2,
            "valid_B": valid_B,
            "use_delta": not hides,
        }
        return Prepared(inputs=inputs, weight=float(valid_B.sum()), num_samples=int(valid_B.sum()))

    def loss(self, model: nn.Module, prepared: Prepared) -> StepLoss:
        result = super().loss(model, prepared)
        if self.has_bad_gradient:
            zero = result.loss_sum * 0
            result = StepLoss(loss_sum=result.loss_sum + zero.sqrt(), metrics=result.metrics)
        return result

    def baselines(self, prepared: Prepared) -> dict[str, float]:
        assert not self.model.training
        torch.rand(3)  # an evaluation may draw; training must not notice
        pixels_BC = prepared.inputs["pixels_BC"]
        return {"zero": float((pixels_BC.square().mean(-1) * prepared.inputs["valid_B"]).sum())}

    def evaluate(self, device: torch.device) -> dict[str, float]:
        assert not self.model.training
        assert not torch.is_grad_enabled()
        self.num_evaluations += 1
        if self.config.evaluation_fails:
            raise OSError("no evaluation today")
        torch.rand(5)
        inputs = (torch.ones(4, 48), torch.zeros(4, 2), torch.ones(4))
        result = self.model(*(value.to(device) for value in inputs), use_delta=True)
        return {"error": float(result.loss_sum)}

    def _suffer(self, batch: GopBatch) -> None:
        if self._epoch(batch) != 0:
            return
        if self.config.kill_at in batch.info.positions:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.config.term_at in batch.info.positions:
            assert os.getpgid(0) == os.getpid()
            os.kill(0, signal.SIGTERM)  # to the loader's workers too, as batch systems do
        if self.config.raise_at in batch.info.positions:
            raise OSError("the machine is on fire")

    @staticmethod
    def _epoch(batch: GopBatch) -> int:
        return batch.info.state["epoch"]


def run(
    dataset: str,
    output: Path | str,
    *,
    toy: Mapping[str, Any] | None = None,
    on_report: OnReport | None = None,
    **training: Any,
) -> tuple[ToyTask, TrainingResult]:
    """Train the toy; the task afterwards, and the result."""
    defaults = {
        "max_steps": 6, "batch_size": 4, "micro_batch_size": 4, "precision": "fp32", "device": "cpu",
        "num_workers": 0, "log_every": 1, "lr": 0.01, "tensorboard": False,
    }  # fmt: skip
    config = TrainingConfig.model_validate(defaults | training, strict=False)
    with connect(config.device):
        task = ToyTask(dataset, config.micro_batch_size, ToyConfig.model_validate(toy or {}, strict=False))
        return task, train(task, config, output_dir=output, on_report=on_report)


if __name__ == "__main__":
    torch.set_num_threads(1)
    arguments = json.loads(sys.argv[1])
    _, done = run(arguments.pop("dataset"), arguments.pop("output"), **arguments)
    print(json.dumps({"num_steps": done.num_steps, "was_stopped": done.was_stopped, "metrics": done.metrics}))
    if arguments.get("parallel") == "fsdp2":
        # See distributed.py: on a CPU, torch may abort while Python shuts down. The run itself is over.
        sys.stdout.flush()
        os._exit(0)
