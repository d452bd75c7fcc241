"""What becomes of a call that a node could not begin, or that no node has the memory for any more."""

from __future__ import annotations

import functools
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stage_work
from fake_ray import GIB, FakeRay, NodeDiedError, RayTaskError, RuntimeEnvSetupError, done

from cope_prep.jobs import executors, nodes
from cope_prep.jobs.executors import RayExecutor
from cope_prep.jobs.resources import Resources
from cope_prep.jobs.stage import Item, Outcome, run_items
from cope_prep.jobs.worker import Done, Failure
from cope_prep.schemas.errors import ConfigurationError

HERE = Path(__file__).parent
MISSING = ("bare", "bare-host: ModuleNotFoundError: No module named 'cope_prep'")
NO_WHEEL = RuntimeEnvSetupError("Failed to set up runtime environment.\nNo space left on device")

Open = Callable[..., tuple[RayExecutor, FakeRay]]


@pytest.fixture
def open_executor(monkeypatch: pytest.MonkeyPatch) -> Open:
    """Make an executor on a scripted cluster; no call waits before it is submitted again."""
    monkeypatch.setattr(executors, "_LONGEST_PAUSE_S", 0.0)

    def open_on(
        answer: Callable[[int, dict[str, Any]], Any], *, nodes: dict[str, int] | None = None
    ) -> tuple[RayExecutor, FakeRay]:
        ray = FakeRay(answer, nodes=nodes or {"good": GIB, "bare": GIB})
        monkeypatch.setattr(executors, "connect", lambda **_: ray)
        monkeypatch.setattr(executors, "Gate", lambda _: ray)
        return RayExecutor(address="head:6379"), ray

    return open_on


def run(executor: RayExecutor, *names: str) -> list[Outcome[None]]:
    outcomes: list[Outcome[None]] = []
    run_items(
        [Item(subject=name, weight=1.0, value=None) for name in names],
        lambda _: functools.partial(str, "done"),
        executor=executor,
        emit=outcomes.append,
    )
    return outcomes


@pytest.mark.parametrize(
    "answer",
    [MISSING, NO_WHEEL, RayTaskError("The function failed to import on the worker\nNo module named x")],
)
def test_node_that_can_begin_nothing_fails_no_call(
    open_executor: Open, caplog: pytest.LogCaptureFixture, answer: object
) -> None:
    """The other one has work that takes longer than it takes the bare node to say no, nine times."""

    def answers(number: int, asked: dict[str, Any]) -> object:
        if number == 0:
            return done() if len(ray.submitted) > 10 else None
        return answer if 0 < number < 10 or number == 11 else done()

    executor, ray = open_executor(answers)
    ray.visitors = True
    outcomes = run(executor, "a", "b")
    assert [(type(end.reply), end.attempts) for end in outcomes] == [(Done, 1)] * 2
    assert len(ray.submitted) > 10
    run(executor, "c")
    assert len(caplog.messages) <= 1


@pytest.mark.parametrize("answer", [MISSING, NO_WHEEL])
def test_node_is_named_once_while_others_work(
    open_executor: Open, caplog: pytest.LogCaptureFixture, answer: object
) -> None:
    """Also if it was the first one to answer."""
    executor, ray = open_executor(lambda number, asked: answer if number in (0, 2, 3) else done())
    assert isinstance(run(executor, "a")[0].reply, Done)
    assert caplog.messages == []
    assert isinstance(run(executor, "b")[0].reply, Done)
    assert len(ray.submitted) == 5
    (message,) = caplog.messages
    assert message.endswith("no call can begin there, other nodes get them")
    assert "bare-host" in message or "No space left" in message


def test_cluster_without_cope_prep_is_said_at_once(open_executor: Open) -> None:
    executor, ray = open_executor(
        lambda number, asked: MISSING if number % 2 else ("good", MISSING[1]),
    )
    with pytest.raises(ConfigurationError) as caught:
        run(executor, "a", "b", "c")
    assert str(caught.value) == (
        "--address head:6379: no node there can begin a call (bare-host: ModuleNotFoundError: No module named"
        " 'cope_prep'). Install this cope-prep on every node, or give --wheel."
    )
    assert len(ray.submitted) == 3, "no second attempt"


