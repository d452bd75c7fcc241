"""The configuration of a run: a TOML file, and what the command line puts in place of some of its values."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from cope_prep.schemas.errors import ConfigurationError

Kind = Literal["pretrain", "finetune"]
_KINDS: tuple[Kind, Kind] = ("pretrain", "finetune")


def the_task(kind: Kind) -> tuple[Any, Any]:
    """The classes of a kind's configuration and task.

    Raises:
        ConfigurationError: what training needs is not installed.
    """
    try:
        if kind == "pretrain":
            from cope_prep.encoders.pretrain import PretrainConfig, PretrainTask

            return PretrainConfig, PretrainTask
        from cope_prep.encoders.finetune import FinetuneConfig, FinetuneTask
    except ModuleNotFoundError as exc:
        raise ConfigurationError(
            "cope-prep train", f"{exc.name} is not installed", "Run: pip install 'cope-prep[train]'"
        ) from exc
    return FinetuneConfig, FinetuneTask


def read_run(path: str, kind: Kind | None = None, *, overrides: Sequence[str] = ()) -> tuple[Kind, Any]:
    """The kind of a run and its PretrainConfig or FinetuneConfig.

    overrides: `training.max_steps=100`, each with a TOML value; what is no TOML is taken as a string.

    Raises:
        ConfigurationError: no such file, not TOML, of the other kind, or with a wrong field.
    """
    values = _read(path)
    for override in overrides:
        _set(values, override)
    found = _kind_of(values, path)
    if kind is not None and found != kind:
        raise ConfigurationError(
            path, f"is a configuration of {found}, not of {kind}", f"Run: cope-prep train {found} {path}"
        )
    try:
        # As JSON: arrays become tuples, which strict fields take from there only.
        return found, the_task(found)[0].model_validate_json(json.dumps(values, default=str))
    except ValidationError as exc:
        lines = []
        for error in exc.errors():
            place = ".".join(str(part) for part in error["loc"]) or "the file"
            given = "" if error["type"] in ("missing", "extra_forbidden") else f" (given {error['input']!r})"
            lines.append(f"{place}: {error['msg'].removeprefix('Value error, ')}{given}")
        raise ConfigurationError(path, "; ".join(lines)) from exc


def _read(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_bytes().decode())
    except OSError as exc:
        raise ConfigurationError(path, f"cannot be read: {exc.strerror or exc}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigurationError(path, f"is not TOML: {exc}") from exc


def _kind_of(values: dict[str, Any], path: str) -> Kind:
    """What `task` says; without it, what only one of the two has."""
    named = values.get("task", "finetune" if "model" in values else "pretrain")
    if named not in _KINDS:
        raise ConfigurationError(path, f"task is {named!r}", f"Use {' or '.join(_KINDS)}.")
    return named


def _set(values: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    *tables, key = name.strip().split(".")
    if not separator or not key or not all(tables):
        raise ConfigurationError(
            f"--set {override}", "is not KEY=VALUE", "For instance --set training.max_steps=100"
        )
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise ConfigurationError(f"--set {override}", f"{table} is a value, not a table")
    try:
        values[key] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        values[key] = text.strip()
