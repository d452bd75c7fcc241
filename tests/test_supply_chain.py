"""constraints.txt pins all that is installed, and the audit tells bad news from no news."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
INSTALLED_EXTRAS = ("dashboard", "dev", "docs", "http", "s3", "train")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return {normal(line.split("==")[0]): line.split("==")[1] for line in lines if line}


def closure() -> dict[str, str]:
    """Name -> version of all that `make test` installs of what pyproject.toml asks for, and of what that needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [entry for extra in INSTALLED_EXTRAS for entry in project["optional-dependencies"][extra]]
    waiting = [Requirement(entry) for entry in (*project["dependencies"], *extras)]
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        for extra in ("", *requirement.extras):
            name = normal(requirement.name)
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            installed = importlib.metadata.distribution(requirement.name)
            found[name] = installed.version
            for entry in map(Requirement, installed.requires or ()):
                if entry.marker is None or entry.marker.evaluate({"extra": extra}):
                    waiting.append(entry)
    return found


def test_every_installed_package_is_pinned() -> None:
    pinned, found = pins(), closure()
    assert len(found) > 100
    assert {name for name in found if name not in pinned} == set()
    # A build of torch for one kind of machine has a suffix: 2.13.0+cpu.
    differ = {name: version for name, version in found.items() if version.split("+")[0] != pinned[name]}
    assert differ == {}


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"dependencies": list(entries)}


OLD = {
    "name": "requests",
    "version": "2.19.0",
    "vulns": [{"id": "CVE-2018-18074", "fix_versions": ["2.20.0"]}],
}
GOOD = {"name": "numpy", "version": "2.0", "vulns": []}
UNKNOWN = {"name": "numpy", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("answers", "code", "said"),
    [
        ([None], 0, "skipped: no vulnerability service"),
        ([answer({"name": "requests", "skip_reason": "not found"})], 0, "skipped: no vulnerability service"),
        (
            [answer(OLD), None],
            1,
            "knows requests==2.19.0, but gave no answer for constraints.txt. It says:\nwhy",
        ),
        ([answer(OLD), answer(GOOD)], 0, "1 packages, 0 vulnerabilities"),
        ([answer(OLD), answer(UNKNOWN)], 0, "1 packages are not known there: numpy"),
        ([answer(OLD), answer(GOOD, OLD)], 1, "requests 2.19.0: CVE-2018-18074, mended in 2.20.0"),
    ],
)
def test_audit(
    audit: ModuleType,
    answers: list[Any],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    replies = iter(answers)
    monkeypatch.setattr(audit, "ask", lambda requirements: (next(replies), "why"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # whether pip-audit is there or not
    assert audit.main([]) == code
    assert said in capsys.readouterr().out


def test_audit_says_what_pip_audit_says_of_pins_that_it_cannot_read(
    audit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "pip_audit.py"
    program.write_text(
        "import sys\n"
        "if '2.19.0' not in open(sys.argv[2]).read():\n"
        "    sys.exit('ERROR: not a pin')\n"
        f"print({json.dumps(json.dumps(answer(OLD)))})\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "pins.txt").write_text("not a pin!!\n")
    assert audit.main([str(tmp_path / "pins.txt")]) == 1
    assert "ERROR: not a pin" in capsys.readouterr().out
    program.unlink()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert audit.main([]) == 2
    assert "pip-audit is not installed" in capsys.readouterr().out
