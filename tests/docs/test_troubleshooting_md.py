"""docs/troubleshooting.md: a section for every class of error, with messages that are really printed."""

from __future__ import annotations

import datetime
import errno
import functools
import inspect
import os
import pickle
import re
import signal
import time
import wave
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import av
import pytest
import torch
from blocks import DOCS

from cope_prep.encoders.distributed import Ranks
from cope_prep.encoders.replay import fail_nonfinite
from cope_prep.jobs import limits, options, report, run_lock, video_stage, worker
from cope_prep.jobs.held import quarantined
from cope_prep.jobs.resources import MIN_MEMORY_BYTES
from cope_prep.jobs.worker import Child
from cope_prep.pipeline import storage
from cope_prep.pipeline.extract import extract_gops, extract_video
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.quarantine import QuarantineEntry
from cope_prep.pipeline.reencode import reencode_video
from cope_prep.pipeline.retries import RetryPolicy, insist_on
from cope_prep.schemas import errors
from cope_prep.schemas.arrow import MANIFEST
from cope_prep.schemas.errors import CopePrepError
from cope_prep.schemas.specs import EncodeSpec, ExtractSpec

PAGE = DOCS / "troubleshooting.md"
SMALL = EncodeSpec(width_px=64, height_px=64, preset="ultrafast")
CLASSES = [
    found for _, found in inspect.getmembers(errors, inspect.isclass) if found.__module__ == errors.__name__
]
BASES = {found.__base__ for found in CLASSES} - {Exception}


def sections() -> dict[str, str]:
    """Class -> the text of its section."""
    parts = re.split(r"^###? (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    return {
        title: text for title, text in zip(parts[1::2], parts[2::2], strict=True) if title.endswith("Error")
    }


def messages_of(name: str) -> list[str]:
    return re.findall(r"^```output\n(.*?)\n```", sections()[name], re.DOTALL | re.MULTILINE)


def test_every_class_has_a_section_and_no_other() -> None:
    assert len(CLASSES) > 15
    assert sorted(sections()) == sorted(found.__name__ for found in CLASSES)


