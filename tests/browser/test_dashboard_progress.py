"""Progress in a browser: it moves by itself while a job runs, and says when nothing does."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.ledger import Ledger, LedgerRow
from cope_prep.pipeline.manifest import manifest_from_files
from cope_prep.pipeline.parquet import open_parquet

COMMAND = [sys.executable, "-c", "from cope_prep.jobs.cli import main; main()"]
NUM_VIDEOS = 8


@pytest.fixture
def begun(real_clips: list[Path], tmp_path: Path) -> Layout:
    """A dataset of two real clips, four times each, with nothing done yet."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(NUM_VIDEOS):
        (source / f"clip{number}.mp4").write_bytes(real_clips[number % 2 + 1].read_bytes())
    layout = Layout(dataset=str(tmp_path / "dataset"), specs=Specs())
    manifest_from_files(str(source), layout.dataset)
    return layout


def metric(page: Page, name: str) -> Locator:
    """The value of a metric of the first stage."""
    return page.get_by_test_id("stMetric").filter(has_text=name).first.get_by_test_id("stMetricValue")


def ended(layout: Layout, number: int, *, error: str = "") -> LedgerRow:
    """The row of a video that has just ended; its source is as the manifest has it."""
    with open(layout.manifest, "rb") as file:
        video = open_parquet(file).read().to_pylist()[number]
    return LedgerRow(
        video_id=video["video_id"],
        video_key=video["video_key"],
        stage="reencode",
        spec_hash=layout.specs.hash_of("reencode"),
        status="failed" if error else "ok",
        error_class=error,
        error_message=f"{video['uri']}: not one frame decodes" if error else "",
        source_size_bytes=video["size_bytes"],
        source_version=video["version"],
        output_uri="" if error else layout.reencoded(video["video_key"]),
        output_bytes=0 if error else 1000,
        duration_s=0.0 if error else 5.0,
        wall_s=1.0,
        finished_unix_s=time.time(),
        node="machine-7",
    )


def test_rows_that_a_job_appends_appear_by_themselves(serve: Callable, begun: Layout, page: Page) -> None:
    ledger = Ledger(begun.ledger("reencode"))
    with serve(begun.dataset) as url:
        page.goto(f"{url}/progress")
        expect(page.get_by_text("Nothing is done yet")).to_be_visible()
        begun.write_spec("reencode")
        ledger.append([ended(begun, 0)])
        expect(page.get_by_text(f"1 of {NUM_VIDEOS} tried, 12.5%")).to_be_visible()
        expect(page.get_by_text("Running", exact=True)).to_be_visible()
        expect(metric(page, "Done")).to_have_text("1")
        assert metric(page, "Time left").text_content() not in ("–", "not running")

        ledger.append([ended(begun, 1), ended(begun, 2, error="CorruptVideoError")])
        expect(metric(page, "Done")).to_have_text("2")
        expect(metric(page, "Failed")).to_have_text("1")
        expect(page.get_by_text("Failures, the latest first")).to_be_visible()
        page.locator(
            ".st-key-table-failures"
        ).scroll_into_view_if_needed()  # its cells are there once it is seen
        failures = page.locator(".st-key-table-failures tbody td")
        expect(failures.filter(has_text="CorruptVideoError").first).to_be_attached()
        nodes = page.locator(f".st-key-table-nodes-reencode-{begun.specs.hash_of('reencode')} tbody td")
        page.locator(".stDataFrame").first.scroll_into_view_if_needed()
        expect(nodes.filter(has_text="machine-7").first).to_be_attached()
        expect(nodes.nth(1)).to_have_text("3")
        page.goto("about:blank")


def test_it_follows_a_real_job_to_its_end(serve: Callable, begun: Layout, page: Page) -> None:
    flags = ["--size", "64x64", "--preset", "ultrafast", "--no-ray", "--quiet"]
    with serve(begun.dataset) as url:
        page.goto(f"{url}/progress")
        expect(page.get_by_text("Nothing is done yet")).to_be_visible()
        job = subprocess.run(
            [*COMMAND, "reencode", begun.dataset, *flags], capture_output=True, text=True, check=False
        )
        assert job.returncode == 0, job.stderr
        expect(page.get_by_text(f"{NUM_VIDEOS} of {NUM_VIDEOS} tried, 100.0%")).to_be_visible()
        expect(metric(page, "Done")).to_have_text(str(NUM_VIDEOS))
        expect(page.get_by_text("there are no shards yet")).to_be_visible()
        page.goto("about:blank")


@pytest.mark.parametrize("width", [800, 1024])
def test_figures_are_not_cut_on_a_small_screen(
    dashboard: str, page: Page, settled: Callable[[Page], None], width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{dashboard}/progress")
    settled(page)
    expect(page.get_by_text("Nothing is left to do")).to_be_visible()
    values = page.get_by_test_id("stMetricValue")
    expect(values).to_have_count(8 + 8 + 6)
    cut = values.evaluate_all(
        """values => values.filter(value => [value, ...value.querySelectorAll("*")].some(
            part => part.scrollWidth > part.clientWidth && part.clientWidth > 0)).map(value => value.innerText)"""
    )
    assert cut == []
