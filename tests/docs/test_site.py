"""The documentation site builds without a warning, holds every page and command, and asks nobody for anything."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from blocks import DOCS, ROOT
from site_build import build

from cope_prep.pipeline import loader
from cope_prep.schemas import errors, records, specs

PAGES = sorted(path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md"))


class Links(HTMLParser):
    """What a page loads by itself, what it links to, and the ids in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.ids: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids.add(found.get("id", ""))
        self.loaded += [found[name] for name in ("src", "srcset", "data", "poster") if name in found]
        if "href" in found:
            (self.linked if tag in ("a", "area") else self.loaded).append(found["href"])


def test_every_page_is_there_and_in_the_navigation(site: Path) -> None:
    assert len(PAGES) > 25
    assert [page for page in PAGES if not (site / page).is_file()] == []
    html = (site / "index.html").read_text()
    navigation = Links(html[html.index("md-nav--primary") :]).linked
    assert [page for page in PAGES if str(page) not in {*navigation, "index.html"}] == []


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    num_loaded = 0
    for page in site.rglob("*.html"):
        for address in Links(page.read_text()).loaded:
            assert not re.match(r"(\w+:)?//", address), f"{page.name} loads {address}"
            num_loaded += 1
    assert num_loaded > 5 * len(PAGES)
    for sheet in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\s]*", sheet.read_text()) == []


def test_every_link_leads_somewhere(site: Path) -> None:
    """MkDocs checks links of Markdown; this those of HTML and of the generated references, too."""
    pages = {page: Links(page.read_text()) for page in site.rglob("*.html") if page.name != "404.html"}
    num_links = 0
    for page, links in pages.items():
        for address in links.linked:
            path, _, anchor = address.partition("#")
            if re.match(r"\w+:", path):
                continue
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.relative_to(site)}: {address}"
            if anchor and target in pages:
                assert anchor in pages[target].ids, f"{page.relative_to(site)}: {address}"
            num_links += 1
    assert num_links > 1000


def test_reference_has_every_command_and_flag(site: Path) -> None:
    import typer.main

    from cope_prep.jobs.cli import app

    links = Links((site / "cli.html").read_text())
    text = re.sub(r"<[^>]+>", "", (site / "cli.html").read_text())
    waiting, num_flags = [("", typer.main.get_command(app))], 0
    while waiting:
        name, command = waiting.pop()
        for child, found in getattr(command, "commands", {}).items():
            waiting.append((f"{name} {child}".strip(), found))
        if hasattr(command, "commands"):
            continue
        assert name.replace(" ", "-") in links.ids
        for param in command.params:
            if param.param_type_name == "option" and not param.hidden:
                assert all(re.search(rf"(?<![\w-]){flag}(?![\w-])", text) for flag in param.opts), param.opts
                num_flags += 1
    assert num_flags > 100


def test_python_reference_has_what_one_imports(site: Path) -> None:
    ids = {found.rpartition(".")[2] for found in Links((site / "api.html").read_text()).ids}
    entry_points = {"reencode_video", "extract_gops", "rebuild_anchors", "DeltaEncoder"}
    for module in (errors, records, specs):
        entry_points |= {
            name
            for name, found in vars(module).items()
            if getattr(found, "__module__", "") == module.__name__ and not name.startswith("_")
        }
    assert len(entry_points) > 35
    assert sorted(entry_points | set(loader.__all__)) == sorted((entry_points | set(loader.__all__)) & ids)


def test_figures_are_drawn_into_the_page(site: Path) -> None:
    assert (site / "concepts.html").read_text().count('<svg class="figure"') == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Fine.", ""),
        ("[a](other.md)", "other.md"),
        ("[a](#not-there)", "not-there"),
        ("[a](/absolute)", "/absolute"),
        ("Another page is in no navigation.", "outside.md"),
        ('--8<-- "nothing.svg"', "nothing.svg"),
    ],
)
def test_a_mistake_fails_the_build(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Title\n\n{text}\n")
    if said == "outside.md":
        (tmp_path / "docs" / said).write_text("# Outside\n")
    config = {
        "INHERIT": str(ROOT / "mkdocs.yml"),
        "docs_dir": "docs",
        "nav": ["index.md"],
        "hooks": [],
        "plugins": [],
    }
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config))
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert (done.returncode != 0) == bool(said), done.stderr
    assert said in done.stderr
