"""Several ranks: the same gradient however a batch is split, one checkpoint for all, and nobody left waiting."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cope_prep.encoders.checkpoint import find_checkpoints
from cope_prep.encoders.replay import load_saved_batch
from cope_prep.pipeline.layout import Layout

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
from ranks import run_ranks

HERE = Path(__file__).parent
THREE_STEPS = {"max_steps": 3, "checkpoint_every": 3}


@pytest.fixture
def toy(load_helper: Callable[[str], ModuleType]) -> Iterator[ModuleType]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_helper("toy_task")
    torch.set_num_threads(num_threads)


def run_toy_ranks(
    small: Layout, output: Path, world_size: int = 2, **arguments: Any
) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each rank."""
    text = json.dumps({"dataset": small.dataset, "output": str(output), **arguments})
    program = str(HERE / "toy_task.py")
    return run_ranks(program, text, world_size=world_size, timeout_s=150)


def succeed(ended: list[tuple[int, str, str]]) -> None:
    for code, _, err in ended:
        assert code == 0, err


def assert_close(first: Path, second: Path, name: str = "model.safetensors") -> None:
    expected, found = (load_file(find_checkpoints(run)[-1] / name) for run in (first, second))
    assert expected.keys() == found.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-6, msg=key)


def last_line(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_gradient_does_not_depend_on_the_split(toy: ModuleType, small: Layout, tmp_path: Path, parallel: str):
    """One process at once; in four micro-batches; two ranks; two ranks of two micro-batches, recomputed."""
    hurt = {"empty_at": (1, 2, 4, 5, 6)}  # weights that differ: a mean of means would be another gradient
    toy.run(small.dataset, tmp_path / "one", toy=hurt, ema_decay=0.5, **THREE_STEPS)
    toy.run(small.dataset, tmp_path / "four", toy=hurt, micro_batch_size=1, ema_decay=0.5, **THREE_STEPS)
    common = {"toy": hurt, "parallel": parallel, "ema_decay": 0.5, **THREE_STEPS}
    succeed(run_toy_ranks(small, tmp_path / "ranks", micro_batch_size=2, **common))
    succeed(
        run_toy_ranks(small, tmp_path / "both", micro_batch_size=1, activation_checkpointing=True, **common)
    )
    start = toy.ToyTask(small.dataset, 1, toy.ToyConfig()).model.state_dict()
    end = load_file(find_checkpoints(tmp_path / "one")[-1] / "model.safetensors")
    assert not torch.equal(start["stem.weight"], end["stem.weight"])
    assert torch.equal(start["frozen.weight"], end["frozen.weight"])
    for other in ("four", "ranks", "both"):
        for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
            assert_close(tmp_path / "one", tmp_path / other, name)
        for name in ("loss", "loss/zero", "half", "grad_norm", "weight", "samples", "eval/error"):
            assert last_line(tmp_path / other)[name] == pytest.approx(
                last_line(tmp_path / "one")[name], rel=1e-4
            )


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_rank_without_deltas_in_some_batches_does_not_hang(
    toy: ModuleType, small: Layout, tmp_path: Path, parallel: str
):
    """Rank 1 uses the Δ-branch in the first micro-batch of a step only; its gradient still counts, in full."""
    settings = {"micro_batch_size": 1, "toy": {"no_delta_at": [3, 7, 11]}, **THREE_STEPS}
    succeed(run_toy_ranks(small, tmp_path / "ranks", parallel=parallel, **settings))
    toy.run(small.dataset, tmp_path / "one", **{**settings, "toy": {"no_delta_at": (3, 7, 11)}})
    toy.run(small.dataset, tmp_path / "all", **{**settings, "toy": {}})
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert_close(tmp_path / "one", tmp_path / "ranks", name)
    key = "exp_avg/delta_branch.weight"
    some, everything = (
        load_file(find_checkpoints(tmp_path / run)[-1] / "optimizer.safetensors") for run in ("one", "all")
    )
    assert not torch.allclose(some[key], everything[key], rtol=0.01)


@pytest.mark.parametrize(("first", "then"), [("ddp", "fsdp2"), ("fsdp2", "ddp"), ("fsdp2", "one")])
def test_checkpoints_fit_any_ranks(toy: ModuleType, small: Layout, tmp_path: Path, first: str, then: str):
    """Three steps in one way, three in another, are six steps."""
    common = {"ema_decay": 0.5, "max_steps": 6, "checkpoint_every": 3}
    toy.run(small.dataset, tmp_path / "whole", **common)
    stopping = {"raise_at": 12}  # all ranks meet one of the positions of step 4
    ranks = run_toy_ranks(small, tmp_path / "cut", toy=stopping, micro_batch_size=2, parallel=first, **common)
    assert any("on fire" in err for _, _, err in ranks)
    assert [path.name for path in find_checkpoints(tmp_path / "cut")] == ["step-00000003"]
    if then == "one":
        toy.run(small.dataset, tmp_path / "cut", **common)
    else:
        succeed(run_toy_ranks(small, tmp_path / "cut", micro_batch_size=2, parallel=then, **common))
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert_close(tmp_path / "whole", tmp_path / "cut", name)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_bf16_with_batch_norm_trains_on_two_ranks(small: Layout, tmp_path: Path, parallel: str):
    settings = {
        "precision": "bf16",
        "micro_batch_size": 2,
        "parallel": parallel,
        "activation_checkpointing": True,
    }
    toy = {"batch_norm": True, "dropout": 0.1}
    succeed(
        run_toy_ranks(small, tmp_path, toy=toy, max_steps=8, eval_every=4, checkpoint_every=4, **settings)
    )
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert written[-1]["loss"] < written[0]["loss"]
    saved = load_file(find_checkpoints(tmp_path)[-1] / "model.safetensors")
    assert {value.dtype for name, value in saved.items() if "num_batches" not in name} == {torch.float32}
    assert int(saved["norm.num_batches_tracked"]) == 8


def test_all_ranks_stop_when_the_loss_of_one_is_nan(small: Layout, tmp_path: Path):
    """Position 6 of the order is rank 1's in step 2."""
    ranks = run_toy_ranks(
        small, tmp_path, toy={"nan_at": [6]}, micro_batch_size=2, max_steps=4, checkpoint_every=1
    )
    for code, _, err in ranks:
        assert code != 0
        assert "NonFiniteLossError: step 2: the loss is nan on rank 1" in err
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000001"]
    batches = [load_saved_batch(tmp_path / "nonfinite-step-2", rank=rank) for rank in range(2)]
    assert [batch.info.positions for (batch,) in batches] == [(4, 5), (6, 7)]
    (bad,) = batches[1]
    assert all(key in ranks[0][2] for key in bad.info.keys)


def test_a_failed_run_lets_go_of_gloo(small: Layout, tmp_path: Path):
    """Whoever keeps the error keeps no process group: its threads could hang the process at its end."""
    program = tmp_path / "program.py"
    program.write_text(
        "import json, sys\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(HERE)!r})\n"
        "from toy_task import run\n"
        "from cope_prep.schemas.errors import NonFiniteLossError\n"
        "def threads():\n"
        "    names = [path.read_text() for path in Path('/proc/self/task').glob('*/comm')]\n"
        "    return [name for name in names if 'gloo' in name]\n"
        "during = []\n"
        "try:\n"
        "    run(**json.loads(sys.argv[1]), on_report=lambda *_: during.extend(threads()))\n"
        "except NonFiniteLossError as exc:\n"
        "    error = exc\n"
        "print(json.dumps([bool(during), threads(), str(error)]))\n"
    )
    output = tmp_path / "run"
    arguments = {
        "dataset": small.dataset, "output": str(output), "toy": {"nan_at": [6]}, "micro_batch_size": 2,
        "max_steps": 4, "checkpoint_every": 1,
    }  # fmt: skip
    ended = run_ranks(str(program), json.dumps(arguments), timeout_s=150)
    succeed(ended)
    for _, out, _ in ended:
        had_threads, left, error = json.loads(out)
        assert had_threads
        assert left == []
        assert "the loss is nan" in error


def test_a_signal_to_one_rank_stops_all_after_the_same_step(small: Layout, tmp_path: Path):
    ranks = run_toy_ranks(small, tmp_path, toy={"term_at": 6}, micro_batch_size=2, max_steps=6)
    succeed(ranks)
    assert [json.loads(out)["num_steps"] for _, out, _ in ranks] == [2, 2]
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000002"]
