"""Checkpoints of a run: folders that are complete or not there, and the same for any number of ranks.

    checkpoints/step-00000100/
      model.safetensors       all parameters and buffers, whole, by the names that the model has
      ema.safetensors         the same with averaged parameters, if an average is kept
      optimizer.safetensors   state of each parameter: exp_avg/NAME, exp_avg_sq/NAME, step/NAME
      rng-00000.safetensors   random number generators of each rank
      trainer.json            step, samples, the loader's state, configuration, versions, fingerprint of the model

A folder is written under a temporary name and renamed when all of it is on disk (tensor_files.py has the files).
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from cope_prep.encoders import random_state
from cope_prep.encoders.delta_encoder import DeltaEncoder
from cope_prep.encoders.distributed import Ranks, fill
from cope_prep.encoders.optimization import WeightAverage
from cope_prep.encoders.run_record import check_delta_encoder
from cope_prep.encoders.tensor_files import (
    check_same_names,
    disk_errors,
    fill_tensors,
    fingerprint,
    format_errors,
    model_tensors,
    save_tensors,
    sync,
    write_tensors,
)
from cope_prep.pipeline.storage import TEMPORARY_PREFIX
from cope_prep.schemas.errors import ConfigurationError

logger = logging.getLogger("cope_prep.training")
_MODEL, _EMA, _OPTIMIZER, _TRAINER = (
    "model.safetensors",
    "ema.safetensors",
    "optimizer.safetensors",
    "trainer.json",
)
_NAME = re.compile(r"step-\d{8,}")


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run has come."""

    step: int = 0
    num_samples: int = 0
    """Valid GOPs, windows or questions that gradients came from, over all ranks."""
    num_empty_steps: int = 0
    """Steps without one valid sample: the weights stayed."""
    loader: dict[str, Any] | None = None
    """State after the last batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """All that a checkpoint holds and a run goes on with."""

    task: str
    model: nn.Module
    """Not wrapped."""
    optimizer: torch.optim.Optimizer
    parameters: Mapping[str, nn.Parameter]
    """Those that train."""
    average: WeightAverage | None
    config: Mapping[str, Any]
    """For the record; another one may go on."""


def find_checkpoints(run: str | Path) -> list[Path]:
    """The complete checkpoints of a run's output folder, oldest first."""
    folder = Path(run) / "checkpoints"
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and (path / _TRAINER).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def remove_incomplete(run: str | Path) -> None:
    """Delete what a run that was killed had begun to write, or to delete."""
    for path in (Path(run) / "checkpoints").glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def save_checkpoint(
    run: str | Path, trained: Trained, progress: Progress, ranks: Ranks, *, keep: int
) -> Path:
    """Write a checkpoint, then delete all but the last `keep`. Every rank must call it.

    Raises:
        StorageError: the disk is full, or refuses.
    """
    folder = Path(run) / "checkpoints"
    target = folder / f"step-{progress.step:08d}"
    temporary = folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    document = _document(trained, progress, ranks)
    states = ranks.gather(random_state.capture(ranks.device))
    ranks.on_first(lambda: _made(temporary))
    tensors = model_tensors(trained.model)
    save_tensors(temporary / _MODEL, tensors, ranks)
    if trained.average is not None:
        save_tensors(temporary / _EMA, trained.average.in_place_of(tensors), ranks)
    save_tensors(temporary / _OPTIMIZER, _optimizer_tensors(trained), ranks)

    def finish() -> None:
        with disk_errors(target):
            for rank, state in enumerate(states):
                write_tensors(temporary / _rng_name(rank), state)
            (temporary / _TRAINER).write_text(json.dumps(document, indent=1))
            sync(temporary)
            if target.exists():  # of a run from before, in a folder from which the newer ones were deleted
                _remove(target)
            temporary.rename(target)
            sync(folder)
            for path in find_checkpoints(run)[:-keep]:
                _remove(path)

    ranks.on_first(finish)
    return target


