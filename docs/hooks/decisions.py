"""MkDocs hook: puts every docs/decisions/NNNN-title.md into the navigation, and into the list on its index page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "decisions"
PLACE = "<!-- decisions -->"


def decision_pages() -> list[Path]:
    """In order of their numbers."""
    return sorted(FOLDER.glob("[0-9]*.md"))


def on_config(config: Any) -> Any:
    """MkDocs calls this once, before it reads the navigation."""
    (section,) = [entry["Decisions"] for entry in config.nav if "Decisions" in entry]
    for page in decision_pages():
        number, _, name = page.stem.partition("-")
        words = [word.upper() if word in ("gop", "jpeg") else word for word in name.split("-")]
        title = " ".join([f"{int(number)}.", words[0][0].upper() + words[0][1:], *words[1:]])
        section.append({title: f"decisions/{page.name}"})
    return config


def on_page_markdown(markdown: str, **_: object) -> str:
    """MkDocs calls this with each page's text."""
    if PLACE not in markdown:
        return markdown
    rows = ["| | |", "|---|---|"]
    for page in decision_pages():
        number, _, title = page.read_text().partition("\n")[0].removeprefix("# ").partition(". ")
        rows.append(f"| {number} | [{title}]({page.name}) |")
    return markdown.replace(PLACE, "\n".join(rows))
