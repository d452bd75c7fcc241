"""A worker process is held to its memory: one that grows, one that asks for too much at once, one that inherits."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stage_work

from cope_prep.jobs import limits, worker
from cope_prep.jobs.executors import RayExecutor
from cope_prep.jobs.resources import DEFAULT_MEMORY_BYTES, MAX_MEMORY_BYTES, MIN_MEMORY_BYTES, Resources
from cope_prep.jobs.worker import Child, Done, Failure, perform, supervise
from cope_prep.jobs.worker_folder import remove_old_folders
from cope_prep.schemas.errors import MemoryLimitError

MIB = 1024**2
LIMIT = MIN_MEMORY_BYTES


def call(function: Callable[..., object], *arguments: object) -> bytes:
    return pickle.dumps(functools.partial(function, *arguments))


def run(child: Child, request: bytes, *, memory_bytes: int | None = LIMIT) -> Any:
    return pickle.loads(child.run(request, subject="video", time_limit_s=60, memory_bytes=memory_bytes))


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child()
    yield child
    child.stop()


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(worker, "_child", None)
    yield
    if worker._child is not None:
        worker._child.stop()


def test_process_that_grows_is_ended_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen_bytes: list[int] = []
    resident_bytes = limits.resident_bytes

    def noting(pid: int) -> int:
        seen_bytes.append(resident_bytes(pid))
        return seen_bytes[-1]

    monkeypatch.setattr(limits, "resident_bytes", noting)
    child = Child()
    # By 2 MiB: on a busy machine, too, the supervisor looks before the process meets the kernel's limit.
    with pytest.raises(MemoryLimitError, match=r"video: needs more memory than .* \(512 MiB\)"):
        run(child, call(stage_work.fill_memory, 2 * MIB, str(tmp_path / "video")))
    assert not child.alive
    # At the first look above the limit; and at most what the kernel grants.
    assert max(seen_bytes[:-1]) <= LIMIT < seen_bytes[-1] < 1.6 * LIMIT
    assert list(tmp_path.iterdir()) == [], "its half-written output stayed"


def test_absurd_allocation_fails_in_the_process_which_lives_on(child: Child) -> None:
    reply = run(child, call(stage_work.allocate, 64 * 1024 * MIB))
    assert isinstance(reply, Failure)
    assert (reply.error_class, reply.retriable, reply.traceback) == ("MemoryLimitError", False, "")
    assert "bug" not in reply.error_message
    assert "--memory-limit" in reply.error_message
    reply = run(child, call(stage_work.allocate, 100 * MIB))
    assert isinstance(reply, Done)


def test_error_made_of_refused_memory_is_the_limit(child: Child) -> None:
    reply = run(child, call(stage_work.decode_without_memory, "a.mp4"))
    assert isinstance(reply, Failure)
    assert reply.error_class == "MemoryLimitError"


def test_memory_error_without_a_limit_asks_for_a_larger_machine() -> None:
    reply = perform(call(stage_work.decode_without_memory, "a.mp4"), subject="a.mp4")
    assert isinstance(reply, Failure)
    assert reply.error_message == "a.mp4: needs more memory than there is. Use a larger machine."


def test_limit_counts_from_one_call_to_the_next(child: Child) -> None:
    """A call that may have more does not raise the next one's limit."""
    large = run(child, call(stage_work.allocate, 1024 * MIB), memory_bytes=4 * LIMIT)
    small = run(child, call(stage_work.allocate, 1024 * MIB))
    assert isinstance(large, Done)
    assert isinstance(small, Failure)


def test_process_full_of_an_earlier_call_is_replaced(no_child: None) -> None:
    def pid_after(request: bytes) -> int:
        reply = supervise(request, subject="video", time_limit_s=60, memory_bytes=LIMIT)
        return pickle.loads(reply).value

    first = pid_after(call(stage_work.pid))
    assert pid_after(call(stage_work.keep_in_memory, 300 * MIB)) == first
    assert pid_after(call(stage_work.pid)) != first


