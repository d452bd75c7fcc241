"""A job that is shot at: the soak of benchmarks/soak.py, whole."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soak.py"
NUM_CLIPS = 300


@pytest.mark.timeout(1800)
def test_what_is_killed_leaves_no_trace_in_the_dataset() -> None:
    folder = Path(tempfile.mkdtemp(prefix="soak-", dir="/tmp"))  # a socket's path has 107 characters at most
    try:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(folder / "s"), "--clips", str(NUM_CLIPS), "--every", "3"],
            capture_output=True,
            text=True,
            timeout=1700,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = json.loads(done.stdout)
    assert found["same_bytes"] == dict.fromkeys(found["same_bytes"], True)
    assert found["videos_verified"] == NUM_CLIPS
    assert found["temporary_files_after_gc"] == 0
    assert sum(found["kills"].values()) >= 4  # else nothing was proven
