"""Ctrl-C in the first second of a command, while its modules are imported."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from status_tables import write_manifest

from cope_prep.pipeline.layout import Layout, Specs

ROOT = Path(__file__).parent.parent.parent
SCRIPT = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            print("interrupted", flush=True)
            {signals}os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from {entry} import main
sys.exit(main())
"""


def run_command(dataset: str, *, module: str, signals: str = "") -> subprocess.CompletedProcess[str]:
    """`status`, by what the console script calls, interrupted where it imports a module."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    entry, _, name = scripts["cope-prep"].partition(":")
    assert name == "main"
    script = SCRIPT.format(module=module, entry=entry, signals=signals)
    return subprocess.run(
        [sys.executable, "-c", script, "status", dataset], capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    layout = Layout(dataset=str(tmp_path / "dataset"), specs=Specs())
    write_manifest(layout, {"a": 100})
    return layout.dataset


@pytest.mark.parametrize(
    "module", ["typer", "cope_prep.jobs.cli_train", "pyarrow", "cope_prep.jobs.status_watch"]
)
def test_ctrl_c_while_modules_are_imported_leaves_no_traceback(dataset: str, module: str) -> None:
    done = run_command(dataset, module=module)
    assert done.stdout.strip() == "interrupted"
    assert done.stderr == ""
    assert done.returncode == 130


def test_ctrl_c_that_is_ignored_stays_ignored(dataset: str) -> None:
    """As of a job that a shell started in the background."""
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN); "
    done = run_command(dataset, module="cope_prep.jobs.cli", signals=ignored)
    assert "Nothing is done yet" in done.stdout
    assert done.returncode == 0
