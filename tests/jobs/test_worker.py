"""The process that may die alone: what comes back, how it ends, and that it leaves nothing behind."""

from __future__ import annotations

import errno
import functools
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import stage_work

from cope_prep.jobs import worker
from cope_prep.jobs.worker import Child, Done, Failure, StoppedError, perform, supervise
from cope_prep.schemas.errors import TimeLimitError, WorkerDiedError


def call(function: Callable[..., object], *arguments: object) -> bytes:
    return pickle.dumps(functools.partial(function, *arguments))


def wait_until(condition: Callable[[], bool], *, what: str) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s, f"waited 20 s for: {what}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child()
    yield child
    child.stop()


def run(child: Child, request: bytes, *, time_limit_s: float | None = None) -> object:
    return pickle.loads(child.run(request, subject="video", time_limit_s=time_limit_s))


def test_perform_returns_the_value_and_its_cost() -> None:
    reply = perform(call(stage_work.echo, 7))
    assert isinstance(reply, Done)
    assert reply.value == 7
    assert reply.wall_s >= 0


def test_perform_turns_our_error_into_its_text() -> None:
    reply = perform(call(stage_work.reject, "a.mp4"))
    assert isinstance(reply, Failure)
    assert reply.error_class == "CorruptVideoError"
    assert reply.error_message == "a.mp4: holds no frame. Download it again."
    assert not reply.retriable
    assert not reply.traceback


def test_perform_asks_to_report_any_other_error() -> None:
    reply = perform(call(stage_work.break_down, "oops"))
    assert isinstance(reply, Failure)
    assert reply.error_class == "ZeroDivisionError"
    assert "ZeroDivisionError: oops at stage_work.py:" in reply.error_message
    assert "this is a bug in cope-prep: please report it" in reply.error_message
    assert "Traceback" in reply.traceback


def test_perform_calls_a_storage_error_worth_another_attempt(tmp_path: Path) -> None:
    reply = perform(call(stage_work.fail_storage, str(tmp_path / "n")))
    assert isinstance(reply, Failure)
    assert reply.retriable


def test_child_serves_many_calls(child: Child) -> None:
    replies = [run(child, call(stage_work.pid)) for _ in range(5)]
    assert [reply.value for reply in replies if isinstance(reply, Done)] == [child.pid] * 5


def test_child_survives_an_exception(child: Child) -> None:
    assert isinstance(run(child, call(stage_work.break_down, "x")), Failure)
    assert isinstance(run(child, call(stage_work.echo, 1)), Done)


def test_child_is_one_thread_wide(child: Child) -> None:
    reply = run(child, call(stage_work.environment, "OMP_NUM_THREADS"))
    assert isinstance(reply, Done)
    assert (reply.value, reply.node) == ("1", socket.gethostname())


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_death_is_reported_with_its_signal(tmp_path: Path, name: str) -> None:
    child = Child()
    with pytest.raises(WorkerDiedError, match=f"video: its worker process was killed by {name}"):
        child.run(
            call(stage_work.die, str(tmp_path / "n"), getattr(signal, name)),
            subject="video",
            time_limit_s=None,
        )


def test_process_that_leaves_is_reported_with_its_status() -> None:
    child = Child()
    with pytest.raises(WorkerDiedError, match="left with exit status 3"):
        child.run(call(os._exit, 3), subject="video", time_limit_s=None)


def test_time_limit_ends_a_call_that_ignores_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_GRACE_S", 0.2)
    child = Child()
    with pytest.raises(TimeLimitError, match=r"video: was not done after 0\.3 s"):
        child.run(call(stage_work.hang), subject="video", time_limit_s=0.3)
    assert not is_alive(child.pid)


