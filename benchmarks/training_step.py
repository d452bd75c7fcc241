"""How much of a training step is spent waiting for the loader, samples a second, and FLOPs utilization on a GPU.

    python benchmarks/training_step.py [--size 7b|1b|small] [--tasks finetune pretrain] [--rounds N] [--json PATH]
    torchrun --nproc-per-node=8 benchmarks/training_step.py --size 7b --parallel fsdp2

Both tasks run in the real engine, on real clips looped to 16 s that went through the pipeline, with models of
random weights (model_sizes.py). Fine-tuning takes questions of whole videos at the paper's 4 key frames a GOP,
pre-training single windows. The tasks run in alternation, `--rounds` times, each time from nothing. What a step
took is read from the engine's metrics.jsonl, here with a line a step: `loader_share`, the time in `next(batches)`
over the time of the step, and `samples_per_s`. Figures are medians over the steps of all rounds behind each one's
warm-up, with the least and the most. Target: under 1 % in the loader.

`loader alone` is one process that does nothing else: its samples a second over those of the training say how many
times faster a model could be before one worker is too slow for it. On a CPU, of whose long steps any wait is a
small share, that says more.

FLOPs of a sample, forward and backward of what trains and forward of what is frozen, are those of the first batch,
counted without computing it (flops.py). Utilization is against the GPU's dense bf16 peak. On one GPU the 7b trains
its Δ parts and projector only (`--train delta`): AdamW in float32 over all of it takes 129 GB. With all of it, the
run's last step is followed by a checkpoint of 97 GB in `--folder`, and each rank builds 32 GB on the host.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from clips import real_clips
from flops import StepShape, count_step, shape_of
from model_sizes import FOLDER, SIZES, load, make_dataset, measured_on, model_values, spread, write_models
from transformers import SiglipVisionConfig, SiglipVisionModel

from cope_prep.encoders.distributed import Ranks, connect
from cope_prep.encoders.finetune import FinetuneConfig, FinetuneTask
from cope_prep.encoders.pretrain import PretrainConfig, PretrainTask
from cope_prep.encoders.program import run_training
from cope_prep.encoders.task import Prepared, Task
from cope_prep.pipeline.loader import GopDataset, QADataset

PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "RTX 4090": 165.2,
}
"""Dense bf16 with float32 sums, by NVIDIA's data sheets; the first name that a GPU's name contains."""
TARGET_SHARE = 0.01
VIDEO_S = 16
KEY_FRAMES = 4
QUESTIONS_A_VIDEO = 8


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    arguments = parse(argv)
    if arguments.device == "cpu":
        torch.set_num_threads(1)  # the other core is the loader's
    with connect(arguments.device) as ranks:
        head = measured_on(torch.device(arguments.device))
        runs = ranks.on_first(lambda: prepare(arguments))
        rounds: dict[str, list[Run]] = {task_name: [] for task_name in arguments.tasks}
        try:
            for number in range(arguments.rounds):
                for task_name in arguments.tasks:
                    run = runs / f"{task_name}-{number}"
                    rounds[task_name].append(measure(task_name, arguments, run, ranks))
        finally:
            if ranks.is_first:
                shutil.rmtree(runs, ignore_errors=True)
        if not ranks.is_first:
            return
    results = {task_name: figures(task_name, found, arguments) for task_name, found in rounds.items()}
    for task_name, found in results.items():
        print(described(task_name, found))
    if arguments.json:
        document = head | {
            **load("after"),
            "size": arguments.size,
            "world_size": _world_size(),
            "parallel": arguments.parallel if _world_size() > 1 else None,
            "target_loader_share": TARGET_SHARE,
            "tasks": results,
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), help="default: 7b on a GPU, small on a CPU")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--tasks", nargs="+", choices=["finetune", "pretrain"], default=["finetune", "pretrain"]
    )
    parser.add_argument("--rounds", type=int, help="default: 1 on a GPU, 3 on a CPU")
    parser.add_argument("--steps", type=int, help="of a round; default: 60 on a GPU, 6 on a CPU")
    parser.add_argument("--warmup", type=int, help="of them left out; default: 20 on a GPU, 2 on a CPU")
    parser.add_argument("--batch", type=int, help="samples of a rank's step; default: 8 on a GPU, 2 on a CPU")
    parser.add_argument("--workers", type=int, help="of the loader, a rank; default: 4 on a GPU, 1 on a CPU")
    parser.add_argument("--parallel", choices=["ddp", "fsdp2"], default="ddp")
    parser.add_argument("--train", choices=["all", "delta"], help="default: all, but delta for 7b on one GPU")
    parser.add_argument("--peak-tflops", type=float, help="of a GPU that is not in the table")
    parser.add_argument("--loader-seconds", type=float, default=3.0, help="of the loader alone, a round")
    parser.add_argument("--clips", type=int, default=4, help="of the four, to make videos of")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    is_cuda = arguments.device == "cuda"
    for name, on_gpu, on_cpu in (
        ("size", "7b", "small"),
        ("rounds", 1, 3),
        ("steps", 60, 6),
        ("warmup", 20, 2),
        ("batch", 8, 2),
        ("workers", 4, 1),
    ):
        if getattr(arguments, name) is None:
            setattr(arguments, name, on_gpu if is_cuda else on_cpu)
    if arguments.train is None:
        arguments.train = "delta" if arguments.size == "7b" and _world_size() == 1 else "all"
    if arguments.steps <= arguments.warmup:
        parser.error(f"--steps {arguments.steps} leaves no step behind --warmup {arguments.warmup}")
    return arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a task."""

    loader_share: list[float]
    samples_per_s: list[float]
    """As `loader_share`, of each step behind the warm-up."""
    peak_memory_gb: float
    loader_alone_per_s: float
    flops_per_sample: float
    shape: StepShape
    """Of the first batch, which the FLOPs are of."""


