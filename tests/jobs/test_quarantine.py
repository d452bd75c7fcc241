"""Quarantine: what kills its worker is tried once, by no spec again, until somebody or something lets it out."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from failing_videos import OTHER_SPECS, ledger_rows, run, write_dataset
from typer.testing import CliRunner

from cope_prep.jobs.cli import app
from cope_prep.jobs.held import HeldVideos
from cope_prep.jobs.planning import StageOptions
from cope_prep.jobs.status import dataset_status
from cope_prep.pipeline import patience, storage
from cope_prep.pipeline import quarantine as quarantine_module
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.ledger import Ledger
from cope_prep.pipeline.quarantine import Quarantine, QuarantineEntry
from cope_prep.schemas.errors import StorageError

POISONED = {"good": "good", "poison": "WorkerDiedError", "slow": "TimeLimitError", "bad": "CorruptVideoError"}


def invoke(*arguments: str) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def held(dataset: str) -> list[str]:
    return [
        video["video_id"] for video in json.loads(invoke("quarantine", dataset, "--json").stdout)["videos"]
    ]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """After a first run."""
    layout = write_dataset(tmp_path, POISONED)
    run(layout)
    return layout


def test_video_that_killed_its_worker_is_held_with_every_spec(layout: Layout) -> None:
    assert held(layout.dataset) == ["poison", "slow"]
    other = dataclasses.replace(layout, specs=OTHER_SPECS)
    summary = run(other)
    assert (summary.num_run, summary.num_quarantined, summary.num_failed) == (2, 2, 3)
    row = ledger_rows(other)["poison"]
    assert (row.status, row.error_class, row.attempts) == ("failed", "QuarantinedError", 0)
    assert "WorkerDiedError in reencode" in row.error_message
    assert run(other).num_run == 0
    assert run(layout, retry_failed=True).num_run == 1  # bad


def test_released_video_is_tried_by_the_next_run_of_every_spec(layout: Layout, tmp_path: Path) -> None:
    other = dataclasses.replace(layout, specs=OTHER_SPECS)
    run(other)
    (tmp_path / "poison").write_text("good")
    os.utime(tmp_path / "poison", ns=(0, int(storage.stat(str(tmp_path / "good")).version)))
    assert invoke("quarantine", layout.dataset, "--release", "poison").exit_code == 0
    assert held(layout.dataset) == ["slow"]
    assert run(other).num_run == 1
    assert ledger_rows(other)["poison"].status == "ok"
    assert run(layout).num_run == 1
    assert ledger_rows(layout)["poison"].status == "ok"
    assert run(layout).num_run == 0


def test_release_counts_although_a_clock_was_ahead(tmp_path: Path) -> None:
    """The ledger's last row is of an hour from now; who is held after it and let out is tried again."""
    layout = write_dataset(tmp_path, POISONED)
    run(layout)
    failed = ledger_rows(layout)["poison"]
    ahead_s = failed.finished_unix_s + 3600
    shutil.rmtree(f"{layout.dataset}/quarantine")
    Ledger(layout.ledger("reencode")).append(
        [dataclasses.replace(failed, error_class="StorageError", finished_unix_s=ahead_s)]
    )
    run(layout)
    assert held(layout.dataset) == ["poison"]
    assert ledger_rows(layout)["poison"].finished_unix_s > ahead_s
    assert invoke("quarantine", layout.dataset, "--release", "poison").exit_code == 0
    assert run(layout).num_run == 1


def test_named_class_tries_a_held_video_and_success_lets_it_out(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "poison").write_text("good")  # the manifest still has its old version
    assert run(layout, retry_failed=True, retry_classes=frozenset({"WorkerDiedError"})).num_run == 1
    assert held(layout.dataset) == ["slow"]


def test_more_time_tries_a_slow_video_again(layout: Layout) -> None:
    other = dataclasses.replace(layout, specs=OTHER_SPECS)
    assert run(other, time_limit_s=3600.0).num_quarantined == 2
    assert run(other, time_limit_s=7200.0).num_run == 1
    assert "TimeLimitError" in ledger_rows(other)["slow"].error_class


def test_more_memory_tries_a_large_video_again(tmp_path: Path) -> None:
    """As its message says: with the same spec if failures are tried again, and with another one at once."""
    gib = 1024**3
    layout = write_dataset(tmp_path, {"large": "MemoryLimitError", "good": "good"})
    run(layout)
    assert "--memory-limit and --retry-failed" in ledger_rows(layout)["large"].error_message
    for given in (None, gib, 2 * gib):
        assert run(layout, retry_failed=True, memory_limit_bytes=given).num_run == 0
    assert run(layout, retry_failed=True, memory_limit_bytes=3 * gib).num_run == 1
    other = dataclasses.replace(layout, specs=OTHER_SPECS)
    assert run(other, memory_limit_bytes=2 * gib).num_quarantined == 1
    assert run(other, memory_limit_bytes=3 * gib).num_run == 1


def test_naming_quarantine_tries_all_that_are_held(layout: Layout) -> None:
    every = {"retry_failed": True, "retry_classes": frozenset({"QuarantinedError"})}
    assert run(layout, **every).num_run == 2  # poison and slow
    assert invoke("quarantine", layout.dataset, "--add", "bad").exit_code == 0
    assert run(layout, **every).num_run == 3
    assert run(dataclasses.replace(layout, specs=OTHER_SPECS), **every).num_run == 4