def test_time_limit_leaves_no_temporary_file(tmp_path: Path) -> None:
    child = Child()
    run(child, call(stage_work.echo, 1))  # on a busy machine its imports alone may take longer than the limit
    request = call(stage_work.write_forever, str(tmp_path / "out.mp4"), str(tmp_path / "started"))
    with pytest.raises(TimeLimitError):
        child.run(request, subject="video", time_limit_s=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["started"]


def test_private_temporary_folder_goes_with_the_process(tmp_path: Path) -> None:
    child = Child()
    reply = run(child, call(stage_work.environment, "TMPDIR"))
    assert isinstance(reply, Done)
    assert os.path.isdir(reply.value)
    with pytest.raises(WorkerDiedError):
        child.run(call(stage_work.die, str(tmp_path / "n")), subject="video", time_limit_s=None)
    assert not os.path.exists(reply.value)


def test_child_dies_with_its_supervisor() -> None:
    code = (
        "from cope_prep.jobs.worker import Child; import time; print(Child().pid, flush=True); time.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        assert is_alive(pid)
        supervisor.kill()
    wait_until(lambda: not is_alive(pid), what="the child's end")


def test_supervise_starts_a_new_child_after_a_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_child", None)
    request = call(stage_work.die, str(tmp_path / "n"))
    failure = pickle.loads(supervise(request, subject="video", time_limit_s=None))
    assert (failure.error_class, failure.retriable) == ("WorkerDiedError", True)
    assert failure.node == socket.gethostname()
    reply = pickle.loads(supervise(call(stage_work.echo, 1), subject="video", time_limit_s=None))
    assert reply.value == 1
    assert worker._child is not None
    worker._child.stop()


def fail_to_start(*arguments: object, **options: object) -> NoReturn:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


@pytest.fixture
def no_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the temporary folders of the children that `supervise` starts; none is there yet."""
    monkeypatch.setattr(worker, "_child", None)
    monkeypatch.setattr(worker, "_failed_starts", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    if worker._child is not None:
        worker._child.stop()


@pytest.mark.parametrize("what", ["tempfile.mkdtemp", "subprocess.Popen"])
def test_node_that_cannot_start_a_process_is_not_the_videos_fault(
    no_child: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(worker, "_LONGEST_START_PAUSE_S", 0.0)
    request = call(stage_work.echo, 1)
    num_open = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as full:
        full.setattr(what, fail_to_start)
        failure = pickle.loads(supervise(request, subject="video", time_limit_s=None))
    assert (failure.error_class, failure.retriable) == ("WorkerLostError", True)
    assert "video: its worker process could not be started" in failure.error_message
    assert "Cannot allocate memory" in failure.error_message
    assert list(no_child.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == num_open
    assert pickle.loads(supervise(request, subject="video", time_limit_s=None)).value == 1


def test_node_that_cannot_start_a_process_leaves_the_work_to_others(
    no_child: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not answer at once, but a run that is stopped does not wait for it."""
    monkeypatch.setattr(worker, "_failed_starts", 10_000)
    monkeypatch.setattr(subprocess, "Popen", fail_to_start)
    questions: list[int] = []

    def is_stopped() -> bool:
        questions.append(1)
        return len(questions) == 3

    reply = supervise(call(stage_work.echo, 1), subject="video", time_limit_s=None, is_stopped=is_stopped)
    assert pickle.loads(reply).error_class == "StoppedError"


def test_child_that_does_not_get_ready_is_given_up(no_child: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its packages lie on a disk that does not answer."""
    monkeypatch.setattr(worker, "_START", "import time; time.sleep(600)")
    monkeypatch.setattr(worker, "_START_S", 0.3)
    monkeypatch.setattr(worker, "_LONGEST_START_PAUSE_S", 0.0)
    failure = pickle.loads(supervise(call(stage_work.echo, 1), subject="video", time_limit_s=None))
    assert (failure.error_class, failure.retriable) == ("WorkerLostError", True)
    assert "its process was not ready after 0.3 s" in failure.error_message
    assert list(no_child.iterdir()) == []


def test_stopped_run_does_not_wait_for_a_child_to_get_ready(
    no_child: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_START", "import time; time.sleep(600)")
    reply = supervise(call(stage_work.echo, 1), subject="v", time_limit_s=None, is_stopped=lambda: True)
    assert pickle.loads(reply).error_class == "StoppedError"
    assert list(no_child.iterdir()) == []


def test_signal_while_a_child_gets_ready_leaves_none(no_child: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_START", "import time; time.sleep(600)")
    started: list[subprocess.Popen[Any]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[Any]:
        started.append(popen(*arguments, **options))
        return started[0]

    def interrupt() -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(KeyboardInterrupt):
        supervise(call(stage_work.echo, 1), subject="v", time_limit_s=None, is_stopped=interrupt)
    assert not is_alive(started[0].pid)
    assert list(no_child.iterdir()) == []


@pytest.mark.parametrize("how", ["stop", "time limit"])
def test_process_that_no_kill_ends_is_left(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """It waits for a disk that does not answer (state D). Without a bound its supervisor would wait as long."""
    monkeypatch.setattr(worker, "_GRACE_S", 0.05)
    monkeypatch.setattr(worker, "_KILL_S", 0.05)
    child = Child()
    waits: list[float | None] = []

    def wait(timeout: float | None = None) -> int:
        waits.append(timeout)
        if timeout is None:
            pytest.fail("waits without limit")
        raise subprocess.TimeoutExpired("child", timeout)

    with monkeypatch.context() as stuck:
        stuck.setattr(child._process, "wait", wait)
        if how == "stop":
            child.stop()
        else:
            with pytest.raises(TimeLimitError):
                child.run(call(stage_work.hang), subject="v", time_limit_s=0.1)
    assert waits == [0.05, 0.05]
    child._process.wait()


def load_from_nowhere() -> bytes:
    """A call as the driver of another version has it."""
    return call(stage_work.echo, 1).replace(b"echo", b"gone")


def test_call_that_cannot_be_loaded_is_not_the_videos_fault() -> None:
    reply = perform(load_from_nowhere(), subject="video")
    assert isinstance(reply, Failure)
    assert (reply.error_class, reply.retriable, reply.traceback) == ("WorkerLostError", True, "")
    assert reply.not_begun.startswith(f"{socket.gethostname()}: AttributeError: ")
    assert reply.error_message.startswith(f"video: its node could not begin it ({reply.not_begun})")
    failed = perform(call(stage_work.fail_attribute), subject="video")
    assert isinstance(failed, Failure)
    assert (failed.error_class, failed.retriable, failed.not_begun) == ("AttributeError", False, "")


def test_node_that_cannot_load_calls_leaves_the_work_to_others(
    no_child: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not answer at once; the process that could not is replaced, for the installation may be mended."""
    monkeypatch.setattr(worker, "_LONGEST_START_PAUSE_S", 0.0)
    failure = pickle.loads(supervise(load_from_nowhere(), subject="video", time_limit_s=None))
    assert failure.not_begun
    assert worker._failed_starts == 1
    assert worker._child is None
    assert list(no_child.iterdir()) == []
    monkeypatch.setattr(worker, "_LONGEST_START_PAUSE_S", 600.0)
    stops = iter([False, True])
    stopped = supervise(
        load_from_nowhere(), subject="v", time_limit_s=None, is_stopped=lambda: next(stops, True)
    )
    assert pickle.loads(stopped).error_class == "StoppedError"
    assert pickle.loads(supervise(call(stage_work.echo, 1), subject="v", time_limit_s=None)).value == 1
    assert worker._failed_starts == 0


def test_stopped_call_leaves_no_temporary_file(tmp_path: Path) -> None:
    child = Child()
    started = tmp_path / "started"
    request = call(stage_work.write_forever, str(tmp_path / "out.mp4"), str(started))
    with pytest.raises(StoppedError):
        child.run(request, subject="video", time_limit_s=None, is_stopped=started.exists)
    assert not is_alive(child.pid)
    assert [path.name for path in tmp_path.iterdir()] == ["started"]


def test_signal_to_the_supervisor_stops_its_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_child", None)
    started = tmp_path / "started"

    def interrupt() -> None:
        wait_until(started.exists, what="the child to write")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    request = call(stage_work.write_forever, str(tmp_path / "out.mp4"), str(started))
    with pytest.raises(KeyboardInterrupt):
        supervise(request, subject="video", time_limit_s=None)
    thread.join()
    assert worker._child is None
    assert [path.name for path in tmp_path.iterdir()] == ["started"]
