"""The stage runner: order, bounds, attempts and outcomes, first with a scripted executor, then on Ray."""

from __future__ import annotations

import functools
import logging
import math
import pickle
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import stage_work

from cope_prep.jobs.executors import InProcessExecutor, RayExecutor
from cope_prep.jobs.stage import Item, Outcome, run_items
from cope_prep.jobs.worker import Done, Failure, Reply


class ScriptedExecutor:
    """Performs one call per wait, first in first out, with a reply that the test may replace."""

    def __init__(self, *, capacity: int, replies: dict[str, list[Reply]] | None = None) -> None:
        self._capacity = capacity
        self._replies = replies or {}
        self._waiting: list[tuple[int, str, Any]] = []
        self.begun: list[str] = []
        self.most_in_flight = 0
        self.interrupt_at: int | None = None

    def submit(self, token: int, call: bytes, *, subject: str, **options: object) -> None:
        self._waiting.append((token, subject, pickle.loads(call)))
        self.begun.append(subject)
        self.most_in_flight = max(self.most_in_flight, len(self._waiting))

    def wait(self, timeout_s: float) -> list[tuple[int, Reply]]:
        if self.interrupt_at == len(self.begun):
            raise KeyboardInterrupt
        if not self._waiting:
            return []
        token, subject, call = self._waiting.pop(0)
        scripted = self._replies.get(subject)
        return [(token, scripted.pop(0) if scripted else Done(value=call(), wall_s=0.0, cpu_s=0.0))]

    def capacity(self) -> int:
        return self._capacity

    def parallel(self) -> int:
        return self._capacity

    def cancel(self) -> list[tuple[int, Reply]]:
        token, _, call = self._waiting[0]
        return [(token, Done(value=call(), wall_s=0.0, cpu_s=0.0))]

    def close(self) -> None: ...


def items(weights: dict[str, float]) -> list[Item[str]]:
    return [Item(subject=name, weight=weight, value=name) for name, weight in weights.items()]


def echo_call(value: object) -> functools.partial[object]:
    return functools.partial(stage_work.echo, value)


def died() -> Failure:
    return Failure(error_class="WorkerDiedError", error_message="killed", retriable=True)


def test_longest_goes_first() -> None:
    executor = ScriptedExecutor(capacity=2)
    weights = {f"v{index}": float((index * 37) % 11) for index in range(11)}
    run_items(items(weights), echo_call, executor=executor, emit=lambda outcome: None)
    assert executor.begun == sorted(weights, key=lambda name: -weights[name])


def test_in_flight_is_bounded_and_full() -> None:
    executor = ScriptedExecutor(capacity=3)
    outcomes: list[Outcome[str]] = []
    weights = {f"v{index}": 1.0 for index in range(20)}
    run_items(items(weights), echo_call, executor=executor, emit=outcomes.append)
    assert executor.most_in_flight == 3
    assert Counter(outcome.item.value for outcome in outcomes) == Counter(weights)


def test_worker_death_is_tried_again_before_the_rest() -> None:
    executor = ScriptedExecutor(capacity=1, replies={"a": [died(), died()]})
    outcomes: list[Outcome[str]] = []
    run_items(items({"a": 3.0, "b": 2.0, "c": 1.0}), echo_call, executor=executor, emit=outcomes.append)
    assert executor.begun == ["a", "a", "a", "b", "c"]
    assert [(outcome.item.subject, outcome.attempts) for outcome in outcomes] == [
        ("a", 3),
        ("b", 1),
        ("c", 1),
    ]


def test_worker_death_every_time_fails_the_item_only() -> None:
    executor = ScriptedExecutor(capacity=1, replies={"a": [died(), died(), died(), died()]})
    outcomes: list[Outcome[str]] = []
    run_items(items({"a": 3.0, "b": 2.0}), echo_call, executor=executor, emit=outcomes.append)
    assert [(outcome.item.subject, outcome.attempts) for outcome in outcomes] == [("a", 3), ("b", 1)]
    assert isinstance(outcomes[0].reply, Failure)
    assert isinstance(outcomes[1].reply, Done)


def test_error_of_the_function_is_final() -> None:
    error = Failure(error_class="CorruptVideoError", error_message="no frame", retriable=False)
    executor = ScriptedExecutor(capacity=1, replies={"a": [error]})
    outcomes: list[Outcome[str]] = []
    run_items(items({"a": 1.0}), echo_call, executor=executor, emit=outcomes.append)
    assert executor.begun == ["a"]
    assert outcomes[0].reply == error


def test_bug_is_logged_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def break_down(name: str) -> functools.partial[None]:
        return functools.partial(stage_work.break_down, "same")

    outcomes: list[Outcome[str]] = []
    with caplog.at_level(logging.ERROR, logger="cope_prep"):
        run_items(items({"a": 1.0, "b": 1.0}), break_down, executor=InProcessExecutor(), emit=outcomes.append)
    assert len(outcomes) == 2
    assert len(caplog.records) == 1
    assert "in break_down" in caplog.text


