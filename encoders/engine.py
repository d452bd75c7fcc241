"""The one training engine: a task, its batches, and steps until `max_steps`, in plain PyTorch.

    a step   for each micro-batch: prepare -> loss (a sum) -> backward; gradients add up
             over all ranks: weight = terms of the loss
             gradients * world_size / weight (DDP and FSDP2 gave their mean over ranks), clipped; AdamW
    so the gradient is that of the mean over the whole global batch, however that is split.

A run goes on by itself from the newest checkpoint in its folder, and then does, bit for bit on a CPU, what it would
have done without the interruption: weights, optimizer, average, order of samples, dropout. Ctrl-C or SIGTERM end it
after the step, with a checkpoint; a second one ends it at once.

    RUN/checkpoints/step-00000100/  RUN/metrics.jsonl  RUN/tensorboard/  RUN/nonfinite-step-120/ if it came to that
"""

from __future__ import annotations

import contextlib
import logging
import math
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.utils.data import DataLoader

from cope_prep.encoders import random_state
from cope_prep.encoders.checkpoint import (
    Progress,
    Trained,
    find_checkpoints,
    load_checkpoint,
    remove_incomplete,
    save_checkpoint,
)
from cope_prep.encoders.distributed import Parallel, Ranks, average_statistics, connect, spread
from cope_prep.encoders.interruption import StopSignals, begin_worker
from cope_prep.encoders.metrics import MetricsLog, Stopwatch, has_figures, last_metrics, peak_memory_gb
from cope_prep.encoders.optimization import (
    OptimizerConfig,
    WeightAverage,
    check_groups,
    make_optimizer,
    scale_and_clip,
    set_lr,
)
from cope_prep.encoders.replay import Batch, fail_nonfinite
from cope_prep.encoders.step import Computation, deterministic, recomputed
from cope_prep.encoders.task import Task
from cope_prep.pipeline.loader import GopDataset, QADataset
from cope_prep.schemas.errors import ConfigurationError

logger = logging.getLogger("cope_prep.training")
OnReport = Callable[[int, Mapping[str, float], Path | None], None]
"""Called on every rank after each checkpoint: step, its figures, where the checkpoint is."""


class TrainingConfig(OptimizerConfig):
    """How a task is trained. `batch_size` is global: ranks * micro_batch_size * accumulated micro-batches."""

    batch_size: int = Field(default=32, ge=1)
    micro_batch_size: int = Field(default=4, ge=1)
    """GOPs, windows or questions that a rank computes at a time."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the computation, by autocast; parameters are float32."""
    parallel: Parallel = "ddp"
    activation_checkpointing: bool = False
    """Compute the blocks again in the backward pass instead of keeping what is inside them."""
    seed: int = 0
    """Of what the model draws (dropout); the order of the data has its own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    deterministic: bool = False
    """Refuse operations whose result varies from run to run, which on GPUs are many and the faster ones."""
    num_workers: int = Field(default=2, ge=0)
    """Processes of each rank that make batches."""
    log_every: int = Field(default=10, ge=1)
    eval_every: int | None = Field(default=None, ge=1)
    """None: at the end only."""
    checkpoint_every: int = Field(default=500, ge=1)
    keep_checkpoints: int = Field(default=3, ge=1)
    tensorboard: bool = True

    def accumulation(self, world_size: int) -> int:
        """Micro-batches of a rank in one step.

        Raises:
            ConfigurationError: the global batch is not a multiple of what all ranks compute at a time.
        """
        together = world_size * self.micro_batch_size
        if self.batch_size % together:
            raise ConfigurationError(
                f"batch_size {self.batch_size}",
                f"is not a multiple of {world_size} ranks * micro_batch_size {self.micro_batch_size}",
                f"Use a multiple of {together}, or a smaller micro_batch_size.",
            )
        return self.batch_size // together


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What has become of a run."""

    num_steps: int
    """All that were ever done, before a restart too."""
    metrics: dict[str, float]
    """The last ones reported."""
    checkpoint: Path
    was_stopped: bool
    """By a signal, before max_steps."""
    signal_number: int | None = None
    """The signal, if it was this rank that got it."""


