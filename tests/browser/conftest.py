"""A dataset made on the spot of real clips, a dashboard that serves it, and a browser that looks at it.

The browser is Debian's chromium (/usr/bin/chromium, or $CHROMIUM), driven by Playwright. A page that logs an error
to its console fails its test. Screenshots of failures, and those that tests take, go to tests/browser/screenshots,
which git ignores.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, WebSocket, expect
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from cope_prep.jobs.demo_source import arrange_source

COMMAND = [sys.executable, "-c", "from cope_prep.jobs.cli import main; main()"]
FLAGS = ["--size", "128x96", "--gop-size", "60", "--preset", "ultrafast", "--no-ray", "--quiet"]
STARTED_WITHIN_S = 120.0
PATIENCE_MS = 60_000
"""For what may take long on a busy machine; whatever is waited for ends the wait."""
_PROBES = re.compile(r"/\w+/_stcore/(health|host-config)$")
"""Streamlit's page looks for its server below its own path first, and logs that it is not there."""

Serve = Callable[..., contextlib.AbstractContextManager[str]]


def run_command(*arguments: str, exit_code: int = 0) -> str:
    """Run a command of cope-prep as a user would; what it printed."""
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == exit_code, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def cope_prep() -> Callable[..., str]:
    """The function `run_command`, for tests."""
    return run_command


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four real clips in shards, three broken files, questions, and a mix: the demo's sources at a small size."""
    folder = tmp_path_factory.mktemp("browser")
    source, dataset = folder / "source", folder / "dataset"
    arrange_source(str(source))
    run_command("manifest", "llava-video", str(source), str(dataset))
    run_command("run", str(dataset), *FLAGS, exit_code=1)  # 1: some videos failed
    (dataset / "mix.yaml").write_text(
        "datasets:\n"
        "- json_path: 0_30_s_academic_v0_1/0_30_s_academic_oe_v0_1_qa_processed.json\n"
        "  sampling_strategy: all\n"
    )
    return dataset


@contextlib.contextmanager
def serve_dashboard(dataset: Path | str, *flags: str) -> Iterator[str]:
    """A dashboard of its own on a free port, stopped by its process id at the end; its URL."""
    process = subprocess.Popen(
        [*COMMAND, "dashboard", str(dataset), "--port", "0", "--no-browser", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    watchdog = threading.Timer(STARTED_WITHIN_S, process.kill)
    watchdog.start()
    try:
        lines: list[str] = []
        url = None
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"http://\S+", line):
                url = found[0]
                break
        watchdog.cancel()
        assert url is not None, "".join(lines)
        rest = threading.Thread(
            target=lines.extend, args=(process.stderr,)
        )  # or it would block on a full pipe
        rest.start()
        yield url
    finally:
        watchdog.cancel()
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            if url is not None:
                rest.join()
            process.stderr.close()


@pytest.fixture(scope="session")
def serve() -> Serve:
    """`with serve(dataset, *flags) as url`: a dashboard of another dataset."""
    return serve_dashboard


@pytest.fixture(scope="session")
def dashboard(dataset: Path) -> Iterator[str]:
    """URL of a dashboard of `dataset`."""
    with serve_dashboard(dataset) as url:
        yield url


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of a fresh session; at the end, no error may have been in its console, nor any foreign request."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    errors: list[str] = []

    def log(message: ConsoleMessage) -> None:
        if message.type == "error" and not _PROBES.search(message.location["url"]):
            errors.append(f"{message.text} ({message.location['url']})")

    _sessions[page] = session = Session()
    page.on("websocket", session.listen)
    page.on("console", log)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda sent: errors.append(f"asks {sent.url}") if is_foreign(sent.url) else None)
    yield page
    folder = Path(__file__).with_name("screenshots")
    folder.mkdir(exist_ok=True)
    page.screenshot(path=folder / f"{request.node.name.replace('/', '_')}.png")
    context.close()
    assert errors == []


def is_foreign(url: str) -> bool:
    """True if a request would leave this machine."""
    return url.startswith(("http", "ws")) and not re.match(r"(http|ws)://(127\.0\.0\.1|localhost)[:/]", url)


class Session:
    """What a page and its server say to each other: whether the script is yet to run for what was asked of it."""

    def __init__(self) -> None:
        self.is_waiting = False

    def listen(self, socket: WebSocket) -> None:
        socket.on("framesent", self._hear_page)
        socket.on("framereceived", self._hear_server)

    def _hear_page(self, frame: str | bytes) -> None:
        if isinstance(frame, bytes) and BackMsg.FromString(frame).WhichOneof("type") == "rerun_script":
            self.is_waiting = True

    def _hear_server(self, frame: str | bytes) -> None:
        if not isinstance(frame, bytes):
            return
        message = ForwardMsg.FromString(frame)
        is_end = message.WhichOneof("type") == "script_finished"
        if is_end and message.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN:
            self.is_waiting = False


_sessions: weakref.WeakKeyDictionary[Page, Session] = weakref.WeakKeyDictionary()


def settle(page: Page) -> None:
    """Wait until the script has run to its end for all that was asked, and everything is drawn."""
    # What was just clicked is sent in the browser's next rounds.
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 20)))")
    session = _sessions.get(page)
    ends = time.monotonic() + PATIENCE_MS / 1000
    while session is not None and session.is_waiting:
        assert time.monotonic() < ends, "the script does not come to its end"
        page.wait_for_timeout(20)
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')
    expect(page.get_by_test_id("stSpinner")).to_have_count(0)


@pytest.fixture(scope="session")
def settled() -> Callable[[Page], None]:
    """The function `settle`, for tests."""
    return settle
