"""A run that was interrupted and goes on ends as one that was not: bit for bit, in all that a checkpoint holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cope_prep.encoders.checkpoint import find_checkpoints
from cope_prep.pipeline.layout import Layout

HERE = Path(__file__).parent
MAX_STEPS = 12
POSITION = 27
"""In the order of an epoch of 36: with a batch of 4, of step 7."""
TRAINING = {
    "max_steps": MAX_STEPS,
    "checkpoint_every": 3,
    "ema_decay": 0.9,
    "warmup_steps": 4,
    "eval_every": 5,
}
TOY = {"dropout": 0.2, "batch_norm": True}


@pytest.fixture
def toy(load_helper: Callable[[str], ModuleType]) -> Iterator[ModuleType]:
    """With one thread, as in the processes that are killed: how many there are changes the order of sums."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_helper("toy_task")
    torch.set_num_threads(num_threads)


def start(small: Layout, output: Path, toy: dict[str, Any], **training: Any) -> subprocess.Popen:
    arguments = {"dataset": small.dataset, "output": str(output), "toy": toy, **training}
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(HERE / "toy_task.py"), json.dumps(arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


def assert_same_end(whole: Path, interrupted: Path) -> None:
    """All files of the last checkpoints, and the lines of metrics but for what depends on the machine."""
    first, second = (find_checkpoints(run)[-1] for run in (whole, interrupted))
    assert first.name == second.name == f"step-{MAX_STEPS:08d}"
    names = sorted(path.name for path in first.glob("*.safetensors"))
    assert names == ["ema.safetensors", "model.safetensors", "optimizer.safetensors", "rng-00000.safetensors"]
    for name in names:
        expected, found = load_file(first / name), load_file(second / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name
    documents = [json.loads((path / "trainer.json").read_text()) for path in (first, second)]
    assert documents[0]["progress"] == documents[1]["progress"]
    assert figures(whole) == figures(interrupted)


def figures(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    machine = ("samples_per_s", "loader_share", "peak_memory_gb")
    return [{name: value for name, value in row.items() if name not in machine} for row in rows]


@pytest.mark.parametrize(
    "how",
    [{"num_workers": 0}, {"num_workers": 2}, {"num_workers": 2, "micro_batch_size": 2}],
    ids=["in-process", "workers", "accumulated"],
)
def test_resume_after_an_exception_is_exact(
    toy: ModuleType, small: Layout, tmp_path: Path, how: dict[str, Any]
):
    """12 steps of 4 are more than the epoch of 36: the end of an epoch is in between."""
    settings = TRAINING | how
    toy.run(small.dataset, tmp_path / "whole", toy=TOY, **settings)
    with pytest.raises(OSError, match="on fire"):
        toy.run(small.dataset, tmp_path / "cut", toy=TOY | {"raise_at": POSITION}, **settings)
    assert [path.name for path in find_checkpoints(tmp_path / "cut")] == ["step-00000003", "step-00000006"]
    torch.manual_seed(99)  # what the process did before is no matter
    toy.run(small.dataset, tmp_path / "cut", toy=TOY, **settings)
    assert figures(tmp_path / "cut")[-1]["epoch"] == 1
    assert_same_end(tmp_path / "whole", tmp_path / "cut")


def test_resume_after_sigkill_is_exact(toy: ModuleType, small: Layout, tmp_path: Path):
    toy.run(small.dataset, tmp_path / "whole", toy=TOY, num_workers=2, **TRAINING)
    code, _, err = finish(
        start(small, tmp_path / "cut", TOY | {"kill_at": POSITION}, num_workers=2, **TRAINING)
    )
    assert code == -signal.SIGKILL, err
    assert len(figures(tmp_path / "cut")) == 6
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # as if it had died in the middle of a line
    (tmp_path / "cut" / "checkpoints" / ".tmp-half").mkdir()
    code, _, err = finish(start(small, tmp_path / "cut", TOY, num_workers=2, **TRAINING))
    assert code == 0, err
    assert "going on from" in err
    assert_same_end(tmp_path / "whole", tmp_path / "cut")
    assert not list((tmp_path / "cut" / "checkpoints").glob(".tmp-*"))


def test_sigterm_ends_the_step_and_saves_it(toy: ModuleType, small: Layout, tmp_path: Path):
    toy.run(small.dataset, tmp_path / "whole", toy=TOY, **TRAINING)
    code, out, err = finish(
        start(small, tmp_path / "cut", TOY | {"term_at": POSITION}, num_workers=2, **TRAINING)
    )
    assert code == 0, err
    assert json.loads(out)["was_stopped"]
    assert "stopped after step 7, as asked" in err
    assert find_checkpoints(tmp_path / "cut")[-1].name == "step-00000007"
    _, result = toy.run(small.dataset, tmp_path / "cut", toy=TOY, **TRAINING)
    assert not result.was_stopped
    assert_same_end(tmp_path / "whole", tmp_path / "cut")
