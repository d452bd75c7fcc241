"""The proof on data that is real end to end: does a model learn from Δ-tokens what only motion tells?

    python benchmarks/motion_bench.py [FOLDER] [--quick] [--seeds N] [--processes N]      (make motion-bench)

Videos are generated and encoded as ordinary files, and go the whole way: manifest -> reencode -> extract ->
shard -> loader -> stage 1 -> stage 2 -> evaluation, with a tiny tower and language model that are trained
from nothing. motion/scenes.py says what happens in them, motion/questions.py what is asked, motion/recipes.py
how is trained.

Accuracies are exact matches on held-out videos; `motion` and `still` are means over types of questions,
`chance` is the mean of one over the number of answers. FOLDER keeps everything, and the same command goes on
where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "motion"))

from experiments import MAIN, VARIANTS, WITH_CURVE, WITH_STAGE1, Run, plan, run_all
from make_data import make_datasets, make_sources
from questions import ANSWERS, CONTROL_TYPES, MOTION_TYPES
from recipes import Sizes, Variant, write_models

SEED = 1
"""Of the videos. The Δ-encoder's code and the recipe were chosen on those of seed 0, train and test."""
QUICK = Sizes(base_steps=60, stage1_steps=60, stage2_steps=120, eval_every=120, num_eval_batches=4)


def main() -> None:
    """Make the data, train everything, print the table, write results.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="default: motion-bench, or motion-bench-quick")
    parser.add_argument("--quick", action="store_true", help="one seed, two rows, few steps: under 5 minutes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--result", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing is left running
    begin = time.perf_counter()
    folder: Path = arguments.folder or Path("motion-bench-quick" if arguments.quick else "motion-bench")
    num_train, num_test, seeds = (600, 100, 1) if arguments.quick else (3000, 300, arguments.seeds)
    variants, sizes = (WITH_CURVE, QUICK) if arguments.quick else (VARIANTS, Sizes())
    check_settings(folder, {"num_videos": [num_train, num_test], "video_seed": SEED, "sizes": asdict(sizes)})
    before = minutes_of(folder)
    try:
        result = measure(
            folder,
            variants,
            sizes,
            num_videos=(num_train, num_test),
            seeds=seeds,
            processes=arguments.processes,
        )
    finally:
        minutes = before + (time.perf_counter() - begin) / 60
        (folder / "minutes.json").write_text(json.dumps(minutes))
    result |= {"quick": arguments.quick, "minutes": minutes}
    for path in filter(None, (folder / "results.json", arguments.result)):
        path.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """A folder's runs are of one kind: those of the quick table would pass for the whole one's."""
    file = folder / "settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_text(json.dumps(settings, indent=1))
    if json.loads(file.read_text()) != settings:
        raise SystemExit(f"{folder}: has runs of other settings ({file}). Use another folder.")


def minutes_of(folder: Path) -> float:
    """What earlier calls have spent on a folder's runs."""
    file = folder / "minutes.json"
    return json.loads(file.read_text()) if file.exists() else 0.0


def measure(
    folder: Path,
    variants: tuple[Variant, ...],
    sizes: Sizes,
    *,
    num_videos: tuple[int, int],
    seeds: int,
    processes: int,
) -> dict[str, Any]:
    """All runs that are not there yet; the figures of all."""
    begin = time.perf_counter()
    num_train, num_test = num_videos
    make_sources(folder, num_train=num_train, num_test=num_test, seed=SEED, processes=processes)
    # A Ray takes longer to start than the quick table's few videos take.
    data = make_datasets(folder, block_px=16, workers=processes, use_ray=num_train > 1000)
    write_models(folder)
    say(f"data: {num_train} + {num_test} videos, {time.perf_counter() - begin:.0f} s")
    runs = plan(variants, seeds)
    scores = run_all(runs, folder, data.train.parent, sizes, processes=processes, say=say)
    return {
        "date": date.today().isoformat(),
        "hardware": f"{os.cpu_count()} x {platform.processor() or platform.machine()}",
        "seeds": seeds,
        "num_videos": list(num_videos),
        "chance": chance(),
        "rows": rows(variants, runs, scores),
        "stage1": stage1_rows(runs, scores),
        "curves": curves(runs, scores),
    }


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def chance() -> dict[str, float]:
    """What guessing gives: by type, and as means over the types of each group."""
    by_type = {name: 1 / len(answers) for name, answers in ANSWERS.items()}
    return {
        **by_type,
        "motion": mean(by_type[name] for name in MOTION_TYPES),
        "still": mean(by_type[name] for name in CONTROL_TYPES),
    }


