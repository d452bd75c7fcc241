"""A folder of safetensors: which tensors it holds, from the headers alone, and nothing from the network.

A header is a few KB of a shard of GBs. An index must say of every tensor what the shards say: a shard of another
version of the checkpoint, or one that was cut short, is found before anything is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from cope_prep.schemas.errors import ConfigurationError, FormatError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor as its file's header has it."""

    path: Path
    shape: tuple[int, ...]
    dtype: str
    """As safetensors writes it: "BF16", "F32", ..."""


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint, from the headers of its files.

    Raises:
        ConfigurationError: there are no weights, or a shard is not there.
        FormatError: a damaged shard, or an index that does not agree with its shards.
    """
    index = folder / INDEX_FILE
    if (folder / SINGLE_FILE).is_file():
        return _headers(folder / SINGLE_FILE)
    if not index.is_file():
        raise ConfigurationError(str(folder), f"has neither {SINGLE_FILE} nor {INDEX_FILE}")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(str(index), "has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    lacking = [name for name in names if not (folder / name).is_file()]
    if lacking:
        raise ConfigurationError(
            str(folder),
            listed(f"{INDEX_FILE} names files that are not there", lacking),
            "Download them again.",
        )
    stored: dict[str, StoredTensor] = {}
    for name in names:
        stored.update(_headers(folder / name))
    wrong = [
        f"{key} (in {stored[key].path.name if key in stored else 'no shard'}, not in {weight_map.get(key)})"
        for key in sorted(weight_map.keys() | stored.keys())
        if key not in stored or stored[key].path.name != weight_map.get(key)
    ]
    if wrong:
        raise FormatError(str(index), listed("does not agree with the shards about tensors", wrong))
    return stored


def local_folder(folder: str | Path) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise ConfigurationError(
            str(folder),
            "is not a local folder",
            "Download the checkpoint first; nothing is fetched from the Hub.",
        )
    return path


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except OSError as exc:
        raise ConfigurationError(str(path), f"cannot be read: {exc.strerror or exc}") from exc
    except ValueError as exc:
        raise FormatError(str(path), f"is not JSON: {exc}") from exc
    if not isinstance(values, dict):
        raise FormatError(str(path), f"is not a JSON object but {type(values).__name__}")
    return values


def _headers(path: Path) -> dict[str, StoredTensor]:
    stored = {}
    with open_shard(path) as file:
        for name in file.keys():  # noqa: SIM118 - a safe_open is not iterable
            part = file.get_slice(name)
            stored[name] = StoredTensor(path=path, shape=tuple(part.get_shape()), dtype=part.get_dtype())
    return stored


def open_shard(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except SafetensorError as exc:
        raise FormatError(str(path), f"is damaged or cut short: {exc}", "Download it again.") from exc
    except OSError as exc:
        raise ConfigurationError(str(path), f"cannot be read: {exc.strerror or exc}") from exc


def listed(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f", and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{what} ({len(names)}): {', '.join(names[:10])}{more}"
