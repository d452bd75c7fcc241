"""`mix plan` and `simulate` as commands: what they print, as JSON and as tables, and how they fail."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from cope_prep.jobs import options
from cope_prep.jobs.cli import app
from cope_prep.pipeline import storage
from cope_prep.schemas.arrow import QUESTIONS
from cope_prep.schemas.errors import ConfigurationError

NUM_GOPS = 2 + 3 + 1
RUN = ["--ranks", "2", "--workers", "1", "--cache", "1GB", "--bandwidth", "2GB/s", "--batch-size", "1"]


def invoke(*arguments: str) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def invoke_json(*arguments: str) -> dict[str, Any]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def dataset(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of 2, 3 and 1 GOPs in shards, two questions about each."""
    folder = tmp_path_factory.mktemp("loader")
    (folder / "clips").mkdir()
    for index, num_frames in enumerate((35, 70, 31)):
        media.write_clip(folder / "clips" / f"clip{index}.mp4", num_frames=num_frames)
    dataset = folder / "dataset"
    assert invoke("manifest", "files", str(folder / "clips"), str(dataset)).exit_code == 0
    flags = ["--size", "64x64", "--gop-size", "31", "--window", "10", "--no-ray", "--quiet"]
    assert invoke("run", str(dataset), *flags).exit_code == 0
    rows = [
        {
            "question_id": f"clip{index}#{kind}",
            "video_id": f"clip{index}.mp4",
            "subset": "0_30_s_nextqa",
            "data_source": "0_30_s_nextqa",
            "kind": kind,
            "turns": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}],
            "json_path": f"0_30_s_nextqa/0_30_s_nextqa_{kind}_qa_processed.json",
            "json_sha256": "0" * 64,
        }
        for kind in ("oe", "mc")
        for index in range(3)
    ]
    storage.publish_table(str(dataset / "questions.parquet"), pa.Table.from_pylist(rows, schema=QUESTIONS))
    return dataset


@pytest.fixture
def mix(tmp_path: Path) -> str:
    path = tmp_path / "mix [1].yaml"
    path.write_text(
        "datasets:\n"
        "  - json_path: 0_30_s_nextqa/0_30_s_nextqa_oe_qa_processed.json\n"
        "  - json_path: 0_30_s_nextqa/0_30_s_nextqa_mc_qa_processed.json\n"
        "    sampling_strategy: first:2\n"
    )
    return str(path)


def test_help_shows_examples() -> None:
    assert "cope-prep mix plan mix.yaml" in invoke("mix", "plan", "--help").stdout
    assert "cope-prep simulate ./dataset --ranks 64" in invoke("simulate", "--help").stdout


def test_mix_plan_counts(dataset: Path, mix: str) -> None:
    found = invoke_json("mix", "plan", mix, "--dataset", str(dataset))
    assert (found["num_records"], found["num_videos"]) == (5, 3)
    kinds = found["sources"][0]["kinds"]
    assert {kind["kind"]: kind["num_records"] for kind in kinds} == {"oe": 3, "mc": 2}
    # 4 anchors a full GOP: 1, 2 or 4 of them key frames. The short GOPs, of 4 and 8 frames, are one anchor.
    per_gop = {1: 210 + 3 * 8, 2: 2 * 210 + 2 * 8, 4: 4 * 210}
    assert [density["key_frames"] for density in found["densities"]] == [1, 2, 4]
    for density in found["densities"]:
        full = per_gop[density["key_frames"]]
        of_video = [full + 210, 2 * full + 210, full]
        assert density["num_tokens"] == sum(of_video) + sum(of_video[:2])
    assert found["bytes_per_record"] > found["bytes_once"] > 0


