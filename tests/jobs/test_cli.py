"""The commands, end to end on generated clips and without Ray: exit codes, stdout, and what they leave."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from cope_prep.jobs import session
from cope_prep.jobs.cli import app
from cope_prep.schemas.errors import (
    ConfigurationError,
    CopePrepError,
    FormatError,
    RunLockLostError,
    SourceNotFoundError,
    StorageError,
)

FAST = ["--size", "64x64", "--gop-size", "31", "--preset", "ultrafast"]
HERE = ["--no-ray", "--quiet"]
NUM_GOPS = 2 + 3 + 1
"""Of the clips of 35, 70 and 31 frames."""


def invoke(*arguments: str) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def invoke_json(*arguments: str, exit_code: int = 0) -> dict[str, Any]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == exit_code, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def clips(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips, of which one is longer, and a file that is none."""
    folder = tmp_path_factory.mktemp("clips")
    for index, num_frames in enumerate((35, 70, 31)):
        media.write_clip(folder / f"clip{index}.mp4", num_frames=num_frames)
    (folder / "broken [1].mp4").write_bytes(b"this is text")
    return folder


@pytest.fixture
def dataset(clips: Path, tmp_path: Path) -> str:
    dataset = str(tmp_path / "dataset")
    assert invoke("manifest", "files", str(clips), dataset).exit_code == 0
    return dataset


@pytest.fixture
def good_dataset(clips: Path, tmp_path: Path) -> str:
    """Without the broken file."""
    dataset = str(tmp_path / "dataset")
    assert invoke("manifest", "files", f"{clips}/clip*.mp4", dataset).exit_code == 0
    return dataset


def files(dataset: str) -> set[str]:
    root = Path(dataset)
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_help_names_every_command_with_an_example() -> None:
    text = invoke("--help").stdout
    for command in ("manifest", "reencode", "extract", "shard", "run", "status", "verify", "inspect"):
        assert command in text
        if command != "manifest":
            assert f"cope-prep {command} " in invoke(command, "--help").stdout
    for command in ("files", "llava-video"):
        assert f"cope-prep manifest {command} " in invoke("manifest", command, "--help").stdout


def test_manifest_reports_as_json(clips: Path, tmp_path: Path) -> None:
    found = invoke_json("manifest", "files", str(clips), str(tmp_path / "d"))
    assert found["num_videos"] == 4
    assert "4 videos" in invoke("manifest", "files", str(clips), str(tmp_path / "d")).stdout