class _StepsAlone(PretrainTask):
    # Each line of metrics would compute them, and each step has a line.
    def baselines(self, prepared: Prepared) -> dict[str, float]:
        return {}


def measure(task_name: str, arguments: argparse.Namespace, run: Path, ranks: Ranks) -> Run:
    """Train a task once, and read what its steps took."""
    about: dict[str, Any] = {}

    def make_task(config: Any) -> Task:
        task = FinetuneTask(config) if task_name == "finetune" else _StepsAlone(config)
        about["loader_alone_per_s"] = loader_alone(loader_of(task), seconds=arguments.loader_seconds)
        about["shape"] = shape = shape_of(task, next(iter(loader_of(task))))
        about["flops_per_sample"] = count_step(task, shape) / shape.num_samples
        if arguments.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        return task

    result = run_training(config_of(task_name, arguments, run), make_task)
    assert result.num_steps == arguments.steps
    lines = [json.loads(line) for line in ranks.on_first((run / "metrics.jsonl").read_text).splitlines()]
    ranks.on_first(lambda: shutil.rmtree(run))  # of a 7b, 97 GB
    kept = [line for line in lines if line["step"] > arguments.warmup]
    assert len(kept) == arguments.steps - arguments.warmup
    return Run(
        loader_share=[line["loader_share"] for line in kept],
        samples_per_s=[line["samples_per_s"] for line in kept],
        peak_memory_gb=kept[-1]["peak_memory_gb"],
        **about,
    )


def figures(task_name: str, rounds: list[Run], arguments: argparse.Namespace) -> dict[str, Any]:
    """Of all steps of all rounds together, and of each round its median."""
    batch_size = arguments.batch * _world_size()
    rates = [rate for run in rounds for rate in run.samples_per_s]
    alone_per_s = statistics.median(run.loader_alone_per_s for run in rounds)
    flops_per_sample = statistics.mean(run.flops_per_sample for run in rounds)
    found: dict[str, Any] = {
        "rounds": len(rounds),
        "steps": arguments.steps,
        "warmup_steps": arguments.warmup,
        "num_steps_measured": len(rates),
        "batch_size": batch_size,
        "workers": arguments.workers,
        "trains": arguments.train if task_name == "finetune" else "all but the tower",
        "loader_share": spread(share for run in rounds for share in run.loader_share),
        "loader_share_of_rounds": [round(statistics.median(run.loader_share), 6) for run in rounds],
        "samples_per_s": spread(rates),
        "step_s": spread(batch_size / rate for rate in rates),
        "peak_memory_gb": None,  # on a CPU the process's, of all that it did before
        "loader_alone_samples_per_s": spread(run.loader_alone_per_s for run in rounds),
        "loader_alone_over_training": round(alone_per_s / statistics.median(rates), 2),
        "gflops_a_sample": round(flops_per_sample / 1e9, 3),
        "deltas_together": rounds[0].shape.num_deltas,
    }
    if arguments.device == "cuda":
        peak = arguments.peak_tflops or peak_tflops(torch.cuda.get_device_name())
        done = flops_per_sample * statistics.median(rates) / 1e12
        found |= {
            "peak_memory_gb": round(max(run.peak_memory_gb for run in rounds), 3),
            "tflops_a_gpu": round(done / _world_size(), 2),
            "peak_tflops": peak,
            "model_flops_utilization": None if peak is None else round(done / _world_size() / peak, 4),
        }
    return found


