"""A stage over videos: what is missing is run, every end is a row, and a second run does nothing."""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import stage_work
from rich.console import Console

from cope_prep.jobs import video_stage
from cope_prep.jobs.executors import Executor, InProcessExecutor
from cope_prep.jobs.summary import StageSummary
from cope_prep.jobs.video_stage import StageOptions, VideoTask, read_videos, run_video_stage
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, Specs, find_specs
from cope_prep.pipeline.ledger import KnownRow, Ledger, LedgerRow, rows_of
from cope_prep.schemas.errors import ConfigurationError
from cope_prep.schemas.records import video_key


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(dataset=str(tmp_path / "dataset"), specs=Specs())


@pytest.fixture
def tasks(tmp_path: Path, layout: Layout) -> list[VideoTask]:
    """Three good videos and a bad one."""
    made = []
    for index, content in enumerate(("one", "two", "bad", "three")):
        source = tmp_path / f"{index}.src"
        source.write_text(content)
        name = f"video/{index}"
        made.append(
            VideoTask(
                video_id=name,
                video_key=video_key(name),
                source_uri=str(source),
                output_uri=layout.reencoded(video_key(name)),
                source_size_bytes=len(content),
                source_version="v1",
                weight=float(index),
            )
        )
    return made


def copy_call(task: VideoTask) -> functools.partial[stage_work.Report]:
    return functools.partial(stage_work.copy_video, task.source_uri, task.output_uri)


def no_executor() -> Executor:
    raise AssertionError("there is nothing to do")


def run(
    layout: Layout,
    tasks: list[VideoTask],
    *,
    executor: Callable[[], Executor] = InProcessExecutor,
    retry_failed: bool = False,
    taken_over: Callable[[Mapping[str, KnownRow]], set[str]] = lambda gone: set(),
) -> StageSummary:
    return run_video_stage(
        layout,
        "reencode",
        tasks,
        copy_call,
        executor=executor,
        options=StageOptions(retry_failed=retry_failed),
        console=Console(file=io.StringIO()),
        taken_over=taken_over,
    )


def ledger_rows(layout: Layout) -> dict[str, LedgerRow]:
    return {row.video_id: row for row in rows_of(Ledger(layout.ledger("reencode")).read())}


def test_every_end_is_a_row(layout: Layout, tasks: list[VideoTask]) -> None:
    summary = run(layout, tasks)
    assert (summary.num_ok, summary.num_failed, summary.num_run) == (3, 1, 4)
    assert summary.duration_s == 3.0
    rows = ledger_rows(layout)
    assert {name: row.status for name, row in rows.items()} == {
        "video/0": "ok",
        "video/1": "ok",
        "video/2": "failed",
        "video/3": "ok",
    }
    assert rows["video/2"].error_class == "CorruptVideoError"
    assert rows["video/2"].error_message.endswith("holds no frame. Download it again.")
    assert rows["video/2"].output_uri == ""
    assert rows["video/3"].output_bytes == 5
    assert {row.node for row in rows.values()} == {socket.gethostname()}
    assert [item.subject for item in summary.failures] == ["video/2"]
    assert find_specs(layout.dataset, "reencode") == [layout.specs]


def test_second_run_does_nothing(layout: Layout, tasks: list[VideoTask]) -> None:
    run(layout, tasks)
    before = ledger_rows(layout)
    summary = run(layout, tasks, executor=no_executor)
    assert (summary.num_run, summary.num_ok, summary.num_failed) == (0, 3, 1)
    assert ledger_rows(layout) == before


def test_failed_is_tried_again_when_asked(layout: Layout, tasks: list[VideoTask]) -> None:
    run(layout, tasks)
    Path(tasks[2].source_uri).write_text("ok!")
    assert run(layout, tasks, retry_failed=True).num_run == 1
    assert ledger_rows(layout)["video/2"].status == "ok"


def test_changed_source_is_done_again(layout: Layout, tasks: list[VideoTask]) -> None:
    run(layout, tasks)
    tasks[0] = dataclasses.replace(tasks[0], source_version="v2")
    tasks[2] = dataclasses.replace(tasks[2], source_size_bytes=99)
    assert run(layout, tasks).num_run == 2
    assert ledger_rows(layout)["video/0"].source_version == "v2"


