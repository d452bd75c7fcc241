"""URLs with credentials in them, and stores that do not answer: no secret is shown, logged or recorded."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer.main
from typer.testing import CliRunner

from cope_prep.jobs.cli import app
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.ledger import Ledger, rows_of
from cope_prep.pipeline.loader.catalog import open_shards
from cope_prep.pipeline.loader.fetch import fetch_range
from cope_prep.pipeline.loader.remote_file import fetch_file
from cope_prep.pipeline.retries import RetryPolicy
from cope_prep.schemas.arrow import MANIFEST
from cope_prep.schemas.errors import CopePrepError

SECRET = re.compile(rb"HUSH[0-9A-Za-z]+")
BIN = Path(sys.executable).parent
CONFIGS = Path(__file__).parents[2] / "configs"
ENTRY = [str(BIN / "cope-prep")]


@pytest.fixture(scope="module")
def dead() -> Iterator[str]:
    """HOST:PORT where nobody answers: bound, so that nobody else may, and not listening."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short path, for Ray's sockets."""
    made = Path(tempfile.mkdtemp(prefix="hush-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def environment_of(dead: str) -> dict[str, str]:
    """A store that is not there, and secrets for it."""
    return {
        "AWS_ENDPOINT_URL": f"http://{dead}",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_ACCESS_KEY_ID": "AKIAHUSH0000000000AB",
        "AWS_SECRET_ACCESS_KEY": "HUSHofTheEnvironment",
    }


def run(arguments: list[str], folder: Path, dead: str) -> subprocess.CompletedProcess[bytes]:
    """A command, with all that it and its Ray write below `folder`."""
    for name in ("home", "tmp", "ray"):
        (folder / name).mkdir(exist_ok=True)
    environment = {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "RAY_TMPDIR": str(folder / "ray"),
        "COPE_PREP_STORE_PATIENCE_S": "0.5",
        **environment_of(dead),
    }
    return subprocess.run([*ENTRY, *arguments], env=environment, cwd=folder, capture_output=True, timeout=200)


def secrets_below(folder: Path) -> dict[str, set[bytes]]:
    """File -> the secrets in it; the manifest may have them, for how else would a worker find the sources?"""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.parquet"]
    assert files
    found = {str(path.relative_to(folder)): set(SECRET.findall(path.read_bytes())) for path in files}
    return {name: secrets for name, secrets in found.items() if secrets}


def manifest_of(dataset: Path, uris: list[str]) -> None:
    """A manifest of videos that nobody has."""
    dataset.mkdir()
    table = pa.table(
        {
            "video_id": [f"{index}.mp4" for index in range(len(uris))],
            "video_key": [f"{index:016x}" for index in range(len(uris))],
            "uri": uris,
            "subset": [""] * len(uris),
            "size_bytes": [1000] * len(uris),
            "version": ["1"] * len(uris),
        },
        schema=MANIFEST,
    )
    pq.write_table(table, dataset / "manifest.parquet")


def test_a_run_over_sources_that_cannot_be_read(folder: Path, dead: str) -> None:
    manifest_of(
        folder / "dataset",
        [
            f"http://bob:HUSHpassword@{dead}/a.mp4?X-Amz-Signature=HUSHsignature&token=HUSHtoken",
            "s3://AKIAHUSH0000000000CD:HUSHkey@bucket/b.mp4",
            f"sftp://bob:HUSHsftp@{dead}/c.mp4",
        ],
    )
    report = folder / "dataset" / "report.html"
    shown = b""
    for arguments, codes in (
        (["run", "dataset", "--workers", "1", "--size", "64x48"], (1,)),
        (["status", "dataset", "--json"], (0,)),
        (["stats", "dataset", "--html", str(report)], (0, 2)),
        (["estimate", "dataset", "--no-ray", "--sample", "2"], (0, 1, 2)),
    ):
        done = run(arguments, folder, dead)
        assert done.returncode in codes, done.stderr.decode()
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        shown += done.stdout + done.stderr
    assert SECRET.findall(shown) == [], shown.decode()
    rows = rows_of(Ledger(Layout(dataset=str(folder / "dataset"), specs=_specs()).ledger("reencode")).read())
    assert {row.status for row in rows} == {"failed"}
    assert len(rows) == 3
    assert any("***@" in row.error_message for row in rows)
    assert secrets_below(folder) == {}


def _specs() -> Specs:
    from cope_prep.schemas.specs import EncodeSpec

    return Specs(encode=EncodeSpec(width_px=64, height_px=48))


COMMANDS = [
    "manifest files {source} {dataset}",
    "manifest llava-video {source} {dataset}",
    "run {dataset} --no-ray",
    "reencode {dataset} --no-ray",
    "extract {dataset} --no-ray",
    "shard {dataset} --no-ray --json",
    "estimate {dataset} --no-ray",
    "status {dataset}",
    "stats {dataset} --json",
    "verify {dataset}",
    "inspect {dataset} x.mp4 --out sheet.png",
    "simulate {dataset} --ranks 2",
    "mix plan mix.yaml --dataset {dataset}",
    "run dataset --address ray://bob:HUSHray@{dead}",
    "gc {dataset}",
    "quarantine {dataset}",
    "demo --out {dataset} --no-ray",
    "train pretrain {configs}/one_gpu_pretrain.toml --no-ray --set tower.llava={dataset}",
    "train finetune {configs}/one_gpu_finetune.toml --no-ray --set model.llava={dataset}",
    "train describe {configs}/one_gpu_finetune.toml --set model.llava={dataset} --no-latency",
]


def names_of(command: Any, *words: str) -> Iterator[str]:
    """`train pretrain`: what one types for each command, groups opened."""
    for word, inner in getattr(command, "commands", {}).items():
        yield from names_of(inner, *words, word)
    if not hasattr(command, "commands"):
        yield " ".join(words)


def test_no_command_is_left_out() -> None:
    """But the dashboard, whose pages say it: tests/jobs/test_dashboard_pages.py."""
    names = list(names_of(typer.main.get_command(app)))
    assert len(names) > 15
    assert [name for name in names if not any(line.startswith(f"{name} ") for line in COMMANDS)] == [
        "dashboard"
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_on_a_store_that_does_not_answer(
    command: str, tmp_path: Path, dead: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mix.yaml").write_text("datasets: [{json_path: a.json, sampling_strategy: all}]\n")
    manifest_of(tmp_path / "dataset", ["a.mp4"])
    monkeypatch.chdir(tmp_path)
    for name, value in environment_of(dead).items():
        monkeypatch.setenv(name, value)
    words = command.format(
        dataset="s3://AKIAHUSH0000000000CD:HUSHkey@bucket/dataset",
        source=f"http://bob:HUSHpassword@{dead}/videos?X-Amz-Signature=HUSHsignature&token=HUSHtoken",
        dead=dead,
        configs=CONFIGS,
    ).split()
    done = CliRunner().invoke(app, words)
    assert done.exit_code in (1, 2), done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    said = done.output + caplog.text
    assert "bucket" in said or dead in said
    assert SECRET.findall(said.encode()) == [], said


@pytest.mark.parametrize(
    "url",
    ["http://bob:HUSHpassword@{dead}/x.tar", "http://{dead}/x.tar?X-Amz-Signature=HUSHsignature&sig=HUSHsig"],
)
def test_the_loader_in_a_program_of_ones_own(
    url: str, dead: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("COPE_PREP_STORE_PATIENCE_S", "0")
    uri = url.format(dead=dead)
    once = RetryPolicy(attempts=1, timeout_s=5.0)
    for read in (
        lambda: fetch_range(uri, 0, 10, retry=once),
        lambda: fetch_file(uri, retry=once),
        lambda: open_shards(uri, retry=once),
    ):
        with pytest.raises(CopePrepError) as caught:
            read()
        said = f"{caught.value}{caught.value!r}{caplog.text}"
        assert dead in said
        assert SECRET.findall(said.encode()) == [], said
