"""Configurations: frozen pydantic models, read from TOML, each beside the code that owns it.

A field that is not known is an error, and so is a value of another type: a misspelt learning rate must not train.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cope_prep.schemas.errors import ConfigurationError


class Settings(BaseModel):
    """Base of all configurations of models and loops."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


SettingsT = TypeVar("SettingsT", bound=Settings)


def read_toml(path: str | Path, kind: type[SettingsT]) -> SettingsT:
    """The configuration in a TOML file.

    Raises:
        ConfigurationError: no such file, not TOML, or a field that is unknown, missing or of a wrong type.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as exc:
        raise ConfigurationError(str(path), f"cannot be read: {exc.strerror or exc}") from exc
    try:
        values = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigurationError(str(path), f"is not TOML: {exc}") from exc
    try:
        # As JSON: arrays become tuples, which is the one thing that strictness must not forbid.
        return kind.model_validate_json(json.dumps(values, default=str))
    except ValidationError as exc:
        raise ConfigurationError(str(path), _describe(exc)) from exc


def _describe(exc: ValidationError) -> str:
    lines = []
    for error in exc.errors():
        place = ".".join(str(part) for part in error["loc"]) or "the file"
        given = "" if error["type"] in ("missing", "extra_forbidden") else f" (given {error['input']!r})"
        lines.append(f"{place}: {error['msg'].removeprefix('Value error, ')}{given}")
    return "; ".join(lines)
