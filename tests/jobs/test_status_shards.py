"""Status while shards are made, and of shards of which something is damaged: nothing is pending, yet it goes on."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from status_tables import NOW_UNIX_S, append, make_row, write_index, write_manifest

from cope_prep.jobs import status_figures, status_watch
from cope_prep.jobs.status import StatusReader, dataset_status
from cope_prep.jobs.status_records import DatasetStatus
from cope_prep.jobs.status_screen import Screen
from cope_prep.jobs.status_table import print_status
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.shard_plan import ExtractedVideo, plan_shards
from cope_prep.schemas.records import video_key
from cope_prep.schemas.specs import ShardSpec


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Six videos, all extracted; a shard holds two."""
    layout = Layout(dataset=str(tmp_path / "dataset"), specs=Specs(shard=ShardSpec(target_bytes=1 << 20)))
    names = [f"v{index}" for index in range(6)]
    write_manifest(layout, dict.fromkeys(names, 100))
    append(layout, "reencode", *(make_row(layout, "reencode", name) for name in names))
    extracted = [make_row(layout, "extract", name, source_size_bytes=50) for name in names]
    append(layout, "extract", *extracted)
    return layout


def plan(layout: Layout, num_videos: int) -> None:
    layout.write_spec("shards")
    videos = [
        ExtractedVideo(
            video_id=f"v{i}", video_key=video_key(f"v{i}"), subset="", output_bytes=500_000, version="1"
        )
        for i in range(num_videos)
    ]
    assert len(plan_shards(layout, videos).shards) == num_videos // 2


def build(layout: Layout, *indices: int) -> None:
    for index in indices:
        Path(layout.shard(index)).touch()


def shown(status: DatasetStatus, *, width: int = 160) -> dict[str, str]:
    """By view."""

    def console() -> Console:
        return Console(file=io.StringIO(), width=width, height=40)

    table, lines, live = console(), console(), console()
    print_status(status, table)
    status_watch.LinesView(lines).show(status, "")
    screen = Screen(status.dataset, every_s=2.0)
    screen.status = status
    live.print(screen)
    found = {"table": table, "lines": lines, "screen": live}
    return {name: of.file.getvalue() for name, of in found.items()}  # pyright: ignore[reportAttributeAccessIssue]


def patience_s(layout: Layout, waiting: status_watch._Waiting, later_s: float) -> float | None:
    status = dataset_status(layout.dataset, now_unix_s=NOW_UNIX_S + later_s)
    return waiting.left_s(status, now_unix_s=NOW_UNIX_S + later_s)