def test_run_makes_a_verified_dataset_and_lists_what_failed(dataset: str) -> None:
    result = invoke("run", dataset, *FAST, *HERE, "--window", "10", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    stages = {stage["stage"]: stage for stage in document["stages"]}
    assert stages.keys() == {"reencode", "extract", "shards"}
    assert (stages["reencode"]["num_ok"], stages["reencode"]["num_failed"]) == (3, 1)
    assert stages["reencode"]["failures"][0]["video_id"] == "broken [1].mp4"
    assert stages["extract"]["num_missing_input"] == 1
    assert stages["shards"]["num_gops"] == NUM_GOPS
    assert "NotAVideoError" in result.stderr
    assert "broken [1].mp4" in result.stderr
    assert invoke_json("verify", dataset, "--quiet")["counts"]["gops_compared"] == NUM_GOPS


def test_exit_code_is_0_when_all_is_done(good_dataset: str) -> None:
    first = invoke("run", good_dataset, *FAST, *HERE)
    assert first.exit_code == 0, first.stderr
    assert "shards" in first.stdout
    assert first.stderr == ""
    before = files(good_dataset)
    again = invoke_json("run", good_dataset, *FAST, *HERE)
    assert [stage["num_run"] for stage in again["stages"]] == [0, 0, 0]
    assert files(good_dataset) == before


def test_stages_find_the_specs_of_the_stage_before(good_dataset: str) -> None:
    assert invoke("reencode", good_dataset, *FAST, *HERE).exit_code == 0
    assert invoke("extract", good_dataset, *HERE, "--window", "5", "--residual", "lossless").exit_code == 0
    assert invoke("shard", good_dataset, *HERE, "--shard-bytes", "30KiB").exit_code == 0
    document = json.loads(next(Path(good_dataset).glob("shards/*/dataset.json")).read_bytes())
    assert document["specs"]["encode"]["width_px"] == 64
    assert document["specs"]["extract"]["window"] == 5
    assert len(document["shards"]) > 1


def test_second_spec_needs_a_choice(good_dataset: str) -> None:
    invoke("reencode", good_dataset, *FAST, *HERE)
    invoke("reencode", good_dataset, *FAST, "--codec", "mpeg4", *HERE)
    result = invoke("extract", good_dataset, *HERE)
    assert result.exit_code == 2
    assert "Choose one with --spec HASH" in result.stderr
    spec_hash = sorted(path.name for path in Path(good_dataset, "reencode").iterdir())[0]
    assert invoke("extract", good_dataset, *HERE, "--spec", spec_hash).exit_code == 0


def test_limit_takes_the_first_videos(good_dataset: str) -> None:
    document = invoke_json("reencode", good_dataset, *FAST, *HERE, "--limit", "2")
    assert document["stages"][0]["num_videos"] == 2
    rest = invoke_json("reencode", good_dataset, *FAST, *HERE)
    assert (rest["stages"][0]["num_videos"], rest["stages"][0]["num_run"]) == (3, 1)


def test_failed_video_is_tried_again_only_when_asked(dataset: str) -> None:
    invoke("reencode", dataset, *FAST, *HERE)
    again = invoke_json("reencode", dataset, *FAST, *HERE, exit_code=1)
    assert (again["stages"][0]["num_run"], again["stages"][0]["num_failed"]) == (0, 1)
    retried = invoke_json("reencode", dataset, *FAST, *HERE, "--retry-failed", exit_code=1)
    assert retried["stages"][0]["num_run"] == 1


def test_consumed_inputs_are_gone_and_not_made_again(good_dataset: str) -> None:
    specs = [*FAST, "--shard-bytes", "30KiB"]
    assert invoke("run", good_dataset, *specs, *HERE, "--consume", "--consume-reencoded").exit_code == 0
    left = [name for name in files(good_dataset) if name.endswith((".mp4", ".tar"))]
    assert left
    assert all(name.startswith("shards/") for name in left)
    again = invoke_json("run", good_dataset, *specs, *HERE)
    assert [stage["num_run"] for stage in again["stages"]] == [0, 0, 0]
    for command in ("reencode", "extract"):
        flags = FAST if command == "reencode" else []
        assert invoke_json(command, good_dataset, *flags, *HERE)["stages"][0]["num_run"] == 0
    assert invoke_json("verify", good_dataset, "--quiet")["counts"]["gops_without_source"] == NUM_GOPS


def test_shards_stay_when_other_shards_are_made_of_the_same_samples(good_dataset: str) -> None:
    one, other = ([*FAST, *HERE, "--consume", "--seed", seed] for seed in ("1", "2"))
    assert invoke("run", good_dataset, *one).exit_code == 0
    published = {
        name: Path(good_dataset, name).stat().st_mtime_ns for name in files(good_dataset) if ".tar" in name
    }
    assert published
    assert invoke("run", good_dataset, *other).exit_code == 0
    again = invoke_json("run", good_dataset, *one)
    assert [stage["num_run"] for stage in again["stages"]] == [0, 0, 0]
    assert {name: Path(good_dataset, name).stat().st_mtime_ns for name in published} == published


def test_consume_spares_a_file_that_waits_for_extraction(
    clips: Path, media: ModuleType, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    media.write_clip(source / "a.mp4", num_frames=35)
    dataset = str(tmp_path / "dataset")
    invoke("manifest", "files", str(source), dataset)
    assert invoke("run", dataset, *FAST, *HERE).exit_code == 0
    media.write_clip(source / "a.mp4", num_frames=50)
    invoke("manifest", "files", str(source), dataset)
    assert invoke("reencode", dataset, *FAST, *HERE).exit_code == 0
    waiting = {name for name in files(dataset) if name.endswith(".mp4")}
    assert len(waiting) == 1
    invoke("shard", dataset, *HERE, "--consume-reencoded")
    assert waiting <= files(dataset)


def test_consumed_inputs_are_made_again_for_other_shards(good_dataset: str) -> None:
    assert invoke("run", good_dataset, *FAST, *HERE, "--consume", "--consume-reencoded").exit_code == 0
    other = invoke_json("run", good_dataset, *FAST, *HERE, "--shard-bytes", "30KiB")
    assert [stage["num_run"] > 0 for stage in other["stages"]] == [True, True, True]
    window = invoke_json("run", good_dataset, *FAST, *HERE, "--window", "10")
    assert [stage["num_failed"] for stage in window["stages"]] == [0, 0, 0]


def test_status_counts_groups_and_sums(dataset: str) -> None:
    empty = invoke_json("status", dataset)
    assert (empty["num_videos"], empty["stages"]) == (4, [])
    assert "cope-prep run" in invoke("status", dataset).stdout
    invoke("reencode", dataset, *FAST, *HERE, "--limit", "2")
    first = invoke_json("status", dataset)["stages"][0]
    assert (first["num_ok"], first["num_failed"], first["num_pending"]) == (1, 1, 2)
    invoke("run", dataset, *FAST, *HERE)
    found = invoke_json("status", dataset)
    stages = {stage["stage"]: stage for stage in found["stages"]}
    assert (stages["reencode"]["num_ok"], stages["reencode"]["num_pending"]) == (3, 0)
    assert (stages["extract"]["num_ok"], stages["extract"]["num_waiting"]) == (3, 1)
    assert stages["reencode"]["failures"][0]["error_class"] == "NotAVideoError"
    assert stages["reencode"]["videos_per_s"] > 0
    assert found["shards"][0]["num_gops"] == NUM_GOPS
    text = invoke("status", dataset).stdout
    for word in ("reencode", "extract", "shards", "3/4", "NotAVideoError", "broken [1].mp4"):
        assert word in text


def test_inspect_draws_a_sheet_from_shards_or_tars(good_dataset: str, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    invoke("reencode", good_dataset, *FAST, *HERE)
    invoke("extract", good_dataset, *HERE)
    assert invoke("inspect", good_dataset, "clip1.mp4", "--out", str(sheet)).stdout.strip() == str(sheet)
    assert sheet.read_bytes().startswith(b"\x89PNG")
    invoke("shard", good_dataset, *HERE, "--consume")
    found = invoke_json("inspect", good_dataset, "clip1.mp4", "--out", str(sheet), "--gop", "1")
    assert found == {"video_id": "clip1.mp4", "gop_index": 1, "sheet": str(sheet)}
    assert invoke("inspect", good_dataset, "clip9.mp4", "--out", str(sheet)).exit_code == 2


def test_verify_exits_1_when_a_shard_is_damaged(good_dataset: str) -> None:
    invoke("run", good_dataset, *FAST, *HERE)
    shard = next(Path(good_dataset).glob("shards/*/shard-00000.tar"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    result = invoke("verify", good_dataset, "--quiet")
    assert result.exit_code == 1
    assert "NOT as recorded" in result.stdout
    assert "shard-00000.tar" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["reencode", "DATASET", "--size", "3x3"],
        ["reencode", "DATASET", "--workers", "0"],
        ["reencode", "DATASET", "--no-such-flag"],
        ["reencode", "DATASET", "--address", "127.0.0.1:1"],
        ["reencode", "/no/such/dataset"],
        ["extract", "DATASET"],
        ["shard", "DATASET"],
        ["run", "DATASET", "--residual", "nothing"],
        ["run", "DATASET", "--shard-bytes", "5 apples"],
        ["run", "DATASET", "--window", "240"],
        ["verify", "DATASET"],
        ["inspect", "DATASET", "clip0.mp4", "--out", "sheet.png"],
        ["status", "/no/such/dataset"],
        ["manifest", "files", "/no/such/folder", "DATASET"],
        ["no-such-command"],
    ],
)
def test_wrong_usage_exits_2_before_any_work(arguments: list[str], dataset: str) -> None:
    before = files(dataset)
    result = invoke(*(dataset if argument == "DATASET" else argument for argument in arguments))
    assert result.exit_code == 2
    assert result.stderr.strip()
    assert "Traceback" not in result.stderr
    assert files(dataset) == before


def test_configuration_error_as_json_is_one_object(dataset: str) -> None:
    document = invoke_json("reencode", dataset, "--fps", "0", exit_code=2)
    assert document["error"]["class"] == "ConfigurationError"
    assert document["error"]["message"].startswith("--fps 0: ")


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (KeyboardInterrupt(), 130),
        (session.Terminated(), 143),
        (StorageError("s3://bucket", "answers 503"), 1),
    ],
)
def test_what_stops_a_command_has_its_exit_code(
    error: BaseException, exit_code: int, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("cope_prep.jobs.cli.run_reencode", stop)
    result = invoke("reencode", dataset, *HERE)
    assert result.exit_code == exit_code
    assert "run the same command again to go on" in result.stderr.lower()
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (FormatError("index.parquet", "is damaged"), 2),
        (SourceNotFoundError("plan.parquet", "no such file"), 2),
        (ConfigurationError("--wheel", "is no wheel"), 2),
        (RunLockLostError("./d", "another has taken over", "Let that one go on."), 1),
    ],
)
def test_what_another_try_does_not_help_asks_for_none(
    error: CopePrepError, exit_code: int, is_late: bool, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged table is found before the work or after hours of it, and then something was done."""

    def stop(*arguments: object, executor: Callable[[], object], **options: object) -> None:
        if is_late:
            executor()
        raise type(error)(error.subject, error.found, error.remedy)

    monkeypatch.setattr("cope_prep.jobs.cli.run_reencode", stop)
    result = invoke("reencode", dataset, *HERE)
    assert result.exit_code == (1 if is_late and not isinstance(error, ConfigurationError) else exit_code)
    assert result.stderr.splitlines() == [f"cope-prep: {error}"]


def test_sigterm_handler_is_put_back(good_dataset: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    invoke("reencode", good_dataset, *FAST, *HERE)
    assert signal.getsignal(signal.SIGTERM) == before
