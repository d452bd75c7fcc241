"""The shard stage over shards of which one is damaged, and when it is told to stop."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cope_prep.jobs import shard as shard_stage
from cope_prep.jobs.cli import app
from cope_prep.jobs.executors import InProcessExecutor
from cope_prep.jobs.worker import Reply

FLAGS = [
    *("--size", "64x64", "--gop-size", "31", "--preset", "ultrafast", "--shard-bytes", "20KiB"),
    *("--no-ray", "--quiet", "--json"),
]
SHARD = ["--shard-bytes", "20KiB", "--no-ray", "--quiet", "--json"]


def invoke(*arguments: str) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def made(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips, a shard each."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "clips").mkdir()
    for index in range(3):
        media.write_clip(folder / "clips" / f"{index}.mp4", num_frames=35 + index)
    assert invoke("manifest", "files", str(folder / "clips"), str(folder / "dataset")).exit_code == 0
    assert invoke("run", str(folder / "dataset"), *FLAGS).exit_code == 0
    return folder / "dataset"


@pytest.fixture
def dataset(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "dataset"))


def rows_of(dataset: Path) -> list[Path]:
    found = sorted(dataset.glob("shards/*/index/shard-*.parquet"))
    assert len(found) == 3
    return found


def names_in_index(dataset: Path) -> list[str]:
    (index,) = dataset.glob("shards/*/index.parquet")
    return sorted(set(pq.read_table(index)["shard"].to_pylist()))


def test_damaged_rows_are_written_again_from_the_tars(dataset: Path) -> None:
    rows = rows_of(dataset)
    before = {path: path.read_bytes() for path in (*rows, *dataset.glob("shards/*/*.tar"))}
    rows[1].write_bytes(b"PAR1 no table")
    result = invoke("shard", str(dataset), *SHARD)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["stages"][0]["num_run"] == 1
    assert {path: path.read_bytes() for path in before} == before


def test_damaged_rows_that_cannot_be_written_again_fail_their_shard_alone(dataset: Path) -> None:
    """Exit code 2 would say that nothing was started."""
    rows = rows_of(dataset)
    rows[0].unlink()
    damaged = rows[1]
    key = pq.read_table(damaged)["key"][0].as_py().partition("_")[0]
    damaged.write_bytes(b"PAR1 no table")
    (tar,) = dataset.glob(f"extract/*/{key}.tar")
    tar.unlink()
    result = invoke("shard", str(dataset), *SHARD)
    assert result.exit_code == 1, result.stderr
    document = json.loads(result.stdout)["stages"][0]
    assert (document["num_run"], document["num_failed"]) == (2, 1)
    failure = document["failures"][0]
    assert failure["shard"] == "shard-00001.tar"
    assert failure["error_class"] == "FormatError"
    assert "is not a readable Parquet table" in failure["error_message"]
    assert "Delete it, then cope-prep run" in failure["error_message"]
    assert damaged.read_bytes() == b"PAR1 no table"
    assert rows[0].exists()
    assert names_in_index(dataset) == ["shard-00000.tar", "shard-00002.tar"]
    damaged.unlink()
    assert invoke("run", str(dataset), *FLAGS).exit_code == 0
    assert len(names_in_index(dataset)) == 3


def test_rows_of_a_newer_version_are_left_alone(dataset: Path) -> None:
    rows = rows_of(dataset)[1]
    table = pq.read_table(rows)
    metadata = {**table.schema.metadata, b"cope_prep.schema_version": b"99"}
    pq.write_table(table.replace_schema_metadata(metadata), rows)
    before = rows.read_bytes()
    result = invoke("shard", str(dataset), *SHARD)
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["class"] == "SchemaVersionError"
    assert rows.read_bytes() == before


def test_damage_that_is_found_after_the_work_is_no_wrong_usage(dataset: Path) -> None:
    """The plan cannot be read, but only `shard` finds that before anything was done."""
    (plan,) = dataset.glob("shards/*/plan.parquet")
    plan.write_bytes(b"PAR1 no table")
    assert invoke("shard", str(dataset), *SHARD).exit_code == 2
    for path in dataset.glob("extract/*/*.tar"):
        path.unlink()
    for path in rows_of(dataset):
        path.unlink()
    result = invoke("run", str(dataset), *FLAGS)
    assert result.exit_code == 1
    message = json.loads(result.stdout)["error"]["message"]
    assert "plan.parquet: is not a readable Parquet table" in message
    assert "again to go on" not in message


def test_index_is_not_begun_when_the_run_is_over(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM came while the last shards were built, and they ended in the time that they got."""

    class Drained(InProcessExecutor):
        num_ended = 0

        def wait(self, timeout_s: float) -> list[tuple[int, Reply]]:
            ended = super().wait(timeout_s)
            if self.num_ended == 1 and not ended:
                raise KeyboardInterrupt  # as RayExecutor does, once nothing runs
            self.num_ended += len(ended)
            return ended

    def finish(*arguments: object) -> None:
        pytest.fail("it writes the index")

    rows = rows_of(dataset)[1]
    rows.unlink()
    monkeypatch.setattr("cope_prep.jobs.session.InProcessExecutor", Drained)
    monkeypatch.setattr(shard_stage, "finish_shards", finish)
    assert invoke("shard", str(dataset), *SHARD).exit_code == 130
    assert rows.exists()