def load_checkpoint(path: Path, trained: Trained, ranks: Ranks) -> Progress:
    """Go on from a checkpoint: weights, their average, the optimizer and the generators become what they were.

    Raises:
        ConfigurationError: it is of another task or architecture, or other parameters were trained.
        FormatError: a file of it is damaged.
    """
    document = read_trainer(path)
    if document["task"] != trained.task:
        raise ConfigurationError(
            str(path), f"is of the task {document['task']!r}, this is {trained.task!r}", "Use another folder."
        )
    check_same_names(
        str(path),
        set(document["trained"]),
        set(trained.parameters),
        "parameters that train",
        "Freeze the same.",
    )
    model = model_tensors(trained.model)
    fill_tensors(path / _MODEL, model)
    if trained.average is not None:
        source = _EMA if (path / _EMA).exists() else _MODEL  # an average that begins now
        fill_tensors(path / source, model | trained.average.tensors, only=trained.average.tensors.keys())
    _load_optimizer(path / _OPTIMIZER, trained)
    if document["world_size"] == ranks.world_size:
        with format_errors(path / _rng_name(ranks.rank)):
            random_state.restore(load_file(path / _rng_name(ranks.rank)), ranks.device)
    else:
        logger.warning(
            "%s is of %d ranks, this is %d: random numbers go on from a new seed",
            path, document["world_size"], ranks.world_size,
        )  # fmt: skip
        random_state.seed(int(document["progress"]["step"]) * 65_537 + ranks.rank)
    changed = {
        name: (document["config"].get(name), value)
        for name, value in trained.config.items()
        if document["config"].get(name) != value
    }
    if changed and ranks.is_first:
        logger.warning("going on from %s with another configuration: %s", path, changed)
    return Progress(**document["progress"])


def read_trainer(path: Path) -> dict[str, Any]:
    """trainer.json of a checkpoint."""
    with format_errors(path / _TRAINER):
        return json.loads((path / _TRAINER).read_text())


def load_model_weights(
    module: nn.Module,
    path: str | Path,
    *,
    prefix: str | None = None,
    skip: tuple[str, ...] = (),
    average: bool = False,
) -> Path:
    """Fill a module from a .safetensors file, a checkpoint, or the newest checkpoint of a run; gives the file.

    prefix: only names that begin so, without it: "delta_encoder." takes the Δ-encoder out of a whole model.
    skip: names of the module that begin so keep their values, and what the file has of them is left aside.
    average: the averaged weights rather than the last ones.

    Raises:
        ConfigurationError: nothing there, other names or shapes than the module has, or a Δ-encoder that computes
            something else with the same shapes; says which.
    """
    file = _weights_file(Path(path), _EMA if average else _MODEL)
    for name, part in module.named_modules():
        if isinstance(part, DeltaEncoder) and not f"{name}.".startswith(skip):
            check_delta_encoder(path, part.config.model_dump(mode="json"))
    targets = {name: tensor for name, tensor in model_tensors(module).items() if not name.startswith(skip)}
    fill_tensors(file, targets, prefix=prefix or "", skip=skip)
    return file


def _weights_file(path: Path, name: str) -> Path:
    if path.is_file():
        return path
    runs = find_checkpoints(path)
    for folder in [path, *runs[-1:]]:
        if (folder / name).is_file():
            return folder / name
    raise ConfigurationError(
        str(path), f"holds no {name}, nor a checkpoint that does", "Name a run, a checkpoint or a file."
    )


def _document(trained: Trained, progress: Progress, ranks: Ranks) -> dict[str, Any]:
    shapes = {name: tuple(tensor.shape) for name, tensor in model_tensors(trained.model).items()}
    return {
        "task": trained.task,
        "progress": asdict(progress),
        "world_size": ranks.world_size,
        "trained": list(trained.parameters),
        "architecture": fingerprint(shapes),
        "config": dict(trained.config),
        "versions": {"cope-prep": version("cope-prep"), "torch": torch.__version__},
    }


def _optimizer_tensors(trained: Trained) -> dict[str, torch.Tensor]:
    return {
        f"{kind}/{name}": value
        for name, parameter in trained.parameters.items()
        for kind, value in trained.optimizer.state.get(parameter, {}).items()
    }


def _load_optimizer(file: Path, trained: Trained) -> None:
    with format_errors(file), safe_open(file, "pt") as stored:
        for key in stored.keys():  # noqa: SIM118 - no mapping
            kind, _, name = key.partition("/")
            parameter, values = trained.parameters[name], stored.get_tensor(key)
            if kind == "step":  # on the host, unless the optimizer is a fused one
                is_fused = trained.optimizer.param_groups[0]["fused"]
                state = values.to(parameter.device) if is_fused else values
            else:
                state = torch.zeros_like(parameter, memory_format=torch.preserve_format, requires_grad=False)
                fill(state, values)
            trained.optimizer.state[parameter][kind] = state


def _rng_name(rank: int) -> str:
    return f"rng-{rank:05d}.safetensors"


def _made(folder: Path) -> None:
    with disk_errors(folder):
        folder.mkdir(parents=True)


def _remove(path: Path) -> None:
    """Not visible while it is being deleted."""
    hidden = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)
