"""The screen of `status --watch` where there is little room: what matters stays, and what is old is said."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console
from status_tables import append, make_row, write_index, write_manifest

from cope_prep.jobs.status import dataset_status
from cope_prep.jobs.status_screen import Screen
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.schemas.specs import EncodeSpec

PROBLEM = "s3://bucket/a/long/path/to/a/dataset: cannot be read (connection refused). " + "Tried again. " * 30


@pytest.fixture
def two_specs(tmp_path: Path) -> Layout:
    """One is done up to its shards, the other runs; a third of its videos failed."""
    now_unix_s = time.time()
    names = [f"v{index}" for index in range(30)]
    done = Layout(dataset=str(tmp_path / "dataset"), specs=Specs(encode=EncodeSpec(gop_size=120)))
    write_manifest(done, dict.fromkeys(names, 100))
    append(done, "reencode", *(make_row(done, "reencode", name, finished_unix_s=1.0) for name in names))
    rows = [make_row(done, "extract", name, source_size_bytes=50, finished_unix_s=2.0) for name in names]
    append(done, "extract", *rows)
    write_index(done, num_videos=30)
    running = Layout(dataset=done.dataset, specs=Specs())
    rows = [
        make_row(
            running,
            "reencode",
            name,
            status="failed" if index % 3 == 0 else "ok",
            error_class="CorruptVideoError" if index % 3 == 0 else "",
            error_message="no frame" if index % 3 == 0 else "",
            finished_unix_s=now_unix_s - index,
        )
        for index, name in enumerate(names[:20])
    ]
    append(running, "reencode", *rows)
    running.write_spec("extract")
    for row in rows[:10]:
        Path(running.reencoded(row.video_key)).touch()
    return running


def lines_of(layout: Layout, *, width: int, height: int, problem: str = "", note: str = "") -> list[str]:
    screen = Screen(layout.dataset, every_s=2.0)
    screen.status, screen.seen_unix_s = dataset_status(layout.dataset), time.time() - 100
    screen.problem, screen.note = problem, note
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(screen)
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [40, 80, 150])
@pytest.mark.parametrize("height", [4, 6, 8, 12, 24, 40])
def test_problem_and_age_are_there_however_little_room(two_specs: Layout, width: int, height: int) -> None:
    lines = lines_of(two_specs, width=width, height=height, problem=PROBLEM)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert lines[1].startswith("s3://bucket/a/long/path")
    assert lines[-1].startswith("As of 1 min 40 s ago")
    if height >= 6:
        assert "…" in lines[3]
        assert lines[4][:1] != " "
    if height >= 12:
        assert any("pending" in line and "10" in line for line in lines)


@pytest.mark.parametrize("height", [12, 13])
def test_finished_stages_take_one_line_where_room_is_short(two_specs: Layout, height: int) -> None:
    lines = lines_of(two_specs, width=80, height=height)
    assert len(lines) <= height
    encoded, extracted = (two_specs.specs.hash_of(stage) for stage in ("reencode", "extract"))
    assert sum(line.startswith(("reencode", "extract")) for line in lines) == 4
    assert sum("nothing pending" in line for line in lines) >= 2
    assert any(line.startswith("shards") for line in lines)
    for spec_hash in (encoded, extracted):
        assert any(spec_hash in line for line in lines)
    tall = lines_of(two_specs, width=80, height=40)
    assert not any("nothing pending" in line for line in tall)
    assert sum("━" in line for line in tall) >= 3


def test_short_problem_is_whole_and_the_note_stays(two_specs: Layout) -> None:
    problem = "s3://bucket/dataset: cannot be read (connection refused by the other side). Run it again."
    lines = lines_of(two_specs, width=60, height=24, problem=problem, note="A note.")
    assert " ".join(line.strip() for line in lines[1:3]) == problem
    assert "A note." in lines


def test_narrow_terminal_has_what_is_left_first(two_specs: Layout) -> None:
    lines = lines_of(two_specs, width=40, height=40)
    at = next(i for i, line in enumerate(lines) if two_specs.specs.hash_of("reencode") in line)
    assert lines[at + 1].strip().startswith("pending 10")
    assert " left, " in lines[at + 2]
    short = lines_of(two_specs, width=40, height=8)
    assert any(line.startswith("reencode 20/30 10 pending, ") and " left" in line for line in short)


def test_what_has_no_room_is_said_and_work_goes_first(two_specs: Layout) -> None:
    lines = lines_of(two_specs, width=80, height=5)
    assert "pending" in lines[1]
    assert "pending" in lines[2]
    assert lines[3] == "and 3 more lines: a higher terminal"


@pytest.mark.parametrize(("width", "height"), [(80, 24), (150, 40), (60, 12), (40, 6)])
def test_screen_fits_its_terminal(tmp_path: Path, width: int, height: int) -> None:
    layout = Layout(dataset=str(tmp_path / "dataset"), specs=Specs())
    write_manifest(layout, {f"v{index}": 100 for index in range(200)})
    now_unix_s = time.time()
    rows = [
        make_row(
            layout,
            "reencode",
            f"v{index}",
            node=f"ip-10-0-0-{index % 30}",
            status="failed" if index % 4 == 0 else "ok",
            error_class="CorruptVideoError" if index % 4 == 0 else "",
            error_message=f"v{index} [bold].mp4: " + "not one frame decodes, " * 9 if index % 4 == 0 else "",
            finished_unix_s=now_unix_s - index,
        )
        for index in range(150)
    ]
    append(layout, "reencode", *rows)
    screen = Screen(layout.dataset, every_s=2.0)
    screen.status, screen.seen_unix_s = dataset_status(layout.dataset), now_unix_s
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(screen)
    lines = capture.get().splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert lines[-1].startswith("As of 0 s ago")
    if height >= 24:
        assert any(re.match(r"and \d+ more", line) for line in lines)
        assert any("CorruptVideoError v0 [bold]" in line for line in lines)
        assert sum(line.startswith("ip-10-0-0-") for line in lines) >= 3
