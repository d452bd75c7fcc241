"""Both stages over a dataset with a long video, in parts and in one piece: the same outputs, the same ledgers."""

from __future__ import annotations

import dataclasses
import functools
import io
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import stage_work
from rich.console import Console

from cope_prep.jobs.executors import InProcessExecutor
from cope_prep.jobs.extract import run_extract
from cope_prep.jobs.reencode import reencode_tasks, run_reencode
from cope_prep.jobs.video_stage import StageOptions, VideoTask, run_video_stage
from cope_prep.pipeline import encode, extract_parts, reencode_parts, storage
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.ledger import Ledger, LedgerRow, rows_of
from cope_prep.pipeline.software import Recorded, recorded, recorded_join
from cope_prep.pipeline.split import Split, Unfit
from cope_prep.schemas.records import VideoRecord
from cope_prep.schemas.specs import EncodeSpec, ExtractSpec

SPECS = Specs(
    encode=EncodeSpec(gop_size=10, width_px=96, height_px=64, preset="ultrafast"),
    extract=ExtractSpec(window=3),
)


class SideBySide(InProcessExecutor):
    """In this process, but as if there were several: so that long videos are split."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def submit(self, token: int, call: bytes, **options: Any) -> None:
        done = pickle.loads(call)
        self.calls.append((done.args[0] if done.func in (recorded, recorded_join) else done).func.__name__)
        super().submit(token, call, **options)

    def capacity(self) -> int:
        return 3

    def parallel(self) -> int:
        return 3


@pytest.fixture
def videos(media: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[VideoRecord]:
    """A long video of 5 s, a damaged one, a short one; a part lasts a second, or two GOPs."""
    monkeypatch.setattr(encode, "MIN_SEGMENT_S", 1)
    monkeypatch.setattr(reencode_parts, "_WORK_PER_FRAME_S", 100.0)
    monkeypatch.setattr(extract_parts, "_WORK_PER_FRAME_S", 120.0)
    monkeypatch.setattr(extract_parts, "_MEASURED_PX", 96 * 64 * 40)
    made = []
    for name, num_frames in (("long", 150), ("cut", 120), ("short", 20)):
        path = media.write_clip(tmp_path / f"{name}.mkv", num_frames=num_frames, max_b_frames=2)
        if name == "cut":
            path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        size = path.stat().st_size
        made.append(VideoRecord(video_id=name, uri=str(path), subset="", size_bytes=size, version="1"))
    return made


def run_both(dataset: Path, videos: list[VideoRecord], executor: InProcessExecutor) -> list[LedgerRow]:
    layout = Layout(dataset=str(dataset), specs=SPECS)
    console = Console(file=io.StringIO())
    rows = []
    for stage, run in (("reencode", run_reencode), ("extract", run_extract)):
        run(layout, videos, executor=lambda: executor, options=StageOptions(), console=console)
        rows += rows_of(Ledger(layout.ledger(stage)).read())
    return sorted(
        (
            dataclasses.replace(
                row, wall_s=0, cpu_s=0, finished_unix_s=0, output_uri=Path(row.output_uri).name
            )
            for row in rows
        ),
        key=lambda row: (row.stage, row.video_id),
    )


def outputs_of(dataset: Path) -> dict[str, bytes]:
    layout = Layout(dataset=str(dataset), specs=SPECS)
    folders = [layout.folder(stage) for stage in ("reencode", "extract")]
    return {
        f"{Path(folder).parent.name}/{name}": Path(folder, name).read_bytes()
        for folder in folders
        for name in storage.list_files(folder)
    }


def test_split_and_unsplit_datasets_are_the_same(videos: list[VideoRecord], tmp_path: Path) -> None:
    parallel = SideBySide()
    split = run_both(tmp_path / "split", videos, parallel)
    whole = run_both(tmp_path / "whole", videos, InProcessExecutor())
    assert {"reencode_part", "join_reencode", "extract_part", "join_extract"} <= set(parallel.calls)
    assert split == whole
    assert [(row.video_id, row.status) for row in split if row.stage == "reencode"] == [
        ("cut", "partial"),
        ("long", "ok"),
        ("short", "ok"),
    ]
    assert outputs_of(tmp_path / "split") == outputs_of(tmp_path / "whole")
    # Nothing is left of the parts, and nothing is left to do.
    assert not [path for path in (tmp_path / "split").rglob("parts/**/*") if path.is_file()]
    parallel.calls.clear()
    assert run_both(tmp_path / "split", videos, parallel) == split
    assert parallel.calls == []


def test_parts_of_a_video_that_failed_are_removed(videos: list[VideoRecord], tmp_path: Path) -> None:
    """Also of the part that ended after another one had failed."""

    def fail(task: VideoTask) -> functools.partial[object]:
        return functools.partial(stage_work.split_and_fail, task.output_uri)

    layout = Layout(dataset=str(tmp_path / "dataset"), specs=SPECS)
    summary = run_video_stage(
        layout,
        "reencode",
        reencode_tasks(layout, videos),
        fail,
        executor=SideBySide,
        options=StageOptions(),
        console=Console(file=io.StringIO()),
    )
    assert [failure.error_class for failure in summary.failures] == ["CorruptVideoError"] * 3
    assert not [path for path in (tmp_path / "dataset").rglob("parts/**/*") if path.is_file()]


def test_parts_of_different_software_are_not_joined() -> None:
    """A cluster while it is updated: the note says why the video took longer."""
    split = recorded(functools.partial(stage_work.split, "long", [functools.partial(stage_work.echo, 1)] * 2))
    assert isinstance(split, Split)
    parts = [part() for part in split.parts]
    joined = split.join(parts)
    assert isinstance(joined, Recorded)
    assert joined.value == ("long", [1, 1])
    found = split.join([parts[0], dataclasses.replace(parts[1], software='{"av":"1"}')])
    assert isinstance(found, Unfit)
    assert found.noted
    assert split.whole(found).value == ("long", found.reason)
