"""Does stage 1 use the direction of motion? A trained run is asked again with vectors that point another way.

    python benchmarks/stage1_direction.py FOLDER [--told]      (FOLDER of benchmarks/motion_bench.py, finished)

Prints, for each run of stage 1 that has a motion branch, the held-out error a patch, of windows in which an object
moves and of those in which the camera does: copying the reference, with the primitives as they are, with all
vectors turned by 90 degrees and by 180, without vectors, without residual. An error that stays when the vectors
turn is that of a model that does not look which way they point.

With --told it trains stage 1 once more, with one difference: each patch that goes into the two transformers is told
the vector of its own block, beside the Δ-tokens. Then nothing has to go through the Δ-tokens, and what is left to
be learned is to shift. (`zero_delta` in the metrics of that run is without what the patches are told, too.)
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parent / "motion"))

from experiments import VARIANTS, plan
from recipes import Sizes, pretrain_config

from cope_prep.encoders.checkpoint import load_model_weights
from cope_prep.encoders.delta_encoder import VECTOR_CODE_WIDTH, length_and_direction
from cope_prep.encoders.pretrain import PretrainConfig, PretrainTask
from cope_prep.encoders.program import run_training

PAN_PX = 1.5
"""Mean length over the grid: an object covers few blocks, a pan all of them."""


def main() -> None:
    """One JSON line a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batches", type=int, default=12, help="of 98 windows")
    parser.add_argument("--told", action="store_true", help="train with each patch told its vector")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = [run for run in plan(VARIANTS, seeds=1 if arguments.told else 3) if run.stage == "stage1"]
    for run in runs:
        name = run.name + ("-told" if arguments.told else "")
        trained = arguments.folder / "runs" / name
        config = pretrain_config(
            arguments.folder,
            arguments.folder / "datasets",
            run.variant,
            output=trained,
            base=arguments.folder / "runs" / "base",
            seed=run.seed,
            sizes=Sizes(),
        )
        if arguments.told:
            run_training(config, ToldTask)
        elif not (trained / "score.json").exists():
            continue
        task = (ToldTask if arguments.told else PretrainTask)(config)
        load_model_weights(task.model, str(trained))
        print(json.dumps({"run": name, **errors(task, arguments.batches)}), flush=True)


class ToldPatches(nn.Module):
    """The input of the reference transformer, plus a code of each patch's own vector."""

    def __init__(self, patch_in: nn.Module, width: int) -> None:
        super().__init__()
        self.patch_in = patch_in
        self.code_in = nn.Linear(VECTOR_CODE_WIDTH, width)
        self.code_FMC: torch.Tensor | None = None
        """Of the frames that come next, once."""

    def forward(self, reference_FMD: torch.Tensor) -> torch.Tensor:
        code_FMC, self.code_FMC = self.code_FMC, None
        patches_FMD = self.patch_in(reference_FMD)
        return patches_FMD if code_FMC is None else patches_FMD + self.code_in(code_FMC)


class ToldTask(PretrainTask):
    """Stage 1 in which every patch is told its own vector; blocks and patches are of one size here."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(config)
        model = self.model
        told = ToldPatches(model.patch_in, config.alignment.width)
        model.patch_in = told

        def tell(_: nn.Module, arguments: tuple[Any, ...], given: dict[str, torch.Tensor]) -> None:
            told.code_FMC = length_and_direction(given["motion_px_BPCHW"][:, 0]).flatten(2).transpose(1, 2)

        model.delta_encoder.register_forward_pre_hook(tell, with_kwargs=True)


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