def test_wheel_that_reaches_no_node_ends_the_run(open_executor: Open) -> None:
    executor, ray = open_executor(lambda number, asked: NO_WHEEL)
    with pytest.raises(
        ConfigurationError, match=r"no node there can begin a call \(No space left on device\)"
    ):
        run(executor, "a")
    assert len(ray.submitted) == nodes._HOPELESS_TIMES


def test_node_that_comes_first_ends_no_run_that_others_begin(open_executor: Open) -> None:
    """Ten refusals before the first call of the run ends, which a good node has long begun."""
    executor, ray = open_executor(lambda number, asked: NO_WHEEL if number < 10 else done())
    ray.visitors = True
    assert isinstance(run(executor, "a")[0].reply, Done)


def test_call_that_no_node_can_begin_any_more_is_tried_by_the_next_run(open_executor: Open) -> None:
    """The good nodes are gone. After many attempts it is a row, of a class that the next run tries again."""
    executor, ray = open_executor(lambda number, asked: done() if number == 0 else MISSING)
    run(executor, "a")
    reply = run(executor, "b")[0].reply
    assert isinstance(reply, Failure)
    assert (reply.error_class, reply.traceback) == ("WorkerLostError", "")
    assert reply.error_message == (
        "b: its node could not begin it (bare-host: ModuleNotFoundError: No module named 'cope_prep'). Is this"
        " cope-prep installed on every node? Else give --wheel."
    )
    assert len(ray.submitted) == 1 + 3 * (executors.NODE_LOSSES + 1)


def test_error_of_a_ray_worker_is_not_the_videos(open_executor: Open) -> None:
    text = "ray::supervise_on_node() (pid={}, ip=10.0.0.7)\n  File x\nOSError: [Errno 5] Input/output error"
    executor, _ = open_executor(lambda number, asked: RayTaskError(text.format(number)))
    replies = [end.reply for end in run(executor, "a", "b")]
    assert [getattr(reply, "error_class", "") for reply in replies] == ["WorkerLostError"] * 2
    assert {getattr(reply, "traceback", "").splitlines()[0] for reply in replies} == {
        "ray::supervise_on_node() "
    }


def test_what_fails_to_begin_does_not_disturb_the_end(open_executor: Open) -> None:
    """A run that is stopped gets what has ended, though every node says that it can begin nothing."""
    answers = [MISSING, ("good", MISSING[1]), NO_WHEEL, done("first"), NodeDiedError("gone"), done("last")]
    executor, ray = open_executor(lambda number, asked: answers[number])
    for token in range(len(answers)):
        executor.submit(token, b"", subject=f"v{token}", time_limit_s=None)
    ended = executor.cancel()
    assert [(token, reply.value) for token, reply in ended if isinstance(reply, Done)] == [
        (3, "first"),
        (5, "last"),
    ]
    assert len(ray.submitted) == len(answers)
    assert executor.drain() is False
    assert executor.wait(0) == []


