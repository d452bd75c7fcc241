"""The makespan benchmark's quick form: both ways give the same files, and its figures are there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_makespan.py"


def test_split_and_whole_give_the_same_files(tmp_path: Path) -> None:
    size = ["--long-s", "200", "--short", "3", "--short-s", "3", "--rounds", "1"]
    command = [sys.executable, str(SCRIPT), "--quick", *size, "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["same_bytes"] is True
    (row,) = result["rows"]
    assert row["whole"].keys() == row["split"].keys() == {"makespan_s", "cpu_s", "to_ideal"}