def test_process_writes_no_core_and_opens_few_files(child: Child) -> None:
    found = run(child, call(stage_work.limits)).value
    assert found["RLIMIT_CORE"] == 0
    assert found["RLIMIT_NOFILE"] == 1024
    assert LIMIT < found["RLIMIT_DATA"] < 2 * LIMIT


def test_folder_of_a_killed_supervisor_goes_with_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from cope_prep.jobs.worker import Child; c = Child(); print('up', flush=True); input()"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    with (
        subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment) as killed,
        subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment) as living,
    ):
        for supervisor in (killed, living):
            assert supervisor.stdout is not None
            assert supervisor.stdout.readline() == "up\n"
        assert len(list(tmp_path.iterdir())) == 2
        killed.kill()
        killed.wait()
        deadline_s = time.monotonic() + 20
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        while len(list(tmp_path.iterdir())) > 1 and time.monotonic() < deadline_s:
            remove_old_folders()
        assert len(list(tmp_path.iterdir())) == 1, "the folder of the one that lives is its own"
        living.kill()


def test_on_ray_calls_are_held_to_what_they_ask_for(ray_executor: RayExecutor, tmp_path: Path) -> None:
    """An ordinary call to the default; one that asks for more than any machine has is not left waiting."""
    asked = {
        "ordinary": Resources(),
        "large": Resources(memory_bytes=2 * DEFAULT_MEMORY_BYTES),
        "absurd": Resources(memory_bytes=2**50),
    }
    for token, (name, resources) in enumerate(asked.items()):
        request = call(stage_work.limits)
        ray_executor.submit(token, request, subject=name, time_limit_s=60, resources=resources)
    replies: dict[int, Any] = {}
    deadline_s = time.monotonic() + 60
    while len(replies) < len(asked) and time.monotonic() < deadline_s:
        replies |= dict(ray_executor.wait(0.5))
    held = [replies[token].value["RLIMIT_DATA"] for token in range(len(asked))]
    wanted = (DEFAULT_MEMORY_BYTES, 2 * DEFAULT_MEMORY_BYTES, MAX_MEMORY_BYTES)
    for limit_bytes, found in zip(wanted, held, strict=True):
        assert 1.5 * limit_bytes <= found < 1.5 * limit_bytes + LIMIT


def test_no_file_chooses_its_own_limit() -> None:
    """What the user allows holds, more or less than the file asks for; else no file gets more than 16 GiB."""
    gib = 1024**3
    for given, asked, allowed in (
        (8 * gib, 5 * gib // 2, 8 * gib),
        (1 * gib, 60 * gib, 1 * gib),
        (None, 1 * gib, 2 * gib),
        (None, 5 * gib, 5 * gib),
        (None, 60 * gib, 16 * gib),
    ):
        assert Resources(memory_bytes=asked).limit_bytes(given) == allowed


@pytest.mark.parametrize(
    ("given", "asked", "placed", "allowed"),
    [(None, 2200 * MIB, 1024 * MIB, 2200 * MIB), (600 * MIB, 5000 * MIB, 600 * MIB, 600 * MIB)],
)
def test_call_is_placed_where_it_fits_and_held_to_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, given: int | None, asked: int, placed: int, allowed: int
) -> None:
    """On nodes of 1 GiB, to which larger ones may be added."""
    ray = FakeRay()
    monkeypatch.setattr("cope_prep.jobs.executors.connect", lambda **_: ray)
    monkeypatch.setattr("cope_prep.jobs.executors.Gate", lambda _: ray)
    executor = RayExecutor(memory_bytes=given)
    executor.submit(0, b"", subject="v", time_limit_s=None, resources=Resources(memory_bytes=asked))
    assert (ray.asked["memory"], ray.asked["memory_bytes"]) == (placed, allowed)


class FakeRay:
    """A cluster of small nodes; notes what a task is submitted with."""

    name = "gate"

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 2.0, "memory": float(1024 * MIB)}}]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, *args: Any, **options: Any) -> Any:
        """Also of a task."""
        self.asked |= options
        return (lambda function: self) if not args else "ref"

    def options(self, **options: Any) -> Any:
        self.asked |= options
        return self