def test_lost_output_is_made_again(layout: Layout, tasks: list[VideoTask]) -> None:
    run(layout, tasks)
    storage.remove(tasks[1].output_uri)
    assert run(layout, tasks).num_run == 1
    assert storage.exists(tasks[1].output_uri)


def test_output_that_was_taken_over_is_not_made_again(layout: Layout, tasks: list[VideoTask]) -> None:
    run(layout, tasks)
    storage.remove(tasks[0].output_uri)
    storage.remove(tasks[1].output_uri)
    asked: list[set[str]] = []

    def taken_over(gone: Mapping[str, KnownRow]) -> set[str]:
        asked.append(set(gone))
        return {"video/0"}

    assert run(layout, tasks, taken_over=taken_over).num_run == 1
    assert asked == [{"video/0", "video/1"}]
    assert not storage.exists(tasks[0].output_uri)
    assert storage.exists(tasks[1].output_uri)


def test_output_without_a_row_is_made_again(layout: Layout, tasks: list[VideoTask]) -> None:
    """The driver was killed between the output and the row."""
    storage.publish_bytes(tasks[0].output_uri, b"whatever")
    assert run(layout, tasks).num_run == 4
    assert storage.read_bytes(tasks[0].output_uri) == b"one"


def test_interrupt_keeps_the_rows_of_what_was_done(layout: Layout, tasks: list[VideoTask]) -> None:
    class Interrupted(InProcessExecutor):
        num_waits = 0

        def wait(self, timeout_s: float) -> list:
            Interrupted.num_waits += 1
            if Interrupted.num_waits == 3:
                raise KeyboardInterrupt
            return super().wait(timeout_s)

    with pytest.raises(KeyboardInterrupt):
        run(layout, tasks, executor=Interrupted)
    assert ledger_rows(layout).keys() == {"video/3", "video/2"}
    assert run(layout, tasks).num_run == 2
    assert ledger_rows(layout).keys() == {task.video_id for task in tasks}


def test_temporary_files_of_killed_runs_are_removed(layout: Layout, tasks: list[VideoTask]) -> None:
    folder = Path(layout.folder("reencode"))
    folder.mkdir(parents=True)
    old, fresh, of_failed = (folder / name for name in (".tmp-1-x.mp4", ".tmp-2-y.mp4", ".tmp-3-z.mp4"))
    of_failed = folder / f".tmp-3-{Path(tasks[2].output_uri).name}"
    for path in (old, fresh, of_failed):
        path.write_text("half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    run(layout, tasks)
    assert not old.exists()
    assert not of_failed.exists()
    assert fresh.exists()  # another driver may be writing it at this moment


@pytest.mark.parametrize("interval_s", [0.0, 60.0])
def test_failed_videos_leave_no_temporary_file_and_cost_no_listing_each(
    layout: Layout, tasks: list[VideoTask], monkeypatch: pytest.MonkeyPatch, interval_s: float
) -> None:
    """They go from time to time, and when the run is interrupted; the folder may hold 178,510 outputs."""
    monkeypatch.setattr(video_stage, "_LEFTOVERS_INTERVAL_S", interval_s)
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(video_stage.os, "scandir", lambda path: listed.append(path) or scandir(path))
    for task in tasks:
        Path(task.source_uri).write_text("bad")
    folder = Path(layout.folder("reencode"))
    folder.mkdir(parents=True)
    leftover = folder / f".tmp-1-{Path(tasks[3].output_uri).name}"  # of the one that is first
    leftover.write_text("half")
    seen: list[bool] = []

    class Interrupted(InProcessExecutor):
        def wait(self, timeout_s: float) -> list:
            seen.append(leftover.exists())
            if len(seen) == 4:
                raise KeyboardInterrupt
            return super().wait(timeout_s)

    with pytest.raises(KeyboardInterrupt):
        run(layout, tasks, executor=Interrupted)
    assert seen == [True, *[interval_s > 0] * 3]
    assert not leftover.exists()
    if interval_s > 0:
        assert listed.count(str(folder)) == 3, "twice before the first video, and after the last one"


def test_dataset_without_manifest_fails(layout: Layout) -> None:
    with pytest.raises(ConfigurationError, match=r"has no manifest.parquet. Run: cope-prep manifest files"):
        read_videos(layout)
