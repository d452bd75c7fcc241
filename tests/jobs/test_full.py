"""Full: the dataset's disk (a small tmpfs), and Ray's object store. The job ends in order, and can be completed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
COMMAND = [sys.executable, "-c", "from cope_prep.jobs.cli import main; main()"]
NUM_CLIPS = 6


def run(*arguments: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run([*COMMAND, *arguments, "--json"], capture_output=True, text=True, timeout=240)
    return done.returncode, json.loads(done.stdout), done.stderr


@contextlib.contextmanager
def small_disk(folder: Path, *, size_bytes: int) -> Iterator[Path]:
    """A folder with so much room."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(folder)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def outputs(dataset: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in dataset.glob("reencode/*/*.mp4")}


def test_full_disk_then_room_gives_the_same_dataset(media: ModuleType, tmp_path: Path) -> None:
    clips, undisturbed = tmp_path / "clips", tmp_path / "undisturbed"
    clips.mkdir()
    for index in range(NUM_CLIPS):
        media.write_clip(clips / f"{index}.mp4", num_frames=90 + index, painter=media.moving)
    flags = ("--no-ray", "--preset", "ultrafast")
    assert run("manifest", "files", str(clips), str(undisturbed))[0] == 0
    assert run("reencode", str(undisturbed), *flags)[0] == 0
    wanted = outputs(undisturbed)
    assert len(wanted) == NUM_CLIPS
    # Room for three of them, and for the tables beside them: a fourth one does not fit.
    size_bytes = int(3.6 * max(map(len, wanted.values()))) + 30_000
    with small_disk(tmp_path / "disk", size_bytes=size_bytes) as disk:
        assert run("manifest", "files", str(clips), str(disk))[0] == 0
        code, answer, stderr = run("reencode", str(disk), *flags)
        assert code == 1, stderr
        failures = answer["stages"][0]["failures"]
        assert {failure["error_class"] for failure in failures} == {"StorageError"}
        assert "No space left" in failures[0]["error_message"]
        assert "Traceback" not in stderr
        there = outputs(disk)
        assert 0 < len(there) == NUM_CLIPS - len(failures)
        assert there.items() <= wanted.items(), "what is there is whole"

        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        code, answer, stderr = run("reencode", str(disk), *flags, "--retry-failed")
        assert code == 0, stderr
        assert outputs(disk) == wanted
        assert [path for path in disk.rglob(".tmp-*") if path.is_file()] == []
        assert answer["stages"][0]["num_run"] == len(failures)


def test_full_object_store_does_not_stop_a_job() -> None:
    """The smallest store that Ray allows, filled by somebody else; calls and replies that do not fit a message."""
    done = subprocess.run(
        [sys.executable, str(HERE / "fill_store.py")],
        env=os.environ | {"PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["held_bytes"] >= found["store_bytes"], "the store was not full"
    assert found["ends"] == {"small": ["Done"] * 20, "large": ["Done"] * 20}
    assert found["same"], "a large reply is not what was sent"
