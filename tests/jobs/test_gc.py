"""`cope-prep gc`: what is left over goes, what anybody may need stays, on a disk and in S3."""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from cope_prep.jobs.cli import app
from cope_prep.pipeline import remote, storage
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.ledger import Ledger, LedgerRow
from cope_prep.schemas.arrow import MANIFEST
from cope_prep.schemas.errors import StorageError
from cope_prep.schemas.records import video_key

if TYPE_CHECKING:
    from types import ModuleType

    import pyarrow as pa
    from s3_faults import FaultyS3

LISTED = ("a.mp4", "b.mp4")
KEPT_SIZE, GARBAGE_SIZE = 10, 1000


@pytest.fixture(params=["local", "s3"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Two videos, one of them with an output and a row; sources lie in the dataset's own folder."""
    if request.param == "local":
        dataset = str(tmp_path / "dataset")
    else:
        faulty_s3: FaultyS3 = request.getfixturevalue("faulty_s3")
        s3_faults: ModuleType = request.getfixturevalue("s3_faults")
        faulty_s3.faults = s3_faults.Faults()
        dataset = f"s3://bucket/{uuid.uuid4().hex}/dataset"
    for name in LISTED:
        put(f"{dataset}/videos/{name}", KEPT_SIZE)
    storage.publish_table(f"{dataset}/manifest.parquet", manifest(dataset))
    layout = layout_of(dataset)
    for stage in ("reencode", "extract", "shards"):
        layout.write_spec(stage)
    put(layout.reencoded(video_key("a.mp4")), KEPT_SIZE)
    record(layout, "a.mp4")
    return dataset


def manifest(dataset: str) -> pa.Table:
    columns: dict[str, list[Any]] = {
        "video_id": list(LISTED),
        "video_key": [video_key(name) for name in LISTED],
        "uri": [f"{dataset}/videos/{name}" for name in LISTED],
        "subset": ["", ""],
        "size_bytes": [KEPT_SIZE] * 2,
        "version": ["1", "1"],
    }
    return MANIFEST.empty_table().from_pydict(columns, schema=MANIFEST)


def layout_of(dataset: str) -> Layout:
    return Layout(dataset=dataset, specs=Specs())


def record(layout: Layout, video_id: str) -> None:
    row = LedgerRow(
        video_id=video_id,
        video_key=video_key(video_id),
        stage="reencode",
        spec_hash=layout.specs.hash_of("reencode"),
        status="ok",
        source_size_bytes=KEPT_SIZE,
        source_version="1",
        output_uri=layout.reencoded(video_key(video_id)),
        finished_unix_s=1.0,
    )
    Ledger(layout.ledger("reencode")).append([row])


def put(uri: str, size_bytes: int, *, age_s: float = 3 * 86400.0) -> str:
    """A file as old as that, where a file's time can be set."""
    storage.publish_bytes(uri, bytes(size_bytes))
    if storage.is_local(uri):
        then_s = time.time() - age_s
        os.utime(uri, (then_s, then_s))
    return uri


def begin_upload(uri: str) -> None:
    """In parts, as a driver does that is killed then."""
    fs: Any
    fs, path = remote.filesystem(uri)
    bucket, key, _ = fs.split_path(path)
    begun = fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    identity = {"Bucket": bucket, "Key": key, "UploadId": begun["UploadId"]}
    fs.call_s3("upload_part", PartNumber=1, Body=bytes(GARBAGE_SIZE), **identity)


def uploads(dataset: str) -> list[str]:
    fs: Any = remote.filesystem(dataset)[0]
    prefix = dataset.removeprefix("s3://bucket/")
    return [one["Key"] for one in fs.list_multipart_uploads("bucket") if one["Key"].startswith(prefix)]


def everything(dataset: str) -> set[str]:
    """Paths of all files, relative to the dataset."""
    if storage.is_local(dataset):
        return {str(path.relative_to(dataset)) for path in Path(dataset).rglob("*") if path.is_file()}
    fs, path = remote.filesystem(dataset)
    return {name[len(path) + 1 :] for name in fs.find(path)}


def gc(dataset: str, *arguments: str, exit_code: int = 0) -> dict[str, Any]:
    # A file in S3 cannot be made older than it is.
    age = [] if storage.is_local(dataset) or "--older-than" in arguments else ["--older-than", "0s"]
    result = CliRunner().invoke(app, ["gc", dataset, "--json", *age, *arguments])
    assert result.exit_code == exit_code, result.stderr
    return json.loads(result.stdout)


def leave_garbage(dataset: str) -> dict[str, str]:
    """One of each kind, by kind."""
    layout = layout_of(dataset)
    garbage = {
        "part": put(
            f"{layout.folder('reencode')}/parts/{video_key('a.mp4')}/000000240.packets", GARBAGE_SIZE
        ),
        "orphan": put(layout.extracted(video_key("gone.mp4")), GARBAGE_SIZE),
    }
    if storage.is_local(dataset):
        name = f".tmp-{uuid.uuid4().hex}-{video_key('a.mp4')}.mp4"
        garbage["temporary"] = put(f"{layout.folder('reencode')}/{name}", GARBAGE_SIZE)
    else:
        garbage["upload"] = layout.shard(0)
        begin_upload(garbage["upload"])
    return garbage


def test_what_is_left_over_is_deleted_and_nothing_else(dataset: str) -> None:
    before = everything(dataset)
    garbage = leave_garbage(dataset)
    kept = put(layout_of(dataset).extracted(video_key("b.mp4")), KEPT_SIZE)  # without a row
    dirty = everything(dataset)
    found = gc(dataset, "--dry-run")
    assert {one["kind"]: one["uri"] for one in found["garbage"]} == garbage
    assert found["total_bytes"] == len(garbage) * GARBAGE_SIZE
    assert found["num_unrecorded"] == 1
    assert everything(dataset) == dirty  # the clock's file is gone, too
    again = gc(dataset)
    assert [one["uri"] for one in again["garbage"]] == [one["uri"] for one in found["garbage"]]
    assert everything(dataset) == before | {kept.removeprefix(f"{dataset}/")}
    if not storage.is_local(dataset):
        assert uploads(dataset) == []
    assert gc(dataset)["garbage"] == []


def test_what_is_young_is_kept_whatever_the_clock_here(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_garbage(dataset)
    if storage.is_local(dataset):
        for path in Path(dataset).rglob("*"):
            os.utime(path)
    dirty = everything(dataset)
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + 48 * 3600.0)
    found = gc(dataset, "--older-than", "24h")
    assert found["garbage"] == []
    assert found["num_young"] == 3
    assert everything(dataset) == dirty


def test_outputs_of_removed_videos_go_only_when_asked_for(dataset: str) -> None:
    layout = layout_of(dataset)
    uri = put(layout.reencoded(video_key("taken off.mp4")), GARBAGE_SIZE)
    record(layout, "taken off.mp4")
    found = gc(dataset)
    assert found["garbage"] == []
    assert [one["uri"] for one in found["kept_removed"]] == [uri]
    assert storage.exists(uri)
    found = gc(dataset, "--removed-videos")
    assert [(one["kind"], one["uri"]) for one in found["garbage"]] == [("removed", uri)]
    assert not storage.exists(uri)
    assert storage.exists(layout.reencoded(video_key("a.mp4")))


def test_what_is_not_ours_is_kept(dataset: str) -> None:
    """Sources with names like ours, in folders like ours; uploads of sources; what somebody keeps beside."""
    layout = layout_of(dataset)
    hashed = f"reencode/{layout.specs.hash_of('reencode')}"
    table = manifest(dataset)
    source = put(f"{layout.folder('reencode')}/parts/source.mp4", KEPT_SIZE)
    table = table.set_column(2, "uri", [[source, table["uri"][1].as_py()]])
    storage.publish_table(f"{dataset}/manifest.parquet", table.cast(MANIFEST))
    for name in (
        "notes.txt",
        f"videos/.tmp-{uuid.uuid4().hex}-x",
        "reencode/notes/parts/x",
        "extract/README",
        f"{hashed}/parts/notes/my own file.txt",
        f"{hashed}/parts/000000240.packets",
        f"{hashed}/parts/{video_key('a.mp4')}/notes.txt",
        f"{hashed}/parts/{video_key('a.mp4')}/sub/000000240.packets",
    ):
        put(f"{dataset}/{name}", KEPT_SIZE)
    put(f"{layout.folder('reencode')}/notes.mp4", KEPT_SIZE)
    before = everything(dataset)
    if not storage.is_local(dataset):
        begin_upload(f"{dataset}/videos/c.mp4")
        begin_upload(f"{dataset}-2/reencode/{layout.specs.hash_of('reencode')}/x.mp4")
    assert gc(dataset, "--removed-videos")["garbage"] == []
    assert everything(dataset) == before
    if not storage.is_local(dataset):
        assert len(uploads(dataset)) == 2


def test_nothing_is_deleted_while_a_run_is_alive(dataset: str) -> None:
    leave_garbage(dataset)
    lock = put(f"{dataset}/locks/reencode-0123456789ab.json", KEPT_SIZE, age_s=20.0)
    dirty = everything(dataset)
    error = gc(dataset, exit_code=2)["error"]
    assert "a run is working on it" in error["message"]
    assert everything(dataset) == dirty
    if storage.is_local(dataset):  # killed an hour ago
        put(lock, KEPT_SIZE, age_s=3600.0)
    else:
        storage.remove(lock)
    assert gc(dataset)["garbage"] != []


def test_temporaries_of_the_quarantine_and_of_parts_go(tmp_path: Path) -> None:
    dataset = str(tmp_path)
    storage.publish_table(f"{dataset}/manifest.parquet", manifest(dataset))
    parts = f"{layout_of(dataset).folder('reencode')}/parts/{video_key('a.mp4')}"
    left = {
        put(f"{folder}/.tmp-{uuid.uuid4().hex}-x", GARBAGE_SIZE)
        for folder in (f"{dataset}/quarantine", parts)
    }
    row = put(f"{dataset}/quarantine/part-0.parquet", KEPT_SIZE)
    assert {one["uri"] for one in gc(dataset)["garbage"]} == left
    assert everything(dataset) == {"manifest.parquet", os.path.relpath(row, dataset)}


@pytest.mark.parametrize("linked", ["reencode", "reencode/{hash}", "reencode/{hash}/parts", "quarantine"])
def test_a_folder_of_another_dataset_is_left_alone(tmp_path: Path, linked: str) -> None:
    mine, theirs = str(tmp_path / "mine"), str(tmp_path / "theirs")
    storage.publish_table(f"{mine}/manifest.parquet", manifest(mine))
    layout = layout_of(theirs)
    put(layout.reencoded(video_key("theirs.mp4")), GARBAGE_SIZE)
    put(f"{layout.folder('reencode')}/parts/{video_key('theirs.mp4')}/000000000.packets", GARBAGE_SIZE)
    put(f"{theirs}/quarantine/.tmp-{uuid.uuid4().hex}-x", GARBAGE_SIZE)
    before = everything(theirs)
    link = tmp_path / "mine" / linked.format(hash=layout.specs.hash_of("reencode"))
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "theirs" / link.relative_to(tmp_path / "mine"))
    found = gc(mine)
    assert found["garbage"] == []
    assert found["outside"] == [str(link)]
    assert everything(theirs) == before
    assert f"left alone: {link}" in CliRunner().invoke(app, ["gc", mine]).stdout


def test_a_dry_run_needs_no_right_to_write(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    garbage = leave_garbage(dataset)

    def refused(uri: str, content: bytes) -> None:
        raise StorageError(uri, "cannot be written (Read-only file system)")

    monkeypatch.setattr(storage, "publish_bytes", refused)
    found = gc(dataset, "--dry-run")
    assert {one["kind"]: one["uri"] for one in found["garbage"]} == garbage
    assert not found["is_clock_of_store"]
    assert "by this machine's clock" in CliRunner().invoke(app, ["gc", dataset, "--dry-run"]).stdout
    assert "cannot be written" in gc(dataset, exit_code=1)["error"]["message"]


@pytest.mark.parametrize("protocol", ["file://", "local://", ""])
def test_a_source_among_the_outputs_is_kept_however_it_is_spelled(tmp_path: Path, protocol: str) -> None:
    dataset = str(tmp_path)
    source = put(layout_of(dataset).reencoded(video_key("gone.mp4")), KEPT_SIZE)
    table = manifest(dataset)
    table = table.set_column(2, "uri", [[f"{protocol}{source}", table["uri"][1].as_py()]])
    storage.publish_table(f"{dataset}/manifest.parquet", table.cast(MANIFEST))
    assert gc(dataset)["garbage"] == []
    assert os.path.exists(source)


def test_without_a_manifest_nothing_is_deleted(tmp_path: Path) -> None:
    output = put(layout_of(str(tmp_path)).reencoded(video_key("a.mp4")), 1)
    assert "has no manifest" in gc(str(tmp_path), exit_code=2)["error"]["message"]
    assert os.path.exists(output)


def test_text_names_files_and_bytes(tmp_path: Path) -> None:
    dataset = str(tmp_path)
    storage.publish_table(f"{dataset}/manifest.parquet", manifest(dataset))
    uri = put(layout_of(dataset).extracted(video_key("gone.mp4")), 2048)
    result = CliRunner().invoke(app, ["gc", dataset, "--dry-run"])
    assert uri in result.stdout
    assert "would be deleted: 1, 2.0 KiB" in result.stdout
    assert os.path.exists(uri)


@pytest.mark.parametrize("age", ["24", "-1h", "h", "1w", ""])
def test_age_that_is_none_fails(tmp_path: Path, age: str) -> None:
    assert "Give for instance" in gc(str(tmp_path), f"--older-than={age}", exit_code=2)["error"]["message"]
