"""Time to first token, latency of 64 tokens and peak memory of a 64 s video at 1 FPS, at every key-frame density.

    python benchmarks/ttft.py [--size 7b|1b|small] [--device auto|cpu|cuda] [--rounds N] [--json PATH]

One question about a real clip, looped to 64 s and gone through the pipeline, is answered greedily by a model of
random weights (model_sizes.py). With 8 key frames a GOP all 64 anchors are pictures, the baseline; with 1, 2 and 4
they are 8, 16 and 32, and the others are Δ-tokens. Model, prompt (LLaVA-Video's, with the times of all 64 anchors)
and shards are the same. In each round all densities run in turn; a figure is the median over the rounds, with the
least and the most; a ratio is that of the ratios within the rounds.

    load      shards on the local disk, out of the page cache -> batch on the device, dequantized, RGB; the prompt
    encode    vision tower, projector, Δ-encoder
    prefill   the language model over all tokens, up to the first new one: TTFT ends here
    decode    the other 63

The baseline's pictures are rebuilt from motion and residual like those of the others: it loads no more than this
loader has to. Times are by the wall clock on a GPU, in bf16; on a CPU, which is shared, they are CPU time of one
thread, in fp32. Peak memory is the GPU's; on a CPU that of a process that answers once, less what it had when the
model was made. CoPE-VideoLM (arXiv 2602.13191) has TTFT -86 % and end to end -56 % for 1 key frame against 8, on
an RTX 4090. Of a CPU's figures TTFT carries over; on a GPU decoding, bound by memory, is a larger part.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flops import Flops, count_flops
from model_sizes import (
    FOLDER,
    QUESTION,
    SIZES,
    clip_named,
    load,
    make_dataset,
    measured_on,
    spread,
    write_models,
)

from cope_prep.encoders.build import ModelConfig, build_tokenizer, build_video_lm
from cope_prep.encoders.chat import encode_question, video_prompt
from cope_prep.encoders.sequences import build_sequences
from cope_prep.encoders.token_stream import TokenLayout, gop_tokens
from cope_prep.pipeline.loader import QADataset, to_device

NUM_ANCHORS = 8
"""Of a GOP."""
BASELINE = NUM_ANCHORS
DENSITIES = (8, 4, 2, 1)
STAGES = ("load", "encode", "prefill", "decode")
PAPER = {"ttft": -0.86, "end_to_end": -0.56}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One measurement."""

    seconds: dict[str, float]
    """By stage, and `ttft` and `end_to_end`; those that count on this device."""
    wall: dict[str, float]
    peak_bytes: int | None
    """Of GPU memory."""
    tokens: tuple[int, ...]
    num_prompt_tokens: int
    num_visual_tokens: int


