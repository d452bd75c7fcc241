"""The pictures of the dashboard in README and docs: `python docs/figures/dashboard.py demo-dataset`.

docs/img/dashboard-{clip,tokens,overview}.jpg     from the dataset that `make demo` leaves
"""

from __future__ import annotations

import contextlib
import io
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).parents[1] / "img"
COMMAND = [sys.executable, "-c", "from cope_prep.jobs.cli import main; main()"]
CLIP = "liwei_youtube_videos/videos/bigbuckbunny.mp4"
QUALITY = 82
PATIENCE_MS = 120_000


@contextlib.contextmanager
def dashboard(dataset: str) -> Iterator[str]:
    """A dashboard on a free port; its URL."""
    process = subprocess.Popen(
        [*COMMAND, "dashboard", dataset, "--port", "0", "--no-browser"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        yield next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def page_of(browser: Browser, scheme: str, size: tuple[int, int]) -> Page:
    """A new page, dark or light."""
    width, height = size
    page = browser.new_page(
        color_scheme="dark" if scheme == "dark" else "light", viewport={"width": width, "height": height}
    )
    page.set_default_timeout(PATIENCE_MS)
    return page


def save(page: Page, name: str) -> None:
    """What is seen of the page, as a JPEG in docs/img."""
    page.wait_for_timeout(1500)  # plotly's own animations
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.save(IMAGES / f"{name}.jpg", quality=QUALITY, optimize=True)


def settle(page: Page) -> None:
    """Wait until Streamlit has drawn all of it."""
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')
    page.wait_for_selector('[data-testid="stSpinner"]', state="detached")


def main(dataset: str) -> None:
    """Draw all of them."""
    with sync_playwright() as playwright, dashboard(dataset) as url:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        clip = page_of(browser, "dark", (1440, 1290))
        clip.goto(f"{url}/clip?video={CLIP}&gop=0&anchor=3")
        settle(clip)
        save(clip, "dashboard-clip")
        clip.set_viewport_size({"width": 1440, "height": 1120})
        clip.get_by_role("heading", name="Along the video").evaluate("heading => heading.scrollIntoView()")
        save(clip, "dashboard-tokens")
        overview = page_of(browser, "light", (1440, 1180))
        overview.goto(url)
        settle(overview)
        save(overview, "dashboard-overview")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
