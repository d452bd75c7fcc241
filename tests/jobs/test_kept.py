"""What the dashboard keeps for all sessions, when two of them ask at the same time."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

pytest.importorskip("streamlit")
from cope_prep.jobs.dashboard import kept
from cope_prep.jobs.dashboard.kept import Keeper
from cope_prep.pipeline.layout import Layout, Specs


class Overtaken:
    """An entry that another session fills between a first look at it and a second."""

    def __init__(self) -> None:
        self.lock, self.num_looks = threading.Lock(), 0
        self.versions: Sequence[str] = ("first",)
        self.checked_s = self.made_s = self.cost_s = 0.0

    @property
    def kept(self) -> kept.Kept[str] | None:
        self.num_looks += 1
        return None if self.num_looks == 1 else kept.Kept(value="theirs", made_unix_s=0.0, is_behind=False)


def test_a_keeper_survives_another_session_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Overtaken()
    monkeypatch.setattr(kept, "_Entry", lambda: entry)
    keeper = Keeper(lambda layout: "ours", versions=lambda layout: ("first",), clock=lambda: 0.0)
    assert keeper.get(Layout(dataset="d", specs=Specs())).value == "theirs"
    assert entry.num_looks > 1
    assert not entry.lock.locked()