class Contestant:
    """A model that answers the question at any density."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        folder = arguments.folder / f"models-{arguments.size}"
        size = SIZES[arguments.size]
        self.device = torch.device(arguments.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.num_new_tokens = arguments.new_tokens
        config = ModelConfig.model_validate(write_models(folder, size))
        dataset = make_dataset(
            arguments.folder,
            side_px=size.side_px,
            duration_s=arguments.seconds,
            clips=[clip_named("bikes")],
            num_questions=1,
        )
        self.tokenizer = build_tokenizer(config)
        torch.manual_seed(0)
        # In its place and type from the start: in float32 the 7B would be more than a consumer's GPU holds.
        torch.set_default_dtype(self.dtype)
        with self.device:
            self.model = build_video_lm(config).eval().requires_grad_(False)
        torch.set_default_dtype(torch.float32)
        self.shards = sorted(dataset.rglob("shard-*.tar"))
        assert self.shards
        self.datasets = {
            # Records that stay in memory would not be loaded again.
            density: QADataset(
                str(dataset),
                key_frames=density,
                tokens=self.model.layout.counts(),
                shuffle=None,
                keep_bytes=0,
            )
            for density in DENSITIES
        }

    def answer(self, density: int) -> Answer:
        """Answer once, and say how long each stage took."""
        for shard in self.shards:
            _evict(shard)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        marks = [self._now()]
        batch = next(iter(self.datasets[density]))
        times_s = batch.run_s[0][batch.run_kind[0] != 0].tolist()
        prompt = video_prompt(float(batch.duration_s[0]), times_s)
        chat = encode_question(QUESTION, self.tokenizer, prompt=prompt)
        sequences = build_sequences(batch, [chat], self.model.layout).to(self.device)
        gops = to_device(batch, self.device, dtype=self.dtype)
        marks.append(self._now())

        def mark(*_: Any) -> None:
            if len(marks) < 4:  # before and after the prefill; later calls are of decoding
                marks.append(self._now())

        language_model = self.model.language_model
        hooks = [language_model.register_forward_pre_hook(mark), language_model.register_forward_hook(mark)]
        try:
            tokens = self.model.generate(
                gops, sequences, max_new_tokens=self.num_new_tokens, min_new_tokens=self.num_new_tokens
            )
        finally:
            for hook in hooks:
                hook.remove()
        marks.append(self._now())
        wall, cpu = (
            {stage: marks[index + 1][clock] - marks[index][clock] for index, stage in enumerate(STAGES)}
            for clock in (0, 1)
        )
        for seconds in (wall, cpu):
            seconds["ttft"] = sum(seconds[stage] for stage in STAGES[:3])
            seconds["end_to_end"] = sum(seconds[stage] for stage in STAGES)
        is_cuda = self.device.type == "cuda"
        return Answer(
            seconds=wall if is_cuda else cpu,
            wall=wall,
            peak_bytes=torch.cuda.max_memory_allocated(self.device) if is_cuda else None,
            tokens=tuple(tokens[0].tolist()),
            num_prompt_tokens=len(chat) - 1,
            num_visual_tokens=int((sequences.visual_index >= 0).sum()),
        )

    def _now(self) -> tuple[float, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter(), time.process_time()


def _evict(path: Path) -> None:
    """Out of the page cache, so that it is read from the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # pages that are not on the disk yet would stay
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _resident_bytes(field: str) -> int:
    """Of this process, now (VmRSS) or at most (VmHWM). getrusage's peak may be its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main(argv: list[str] | None = None) -> None:
    """Measure and print, or be the process whose memory is measured."""
    arguments = parse(argv)
    torch.set_num_threads(1)
    contestant = Contestant(arguments)
    if arguments.child:
        before = _resident_bytes("VmRSS")
        contestant.answer(arguments.child)
        print(_resident_bytes("VmHWM") - before)
        return
    head = measured_on(contestant.device)
    rounds = measure(contestant, arguments)
    memory = {density: rounds[density][0].peak_bytes for density in DENSITIES}
    if contestant.device.type == "cpu" and not arguments.no_memory:
        memory = {density: peak_of_child(density, arguments) for density in DENSITIES}
    names = tuple(dict.fromkeys((arguments.size, "7b")))
    num_gops = arguments.seconds // NUM_ANCHORS
    rows = {
        str(density): _row(rounds, density, memory[density], names, num_gops=num_gops)
        for density in DENSITIES
    }
    proportions = {name: relative(count_flops(SIZES[name])) for name in names}
    print(table(rows, proportions))
    if arguments.json:
        document = head | {
            **load("after"),
            "size": arguments.size,
            "shapes": {"tower": SIZES[arguments.size].tower, "language": SIZES[arguments.size].language},
            "clock": "wall" if contestant.device.type == "cuda" else "cpu, one thread",
            "video_s": arguments.seconds,
            "rounds": arguments.rounds,
            "new_tokens": arguments.new_tokens,
            "flops": proportions,
            "key_frames_a_gop": rows,
            "paper": {"1": PAPER},
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), help="default: 7b on a GPU, small on a CPU")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=64, help="of video; a multiple of 8")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument(
        "--no-memory", action="store_true", help="on a CPU: not the processes for peak memory"
    )
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.seconds < NUM_ANCHORS or arguments.seconds % NUM_ANCHORS:
        parser.error(f"--seconds {arguments.seconds}: must be a multiple of {NUM_ANCHORS}")
    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.size = arguments.size or ("7b" if arguments.device == "cuda" else "small")
    return arguments


def measure(contestant: Contestant, arguments: argparse.Namespace) -> dict[int, list[Answer]]:
    """All densities in turn, round after round; the first is for warming up."""
    rounds: dict[int, list[Answer]] = {density: [] for density in DENSITIES}
    for number in range(-1, arguments.rounds):
        for density in DENSITIES:
            answer = contestant.answer(density)
            if number >= 0:
                rounds[density].append(answer)
        if number >= 0:
            found = (f"{density}: {rounds[density][-1].seconds['ttft']:.3f}" for density in DENSITIES)
            print(f"   {number + 1}: TTFT, s, by key frames a GOP   {'   '.join(found)}", flush=True)
    return rounds


def peak_of_child(density: int, arguments: argparse.Namespace) -> int:
    """Of a process that answers once, beyond what it held with the model made."""
    command = [
        *(sys.executable, __file__, "--child", str(density), "--size", arguments.size, "--device", "cpu"),
        *("--seconds", str(arguments.seconds), "--new-tokens", str(arguments.new_tokens)),
        *("--folder", str(arguments.folder)),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def _row(
    rounds: dict[int, list[Answer]], density: int, peak: int | None, names: tuple[str, ...], *, num_gops: int
) -> dict[str, Any]:
    answers, baselines = rounds[density], rounds[BASELINE]
    last = answers[-1]
    row: dict[str, Any] = {
        "num_pictures": num_gops * density,
        "num_deltas": num_gops * (NUM_ANCHORS - density),
        "visual_tokens": last.num_visual_tokens,
        "prompt_tokens": last.num_prompt_tokens,
        "peak_gb": None if peak is None else round(peak / 1e9, 3),
    }
    for name in (*STAGES, "ttft", "end_to_end"):
        row[f"{name}_s"] = spread(answer.seconds[name] for answer in answers)
        row[f"{name}_wall_s"] = spread(answer.wall[name] for answer in answers)
    pairs = list(zip(answers, baselines, strict=True))
    for name in ("ttft", "end_to_end"):
        row[f"{name}_change"] = spread(a.seconds[name] / b.seconds[name] - 1 for a, b in pairs)
    row["ttft_without_load_change"] = spread(
        (a.seconds["encode"] + a.seconds["prefill"]) / (b.seconds["encode"] + b.seconds["prefill"]) - 1
        for a, b in pairs
    )
    for name in names:
        cost, of_baseline = (
            _prefill_flops(name, num_gops=num_gops, density=one, text=last.num_prompt_tokens)
            for one in (density, BASELINE)
        )
        row[f"flops_change_{name}"] = round(cost / of_baseline - 1, 4)
    return row


def _prefill_flops(name: str, *, num_gops: int, density: int, text: int) -> float:
    """Of the true layout, whatever the size's: 13,440 tokens for 64 pictures."""
    num_deltas = num_gops * (NUM_ANCHORS - density)
    return _costs(name, num_together=max(1, num_deltas)).of_prefill(
        num_pictures=num_gops * density,
        num_deltas=num_deltas,
        num_tokens=num_gops * gop_tokens(NUM_ANCHORS, density, TokenLayout()) + text,
    )


