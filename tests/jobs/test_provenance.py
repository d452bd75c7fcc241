"""Provenance: every video of a shard can be traced to its source's bytes, the specs, and what made it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cope_prep.jobs.cli import app
from cope_prep.jobs.options import choose_specs
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.verify_provenance import verify_provenance

SPECS = ["--size", "64x64", "--gop-size", "31", "--preset", "ultrafast", "--shard-bytes", "30KiB", "--quiet"]


def invoke(*arguments: str) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def verify(dataset: Path, *flags: str) -> dict[str, Any]:
    result = invoke("verify", str(dataset), "--provenance", "--quiet", "--json", *flags)
    document = json.loads(result.stdout)
    assert result.exit_code == (0 if document["ok"] else 1)
    return document


def messages(document: dict[str, Any]) -> list[str]:
    return [problem["message"] for problem in document["problems"]]


def shards_folder(dataset: Path) -> Path:
    (folder,) = (dataset / "shards").iterdir()
    return folder


@pytest.fixture(scope="module")
def clips(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for index, num_frames in enumerate((35, 70, 31, 40)):
        media.write_clip(folder / f"clip{index}.mp4", num_frames=num_frames)
    return folder


@pytest.fixture(scope="module")
def made(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset, made here; everything in between is consumed."""
    dataset = tmp_path_factory.mktemp("made") / "dataset"
    assert invoke("manifest", "files", str(clips), str(dataset)).exit_code == 0
    assert invoke("reencode", str(dataset), *SPECS[:6], "--limit", "1", "--no-ray", "--quiet").exit_code == 0
    flags = ["--no-ray", "--consume", "--consume-reencoded"]
    assert invoke("run", str(dataset), *SPECS, *flags).exit_code == 0
    return dataset


