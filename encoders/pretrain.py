"""Stage 1, as a task of the engine and as a program: `torchrun -m cope_prep.encoders.pretrain CONFIG.toml`.

A sample is one window: the anchor that it starts from, motion and residual, the anchor that it leads to. The
loss is the mean over the target's patches; beside it stand, on the same batch, copying the reference's tokens
and the same model with Δ-tokens of zero (alignment.py).
"""

from __future__ import annotations

import itertools
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import DataLoader

from cope_prep.encoders.alignment import AlignmentConfig, AlignmentModel, patch_error
from cope_prep.encoders.build import TowerConfig, build_tower
from cope_prep.encoders.data import DataConfig, check_held_out
from cope_prep.encoders.delta_encoder import DeltaEncoderConfig
from cope_prep.encoders.engine import TrainingConfig
from cope_prep.encoders.evaluate import EvalBatches, limit_of, mean_over_ranks
from cope_prep.encoders.frame_sizes import mean_motion_px, picture_squares
from cope_prep.encoders.program import run_program
from cope_prep.encoders.settings import Settings
from cope_prep.encoders.task import ParameterGroup, Prepared, Task
from cope_prep.encoders.vision_tower import VisionTower
from cope_prep.pipeline.loader import to_device
from cope_prep.pipeline.loader.batch import GopBatch, QABatch
from cope_prep.schemas.errors import ConfigurationError


class PretrainConfig(Settings):
    """A run of stage 1."""

    task: Literal["pretrain"] = "pretrain"
    output_dir: str
    tower: TowerConfig
    """Frozen; gives the targets."""
    delta_encoder: DeltaEncoderConfig = DeltaEncoderConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    data: DataConfig
    windows_per_visit: int = 1
    """See docs/loader.md: more reads less, and mixes less."""
    min_motion_px: float = 0.0
    """Leave out windows whose vectors are shorter on average: where nothing moves there is only copying to learn.
    They are read, and not computed; a batch is then as much smaller."""
    eval_data: DataConfig | None = None
    """Held-out shards."""
    eval_batches: EvalBatches = 50
    training: TrainingConfig


class PretrainTask(Task):
    """Δ-encoder, reference and warp transformer against a frozen tower's tokens."""

    name = "pretrain"

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.tower: VisionTower = build_tower(config.tower).requires_grad_(False).eval()
        delta_config = config.delta_encoder
        # Narrower than Task's, and no one else sets it.
        self.model: AlignmentModel = AlignmentModel(  # pyright: ignore[reportIncompatibleVariableOverride]
            config.alignment, delta_config, patches_per_side=self.tower.patches_per_side
        )
        _check_width(config, self.tower)
        batch_size = config.training.micro_batch_size
        self.dataset = config.data.windows(batch_size=batch_size, windows_per_visit=config.windows_per_visit)
        self.eval_dataset = None
        if config.eval_data is not None:
            self.eval_dataset = config.eval_data.windows(
                batch_size=batch_size, windows_per_visit=1, held_out=True
            )
            check_held_out(config.data, self.dataset, config.eval_data, self.eval_dataset)

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(name="all", parameters=dict(self.model.named_parameters()))]

    def blocks(self) -> list[nn.Module]:
        return [*self.model.reference, *self.model.warp]

    def prepare(self, batch: GopBatch | QABatch, device: torch.device) -> Prepared:
        assert isinstance(batch, GopBatch)
        self.tower.to(device)
        gops = to_device(batch, device)
        is_used = gops.batch.picture_mask.all(dim=1) & gops.batch.delta_mask[:, 0]
        if self.config.min_motion_px > 0:
            is_used &= mean_motion_px(gops)[:, 0] >= self.config.min_motion_px
        (rows,) = is_used.nonzero(as_tuple=True)
        squares = picture_squares(gops, is_used[:, None].expand(-1, 2), side_px=self.tower.side_px)
        tokens = self.tower(squares).unflatten(0, (len(rows), 2))  # [F, 2, M, D]
        inputs: dict[str, Any] = {
            "delta": {
                "motion_px_BPCHW": gops.motion_px[rows],
                "intra_BPHW": gops.intra[rows],
                "residual_y_BPCHW": gops.residual_y[rows],
                "residual_uv_BPCHW": gops.residual_uv[rows],
                "delta_mask_BP": gops.batch.delta_mask[rows],
                "size_px_B2": gops.batch.size_px[rows],
            },
            "reference_FMD": tokens[:, 0],
            "target_FMD": tokens[:, 1],
        }
        return Prepared(inputs=inputs, weight=float(len(rows) * tokens.shape[2]), num_samples=len(rows))

    def baselines(self, prepared: Prepared) -> dict[str, float]:
        inputs = prepared.inputs
        copied = patch_error(inputs["reference_FMD"], inputs["target_FMD"])
        # Through forward: what FSDP2 has sharded is whole there only.
        without = self.model(**inputs, has_delta=False).loss_sum
        return {"copy_reference": float(copied), "zero_delta": float(without)}

    def evaluate(self, device: torch.device) -> dict[str, float]:
        if self.eval_dataset is None:
            return {}
        sums: dict[str, float] = {}
        weight = 0.0
        loader = DataLoader(self.eval_dataset, batch_size=None)
        for batch in itertools.islice(loader, limit_of(self.config.eval_batches)):
            prepared = self.prepare(batch, device)
            found = {
                "loss": float(self.loss(self.model, prepared).loss_sum),
                **self.baselines(prepared),
            }
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + value
            weight += prepared.weight
        return mean_over_ranks(sums, weight)


def _check_width(config: PretrainConfig, tower: VisionTower) -> None:
    if config.delta_encoder.output_width != tower.width:
        raise ConfigurationError(
            "delta_encoder.output_width",
            f"is {config.delta_encoder.output_width}, but the vision tower's tokens have {tower.width}",
            "Make them equal.",
        )


def main() -> None:
    """Entry point of `python -m cope_prep.encoders.pretrain`, under torchrun or alone."""
    run_program(PretrainConfig, PretrainTask)


if __name__ == "__main__":
    main()