def test_interrupt_stops_submitting_and_keeps_what_had_ended() -> None:
    executor = ScriptedExecutor(capacity=2)
    executor.interrupt_at = 4
    outcomes: list[Outcome[str]] = []
    weights = {f"v{index}": 10.0 - index for index in range(9)}
    with pytest.raises(KeyboardInterrupt):
        run_items(items(weights), echo_call, executor=executor, emit=outcomes.append)
    assert executor.begun == ["v0", "v1", "v2", "v3"]
    assert [outcome.item.subject for outcome in outcomes] == ["v0", "v1", "v2"]


def test_ticks_while_it_runs() -> None:
    ticks: list[int] = []
    run_items(
        items({"a": 1.0, "b": 1.0}),
        echo_call,
        executor=InProcessExecutor(),
        emit=lambda outcome: None,
        tick=lambda: ticks.append(1),
    )
    assert len(ticks) == 2


def by_subject(outcomes: list[Outcome[Any]]) -> dict[str, Outcome[Any]]:
    assert len({outcome.item.subject for outcome in outcomes}) == len(outcomes)
    return {outcome.item.subject: outcome for outcome in outcomes}


def test_on_ray_every_kind_of_end(ray_executor: RayExecutor, tmp_path: Path) -> None:
    partial = functools.partial
    calls = {
        "good": partial(stage_work.echo, 7),
        "bad": partial(stage_work.reject, "bad"),
        "bug": partial(stage_work.break_down, "oops"),
        "killer": partial(stage_work.die, str(tmp_path / "killer")),
        "crasher": partial(stage_work.die, str(tmp_path / "crasher"), signal.SIGSEGV),
        "unlucky": partial(stage_work.die_until, str(tmp_path / "unlucky"), 2),
        "preempted": partial(stage_work.kill_ray_worker_until, str(tmp_path / "preempted"), 2),
        "hung": partial(stage_work.hang),
    } | {f"filler {index}": partial(stage_work.echo, index) for index in range(20)}
    outcomes: list[Outcome[Any]] = []
    run_items(
        [Item(subject=name, weight=1.0, value=call) for name, call in calls.items()],
        lambda call: call,
        executor=ray_executor,
        emit=outcomes.append,
        time_limit_s=3.0,
    )
    ends = by_subject(outcomes)
    assert ends.keys() == calls.keys()
    classes = {
        name: outcome.reply.error_class
        for name, outcome in ends.items()
        if isinstance(outcome.reply, Failure)
    }
    assert classes == {
        "bad": "CorruptVideoError",
        "bug": "ZeroDivisionError",
        "killer": "WorkerDiedError",
        "crasher": "WorkerDiedError",
        "hung": "TimeLimitError",
    }
    attempts = {name: outcome.attempts for name, outcome in ends.items() if outcome.attempts > 1}
    assert attempts == {"killer": 3, "crasher": 3, "unlucky": 2, "preempted": 2}
    assert (tmp_path / "killer").stat().st_size == 3
    killer = ends["killer"].reply
    assert isinstance(killer, Failure)
    assert killer.error_message.startswith("killer: its worker process was killed by SIGKILL")


def test_on_ray_processes_are_kept(ray_executor: RayExecutor) -> None:
    """Heavy imports happen once: many tasks, as many processes as CPUs."""
    outcomes: list[Outcome[int]] = []
    run_items(
        [Item(subject=str(index), weight=1.0, value=index) for index in range(60)],
        lambda index: functools.partial(stage_work.pid),
        executor=ray_executor,
        emit=outcomes.append,
    )
    pids = {outcome.reply.value for outcome in outcomes if isinstance(outcome.reply, Done)}
    assert len(outcomes) == 60
    assert 1 <= len(pids) <= 3


def test_on_ray_interrupt_cleans_up(ray_executor: RayExecutor, tmp_path: Path) -> None:
    """As many half-written files as tasks run: after the interrupt there is none."""
    tasks = 6
    calls = [
        functools.partial(
            stage_work.write_forever, str(tmp_path / f"{index}.mp4"), str(tmp_path / f"started-{index}")
        )
        for index in range(tasks)
    ]

    def interrupt_when_two_run() -> None:
        if len(list(tmp_path.glob("started-*"))) >= 2:
            assert list(tmp_path.glob(".tmp-*"))
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    outcomes: list[Outcome[Any]] = []
    with pytest.raises(KeyboardInterrupt):
        run_items(
            [Item(subject=str(index), weight=1.0, value=call) for index, call in enumerate(calls)],
            lambda call: call,
            executor=ray_executor,
            emit=outcomes.append,
            tick=interrupt_when_two_run,
        )
    assert outcomes == []
    assert not list(tmp_path.glob(".tmp-*"))
    assert not list(tmp_path.glob("*.mp4"))


def test_on_ray_capacity_follows_the_cluster(ray_executor: RayExecutor) -> None:
    assert ray_executor.capacity() == 8
    assert ray_executor.parallel() == 2


def test_one_worker_has_calls_in_store_and_runs_none_side_by_side(
    ray_executor: RayExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with --workers 1, and on a machine of one CPU."""
    monkeypatch.setattr(ray_executor._nodes, "_counted_s", math.inf)
    monkeypatch.setattr(ray_executor._nodes, "_num_cpus", 1.0)
    for workers in (1, None):
        monkeypatch.setattr(ray_executor, "_workers", workers)
        assert (ray_executor.capacity(), ray_executor.parallel()) == (8, 1)
