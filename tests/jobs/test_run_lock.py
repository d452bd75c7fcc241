"""Two drivers on one dataset: the second refuses, whatever store and clocks; a dead one is in nobody's way."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cope_prep.jobs import run_lock
from cope_prep.jobs.run_lock import RunLocks
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.schemas.errors import RunLockedError, RunLockLostError

INTERVAL_S = 0.2
COMMAND = [sys.executable, "-c", "from cope_prep.jobs.cli import main; main()"]


@pytest.fixture(params=["local", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A stage's folder in a dataset, in a store that creates atomically and in one that may not."""
    monkeypatch.setattr(run_lock, "_SETTLE_S", 0.1)
    dataset = str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    return f"{dataset}/reencode/abc"


def lock_uri(output: str) -> str:
    return f"{output.removesuffix('/reencode/abc')}/locks/reencode-abc.json"


def locks(*outputs: str) -> RunLocks:
    return RunLocks(outputs, interval_s=INTERVAL_S)


def read(output: str) -> dict[str, Any]:
    return json.loads(storage.read_bytes(lock_uri(output)))


def write(output: str, **changes: object) -> dict[str, Any]:
    """A lock as a run on another machine leaves it, by a clock that is an hour ahead."""
    document = run_lock._description() | {
        "owner": "another",
        "host": "far-away",
        "boot_id": "another",
        "since_unix_s": time.time() + 3600,
        **changes,
    }
    storage.publish_bytes(lock_uri(output), json.dumps(document).encode())
    return document


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_second_run_refuses_and_says_who_has_it(output: str) -> None:
    with locks(output):
        with pytest.raises(RunLockedError, match=rf"process {os.getpid()}, since 20\d\d-.* UTC\)\. Wait"):
            locks(output).__enter__()
        assert read(output)["pid"] == os.getpid()
    with locks(output):
        pass
    assert not storage.exists(lock_uri(output))


def test_lock_goes_with_an_error_too(output: str) -> None:
    with pytest.raises(ZeroDivisionError), locks(output):
        raise ZeroDivisionError
    assert not storage.exists(lock_uri(output))


def test_other_outputs_are_free_and_all_or_none_are_taken(output: str) -> None:
    other = output.replace("reencode", "extract")
    with locks(other):
        with locks(output):
            pass
        with pytest.raises(RunLockedError, match="extract/abc: another run"):
            locks(output, other).__enter__()
        assert not storage.exists(lock_uri(output)), "what it had taken before it refused"


def test_run_on_another_machine_that_lives_is_left_alone(output: str) -> None:
    """Its clock is an hour ahead or behind: only its beat is looked at."""
    document = write(output)
    beats = iter(range(1, 10**6))

    def beat_once(seconds: float) -> None:
        write(output, **document | {"beat": next(beats)})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_lock.time, "sleep", beat_once)
        with pytest.raises(RunLockedError, match="on far-away, process"):
            locks(output).__enter__()
    assert read(output)["owner"] == "another"


@pytest.mark.parametrize("ahead_s", [3600, -3600])
def test_run_on_another_machine_that_is_dead_is_taken_over(output: str, ahead_s: float) -> None:
    write(output, since_unix_s=time.time() + ahead_s)
    start_s = time.monotonic()
    with locks(output):
        # Not before it had three intervals to show that it lives.
        assert time.monotonic() - start_s >= 3 * INTERVAL_S
        assert read(output)["pid"] == os.getpid()


def test_damaged_lock_is_taken_over(output: str) -> None:
    storage.publish_bytes(lock_uri(output), b"{half")
    with locks(output):
        assert read(output)["pid"] == os.getpid()


def test_dead_process_of_this_machine_is_taken_over_at_once(output: str) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    mine = run_lock._description()
    write(output, boot_id=mine["boot_id"], pid=process.pid)
    with RunLocks([output], interval_s=600):
        assert read(output)["pid"] == os.getpid()


def test_process_id_given_anew_is_not_the_owner(output: str) -> None:
    mine = run_lock._description()
    write(output, boot_id=mine["boot_id"], pid=os.getpid(), process_start=1)
    with RunLocks([output], interval_s=600):
        assert read(output)["owner"] != "another"


def test_two_that_take_over_at_once_leave_one(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another's write comes between ours and the look that follows: the last writer has it."""
    write(output)
    settle = run_lock._Lock._settle

    def other_writes_first(lock: run_lock._Lock) -> None:
        write(output, owner="third", host="elsewhere")
        settle(lock)

    monkeypatch.setattr(run_lock._Lock, "_settle", other_writes_first)
    with pytest.raises(RunLockedError, match="on elsewhere"):
        locks(output).__enter__()
    assert read(output)["owner"] == "third"


def test_owner_learns_that_it_was_taken_over_and_leaves_the_lock(output: str) -> None:
    held = locks(output)
    with held:
        held.check()

        def lose() -> None:
            while True:
                write(output)  # again, for a sign of life may just have been on its way
                time.sleep(0.05)
                held.check()

        with pytest.raises(RunLockLostError, match="a run on far-away"):
            lose()
    assert read(output)["owner"] == "another"


def test_owner_gives_signs_of_life_while_its_main_thread_is_busy(output: str) -> None:
    with locks(output):
        wait_until(lambda: read(output)["beat"] >= 3)


@pytest.fixture(scope="module")
def dataset(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-drivers")
    (folder / "clips").mkdir()
    for index in range(6):
        media.write_clip(folder / "clips" / f"{index}.mp4", num_frames=150, painter=media.moving)
    command = [*COMMAND, "manifest", "files", str(folder / "clips"), str(folder / "dataset")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "dataset"


def begin(dataset: Path) -> subprocess.Popen[str]:
    command = [*COMMAND, "reencode", str(dataset), "--no-ray", "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_second_driver_refuses_and_the_first_ends_right_also_after_a_kill(dataset: Path) -> None:
    first = begin(dataset)
    wait_until(lambda: bool(list(dataset.glob("reencode/*/[!.]*.mp4"))))
    second = begin(dataset)
    answer, stderr = second.communicate(timeout=60)
    assert second.returncode == 2, stderr
    assert json.loads(answer)["error"]["class"] == "RunLockedError"
    assert f"process {first.pid}" in stderr
    assert len(stderr.splitlines()) == 1
    assert first.poll() is None
    first.kill()
    first.communicate()
    assert list(dataset.glob("locks/*.json"))
    third = begin(dataset)
    answer, stderr = third.communicate(timeout=120)
    assert third.returncode == 0, stderr
    assert json.loads(answer)["stages"][0]["num_ok"] == 6
    assert not list(dataset.glob("locks/*.json"))
    layout = Layout(dataset=str(dataset), specs=Specs())
    assert len(storage.list_files(layout.folder("reencode"))) == 6 + 1  # and spec.json


def test_store_that_fails_for_a_moment_is_asked_again_to_create(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain write in its place would go over the lock of who was faster."""
    output = f"memory://{uuid.uuid4().hex}/reencode/abc"
    create, modes = MemoryFileSystem.pipe_file, []

    def failing(
        fs: MemoryFileSystem, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any
    ) -> None:
        modes.append(mode)
        if len(modes) < 3:
            raise OSError(errno.EBUSY, "Please reduce your request rate.")
        create(fs, path, value, mode=mode, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", failing)
    monkeypatch.setattr(run_lock, "_SETTLE_S", 0.1)
    with locks(output):
        assert modes == ["create"] * 3
        assert read(output)["pid"] == os.getpid()
