"""The stage runner with calls that go on as several, ask for memory, or meet a store that fails."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import Any

import pytest
import stage_work

from cope_prep.jobs import stage
from cope_prep.jobs.executors import InProcessExecutor, RayExecutor
from cope_prep.jobs.resources import ORDINARY, Resources
from cope_prep.jobs.stage import Item, Outcome, run_items
from cope_prep.jobs.worker import Done, Failure, Reply, perform
from cope_prep.pipeline.split import Unfit

Call = functools.partial[Any]


@pytest.fixture(autouse=True)
def usual_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COPE_PREP_STORE_PATIENCE_S", raising=False)


STORE = Failure(error_class="StorageError", error_message="answers 503", retriable=True, wall_s=1.0)
DIED = Failure(error_class="WorkerDiedError", error_message="was killed", retriable=True)
LOST = Failure(error_class="WorkerLostError", error_message="its node is gone", retriable=True)
REFUSED = Failure(error_class="StoreRefusedError", error_message="answers 403", retriable=True)
CORRUPT = Failure(error_class="CorruptVideoError", error_message="no frame", retriable=False)


class ParallelExecutor:
    """Performs the oldest call at each wait, unless the test has a reply for what the call does."""

    def __init__(
        self, *, capacity: int = 4, parallel: int = 2, replies: dict[str, list[Reply]] | None = None
    ) -> None:
        self._capacity = capacity
        self._parallel = parallel
        self._replies = replies or {}
        self._waiting: list[tuple[int, Call]] = []
        self.begun: list[str] = []
        self.resources: list[Resources] = []
        self.is_over = False

    def submit(self, token: int, call: bytes, *, resources: Resources = ORDINARY, **options: object) -> None:
        self._waiting.append((token, pickle.loads(call)))
        self.begun.append(name_of(self._waiting[-1][1]))
        self.resources.append(resources)

    def wait(self, timeout_s: float) -> list[tuple[int, Reply]]:
        if not self._waiting:
            if self.is_over:
                raise KeyboardInterrupt
            return []
        token, call = self._waiting.pop(0)
        scripted = self._replies.get(name_of(call))
        reply = scripted.pop(0) if scripted else perform(pickle.dumps(call))
        return [
            (token, reply if not isinstance(reply, Done) else Done(value=reply.value, wall_s=1.0, cpu_s=0.5))
        ]

    def capacity(self) -> int:
        return self._capacity

    def parallel(self) -> int:
        return self._parallel

    def cancel(self) -> list[tuple[int, Reply]]:
        return []

    def close(self) -> None:
        pass


class Clock:
    """Stands for the module `time`: it goes on only while somebody sleeps."""

    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds + 1e-3


def name_of(call: Call) -> str:
    """`split long`, `echo 3`: the function, and its first argument."""
    return f"{call.func.__name__} {call.args[0]}"


def echo(value: object) -> Call:
    return functools.partial(stage_work.echo, value)


def long_item(*parts: Call, is_fit: bool = True) -> Item[Call]:
    call = functools.partial(stage_work.split, "long", list(parts), is_fit=is_fit)
    return Item(subject="long", weight=100.0, value=call)


def short_items(count: int) -> list[Item[Call]]:
    return [Item(subject=f"s{index}", weight=1.0, value=echo(f"s{index}")) for index in range(count)]


def run(items: list[Item[Call]], executor: Any, **options: Any) -> dict[str, Outcome[Call]]:
    outcomes: list[Outcome[Call]] = []
    run_items(items, lambda call: call, executor=executor, emit=outcomes.append, **options)
    assert len({outcome.item.subject for outcome in outcomes}) == len(outcomes) == len(items)
    return {outcome.item.subject: outcome for outcome in outcomes}


def value_of(outcome: Outcome[Call]) -> Any:
    assert isinstance(outcome.reply, Done)
    return outcome.reply.value


def test_parts_go_before_what_is_not_begun_and_are_joined_in_order() -> None:
    executor = ParallelExecutor(capacity=2)
    ends = run([*short_items(5), long_item(*map(echo, range(4)))], executor)
    assert value_of(ends["long"]) == ("long", [0, 1, 2, 3])
    # One short item was submitted beside the long one, before anybody knew, and one beside the last part.
    assert executor.begun == [
        "split long",
        "echo s0",
        *(f"echo {part}" for part in range(4)),
        "echo s1",
        "join long",
        *(f"echo s{index}" for index in range(2, 5)),
    ]
    reply = ends["long"].reply
    assert (reply.wall_s, reply.cpu_s, ends["long"].attempts) == (6.0, 3.0, 1)


def test_part_whose_worker_died_is_run_again_alone() -> None:
    executor = ParallelExecutor(replies={"echo 1": [DIED, DIED]})
    ends = run([long_item(*map(echo, range(3)))], executor)
    assert value_of(ends["long"]) == ("long", [0, 1, 2])
    assert ends["long"].attempts == 3
    assert executor.begun.count("echo 1") == 3
    assert executor.begun.count("echo 0") == executor.begun.count("split long") == 1


def test_part_that_fails_ends_the_item_once() -> None:
    executor = ParallelExecutor(capacity=2, replies={"echo 1": [CORRUPT]})
    ends = run([long_item(*map(echo, range(6))), *short_items(3)], executor)
    reply = ends["long"].reply
    assert isinstance(reply, Failure)
    assert reply.error_class == "CorruptVideoError"
    assert "echo 5" not in executor.begun  # what had not begun was forgotten
    assert not any(name.startswith("join") for name in executor.begun)


def test_unfit_part_leads_to_one_piece_when_the_others_have_ended() -> None:
    executor = ParallelExecutor(capacity=2)
    parts = [echo(0), echo(Unfit(reason="damage")), echo(2), echo(3), echo(4), echo(5)]
    ends = run([long_item(*parts)], executor)
    assert value_of(ends["long"]) == ("long", "damage")
    assert executor.begun[-1] == "whole long"
    assert "echo 5" not in executor.begun


def test_parts_that_do_not_fit_together_lead_to_one_piece() -> None:
    ends = run([long_item(echo(0), echo(1), is_fit=False)], ParallelExecutor())
    assert value_of(ends["long"]) == ("long", "the parts differ")


@pytest.mark.parametrize("executor", [InProcessExecutor(), ParallelExecutor(capacity=8, parallel=1)])
def test_nothing_is_split_where_nothing_runs_side_by_side(executor: Any) -> None:
    ends = run([long_item(echo(0), echo(1))], executor)
    assert value_of(ends["long"]) == ("long", None)


def test_memory_is_asked_for_once_and_given() -> None:
    executor = ParallelExecutor()
    ends = run(
        [Item(subject="8k", weight=1.0, value=functools.partial(stage_work.ask_for_memory, 5 << 30))],
        executor,
    )
    assert value_of(ends["8k"]) == "had it"
    assert [resources.memory_bytes for resources in executor.resources] == [None, 5 << 30]


def test_store_that_fails_is_asked_again_later_and_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = ParallelExecutor(capacity=1, replies={"echo s0": [STORE, STORE, STORE]})
    clock = Clock()
    monkeypatch.setattr(stage, "time", clock)
    ends = run(short_items(4), executor, pauses_s=(20.0, 10.0, 10.0))
    assert clock.now_s >= 0.75 * (20 + 10 + 10)
    assert value_of(ends["s0"]) == "s0"
    assert ends["s0"].attempts == 4
    assert executor.begun.count("echo s0") == 4
    assert set(executor.begun[:4]) == {"echo s0", "echo s1", "echo s2", "echo s3"}


def test_store_that_keeps_failing_is_an_outcome() -> None:
    executor = ParallelExecutor(replies={"echo s0": [STORE] * 9})
    ends = run(short_items(2), executor, pauses_s=(0.01, 0.01))
    reply = ends["s0"].reply
    assert isinstance(reply, Failure)
    assert (reply.error_class, ends["s0"].attempts) == ("StorageError", 3)


def test_what_the_store_refuses_is_not_asked_for_again() -> None:
    executor = ParallelExecutor(replies={"echo s0": [REFUSED]})
    ends = run(short_items(2), executor, pauses_s=(1000.0,))
    assert (ends["s0"].reply, ends["s0"].attempts) == (REFUSED, 1)
    assert executor.begun == ["echo s0", "echo s1"]


@pytest.mark.parametrize("is_lifted", [True, False])
def test_held_run_ends_what_it_began_and_goes_on_if_that_lifts_it(is_lifted: bool) -> None:
    """Held after the first end: the other one in flight, which its store failed once, decides."""
    executor = ParallelExecutor(capacity=2, replies={"echo s1": [STORE]})
    outcomes: list[Outcome[Call]] = []
    run_items(
        short_items(5),
        lambda call: call,
        executor=executor,
        emit=outcomes.append,
        is_held=lambda: len(outcomes) == 1 or (len(outcomes) == 2 and not is_lifted),
        pauses_s=(0.01,),
    )
    assert executor.begun[:3] == ["echo s0", "echo s1", "echo s1"]
    assert [outcome.item.subject for outcome in outcomes] == [
        f"s{index}" for index in range(5 if is_lifted else 2)
    ]


def test_deaths_and_a_failing_store_are_counted_apart() -> None:
    executor = ParallelExecutor(replies={"echo s0": [STORE, DIED, STORE, DIED]})
    ends = run(short_items(1), executor, pauses_s=(0.01, 0.01))
    assert value_of(ends["s0"]) == "s0"


def test_lost_workers_are_not_held_against_a_call() -> None:
    """One death beside them is not three: the next run tries the item again, and no quarantine holds it."""
    one = ParallelExecutor(replies={"echo s0": [LOST, DIED, LOST, DIED]})
    assert value_of(run(short_items(1), one)["s0"]) == "s0"
    for scripted, wanted in (
        ([DIED, LOST, LOST, LOST], "WorkerLostError"),
        ([LOST] + [DIED] * 3, "WorkerDiedError"),
    ):
        reply = run(short_items(1), ParallelExecutor(replies={"echo s0": [*scripted]}))["s0"].reply
        assert isinstance(reply, Failure)
        assert reply.error_class == wanted


def test_store_that_fails_everything_is_not_asked_for_everything() -> None:
    """The first pauses last: only so many more items are begun as would be in flight."""
    executor = ParallelExecutor(capacity=2, replies={f"echo s{index}": [STORE] for index in range(50)})

    seen: list[int] = []

    def tick() -> None:
        seen.append(len(executor.begun))
        if len(seen) == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(short_items(50), executor, pauses_s=(100.0,), tick=tick)
    assert seen[15:] == [seen[-1]] * 15
    assert seen[-1] <= 10


def test_end_of_the_run_is_noticed_while_all_calls_pause() -> None:
    """Another run has taken the lock, say: the executor says so when it is asked."""
    executor = ParallelExecutor(replies={"echo s0": [STORE]})

    def tick() -> None:
        executor.is_over = True

    with pytest.raises(KeyboardInterrupt):
        run(short_items(1), executor, pauses_s=(1000.0,), tick=tick)


def test_end_of_the_run_is_noticed_when_its_last_calls_have_ended() -> None:
    """A preemption notice came while they ran: whoever called is not to plan the next stage, or write an index."""
    executor = ParallelExecutor()
    outcomes: list[Outcome[Call]] = []

    def tick() -> None:
        executor.is_over = True

    with pytest.raises(KeyboardInterrupt):
        run_items(short_items(2), lambda call: call, executor=executor, emit=outcomes.append, tick=tick)
    assert [value_of(outcome) for outcome in outcomes] == ["s0", "s1"]


def test_on_ray_parts_die_and_join(ray_executor: RayExecutor, tmp_path: Path) -> None:
    parts = [
        echo(0),
        functools.partial(stage_work.die_until, str(tmp_path / "part"), 2),
        functools.partial(stage_work.pid),
    ]
    ends = run([long_item(*parts), *short_items(3)], ray_executor)
    name, values = value_of(ends["long"])
    assert (name, values[:2], ends["long"].attempts) == ("long", [0, "done"], 2)
    assert {value_of(ends[f"s{index}"]) for index in range(3)} == {"s0", "s1", "s2"}
