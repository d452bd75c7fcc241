"""The fuzz harnesses: what they once found stays fixed, and a minute each of looking for more.

COPE_PREP_FUZZ_S: seconds for each harness (60); 0 to leave them out. `make fuzz` is for hours.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
HARNESSES = ["fuzz_decode_gop", "fuzz_manifest", "fuzz_mix", "fuzz_npy_zst", "fuzz_tar"]
FUZZ_S = int(os.environ.get("COPE_PREP_FUZZ_S", "60"))
FINDINGS = sorted(
    path.relative_to(HERE / "corpus") for path in (HERE / "corpus").rglob("*") if path.is_file()
)


@pytest.fixture(scope="module")
def harnesses() -> dict[str, ModuleType]:
    sys.path.insert(0, str(HERE))  # in pytest's importlib mode helpers are on no search path
    return {name: importlib.import_module(name) for name in HARNESSES}


def test_no_harness_is_left_out() -> None:
    assert sorted(path.stem for path in HERE.glob("fuzz_*.py")) == HARNESSES
    assert {path.parent.name for path in FINDINGS} <= set(HARNESSES)


@pytest.mark.parametrize("name", HARNESSES)
def test_seeds_pass(harnesses: dict[str, ModuleType], name: str) -> None:
    seeds = harnesses[name].seeds()
    assert len(seeds) >= 3
    for seed in seeds:
        harnesses[name].one_input(seed)


@pytest.mark.parametrize("finding", FINDINGS, ids=str)
def test_finding_stays_fixed(harnesses: dict[str, ModuleType], finding: Path) -> None:
    harnesses[finding.parent.name].one_input((HERE / "corpus" / finding).read_bytes())


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this Python"
)
@pytest.mark.skipif(FUZZ_S == 0, reason="COPE_PREP_FUZZ_S is 0")
@pytest.mark.timeout(600 + FUZZ_S)
def test_a_minute_each_finds_nothing(tmp_path: Path) -> None:
    with ThreadPoolExecutor(len(HARNESSES)) as pool:
        for name, (status, log) in zip(
            HARNESSES, pool.map(lambda name: _fuzz(name, tmp_path), HARNESSES), strict=True
        ):
            assert status == 0, f"{name} found something:\n{log[-6000:]}"
            done = re.search(r"Done (\d+) runs", log)
            assert done, log[-2000:]
            assert int(done[1]) > FUZZ_S, f"{name} ran only {done[1]} inputs"


def _fuzz(name: str, folder: Path) -> tuple[int, str]:
    """Run a harness; (exit status, what it printed). The finding itself is at the end, in base 64."""
    command = [
        *(sys.executable, str(HERE / f"{name}.py"), str(folder / name)),
        *(str(known) for known in (HERE / "corpus" / name,) if known.is_dir()),
        *(f"-max_total_time={FUZZ_S}", f"-artifact_prefix={folder}/{name}-"),
    ]
    done = subprocess.run(command, capture_output=True, cwd=folder, check=False)
    return done.returncode, done.stderr.decode(errors="replace")
