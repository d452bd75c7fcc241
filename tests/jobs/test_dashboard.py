"""`cope-prep dashboard`: how its server is started, what it binds to, how it ends, and what it keeps."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cope_prep.jobs.cli import app
from cope_prep.jobs.dashboard import kept, serve
from cope_prep.jobs.dashboard.kept import Keeper
from cope_prep.jobs.dashboard.mixes import find_mixes, read_parts
from cope_prep.jobs.dashboard.opened import Arguments, Opened, choose, find_choices
from cope_prep.jobs.dashboard.words import clip_url, compact, plain
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.schemas.errors import ConfigurationError, StorageError
from cope_prep.schemas.specs import EncodeSpec, ExtractSpec, ShardSpec

COMMAND = [sys.executable, "-c", "from cope_prep.jobs.cli import main; main()"]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Start a dashboard of an empty folder; it is ended after the test in any case."""
    processes: list[subprocess.Popen[str]] = []

    def start(*flags: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [*COMMAND, "dashboard", str(tmp_path), "--port", "0", "--no-browser", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        assert process.stderr is not None
        told = ""
        for line in process.stderr:
            told += line
            if found := re.search(r"(http://\S+) \(Ctrl-C to stop\)", line):
                return process, found[1]
        pytest.fail(told)

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def answer(url: str, path: str, **headers: str) -> int:
    """The status of a request."""
    request = urllib.request.Request(f"{url}/{path}", headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as reply:
            return reply.status
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code


def processes_of_session(session: int) -> list[int]:
    """Every process of a session, by /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_nothing_is_left(begin: Callable, signum: int) -> None:
    process, url = begin()
    assert answer(url, "_stcore/health") == 200
    os.killpg(process.pid, signum)  # as a terminal does
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in stdout + stderr
    assert processes_of_session(process.pid) == []


def test_it_binds_to_loopback_and_serves_no_files(begin: Callable, tmp_path: Path) -> None:
    (tmp_path / "manifest.parquet").write_bytes(b"SECRET")
    _, url = begin()
    port = int(url.rpartition(":")[2])
    assert url == f"http://127.0.0.1:{port}"
    listening = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
    ]
    assert listening == [f"0100007F:{port:04X}"]
    for path in ("media/manifest.parquet", "_stcore/agent/interact"):
        assert answer(url, path) in (400, 403, 404, 405)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for path in (
        "manifest.parquet",
        "app/static/manifest.parquet",
        "..%2f..%2fetc/passwd",
        "static/..%2f..%2f..%2fapp.py",
    ):
        try:
            with opener.open(f"{url}/{path}", timeout=30) as reply:
                content = reply.read()
        except urllib.error.HTTPError as exc:
            with exc:
                content = exc.read()
        assert b"SECRET" not in content
        assert b"root:" not in content
        assert b"cope_prep" not in content


def websocket_status(url: str, *, host: str, origin: str) -> int:
    """The status with which the server answers a WebSocket's handshake."""
    port = int(url.rpartition(":")[2])
    lines = [
        "GET /_stcore/stream HTTP/1.1",
        f"Host: {host}",
        f"Origin: {origin}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version: 13",
    ]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return int(connection.recv(1024).split()[1])


def test_other_sites_get_no_session(begin: Callable) -> None:
    _, url = begin()
    port = url.rpartition(":")[2]
    for name in ("127.0.0.1", "localhost"):
        assert websocket_status(url, host=f"{name}:{port}", origin=f"http://{name}:{port}") == 101
    assert websocket_status(url, host=f"127.0.0.1:{port}", origin="http://evil.example") == 403
    rebound = f"evil.example:{port}"  # a name of another site that resolves to this machine
    assert websocket_status(url, host=rebound, origin=f"http://{rebound}") in (400, 403)


def test_another_address_is_warned_about(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(serve, "serve", lambda arguments, **given: started.append(given))
    for host, warned in (
        ("0.0.0.0", True),
        ("192.168.1.5", True),
        ("127.0.0.1", False),
        ("localhost", False),
    ):
        told = CliRunner().invoke(app, ["dashboard", str(tmp_path), "--host", host])
        assert told.exit_code == 0
        assert ("Warning: " in told.stderr and "without a password" in told.stderr) == warned
    assert [given["host"] for given in started] == ["0.0.0.0", "192.168.1.5", "127.0.0.1", "localhost"]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.evil.example", False),
    ],
)
def test_what_loopback_is(host: str, loopback: bool) -> None:
    assert serve.is_loopback(host) == loopback
    assert ("server.allowedHosts" in serve.server_options(host, 1)) == loopback


@pytest.mark.parametrize("missing", ["streamlit", "plotly", "duckdb"])
def test_without_the_extra_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest)
    )
    told = CliRunner().invoke(app, ["dashboard", str(tmp_path), "--no-browser"])
    assert told.exit_code == 2
    assert told.stderr.splitlines() == [
        f"cope-prep: cope-prep dashboard: {missing} is not installed. Run: pip install 'cope-prep[dashboard]'"
    ]


