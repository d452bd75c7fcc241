"""The report in Debian's chromium: a file on disk, dark and light, on a phone, on paper, and without scripts."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

PHONE_PX, PAPER_PX = 390, 703


@pytest.fixture(scope="module")
def report(dataset: Path, cope_prep: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of four real clips and three broken files, with subsets and questions."""
    page = tmp_path_factory.mktemp("report") / "report.html"
    cope_prep("stats", str(dataset), "--html", str(page), "--quiet")
    return page


@contextlib.contextmanager
def opened(browser: Browser, report: Path, **context: Any) -> Iterator[Page]:
    """The report in a fresh session; at the end, nothing else was asked for, and nothing was complained of."""
    session = browser.new_context(**context)
    page = session.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    yield page
    session.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [report.as_uri()]


def background(page: Page) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def text_and_page_luminance(page: Page, selector: str) -> list[float]:
    """Grey levels, 0 to 255, of an element's text and of the page."""
    colours = page.evaluate(
        """selector => {
            const style = getComputedStyle(document.querySelector(selector));
            return [selector.includes('text') ? style.fill : style.color,
                    getComputedStyle(document.body).backgroundColor];
        }""",
        selector,
    )
    return [sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in colours]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_from_disk_and_follows_the_scheme(scheme: Any, browser: Browser, report: Path) -> None:
    with opened(browser, report, color_scheme=scheme) as page:
        charts = page.locator(".chart")
        assert charts.count() == 16
        for chart in charts.all():
            expect(chart.locator(".barlayer path, .scatterlayer path").first).to_be_attached()
        for selector in ("h1", ".chart .ytick text", ".chart .xtick text", "td"):
            text, around = text_and_page_luminance(page, selector)
            assert abs(text - around) > 90, selector
            assert (around > 128) == (scheme == "light")
        before = background(page)
        page.get_by_role("button", name="Switch between dark and light").click()
        assert background(page) != before
        text, around = text_and_page_luminance(page, ".chart .ytick text")
        assert abs(text - around) > 90
        page.get_by_role("button", name="Switch between dark and light").click()
        assert background(page) == before


@pytest.mark.parametrize(
    ("chart", "words"),
    [
        ("chart-bytes", "KiB a second of video"),
        ("chart-failures", "Failed: 1 of 2 videos, 50.00 %"),
        ("chart-tokens", "tokens a second of video"),
        ("chart-resolution", "of 4 videos"),
        ("distribution-motion_mean_px", "windows"),
    ],
)
def test_a_bar_says_what_it_is(chart: str, words: str, browser: Browser, report: Path) -> None:
    with opened(browser, report) as page:
        bars = page.locator(f"#{chart} .barlayer .point path")
        expect(bars.first).to_be_attached()
        largest = bars.evaluate_all(
            """bars => bars.map(bar => bar.getBoundingClientRect()).map(box => box.width * box.height)
                   .reduce((best, area, index, all) => area > all[best] ? index : best, 0)"""
        )
        bars.nth(largest).scroll_into_view_if_needed()
        box = bars.nth(largest).bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
        expect(page.locator(f"#{chart} .hoverlayer .hovertext").first).to_contain_text(words)


def test_the_figure_is_a_choice(browser: Browser, report: Path) -> None:
    with opened(browser, report) as page:
        shown = page.locator(".panel:visible")
        expect(shown).to_have_count(1)
        expect(shown).to_contain_text("Motion, mean")
        page.get_by_label("Figure", exact=True).select_option(label="Rebuilt luma PSNR (dB)")
        expect(shown).to_have_count(1)
        expect(shown.locator("figcaption")).to_have_text("Rebuilt luma PSNR (dB)")
        assert shown.locator(".barlayer .point").count() > 0
        chart = shown.locator(".chart").bounding_box()
        picture = shown.locator(".main-svg").first.bounding_box()
        assert chart is not None
        assert picture is not None
        assert picture["width"] == pytest.approx(chart["width"], abs=2)


def test_a_sheet_is_enlarged_and_linked(browser: Browser, report: Path) -> None:
    with opened(browser, report) as page:
        sheets = page.locator(".sheet img")
        assert sheets.count() >= 3
        sheets.first.click()
        large = page.locator("dialog img")
        expect(large).to_be_visible()
        assert large.evaluate("image => image.complete && image.naturalWidth") > 900
        page.keyboard.press("Escape")
        expect(large).not_to_be_visible()
        link = page.locator("#outliers td a").first
        link.click()
        target = link.get_attribute("href")
        assert target is not None
        expect(page.locator(f"{target} figcaption")).to_contain_text(link.inner_text())
        expect(page.locator(target)).to_be_in_viewport()


def test_a_phone_shows_all_without_scrolling_sideways(browser: Browser, report: Path) -> None:
    phone = {"width": PHONE_PX, "height": 800}
    with opened(browser, report, viewport=phone, is_mobile=True, has_touch=True) as page:
        page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE_PX
        widths = page.locator(".chart .main-svg").evaluate_all(
            "pictures => pictures.map(picture => picture.getBoundingClientRect().width)"
        )
        assert len(widths) > 20
        assert max(widths) < PHONE_PX
        for tile in page.locator(".tile, .findings li").all():
            box = tile.bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= PHONE_PX


def test_paper_shows_every_section_in_full(browser: Browser, report: Path) -> None:
    width = {"width": PAPER_PX, "height": 1000}
    with opened(browser, report, viewport=width, color_scheme="dark") as page:
        page.emulate_media(media="print")
        for section in page.locator("section").all():
            expect(section).to_be_visible()
        assert page.locator("details:not([open])").count() == 0
        assert page.locator(".panel:visible").count() == page.locator(".panel").count() >= 8
        assert page.locator("nav:visible, #theme:visible, #figure:visible").count() == 0
        assert background(page) == "rgb(255, 255, 255)"
        assert page.evaluate("document.documentElement.scrollWidth") == PAPER_PX
        widths = page.locator(".panel .main-svg").evaluate_all(
            "pictures => pictures.map(picture => picture.getBoundingClientRect().width)"
        )
        assert min(widths) > 600
        assert max(widths) <= PAPER_PX
        page.emulate_media(media="screen")
        expect(page.locator(".panel:visible")).to_have_count(1)
        assert page.locator("details:not([open])").count() > 0
        assert len(page.pdf(format="A4")) > 100_000


def test_without_scripts_the_tables_are_there(browser: Browser, report: Path) -> None:
    with opened(browser, report, java_script_enabled=False) as page:
        expect(page.get_by_text("The charts need JavaScript")).to_be_visible()
        expect(page.locator("#counts")).to_contain_text("0_30_s_youtube")
        assert page.locator("#look li").count() > 2
