"""The whole command on Ray, stopped in the middle: by Ctrl-C, by SIGTERM, by SIGKILL. A second run completes it.

The commands run as processes of their own, like a user's. The first starts its own Ray; the others join the
Ray of the test session, which is what `--address` is for, and saves the time of starting one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from cope_prep.pipeline.layout import Layout, find_specs
from cope_prep.pipeline.ledger import Ledger, rows_of

if TYPE_CHECKING:
    from cope_prep.jobs.executors import RayExecutor

NUM_CLIPS = 16
COMMAND = [sys.executable, "-c", "from cope_prep.jobs.cli import main; main()"]


@pytest.fixture(scope="module")
def clips(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for index in range(NUM_CLIPS):
        media.write_clip(folder / f"clip{index:02d}.mp4", num_frames=200 + index, painter=media.moving)
    return folder


@pytest.fixture
def dataset(clips: Path, tmp_path: Path) -> Path:
    dataset = tmp_path / "dataset"
    subprocess.run([*COMMAND, "manifest", "files", str(clips), str(dataset)], check=True, capture_output=True)
    return dataset


@pytest.fixture
def address(ray_executor: RayExecutor) -> str:
    import ray

    return ray.get_runtime_context().gcs_address


def begin(dataset: Path, *flags: str) -> subprocess.Popen[str]:
    # A process group of its own, like a job in a terminal.
    return subprocess.Popen(
        [*COMMAND, "reencode", str(dataset), "--json", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def outputs(dataset: Path) -> list[Path]:
    return sorted(dataset.glob("reencode/*/[!.]*.mp4"))


def temporaries(dataset: Path) -> list[Path]:
    return [path for path in dataset.rglob(".tmp-*") if path.is_file()]


def stop_in_the_middle(dataset: Path, process: subprocess.Popen[str], signum: int) -> tuple[str, str]:
    wait_until(lambda: len(outputs(dataset)) >= 3 or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    if signum == signal.SIGINT:
        os.killpg(process.pid, signum)  # Ctrl-C reaches all that runs in the foreground: Ray's processes too
    else:
        os.kill(process.pid, signum)
    return process.communicate(timeout=60)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def recorded(dataset: Path) -> Counter[str]:
    (specs,) = find_specs(str(dataset), "reencode")
    rows = rows_of(Ledger(Layout(dataset=str(dataset), specs=specs).ledger("reencode")).read())
    return Counter(row.video_id for row in rows if row.status == "ok")


def complete(dataset: Path, address: str) -> int:
    """Run again, check that the whole is there once, and return how many videos this run had to do."""
    process = begin(dataset, "--address", address)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    summary = json.loads(stdout)["stages"][0]
    assert summary["num_ok"] == NUM_CLIPS
    assert len(outputs(dataset)) == NUM_CLIPS
    assert recorded(dataset) == Counter(f"clip{index:02d}.mp4" for index in range(NUM_CLIPS))
    return summary["num_run"]


def test_ctrl_c_then_again_loses_and_doubles_nothing(dataset: Path, address: str) -> None:
    process = begin(dataset, "--workers", "2")
    stdout, stderr = stop_in_the_middle(dataset, process, signal.SIGINT)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "run the same command again to go on" in stderr
    assert json.loads(stdout)["error"]["class"] == "Interrupted"
    assert temporaries(dataset) == []
    num_outputs, num_recorded = len(outputs(dataset)), len(recorded(dataset))
    assert 3 <= num_recorded <= num_outputs < NUM_CLIPS
    assert complete(dataset, address) == NUM_CLIPS - num_recorded
    assert temporaries(dataset) == []


def test_sigterm_is_as_orderly_as_ctrl_c(dataset: Path, address: str) -> None:
    process = begin(dataset, "--address", address)
    _, stderr = stop_in_the_middle(dataset, process, signal.SIGTERM)
    assert process.returncode == 143, stderr
    assert temporaries(dataset) == []
    num_recorded = len(recorded(dataset))
    assert num_recorded >= 3
    assert complete(dataset, address) == NUM_CLIPS - num_recorded


def test_killed_driver_loses_no_video(dataset: Path, address: str) -> None:
    process = begin(dataset, "--address", address)
    stop_in_the_middle(dataset, process, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    complete(dataset, address)
