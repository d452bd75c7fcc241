"""The package as it is installed: nothing left out, nothing at the top level but cope_prep."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOP_FOLDERS = ("schemas", "pipeline", "encoders", "jobs")


def test_every_package_on_disk_is_listed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = {
        "cope_prep." + path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for folder in TOP_FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(setuptools["packages"]) == on_disk
    assert setuptools["package-dir"] == {
        name: name.removeprefix("cope_prep.").replace(".", "/") for name in on_disk
    }


def test_the_type_check_sees_every_package() -> None:
    # pyright leaves out all of a folder whose name begins with a dot, says "0 errors" and exits with 0.
    pyright = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pyright"]
    assert sorted(pyright["include"]) == sorted(TOP_FOLDERS)
    assert all(any((ROOT / folder).rglob("*.py")) for folder in pyright["include"])
    assert {"exclude", "ignore"}.isdisjoint(pyright)


def test_every_module_is_in_a_package() -> None:
    modules = [path for folder in TOP_FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert modules
    assert [path for path in modules if not (path.parent / "__init__.py").exists()] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # From a copy: setuptools leaves a build folder beside the sources, whose old files the next wheel would hold.
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*TOP_FOLDERS, "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


def test_wheel_holds_every_module_and_template(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        "cope_prep/" + path.relative_to(ROOT).as_posix()
        for folder in TOP_FOLDERS
        for path in (*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("templates/*"))
    }
    assert "cope_prep/jobs/dashboard/templates/report.html" in expected
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_wheel_runs_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    # -I and the unpacked wheel alone on the path before the environment's own packages.
    zipfile.ZipFile(wheel).extractall(tmp_path)
    script = (
        f"import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()];"
        f"sys.path.insert(0, {str(tmp_path)!r});"
        "import cope_prep.pipeline.extract as module; from cope_prep.jobs.cli import main;"
        "print(module.__file__); sys.argv = ['cope-prep', '--help']; main()"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.startswith(str(tmp_path)), done.stderr
    assert "inspect" in done.stdout
    assert done.returncode == 0


def test_editable_install_has_no_top_level_names() -> None:
    for name in TOP_FOLDERS:
        done = subprocess.run([sys.executable, "-I", "-c", f"import {name}"], capture_output=True, cwd="/")
        assert done.returncode != 0
