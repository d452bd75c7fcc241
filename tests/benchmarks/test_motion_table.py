"""The motion benchmark's full table, from scores that are made up: its runs take an hour."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), str(BENCHMARKS / "motion"), *sys.path])
    import motion_bench

    return motion_bench


def _score(bench: Any, run: Any) -> dict[str, Any]:
    if run.stage == "stage1":
        return {"given": {"loss": 0.5, "zero_delta": 0.75, "copy_reference": 1.0}}
    value = 0.9 if run.seed == 0 else 0.8
    names = [f"motion_{name}" for name in bench.MOTION_TYPES] + [
        f"still_{name}" for name in bench.CONTROL_TYPES
    ]
    figures = {f"accuracy/{name}": value for name in ("motion", "still", *names)}
    steps = range(40, 321, 40) if run.variant in bench.WITH_CURVE else [320]
    modes = ("given", "zero", "swap") if run.variant in bench.WITH_CURVE else ("given",)
    return {**dict.fromkeys(modes, figures), "curve": [{"step": step, **figures} for step in steps]}


def test_every_row_is_in_the_table_with_its_spread(bench: Any) -> None:
    runs = bench.plan(bench.VARIANTS, 2)
    scores = {run.name: _score(bench, run) for run in runs if run.stage != "base"}
    result = {
        "seeds": 2, "num_videos": [3000, 300], "minutes": 55.0, "chance": bench.chance(),
        "rows": bench.rows(bench.VARIANTS, runs, scores),
        "stage1": bench.stage1_rows(runs, scores),
        "curves": bench.curves(runs, scores),
    }  # fmt: skip
    text = bench.table(result)
    for name, tokens in (
        ("Δ, N = 8, 1 key frame", 76), ("Δ, N = 8, 1 key frame, Δ zeroed at inference", 76),
        ("Δ, N = 8, 1 key frame, Δ of another video", 76), ("with stage 1", 76),
        ("with stage 1, Δ zeroed at inference", 76), ("with stage 1, Δ of another video", 76),
        ("N = 2", 34), ("N = 4", 48), ("N = 16", 132),
        ("2 key frames", 88), ("4 key frames", 112), ("8 key frames", 160),
        ("motion only", 76), ("residual only", 76), ("I-frames only, same tokens", 80),
    ):  # fmt: skip
        assert f"| {name} | {tokens} | 85.0 ± 7.1 | 85.0 ± 7.1 |" in text
    assert "| stage 2 steps | Δ, N = 8, 1 key frame | with stage 1 |" in text
    assert [line for line in text.splitlines() if line.startswith("| 320 |")] == ["| 320 | 85 | 85 |"]
    assert "| stage1-m4-r4-1 | 0.5000 | 0.7500 | 1.0000 |" in text


def test_every_run_comes_after_those_it_needs(bench: Any) -> None:
    runs = bench.plan(bench.VARIANTS, 3)
    done: set[str] = set()
    for run in runs:
        assert done.issuperset(run.needs)
        done.add(run.name)
    assert len(done) == len(runs) == 1 + 3 + 3 * len(bench.VARIANTS)


def test_a_folder_takes_runs_of_one_kind(bench: Any, tmp_path: Path) -> None:
    """The quick table's short runs would pass for the whole table's."""
    bench.check_settings(tmp_path, {"num_videos": [600, 100]})
    bench.check_settings(tmp_path, {"num_videos": [600, 100]})
    with pytest.raises(SystemExit, match="has runs of other settings"):
        bench.check_settings(tmp_path, {"num_videos": [3000, 300]})
