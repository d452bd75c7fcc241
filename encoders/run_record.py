"""run.json: what a run was made with, beside its checkpoints, so that a later stage can tell whether it fits.

A Δ-encoder that has learned windows of 30 frames in blocks of 16 px reads those of another geometry without
an error, and wrongly. So a run writes down the geometry of its data, and stage 2 compares.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cope_prep.schemas.errors import ConfigurationError, FormatError

_NAME = "run.json"


def write_record(run: str | Path, *, config: Mapping[str, Any], geometry: Mapping[str, Any]) -> None:
    """Write a run's record into its output folder; of a run that goes on, anew."""
    folder = Path(run)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{_NAME}.{os.getpid()}"
    part.write_text(json.dumps({"config": config, "geometry": geometry}, indent=1))
    part.replace(folder / _NAME)


def read_record(path: str | Path) -> dict[str, Any] | None:
    """The record of the run that a path lies in: the run, one of its checkpoints or a file of one; None if none.

    Raises:
        FormatError: it is damaged.
    """
    start = Path(path)
    for folder in (start, *start.parents[:3]):
        file = folder / _NAME
        if file.is_file():
            try:
                record = json.loads(file.read_text())
            except ValueError as exc:
                raise FormatError(str(file), f"is not JSON: {exc}") from exc
            if not isinstance(record, dict) or not isinstance(record.get("geometry"), dict):
                raise FormatError(str(file), "is no record of a run: it has no geometry")
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
    learned = record["geometry"]
    different = [
        f"{name} {learned[name]} (here {value})"
        for name, value in geometry.items()
        if name in learned and learned[name] != value
    ]
    if different:
        raise ConfigurationError(
            str(path),
            f"was trained on data with {', '.join(different)}",
            remedy,
        )
