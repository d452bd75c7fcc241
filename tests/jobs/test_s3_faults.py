"""A whole job over an S3 that fails now and then: the dataset is that of an undisturbed run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from cope_prep.jobs.cli import app
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, the_specs
from cope_prep.pipeline.ledger import Ledger
from cope_prep.schemas.arrow import INDEX

if TYPE_CHECKING:
    from types import ModuleType

    from s3_faults import FaultyS3

RUN = ["--no-ray", "--quiet", "--size", "64x64", "--gop-size", "31", "--preset", "ultrafast"]
SOURCES = "s3://bucket/videos"
NUM_VIDEOS, NUM_GOPS = 3, 1 + 2 + 3


@pytest.fixture(scope="module")
def undisturbed(
    faulty_s3: FaultyS3, media: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What a job without faults makes of three clips."""
    folder = tmp_path_factory.mktemp("clips")
    for index, num_frames in enumerate((31, 40, 70)):
        clip = media.write_clip(folder / f"{index}.mp4", num_frames=num_frames, size_px=(96, 64))
        storage.publish_bytes(f"{SOURCES}/{clip.name}", clip.read_bytes())
    run_job("s3://bucket/undisturbed")
    return contents("s3://bucket/undisturbed")


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.stderr
    return result.stdout


def run_job(dataset: str) -> None:
    invoke("manifest", "files", SOURCES, dataset)
    invoke("run", dataset, *RUN)


def contents(dataset: str) -> dict[str, Any]:
    """What a dataset consists of: its shards' bytes, its index, and the videos of its ledgers."""
    layout = Layout(dataset=dataset, specs=the_specs(dataset, "shards"))
    folder = layout.folder("shards")
    names = [name for name in storage.list_files(folder) if name.endswith(".tar")]
    ledgers = {stage: Ledger(layout.ledger(stage)).read() for stage in ("reencode", "extract")}
    return {
        "shards": {name: storage.read_bytes(storage.join(folder, name)) for name in names},
        "index": storage.read_table(layout.index, INDEX).to_pylist(),
        "rows": {
            stage: sorted(zip(table["video_id"].to_pylist(), table["status"].to_pylist(), strict=True))
            for stage, table in ledgers.items()
        },
        "outputs": {
            stage: [name for name in storage.list_files(layout.folder(stage)) if name != "spec.json"]
            for stage in ("reencode", "extract")
        },
    }


@pytest.mark.parametrize("kind", ["500", "503", "stall", "reset", "lost", "cut", "short"])
def test_faults_leave_no_trace(
    faulty_s3: FaultyS3, s3_faults: ModuleType, undisturbed: dict[str, Any], kind: str
) -> None:
    """With 15 % of the requests spoilt, of sources and dataset, driver and work, the verifying included."""
    dataset = f"s3://bucket/{kind}"
    share = 0.05 if kind == "stall" else 0.15
    faulty_s3.faults = s3_faults.Faults(kinds=[kind], share=share, seed=int.from_bytes(kind.encode()))
    run_job(dataset)
    verdict = json.loads(invoke("verify", dataset, "--json"))
    assert faulty_s3.faults.counts[kind] >= 5
    faulty_s3.faults = s3_faults.Faults()
    assert verdict["ok"]
    found = contents(dataset)
    keys = [row["key"] for row in found["index"]]
    assert len(keys) == len(set(keys)) == NUM_GOPS
    assert len(found["rows"]["reencode"]) == NUM_VIDEOS
    assert found == undisturbed


def test_store_that_is_down_is_one_line(
    faulty_s3: FaultyS3, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "COPE_PREP_STORE_PATIENCE_S": "0.5",
    }
    start = "from cope_prep.jobs.entry import main; main()"
    command = [sys.executable, "-c", start, "run", "s3://bucket/undisturbed", *RUN]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert ended.stdout == ""
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    assert len(lines) <= 3, ended.stderr
    assert "could not be" in ended.stderr
    assert "Traceback" not in ended.stderr
