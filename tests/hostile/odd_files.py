"""Readers of what may hang or fill the memory, each turned into text: for a process with little memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from readers import read_everything
from typer.testing import CliRunner

from cope_prep.jobs.cli import app
from cope_prep.schemas import wire
from cope_prep.schemas.errors import CopePrepError

_COMMANDS = ("verify", "stats", "status")


def commands_on(dataset: str, kind: str) -> dict[str, str]:
    """'FILE COMMAND' -> its output, while that file of the dataset is a pipe, or a link to /dev/zero."""
    found = {}
    sources = set(Path(dataset).glob("*.mp4"))
    for path in sorted(path for path in Path(dataset).rglob("*") if path.is_file() and path not in sources):
        content = path.read_bytes()
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")
        for command in _COMMANDS:
            result = CliRunner().invoke(app, [command, dataset])
            ended = result.exception is None or isinstance(result.exception, SystemExit)
            found[f"{path.name} {command}"] = result.output if ended else f"UNEXPECTED {result.exception!r}"
        path.unlink()
        path.write_bytes(content)
    return found


def verify_all(folder: str) -> dict[str, str]:
    """Name of each dataset in a folder -> what verify says."""
    return {path.name: read_everything(str(path), "")["verify"] for path in sorted(Path(folder).iterdir())}


def decode(folder: str) -> str:
    """What decode_gop says of the members in a folder."""
    try:
        wire.decode_gop({path.name: path.read_bytes() for path in Path(folder).iterdir()})
        return "decoded"
    except CopePrepError as exc:
        return f"{type(exc).__name__}: {exc}"
    except Exception as exc:
        return f"UNEXPECTED {exc!r}"
