"""Checkpoints of a run: folders that are complete or not there, and the same for any number of ranks.

    checkpoints/step-00000100/
      model.safetensors       all parameters and buffers, whole, by the names that the model has
      ema.safetensors         the same with averaged parameters, if an average is kept
      optimizer.safetensors   state of each parameter: exp_avg/NAME, exp_avg_sq/NAME, step/NAME
      rng-00000.safetensors   random number generators of each rank
      trainer.json            step, samples, the loader's state, configuration, versions, fingerprint of the model

A folder is written under a temporary name and renamed when all of it is on disk. A tensor that the model knows by
two names is stored once; the file's metadata has the other name. Rank 0 holds one file in memory at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from cope_prep.encoders import random_state
from cope_prep.encoders.distributed import Ranks, fill, whole
from cope_prep.encoders.optimization import WeightAverage
from cope_prep.pipeline.storage import TEMPORARY_PREFIX
from cope_prep.schemas.errors import ConfigurationError, FormatError, StorageError

logger = logging.getLogger("cope_prep.training")
_MODEL, _EMA, _OPTIMIZER, _TRAINER = (
    "model.safetensors",
    "ema.safetensors",
    "optimizer.safetensors",
    "trainer.json",
)
_NAME = re.compile(r"step-\d{8,}")
_ALIASES = "aliases"
_MOST_NAMED = 6
"""Names in a message about what differs."""


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
    _save(temporary / _MODEL, tensors, ranks)
    if trained.average is not None:
        _save(temporary / _EMA, tensors | trained.average.tensors, ranks)
    _save(temporary / _OPTIMIZER, _optimizer_tensors(trained), ranks)

    def finish() -> None:
        with _disk_errors(target):
            for rank, state in enumerate(states):
                _write(temporary / _rng_name(rank), state)
            (temporary / _TRAINER).write_text(json.dumps(document, indent=1))
            _sync(temporary)
            if target.exists():  # of a run from before, in a folder from which the newer ones were deleted
                _remove(target)
            temporary.rename(target)
            _sync(folder)
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
    _check_same(
        str(path),
        set(document["trained"]),
        set(trained.parameters),
        "parameters that train",
        "Freeze the same.",
    )
    model = model_tensors(trained.model)
    _fill_from(path / _MODEL, model)
    if trained.average is not None:
        source = _EMA if (path / _EMA).exists() else _MODEL  # an average that begins now
        _fill_from(path / source, model | trained.average.tensors, only=trained.average.tensors.keys())
    _load_optimizer(path / _OPTIMIZER, trained)
    if document["world_size"] == ranks.world_size:
        with _format_errors(path / _rng_name(ranks.rank)):
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
    with _format_errors(path / _TRAINER):
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
        ConfigurationError: nothing there, or other names or shapes than the module has; says which.
    """
    file = _weights_file(Path(path), _EMA if average else _MODEL)
    targets = {name: tensor for name, tensor in model_tensors(module).items() if not name.startswith(skip)}
    _fill_from(file, targets, prefix=prefix or "", skip=skip)
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


def model_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """All that a module's state dict has, by name: the tensors themselves."""
    return dict(module.state_dict(keep_vars=True))


def fingerprint(shapes: Mapping[str, Sequence[int]]) -> str:
    """A hash of the names and shapes of a model."""
    text = json.dumps(sorted((name, list(shape)) for name, shape in shapes.items()))
    return hashlib.sha256(text.encode()).hexdigest()


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
    with _format_errors(file), safe_open(file, "pt") as stored:
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


def _save(file: Path, tensors: Mapping[str, torch.Tensor], ranks: Ranks) -> None:
    """All ranks give their shards, rank 0 writes."""
    names: dict[int, str] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), name)
    aliases = {name: names[id(tensor)] for name, tensor in tensors.items() if names[id(tensor)] != name}
    gathered = {}
    for name, tensor in tensors.items():
        if name not in aliases:
            full = whole(tensor)
            if ranks.is_first:
                gathered[name] = full.cpu().clone(memory_format=torch.contiguous_format)
    ranks.on_first(lambda: _write(file, gathered, {_ALIASES: json.dumps(aliases)}))


def _write(file: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    with _disk_errors(file):
        save_file(tensors, file, metadata)
        _sync(file)


def _fill_from(
    file: Path,
    targets: Mapping[str, torch.Tensor],
    *,
    prefix: str = "",
    skip: tuple[str, ...] = (),
    only: Iterable[str] | None = None,
) -> None:
    """Copy a file into tensors of the same names and shapes."""
    with _format_errors(file), safe_open(file, "pt") as stored:
        aliases = json.loads((stored.metadata() or {}).get(_ALIASES, "{}"))
        keys = {name: name for name in stored.keys()} | aliases  # noqa: SIM118 - no mapping
        keys = {name.removeprefix(prefix): key for name, key in keys.items() if name.startswith(prefix)}
        keys = {name: key for name, key in keys.items() if not name.startswith(skip)}
        if not keys:
            raise ConfigurationError(str(file), f"has no tensor whose name begins with {prefix!r}")
        remedy = "It is of another architecture."
        _check_same(str(file), set(keys), set(targets), "tensors", remedy)
        found = {name: tuple(stored.get_slice(key).get_shape()) for name, key in keys.items()}
        differing = [
            f"{name} {list(found[name])} instead of {list(target.shape)}"
            for name, target in targets.items()
            if found[name] != tuple(target.shape)
        ]
        if differing:
            raise ConfigurationError(str(file), f"has other shapes: {_some(differing)}", remedy)
        for name in targets if only is None else only:
            fill(targets[name].detach(), stored.get_tensor(keys[name]))


def _check_same(subject: str, found: set[str], expected: set[str], what: str, remedy: str) -> None:
    parts = []
    if missing := sorted(expected - found):
        parts.append(f"lacks {_some(missing)}")
    if unknown := sorted(found - expected):
        parts.append(f"has {_some(unknown)}, which this model has not")
    if parts:
        raise ConfigurationError(subject, f"has other {what}: it {'; it '.join(parts)}", remedy)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _rng_name(rank: int) -> str:
    return f"rng-{rank:05d}.safetensors"


def _made(folder: Path) -> None:
    with _disk_errors(folder):
        folder.mkdir(parents=True)


def _remove(path: Path) -> None:
    """Not visible while it is being deleted."""
    hidden = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as exc:
        raise StorageError(str(path), f"cannot be written ({exc})", "Make room and run again.") from exc


@contextlib.contextmanager
def _format_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, ValueError) as exc:
        raise FormatError(
            str(path), f"cannot be read ({exc})", "Delete this checkpoint to go on from the one before."
        ) from exc
