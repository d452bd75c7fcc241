"""`cope-prep stats` on a dataset of generated clips: what it prints, writes, and says when something is missing."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cope_prep.jobs.cli import app
from cope_prep.jobs.stats_table import WIDTH, print_stats
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, the_specs
from cope_prep.pipeline.stats import dataset_stats
from cope_prep.pipeline.stats_records import DatasetStats, Outlier, SourceShare
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.specs import SCHEMA_VERSION

FAST = ["--size", "64x64", "--gop-size", "61", "--preset", "ultrafast", "--no-ray", "--quiet"]
CSV_FILES = {
    f"{name}.csv"
    for name in (
        "groups",
        "questions",
        "stages",
        "failures",
        "sources",
        "distributions",
        "histograms",
        "tokens",
        "outliers",
    )
}


def invoke(*arguments: str) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def invoke_json(*arguments: str, exit_code: int = 0) -> dict[str, Any]:
    result = invoke("stats", *arguments, "--json")
    assert result.exit_code == exit_code, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def clips(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips, and a file that is none."""
    folder = tmp_path_factory.mktemp("clips")
    for index, num_frames in enumerate((70, 100)):
        media.write_clip(folder / f"clip{index}.mp4", num_frames=num_frames)
    (folder / "broken [1].mp4").write_bytes(b"this is text")
    return folder


