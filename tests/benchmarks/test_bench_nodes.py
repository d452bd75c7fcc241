"""The benchmark of several nodes leaves none of them behind when it is stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts, in no package
from ray_nodes import descendants

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PATIENCE_S = 120.0


def command_line(pid: int) -> str:
    """Empty of a process that has ended, also while nobody has asked how."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def test_sigterm_stops_its_nodes() -> None:
    process = subprocess.Popen(
        [sys.executable, str(BENCHMARKS / "bench_nodes.py"), "--clips", "2", "--rounds", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    nodes: dict[int, str] = {}
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        while not any("raylet" in line for line in nodes.values()):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
            nodes = {pid: command_line(pid) for pid in descendants(process.pid)}
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 143, said
        assert [line for pid, line in nodes.items() if line and command_line(pid) == line] == []
        folders = {found[0] for line in nodes.values() if (found := re.search(r"/tmp/nodes-\w+", line))}
        assert len(folders) == 1
        assert not Path(*folders).exists()
    finally:
        process.kill()
        for pid, line in nodes.items():
            if line and command_line(pid) == line:
                os.kill(pid, signal.SIGKILL)
