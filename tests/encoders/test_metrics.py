"""metrics.jsonl has each step once, whatever happened; figures of steps."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from cope_prep.encoders.metrics import MetricsLog, Stopwatch, cut_after, last_metrics


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_log_goes_on_after_the_step_that_it_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for start, end in ((0, 5), (3, 6)):
        log = MetricsLog(tmp_path, step=start, max_steps=6, tensorboard=False)
        for step in range(start + 1, end + 1):
            log.write(step, {"loss": step / 2, "loss/copy": 1.0, "hidden/x": 2.0})
        log.close()
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert last_metrics(tmp_path) == {"loss": 3.0, "loss/copy": 1.0, "hidden/x": 2.0}
    shown = capsys.readouterr().err.splitlines()
    assert shown[-1] == "step 6/6  loss 3  loss/copy 1"


def test_figure_that_is_not_a_number_is_null(tmp_path: Path):
    log = MetricsLog(tmp_path, step=0, max_steps=1, tensorboard=False)
    log.write(1, {"eval/share": math.nan})
    log.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 1, "eval/share": None}


def test_half_a_line_and_later_steps_are_cut_off(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 4}\n{"step": 5}\n{"st')
    cut_after(path, 4)
    assert path.read_text() == '{"step": 1}\n{"step": 4}\n'


def test_tensorboard_holds_the_same_figures(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, end in ((0, 5), (3, 6)):
        log = MetricsLog(tmp_path, step=start, max_steps=6, tensorboard=True)
        for step in range(start + 1, end + 1):
            log.write(step, {"loss": step + start})
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (1, 1), (2, 2), (3, 3), (4, 7), (5, 8), (6, 9),
    ]  # fmt: skip


def test_stopwatch_counts_since_the_last_report():
    watch = Stopwatch()
    with watch.step():
        with watch.waiting():
            pass
        watch.count(8)
    figures = watch.report()
    assert figures["samples_per_s"] > 0
    assert 0 < figures["loader_share"] < 1
    assert watch.report() == {"samples_per_s": 0, "loader_share": 0}


def test_log_of_no_run_is_empty(tmp_path: Path):
    assert last_metrics(tmp_path) == {}
