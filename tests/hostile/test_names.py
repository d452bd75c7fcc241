"""Names that mean something to a shell, a URL or a path, and things that are no files."""

from __future__ import annotations

import os
import pickle
import socket
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from cope_prep.jobs.worker import Child, Done, Failure
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.manifest import manifest_from_files
from cope_prep.pipeline.reencode import reencode_video
from cope_prep.schemas.arrow import MANIFEST
from cope_prep.schemas.records import video_key

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
from supervised import SPEC, Sandbox

NAMES = [
    *("'.mp4", '"; echo x #.mp4', "a\nb.mp4", "a\r\tb.mp4", "%00.mp4", "%2e%2e%2fa.mp4", " .mp4", "a..mp4"),
    *("-i.mp4", "--help.mp4", "$(touch x).mp4", "`x`.mp4", "a|b.mp4", "a;b.mp4", "a&b.mp4", "*.mp4"),
    *(
        "http:a.mp4",
        "concat:a|b.mp4",
        "file:a.mp4",
        "s3:a.mp4",
        "pipe:0.mp4",
        "subfile,,start,0,end,1,,:a.mp4",
    ),
    *("%03d.mp4", "é.mp4", "e\u0301.mp4", "\u202egnp.mp4", "\U0001f600.mp4", "\ufeff.mp4", "\x1b[31m.mp4"),
    *("a\\b.mp4", "CON.mp4", "x" * 251 + ".mp4", "é" * 125 + ".mp4", "{a}.mp4", "~.mp4"),
    *("[a].mp4", "?.mp4", "\x7f.mp4", "#.mp4", "sub..dir/a.mp4"),
]
HIDDEN = ["..mp4", "...mp4", ".a.mp4", "..sub/a.mp4", "..\\..\\a.mp4"]


@pytest.fixture(scope="module")
def clip(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = media.write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", num_frames=4, size_px=(48, 32))
    return path.read_bytes()


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    (tmp_path / "sandbox").mkdir()
    sandbox = Sandbox(tmp_path / "sandbox")
    yield sandbox
    sandbox.stop()


def _rows(dataset: Path) -> list[dict[str, str]]:
    return storage.read_table(str(dataset / "manifest.parquet"), MANIFEST).to_pylist()


def test_every_name_becomes_a_video_and_no_path(clip: bytes, sandbox: Sandbox, tmp_path: Path) -> None:
    """From the folder to the re-encoded file: its name is a hash of the id, whatever the id is."""
    folder, dataset = tmp_path / "videos", tmp_path / "dataset"
    for name in (*NAMES, *HIDDEN):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(clip)
    manifest_from_files(str(folder), str(dataset))
    rows = _rows(dataset)
    assert sorted(row["video_id"] for row in rows) == sorted(NAMES)
    layout = Layout(dataset=str(dataset), specs=Specs(encode=SPEC))
    for row in rows:
        reply = sandbox.reencode_path(row["uri"], layout.reencoded(row["video_key"]))
        assert isinstance(reply, Done), reply
    outputs = Path(layout.folder("reencode"))
    written = {str(path.relative_to(outputs)) for path in outputs.rglob("*")}
    assert written == {f"{row['video_key']}.mp4" for row in rows}
    assert {path.name for path in tmp_path.iterdir()} == {"videos", "dataset", "sandbox"}
    sandbox.check()


def test_output_stays_in_its_folder_whatever_the_id() -> None:
    layout = Layout(dataset="/data", specs=Specs(encode=SPEC))
    for video_id in ("../../etc/cron.d/x", "/etc/passwd", "a/../../b", "\0", "\n", "%00", "x" * 100_000, ""):
        for uri in (layout.reencoded(video_key(video_id)), layout.extracted(video_key(video_id))):
            folder, _, name = uri.rpartition("/")
            assert folder in (layout.folder("reencode"), layout.folder("extract"))
            assert os.path.splitext(name)[0].isalnum()


def test_links_out_of_the_tree_and_loops_are_left_out(clip: bytes, tmp_path: Path) -> None:
    folder, outside = tmp_path / "videos", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    for path in (folder / "real.mp4", outside / "secret.mp4"):
        path.write_bytes(clip)
    (folder / "inside.mp4").symlink_to("real.mp4")
    (folder / "out.mp4").symlink_to(outside / "secret.mp4")
    (folder / "up.mp4").symlink_to("../outside/secret.mp4")
    (folder / "out").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    (folder / "self.mp4").symlink_to("self.mp4")
    (folder / "first.mp4").symlink_to("second.mp4")
    (folder / "second.mp4").symlink_to("first.mp4")
    (folder / "root").symlink_to("/")
    report = manifest_from_files(str(folder), str(tmp_path / "dataset"))
    assert [row["video_id"] for row in _rows(tmp_path / "dataset")] == ["inside.mp4", "real.mp4"]
    links = {entry.reason: entry.count for entry in report.skipped if entry.what == "links"}
    assert sum(links.values()) == 8
    assert links["lead nowhere"] == 3


def test_pipes_sockets_and_devices_are_not_opened(clip: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "real.mp4").write_bytes(clip)
    os.mkfifo(folder / "pipe.mp4")
    (folder / "zero.mp4").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(folder)  # the name of a socket is short
        listener.bind("socket.mp4")
        os.chdir(here)
        report = manifest_from_files(str(folder), str(tmp_path / "dataset"))
    assert [row["video_id"] for row in _rows(tmp_path / "dataset")] == ["real.mp4"]
    assert {entry.what: entry.count for entry in report.skipped} == {"special files": 2, "links": 1}


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_source_that_became_something_else_is_refused(tmp_path: Path, kind: str) -> None:
    """After the manifest was made, what it names may be anything: it must not hold a worker."""
    source = tmp_path / "a.mp4"
    if kind == "pipe":
        os.mkfifo(source)
    elif kind == "device":
        source.symlink_to("/dev/zero")
    else:
        source.mkdir()
    child = Child()
    try:
        call = pickle.dumps(partial(reencode_video, str(source), str(tmp_path / "out.mp4"), spec=SPEC))
        reply = pickle.loads(child.run(call, subject=str(source), time_limit_s=20))
    finally:
        child.stop()
    assert isinstance(reply, Failure)
    assert reply.error_class == "NotAVideoError"
    assert "is not a file" in reply.error_message