@pytest.fixture(scope="module")
def finished(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of the clips. Not to be changed."""
    dataset = str(tmp_path_factory.mktemp("finished") / "dataset")
    assert invoke("manifest", "files", str(clips), dataset).exit_code == 0
    assert invoke("run", dataset, *FAST).exit_code == 1  # the broken one
    return dataset


@pytest.fixture
def dataset(finished: str, tmp_path: Path) -> str:
    """A copy of it, to damage."""
    return str(shutil.copytree(finished, tmp_path / "dataset"))


def index_of(dataset: str) -> Path:
    return next(Path(dataset).glob("shards/*/index.parquet"))


def test_json_is_one_object_that_agrees_with_the_dataset(
    finished: str, clips: Path, media: ModuleType
) -> None:
    found = invoke_json(finished)
    document = json.loads(next(Path(finished).glob("shards/*/dataset.json")).read_bytes())
    total = found["total"]
    for name, ours in (("videos", "num_videos"), ("gops", "num_gops"), ("windows", "num_windows")):
        assert total[ours] == document["counts"][name] > 0
    assert total["duration_s"] == pytest.approx(document["counts"]["seconds"], abs=1e-3)
    for part in ("iframe", "motion", "residual"):
        assert total["bytes"][part] == document["bytes"][part]
    assert (total["num_listed"], total["num_failed"]) == (3, 1)
    (failure,) = found["failures"]
    assert (failure["stage"], failure["error_class"]) == ("reencode", "NotAVideoError")
    assert failure["example_video_id"] == "broken [1].mp4"
    assert total["size_against"]["reencoded"]["other_bytes"] == sum(
        path.stat().st_size for path in Path(finished).glob("reencode/*/*.mp4")
    )
    good = [clips / "clip0.mp4", clips / "clip1.mp4"]
    assert total["size_against"]["source"]["other_bytes"] == sum(path.stat().st_size for path in good)
    probed = media.ffprobe(good[0])
    sources = {(share["what"], share["value"]): share["num_videos"] for share in found["sources"]}
    assert sources["codec", probed.codec] == 2
    assert sources["resolution", f"{probed.width_px}x{probed.height_px}"] == 2
    assert sources["frame_rate", "30"] == 2
    assert {row["video_id"] for row in found["outliers"]["bytes_per_s"]} == {"clip0.mp4", "clip1.mp4"}


def test_tables_show_the_figures_and_fit(finished: str) -> None:
    result = invoke("stats", finished)
    assert result.exit_code == 0
    assert result.stderr == ""
    for text in (
        "2 of 3 videos",
        "NotAVideoError",
        "Motion, mean",
        "1 of 3",
        "dense RGB",
        "clip1.mp4",
        "Frames/s",
    ):
        assert text in result.stdout
    assert 80 < widest_table_line(result.stdout) <= WIDTH


def widest_table_line(text: str) -> int:
    return max(len(line) for line in text.splitlines() if line[:1] in set("┏┃┡│├└"))


def test_tables_of_a_large_dataset_fit_and_are_whole(finished: str) -> None:
    found = enlarged(dataset_stats(Layout(dataset=finished, specs=the_specs(finished, "shards"))))
    output = io.StringIO()
    print_stats(found, Console(file=output, width=140))
    text = output.getvalue()
    assert widest_table_line(text) == WIDTH
    assert "…" not in text
    for shown in ("178,510", "1,428,080", "3,967.0", "30_60_s_activitynetqa", "2 others", "[bold]"):
        assert shown in text
    assert found.tokens is not None
    assert f"{found.tokens.dense_rgb_tokens:,}" in text


def enlarged(found: DatasetStats) -> DatasetStats:
    """The size of LLaVA-Video-178K, with long names."""
    total = dataclasses.replace(
        found.total,
        num_listed=178_510,
        num_failed=99_999,
        num_videos=178_510,
        num_gops=1_428_080,
        num_windows=9_996_560,
        num_frames=428_424_000,
        duration_s=14_281_200.0,
        num_questions={"cap": 178_510, "oe": 1_001_412, "mc": 215_625},
        iframe_bytes=10**11,
        residual_bytes=10**12,
        sample_bytes=2 * 10**12,
        num_clipped_vector_windows=9_000_000,
    )
    names = ("30_60_s_activitynetqa", "0_30_s_perceptiontest", "[bold]")
    subsets = tuple(dataclasses.replace(total, subset=name) for name in names)
    long_id = "liwei_youtube_videos/videos/youtube_video_2024/" + "ytb_0123456789" * 6 + ".mp4"
    assert found.tokens is not None
    tokens = dataclasses.replace(
        found.tokens,
        dense_rgb_tokens=2_999_052_000,
        budgets=tuple(
            dataclasses.replace(budget, num_tokens=1_999_052_000) for budget in found.tokens.budgets
        ),
    )
    outlier = Outlier(video_id=long_id, subset=names[0], value=123456.0, duration_s=86400.0)
    sources = tuple(
        SourceShare(what="resolution", value=f"{width}x1080", num_videos=99_999, duration_s=1e7)
        for width in range(1000, 1007)
    )
    return dataclasses.replace(
        found,
        total=total,
        subsets=subsets,
        tokens=tokens,
        sources=sources,
        outliers=dict.fromkeys(found.outliers, (outlier,) * 20),
        distributions=tuple(
            dataclasses.replace(one, maximum=max(one.maximum, 65_025.0))
            if one.name == "residual_energy"
            else one
            for one in found.distributions
        ),
    )


def test_csv_files_hold_what_the_object_holds(finished: str, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "tables"
    found = invoke_json(finished, "--csv", str(folder))
    assert {path.name for path in folder.iterdir()} == CSV_FILES
    tables = {}
    for path in folder.iterdir():
        with path.open(newline="") as file:
            tables[path.stem] = list(csv.DictReader(file))
    (group,) = [row for row in tables["groups"] if row["scope"] == "all"]
    assert int(group["num_windows"]) == found["total"]["num_windows"]
    assert float(group["size_against_rgb_1fps_ratio"]) == found["total"]["size_against"]["rgb_1fps"]["ratio"]
    assert len(tables["groups"]) == 1 + len(found["subsets"])
    assert len(tables["distributions"]) == len(found["distributions"]) > 0
    for one in found["distributions"]:
        scope = "all" if one["subset"] is None else "subset"
        counts = [
            int(row["count"])
            for row in tables["histograms"]
            if (row["name"], row["scope"]) == (one["name"], scope) and row["subset"] == (one["subset"] or "")
        ]
        assert counts == one["histogram"]["counts"]
    assert [int(row["num_tokens"]) for row in tables["tokens"]] == [
        budget["num_tokens"] for budget in found["tokens"]["budgets"]
    ]
    assert tables["failures"][0]["example_video_id"] == "broken [1].mp4"
    assert tables["questions"] == []


def test_in_the_middle_of_a_run_the_ledgers_are_shown(clips: Path, tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    invoke("manifest", "files", str(clips), dataset)
    empty = invoke("stats", dataset)
    assert empty.exit_code == 0
    assert "3 videos, none in shards yet" in empty.stdout
    invoke("reencode", dataset, *FAST)
    result = invoke("stats", dataset)
    assert result.exit_code == 0
    for text in ("There is no index yet", "NotAVideoError", "h264", "reencode"):
        assert text in result.stdout
    found = invoke_json(dataset, "--csv", str(tmp_path / "tables"))
    assert (found["has_index"], found["tokens"], found["distributions"]) == (False, None, [])
    assert found["stages"][0]["num_ok"] == 2
    assert {path.name for path in (tmp_path / "tables").iterdir()} == CSV_FILES


def test_several_outputs_need_a_choice(dataset: str) -> None:
    assert invoke("run", dataset, *FAST, "--shard-bytes", "30KiB").exit_code == 1
    result = invoke("stats", dataset)
    assert result.exit_code == 2
    assert "Choose one with --spec HASH" in result.stderr
    for path in Path(dataset).glob("shards/*"):
        assert invoke_json(dataset, "--spec", path.name)["spec_hashes"]["shards"] == path.name
    assert invoke("stats", dataset, "--spec", "nothing").exit_code == 2


def test_newer_index_is_refused(dataset: str) -> None:
    index = index_of(dataset)
    table = storage.read_table(str(index), INDEX)
    newer = {"cope_prep.schema_version": str(SCHEMA_VERSION + 1)}
    storage.publish_table(str(index), table.replace_schema_metadata(newer))
    document = invoke_json(dataset, exit_code=2)
    assert document["error"]["class"] == "SchemaVersionError"
    assert "Update cope-prep" in document["error"]["message"]


def test_damaged_index_is_made_again_as_the_message_says(dataset: str) -> None:
    index = index_of(dataset)
    before = index.read_bytes()
    index.write_bytes(before[:-20])
    document = invoke_json(dataset, exit_code=2)
    assert str(index) in document["error"]["message"]
    assert "Delete it, and run cope-prep shard" in document["error"]["message"]
    index.unlink()
    invoke("shard", dataset, "--no-ray", "--quiet")
    assert invoke_json(dataset)["total"]["num_videos"] == 2
    assert index.read_bytes() == before


def test_what_is_missing_is_said_and_the_rest_is_shown(dataset: str) -> None:
    Path(dataset, "questions.parquet").unlink()
    shutil.rmtree(Path(dataset, "extract"))
    result = invoke("stats", dataset)
    assert result.exit_code == 0
    for text in ("questions.parquet is missing", "no ledger of extract", "Motion, mean"):
        assert text in result.stdout


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["/no/such/dataset"], 2),
        (["nosuchprotocol://x/y"], 2),
        (["http://127.0.0.1:1/dataset"], 1),
        (["DATASET", "--csv", "FILE"], 2),
        (["DATASET", "--csv", "FILE/below"], 2),
        (["DATASET", "--csv", ""], 2),
        (["DATASET", "--csv", "nosuchprotocol://x/y"], 2),
        (["DATASET", "--csv", "/sys/kernel"], 2 if os.geteuid() else 1),  # where even root may not write
        (["DATASET", "--no-such-flag"], 2),
    ],
)
def test_wrong_usage_is_one_message(
    arguments: list[str], exit_code: int, finished: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    names = {"DATASET": finished, "FILE": str(tmp_path / "file")}
    result = invoke(
        "stats", *(re.sub("^FILE|^DATASET", lambda name: names[name[0]], argument) for argument in arguments)
    )
    assert result.exit_code == exit_code
    assert result.stderr.strip()
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_help_has_an_example() -> None:
    assert "cope-prep stats ./dataset" in invoke("stats", "--help").stdout
    assert "stats" in invoke("--help").stdout