def train(
    task: Task, config: TrainingConfig, *, output_dir: str | Path, on_report: OnReport | None = None
) -> TrainingResult:
    """Train a task until max_steps; on every rank of a distributed run alike. A task is trained once.

    Raises:
        ConfigurationError: the configuration, the data and a checkpoint in output_dir do not fit together.
        NonFiniteLossError: NaN or infinity; the weights are as before that step, and the batch is saved.
        StorageError: a checkpoint cannot be written.
    """
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(connect(config.device))
        signals = stack.enter_context(StopSignals())
        stack.enter_context(deterministic(config.deterministic))
        run = Path(output_dir)
        num_micro_batches = config.accumulation(ranks.world_size)
        _check_dataset(task, config, ranks)
        if config.activation_checkpointing:
            stack.enter_context(recomputed(task.blocks()))

        random_state.seed(config.seed + ranks.rank)
        task.model.to(ranks.device)
        is_bf16 = config.precision == "bf16"
        model = spread(task.model, task.blocks(), ranks, parallel=config.parallel, is_bf16=is_bf16)
        computation = Computation(task=task, model=model, ranks=ranks, is_bf16=is_bf16)
        groups = task.parameter_groups()  # after sharding, which makes new ones of the parameters
        parameters = check_groups(task.model, groups)
        optimizer = make_optimizer(groups, config)
        average = WeightAverage(parameters, config.ema_decay) if config.ema_decay is not None else None
        trained = Trained(
            task=task.name, model=task.model, optimizer=optimizer, parameters=parameters, average=average,
            config=config.model_dump(mode="json"),
        )  # fmt: skip

        ranks.on_first(lambda: (run.mkdir(parents=True, exist_ok=True), remove_incomplete(run)))
        check_shared(run, ranks)
        progress, saved = Progress(), ranks.on_first(lambda: (find_checkpoints(run) or [None])[-1])
        if saved is not None:
            progress = load_checkpoint(saved, trained, ranks)
            assert progress.loader is not None
            task.dataset.load_state_dict(progress.loader)
        log = None
        if ranks.is_first:
            log = MetricsLog(
                run, step=progress.step, max_steps=config.max_steps, tensorboard=config.tensorboard
            )
            stack.callback(log.close)
            log.say(f"{task.name}: {_described(parameters, config, ranks, num_micro_batches, saved)}")
        batches = stack.enter_context(contextlib.closing(_endless(task.dataset, config, ranks)))
        watch, is_stopping = Stopwatch(), False
        metrics = ranks.on_first(lambda: last_metrics(run))  # of a run that goes on
        if progress.step >= config.max_steps and not ranks.on_first(lambda: has_figures(run, progress.step)):
            # Its last evaluation failed, or was interrupted.
            metrics = {"samples": progress.num_samples, **computation.evaluate()}
            if log is not None:
                log.write(progress.step, metrics)

        while progress.step < config.max_steps and not is_stopping:
            step = progress.step + 1
            is_last = step == config.max_steps
            reports = step % config.log_every == 0 or is_last
            with watch.step():
                rates = set_lr(optimizer, progress.step, config)
                sums = computation.backward(
                    batches, num_micro_batches, reports=reports, signals=signals, watch=watch
                )
                if not math.isfinite(sums.metrics["loss"]):
                    fail_nonfinite(run, step, sums.batches, sums.losses, ranks)
                grad_norm = 0.0
                if sums.weight > 0:
                    scale = ranks.world_size / sums.weight
                    grad_norm = scale_and_clip(list(parameters.values()), scale, config.clip_norm)
                    if not math.isfinite(grad_norm):
                        fail_nonfinite(run, step, sums.batches, sums.losses, ranks)
                    optimizer.step()
                    if average is not None:
                        average.update()
                else:
                    progress.num_empty_steps += 1
                    logger.warning("step %d: no valid sample on any rank; the weights stay", step)
                optimizer.zero_grad()
                average_statistics(task.model, ranks)
            progress.step = step
            progress.num_samples += sums.num_samples
            progress.loader = sums.batches[-1].info.state
            is_stopping = sums.is_stopping and not is_last
            watch.count(sums.num_samples)

            figures: dict[str, float] = {}
            if reports and sums.weight > 0:
                figures |= sums.means() | {f"lr/{name}": rate for name, rate in rates.items()}
                figures |= {"grad_norm": grad_norm, "weight": sums.weight, "num_skipped": sums.num_skipped}
                figures |= {**watch.report(), "peak_memory_gb": peak_memory_gb(ranks.device)}
            if is_last:
                # Before the evaluation: an error there must not cost the steps since the checkpoint before.
                saved = save_checkpoint(run, trained, progress, ranks, keep=config.keep_checkpoints)
            if is_last or (config.eval_every and step % config.eval_every == 0):
                figures |= computation.evaluate()
            if figures:
                metrics = {
                    "epoch": progress.loader["epoch"],
                    "samples": progress.num_samples,
                    "num_empty_steps": progress.num_empty_steps,
                    **figures,
                }
            if log is not None:
                log.advance(step)
                if figures:
                    log.write(step, metrics)
            if not is_last and (is_stopping or step % config.checkpoint_every == 0):
                saved = save_checkpoint(run, trained, progress, ranks, keep=config.keep_checkpoints)
            if on_report is not None and (is_last or is_stopping or step % config.checkpoint_every == 0):
                on_report(step, metrics, saved)

        assert saved is not None
        if log is not None and is_stopping:
            log.say(f"stopped after step {progress.step}, as asked; the same command goes on from {saved}")
        return TrainingResult(
            num_steps=progress.step,
            metrics=metrics,
            checkpoint=saved,
            was_stopped=is_stopping,
            signal_number=signals.number if is_stopping else None,
        )


