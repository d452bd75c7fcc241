"""What is taken away on notice: the driver, a Ray worker, a whole node. Nothing is lost, doubled or half there."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import stage_work

from cope_prep.jobs import executors
from cope_prep.jobs.executors import RayExecutor
from cope_prep.jobs.stage import Item, Outcome, run_items
from cope_prep.jobs.worker import Done

HERE = Path(__file__).parent
NUM_TICKS_OF_WORD = 6
"""For the word to reach the workers: what begins before it arrives has the rest of the time, as the others do."""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_drained_run_ends_what_it_can_and_begins_nothing(
    ray_executor: RayExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two CPUs, eight calls: of the two that run one ends in the time it gets, the other one is stopped."""
    monkeypatch.setattr(executors, "DRAIN_S", 9.0)
    calls = {
        name: functools.partial(
            stage_work.write_until,
            str(tmp_path / f"{name}.mp4"),
            str(tmp_path / f"started-{name}"),
            str(tmp_path / f"finish-{name}"),
        )
        for name in map(str, range(8))
    }
    answers: list[bool] = []
    running: list[str] = []

    num_ticks_after = 0

    def drain_when_two_run() -> None:
        nonlocal num_ticks_after
        started = [path.name.removeprefix("started-") for path in tmp_path.glob("started-*")]
        if len(started) >= 2 and not answers:
            running.extend(started)
            answers.extend([ray_executor.drain(), ray_executor.drain()])
        elif answers:
            num_ticks_after += 1
            if num_ticks_after == NUM_TICKS_OF_WORD:
                (tmp_path / f"finish-{running[0]}").touch()

    outcomes: list[Outcome[Any]] = []
    with pytest.raises(KeyboardInterrupt):
        run_items(
            [Item(subject=name, weight=1.0, value=call) for name, call in calls.items()],
            lambda call: call,
            executor=ray_executor,
            emit=outcomes.append,
            tick=drain_when_two_run,
        )
    assert answers == [True, False], "the second notice is for the caller, who then stops at once"
    assert len(running) == 2, "as many as there are CPUs"
    ended, stopped = running
    ends = [(end.item.subject, end.reply.value) for end in outcomes if isinstance(end.reply, Done)]
    assert ends == [(ended, "done")]
    assert len(outcomes) == 1, "what was stopped is no failure"
    assert names(tmp_path) == {f"started-{ended}", f"started-{stopped}", f"finish-{ended}", f"{ended}.mp4"}
    assert (tmp_path / f"{ended}.mp4").read_bytes() == b"whole"
    assert ray_executor.capacity() == 8, "the next run of this executor is not drained"


@pytest.mark.parametrize(("work", "num_ended"), [("write_until", 2), ("split_until", 0)])
def test_drained_run_with_work_left_is_interrupted_when_nothing_runs(
    ray_executor: RayExecutor, tmp_path: Path, work: str, num_ended: int
) -> None:
    """Also if the last calls ended with more to do; what has not begun stays so."""
    calls = {
        name: functools.partial(
            getattr(stage_work, work),
            str(tmp_path / f"{name}.mp4"),
            str(tmp_path / f"started-{name}"),
            str(tmp_path / "finish"),
        )
        for name in map(str, range(10))
    }

    drained: list[bool] = []
    num_ticks_after = 0

    def drain_when_two_run() -> None:
        nonlocal num_ticks_after
        if drained:
            num_ticks_after += 1
            if num_ticks_after == NUM_TICKS_OF_WORD:
                (tmp_path / "finish").touch()
        elif len(list(tmp_path.glob("started-*"))) >= 2:
            drained.append(ray_executor.drain())

    outcomes: list[Outcome[Any]] = []
    with pytest.raises(KeyboardInterrupt):
        run_items(
            [Item(subject=name, weight=1.0, value=call) for name, call in calls.items()],
            lambda call: call,
            executor=ray_executor,
            emit=outcomes.append,
            tick=drain_when_two_run,
        )
    assert drained == [True]
    assert [type(outcome.reply) for outcome in outcomes] == [Done] * num_ended
    assert len(list(tmp_path.glob("started-*"))) == 2


def test_drained_run_whose_last_calls_end_in_time_is_interrupted(
    ray_executor: RayExecutor, tmp_path: Path
) -> None:
    """Nothing is left of it, but its caller would go on to the next stage."""
    drained: list[bool] = []

    def drain_when_it_runs() -> None:
        if drained:
            (tmp_path / "finish").touch()
        elif (tmp_path / "started").exists():
            drained.append(ray_executor.drain())

    call = functools.partial(
        stage_work.write_until, *(str(tmp_path / name) for name in ("a.mp4", "started", "finish"))
    )
    outcomes: list[Outcome[Any]] = []
    with pytest.raises(KeyboardInterrupt):
        run_items(
            [Item(subject="a", weight=1.0, value=call)],
            lambda call: call,
            executor=ray_executor,
            emit=outcomes.append,
            tick=drain_when_it_runs,
        )
    assert drained == [True]
    assert [type(outcome.reply) for outcome in outcomes] == [Done]
    assert (tmp_path / "a.mp4").read_bytes() == b"whole"


def test_ray_worker_that_gets_sigterm_cleans_up_and_its_call_is_tried_again(
    ray_executor: RayExecutor, tmp_path: Path
) -> None:
    outcomes: list[Outcome[Any]] = []
    call = functools.partial(
        stage_work.write_and_lose, str(tmp_path / "out.mp4"), str(tmp_path / "count"), signal.SIGTERM
    )
    run_items(
        [Item(subject="video", weight=1.0, value=call)],
        lambda call: call,
        executor=ray_executor,
        emit=outcomes.append,
    )
    assert [type(outcome.reply) for outcome in outcomes] == [Done]
    assert outcomes[0].attempts == 2
    assert names(tmp_path) == {"out.mp4", "count"}
    assert (tmp_path / "out.mp4").read_bytes() == b"whole"


def test_calls_of_a_preempted_node_run_elsewhere_and_it_is_not_their_fault(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, str(HERE / "lose_node.py"), str(tmp_path)],
        env=environment | {"PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert sorted(found["outcomes"]) == [["a", "Done", 1], ["b", "Done", 1]]
    assert found["num_first_pids"] == 1
    assert found["still_alive"] == []
    assert {path.name for path in tmp_path.glob("[!.]*")} == {"started", "finish", "a.mp4", "b.mp4"}
    assert {path.read_bytes() for path in tmp_path.glob("[ab].mp4")} == {b"whole"}