def test_entries_wait_for_a_full_disk(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The videos that failed meanwhile are held all the same; a disk that stays full is an error."""
    failed = dataclasses.replace(ledger_rows(layout)["bad"], error_class="WorkerDiedError")
    append, refusals = Quarantine.append, [1, 2, 3]

    def refuse_at_first(store: Quarantine, entries: Sequence[QuarantineEntry]) -> None:
        if entries and refusals:
            refusals.pop()
            raise StorageError(store.folder_uri, "cannot be written (No space left on device)")
        append(store, entries)

    monkeypatch.setattr(Quarantine, "append", refuse_at_first)
    monkeypatch.setattr(patience, "FLUSH_INTERVAL_S", 0.0)
    monkeypatch.setattr(patience, "_AGAIN_S", 0.0)
    with HeldVideos(layout, "reencode", options=StageOptions()) as videos:
        videos.ended(failed)
        videos.flush_if_due()
        videos.flush_if_due()
    assert not refusals
    assert [record.getMessage().count("No space left") for record in caplog.records] == [1]
    assert held(layout.dataset) == ["bad", "poison", "slow"]

    refusals.extend(range(100))
    with (
        pytest.raises(StorageError, match="No space left"),
        HeldVideos(layout, "reencode", options=StageOptions(), patience_s=0.0) as videos,
    ):
        videos.ended(failed)


def test_replaced_source_is_tried_again(layout: Layout, tmp_path: Path) -> None:
    write_dataset(tmp_path, POISONED | {"poison": "a good one"})
    assert held(layout.dataset) == ["slow"]
    assert run(layout).num_run == 1
    assert ledger_rows(layout)["poison"].status == "ok"


def test_video_added_by_hand_is_left_out(layout: Layout) -> None:
    assert invoke("quarantine", layout.dataset, "--add", "good", "--reason", "not ours").exit_code == 0
    other = dataclasses.replace(layout, specs=OTHER_SPECS)
    assert run(other).num_quarantined == 3
    assert "(not ours)" in ledger_rows(other)["good"].error_message
    assert invoke("quarantine", layout.dataset, "--release-all").exit_code == 0
    assert held(layout.dataset) == []


@pytest.mark.parametrize("flag", ["--add", "--release"])
def test_unknown_video_fails(layout: Layout, flag: str) -> None:
    result = invoke("quarantine", layout.dataset, flag, "nobody")
    assert result.exit_code == 2
    assert f"{flag} nobody: is not in" in result.stderr


def test_status_counts_them(layout: Layout) -> None:
    assert dataset_status(layout.dataset).num_quarantined == 2
    assert "2 in quarantine, which no run tries" in invoke("status", layout.dataset).stdout


def test_list_of_all_failed_has_sources_and_reasons(layout: Layout, tmp_path: Path) -> None:
    target = tmp_path / "failed.csv"
    assert invoke("quarantine", layout.dataset, "--failed", "--csv", str(target)).exit_code == 0
    rows = {row["video_id"]: row for row in csv.DictReader(target.read_text().splitlines())}
    assert rows.keys() == {"poison", "slow", "bad"}
    assert rows["bad"]["source_uri"] == str(tmp_path / "bad")
    assert rows["bad"]["error_class"] == "CorruptVideoError"
    assert "was made to fail" in rows["bad"]["error_message"]


def entry(video_id: str, **changes: Any) -> QuarantineEntry:
    made = QuarantineEntry(
        video_id=video_id, source_size_bytes=1, source_version="v", reason="x", recorded_unix_s=1000.0
    )
    return dataclasses.replace(made, **changes)


def test_release_counts_though_the_clock_is_behind(tmp_path: Path) -> None:
    store = Quarantine(str(tmp_path))
    store.append([entry("a", recorded_unix_s=5000.0), entry("b")])
    store.append([entry("a", recorded_unix_s=1400.0, is_released=True)])
    found = store.read()
    assert found["a"].is_released
    assert not found["b"].is_released
    assert found["a"].recorded_unix_s > 5000.0


def test_what_was_read_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, read = Quarantine(str(tmp_path)), storage.read_table
    for index in range(5):
        Quarantine(str(tmp_path)).append([entry(f"other{index}")])
    names: list[str] = []

    def noted(uri: str, *arguments: Any, **options: Any) -> pa.Table:
        names.append(uri)
        return read(uri, *arguments, **options)

    monkeypatch.setattr(storage, "read_table", noted)
    for index in range(5):
        store.append([entry(f"v{index}")])
    assert len(names) == len(set(names)) == 10


def test_two_writers_lose_nothing_when_one_merges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine_module, "MERGE_PARTS", 3)
    one, other = Quarantine(str(tmp_path)), Quarantine(str(tmp_path))
    for index in range(12):
        (one if index % 2 else other).append([entry(f"v{index}")])
        assert len(storage.list_files(one.folder_uri)) <= 4
    assert one.read().keys() == {f"v{index}" for index in range(12)}


def test_memory_store_works_like_a_local_folder() -> None:
    store = Quarantine("memory://test-quarantine")
    assert store.read() == {}
    store.append([entry("a"), entry("b", time_limit_s=5.0)])
    assert store.read() == {"a": entry("a"), "b": entry("b", time_limit_s=5.0)}
