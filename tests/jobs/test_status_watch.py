"""`status --watch` as a user has it: on a terminal while a job runs, in a log, as JSON, and in trouble."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console
from status_tables import NOW_UNIX_S, append, make_row, write_index, write_manifest
from typer.testing import CliRunner

from cope_prep.jobs import status_watch
from cope_prep.jobs.cli import app
from cope_prep.jobs.status import StatusReader, dataset_status
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.ledger import Ledger
from cope_prep.schemas.errors import ConfigurationError, StorageError

if TYPE_CHECKING:
    from cope_prep.jobs.executors import RayExecutor

COMMAND = [sys.executable, "-c", "from cope_prep.jobs.cli import main; main()"]
SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"
ENTER_SCREEN, LEAVE_SCREEN = "\x1b[?1049h", "\x1b[?1049l"
WAIT_S = 60.0


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, *arguments: str, width: int, height: int) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        self._fd = ours
        self.output = ""

    def read_until(self, condition: Callable[[str], object], *, what: str) -> None:
        """Read until it holds of all that was written, escape sequences included."""
        deadline_s = time.monotonic() + WAIT_S
        while not condition(self.output):
            assert time.monotonic() < deadline_s, f"no {what} in {self.output[-3000:]}"
            assert self._read(), f"ended without {what}: {self.output[-3000:]}"

    def end(self) -> int:
        """Read what is left; the exit code."""
        deadline_s = time.monotonic() + WAIT_S
        while self._read():
            assert time.monotonic() < deadline_s, self.output[-3000:]
        os.close(self._fd)
        return self.process.wait(WAIT_S)

    def _read(self) -> bool:
        if select.select([self._fd], [], [], 0.2)[0]:
            try:
                chunk = os.read(self._fd, 65536)
            except OSError:  # the other end is closed
                return False
            self.output += chunk.decode(errors="replace")
            return bool(chunk)
        return True


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(dataset=str(tmp_path / "dataset"), specs=Specs())


@pytest.fixture
def half_done(layout: Layout) -> Layout:
    """Nothing has ended for long, and something is pending."""
    write_manifest(layout, {f"v{index}": 100 for index in range(4)})
    rows = [
        make_row(layout, "reencode", f"v{index}", finished_unix_s=time.time() - 500) for index in range(2)
    ]
    append(layout, "reencode", *rows)
    return layout


def test_follows_a_run_on_a_terminal_to_its_end(
    tmp_path: Path, media: ModuleType, ray_executor: RayExecutor
) -> None:
    import ray

    source, dataset = tmp_path / "source", str(tmp_path / "dataset")
    source.mkdir()
    for index in range(8):
        media.write_clip(source / f"clip{index}.mp4", num_frames=90, painter=media.moving)
    (source / "broken [1].mp4").write_bytes(b"no video" * 99)
    subprocess.run([*COMMAND, "manifest", "files", str(source), dataset], check=True, capture_output=True)
    terminal = Terminal("status", dataset, "--watch", "--every", "0.2", width=200, height=30)
    terminal.read_until(lambda text: "Nothing is done yet" in text, what="word of the beginning")
    assert ENTER_SCREEN in terminal.output
    assert HIDE_CURSOR in terminal.output
    address = ray.get_runtime_context().gcs_address
    with subprocess.Popen(
        [*COMMAND, "run", dataset, "--address", address, "-q"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as job:
        code = terminal.end()  # it ends by itself
        assert job.wait(WAIT_S) == 1  # one failed
    assert code == 0, terminal.output[-3000:]
    text = plain(terminal.output)
    assert len(set(re.findall(r"(\d)/9 ", text))) >= 3  # it moved
    for word in (
        "videos/s",
        "s of video/s",
        "Latest failures",
        "NotAVideoError",
        "broken [1].mp4",
    ):
        assert word in text
    assert terminal.output.rindex(SHOW_CURSOR) > terminal.output.rindex(HIDE_CURSOR)
    after = plain(terminal.output[terminal.output.rindex(LEAVE_SCREEN) :])
    assert "8/9" in after  # the usual tables
    assert "1 failed" in after
    assert "Traceback" not in text


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_it_and_gives_the_terminal_back(half_done: Layout, signum: int, code: int) -> None:
    terminal = Terminal("status", half_done.dataset, "--watch", width=100, height=30)
    terminal.read_until(
        lambda text: "not running: nothing ended for 8 min" in plain(text), what="word of the pause"
    )
    os.kill(terminal.process.pid, signum)
    assert terminal.end() == code
    assert terminal.output.rindex(SHOW_CURSOR) > terminal.output.rindex(HIDE_CURSOR)
    after = plain(terminal.output[terminal.output.rindex(LEAVE_SCREEN) :])
    assert after.strip() == "cope-prep: no longer watching; a job that runs goes on."


def begin_piped(layout: Layout, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "status", layout.dataset, "--watch", "--every", "0.2", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def complete(layout: Layout) -> None:
    """All that is left ends, shards and all."""
    append(layout, "reencode", *(make_row(layout, "reencode", f"v{i}") for i in (2, 3)))
    rows = [make_row(layout, "extract", f"v{i}", source_size_bytes=50) for i in range(4)]
    append(layout, "extract", *rows)
    write_index(layout, num_videos=4)


def test_log_gets_plain_lines_also_of_what_goes_wrong(half_done: Layout) -> None:
    process = begin_piped(half_done)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert re.match(r"reencode \w+: 2/4 done, 0 partial, 0 failed, 2 pending; .* not running", line)
    folder = Path(half_done.dataset)
    folder.rename(folder.with_name("elsewhere"))
    while "has no manifest.parquet" not in (line := process.stdout.readline()):
        assert "2/4 done" in line
    folder.with_name("elsewhere").rename(folder)
    while "2/4 done" not in (line := process.stdout.readline()):
        assert "has no manifest.parquet" in line
    complete(half_done)
    rest, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    assert "4/4 done" in rest
    assert "\x1b" not in rest
    assert errors == ""


def test_json_is_an_object_a_line(half_done: Layout) -> None:
    process = begin_piped(half_done, "--json")
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    assert first["stages"][0]["num_pending"] == 2
    (Path(half_done.ledger("reencode")) / "part-9-torn.parquet").write_bytes(b"PAR1")
    while "error" not in (document := json.loads(process.stdout.readline())):
        assert document["stages"][0]["num_pending"] == 2
    assert document["error"]["class"] == "FormatError"
    (Path(half_done.ledger("reencode")) / "part-9-torn.parquet").unlink()
    complete(half_done)
    rest, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    documents = [json.loads(line) for line in rest.splitlines()]
    assert documents[-1]["stages"][0]["num_ok"] == 4
    assert "failures" not in documents[-1]["stages"][0]
    assert errors == ""


def test_without_a_dataset_it_does_not_begin(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "status", str(tmp_path / "no"), "--watch"], capture_output=True, text=True, timeout=WAIT_S
    )
    assert done.returncode == 2
    assert "has no manifest.parquet" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("every", ["inf", "nan", "1e300", "-inf", "0", "3601"])
def test_every_that_is_no_time_to_wait_fails(layout: Layout, every: str) -> None:
    result = CliRunner().invoke(app, ["status", layout.dataset, "--watch", f"--every={every}"])
    assert result.exit_code == 2
    assert "--every" in result.stderr
    assert "manifest" not in result.output  # before any work


def test_every_without_watch_fails(layout: Layout) -> None:
    result = CliRunner().invoke(app, ["status", layout.dataset, "--every", "1"])
    assert (result.exit_code, result.stderr.strip()) == (2, "cope-prep: --every: is of --watch. Give both.")


class ScriptedReader(StatusReader):
    """Raises what it is told before it answers."""

    def __init__(self, layout: Layout, errors: list[Exception]) -> None:
        super().__init__(layout.dataset)
        self._errors = errors

    def read(self, *, now_unix_s: float | None = None) -> Any:
        if self._errors:
            raise self._errors.pop(0)
        return super().read(now_unix_s=now_unix_s)


def test_unreachable_store_is_asked_again(half_done: Layout) -> None:
    """At the first look too; and a store's client has errors of its own."""
    complete(half_done)
    errors = [
        StorageError("s3://bucket/x", "cannot be read"),
        RuntimeError("Could not connect\nto the endpoint"),
    ]
    stream = io.StringIO()
    view = status_watch.LinesView(Console(file=stream, width=200))
    slept: list[float] = []
    status_watch._watch(ScriptedReader(half_done, list(errors)), view, every_s=7.0, sleep=slept.append)
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["s3://bucket/x: cannot be read", "Could not connect to the endpoint"]
    assert "4/4 done" in lines[2]
    assert slept == [7.0, 7.0]