@pytest.mark.parametrize("num_earlier", [0, 2])
def test_watch_begun_while_shards_are_made_goes_on(layout: Layout, num_earlier: int) -> None:
    """Hours after the last extraction. An index of earlier shards is not the end either."""
    if num_earlier:
        write_index(layout, num_videos=num_earlier, num_shards=num_earlier // 2)
    plan(layout, 6)
    build(layout, 0)
    waiting, hour_s = status_watch._Waiting(), 3600.0
    assert patience_s(layout, waiting, hour_s) == pytest.approx(900)
    assert patience_s(layout, waiting, hour_s + 600) == pytest.approx(300)
    build(layout, 1)
    assert patience_s(layout, waiting, hour_s + 700) == pytest.approx(900)
    assert patience_s(layout, waiting, hour_s + 1700) == 0.0  # nobody makes them
    build(layout, 2)
    write_index(layout, num_videos=6, num_shards=3)
    assert patience_s(layout, status_watch._Waiting(), hour_s + 710) == 0.0


def test_shards_that_are_made_are_counted(layout: Layout) -> None:
    layout.write_spec("shards")
    build(layout, 0)
    (begun,) = dataset_status(layout.dataset).begun_shards
    assert (begun.num_shards, begun.num_planned) == (1, None)
    assert "1 so far, no index yet" in shown(dataset_status(layout.dataset))["lines"]
    plan(layout, 6)
    texts = shown(dataset_status(layout.dataset))
    assert "1/3 shards" in texts["table"]
    assert "1 of 3, no index yet" in texts["lines"]
    assert "1 of 3, no index yet" in texts["screen"]


def test_log_says_what_is_waited_for_once(layout: Layout) -> None:
    plan(layout, 6)
    output = io.StringIO()
    view = status_watch.LinesView(Console(file=output, width=200))

    class StopError(Exception):
        pass

    slept: list[float] = []

    def sleep(duration_s: float) -> None:
        slept.append(duration_s)
        build(layout, len(slept) - 1)
        if len(slept) == 3:
            raise StopError

    with pytest.raises(StopError):
        status_watch._watch(StatusReader(layout.dataset), view, every_s=1.0, sleep=sleep)
    text = output.getvalue()
    assert text.count("Waiting for the next shard") == 1
    assert "another stage" not in text
    assert [f"{number} of 3, no index yet" in text for number in range(3)] == [True] * 3


def test_log_says_again_what_has_changed(layout: Layout) -> None:
    output = io.StringIO()
    view = status_watch.LinesView(Console(file=output, width=200))
    status = dataset_status(layout.dataset)
    for note, left_s in (("A", 90.0), ("A", 80.0), ("B", 70.0), ("", None), ("B", 60.0)):
        view.show(status, note, left_s)
    notes = [line for line in output.getvalue().splitlines() if line[:1] in "AB"]
    assert notes == ["A: up to 1 min 30 s.", "B: up to 1 min 10 s.", "B: up to 1 min 00 s."]


def test_videos_in_part_belong_to_what_must_be_in_the_shards(tmp_path: Path) -> None:
    layout = Layout(dataset=str(tmp_path), specs=Specs())
    write_manifest(layout, {"a": 100, "b": 100})
    append(layout, "reencode", *(make_row(layout, "reencode", name) for name in ("a", "b")))
    rows = [make_row(layout, "extract", name, source_size_bytes=50) for name in ("a", "b")]
    append(
        layout, "extract", rows[0], make_row(layout, "extract", "b", source_size_bytes=50, status="partial")
    )
    write_index(layout, num_videos=1)
    assert patience_s(layout, status_watch._Waiting(), 1.0) == pytest.approx(119)
    write_index(layout, num_videos=2)
    assert patience_s(layout, status_watch._Waiting(), 1.0) == 0.0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "dataset.json: is malformed"),
        (b"[]", "dataset.json: is a list"),
        (b"{}", "dataset.json: lacks 'counts'. Run cope-prep shard."),
        (json.dumps({"counts": 3}).encode(), "dataset.json: lacks"),
        (json.dumps({"counts": {}, "shards": []}).encode(), "dataset.json: lacks 'videos'"),
    ],
)
@pytest.mark.parametrize("width", [80, 160])
def test_damaged_dataset_json_hides_nothing_else(
    layout: Layout, content: bytes, said: str, width: int
) -> None:
    layout.write_spec("shards")
    other = Layout(dataset=layout.dataset, specs=Specs())
    write_index(other, num_videos=6)
    storage.publish_bytes(layout.dataset_json, content)
    status = dataset_status(layout.dataset)
    assert [stage.num_ok for stage in status.stages] == [6, 6]
    (damaged,) = status.damaged_shards
    assert damaged.spec_hash == layout.specs.hash_of("shards")
    for view, text in shown(status, width=width).items():
        assert said in text, view
        assert damaged.spec_hash in text
        assert other.specs.hash_of("shards") in text or view == "lines"  # only what goes on or has changed
        assert "6/6" in text
    write_index(layout, num_videos=6)
    assert not dataset_status(layout.dataset).damaged_shards


def test_damaged_plan_is_said(layout: Layout) -> None:
    layout.write_spec("shards")
    Path(layout.folder("shards"), "plan.parquet").write_bytes(b"PAR1")
    (damaged,) = dataset_status(layout.dataset).damaged_shards
    assert damaged.message.startswith("plan.parquet: is not a readable Parquet table")


def test_folder_is_listed_again_after_twenty_times_as_long_as_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(dataset=str(tmp_path / "dataset"), specs=Specs())
    write_manifest(layout, {"a": 100, "b": 100})
    rows = [make_row(layout, "reencode", name) for name in ("a", "b")]
    append(layout, "reencode", *rows)
    layout.write_spec("extract")
    files = [Path(layout.reencoded(row.video_key)) for row in rows]
    for file in files:
        file.touch()
    clock_s = 0.0
    list_files = storage.list_files

    def slow(folder: str) -> list[str]:
        nonlocal clock_s
        clock_s += 3.0 if folder == layout.folder("reencode") else 0.0
        return list_files(folder)

    monkeypatch.setattr(storage, "list_files", slow)
    monkeypatch.setattr(status_figures.time, "monotonic", lambda: clock_s)
    reader = StatusReader(layout.dataset)

    def num_pending() -> int:
        return reader.read(now_unix_s=NOW_UNIX_S).stages[1].num_pending

    assert num_pending() == 2
    files[0].unlink()
    clock_s += 59.0
    assert num_pending() == 2
    clock_s += 2.0
    assert num_pending() == 1