def _endless(
    dataset: GopDataset | QADataset, config: TrainingConfig, ranks: Ranks
) -> Generator[Batch, None, None]:
    """Batches of one epoch after the other, from where the dataset is."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=config.num_workers,
        pin_memory=ranks.device.type == "cuda",
        persistent_workers=config.num_workers > 0,
        worker_init_fn=begin_worker,
        # Its own, because beginning an epoch draws a number, and a run that goes on begins one more.
        generator=torch.Generator(),
    )
    while True:
        yield from loader
        dataset.set_epoch(dataset.epoch + 1)


def check_shared(run: Path, ranks: Ranks) -> None:
    """Every rank reads the checkpoints: better to learn now than at the first restart that one of them cannot."""
    marker = ranks.on_first(lambda: run / f".seen-by-all-{uuid.uuid4().hex}")
    ranks.on_first(marker.touch)
    blind = [rank for rank, sees in enumerate(ranks.gather(marker.exists())) if not sees]
    ranks.on_first(lambda: marker.unlink(missing_ok=True))
    if blind:
        raise ConfigurationError(
            f"output_dir {run}",
            f"is not the same folder for all ranks: {', '.join(map(str, blind[:8]))} of {ranks.world_size} do not"
            " see what rank 0 writes",
            "Use a folder that all of them share.",
        )


def _check_dataset(task: Task, config: TrainingConfig, ranks: Ranks) -> None:
    plan = task.dataset.plan
    found = (plan.batch_size, plan.rank, plan.world_size)
    if found != (config.micro_batch_size, ranks.rank, ranks.world_size):
        raise ConfigurationError(
            "the task's dataset",
            f"has batches of {found[0]} for rank {found[1]} of {found[2]}, the run has micro-batches of"
            f" {config.micro_batch_size} for rank {ranks.rank} of {ranks.world_size}",
            "Make it within connect(), with batch_size=config.micro_batch_size.",
        )


def _described(
    parameters: Mapping[str, nn.Parameter],
    config: TrainingConfig,
    ranks: Ranks,
    accumulation: int,
    saved: Path | None,
) -> str:
    count = sum(parameter.numel() for parameter in parameters.values())
    split = f"{ranks.world_size} ranks * {config.micro_batch_size} * {accumulation} micro-batches"
    origin = f", going on from {saved}" if saved else ""
    return f"{count:,} parameters train on {ranks.device.type}, batch {config.batch_size} = {split}{origin}"