def test_wrong_path_is_said_at_once(layout: Layout) -> None:
    view = status_watch.LinesView(Console(file=io.StringIO()))
    with pytest.raises(ConfigurationError, match="has no manifest"):
        status_watch._watch(StatusReader(layout.dataset), view, every_s=0.0)


def left_s(waiting: status_watch._Waiting, layout: Layout, now_unix_s: float) -> float | None:
    return waiting.left_s(dataset_status(layout.dataset, now_unix_s=now_unix_s), now_unix_s=now_unix_s)


def test_pause_between_two_stages_is_waited_for(layout: Layout) -> None:
    write_manifest(layout, {"a": 100})
    waiting = status_watch._Waiting()
    assert left_s(waiting, layout, NOW_UNIX_S) is None  # nothing has begun
    append(layout, "reencode", make_row(layout, "reencode", "a"))
    Path(layout.reencoded(make_row(layout, "reencode", "a").video_key)).touch()
    assert left_s(waiting, layout, NOW_UNIX_S + 20) == pytest.approx(100)
    layout.write_spec("extract")
    assert left_s(waiting, layout, NOW_UNIX_S + 30) is None
    append(
        layout,
        "extract",
        make_row(layout, "extract", "a", source_size_bytes=50, finished_unix_s=NOW_UNIX_S + 40),
    )
    layout.write_spec("shards")
    assert left_s(waiting, layout, NOW_UNIX_S + 100) == pytest.approx(900)
    assert left_s(waiting, layout, NOW_UNIX_S + 150) == pytest.approx(850)
    Path(layout.shard(0)).touch()  # a sign of life
    assert left_s(waiting, layout, NOW_UNIX_S + 200) == pytest.approx(900)
    write_index(layout, num_videos=1)
    assert left_s(waiting, layout, NOW_UNIX_S + 210) == 0.0


def test_one_stage_alone_ends_after_a_while(layout: Layout) -> None:
    write_manifest(layout, {"a": 100})
    append(layout, "reencode", make_row(layout, "reencode", "a"))
    waiting = status_watch._Waiting()
    assert left_s(waiting, layout, NOW_UNIX_S + 119) == pytest.approx(1)
    assert left_s(waiting, layout, NOW_UNIX_S + 121) == 0.0


def test_ledger_merged_while_watching_changes_nothing(half_done: Layout) -> None:
    reader = StatusReader(half_done.dataset)
    before = reader.read(now_unix_s=NOW_UNIX_S)
    append(half_done, "reencode", make_row(half_done, "reencode", "v0", finished_unix_s=1.0))
    Ledger(half_done.ledger("reencode")).compact()
    assert reader.read(now_unix_s=NOW_UNIX_S).stages == before.stages
