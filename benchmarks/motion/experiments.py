"""The runs of the motion benchmark as a graph: what each one trains, what it waits for, and what it is scored
on.

Each run is a process of one thread, two at a time: models this small gain nothing from a second thread. A run
that is complete is not run again, one that was interrupted goes on from its last checkpoint, so the same
command goes on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import product
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, Literal

from recipes import Sizes, Variant, finetune_config, pretrain_config

Stage = Literal["base", "stage1", "stage2"]
_SCORE = "score.json"

MAIN = Variant(name="Δ, N = 8, 1 key frame")
WITH_STAGE1 = Variant(name="with stage 1", has_stage1=True)
VARIANTS = (
    MAIN,
    WITH_STAGE1,
    Variant(name="N = 2", motion_tokens=1, residual_tokens=1),
    Variant(name="N = 4", motion_tokens=2, residual_tokens=2),
    Variant(name="N = 16", motion_tokens=8, residual_tokens=8),
    Variant(name="2 key frames", key_frames=2),
    Variant(name="4 key frames", key_frames=4),
    Variant(name="8 key frames", key_frames=8, has_delta=False),
    Variant(name="motion only", motion_tokens=8, residual_tokens=0),
    Variant(name="residual only", motion_tokens=0, residual_tokens=8),
    Variant(name="I-frames only, same tokens", key_frames=4, has_delta=False),
)
"""Rows of the table. I-frames only: 4 pictures are 80 tokens, 1 picture and 7 Δ are 76. Stage 1 has a row of its
own: here it has not shortened stage 2 (docs/decisions/0013)."""
WITH_CURVE = (MAIN, WITH_STAGE1)
"""Rows that are evaluated while they train, to compare how soon they learn, and with Δ zeroed and swapped; the
quick table has no others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training, in a folder of its own."""

    stage: Stage
    variant: Variant
    seed: int
    needs: tuple[str, ...] = field(default=())
    """Names of the runs that it begins from: the base, then stage 1."""

    @property
    def name(self) -> str:
        if self.stage == "base":
            return "base"
        if self.stage == "stage1":
            return f"stage1-m{self.variant.motion_tokens}-r{self.variant.residual_tokens}-{self.seed}"
        text = "".join(c if c.isalnum() else "-" for c in self.variant.name.replace("Δ", "delta"))
        return f"stage2-{text}-{self.seed}"


def plan(variants: tuple[Variant, ...], seeds: int) -> list[Run]:
    """All runs, each behind those that it needs; what several variants share is there once.

    First the main variant and its like with stage 1, with all seeds, then the others seed by seed: of a table
    that is stopped early the first rows are whole.

    All begin from one base, as the paper's begin from LLaVA-Video. Stage 1 is done anew for each seed of the
    Δ-encoder.
    """
    base = Run(stage="base", variant=Variant(name="base", has_delta=False), seed=0)
    runs = {base.name: base}
    first = [variant for variant in variants if variant in WITH_CURVE]
    others = [variant for variant in variants if variant not in first]
    for seed, variant in [*product(range(seeds), first), *product(range(seeds), others)]:
        needs = [base.name]
        if variant.has_stage1:
            stage1 = Run(stage="stage1", variant=variant, seed=seed, needs=(base.name,))
            runs.setdefault(stage1.name, stage1)
            needs.append(stage1.name)
        run = Run(stage="stage2", variant=variant, seed=seed, needs=tuple(needs))
        runs[run.name] = run
    return list(runs.values())


def run_all(
    runs: list[Run], folder: Path, data: Path, sizes: Sizes, *, processes: int, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Train and score them; name -> score. The first one that fails ends it, with its error."""
    scores: dict[str, dict[str, Any]] = {}
    waiting = list(runs)
    # In sessions of their own: Ctrl-C reaches this process alone, which asks the others once, by SIGTERM, to stop.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=os.setsid) as pool:
        try:
            running: dict[Future[dict[str, Any]], Run] = {}
            while waiting or running:
                for run in _ready(waiting, scores):
                    if len(running) == processes:
                        break
                    waiting.remove(run)
                    running[pool.submit(train_and_score, run, folder, data, sizes)] = run
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    run = running.pop(future)
                    scores[run.name] = future.result()
                    say(f"[{len(scores)}/{len(runs)}] {run.name}: {_summary(scores[run.name])}")
        except BaseException:
            # Ctrl-C, SIGTERM, or a run that failed: no process may be left behind.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.terminate()
            raise
    return scores