def prepare(arguments: argparse.Namespace) -> Path:
    """Make models and data, unless they are there; a new folder for the runs."""
    models = write_models(_models(arguments), SIZES[arguments.size])
    stored = _models(arguments) / "siglip-stored"  # stage 1 takes no tower of random weights
    if "pretrain" in arguments.tasks and not (stored / "model.safetensors").exists():
        config = SiglipVisionConfig.from_pretrained(models["siglip"])
        SiglipVisionModel(config).save_pretrained(str(stored))
    _dataset(arguments)
    return Path(tempfile.mkdtemp(prefix="runs-", dir=arguments.folder))


def _models(arguments: argparse.Namespace) -> Path:
    return arguments.folder / f"models-{arguments.size}"


def _dataset(arguments: argparse.Namespace) -> Path:
    side_px = SIZES[arguments.size].side_px
    clips = real_clips()[: arguments.clips]
    return make_dataset(
        arguments.folder, side_px=side_px, duration_s=VIDEO_S, clips=clips, num_questions=QUESTIONS_A_VIDEO
    )


def config_of(task_name: str, arguments: argparse.Namespace, run: Path) -> Any:
    """As a TOML file would say it."""
    size = SIZES[arguments.size]
    values: dict[str, Any] = {
        "output_dir": str(run),
        "data": {"dataset": str(_dataset(arguments))},
        "training": {
            "max_steps": arguments.steps,
            "batch_size": arguments.batch * _world_size(),
            "micro_batch_size": arguments.batch,
            "lr": 1e-5,
            "precision": "bf16" if arguments.device == "cuda" else "fp32",
            "parallel": arguments.parallel,
            "activation_checkpointing": arguments.device == "cuda" and task_name == "finetune",
            "device": arguments.device,
            "num_workers": arguments.workers,
            "log_every": 1,
            "checkpoint_every": arguments.steps,
            "keep_checkpoints": 1,
            "tensorboard": False,
        },
    }
    if task_name == "pretrain":
        values |= {
            "tower": {"siglip": str(_models(arguments) / "siglip-stored")},
            "delta_encoder": size.delta,
            "alignment": size.alignment,
        }
        return PretrainConfig.model_validate(values)
    frozen = {"train": arguments.train == "all"}
    values |= {
        "model": model_values(_models(arguments), size),
        "key_frames": KEY_FRAMES,
        "groups": {"vision_tower": frozen | {"lr_scale": 0.2}, "language_model": frozen},
    }
    return FinetuneConfig.model_validate(values)


def loader_of(task: Task) -> GopDataset | QADataset:
    """Another dataset like the task's, which the run does not read."""
    if isinstance(task, FinetuneTask):
        config = task.config
        return config.data.questions(
            batch_size=config.training.micro_batch_size,
            key_frames=config.key_frames,
            tokens=task.layout.counts(),
            max_gops=config.max_gops,
        )
    assert isinstance(task, PretrainTask)
    config = task.config
    return config.data.windows(
        batch_size=config.training.micro_batch_size, windows_per_visit=config.windows_per_visit
    )


def loader_alone(dataset: GopDataset | QADataset, *, seconds: float) -> float:
    """Samples a second of one process, for so long, after its first batch; at least one batch."""
    num_samples, begun = 0, None
    while True:
        for batch in dataset:
            now = time.perf_counter()
            if begun is None:
                begun = now
                continue
            num_samples += len(batch)
            if now - begun >= seconds:
                return num_samples / (now - begun)
        dataset.set_epoch(dataset.epoch + 1)


def peak_tflops(gpu: str) -> float | None:
    """Of the table, or None."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in gpu), None)


def described(task_name: str, found: dict[str, Any]) -> str:
    """For people."""
    share, rate, step = found["loader_share"], found["samples_per_s"], found["step_s"]
    lines = [
        f"{task_name}: {found['num_steps_measured']} steps of {found['batch_size']} samples,"
        f" in {found['rounds']} rounds",
        f"   waiting for the loader {share['median']:.3%} of a step, at worst {share['most']:.3%}"
        f"   target under {TARGET_SHARE:.0%}",
        f"   {rate['median']:.2f} samples/s ({rate['least']:.2f} to {rate['most']:.2f}),"
        f" {step['median']:.3f} s a step",
        f"   loader alone, one process: {found['loader_alone_samples_per_s']['median']:.1f} samples/s,"
        f" {found['loader_alone_over_training']:.1f} x the training",
        f"   {found['gflops_a_sample']:.1f} GFLOPs a sample, with {found['deltas_together']} P-frames together",
    ]
    if "tflops_a_gpu" in found:
        used = found["model_flops_utilization"]
        lines.append(
            f"   peak memory {found['peak_memory_gb']:.2f} GB, {found['tflops_a_gpu']:.1f} TFLOP/s a GPU, "
            + (
                "peak unknown: give --peak-tflops"
                if used is None
                else f"{used:.1%} of {found['peak_tflops']:.0f}"
            )
        )
    return "\n".join(lines)


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


if __name__ == "__main__":
    main()
