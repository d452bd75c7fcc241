"""The dashboard at LLaVA-Video-178K's size: seconds from asking for a page to its last element.

    python benchmarks/bench_dashboard.py [--folder FOLDER] [--rounds 3] [--json PATH]

The dataset is that of bench_stats.py: 1.43 M GOPs, 258,600 videos, 1.9 M questions, no shards. A browser (Debian's
chromium by Playwright) opens each page by its address in a session of its own, as a user does who follows a link.
`ready`: from the start of the command until the server answers. `first`: the pages of a server that has just
started, and is still reading the tables. `later`: the same pages when it has read them. `menu`:
chosen in the menu of a session that is open already, where the browser has the program. Then, on Explore, what a
click takes: a text filter over all videos, sorting all of them by a figure, and the last page of that.

Target: pages of the menu, and clicks, in under 2 s. There is no peer that does the same.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
from clips import machine
from playwright.sync_api import Browser, Page, sync_playwright
from synthetic_index import write_dataset
from synthetic_records import write_records

from cope_prep.pipeline import storage

PAGES = {
    "": '[data-testid="stMain"] >> text="Specs"',
    "progress": "text=/Ledgers read at/",
    "explore": 'button:has-text("Download all")',
    "mix": 'h3:has-text("Tokens")',
}
"""Path -> the last element of the page, or of what it draws without scrolling."""
NAMES = {"": "overview"}
SCALE = 1.38
PATIENCE_MS = 90_000


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[str, float]]:
    """A dashboard of its own: its URL, and the seconds until it answered."""
    command = [str(Path(sys.executable).with_name("cope-prep")), "dashboard", str(folder)]
    start_s = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--port", "0", "--no-browser"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r"http://\S+", line)
        if found is None:
            raise SystemExit(line + process.stderr.read())
        yield found[0], time.perf_counter() - start_s
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        process.stderr.close()


def opened_s(browser: Browser, url: str, path: str) -> float:
    """Seconds of a page in a session of its own."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    start_s = time.perf_counter()
    page.goto(f"{url}/{path}")
    settle(page, PAGES[path])
    took_s = time.perf_counter() - start_s
    context.close()
    return took_s


def menu_s(browser: Browser, url: str) -> dict[str, float]:
    """Seconds of each page when it is chosen in the menu, the second time round in one session."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.goto(url)
    settle(page, PAGES[""])
    found: dict[str, float] = {}
    for _ in range(2):
        for path in ("progress", "explore", "mix", ""):
            name = NAMES.get(path, path)
            start_s = time.perf_counter()
            page.get_by_test_id("stSidebarNav").get_by_role("link", name=name.capitalize()).click()
            settle(page, PAGES[path])
            found[name] = time.perf_counter() - start_s
    context.close()
    return found


def complete(folder: Path) -> None:
    """Add to dataset.json what the index's benchmarks need not: the counts and bytes that Progress shows."""
    (path,) = folder.glob("shards/*/dataset.json")
    document = json.loads(path.read_text())
    if "counts" in document:
        return
    index = pq.ParquetFile(path.with_name("index.parquet")).read(
        ["video_id", "num_windows", "num_frames", "size_bytes"]
    )
    document["counts"] = {
        "videos": len(index["video_id"].unique()),
        "gops": len(index),
        "windows": pc.sum(index["num_windows"]).as_py(),
        "seconds": pc.sum(index["num_frames"]).as_py() / 30,
    }
    document["bytes"] = {"total": pc.sum(index["size_bytes"]).as_py()}
    storage.publish_bytes(str(path), json.dumps(document).encode())


def settle(page: Page, last: str) -> None:
    """Until the last element is there and the script has ended."""
    page.wait_for_selector(last, timeout=PATIENCE_MS)
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]', timeout=PATIENCE_MS)


def clicks_s(browser: Browser, url: str) -> dict[str, float]:
    """Seconds of what a user does on Explore."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.goto(f"{url}/explore")
    settle(page, PAGES["explore"])

    def timed(act: Callable[[], None], shown: str) -> float:
        start_s = time.perf_counter()
        act()
        settle(page, shown)
        return time.perf_counter() - start_s

    def contains(text: str) -> None:
        page.get_by_label("Video contains").fill(text)
        page.keyboard.press("Enter")

    def sort() -> None:
        page.get_by_role("combobox", name="Sort by", exact=True).click()
        page.get_by_role("option", name="Residual energy").first.click()

    found = {"filter": timed(lambda: contains("charades"), "text=/ of 258,/")}
    contains("")
    settle(page, "text=/^258,\\d+ videos, 1 to/")
    found["sort"] = timed(sort, "text=/^258,\\d+ videos, 1 to/")
    pages = page.get_by_test_id("stPagination").get_by_role("button").all()
    last = max(pages, key=lambda button: int(f"0{re.sub('[^0-9]', '', button.inner_text())}"))
    found["last_page"] = timed(last.click, "text=/videos, 258,\\d+ to/")
    context.close()
    return found


def main() -> None:
    """Print a line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="Where the dataset is, or is to be kept.")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = arguments.folder or Path(temporary)
        if not list(folder.glob("shards/*/index.parquet")):
            write_records(write_dataset(folder, scale=SCALE, varied_figures=True), scale=SCALE)
        complete(folder)
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
        for _ in range(arguments.rounds):
            with served(folder) as (url, ready_s):
                rows.setdefault("ready", []).append(ready_s)
                for when in ("first", "later"):
                    for path in PAGES:
                        name = f"{when} {NAMES.get(path, path)}"
                        rows.setdefault(name, []).append(opened_s(browser, url, path))
                for name, took_s in menu_s(browser, url).items():
                    rows.setdefault(f"menu {name}", []).append(took_s)
                for name, took_s in clicks_s(browser, url).items():
                    rows.setdefault(f"click {name}", []).append(took_s)
        browser.close()
    median = {name: round(statistics.median(times), 2) for name, times in rows.items()}
    for name, took_s in median.items():
        every = ", ".join(f"{one:.2f}" for one in rows[name])
        print(f"{name:18s} {took_s:6.2f} s  ({every})", flush=True)
    if arguments.json:
        document = {"machine": machine(), "scale": SCALE, "median_s": median, "rounds_s": rows}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