def test_call_that_waits_for_a_node_holds_up_no_end(
    open_executor: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it keep the driver busy while it waits for the other calls to end."""
    monkeypatch.setattr(executors, "_CANCEL_S", 0.05)
    executor, ray = open_executor(lambda number, asked: MISSING if number == 0 else None)
    executor.submit(0, b"", subject="a", time_limit_s=None)
    executor.submit(1, b"", subject="b", time_limit_s=None)
    assert executor.wait(5.0) == []
    ray.timeouts_s.clear()
    assert executor.cancel() == []
    assert ray.timeouts_s
    assert min(ray.timeouts_s) > 0
    assert len(ray.submitted) == 2


def test_call_whose_node_died_asks_for_what_there_is_now(
    open_executor: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_COUNT_INTERVAL_S", -1.0)

    def answers(number: int, asked: dict[str, Any]) -> object:
        if number == 0:
            ray.nodes_bytes = {"small": 4 * GIB}
            return NodeDiedError("the large one")
        return done()

    executor, ray = open_executor(answers, nodes={"small": 4 * GIB, "large": 16 * GIB})
    executor.submit(0, b"", subject="v", time_limit_s=None, resources=Resources(memory_bytes=8 * GIB))
    assert executor.wait(0) == []
    assert [token for token, _ in executor.wait(0)] == [0]
    assert [asked["memory"] for asked in ray.submitted] == [8 * GIB, 4 * GIB]
    assert [asked["memory_bytes"] for asked in ray.submitted] == [8 * GIB, 8 * GIB], "the limit stays"


def test_call_that_no_node_is_large_enough_for_any_more_is_asked_for_again(
    open_executor: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nodes, "_COUNT_INTERVAL_S", -1.0)
    executor, ray = open_executor(
        lambda number, asked: done() if number == 2 else None, nodes={"small": 4 * GIB, "large": 16 * GIB}
    )
    executor.submit(0, b"", subject="v", time_limit_s=None, resources=Resources(memory_bytes=8 * GIB))
    executor.submit(1, b"", subject="w", time_limit_s=None)
    ray.nodes_bytes = {"small": 4 * GIB}
    assert executor.wait(0) == []
    assert len(ray.submitted) == 2, "an autoscaler gets the time to bring another one"
    ray.nodes_bytes = {}
    monkeypatch.setattr(executors, "_SHRUNK_S", 0.0)
    assert executor.wait(0) == []
    assert len(ray.submitted) == 2, "no node at all: it may bring any"
    ray.nodes_bytes = {"small": 4 * GIB}
    assert [token for token, _ in executor.wait(0)] == [0]
    assert [asked.get("memory") for asked in ray.submitted] == [8 * GIB, None, 4 * GIB]
    assert ray.withdrawn == [ray.submitted[0]["submission"]]
    assert caplog.messages == ["v: no node has 8.0 GiB any more; it goes where most is"]


def test_on_ray_a_withdrawn_task_does_nothing(ray_executor: RayExecutor, tmp_path: Path) -> None:
    """Both CPUs are taken while it is withdrawn. What the gate does not know runs as ever."""
    finish = tmp_path / "finish"

    def write(name: str) -> bytes:
        paths = (str(tmp_path / f"{name}.mp4"), str(tmp_path / f"started-{name}"), str(finish))
        return pickle.dumps(functools.partial(stage_work.write_until, *paths))

    small = Resources(memory_bytes=2**20)
    for token, name in enumerate(("a", "b")):
        ray_executor.submit(token, write(name), subject=name, time_limit_s=60)
    for token, name in ((2, "withdrawn"), (3, "c")):
        ray_executor.submit(token, write(name), subject=name, time_limit_s=60, resources=small)
    (submission,) = (
        running.submission for running in ray_executor._running.values() if running.subject == "withdrawn"
    )
    assert ray_executor._gate is not None
    assert submission is not None
    ray_executor._gate.withdraw(submission)
    finish.touch()
    ended: dict[int, Any] = {}
    for _ in range(240):
        ended |= dict(ray_executor.wait(0.5))
        if len(ended) == 3 and not ray_executor._running:
            break
    assert sorted(ended) == [0, 1, 3]
    assert ray_executor._gate.has_visitors()
    assert not (tmp_path / "started-withdrawn").exists()


@pytest.mark.parametrize(
    ("where", "error", "outcomes"),
    [
        ("alone", "no node there can begin a call (bare-node: ModuleNotFoundError: no cope_prep here)", []),
        ("beside", "", [[f"v{index}", "Done", 1] for index in range(6)]),
    ],
)
def test_on_a_cluster_with_a_bare_node(tmp_path: Path, where: str, error: str, outcomes: object) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, str(HERE / "bare_node.py"), str(tmp_path), where],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert error in found["error"]
    assert found["outcomes"] == outcomes
    assert bool(found["error"]) == bool(error)
