"""A file that may not be read is a row, tried once a run; a store that refuses all ends the stage."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import typer
from failing_videos import ledger_rows, run, write_dataset
from rich.console import Console

from cope_prep.jobs import refusals
from cope_prep.jobs.refusals import Refusals
from cope_prep.jobs.report import Outlet, end_stages
from cope_prep.jobs.summary import StageSummary
from cope_prep.pipeline import storage
from cope_prep.schemas.errors import StoreRefusedError

REFUSED = StoreRefusedError.__name__


def exit_code(summary: StageSummary, *, failed_ok: bool) -> int:
    out = Outlet(console=Console(file=io.StringIO()), json_output=True)
    try:
        end_stages(out, command="reencode", dataset="x", summaries=[summary], failed_ok=failed_ok)
    except typer.Exit as exc:
        return exc.exit_code
    return 0


def test_refused_file_is_tried_once_by_each_run_and_starts_no_job_again(tmp_path: Path) -> None:
    layout = write_dataset(tmp_path, {"a": "good", "archived": REFUSED, "z": "good"})
    summary = run(layout)  # a pause would take a second at least, and six attempts a minute
    assert (summary.num_run, summary.num_ok, summary.num_failed, summary.stopped) == (3, 2, 1, "")
    row = ledger_rows(layout)["archived"]
    assert (row.error_class, row.attempts) == (REFUSED, 1)
    assert exit_code(summary, failed_ok=True) == 0
    assert exit_code(summary, failed_ok=False) == 1
    write_dataset(tmp_path, {"a": "good", "archived": "restored", "z": "good"})
    (tmp_path / "archived").write_text("restored")
    again = run(layout)
    assert (again.num_run, again.num_failed) == (1, 0)


def test_store_that_refuses_all_ends_the_stage_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "MIN_IN_A_ROW", 5)
    contents = {f"{index:02d}": REFUSED for index in range(20)}
    layout = write_dataset(tmp_path, contents)
    summary = run(layout)
    assert (summary.num_run, summary.num_failed) == (5, 5)
    assert summary.stopped.startswith(
        f"reencode was stopped: the store refused all videos that were tried (5). The last: {tmp_path}/"
    )
    assert exit_code(summary, failed_ok=True) == 1
    for name in contents:
        (tmp_path / name).write_text("good")
    layout = write_dataset(tmp_path, dict.fromkeys(contents, "good"))
    after = run(layout)
    assert (after.num_run, after.num_ok, after.stopped) == (20, 20, "")


def test_small_dataset_of_which_the_store_refuses_all_is_no_success(tmp_path: Path) -> None:
    summary = run(write_dataset(tmp_path, {"a": REFUSED, "b": REFUSED}))
    assert "refused all videos that were tried (2)" in summary.stopped
    assert exit_code(summary, failed_ok=True) == 1


def test_what_was_refused_before_comes_last_and_ends_no_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the first files of each run, if they are archived, would keep all runs from the others."""
    monkeypatch.setattr(refusals, "MIN_IN_A_ROW", 5)
    contents = {f"archived-{index:02d}": REFUSED for index in range(20)}  # longer, so they go first
    layout = write_dataset(tmp_path, contents | {"good": "good"})
    assert (run(layout).num_ok, run(layout).num_ok) == (0, 0)
    num_runs = 0
    while run(layout).stopped:
        num_runs += 1
        assert num_runs < 5
    summary = run(layout)
    assert (summary.num_run, summary.num_ok, summary.num_failed, summary.stopped) == (20, 1, 20, "")
    assert exit_code(summary, failed_ok=True) == 0


def ends(of: Refusals, classes: str) -> None:
    names = {".": "", "x": REFUSED, "s": "StorageError", "l": "WorkerLostError", "c": "CorruptVideoError"}
    for one in classes:
        of.add(names[one], "b: may not be opened." if one == "x" else "")


@pytest.mark.parametrize(
    ("classes", "num_good", "is_over"),
    [
        ("x" * 9, 1, False),
        ("x" * 10, 1, True),
        ("." + "x" * 10, 0, True),
        ("x" * 9 + "." + "x" * 9, 0, False),
        ("x" * 9 + "c" + "x" * 9, 0, False),  # who finds it corrupt has read it
        ("x" * 5 + "sl" + "x" * 5, 0, True),
        ("x" * 49, 1000, False),  # a part of the dataset, of which all the rest is done
        ("x" * 50, 1000, True),
        ("xx", 0, True),
        ("", 0, False),
        ("s", 0, False),
        ("cx", 0, False),
    ],
)
def test_how_many_refusals_are_too_many(
    monkeypatch: pytest.MonkeyPatch, classes: str, num_good: int, is_over: bool
) -> None:
    monkeypatch.setattr(refusals, "MIN_IN_A_ROW", 10)
    of = Refusals("extract", num_good=num_good)
    ends(of, classes)
    assert bool(of.why_stopped(num_items=1000)) is is_over
    if is_over and num_good:
        found = (
            f"extract was stopped: the store refused {len(classes)} videos one after the other. The last: b: "
        )
        assert of.why_stopped(num_items=1000).startswith(found)
        assert of.why_stopped(num_items=len(classes)) == "", "nothing was left to do"


def test_file_without_permissions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests as root may read it all the same."""
    path = tmp_path / "a.mp4"
    path.write_text("x")

    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage.os, "open", refuse)
    with pytest.raises(StoreRefusedError, match=r"a\.mp4: cannot be opened .*Check its permissions"):
        storage.open_read(str(path))
