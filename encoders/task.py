"""What the engine trains: a model, its data, and how a batch becomes a loss. Two tasks: pretrain.py, finetune.py.

A loss is a sum and a weight (answer tokens, or patches of target frames). The engine divides by the weight of the
whole global batch, over ranks and accumulated micro-batches, so that neither changes the gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cope_prep.pipeline.loader import GopDataset, QADataset
from cope_prep.pipeline.loader.batch import GopBatch, QABatch


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterGroup:
    """Parameters that share a learning rate."""

    name: str
    parameters: Mapping[str, nn.Parameter]
    """By their names in the model; only those that train."""
    lr_scale: float = 1.0
    """Times the run's learning rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A micro-batch on its device, ready for `Task.loss`."""

    inputs: Mapping[str, Any]
    """Keyword arguments of the model's forward."""
    weight: float
    """Terms of the loss's sum, on this rank; 0 for a batch in which everything was skipped."""
    num_samples: int
    """GOPs, windows or questions that are valid."""
    num_skipped: int = 0
    """Those that the loader could read and the task cannot use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoss:
    """What a forward gives."""

    loss_sum: torch.Tensor
    """float []: sum over the terms, with its graph."""
    metrics: Mapping[str, torch.Tensor]
    """float [], detached: further sums, each reported divided by the same weight."""


class Task(ABC):
    """One training problem. The engine wraps `model` for its ranks and passes the wrapped one back to `loss`."""

    name: str
    model: nn.Module
    """Everything that is trained or saved. Its forward gives a StepLoss."""
    dataset: GopDataset | QADataset

    @abstractmethod
    def parameter_groups(self) -> list[ParameterGroup]:
        """All parameters that train, each in one group."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Transformer blocks: FSDP2 shards, and activation checkpointing recomputes, each one on its own."""

    @abstractmethod
    def prepare(self, batch: GopBatch | QABatch, device: torch.device) -> Prepared:
        """Bring a batch to the device. Runs under the engine's autocast, without gradients."""

    def loss(self, model: nn.Module, prepared: Prepared) -> StepLoss:
        """The loss of a micro-batch."""
        return model(**prepared.inputs)

    def baselines(self, prepared: Prepared) -> dict[str, float]:
        """Sums, over the same terms, that a report shows beside the loss. Called at reporting steps only.

        Calls `model` (unwrapped), without gradients, in evaluation mode.
        """
        return {}

    @abstractmethod
    def evaluate(self, device: torch.device) -> dict[str, float]:
        """Figures on held-out data; the same on every rank. Without gradients, in evaluation mode."""