@functools.cache
def _costs(name: str, *, num_together: int) -> Flops:
    return count_flops(SIZES[name], num_together=num_together)


def relative(costs: Flops) -> dict[str, float]:
    """Of a part, in tokens of the language model: what a small model has to have in common with a large one."""
    return {
        "gflops_a_token": round(costs.token / 1e9, 4),
        "picture_over_token": round(costs.picture / costs.token, 2),
        "delta_over_token": round(costs.delta / costs.token, 2),
        "deltas_together": costs.num_together,
        "attention_over_token_at_13440": round(costs.attention * 13440 / 2 / costs.token, 3),
    }


def table(rows: dict[str, dict[str, Any]], proportions: dict[str, dict[str, float]]) -> str:
    """For people: medians, and of the changes the least and the most as well."""
    lines = [f"{name}: " + ", ".join(f"{key} {value:g}" for key, value in found.items())
             for name, found in proportions.items()]  # fmt: skip
    names = ("I + P", "tokens", "text", *STAGES, "TTFT s", "E2E s", "peak GB", "TTFT", "E2E")
    predicted = [f"FLOPs {name}" for name in proportions]
    lines.append("  ".join(f"{name:>9}" for name in (*names, *predicted, "paper TTFT", "E2E")))
    for density, row in rows.items():
        cells = [f"{row['num_pictures']} + {row['num_deltas']}", row["visual_tokens"], row["prompt_tokens"]]
        cells += [f"{row[f'{stage}_s']['median']:.3f}" for stage in (*STAGES, "ttft", "end_to_end")]
        cells.append("-" if row["peak_gb"] is None else f"{row['peak_gb']:.2f}")
        cells += [f"{row[f'{name}_change']['median']:+.1%}" for name in ("ttft", "end_to_end")]
        cells += [f"{row[f'flops_change_{name}']:+.1%}" for name in proportions]
        cells += [f"{PAPER[name]:+.0%}" if density == "1" else "" for name in ("ttft", "end_to_end")]
        lines.append("  ".join(f"{cell!s:>9}" for cell in cells))
        if density == str(BASELINE):
            continue
        for name, label in (("ttft_change", "TTFT"), ("end_to_end_change", "E2E")):
            lines.append(f"{label:>20}: {row[name]['least']:+.1%} to {row[name]['most']:+.1%} by round")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
