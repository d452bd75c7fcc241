"""How much of a training step is spent waiting for the loader, samples a second, and FLOPs utilization on a GPU.

    python benchmarks/training_step.py [--size 7b|1b|small] [--tasks finetune pretrain] [--steps N] [--json PATH]
    torchrun --nproc-per-node=8 benchmarks/training_step.py --size 7b --parallel fsdp2

Both tasks run in the real engine, on real clips looped to 16 s that went through the pipeline, with models of
random weights (model_sizes.py). Fine-tuning takes questions of whole videos at the paper's 4 key frames a GOP,
pre-training single windows. What a step took is read from the engine's metrics.jsonl: `loader_share`, the time in
`next(batches)` over the time of the step, and `samples_per_s`, each over `--log-every` steps; figures are medians
over the lines behind the warm-up, with the least and the most. Target: under 1 % in the loader.

`loader alone` is one process that does nothing else: its samples a second over those of the training say how many
times faster a model could be before one worker is too slow for it. (Pre-training computes its baselines in one step
of `--log-every`; that is in its time, and not in its FLOPs.)

FLOPs of a sample, forward and backward of what trains and forward of what is frozen, are counted once on the device
(torch.utils.flop_counter), without what activation checkpointing computes again; causal attention counts in full,
as is usual, and on a CPU, whose kernel the counter does not know, not at all. Utilization is against the GPU's
dense bf16 peak. On one GPU the 7b trains its Δ parts and projector only (`--train delta`): AdamW in float32 over
all of it takes 128 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from clips import real_clips
from model_sizes import FOLDER, SIZES, hardware, make_dataset, write_models
from torch.utils.flop_counter import FlopCounterMode
from transformers import SiglipVisionConfig, SiglipVisionModel

from cope_prep.encoders.distributed import connect
from cope_prep.encoders.finetune import FinetuneConfig, FinetuneTask
from cope_prep.encoders.pretrain import PretrainConfig, PretrainTask
from cope_prep.encoders.program import run_training
from cope_prep.encoders.task import Task
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
    results = {}
    with connect(arguments.device) as ranks:
        runs = ranks.on_first(lambda: prepare(arguments))
        try:
            for task_name in arguments.tasks:
                results[task_name] = bench(task_name, arguments, runs / task_name)
        finally:
            if ranks.is_first:
                shutil.rmtree(runs, ignore_errors=True)
        if not ranks.is_first:
            return
    for task_name, found in results.items():
        print(described(task_name, found))
    if arguments.json:
        document = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "machine": hardware(torch.device(arguments.device)),
            "size": arguments.size,
            "world_size": _world_size(),
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
    parser.add_argument("--steps", type=int, help="default: 60 on a GPU, 16 on a CPU")
    parser.add_argument("--warmup", type=int, help="steps left out; default: 20 on a GPU, 4 on a CPU")
    parser.add_argument("--log-every", type=int, default=2)
    parser.add_argument("--batch", type=int, help="samples of a rank's step; default: 8 on a GPU, 2 on a CPU")
    parser.add_argument("--workers", type=int, help="of the loader, a rank; default: 4 on a GPU, 1 on a CPU")
    parser.add_argument("--parallel", choices=["ddp", "fsdp2"], default="ddp")
    parser.add_argument("--train", choices=["all", "delta"], help="default: all, but delta for 7b on one GPU")
    parser.add_argument("--peak-tflops", type=float, help="of a GPU that is not in the table")
    parser.add_argument("--loader-seconds", type=float, default=5.0, help="that the loader alone is measured")
    parser.add_argument("--clips", type=int, default=4, help="of the four, to make videos of")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    is_cuda = arguments.device == "cuda"
    for name, on_gpu, on_cpu in (
        ("size", "7b", "small"),
        ("steps", 60, 16),
        ("warmup", 20, 4),
        ("batch", 8, 2),
        ("workers", 4, 1),
    ):
        if getattr(arguments, name) is None:
            setattr(arguments, name, on_gpu if is_cuda else on_cpu)
    if arguments.train is None:
        arguments.train = "delta" if arguments.size == "7b" and _world_size() == 1 else "all"
    if arguments.steps - arguments.warmup < arguments.log_every:
        parser.error(
            f"--steps {arguments.steps} leaves no line of metrics behind --warmup {arguments.warmup}"
        )
    return arguments


def bench(task_name: str, arguments: argparse.Namespace, run: Path) -> dict[str, Any]:
    """Train one task, and read what its steps took."""
    counted: dict[str, float] = {}

    def make_task(config: Any) -> Task:
        task = FinetuneTask(config) if task_name == "finetune" else PretrainTask(config)
        counted["loader_alone_per_s"] = loader_alone(loader_of(task), seconds=arguments.loader_seconds)
        counted["flops_per_sample"] = count_flops(task, loader_of(task), config)
        if arguments.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        return task

    config = config_of(task_name, arguments, run)
    result = run_training(config, make_task)
    assert result.num_steps == arguments.steps
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # A line is of the log_every steps up to its own.
    kept = [line for line in lines if line["step"] - arguments.log_every >= arguments.warmup]
    rates = [line["samples_per_s"] for line in kept]
    shares = [line["loader_share"] for line in kept]
    found: dict[str, Any] = {
        "steps": arguments.steps,
        "warmup_steps": arguments.warmup,
        "steps_a_line": arguments.log_every,
        "num_lines": len(kept),
        "batch_size": config.training.batch_size,
        "workers": arguments.workers,
        "trains": arguments.train if task_name == "finetune" else "all but the tower",
        "loader_share": spread(shares),
        "samples_per_s": spread(rates),
        "step_s": spread([config.training.batch_size / rate for rate in rates]),
        # On a CPU the peak is the process's, of all that it did before.
        "peak_memory_gb": round(kept[-1]["peak_memory_gb"], 3) if arguments.device == "cuda" else None,
        "loader_alone_samples_per_s": round(counted["loader_alone_per_s"], 2),
        "loader_alone_over_training": round(counted["loader_alone_per_s"] / statistics.median(rates), 2),
        "gflops_a_sample": round(counted["flops_per_sample"] / 1e9, 3),
    }
    if arguments.device == "cuda":
        peak = arguments.peak_tflops or peak_tflops(torch.cuda.get_device_name())
        done = counted["flops_per_sample"] * statistics.median(rates) / 1e12
        found |= {
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
            "log_every": arguments.log_every,
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
        "model": write_models(_models(arguments), size),
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


def count_flops(
    task: Task, dataset: GopDataset | QADataset, config: FinetuneConfig | PretrainConfig
) -> float:
    """Of one sample, in one step of the task on this device; the model is as it was before."""
    device = torch.device(config.training.device)
    task.model.to(device)
    groups = task.parameter_groups()
    is_bf16 = config.training.precision == "bf16"
    before = {name: buffer.clone() for name, buffer in task.model.named_buffers()}
    batch = next(iter(dataset))
    with FlopCounterMode(display=False) as counter:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16):
            with torch.no_grad():
                prepared = task.prepare(batch, device)
            loss = task.loss(task.model, prepared).loss_sum
        loss.float().backward()
    for group in groups:
        for parameter in group.parameters.values():
            parameter.grad = None
    for name, buffer in task.model.named_buffers():
        buffer.copy_(before[name])  # statistics of batch norms
    return counter.get_total_flops() / prepared.num_samples


def peak_tflops(gpu: str) -> float | None:
    """Of the table, or None."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in gpu), None)


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    found = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: round(value, 5) for name, value in found.items()}


def described(task_name: str, found: dict[str, Any]) -> str:
    """For people."""
    share, rate, step = found["loader_share"], found["samples_per_s"], found["step_s"]
    lines = [
        f"{task_name}: {found['num_lines']} x {found['steps_a_line']} steps of {found['batch_size']} samples",
        f"   waiting for the loader {share['median']:.3%} of a step ({share['least']:.3%} to {share['most']:.3%})"
        f"   target under {TARGET_SHARE:.0%}",
        f"   {rate['median']:.2f} samples/s ({rate['least']:.2f} to {rate['most']:.2f}),"
        f" {step['median']:.3f} s a step",
        f"   loader alone, one process: {found['loader_alone_samples_per_s']:.1f} samples/s,"
        f" {found['loader_alone_over_training']:.1f} x the training",
        f"   {found['gflops_a_sample']:.1f} GFLOPs a sample",
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