@pytest.fixture
def dataset(made: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    shutil.copytree(made, tmp_path / "dataset")
    return tmp_path / "dataset"


def edit_json(dataset: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = shards_folder(dataset) / "dataset.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


def edit_table(dataset: Path, change: Callable[[list[dict[str, Any]]], object], *, sign: bool = True) -> None:
    """Change provenance.parquet; `sign` brings its checksum in dataset.json up to date, as a forger would."""
    path = shards_folder(dataset) / "provenance.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    if sign:
        about = {"bytes": path.stat().st_size, "crc32c": google_crc32c.value(path.read_bytes())}
        edit_json(dataset, lambda document: document["provenance"].update(about))


def test_every_video_is_traced_to_its_source(made: Path, clips: Path) -> None:
    rows = pq.read_table(shards_folder(made) / "provenance.parquet").to_pylist()
    assert {row["video_id"] for row in rows} == {path.name for path in clips.iterdir()}
    for row in rows:
        source = clips / row["video_id"]
        assert row["source_uri"] == str(source)
        assert row["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
        assert row["source_bytes"] == source.stat().st_size
        software = json.loads(row["reencode_software"])
        assert {"cope-prep", "av", "libavcodec", "x264"} <= software.keys()
        assert int(software["x264"].split()[0]) > 100
        assert row["extract_software"] == row["reencode_software"]
    found = verify(made, "--sources")
    assert found["ok"]
    assert found["counts"] == {
        "shards": len({row["shard"] for row in rows}),
        "videos": 4,
        "samples_read": 4,
        "sources_hashed": 4,
        "sources_gone": 0,
    }
    assert found["counts"]["shards"] > 1


def test_two_makings_are_the_same_bytes(made: Path, clips: Path, tmp_path: Path) -> None:
    """The second on two Ray workers, at another place, with another TMPDIR, in another order."""
    dataset = tmp_path / "elsewhere" / "set"
    assert invoke("manifest", "files", str(clips), str(dataset)).exit_code == 0
    program = "import sys; from cope_prep.jobs.entry import main; sys.argv[0] = 'cope-prep'; main()"
    command = [sys.executable, "-c", program]
    with tempfile.TemporaryDirectory(prefix="cope-", dir="/tmp") as temporary:  # short, for Ray's sockets
        ended = subprocess.run(
            [*command, "run", str(dataset), *SPECS, "--workers", "2"],
            env={**os.environ, "TMPDIR": temporary},
            capture_output=True,
            text=True,
        )
    assert ended.returncode == 0, ended.stderr
    one, other = shards_folder(made), shards_folder(dataset)
    names = [path.name for path in sorted(one.iterdir()) if path.is_file()]
    assert {"index.parquet", "provenance.parquet", "dataset.json", "shard-00001.tar"} <= set(names)
    for name in names:
        assert (other / name).read_bytes() == (one / name).read_bytes(), name


def test_changed_source_is_found_and_a_gone_one_is_no_problem(
    dataset: Path, clips: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "clips"
    shutil.copytree(clips, moved)
    (moved / "clip0.mp4").write_bytes(b"another file")
    (moved / "clip1.mp4").unlink()
    manifest = pq.read_table(dataset / "manifest.parquet")
    rows = [row | {"uri": str(moved / row["video_id"])} for row in manifest.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=manifest.schema), dataset / "manifest.parquet")
    found = verify(dataset, "--sources")
    assert [text.partition(":")[0] for text in messages(found)] == [
        "the source of clip0.mp4 has changed since"
    ]
    assert (found["counts"]["sources_hashed"], found["counts"]["sources_gone"]) == (3, 1)


def test_source_of_which_only_a_redacted_url_is_known_is_gone(dataset: Path) -> None:
    manifest = pq.read_table(dataset / "manifest.parquet")
    rows = [row for row in manifest.to_pylist() if row["video_id"] != "clip1.mp4"]
    pq.write_table(pa.Table.from_pylist(rows, schema=manifest.schema), dataset / "manifest.parquet")

    def redact(rows: list[dict[str, Any]]) -> None:
        (row,) = (row for row in rows if row["video_id"] == "clip1.mp4")
        row["source_uri"] = "https://***@127.0.0.1:1/clip1.mp4"

    edit_table(dataset, redact)
    found = verify(dataset, "--sources")
    assert messages(found) == []
    assert (found["counts"]["sources_hashed"], found["counts"]["sources_gone"]) == (3, 1)


def test_dataset_from_before_says_so_and_is_brought_up_to_date(dataset: Path) -> None:
    (shards_folder(dataset) / "provenance.parquet").unlink()
    edit_json(dataset, lambda document: document.pop("provenance"))
    result = invoke("verify", str(dataset), "--provenance", "--quiet")
    assert result.exit_code == 1
    assert result.stdout.count("dataset.json has none: an older version wrote it") == 1
    assert invoke("run", str(dataset), *SPECS, "--no-ray").exit_code == 0
    assert verify(dataset)["ok"]


def test_versions_that_were_not_recorded_are_named(dataset: Path) -> None:
    """The ledger of an older version; the shards are finished by this one."""
    for part in dataset.glob("reencode/*/ledger/*.parquet"):
        pq.write_table(pq.read_table(part).drop_columns(["software"]), part)
    (shards_folder(dataset) / "provenance.parquet").unlink()
    assert invoke("run", str(dataset), *SPECS, "--no-ray").exit_code == 0
    assert messages(verify(dataset)) == ["reencode_software of 4 of 4 videos was not recorded"]


def test_different_versions_are_said_and_no_problem(dataset: Path) -> None:
    for part in dataset.glob("reencode/*/ledger/*.parquet"):
        rows = pq.read_table(part)
        software = [row.as_py() for row in rows["software"]]
        software[0] = json.dumps({"av": "17.0.0"})
        changed = rows.set_column(
            rows.column_names.index("software"), rows.schema.field("software"), [software]
        )
        pq.write_table(changed, part)
    (shards_folder(dataset) / "provenance.parquet").unlink()
    assert invoke("run", str(dataset), *SPECS, "--no-ray").exit_code == 0
    found = verify(dataset)
    assert (found["ok"], found["mixed"]) == (True, ["reencode"])
    assert {"av": "17.0.0"} in found["software"]["reencode"]


def test_chain_outlives_the_ledgers(dataset: Path) -> None:
    """Shards that are finished again without them keep what was known."""
    before = (shards_folder(dataset) / "provenance.parquet").read_bytes()
    edit_json(dataset, lambda document: document.pop("provenance"))
    for part in dataset.glob("*/*/ledger/*.parquet"):
        part.unlink()
    invoke("shard", str(dataset), "--shard-bytes", "30KiB", "--no-ray", "--quiet")
    assert (shards_folder(dataset) / "provenance.parquet").read_bytes() == before
    assert verify(dataset)["ok"]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("offset_bytes", 512, "is elsewhere than its row says (offset_bytes)"),
        ("source_sha256", "0" * 64, "dataset.json has another digest of its sources"),
        ("extract_hash", "123456789abc", "extract was done with ['123456789abc']"),
        ("extracted_crc32c", 1, "was done again by extract since, with other bytes"),
        ("reencode_software", '{"av":"1"}', "dataset.json names other software"),
        ("extract_software", "no json", "has software that is no JSON"),
        ("video_id", "another.mp4", "has a row in provenance.parquet, and no sample"),
    ],
)
def test_row_that_is_not_true_fails(dataset: Path, column: str, value: object, message: str) -> None:
    edit_table(dataset, lambda rows: rows[0].update({column: value}))
    found = verify(dataset)
    assert any(message in text for text in messages(found)), messages(found)


def test_unsigned_change_fails(dataset: Path) -> None:
    edit_table(dataset, lambda rows: rows.pop(), sign=False)
    found = messages(verify(dataset))
    assert any("provenance.parquet is {'bytes':" in text for text in found)
    assert any("has no row in provenance.parquet" in text for text in found)


def test_sample_of_another_spec_fails(dataset: Path) -> None:
    shard = shards_folder(dataset) / "shard-00000.tar"
    content = shard.read_bytes()
    (spec_hash,) = {path.name for path in (dataset / "extract").iterdir()}
    assert spec_hash.encode() in content
    shard.write_bytes(content.replace(spec_hash.encode(), b"0" * len(spec_hash), 1))
    assert any("was made with spec 000000000000" in text for text in messages(verify(dataset)))
    assert verify(dataset, "--sample", "0")["ok"]


@pytest.mark.parametrize("name", ["provenance.parquet", "index.parquet", "dataset.json", "shard-00000.tar"])
@pytest.mark.parametrize("damage", ["gone", "broken"])
def test_damaged_dataset_is_a_list_of_problems(dataset: Path, name: str, damage: str) -> None:
    path = shards_folder(dataset) / name
    path.unlink() if damage == "gone" else path.write_bytes(b"\xff" * 700)
    found = verify(dataset)
    assert set(found["num_problems"]) <= {"missing-file", "unreadable", "checksum"}
    assert found["num_problems"]


@pytest.mark.parametrize("flags", [(), ("--sample", "0")])
def test_shard_that_is_gone_is_one_problem(dataset: Path, flags: tuple[str, ...]) -> None:
    (shards_folder(dataset) / "shard-00000.tar").unlink()
    assert verify(dataset, *flags)["num_problems"] == {"missing-file": 1}


def test_sources_need_provenance(dataset: Path) -> None:
    result = invoke("verify", str(dataset), "--sources")
    assert result.exit_code == 2
    assert "--sources: are of --provenance. Give both." in result.stderr


def test_source_that_came_after_the_manifest_is_the_one_recorded(clips: Path, tmp_path: Path) -> None:
    sources, dataset = tmp_path / "clips", tmp_path / "dataset"
    sources.mkdir()
    shutil.copyfile(clips / "clip0.mp4", sources / "a.mp4")
    assert invoke("manifest", "files", str(sources), str(dataset)).exit_code == 0
    shutil.copyfile(clips / "clip1.mp4", sources / "a.mp4")
    assert invoke("run", str(dataset), *SPECS, "--no-ray").exit_code == 0
    (row,) = pq.read_table(shards_folder(dataset) / "provenance.parquet").to_pylist()
    assert row["source_sha256"] == hashlib.sha256((clips / "clip1.mp4").read_bytes()).hexdigest()
    assert row["source_bytes"] == (clips / "clip1.mp4").stat().st_size
    assert verify(dataset, "--sources")["ok"]
    edit_table(dataset, lambda rows: rows[0].update(source_bytes=(clips / "clip0.mp4").stat().st_size))
    assert "recorded are" in messages(verify(dataset, "--sources"))[0]


def test_progress_ends_where_it_should(made: Path) -> None:
    layout = Layout(dataset=str(made), specs=choose_specs(str(made), "shards", None))
    steps: list[tuple[int, int]] = []
    verify_provenance(layout, hash_sources=True, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(number, 8) for number in range(1, 9)]
