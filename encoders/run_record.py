"""run.json: what a run was made with, beside its checkpoints, so that a later stage can tell whether it fits.

A Δ-encoder that has learned windows of 30 frames in blocks of 16 px reads those of another geometry without an
error, and wrongly. Its weights also fit, name by name and shape by shape, an encoder with another number of heads,
which computes something else. So a run writes down its configuration and the geometry of its data, and who takes
its weights compares: what both know, and no more, so that older records stay good.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cope_prep.pipeline.redact import redacted_document
from cope_prep.schemas.errors import ConfigurationError, FormatError

SEVERAL = "several"
"""In a geometry, where the data have more than one value. Who has learned from such data is bound to none."""

_NAME = "run.json"
_OF_THE_MODEL = ("delta_encoder", "alignment", "layout", "delta_frames")
"""Fields that say what is computed with a run's weights; those of stage 2 are in its `model`."""
_NOT_COMPUTED = ("freeze_batch_norm", "resnet_checkpoint")
"""Fields of a Δ-encoder that say how it is trained, and where it begins."""


def write_record(run: str | Path, *, config: Mapping[str, Any], geometry: Mapping[str, Any]) -> None:
    """Write a run's record into its output folder; of a run that goes on, anew. URLs lose their credentials."""
    folder = Path(run)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{_NAME}.{os.getpid()}"
    part.write_text(json.dumps({"config": redacted_document(config), "geometry": geometry}, indent=1))
    part.replace(folder / _NAME)


def read_record(path: str | Path) -> dict[str, Any] | None:
    """The record of the run that a path is of: the run, one of its checkpoints or a file of either; None if none.

    Raises:
        FormatError: it is damaged.
    """
    for folder in _folders(Path(path).absolute()):
        file = folder / _NAME
        if file.is_file():
            try:
                record = json.loads(file.read_text())
            except ValueError as exc:
                raise FormatError(str(file), f"is not JSON: {exc}") from exc
            for part in ("geometry", "config"):
                if not isinstance(record, dict) or not isinstance(record.get(part), dict):
                    raise FormatError(str(file), f"is no record of a run: it has no {part}")
            return record
    return None


_OTHER = "Use data of the same geometry, or set allow_other_geometry = true if you mean it."


def check_geometry(path: str | Path, geometry: Mapping[str, Any], *, remedy: str = _OTHER) -> None:
    """
    Raises:
        ConfigurationError: the run that `path` is of learned from data of another geometry.
    """
    record = read_record(path)
    if record is None:
        return
    if different := differences(record["geometry"], geometry):
        raise ConfigurationError(
            str(path),
            f"was trained on data with {', '.join(different)}",
            remedy,
        )


def check_delta_encoder(path: str | Path, config: Mapping[str, Any]) -> None:
    """
    config: of the Δ-encoder that is to get the weights of the one in `path`, as JSON has it.

    Raises:
        ConfigurationError: the run that `path` is of had another one.
    """
    record = read_record(path)
    if record is None:
        return
    chosen = _of_the_model(record["config"])
    stored = chosen.get("delta_encoder") or chosen.get("model.delta_encoder") or {}
    if different := differences({"delta_encoder": stored}, {"delta_encoder": config}):
        raise ConfigurationError(
            str(path),
            f"was trained with {', '.join(different)}",
            "Its weights are right for what it was trained with: set the same.",
        )


def check_model(run: str | Path, config: Mapping[str, Any]) -> None:
    """
    config: of the run that is to go on, as JSON has it.

    Raises:
        ConfigurationError: the run was begun with a model that computes something else.
    """
    record = read_record(run)
    if record is None:
        return
    if different := differences(_of_the_model(record["config"]), _of_the_model(config)):
        raise ConfigurationError(
            str(run),
            f"was begun with {', '.join(different)}",
            "Go on with the same, or use another output_dir.",
        )


def differences(stored: Mapping[str, Any], here: Mapping[str, Any], *, within: str = "") -> list[str]:
    """What both have and is not the same, as `name 1 (here 2)`; of a table its fields, as `table.name`."""
    found = []
    for name, value in here.items():
        before = stored.get(name, value)
        if name in _NOT_COMPUTED or before in (value, SEVERAL):
            continue
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            found += differences(before, value, within=f"{within}{name}.")
        else:
            found.append(f"{within}{name} {before} (here {value})")
    return found


def _folders(path: Path) -> Iterator[Path]:
    """Where the record of a run may be; never that of a run which only happens to be around it."""
    folder = path if path.is_dir() else path.parent
    yield folder
    if folder.parent.name == "checkpoints":
        yield folder.parent.parent


def _of_the_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those fields of either stage's configuration; of stage 2 by their full names."""
    model = config.get("model")
    found = {name: config[name] for name in _OF_THE_MODEL if name in config}
    if isinstance(model, Mapping):
        found |= {f"model.{name}": model[name] for name in _OF_THE_MODEL if name in model}
    return found
