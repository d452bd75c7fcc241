"""What a stage's status says of a job that is stuck, was stopped, has ended, or runs where the clock is wrong."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from status_tables import NOW_UNIX_S, append, make_row, write_manifest

from cope_prep.jobs.status import DatasetStatus, StageStatus, StatusReader, dataset_status
from cope_prep.jobs.status_screen import speed_text
from cope_prep.jobs.status_table import print_status
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.ledger import LedgerRow

MINUTE_S = 60.0


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(dataset=str(tmp_path / "dataset"), specs=Specs())
    write_manifest(layout, {f"v{index}": 100 for index in range(100)})
    return layout


def ended(layout: Layout, index: int, *, ago_s: float, wall_s: float = 1.0) -> LedgerRow:
    return make_row(
        layout, "reencode", f"v{index}", finished_unix_s=NOW_UNIX_S - ago_s, wall_s=wall_s, duration_s=8.0
    )


def printed(status: DatasetStatus, *, width: int = 160) -> str:
    output = io.StringIO()
    print_status(status, Console(file=output, width=width))
    return " ".join(output.getvalue().split())


def look(reader: StatusReader, *, later_s: float = 0.0) -> StageStatus:
    (stage,) = reader.read(now_unix_s=NOW_UNIX_S + later_s).stages
    return stage


def stage_of(layout: Layout, *, later_s: float = 0.0) -> StageStatus:
    return look(StatusReader(layout.dataset), later_s=later_s)


def test_rate_is_of_the_time_since_the_last_pause(layout: Layout) -> None:
    """40 videos, Ctrl-C, five minutes later again: a video a second, not 50 in six minutes."""
    append(layout, "reencode", *(ended(layout, index, ago_s=350 - index) for index in range(40)))
    append(layout, "reencode", *(ended(layout, index, ago_s=49 - index) for index in range(40, 50)))
    stage = stage_of(layout)
    assert stage.videos_per_s == pytest.approx(1.0)
    assert stage.video_seconds_per_s == pytest.approx(8.0)
    assert stage.left_s == pytest.approx(50.0)
    assert [node.num_videos for node in stage.nodes] == [10]


def test_long_video_is_no_pause(layout: Layout) -> None:
    """While it went on, nothing else ended."""
    append(layout, "reencode", *(ended(layout, index, ago_s=350 - index) for index in range(40)))
    append(layout, "reencode", ended(layout, 40, ago_s=0, wall_s=330))
    assert stage_of(layout).videos_per_s == pytest.approx(41 / 351)


def test_rate_of_a_finished_stage_stays(layout: Layout) -> None:
    append(layout, "reencode", *(ended(layout, index, ago_s=99 - index) for index in range(100)))
    at_once, later = stage_of(layout), stage_of(layout, later_s=100)
    assert at_once.videos_per_s == later.videos_per_s == pytest.approx(1.0)
    assert not at_once.is_running
    assert at_once.left_s is None


def test_rate_of_a_stuck_job_falls(layout: Layout) -> None:
    append(layout, "reencode", *(ended(layout, index, ago_s=49 - index) for index in range(50)))
    assert stage_of(layout, later_s=50).videos_per_s == pytest.approx(0.5)


@pytest.mark.parametrize("ahead_s", [30.0, 300.0, 86_400.0])
def test_clock_of_the_job_is_ahead(layout: Layout, ahead_s: float) -> None:
    append(layout, "reencode", *(ended(layout, index, ago_s=49 - index - ahead_s) for index in range(50)))
    reader = StatusReader(layout.dataset)
    stage = look(reader)
    assert stage.is_running
    assert stage.videos_per_s == pytest.approx(1.0)
    assert stage.left_s == pytest.approx(50.0)
    assert "clocks differ by" in speed_text(stage)
    stopped = look(reader, later_s=10 * MINUTE_S)
    assert not stopped.is_running
    assert "not running: nothing ended for 10 min" in speed_text(stopped)


def test_clock_of_the_job_is_behind(layout: Layout) -> None:
    """What was not there at the last look has ended since."""
    append(layout, "reencode", *(ended(layout, index, ago_s=349 - index) for index in range(49)))
    reader = StatusReader(layout.dataset)
    assert not look(reader).is_running  # or the job ended then: nobody knows yet
    append(layout, "reencode", ended(layout, 49, ago_s=300))
    stage = look(reader, later_s=2)
    assert stage.is_running
    assert stage.videos_per_s == pytest.approx(50 / 52)  # it may have ended just after the look before
    assert stage.left_s == pytest.approx(52.0)
    assert look(reader, later_s=102).is_running
    assert not look(reader, later_s=200).is_running


def test_job_on_another_machine_goes_on_behind_rows_of_the_future(layout: Layout) -> None:
    append(layout, "reencode", ended(layout, 0, ago_s=-86_400))
    reader = StatusReader(layout.dataset)
    assert not look(reader, later_s=0).idle_s
    assert not look(reader, later_s=500).is_running
    append(layout, "reencode", ended(layout, 1, ago_s=-501))
    assert look(reader, later_s=502).is_running


def test_clocks_that_agree_are_no_matter(layout: Layout) -> None:
    append(layout, "reencode", *(ended(layout, index, ago_s=49 - index - 2) for index in range(50)))
    assert "clocks" not in speed_text(stage_of(layout))


@pytest.mark.parametrize(
    ("wall_s", "later_s", "said"),
    [
        (1.0, 10.0, "10.0 s left"),
        (1.0, 130.0, "not running: nothing ended for 2 min"),
        (400.0, 130.0, "left, nothing ended for 2 min"),
        (400.0, 790.0, "left, nothing ended for 13 min"),
        (400.0, 810.0, "not running: nothing ended for 13 min"),
    ],
)
def test_long_videos_may_keep_silent_for_long(
    layout: Layout, wall_s: float, later_s: float, said: str
) -> None:
    append(layout, "reencode", *(ended(layout, index, ago_s=0, wall_s=wall_s) for index in range(52)))
    stage = stage_of(layout, later_s=later_s)
    assert stage.is_running == ("not running" not in said)
    if later_s > 10:
        assert said in speed_text(stage)
    assert (stage.left_s is None) == ("not running" in said)


def test_stage_that_has_begun_and_ended_nothing_is_not_said_to_stand_still(layout: Layout) -> None:
    layout.write_spec("reencode")
    assert speed_text(stage_of(layout)) == "nothing ended yet"
    text = printed(dataset_status(layout.dataset))
    assert "none ended yet" in text
    assert "not running" not in text


@pytest.mark.parametrize("width", [70, 160])
def test_what_makes_a_rate_doubtful_is_said_once(layout: Layout, width: int) -> None:
    append(layout, "reencode", *(ended(layout, index, ago_s=0, wall_s=400) for index in range(52)))
    quiet = printed(dataset_status(layout.dataset, now_unix_s=NOW_UNIX_S + 130), width=width)
    assert quiet.count("nothing ended for 2 min 10 s") == 1
    ahead = printed(dataset_status(layout.dataset, now_unix_s=NOW_UNIX_S - 30), width=width)
    assert ahead.count("clocks differ by 30") == 1


def test_stage_with_nothing_pending_does_not_run(layout: Layout) -> None:
    append(layout, "reencode", *(ended(layout, index, ago_s=0) for index in range(100)))
    assert not stage_of(layout).is_running
