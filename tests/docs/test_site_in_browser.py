"""The built site in a browser, from the disk: pages fit a phone, ask nothing of the net, and search finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from blocks import DOCS

PAGES = sorted(path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md"))
DESKTOP, PHONE = {"width": 1360, "height": 900}, {"width": 390, "height": 844}


def open_page(browser: Any, *, scheme: str, size: dict[str, int]) -> tuple[Any, list[str]]:
    """A page, and the list of what goes wrong on it: messages of errors, requests that fail or leave the disk."""
    page = browser.new_context(viewport=size, color_scheme=scheme).new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(request.url))
    page.on("request", lambda request: None if request.url.startswith("file:") else wrong.append(request.url))
    return page, wrong


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone_and_have_no_errors(site: Path, browser: Any, scheme: str) -> None:
    page, wrong = open_page(browser, scheme=scheme, size=PHONE)
    too_wide = []
    for name in PAGES:
        page.goto((site / name).as_uri())
        assert page.locator("h1").count() == 1, name
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            too_wide.append(str(name))
    assert too_wide == []
    assert wrong == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 3 * 128) == (scheme == "dark")


def test_search_finds_an_error_and_leads_to_it(site: Path, browser: Any) -> None:
    page, wrong = open_page(browser, scheme="light", size=DESKTOP)
    page.goto((site / "recipes" / "s3.html").as_uri())
    page.click(".md-search__input")
    page.keyboard.type("WorkerDiedError")
    found = page.locator(".md-search-result__link", has_text="Troubleshooting")
    found.first.click()
    page.wait_for_url("**/troubleshooting.html*")
    assert wrong == []


def test_figures_change_with_the_scheme(site: Path, browser: Any) -> None:
    colours = []
    for scheme in ("light", "dark"):
        page, wrong = open_page(browser, scheme=scheme, size=DESKTOP)
        page.goto((site / "concepts.html").as_uri())
        text = page.locator("svg.figure text").first
        colours.append(text.evaluate("node => getComputedStyle(node).fill"))
        assert wrong == []
    assert colours[0] != colours[1]
