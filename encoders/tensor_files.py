"""Tensors of modules in safetensors files: whole though they may be sharded, tied ones once, checked when read.

A tensor that a module knows by two names is stored under the first; the file's metadata says the other ("aliases").
Rank 0 gathers and writes, and holds one file in memory at a time; every rank reads for itself, what it needs alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from cope_prep.encoders.distributed import Ranks, fill, whole
from cope_prep.schemas.errors import ConfigurationError, FormatError, StorageError

_ALIASES = "aliases"
_MOST_NAMED = 6
"""Names in a message about what differs."""


def model_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """All that a module's state dict has, by name: the tensors themselves."""
    return dict(module.state_dict(keep_vars=True))


def fingerprint(shapes: Mapping[str, Sequence[int]]) -> str:
    """A hash of the names and shapes of a model."""
    text = json.dumps(sorted((name, list(shape)) for name, shape in shapes.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def save_tensors(file: Path, tensors: Mapping[str, torch.Tensor], ranks: Ranks) -> None:
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
    ranks.on_first(lambda: write_tensors(file, gathered, {_ALIASES: json.dumps(aliases)}))


def write_tensors(
    file: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    with disk_errors(file):
        save_file(tensors, file, metadata)
        sync(file)


def fill_tensors(
    file: Path,
    targets: Mapping[str, torch.Tensor],
    *,
    prefix: str = "",
    skip: tuple[str, ...] = (),
    only: Iterable[str] | None = None,
) -> None:
    """Copy a file into tensors of the same names and shapes."""
    with format_errors(file), safe_open(file, "pt") as stored:
        aliases = json.loads((stored.metadata() or {}).get(_ALIASES, "{}"))
        keys = {name: name for name in stored.keys()} | aliases  # noqa: SIM118 - no mapping
        keys = {name.removeprefix(prefix): key for name, key in keys.items() if name.startswith(prefix)}
        keys = {name: key for name, key in keys.items() if not name.startswith(skip)}
        if not keys:
            raise ConfigurationError(str(file), f"has no tensor whose name begins with {prefix!r}")
        remedy = "It is of another architecture."
        check_same_names(str(file), set(keys), set(targets), "tensors", remedy)
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


def check_same_names(subject: str, found: set[str], expected: set[str], what: str, remedy: str) -> None:
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


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as exc:
        raise StorageError(str(path), f"cannot be written ({exc})", "Make room and run again.") from exc


@contextlib.contextmanager
def format_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, ValueError) as exc:
        raise FormatError(
            str(path), f"cannot be read ({exc})", "Delete this checkpoint to go on from the one before."
        ) from exc
