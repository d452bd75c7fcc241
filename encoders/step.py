"""What a step computes: gradients of its micro-batches, sums over ranks, and evaluation that leaves no trace."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cope_prep.encoders import random_state
from cope_prep.encoders.distributed import Ranks, micro_batch, reshard
from cope_prep.encoders.interruption import StopSignals
from cope_prep.encoders.metrics import Stopwatch
from cope_prep.encoders.replay import Batch
from cope_prep.encoders.task import Prepared, Task

_COMMON = ("weight", "num_samples", "num_skipped", "loss", "stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSums:
    """A step's sums over micro-batches and ranks."""

    weight: float
    """Terms of the loss."""
    num_samples: int
    num_skipped: int
    """Samples that could not be read."""
    is_stopping: bool
    """A rank was told to stop."""
    metrics: dict[str, float]
    """Sums: of the loss, and if they were asked for, of the task's metrics and baselines."""
    batches: list[Batch]
    """This rank's."""
    losses: list[float]
    """Of this rank's batches."""

    def means(self) -> dict[str, float]:
        """Per term."""
        return {name: value / self.weight for name, value in self.metrics.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Computation:
    """A task on its ranks."""

    task: Task
    model: nn.Module
    """The task's, wrapped."""
    ranks: Ranks
    is_bf16: bool

    def backward(
        self,
        batches: Iterator[Batch],
        num_micro_batches: int,
        *,
        reports: bool,
        signals: StopSignals,
        watch: Stopwatch,
    ) -> StepSums:
        """Take a step's micro-batches; afterwards the gradients are sums over their terms, averaged over ranks.

        A micro-batch is on the device only while it is computed, however many there are.
        """
        taken: list[Batch] = []
        losses: list[torch.Tensor] = []
        sums: Counter[str] = Counter()
        self.model.train()
        for index in range(num_micro_batches):
            with watch.waiting():
                batch = next(batches)
            taken.append(batch)
            with torch.no_grad(), self._autocast():
                prepared = self.task.prepare(batch, self.ranks.device)
            # A Counter adds floats as well; its stub has int alone.
            sums.update(weight=prepared.weight)  # pyright: ignore[reportArgumentType]
            sums.update(num_samples=prepared.num_samples)
            sums.update(num_skipped=len(batch.info.skipped) + prepared.num_skipped)
            if reports:
                sums.update(self._baselines(prepared))
            with micro_batch(self.model, is_last=index == num_micro_batches - 1):
                with self._autocast():
                    result = self.task.loss(self.model, prepared)
                assert result.loss_sum.requires_grad, (
                    "no graph: other ranks would wait for this one's gradient"
                )
                result.loss_sum.float().backward()
            losses.append(result.loss_sum.detach().double())
            if reports:
                sums.update({name: float(value) for name, value in result.metrics.items()})
            del prepared, result
        values = torch.stack(losses).tolist()
        sums.update(loss=sum(values), stop=int(signals.is_set))
        own = torch.tensor(
            [sums.pop(name) for name in _COMMON], dtype=torch.float64, device=self.ranks.device
        )
        weight, num_samples, num_skipped, loss, stop = self.ranks.sum(own).tolist()
        metrics = Counter({"loss": loss})
        if reports:  # by name: a rank may have figures that another has not
            for part in self.ranks.gather(dict(sums)):
                metrics.update(part)
        return StepSums(
            weight=weight,
            num_samples=int(num_samples),
            num_skipped=int(num_skipped),
            is_stopping=stop > 0,
            metrics=dict(metrics),
            batches=taken,
            losses=values,
        )

    def _baselines(self, prepared: Prepared) -> dict[str, float]:
        with self._evaluation():
            found = self.task.baselines(prepared)
        return {f"loss/{name}": value for name, value in found.items()}

    def evaluate(self) -> dict[str, float]:
        """The task's figures on held-out data."""
        with self._evaluation():
            found = self.task.evaluate(self.ranks.device)
        return {f"eval/{name}": value for name, value in found.items()}

    @contextlib.contextmanager
    def _evaluation(self) -> Iterator[None]:
        """Training does not notice what is computed within."""
        with random_state.preserved(self.ranks.device):
            self.model.eval()
            try:
                with torch.no_grad(), self._autocast():
                    yield
            finally:
                reshard(self.model)
                self.model.train()

    def _autocast(self) -> torch.autocast:
        # One for each use: a cast of a parameter made without gradients must not be found where they are needed.
        return torch.autocast(self.ranks.device.type, dtype=torch.bfloat16, enabled=self.is_bf16)


@contextlib.contextmanager
def recomputed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Blocks that keep their inputs only; in place, so that names of parameters stay."""
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@contextlib.contextmanager
def deterministic(is_on: bool) -> Iterator[None]:
    """Refuse operations whose result varies from run to run, if asked to."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(is_on or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
