"""Explore in a browser: filters change the table, sorting sorts it, pages go through it, rows lead to clips."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Locator, Page, expect

from cope_prep.pipeline.explore import open_videos
from cope_prep.pipeline.layout import Layout, Specs, the_specs

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))
import stats_rows

Settled = Callable[[Page], None]


@pytest.fixture
def videos(dataset: Path) -> list[dict[str, Any]]:
    """What the table is to show of the real clips."""
    layout = Layout(dataset=str(dataset), specs=the_specs(str(dataset), "shards"))
    return open_videos(layout).find().rows.to_pylist()


@pytest.fixture(scope="module")
def sixty(serve: Callable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dashboard of tables of 60 videos: three pages of 25."""
    layout = Layout(dataset=str(tmp_path_factory.mktemp("sixty") / "dataset"), specs=Specs())
    stats_rows.write(stats_rows.make_rows(layout))
    for stage in ("reencode", "extract", "shards"):
        layout.write_spec(stage)
    with serve(layout.dataset) as url:
        yield url


def cells(page: Page, title: str) -> Locator:
    """The cells of a column, with their values as they are: the table is a picture, and has these for readers."""
    place = page.locator(".st-key-rows th", has_text=re.compile(f"^{re.escape(title)}$")).get_attribute(
        "aria-colindex"
    )
    return page.locator(f'.st-key-rows tbody td[aria-colindex="{place}"]')


def choose(page: Page, label: str, option: str) -> None:
    """Choose an option of a box."""
    page.get_by_role("combobox", name=label, exact=True).click()
    page.get_by_role("option", name=option).first.click()
    page.keyboard.press("Escape")


def shown_ids(videos: list[dict[str, Any]]) -> list[str]:
    return [row["video_id"] for row in videos]


def test_rows_are_the_videos(
    dashboard: str, page: Page, settled: Settled, videos: list[dict[str, Any]]
) -> None:
    page.goto(f"{dashboard}/explore")
    settled(page)
    expect(page.get_by_text("7 videos, 1 to 7 shown")).to_be_visible()
    expect(cells(page, "Video")).to_have_text(shown_ids(videos))
    expect(cells(page, "Subset")).to_have_text([row["subset"] for row in videos])
    links = cells(page, "Clip").all_text_contents()
    assert [parse_qs(urlsplit(link).query)["video"] for link in links] == [
        [name] for name in shown_ids(videos)
    ]
    assert {urlsplit(link).path for link in links} == {"/clip"}


def test_filters_change_the_table(
    dashboard: str, page: Page, settled: Settled, videos: list[dict[str, Any]]
) -> None:
    page.goto(f"{dashboard}/explore")
    settled(page)
    page.get_by_label("Video contains").fill("CARPHONE")
    page.keyboard.press("Enter")
    named = [row for row in videos if "carphone" in row["video_id"]]
    assert 0 < len(named) < len(videos)
    expect(page.get_by_text(f"{len(named)} of 7 videos")).to_be_visible()
    expect(cells(page, "Video")).to_have_text(shown_ids(named))

    page.get_by_label("Video contains").fill("")
    page.keyboard.press("Enter")
    choose(page, "Error", "NotAVideoError")
    broken = [row for row in videos if row["error_class"] == "NotAVideoError"]
    assert len(broken) == 1
    expect(cells(page, "Video")).to_have_text(shown_ids(broken))
    page.get_by_label("Video contains").fill("' OR '1'='1")
    page.keyboard.press("Enter")
    expect(page.get_by_text("No video matches.")).to_be_visible()
    expect(page.get_by_role("button", name="Download all")).to_be_disabled()


def test_any_column_can_be_a_filter(
    dashboard: str, page: Page, settled: Settled, videos: list[dict[str, Any]]
) -> None:
    page.goto(f"{dashboard}/explore")
    settled(page)
    choose(page, "Filter by", "Duration")
    settled(page)
    page.get_by_role("spinbutton", name="Duration (s) from").fill("5")
    page.keyboard.press("Enter")
    long = [row for row in videos if (row["duration_s"] or 0) >= 5]
    assert 0 < len(long) < len(videos)
    expect(cells(page, "Video")).to_have_text(shown_ids(long))


def test_sorting_sorts_all_rows(
    dashboard: str, page: Page, settled: Settled, videos: list[dict[str, Any]]
) -> None:
    page.goto(f"{dashboard}/explore")
    settled(page)
    choose(page, "Sort by", "Motion, mean")
    known = sorted(
        (row for row in videos if row["motion_mean_px"] is not None), key=lambda row: row["motion_mean_px"]
    )
    unknown = [row for row in videos if row["motion_mean_px"] is None]
    assert len(known) > 2
    expect(cells(page, "Video")).to_have_text(shown_ids([*known, *unknown]))
    page.get_by_text("descending", exact=True).click()
    expect(cells(page, "Video")).to_have_text(shown_ids([*reversed(known), *unknown]))


