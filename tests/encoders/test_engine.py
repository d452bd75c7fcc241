"""The engine on one process: steps, batches, reports, evaluation, and what ends a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from cope_prep.pipeline.layout import Layout


@pytest.fixture
def toy(load_helper: Callable[[str], ModuleType]) -> ModuleType:
    return load_helper("toy_task")


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_loss_falls_and_beats_its_baseline(toy: ModuleType, small: Layout, tmp_path: Path):
    _, result = toy.run(small.dataset, tmp_path, max_steps=60, tensorboard=True)
    written = lines(tmp_path)
    assert [line["step"] for line in written] == list(range(1, 61))
    assert written[-1]["loss"] < written[0]["loss"] / 4
    assert written[-1]["loss"] < written[-1]["loss/zero"]
    assert result.metrics == {name: value for name, value in written[-1].items() if name != "step"}
    assert list((tmp_path / "tensorboard").iterdir())