def _ready(waiting: list[Run], scores: dict[str, dict[str, Any]]) -> Iterator[Run]:
    yield from [run for run in waiting if all(name in scores for name in run.needs)]


def _summary(score: dict[str, Any]) -> str:
    figures = score["given"]
    shown = ("accuracy/motion", "accuracy/still", "loss", "copy_reference", "zero_delta")
    text = ", ".join(f"{name.split('/')[-1]} {figures[name]:.3f}" for name in shown if name in figures)
    return f"{text}; {score['seconds']:.0f} s"


def train_and_score(run: Run, folder: Path, data: Path, sizes: Sizes) -> dict[str, Any]:
    """Train a run, and score it: held-out figures, with Δ as given and, in stage 2, zeroed and swapped."""
    import torch

    from cope_prep.encoders.finetune import FinetuneTask
    from cope_prep.encoders.pretrain import PretrainTask
    from cope_prep.encoders.program import run_training

    out = folder / "runs" / run.name
    if (out / _SCORE).exists():
        return json.loads((out / _SCORE).read_text())
    torch.set_num_threads(1)
    if run.variant not in WITH_CURVE:
        sizes = replace(sizes, eval_every=sizes.stage2_steps)
    begin = time.perf_counter()
    needs = [folder / "runs" / name for name in run.needs]
    tasks: list[Any] = []

    def keep(task: Any) -> Any:
        tasks.append(task)
        return task

    if run.stage == "stage1":
        config = pretrain_config(
            folder, data, run.variant, output=out, base=needs[0], seed=run.seed, sizes=sizes
        )
        result = run_training(config, lambda config: keep(PretrainTask(config)))
    else:
        config = finetune_config(
            folder, data, run.variant, output=out, seed=run.seed, sizes=sizes,
            base=needs[0] if needs else None, stage1=needs[1] if len(needs) > 1 else None,
        )  # fmt: skip
        result = run_training(config, lambda config: keep(FinetuneTask(config)))
    if result.was_stopped:
        raise KeyboardInterrupt
    score: dict[str, Any] = {"seconds": time.perf_counter() - begin, "curve": _curve(out)}
    task = tasks[0]
    device = torch.device("cpu")
    task.model.eval()
    with torch.no_grad():
        if run.stage == "stage1":
            score["given"] = task.evaluate(device)
        else:
            modes = ("given", "zero", "swap") if run.variant in WITH_CURVE else ("given",)
            for mode in modes:
                score[mode] = _grouped(task.accuracies(device, delta=mode, num_batches=10**9))
    part = out / f".{_SCORE}.{os.getpid()}"
    part.write_text(json.dumps(score, indent=1))
    part.replace(out / _SCORE)
    return score


def _grouped(accuracies: dict[str, float]) -> dict[str, float]:
    """With the means over the types of questions about motion, and of the controls."""
    figures = dict(accuracies)
    for group in ("motion", "still"):
        members = [value for name, value in accuracies.items() if name.startswith(f"accuracy/{group}_")]
        figures[f"accuracy/{group}"] = sum(members) / len(members)
    return figures


def _curve(out: Path) -> list[dict[str, float]]:
    """What was evaluated while training: step, and held-out accuracies or losses."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = []
    for line in lines:
        found = {
            name.removeprefix("eval/"): value for name, value in line.items() if name.startswith("eval/")
        }
        if found:
            rows.append({"step": line["step"], **(found if "loss" in found else _grouped(found))})
    return rows
