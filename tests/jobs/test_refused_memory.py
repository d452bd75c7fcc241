"""Who refused a call its memory: its limit, each time, or the machine, which may have it at another time."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import stage_work

from cope_prep.jobs.executors import InProcessExecutor
from cope_prep.jobs.stage import Item, Outcome, run_items
from cope_prep.jobs.worker import Child, Done, Failure, perform

MIB = 2**20
LIMIT = 512 * MIB


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child()
    yield child
    child.stop()


def run(child: Child, function: Callable[..., object], *arguments: object) -> Any:
    call = pickle.dumps(functools.partial(function, *arguments))
    return pickle.loads(child.run(call, subject="video", time_limit_s=60, memory_bytes=LIMIT))


def test_machine_that_has_less_than_the_limit_is_worth_another_attempt(child: Child) -> None:
    reply = run(child, stage_work.allocate_on_a_small_machine, 300 * MIB, 100 * MIB)
    assert isinstance(reply, Failure)
    assert (reply.error_class, reply.retriable, reply.memory_limit_bytes) == ("WorkerDiedError", True, None)
    assert "video: was refused memory by the machine (MemoryError: )" in reply.error_message
    assert "of 512 MiB in use. Use fewer --workers; look at ulimit -v" in reply.error_message


def test_more_than_the_limit_is_refused_by_the_limit(child: Child) -> None:
    reply = run(child, stage_work.allocate, 64 * 1024 * MIB)
    assert isinstance(reply, Failure)
    assert (reply.error_class, reply.retriable, reply.memory_limit_bytes) == (
        "MemoryLimitError",
        False,
        LIMIT,
    )
    assert isinstance(run(child, stage_work.allocate, 300 * MIB), Done), (
        "what the question took is given back"
    )


@pytest.mark.parametrize("as_storage", [False, True])
def test_read_that_found_no_memory_is_worth_another_attempt(child: Child, as_storage: bool) -> None:
    """A limit refuses a process its allocations, and no read of a file or socket."""
    reply = run(child, stage_work.read_without_memory, "video", as_storage)
    assert isinstance(reply, Failure)
    assert (reply.error_class, reply.retriable) == ("WorkerDiedError", True)
    assert "Cannot allocate memory" in reply.error_message


class Held(InProcessExecutor):
    """Has a limit, as workers do."""

    def wait(self, timeout_s: float) -> list[tuple[int, Any]]:
        if not self._submitted:
            return []
        token, call = self._submitted.pop(0)
        return [(token, perform(call, subject="video", memory_bytes=1024 * LIMIT))]


def test_refusal_is_final_after_three_attempts() -> None:
    outcomes: list[Outcome[None]] = []
    run_items(
        [Item(subject="video", weight=1.0, value=None)],
        lambda _: functools.partial(stage_work.read_without_memory, "video", False),
        executor=Held(),
        emit=outcomes.append,
    )
    (outcome,) = outcomes
    assert (getattr(outcome.reply, "error_class", ""), outcome.attempts) == ("WorkerDiedError", 3)