@pytest.mark.parametrize("found", CLASSES, ids=lambda found: found.__name__)
def test_section_says_what_it_means_and_shows_a_message(found: type[CopePrepError]) -> None:
    text = re.sub(r"```.*?```", "", sections()[found.__name__], flags=re.DOTALL)
    assert len(text.split()) >= 6
    if found not in BASES or found in (errors.FormatError,):
        assert messages_of(found.__name__)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_clips: list[Path]) -> Path:
    """The files that the page's messages name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "empty.mp4").touch()
    (tmp_path / "videos" / "text.mp4").write_text("<html>Not found</html>\n" * 9)
    bikes = next(clip for clip in real_clips if clip.name == "bikes.mp4")
    (tmp_path / "videos" / "cut_off.mp4").write_bytes(bikes.read_bytes()[:200_000])
    with wave.open("videos/sound.wav", "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16_000))
    with av.open("videos/huge.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.width, stream.height, stream.pix_fmt = 16_400, 16, "yuv420p"
        for packet in [*stream.encode(av.VideoFrame(16_400, 16, "yuv420p")), *stream.encode(None)]:
            container.mux(packet)
    return tmp_path


@pytest.fixture
def reencoded(here: Path, real_clips: list[Path]) -> str:
    clip = next(clip for clip in real_clips if clip.name == "carphone_pristine.mp4")
    reencode_video(str(clip), "reencoded.mp4", spec=SMALL)
    return "reencoded.mp4"


def check(name: str, action: Callable[[], object]) -> None:
    """The action fails with the class, and with a message that the page shows; checksums apart."""
    with pytest.raises(getattr(errors, name)) as caught:
        action()
    assert type(caught.value).__name__ == name
    shown = [re.sub(r"\b[0-9a-f]{8}\b", "#", message) for message in messages_of(name)]
    assert re.sub(r"\b[0-9a-f]{8}\b", "#", str(caught.value)) in shown


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "video"),
    [
        ("SourceNotFoundError", "gone.mp4"),
        ("NotAVideoError", "empty.mp4"),
        ("NotAVideoError", "text.mp4"),
        ("NoVideoStreamError", "sound.wav"),
        ("CorruptVideoError", "cut_off.mp4"),
        ("UnsupportedVideoError", "huge.mkv"),
    ],
)
def test_source_errors(name: str, video: str) -> None:
    check(name, lambda: reencode_video(f"videos/{video}", "out.mp4", spec=SMALL))


def test_files_of_ours(reencoded: str) -> None:
    other = EncodeSpec(gop_size=60, width_px=64, height_px=64)
    check("BitstreamError", lambda: list(extract_gops(reencoded, encode_spec=other)))
    check(
        "ChecksumError",
        lambda: extract_video(
            reencoded, "out.tar", spec=ExtractSpec(), encode_spec=SMALL, video_id="x", source_crc32c=1
        ),
    )


@pytest.mark.usefixtures("here")
def test_tables_and_storage() -> None:
    Path("manifest.parquet").write_text("this is no table")
    check("FormatError", lambda: storage.read_table("manifest.parquet", MANIFEST))
    newer = MANIFEST.with_metadata({"cope_prep.schema_version": "99"})
    storage.publish_table("manifest.parquet", newer.empty_table())
    check("SchemaVersionError", lambda: storage.read_table("manifest.parquet", MANIFEST))

    def fill_the_disk() -> None:
        with storage.publish("dataset/file"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    check("StorageError", fill_the_disk)

    def open_archived(timeout_s: float) -> NoReturn:
        raise PermissionError("The operation is not valid for the object's storage class")

    archived = "s3://bucket/a.mp4"
    check("StoreRefusedError", lambda: insist_on("opened", open_archived, archived, RetryPolicy()))


def test_configuration() -> None:
    check(
        "ConfigurationError",
        lambda: options.encode_spec(
            profile="default", codec=None, fps=None, gop_size=None, size=None, fit="stretch", quality=None,
            preset=None,
        ),
    )  # fmt: skip
    layout = Layout(dataset="./nothing", specs=Specs())
    check("ConfigurationError", lambda: video_stage.read_videos(layout))


def test_workers() -> None:
    child = Child()
    call = pickle.dumps(functools.partial(os.kill, child.pid, signal.SIGKILL))
    check("WorkerDiedError", lambda: child.run(call, subject="videos/evil.mp4", time_limit_s=60))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "_START", "raise SystemExit(3)")
        check("WorkerLostError", Child)
    sleeper, sleep = Child(), pickle.dumps(functools.partial(time.sleep, 60))
    check("TimeLimitError", lambda: sleeper.run(sleep, subject="videos/slow.mp4", time_limit_s=0.5))
    check("MemoryLimitError", lambda: fail(limits.over_limit("videos/wide.mp4", MIN_MEMORY_BYTES)))


def test_two_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = run_lock._Lock("./dataset/reencode/ca1c89b8995e", interval_s=1)
    other: dict[str, Any] = {"owner": "x", "command": "cope-prep reencode", "host": "node-7", "pid": 4242}
    other["since_unix_s"] = datetime.datetime(2026, 11, 21, 22, tzinfo=datetime.UTC).timestamp()
    check("RunLockedError", lambda: fail(lock._locked(other)))
    monkeypatch.setattr(run_lock, "_read", lambda uri: other)
    check("RunLockLostError", lock.beat)


def fail(error: Exception) -> NoReturn:
    raise error


def test_quarantine() -> None:
    entry = QuarantineEntry(
        video_id="videos/evil.mp4",
        source_size_bytes=1,
        source_version="",
        stage="reencode",
        error_class="WorkerDiedError",
        reason="it died three times",
        recorded_unix_s=0.0,
    )

    def leave_out() -> None:
        raise quarantined(entry)

    check("QuarantinedError", leave_out)


@pytest.mark.usefixtures("here")
def test_training() -> None:
    batch: Any = SimpleNamespace(info=SimpleNamespace(keys=("604a3243e228c967_00000",)))
    alone = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
    check("NonFiniteLossError", lambda: fail_nonfinite("run", 120, [batch], [float("nan")], alone))


def test_exit_codes_are_those_of_the_program() -> None:
    said = set(re.findall(r"^(\d+)(?: {2,}|  )", str(report.__doc__), re.MULTILINE)) | {"143"}
    for page in ("troubleshooting.md", "cli.md"):
        table = set(re.findall(r"^\| (\d+)(?:, (\d+))? \|", (DOCS / page).read_text(), re.MULTILINE))
        assert {code for codes in table for code in codes if code} == said, page
