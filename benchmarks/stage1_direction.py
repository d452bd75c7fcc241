"""Does stage 1 use the direction of motion? A trained run is asked again with vectors that point another way.

    python benchmarks/stage1_direction.py FOLDER      (FOLDER of benchmarks/motion_bench.py, finished)

Prints, for each run of stage 1 that has a motion branch, the held-out error a patch, of windows in which an object
moves and of those in which the camera does: copying the reference, with the primitives as they are, with all
vectors turned by 90 degrees and by 180, without vectors, without residual. An error that stays when the vectors
turn is that of a model that does not look which way they point.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parent / "motion"))

from experiments import VARIANTS, plan
from recipes import Sizes, pretrain_config

from cope_prep.encoders.checkpoint import load_model_weights
from cope_prep.encoders.pretrain import PretrainTask

PAN_PX = 1.5
"""Mean length over the grid: an object covers few blocks, a pan all of them."""


def main() -> None:
    """One JSON line a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batches", type=int, default=12, help="of 98 windows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = [run for run in plan(VARIANTS, seeds=3) if run.stage == "stage1" and run.variant.motion_tokens]
    for run in runs:
        trained = arguments.folder / "runs" / run.name
        if not (trained / "score.json").exists():
            continue
        config = pretrain_config(
            arguments.folder,
            arguments.folder / "datasets",
            run.variant,
            output=trained,
            base=arguments.folder / "runs" / "base",
            seed=run.seed,
            sizes=Sizes(),
        )
        task = PretrainTask(config)
        load_model_weights(task.model, str(trained))
        print(json.dumps({"run": run.name, **errors(task, arguments.batches)}), flush=True)


@torch.no_grad()
def errors(task: PretrainTask, num_batches: int) -> dict[str, dict[str, float]]:
    """Kind of window -> what was changed -> mean square error of a patch token."""
    task.model.eval()
    found: dict[str, dict[str, list[torch.Tensor]]] = {"object": {}, "camera": {}}
    for batch in itertools.islice(DataLoader(task.eval_dataset, batch_size=None), num_batches):
        inputs = task.prepare(batch, torch.device("cpu")).inputs
        given = inputs["delta"]
        motion, intra = given["motion_px_BPCHW"], given["intra_BPHW"]
        x, y = motion.split(1, dim=2)
        changed = {
            "given": {},
            "turned by 90": {"motion_px_BPCHW": torch.cat((-y, x), dim=2)},
            "turned by 180": {"motion_px_BPCHW": -motion},
            "no motion": {"motion_px_BPCHW": motion * 0, "intra_BPHW": torch.zeros_like(intra)},
            "no residual": {name: given[name] * 0 for name in ("residual_y_BPCHW", "residual_uv_BPCHW")},
        }
        reference, target = inputs["reference_FMD"], inputs["target_FMD"]
        error = {"copied": (reference - target).square().mean(dim=(1, 2))}
        for name, other in changed.items():
            tokens = task.model.delta_encoder(**{**given, **other}).flatten(1, 2)
            predicted = task.model.predict(reference, tokens)
            error[name] = (predicted - target).square().mean(dim=(1, 2))
        is_pan = motion[:, 0].norm(dim=1).mean(dim=(1, 2)) >= PAN_PX
        for kind, rows in (("camera", is_pan), ("object", ~is_pan)):
            for name, values in error.items():
                found[kind].setdefault(name, []).append(values[rows])
    return {
        kind: {name: round(torch.cat(parts).mean().item(), 4) for name, parts in of_kind.items()}
        for kind, of_kind in found.items()
    }


if __name__ == "__main__":
    main()
