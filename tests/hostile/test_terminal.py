"""Names from strangers on a terminal: shown, and not obeyed."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from cope_prep.jobs import report
from cope_prep.jobs.cli import app

NAME = "\x1b]0;pwn\x07\x1b[31m\x9b2J\x7f\u202egpm.4pm\u2066.mp4"
SHOWN = r"\x1b[31m\x9b2J\x7f\u202egpm.4pm\u2066.mp4"


def _obeyed(output: str) -> set[str]:
    """The characters of a text that a terminal would not show."""
    return {char for char in output if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Cs")}


def _strings(value: object) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    return [text for one in value for text in _strings(one)] if isinstance(value, list) else [str(value)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A job has failed on a video of this name."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "videos").mkdir()
    (folder / "videos" / NAME).write_bytes(b"no video at all" * 100)
    made = CliRunner().invoke(app, ["manifest", "files", str(folder / "videos"), str(folder / "dataset")])
    assert made.exit_code == 0, made.output
    done = CliRunner().invoke(app, ["reencode", str(folder / "dataset"), "--no-ray"])
    assert done.exit_code == 1
    assert SHOWN in re.sub(r"\s*│\s*│[\s│]*", "", done.output)
    assert _obeyed(re.sub(r"[─-╿]", "", done.output)) == set()
    return str(folder / "dataset")


@pytest.mark.parametrize("command", ["status", "quarantine", "stats"])
def test_name_does_not_reach_the_terminal(dataset: str, command: str) -> None:
    assert _obeyed(CliRunner().invoke(app, [command, dataset]).output) == set()


def test_json_holds_the_name_and_no_control_character(dataset: str) -> None:
    output = CliRunner().invoke(app, ["status", dataset, "--json"]).stdout
    assert _obeyed(output) == set()
    (stage,) = json.loads(output)["stages"]
    assert any(NAME in text for text in _strings(stage))


def test_error_message_does_not_reach_the_terminal(tmp_path: Path) -> None:
    output = CliRunner().invoke(app, ["status", str(tmp_path / NAME)]).output
    assert _obeyed(output) == set()
    assert SHOWN in output


def test_terminal_still_gets_its_own_colours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    console = report.make_console(stderr=False)
    table = Table("The name of a video")
    table.add_row(Text("a\x1bb", style="red"))
    console.print(table)
    output = capsys.readouterr().out
    assert "\x1b[31ma\\x1bb" in output
