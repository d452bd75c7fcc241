"""AdamW with warm-up and cosine: learning rates by group, decay on matrices only, clipping, an average of weights.

The learning rate is a function of the step alone, so that resuming needs no state of a schedule:

    step < warmup_steps   rises linearly, lr at the last of them
    then                  half a cosine from lr to min_lr_ratio * lr, which a step after the last would have

Gradients arrive as sums over the terms of the loss. `scale_and_clip` makes them means and clips them in one pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.distributed.tensor import DTensor

from cope_prep.encoders.settings import Settings
from cope_prep.encoders.task import ParameterGroup
from cope_prep.schemas.errors import ConfigurationError


class OptimizerConfig(Settings):
    """How weights change."""

    max_steps: int = Field(default=1000, ge=1)
    lr: float = Field(default=1e-4, gt=0)
    """At its highest; each group of parameters has a factor of its own."""
    weight_decay: float = Field(default=0.01, ge=0)
    """On parameters of two or more dimensions: not on biases, norms and single vectors."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """What the cosine ends at, as a share of lr."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Longest gradient, over all parameters; None for any."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Of the exponential moving average of the weights that is saved beside them; None for none."""

    @model_validator(mode="after")
    def _check(self) -> OptimizerConfig:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas} must be in [0, 1)")
        if self.warmup_steps > self.max_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} is more than max_steps {self.max_steps}")
        return self


def lr_factor(step: int, config: OptimizerConfig) -> float:
    """What the learning rate is multiplied by in a step, counted from 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = min((step - config.warmup_steps) / max(config.max_steps - config.warmup_steps, 1), 1.0)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2


def make_optimizer(groups: Sequence[ParameterGroup], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the groups, each in a part that decays and one that does not."""
    parts = []
    for group in groups:
        for decays in (True, False):
            chosen = [parameter for parameter in group.parameters.values() if (parameter.ndim >= 2) == decays]
            if chosen:
                parts.append(
                    {
                        "params": chosen,
                        "weight_decay": config.weight_decay if decays else 0.0,
                        "group": group.name,
                        "lr_scale": group.lr_scale,
                    }
                )
    first = parts[0]["params"][0]
    return torch.optim.AdamW(
        parts, lr=config.lr, betas=config.betas, eps=config.eps, fused=first.device.type == "cuda"
    )


def check_groups(model: nn.Module, groups: Sequence[ParameterGroup]) -> dict[str, nn.Parameter]:
    """The parameters that train, by name: each one of the model's in exactly one group.

    Raises:
        ConfigurationError: nothing trains.
    """
    trained: dict[str, nn.Parameter] = {}
    for group in groups:
        assert not trained.keys() & group.parameters.keys(), "a parameter is in two groups"
        trained.update(group.parameters)
    expected = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert trained.keys() == expected.keys(), sorted(trained.keys() ^ expected.keys())
    assert all(trained[name] is expected[name] for name in trained), (
        "groups of parameters from before sharding"
    )
    if not trained:
        raise ConfigurationError("the model", "has no parameter that trains", "Freeze less of it.")
    return {name: trained[name] for name in expected}


def set_lr(optimizer: torch.optim.Optimizer, step: int, config: OptimizerConfig) -> dict[str, float]:
    """Set the learning rates of a step; what they are, by group."""
    rates = {}
    for part in optimizer.param_groups:
        part["lr"] = config.lr * part["lr_scale"] * lr_factor(step, config)
        rates[part["group"]] = part["lr"]
    return rates


@torch.no_grad()
def scale_and_clip(parameters: Sequence[nn.Parameter], scale: float, clip_norm: float | None) -> float:
    """Multiply the gradients by `scale`, then shorten them to `clip_norm`; gives the norm between the two.

    Gradients whose norm is not finite are left as they are. The norm is that of all ranks' shards together.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = nn.utils.get_total_norm(gradients)
    norm = float(total.full_tensor() if isinstance(total, DTensor) else total) * scale
    if gradients and math.isfinite(norm):
        factor = scale if clip_norm is None else scale * min(1.0, clip_norm / (norm + 1e-6))
        torch._foreach_mul_(local_tensors(gradients), factor)  # pyright: ignore[reportPrivateImportUsage]
    return norm


class WeightAverage:
    """An exponential moving average of the parameters that train, sharded as they are."""

    def __init__(self, trained: Mapping[str, nn.Parameter], decay: float) -> None:
        self._trained = trained
        self._decay = decay
        self.tensors: dict[str, torch.Tensor] = {
            name: parameter.detach().clone() for name, parameter in trained.items()
        }

    def in_place_of(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The same names with averages where parameters train, those that are tied to one included."""
        averages = {id(self._trained[name]): average for name, average in self.tensors.items()}
        return {name: averages.get(id(tensor), tensor) for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self) -> None:
        """After a step of the optimizer."""
        averages = local_tensors(list(self.tensors.values()))
        trained = local_tensors(list(self._trained.values()))
        torch._foreach_lerp_(averages, trained, 1 - self._decay)  # pyright: ignore[reportPrivateImportUsage]


def local_tensors(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """This rank's shards, as plain tensors of the same memory."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
