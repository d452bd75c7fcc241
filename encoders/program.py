"""Running a configuration: alone, under torchrun, or in a worker of Ray Train."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from cope_prep.encoders.checkpoint import find_checkpoints
from cope_prep.encoders.data import geometry_values
from cope_prep.encoders.distributed import check_parallel, connect
from cope_prep.encoders.engine import OnReport, TrainingConfig, TrainingResult, train
from cope_prep.encoders.run_record import check_geometry, check_model, write_record
from cope_prep.encoders.settings import Settings, read_toml
from cope_prep.encoders.task import Task
from cope_prep.pipeline.printable import log_levels_printably
from cope_prep.schemas.errors import ConfigurationError, CopePrepError


class RunConfig(Protocol):
    """What PretrainConfig and FinetuneConfig have in common."""

    @property
    def output_dir(self) -> str: ...
    @property
    def training(self) -> TrainingConfig: ...
    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


def run_training(
    config: Any, make_task: Callable[[Any], Task], *, on_report: OnReport | None = None
) -> TrainingResult:
    """Build a task and train it, or go on with it; on every rank of a distributed run alike.

    config: a PretrainConfig or FinetuneConfig, as make_task takes it.

    Raises:
        ConfigurationError: the configuration fits no data, no model, or not what output_dir holds.
        NonFiniteLossError: NaN or infinity; the batch is saved.
    """
    run: RunConfig = config
    check_parallel(run.training.parallel)
    with connect(run.training.device) as ranks:
        # Before the model: its first weights are drawn from the run's seed.
        torch.manual_seed(run.training.seed)
        task = make_task(config)
        ranks.on_first(lambda: _record(run, geometry_values(task.dataset)))
        return train(task, run.training, output_dir=run.output_dir, on_report=on_report)


def _record(run: RunConfig, geometry: Mapping[str, Any]) -> None:
    if find_checkpoints(run.output_dir):
        # Before the old record is gone: what was learned from other data must not be said to be from these.
        check_geometry(run.output_dir, geometry, remedy="Use another output_dir.")
        check_model(run.output_dir, run.model_dump(mode="json"))
    write_record(run.output_dir, config=run.model_dump(mode="json"), geometry=geometry)


def run_program(kind: type[Settings], make_task: Callable[[Any], Task]) -> None:
    """`python -m ... CONFIG.toml`. Exit codes: 0 done, 1 failed, 2 wrong configuration, 130 or 143 stopped."""
    parser = argparse.ArgumentParser(
        prog=f"torchrun --nproc-per-node=N -m cope_prep.encoders.{kind.model_fields['task'].default}",
        description="Train as a TOML file says; goes on from the newest checkpoint in its output_dir.",
        epilog="Recipes: configs/. Guide: docs/training.md. Through Ray: cope-prep train.",
    )
    parser.add_argument("config", help="a .toml file")
    path = parser.parse_args().config
    log_levels_printably()
    try:
        result = run_training(read_toml(path, kind), make_task)
    except CopePrepError as exc:
        print(f"error: {exc}", file=sys.stderr)
        sys.exit(2 if isinstance(exc, ConfigurationError) else 1)
    if result.was_stopped:
        sys.exit(128 + (result.signal_number or signal.SIGINT))
    print(f"{result.num_steps} steps done; {result.checkpoint}")
