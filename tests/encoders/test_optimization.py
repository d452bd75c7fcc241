"""Learning rates, parts that decay, clipping over the whole gradient, the average of weights."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from cope_prep.encoders.optimization import (
    OptimizerConfig,
    WeightAverage,
    check_groups,
    lr_factor,
    make_optimizer,
    scale_and_clip,
    set_lr,
)
from cope_prep.encoders.task import ParameterGroup
from cope_prep.schemas.errors import ConfigurationError


def one_group(model: nn.Module, **changes: float) -> list[ParameterGroup]:
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return [ParameterGroup(name="all", parameters=named, **changes)]


def test_lr_rises_to_its_peak_then_falls_along_a_cosine():
    config = OptimizerConfig(max_steps=110, warmup_steps=10, min_lr_ratio=0.1)
    factors = [lr_factor(step, config) for step in range(110)]
    assert factors[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert factors[10] == 1.0
    assert factors[60] == pytest.approx(0.55)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0.1 < factors[-1] < 0.101
    assert lr_factor(500, config) == pytest.approx(0.1)


@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_lr_of_short_runs_is_positive(warmup_steps: int):
    config = OptimizerConfig(max_steps=3, warmup_steps=warmup_steps)
    assert all(lr_factor(step, config) > 0 for step in range(3))


def test_groups_have_their_own_rates_and_only_matrices_decay():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    first, second = dict(model[0].named_parameters()), dict(model[1].named_parameters())
    groups = [
        ParameterGroup(name="slow", parameters=first, lr_scale=0.1),
        ParameterGroup(name="fast", parameters=second),
    ]
    config = OptimizerConfig(lr=0.5, weight_decay=0.2, warmup_steps=4, max_steps=9)
    optimizer = make_optimizer(groups, config)
    decays = {
        id(parameter): part["weight_decay"] for part in optimizer.param_groups for parameter in part["params"]
    }
    assert decays[id(model[0].weight)] == 0.2
    assert [decays[id(value)] for value in (model[0].bias, model[1].weight, model[1].bias)] == [0, 0, 0]
    assert set_lr(optimizer, 1, config) == pytest.approx({"slow": 0.025, "fast": 0.25})


@pytest.mark.parametrize("clip_norm", [None, 0.5, 1e6])
def test_gradients_are_scaled_and_clipped_as_by_torch(clip_norm: float | None):
    parameters = [nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(1))]
    for parameter in parameters[:2]:
        parameter.grad = torch.randn_like(parameter)
    expected = [parameter.grad.clone() * 0.25 for parameter in parameters[:2] if parameter.grad is not None]
    reference = [nn.Parameter(torch.zeros_like(value)) for value in expected]
    for parameter, gradient in zip(reference, expected, strict=True):
        parameter.grad = gradient
    norm = nn.utils.clip_grad_norm_(reference, clip_norm or math.inf)
    assert scale_and_clip(parameters, 0.25, clip_norm) == pytest.approx(float(norm))
    for parameter, other in zip(parameters, reference, strict=False):
        torch.testing.assert_close(parameter.grad, other.grad)
    assert parameters[2].grad is None


def test_gradient_that_is_not_finite_is_told_and_left():
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, math.inf])
    assert not math.isfinite(scale_and_clip([parameter], 0.5, 1.0))
    assert parameter.grad.tolist() == [1.0, math.inf]


def test_average_follows_the_weights():
    model = nn.Linear(2, 2)
    average = WeightAverage(dict(model.named_parameters()), decay=0.75)
    expected = model.weight.detach().clone()
    for _ in range(3):
        model.weight.data += 1.0
        average.update()
        expected = 0.75 * expected + 0.25 * model.weight.detach()
    torch.testing.assert_close(average.tensors["weight"], expected)


def test_model_that_is_all_frozen_is_refused():
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ConfigurationError, match="no parameter that trains"):
        check_groups(model, one_group(model))


def test_parameter_without_a_group_is_our_mistake():
    model = nn.Linear(2, 2)
    with pytest.raises(AssertionError, match="bias"):
        check_groups(model, [ParameterGroup(name="some", parameters={"weight": model.weight})])


@pytest.mark.parametrize(
    "values", [{"betas": (0.9, 1.0)}, {"warmup_steps": 11, "max_steps": 10}, {"ema_decay": 1.0}, {"lr": 0.0}]
)
def test_settings_that_make_no_sense_fail(values: dict):
    with pytest.raises(ValidationError):
        OptimizerConfig(**values)
