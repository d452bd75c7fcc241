"""What a job leaves in a dataset can be shown to anybody: no password of the dataset's URL or of a source's."""

from __future__ import annotations

import functools
import io
import json
import logging
import pickle
import subprocess
import sys
import uuid
from pathlib import Path
from types import ModuleType
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Group
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from cope_prep.jobs import report, run_lock
from cope_prep.jobs.cli import app
from cope_prep.jobs.run_lock import RunLocks
from cope_prep.jobs.worker import Child
from cope_prep.pipeline import storage
from cope_prep.schemas.arrow import QUESTIONS

SECRET = "HUSH4321HUSH"


def _command(*arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == exit_code, result.output
    assert SECRET not in result.output
    return result.output


def _texts(content: bytes, name: str) -> str:
    """Everything that a file holds, as text: Parquet is compressed."""
    if name.endswith(".parquet"):
        table = pq.read_table(io.BytesIO(content))
        return json.dumps(table.to_pylist(), default=str) + str(table.schema.metadata)
    return content.decode("latin-1")


def _cut_off(media: ModuleType, path: Path) -> bytes:
    content = media.write_clip(path, num_frames=90, size_px=(96, 64), painter=media.moving).read_bytes()
    return content[: len(content) // 2]


@pytest.fixture(scope="module")
def dataset(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of all that a run makes of two good videos, one that is cut off, a broken one and one in quarantine."""
    folder = tmp_path_factory.mktemp("secrets")
    here = uuid.uuid4().hex
    store = fsspec.filesystem("memory")
    for name in ("a.mp4", "b.mp4"):
        media.write_clip(folder / name, num_frames=24, size_px=(96, 64), painter=media.moving)
        store.pipe(f"/KEY:{SECRET}@source-{here}/{name}", (folder / name).read_bytes())
    for name in ("broken.mp4", "held.mp4"):
        store.pipe(f"/KEY:{SECRET}@source-{here}/{name}", b"no video at all" * 100)
    store.pipe(f"/KEY:{SECRET}@source-{here}/cut.mkv", _cut_off(media, folder / "cut.mkv"))
    dataset = f"memory://KEY:{SECRET}@bucket-{here}/ds"
    _command("manifest", "files", f"memory://KEY:{SECRET}@source-{here}", dataset)
    _command("quarantine", dataset, "--add", "held.mp4")
    for _ in range(2):  # the second time everything is there already, and the broken one is held back
        said = _command("run", dataset, "--no-ray", "--quiet", "--size", "96x64", exit_code=1)
        assert "in quarantine, and were not tried" in said
    return dataset


def test_no_file_of_a_dataset_holds_a_password(dataset: str) -> None:
    store = fsspec.filesystem("memory")
    folder = dataset.removeprefix("memory:/") + "/"
    files = {path.removeprefix(folder): _texts(store.cat(path), path) for path in store.find(folder)}
    assert SECRET in files.pop("manifest.parquet")  # the job needs the URLs of its sources
    assert any(name.startswith("shards/") and name.endswith(".tar") for name in files)
    assert any("/ledger/" in name and "broken" in text for name, text in files.items())
    assert any("/ledger/" in name and "truncated, or a wrong header" in text for name, text in files.items())
    assert not [name for name, text in files.items() if SECRET in text]


def test_commands_that_succeed_show_no_password(dataset: str) -> None:
    held = json.loads(_command("quarantine", dataset, "--json"))
    assert [video["source_uri"].partition("@")[0] for video in held["videos"]] == ["memory://***"]
    assert json.loads(_command("gc", dataset, "--dry-run", "--json"))["dataset"].startswith("memory://***@")
    assert "memory://***@" in _command("gc", dataset, "--dry-run", "--older-than", "0s", "--json")
    assert "in quarantine" in _command("status", dataset)
    assert "all as recorded" in _command("verify", dataset)


def test_mix_plan_shows_no_password(dataset: str) -> None:
    rows = [
        {
            "question_id": f"{name}#oe",
            "video_id": name,
            "subset": "0_30_s_nextqa",
            "data_source": "0_30_s_nextqa",
            "kind": "oe",
            "turns": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}],
            "json_path": "0_30_s_nextqa/0_30_s_nextqa_oe_qa_processed.json",
            "json_sha256": "0" * 64,
        }
        for name in ("a.mp4", "b.mp4", "broken.mp4")
    ]
    other = dataset.replace("@", "@other-")
    for uri in (dataset, other):
        table = pa.Table.from_pylist(rows, schema=QUESTIONS)
        storage.publish_table(f"{uri}/questions.parquet", table)
    mix = f"{other}/mix.yaml"
    storage.publish_bytes(mix, f"datasets: [{{dataset: '{dataset}'}}, {{dataset: '{other}'}}]\n".encode())
    shown = _command("mix", "plan", mix)
    assert "mix.yaml: 5 records about" in shown
    assert shown.count("***@") >= 4, "the mix, its datasets, what is left out and what has no shards"
    assert json.loads(_command("mix", "plan", mix, "--json"))["mix"].startswith("memory://***@other-")
    storage.remove(f"{dataset}/questions.parquet")


def test_lock_of_another_run_is_spoken_of_without_password(
    dataset: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_lock, "_SETTLE_S", 0.0)
    foreign = {**run_lock._description(), "owner": "another", "boot_id": "another", "host": "far-away"}
    storage.publish_bytes(f"{dataset}/locks/shards-abc.json", json.dumps(foreign).encode())

    def deny(uri: str) -> None:
        raise PermissionError(f"{uri}: denied")

    with RunLocks([f"{dataset}/shards/abc"], interval_s=0.02):
        monkeypatch.setattr(storage, "remove", deny)
    monkeypatch.undo()
    storage.remove(f"{dataset}/locks/shards-abc.json")
    assert "locked by a run on far-away" in caplog.text
    assert "stays behind" in caplog.text
    assert SECRET not in caplog.text


def test_console_shows_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    """In whatever it prints: lines, parts with a style of their own, tables in a group."""
    url = f"s3://KEY:{SECRET}@bucket/ds"
    table = Table(title=url)
    table.add_column("Name")
    table.add_column(Text(f"in {url}"))
    table.add_row(url, Text(url, style="red"))
    console = report.make_console(stderr=False)
    console.print(url, Text(url), Group(table, Text(f"look at {url}\n"), url))
    console.print(f"[b]{url}[/b]", markup=True)
    shown = capsys.readouterr().out
    assert SECRET not in shown
    assert shown.count("s3://***@bucket/ds") == 9
    assert "[b]" not in shown


def test_what_libraries_log_reaches_a_terminal_without_password(
    dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the handler of programs that set up none, as a command is."""
    with report.outlet(json_output=False):
        pass
    assert logging.lastResort is not None
    try:
        raise FileNotFoundError(dataset)
    except FileNotFoundError as exc:
        info: Any = (type(exc), exc, exc.__traceback__)
    record = logging.LogRecord("botocore", logging.WARNING, __file__, 1, "no %s\x1b[2J", (dataset,), info)
    logging.lastResort.handle(record)
    said = capsys.readouterr().err
    assert "no memory://***@" in said
    assert "FileNotFoundError: memory://***@" in said
    assert SECRET not in said
    assert "\x1b" not in said


def test_worker_logs_no_password(capfd: pytest.CaptureFixture[str]) -> None:
    call = functools.partial(logging.getLogger("botocore").warning, f"no s3://KEY:{SECRET}@bucket/ds")
    child = Child()
    child.run(pickle.dumps(call), subject="video", time_limit_s=60)
    child.stop()
    said = capfd.readouterr().err  # a Ray that an earlier test has started may say something too
    assert "no s3://***@bucket/ds\n" in said
    assert SECRET not in said


def test_training_logs_no_password() -> None:
    code = (
        "import logging; from cope_prep.pipeline.printable import log_levels_printably; log_levels_printably();"
        f" logging.getLogger('x').warning('from s3://KEY:{SECRET}@bucket/ds')"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "WARNING from s3://***@bucket/ds\n"
