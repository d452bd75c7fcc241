"""Every page of the dashboard opens without an error, in either theme, and stays up with bad datasets."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, Page, expect

from cope_prep.pipeline.layout import Layout, Specs

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))
import stats_rows

PAGES = {
    "": "Overview",
    "progress": "Progress",
    "explore": "Explore",
    "clip": "Clip",
    "compare": "Compare",
    "mix": "Mix",
}
"""Path -> title. test_clip.py and test_compare.py have more of Clip and Compare."""

Settled = Callable[[Page], None]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_opens_by_its_address(dashboard: str, page: Page, settled: Settled, path: str) -> None:
    page.goto(f"{dashboard}/{path}")
    settled(page)
    expect(page.get_by_role("heading", name=PAGES[path], exact=True)).to_be_visible()
    expect(page.get_by_test_id("stAlertContentError")).to_have_count(0)
    expect(page.get_by_test_id("stException")).to_have_count(0)


def test_the_menu_leads_to_every_page(dashboard: str, page: Page, settled: Settled) -> None:
    page.goto(dashboard)
    settled(page)
    for path, title in PAGES.items():
        page.get_by_test_id("stSidebarNav").get_by_role("link", name=title).click()
        settled(page)
        expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
        assert page.url.rstrip("/") == f"{dashboard}/{path}".rstrip("/")
        expect(page.get_by_test_id("stAlertContentError")).to_have_count(0)


def test_overview_has_the_figures_of_the_dataset(dashboard: str, page: Page, settled: Settled) -> None:
    page.goto(dashboard)
    settled(page)
    metrics = page.get_by_test_id("stMetric")
    expect(metrics.filter(has_text="Videos")).to_contain_text("7")
    expect(metrics.filter(has_text="Failed")).to_contain_text("3")
    expect(page.get_by_text("42.9 % of the videos (3 of 7) failed.")).to_be_visible()
    expect(page.get_by_text("(1,234)")).to_have_count(0)
    for tab in ("Motion and residual", "Sources", "Questions", "Tokens"):
        page.get_by_role("tab", name=tab, exact=True).click()
        expect(page.locator(".js-plotly-plot:visible").first).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_the_browsers(browser: Browser, dashboard: str, settled: Settled, scheme: str) -> None:
    context = browser.new_context(color_scheme="dark" if scheme == "dark" else "light")
    try:
        page = context.new_page()
        page.goto(dashboard)
        settled(page)
        colour = page.get_by_test_id("stApp").evaluate("element => getComputedStyle(element).backgroundColor")
        level = sum(map(int, colour[colour.index("(") + 1 : -1].split(",")[:3])) / 3
        assert level < 64 if scheme == "dark" else level > 192
    finally:
        context.close()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("empty", {"": "is no dataset", "progress": "has no manifest", "explore": "is no dataset"}),
        ("unreachable", dict.fromkeys(PAGES, "127.0.0.1:9")),
    ],
)
def test_a_bad_dataset_is_said_and_the_app_stays_up(
    serve: Callable, tmp_path: Path, page: Page, settled: Settled, wrong: str, said: dict[str, str]
) -> None:
    # Many more of them: tests/jobs/test_dashboard_pages.py.
    dataset = str(tmp_path) if wrong == "empty" else "http://KEY:SECRET@127.0.0.1:9/dataset"
    with serve(dataset) as url:
        for path, text in said.items():
            page.goto(f"{url}/{path}")
            settled(page)
            expect(page.get_by_role("heading", name=PAGES[path], exact=True)).to_be_visible()
            expect(page.get_by_test_id("stAlertContentError")).to_contain_text(text)
            assert "SECRET" not in page.content()
        page.goto("about:blank")  # before its server goes


def test_a_run_that_begins_is_found_without_a_restart(
    serve: Callable, dataset: Path, tmp_path: Path, page: Page, settled: Settled
) -> None:
    with serve(tmp_path / "dataset") as url:
        page.goto(url)
        settled(page)
        expect(page.get_by_test_id("stAlertContentError")).to_contain_text("is no dataset")
        shutil.copytree(dataset, tmp_path / "dataset")
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_test_id("stMetric").filter(has_text="Videos")).to_contain_text("7")
        expect(page.get_by_test_id("stAlertContentError")).to_have_count(0)
        page.goto("about:blank")


NAMES = (
    ":material/home:",
    ":streamlit:",
    ":cat: :+1:",
    "a -- b --- c",
    "-> <- <-> >= <= ~=",
    "http://evil.example/x",
    "www.evil.example",
    "me@evil.example",
    "**b** `c` $x$ :red[r] [l](http:x)",
    "<b>b</b> &amp; \\ 1. # x | y ~~s~~",
)


def test_any_name_is_shown_as_it_is(serve: Callable, tmp_path: Path, page: Page, settled: Settled) -> None:
    layout = Layout(dataset=str(tmp_path / "dataset"), specs=Specs())
    rows = stats_rows.make_rows(layout)
    named = f"z {' | '.join(NAMES)}"
    rows.manifest[0]["video_id"] = named
    stats_rows.write(rows)
    with serve(layout.dataset) as url:
        page.goto(f"{url}/clip?{urlencode({'video': named})}")
        settled(page)
        heading = page.get_by_test_id("stMain").get_by_role("heading", level=3).first
        expect(heading).to_be_visible()
        assert (heading.text_content() or "").replace("\u2060", "") == named
        for kind in ("a", "code", "strong", "img", "[data-testid=stIconMaterial]", ".katex", "span[style]"):
            expect(heading.locator(kind)).to_have_count(0)
        page.goto("about:blank")


def test_overview_opens_by_its_name_too(dashboard: str, page: Page, settled: Settled) -> None:
    page.goto(f"{dashboard}/overview")
    settled(page)
    expect(page.get_by_role("heading", name="Overview", exact=True)).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)
