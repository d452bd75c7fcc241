"""Patient writing: when it is tried, for how long, and what is said; by a clock that stands still between calls."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cope_prep.pipeline import patience
from cope_prep.pipeline.patience import PatientFlush
from cope_prep.schemas.errors import StorageError


class Store:
    """Refuses until a time of its own clock, at which it notes every attempt."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.fails_until_s = 0.0
        self.attempts_s: list[float] = []
        clock = SimpleNamespace(monotonic=lambda: self.now_s, sleep=self.wait)
        monkeypatch.setattr(patience, "time", clock)

    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    def write(self) -> None:
        self.attempts_s.append(self.now_s)
        if self.now_s < self.fails_until_s:
            raise StorageError("/store", "is full")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    return Store(monkeypatch)


def patient(store: Store, *, patience_s: float = 60.0) -> PatientFlush:
    return PatientFlush(store.write, patience_s=patience_s, keeping="the rows")


def test_writes_every_two_seconds_and_at_once_if_it_is_much(store: Store) -> None:
    flush = patient(store)
    for _ in range(10):
        store.wait(0.5)
        flush.if_due()
    assert store.attempts_s == [2.0, 4.0]
    flush.if_due(is_much=True)
    assert store.attempts_s == [2.0, 4.0, 5.0]
    store.wait(1.5)
    flush.if_due()
    assert len(store.attempts_s) == 3, "the two seconds begin anew"


def test_failure_is_tried_again_and_said_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    flush = patient(store)
    store.fails_until_s = 7.0
    for _ in range(9):
        store.wait(1.0)
        flush.if_due(is_much=True)
    assert store.attempts_s == [1.0, 3.0, 5.0, 7.0, 8.0, 9.0], (
        "much is no reason to ask a full disk more often"
    )
    assert [record.getMessage() for record in caplog.records] == [
        "/store: is full; keeping the rows, and trying again for 60 s"
    ]


def test_gives_up_after_its_patience(store: Store) -> None:
    flush = patient(store, patience_s=10.0)
    store.fails_until_s = 1e9
    store.wait(2.0)

    def go_on() -> None:
        while True:
            flush.if_due()
            store.wait(0.5)

    with pytest.raises(StorageError, match="is full"):
        go_on()
    assert store.now_s == 14.0


def test_patience_begins_anew_after_a_success(store: Store) -> None:
    flush = patient(store, patience_s=10.0)
    for _ in range(5):
        store.fails_until_s = store.now_s + 9.0
        for _ in range(12):
            store.wait(1.0)
            flush.if_due()
    assert len(store.attempts_s) > 20


@pytest.mark.parametrize(("stopped", "until_s"), [(False, 60.0), (True, 2.0)])
def test_end_of_a_stopped_run_is_short(store: Store, stopped: bool, until_s: float) -> None:
    flush = patient(store)
    store.fails_until_s = 1e9
    with pytest.raises(StorageError, match="is full"):
        flush.at_end(stopped=stopped)
    assert store.now_s == until_s


def test_end_waits_for_room(store: Store) -> None:
    flush = patient(store)
    store.fails_until_s = 30.0
    flush.at_end(stopped=False)
    assert store.now_s == 30.0
    assert len(store.attempts_s) == 61