def test_mix_plan_prints_tables(dataset: Path, mix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    result = invoke("mix", "plan", mix, "--dataset", str(dataset))
    assert result.exit_code == 0
    assert f"{mix}: 5 records about 3 videos" in result.stdout
    assert "Open-ended" in result.stdout
    assert "Captions" not in result.stdout
    assert "Key frames a GOP" in result.stdout
    assert "An epoch streams" in result.stdout
    assert "not compared with the published counts: the mix takes parts of files" in result.stdout
    assert result.stderr == ""


def test_mix_plan_without_shards_says_so(dataset: Path, mix: str, tmp_path: Path) -> None:
    questions = tmp_path / "fresh" / "questions.parquet"
    storage.publish_bytes(str(questions), (dataset / "questions.parquet").read_bytes())
    result = invoke("mix", "plan", mix, "--dataset", str(questions.parent))
    assert result.exit_code == 0
    assert "5 records about 3 videos" in result.stdout
    assert "not known yet" in result.stdout
    assert "no output of shards" in result.stdout


def test_mix_plan_without_dataset_fails(mix: str) -> None:
    result = invoke("mix", "plan", mix)
    assert result.exit_code == 2
    assert "--dataset DATASET" in result.stderr


def test_simulate_replays_gops_or_questions(dataset: Path) -> None:
    gops = invoke_json("simulate", str(dataset), *RUN, "--step-time", "1")
    assert (gops["unit"], gops["num_units"], gops["num_steps"]) == ("GOPs", NUM_GOPS, NUM_GOPS // 2)
    (epoch,) = gops["epochs"]
    assert (epoch["num_reads"], epoch["num_fetches"], epoch["egress"]) == (NUM_GOPS, 1, 1.0)
    assert epoch["needed"]["epoch_s"] == pytest.approx(3, abs=0.1)
    questions = str(dataset / "questions.parquet")
    asked = invoke_json("simulate", str(dataset), *RUN, "--questions", questions, "--epochs", "2")
    assert (asked["unit"], asked["num_units"]) == ("questions", 6)
    assert [epoch["num_reads"] for epoch in asked["epochs"]] == [2 * NUM_GOPS] * 2
    assert asked["epochs"][1]["node_bytes"] == [0]


def test_simulate_needs_the_index_alone(dataset: Path, tmp_path: Path) -> None:
    whole = invoke_json("simulate", str(dataset), *RUN)
    bare = str(tmp_path / "index.parquet")
    (index,) = dataset.glob("shards/*/index.parquet")
    storage.publish_bytes(bare, index.read_bytes())
    found = invoke_json("simulate", bare, *RUN, "--gop-size", "31", "--window", "10")
    for name in ("num_units", "num_steps", "balance"):
        assert found[name] == whole[name]
    assert found["epochs"][0]["node_bytes"] == whole["epochs"][0]["node_bytes"]
    result = invoke("simulate", bare, *RUN, "--gop-size", "31", "--window", "31")
    assert result.exit_code == 2
    assert "Choose a window shorter than the GOP" in result.stderr


def test_simulate_prints_tables_and_warnings(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    result = invoke(
        "simulate", str(dataset), *RUN, "--ranks-per-node", "1", "--lanes", "3", "--step-time", "1"
    )
    assert result.exit_code == 0
    for text in ("6 GOPs an epoch: 3 videos", "First batch", "Shard egress", "Of it, waiting for data"):
        assert text in result.stdout
    assert "Warning: the global batch of 2 and 3 lanes do not divide each other" in result.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cache", "much"], "--cache much: is not a size"),
        (["--bandwidth", "2GB/min"], "--bandwidth 2GB/min: is not a rate"),
        (["--bandwidth", "16Gb/s"], "--bandwidth 16Gb/s: is bits"),
        (["--cache", "100"], "cannot hold a chunk"),
        (["--chunk-bytes", "1KB"], "--chunk-bytes 1000"),
        (["--window", "10"], "has its settings in dataset.json"),
        (["--key-frames", "3"], "does not divide the 4 anchors"),
        (["--ranks", "100"], "fewer than one global batch of 100"),
    ],
)
def test_simulate_with_wrong_flags_fails(dataset: Path, flags: list[str], message: str) -> None:
    result = invoke("simulate", str(dataset), *RUN, *flags)
    assert result.exit_code == 2
    assert message in result.stderr


def test_rates_are_parsed() -> None:
    assert options.parse_rate("2GB/s", flag="--bandwidth") == 2 * 10**9
    assert options.parse_rate("500 MiB/s", flag="--bandwidth") == 500 * 1024**2
    assert options.parse_rate("1.5GB", flag="--bandwidth") == 1_500_000_000
    for text in ("", "fast", "0GB/s", "2GB/", "2gbit/s", "-1GB/s"):
        with pytest.raises(ConfigurationError, match="--bandwidth"):
            options.parse_rate(text, flag="--bandwidth")