def test_a_port_that_is_taken_fails(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = CliRunner().invoke(app, ["dashboard", str(tmp_path), "--port", str(port)])
        assert told.exit_code == 2
        assert f"--port {port}: is not free" in told.stderr
        serve_default = serve.DEFAULT_PORT
        try:
            serve.DEFAULT_PORT = port
            assert serve.free_port("127.0.0.1", None) == 0
        finally:
            serve.DEFAULT_PORT = serve_default
    told = CliRunner().invoke(app, ["dashboard", str(tmp_path), "--host", "203.0.113.7"])
    assert told.exit_code == 2
    assert "--host 203.0.113.7: cannot be bound to" in told.stderr


def test_specs_that_are_not_there_end_it_at_once(tmp_path: Path) -> None:
    there = Layout(dataset=str(tmp_path), specs=Specs())
    there.write_spec("reencode")
    told = CliRunner().invoke(
        app, ["dashboard", str(tmp_path), "--no-browser", "--port", "0", "--spec", "zz"]
    )
    assert told.exit_code == 2
    (line,) = told.stderr.splitlines()
    assert f"--spec zz: names 0 sets of specs (there: {there.specs.hash_of('reencode')})" in line


def test_arguments_survive_the_way_to_the_script() -> None:
    given = Arguments(dataset="s3://b/ü \"'", spec="ab", mixes=("a.yaml", "b"), compare=("/c",))
    assert Arguments.from_json(given.to_json()) == given


def test_choices_leave_out_what_a_later_stage_went_on_from(tmp_path: Path) -> None:
    dataset = str(tmp_path)
    assert [choice.stage for choice in find_choices(dataset)] == [""]
    small, large = EncodeSpec(width_px=64, height_px=64), EncodeSpec()
    for specs, stages in (
        (Specs(encode=large), ("reencode", "extract", "shards")),
        (Specs(encode=large, shard=ShardSpec(seed=3)), ("shards",)),
        (Specs(encode=large, extract=ExtractSpec(window=60)), ("extract",)),
        (Specs(encode=small), ("reencode",)),
    ):
        for stage in stages:
            Layout(dataset=dataset, specs=specs).write_spec(stage)
    choices = find_choices(dataset)
    assert [choice.stage for choice in choices] == ["shards", "shards", "extract", "reencode"]
    assert choices[2].layout.specs.extract.window == 60
    assert choose(choices, None) == choices[0]
    assert choose(choices, choices[3].spec_hash[:8]) == choices[3]
    with pytest.raises(ConfigurationError, match="names 3 sets"):
        choose(choices, Specs(encode=large).hash_of("reencode"))


def test_a_mix_of_the_dataset_names_nothing_outside(tmp_path: Path) -> None:
    dataset, given = tmp_path / "dataset", tmp_path / "given.yaml"
    dataset.mkdir()
    outside = f"datasets:\n- dataset: {tmp_path}/other\n"
    (dataset / "outside.yaml").write_text(outside)
    (dataset / "inside.yml").write_text("datasets:\n- json_path: a/b.json\n  sampling_strategy: all\n")
    (dataset / "dataset.json").write_text("{}")
    given.write_text(outside)
    (choice,) = find_choices(str(dataset))
    opened = Opened(layout=choice.layout, choices=(choice,), mixes=(str(given),))
    mixes = {mix.label: mix for mix in find_mixes(opened)}
    assert len(mixes) == 4
    assert [part.dataset for part in read_parts(mixes[str(given)], opened)] == [f"{tmp_path}/other"]
    (inside,) = read_parts(mixes["inside.yml (in the dataset)"], opened)
    assert (inside.dataset, inside.mix) == (str(dataset), str(dataset / "inside.yml"))
    with pytest.raises(ConfigurationError, match="what lies outside of it is not opened"):
        read_parts(mixes["outside.yaml (in the dataset)"], opened)


class Tables:
    """Stands for a dataset: what its tables are, and how long it takes to read them."""

    def __init__(self) -> None:
        self.now_s, self.cost_s = 0.0, 0.0
        self.content, self.num_reads = "first", 0
        self.fails = False

    def make(self, layout: Layout) -> str:
        if self.fails:
            raise StorageError(layout.dataset, "cannot be read")
        self.num_reads += 1
        self.now_s += self.cost_s
        return self.content

    def versions(self, layout: Layout) -> Sequence[str]:
        return (self.content,)


def test_a_keeper_reads_again_what_has_changed() -> None:
    tables, layout = Tables(), Layout(dataset="d", specs=Specs())
    keeper = Keeper(tables.make, versions=tables.versions, clock=lambda: tables.now_s)
    assert keeper.get(layout).value == "first"
    tables.now_s += 3600
    assert keeper.get(layout).value == "first"
    assert tables.num_reads == 1
    tables.content = "second"
    assert keeper.get(layout).value == "first"  # looked a moment ago
    tables.now_s += kept.CHECK_EVERY_S
    assert keeper.get(layout).value == "second"
    assert tables.num_reads == 2


def test_a_keeper_reads_slow_tables_no_more_often_than_a_tenth_of_the_time() -> None:
    tables, layout = Tables(), Layout(dataset="d", specs=Specs())
    keeper = Keeper(tables.make, versions=tables.versions, clock=lambda: tables.now_s)
    tables.cost_s = 20.0
    keeper.get(layout)
    tables.content = "second"
    tables.now_s += 100.0
    behind = keeper.get(layout)
    assert (behind.value, behind.is_behind) == ("first", True)
    assert keeper.get(layout, anew=True).value == "second"
    tables.content = "third"
    tables.now_s += 201.0
    assert keeper.get(layout).value == "third"


def test_a_keeper_keeps_no_failure_and_few_values() -> None:
    tables = Tables()
    keeper = Keeper(tables.make, versions=tables.versions, max_entries=2, clock=lambda: tables.now_s)
    layouts = [Layout(dataset=name, specs=Specs()) for name in "abc"]
    tables.fails = True
    with pytest.raises(StorageError):
        keeper.get(layouts[0])
    tables.fails = False
    for layout in (*layouts, layouts[2], layouts[0]):
        keeper.get(layout)
    assert tables.num_reads == 4  # the first one was dropped for the third


def test_words() -> None:
    assert clip_url("a b/ü&x=1#?.mp4") == "/clip?video=a%20b%2F%C3%BC%26x%3D1%23%3F.mp4"
    assert [compact(number) for number in (0, 978, 12_340, 1_430_000)] == ["0", "978", "12.3 k", "1.43 M"]
    assert plain("two\nlines of s3://K:SECRET@b") == "two lines of s3\\:\u2060//\\*\\*\\*@\u2060b"