def test_the_filtered_list_can_be_downloaded(
    dashboard: str, page: Page, settled: Settled, videos: list[dict[str, Any]]
) -> None:
    page.goto(f"{dashboard}/explore")
    settled(page)
    page.get_by_label("Video contains").fill("carphone")
    page.keyboard.press("Enter")
    expect(page.get_by_text("of 7 videos")).to_be_visible()
    settled(page)  # or the button may be drawn anew between the click and the file
    with page.expect_download() as download:
        page.get_by_role("button", name="Download all").click()
    assert download.value.suggested_filename == "videos.csv"
    with open(download.value.path(), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    named = [row for row in videos if "carphone" in row["video_id"]]
    assert [row["video_id"] for row in rows] == shown_ids(named)
    assert [float(row["psnr_min_db"]) for row in rows] == pytest.approx(
        [row["psnr_min_db"] for row in named], rel=1e-5
    )


def test_pages_go_through_all_rows(sixty: str, page: Page, settled: Settled) -> None:
    page.goto(f"{sixty}/explore")
    settled(page)
    choose(page, "Rows", "25")
    expect(page.get_by_text("60 videos, 1 to 25 shown")).to_be_visible()
    expect(cells(page, "Video").first).to_have_text("clips/000.mp4")
    pager = page.get_by_test_id("stPagination")
    pager.get_by_role("button", name="3").click()
    expect(page.get_by_text("60 videos, 51 to 60 shown")).to_be_visible()
    expect(cells(page, "Video")).to_have_text([f"clips/{number:03d}.mp4" for number in range(50, 60)])
    page.get_by_label("Video contains").fill("clips/0")
    page.keyboard.press("Enter")
    expect(page.get_by_text("60 videos, 1 to 25 shown")).to_be_visible()  # another question begins anew
    expect(cells(page, "Video").first).to_have_text("clips/000.mp4")


def test_a_row_leads_to_its_clip(
    dashboard: str, page: Page, settled: Settled, videos: list[dict[str, Any]]
) -> None:
    page.goto(f"{dashboard}/explore")
    settled(page)
    failed = next(place for place, row in enumerate(videos) if row["error_class"])
    tick(page, failed)
    expect(page.get_by_test_id("stAlertContentError")).to_contain_text(videos[failed]["error_class"])
    page.get_by_role("link", name="Open the clip").click()
    page.wait_for_url("**/clip?video=*")
    assert parse_qs(urlsplit(page.url).query)["video"] == [videos[failed]["video_id"]]
    settled(page)


def tick(page: Page, place: int) -> None:
    """Click on the box of a row."""
    cells(page, "Video").first.wait_for(state="attached")
    box = page.locator(".st-key-rows canvas").first.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 16, box["y"] + 35 * place + 35 + 17)


def test_another_order_ticks_no_other_video(
    dashboard: str, page: Page, settled: Settled, videos: list[dict[str, Any]]
) -> None:
    page.goto(f"{dashboard}/explore")
    settled(page)
    tick(page, 0)
    link = page.get_by_role("link", name="Open the clip")
    expect(link).to_be_visible()
    page.get_by_text("descending", exact=True).click()
    expect(cells(page, "Video").first).to_have_text(videos[-1]["video_id"])
    settled(page)
    expect(link).to_have_count(0)


def test_what_was_asked_is_kept_while_another_page_is_looked_at(
    sixty: str, page: Page, settled: Settled
) -> None:
    page.goto(f"{sixty}/explore")
    settled(page)
    page.get_by_label("Video contains").fill("clips/0")
    page.keyboard.press("Enter")
    settled(page)
    choose(page, "Filter by", "Duration")
    settled(page)
    page.get_by_role("spinbutton", name="Duration (s) to").or_(
        page.get_by_role("spinbutton", name="to", exact=True)
    ).first.fill("1000")
    page.keyboard.press("Enter")
    settled(page)
    choose(page, "Rows", "25")
    page.get_by_text("descending", exact=True).click()
    settled(page)
    page.get_by_test_id("stPagination").get_by_role("button", name="2").click()
    shown = page.get_by_text(re.compile(r"of 60 videos, 26 to \d+ shown"))
    expect(shown).to_be_visible()
    settled(page)
    before = cells(page, "Video").all_text_contents()
    for name in ("Progress", "Explore"):
        page.get_by_test_id("stSidebarNav").get_by_role("link", name=name).click()
        settled(page)
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
    expect(shown).to_be_visible()
    expect(page.get_by_label("Video contains")).to_have_value("clips/0")
    expect(cells(page, "Video")).to_have_text(before)


def test_one_of_many_is_said_so(
    dashboard: str, page: Page, settled: Settled, videos: list[dict[str, Any]]
) -> None:
    page.goto(f"{dashboard}/explore")
    settled(page)
    page.get_by_label("Video contains").fill(videos[0]["video_id"])
    page.keyboard.press("Enter")
    expect(page.get_by_text("1 of 7 videos, 1 to 1 shown")).to_be_visible()
