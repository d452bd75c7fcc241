"""The whole job on three Ray nodes that share a bucket and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

if TYPE_CHECKING:
    from ray_nodes import RayNodes

ROOT = Path(__file__).parents[2]
SPEC = ("--size", "128x96", "--window", "15", "--shard-bytes", "200KB")
NUM_CLIPS = 12
MARK = "of-the-wheel"


@pytest.fixture(scope="module")
def manifest(nodes: RayNodes) -> str:
    listed = nodes.run(["cope-prep", "manifest", "files", "s3://bucket/videos", "s3://bucket/dataset"])
    assert listed.returncode == 0, listed.stderr
    return "s3://bucket/dataset"


@pytest.fixture(scope="module")
def dataset(nodes: RayNodes, manifest: str) -> str:
    done = nodes.run(["cope-prep", "run", manifest, "--address", nodes.address, *SPEC])
    assert done.returncode == 0, done.stderr
    return manifest


def test_all_nodes_work_and_keep_nothing(nodes: RayNodes, dataset: str, bucket: Any) -> None:
    for stage in ("reencode", "extract"):
        rows = ledger(bucket, f"{dataset}/{stage}")
        assert len({row["video_id"] for row in rows}) == len(rows) == NUM_CLIPS
        assert {row["status"] for row in rows} == {"ok"}
        worked = {row["node"] for row in rows}
        assert worked <= {nodes.name(index) for index in range(3)}
        if stage == "reencode":  # nine calls are in flight at once, one CPU a node
            assert len(worked) == 3
    left = [path for kind in ("mp4", "tar", "parquet") for path in nodes.folder.rglob(f"*.{kind}")]
    assert left == []


def test_verify_finds_nothing_wrong(nodes: RayNodes, dataset: str) -> None:
    done = nodes.run(["cope-prep", "verify", dataset, "--json"])
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] is True
    assert found["counts"]["videos"] == NUM_CLIPS
    assert found["counts"]["gops_rebuilt"] == found["counts"]["gops"] >= NUM_CLIPS


def test_shards_are_those_of_one_machine(dataset: str, bucket: Any, clips: Path, tmp_path: Path) -> None:
    from cope_prep.jobs.cli import app

    alone = tmp_path / "alone"
    for command in (
        ["manifest", "files", str(clips), str(alone)],
        ["run", str(alone), "--no-ray", "--quiet", *SPEC],
    ):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    expected = {path.name: path.read_bytes() for path in alone.rglob("shard-*.tar")}
    found = {
        Path(path).name: bucket.cat_file(path)
        for path in bucket.find("bucket/dataset/shards")
        if path.endswith(".tar")
    }
    assert len(expected) > 1
    assert found.keys() == expected.keys()
    assert all(found[name] == content for name, content in expected.items())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this version, whose workers call themselves something else in the ledger."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("schemas", "pipeline", "encoders", "jobs", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    module = source / "jobs" / "node_name.py"
    text = module.read_text().replace("socket.gethostname()", f'"{MARK}"')
    assert MARK in text
    module.write_text(text.replace("NODE_VARIABLE)", '"nothing")'))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.mark.parametrize("form", ["py_modules", "working_dir"])
def test_ray_job_submit_runs_the_wheel(
    form: str, nodes: RayNodes, manifest: str, bucket: Any, wheel: Path, tmp_path: Path
) -> None:
    dataset = f"s3://bucket/submitted-{form}"
    bucket.cp_file(f"{manifest}/manifest.parquet", f"{dataset}/manifest.parquet")
    if form == "py_modules":
        environment: dict[str, object] = {"py_modules": [str(wheel)]}
    else:
        zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
        environment = {"working_dir": str(tmp_path / "unpacked")}
    done = nodes.run(
        [
            *("ray", "job", "submit", "--address", nodes.dashboard_url),
            *("--runtime-env-json", json.dumps(environment), "--"),
            *("python", "-m", "cope_prep.jobs", "reencode", dataset, "--address", "auto", "--limit", "2"),
            *("--size", "64x48"),
        ]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 videos" in done.stdout
    rows = ledger(bucket, f"{dataset}/reencode")
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert {row["node"] for row in rows} == {MARK}  # else it was the nodes' own installation that worked


def ledger(bucket: Any, folder: str) -> list[dict[str, Any]]:
    """All rows of a stage's ledger."""
    parts = [path for path in bucket.find(folder.removeprefix("s3://")) if path.endswith(".parquet")]
    return [row for part in parts for row in pq.read_table(part, filesystem=bucket).to_pylist()]