def _of(variant: Variant, runs: list[Run], scores: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [scores[run.name] for run in runs if run.stage == "stage2" and run.variant == variant]


def spread(values: list[float]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and each."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None, "values": values}


def rows(
    variants: tuple[Variant, ...], runs: list[Run], scores: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """The table: each variant, and the first ones with Δ zeroed and swapped."""
    found = []
    for variant in variants:
        of_variant = _of(variant, runs, scores)
        for mode, suffix in (
            ("given", ""),
            ("zero", ", Δ zeroed at inference"),
            ("swap", ", Δ of another video"),
        ):
            if mode in of_variant[0]:
                found.append(
                    {
                        "name": variant.name + suffix,
                        "tokens": tokens(variant),
                        **{
                            name.removeprefix("accuracy/"): spread(
                                [score[mode][name] for score in of_variant]
                            )
                            for name in of_variant[0][mode]
                        },
                    }
                )
    return found


def tokens(variant: Variant) -> int:
    """Visual tokens of a GOP."""
    side = 4  # 8 x 8 patches, pooled by 2
    picture = side * (side + 1)
    delta = variant.motion_tokens + variant.residual_tokens if variant.has_delta else 0
    return variant.key_frames * picture + (8 - variant.key_frames) * delta


def stage1_rows(runs: list[Run], scores: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Held-out losses of stage 1, beside their baselines."""
    return [{"name": run.name, **scores[run.name]["given"]} for run in runs if run.stage == "stage1"]


def curves(runs: list[Run], scores: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """Held-out accuracies while stage 2 goes on, without stage 1 and with it: mean over seeds at each step."""
    found = {}
    for variant in WITH_CURVE:
        of_seed = [score["curve"] for score in _of(variant, runs, scores)]
        found[variant.name] = [
            {
                "step": rows[0]["step"],
                "motion": mean(row["accuracy/motion"] for row in rows),
                "still": mean(row["accuracy/still"] for row in rows),
            }
            for rows in zip(*of_seed, strict=True)
        ]
    return found


def table(result: dict[str, Any]) -> str:
    """Markdown."""

    def cell(values: dict[str, Any]) -> str:
        text = f"{100 * values['mean']:.1f}"
        return text if values["std"] is None else f"{text} ± {100 * values['std']:.1f}"

    guess = result["chance"]
    by_type = [
        row for row in result["rows"] if row["name"].startswith(MAIN.name) or row["name"] == WITH_STAGE1.name
    ]
    lines = [
        f"{result['seeds']} seeds, {result['num_videos'][0]} training and {result['num_videos'][1]} test videos,"
        f" {result['minutes']:.0f} min",
        "",
        "| | tokens a GOP | motion, % | still, % |",
        "|---|---|---|---|",
        *(
            f"| {row['name']} | {row['tokens']} | {cell(row['motion'])} | {cell(row['still'])} |"
            for row in result["rows"]
        ),
        f"| chance | | {100 * guess['motion']:.1f} | {100 * guess['still']:.1f} |",
        "",
        "| by type, % | chance | " + " | ".join(row["name"] for row in by_type) + " |",
        "|---" * (2 + len(by_type)) + "|",
    ]
    for group, names in (("motion", MOTION_TYPES), ("still", CONTROL_TYPES)):
        for name in names:
            cells = " | ".join(cell(row[f"{group}_{name}"]) for row in by_type)
            lines.append(f"| {name} | {100 * guess[name]:.1f} | {cells} |")
    lines += [
        "",
        "| stage 2 steps | " + " | ".join(result["curves"]) + " |",
        "|---" * (1 + len(result["curves"])) + "|",
    ]
    for points in zip(*result["curves"].values(), strict=True):
        shares = " | ".join(f"{100 * point['motion']:.0f}" for point in points)
        lines.append(f"| {points[0]['step']} | {shares} |")
    lines += [
        "",
        "| stage 1, held-out loss | with Δ | Δ zeroed | copying the reference |",
        "|---|---|---|---|",
    ]
    for row in result["stage1"]:
        lines.append(
            f"| {row['name']} | {row['loss']:.4f} | {row['zero_delta']:.4f} | {row['copy_reference']:.4f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        say("stopped; the same command goes on")
        sys.exit(130)
