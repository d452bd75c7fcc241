"""FLOPs of models and of training steps, counted on torch's meta device: nothing is computed, nothing allocated.

Counted are matrix products and convolutions, two FLOPs a multiply-add (torch.utils.flop_counter). On the meta
device attention is the matrix products that it stands for. So it counts in full in a training step, with what a
causal mask hides, as is usual; what a fused kernel or activation checkpointing computes again in the backward pass
does not count. How a model is sharded, and on which device it is, makes no difference.

Meta tensors have no values, and both models look at some: which frames are there, which tokens are answers. So
their parts are called here one by one, with as many frames and tokens as a batch has. That the sum is a real
step's, tests/benchmarks/test_efficiency.py checks.

A frame at rest goes through the Δ-encoder with each batch of P-frames. So P-frames are counted `num_together` at a
time, and a figure is for one of them (`cope-prep train describe` has 7, those of a GOP).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from model_sizes import Size
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig

from cope_prep.encoders.alignment import AlignmentModel, patch_error
from cope_prep.encoders.delta_encoder import DeltaEncoder, DeltaEncoderConfig
from cope_prep.encoders.finetune import FinetuneTask
from cope_prep.encoders.pretrain import PretrainTask
from cope_prep.encoders.task import Task
from cope_prep.encoders.video_lm import VideoLM
from cope_prep.encoders.vision_tower import VisionTower
from cope_prep.pipeline.loader.batch import GopBatch, QABatch

# Letters: K pictures, F Δ-frames together, N Δ-tokens of one, M patches, R sequences, L their length, D width.

GOP_DELTAS = 7
"""P-frames of a GOP with one key frame."""
BLOCK_PX = 16
ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """What the parts of a model cost, forward."""

    picture: float
    """Tower and projector, a picture."""
    num_together: int
    """P-frames at a time; `delta` is for one of them."""
    delta: float
    """Δ-encoder and its projector, a P-frame."""
    token: float
    """Language model without attention and head, a token."""
    attention: float
    """Attention of a token to one other."""

    def of_prefill(self, *, num_pictures: int, num_deltas: int, num_tokens: int) -> float:
        """Up to the first token. Of causal attention, the half that is not masked."""
        seen = self.picture * num_pictures + self.delta * num_deltas
        return seen + self.token * num_tokens + self.attention * num_tokens**2 / 2


def count_flops(size: Size, *, num_together: int = GOP_DELTAS) -> Flops:
    """Of a model of that size, with pictures and P-frames as large as the tower's."""
    with torch.device("meta"):
        tower = VisionTower(SiglipVisionConfig.from_dict(dict(size.tower))).requires_grad_(False)
        encoder = DeltaEncoder(DeltaEncoderConfig(**size.delta)).requires_grad_(False).eval()
        language = Qwen2ForCausalLM(Qwen2Config.from_dict(dict(size.language)))
    config, side = language.config, size.side_px
    projector = 2 * config.hidden_size * (tower.width + config.hidden_size)
    layers = [module for module in language.model.layers.modules() if isinstance(module, nn.Linear)]
    heads = layers[0].out_features  # the first is the query's
    together = _flops(lambda: _delta_tokens(encoder, num_together, (side, side)))
    return Flops(
        picture=_flops(lambda: tower(_zeros(1, 3, side, side))) + projector * tower.patches_per_side**2,
        num_together=num_together,
        delta=together / num_together + projector * encoder.config.num_tokens,
        token=2 * sum(layer.weight.numel() for layer in layers),
        attention=4 * heads * config.num_hidden_layers,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """What a micro-batch gives a model to do."""

    num_samples: int
    num_pictures: int
    num_deltas: int
    """Δ-frames that are there, which go through the Δ-encoder together."""
    num_slots: int
    """Places for Δ-frames, with those that shorter GOPs leave empty: what the Δ-projector sees."""
    frame_px: tuple[int, int]
    """Height, width."""
    num_sequences: int = 0
    length: int = 0
    """Tokens of a sequence, with padding."""
    num_answer_tokens: int = 0


def shape_of(task: Task, batch: GopBatch | QABatch) -> StepShape:
    """Of a batch of the task's, on the host. Stage 1 must use all of its windows: no min_motion_px."""
    gops = batch.gops if isinstance(batch, QABatch) else batch
    height, width = gops.residual.shape[-2] * 2 // 3, gops.residual.shape[-1]
    if isinstance(task, FinetuneTask):
        assert isinstance(batch, QABatch)
        sequences = task.sequences(batch)
        num_sequences, length = sequences.token_ids.shape
        return StepShape(
            num_samples=len(sequences.questions),
            num_pictures=int(gops.picture_mask.sum()),
            num_deltas=int(gops.delta_mask.sum()),
            num_slots=gops.delta_mask.numel(),
            frame_px=(height, width),
            num_sequences=num_sequences,
            length=length,
            num_answer_tokens=sequences.num_answer_tokens,
        )
    num_used = int((gops.picture_mask.all(dim=1) & gops.delta_mask[:, 0]).sum())
    return StepShape(
        num_samples=num_used,
        num_pictures=2 * num_used,
        num_deltas=num_used,
        num_slots=num_used,
        frame_px=(height, width),
    )


def count_step(task: Task, shape: StepShape) -> int:
    """Of a micro-batch: forward, and backward of what trains. The model stays as it is."""
    if isinstance(task, FinetuneTask):
        return count_finetune_step(task.model, shape)
    assert isinstance(task, PretrainTask)
    return count_pretrain_step(task.model, task.tower, shape)


def count_finetune_step(model: VideoLM, shape: StepShape) -> int:
    """Forward and backward of stage 2; what trains is what requires a gradient."""
    model = _on_meta(model)
    language, side = model.language_model, model.vision_tower.side_px

    def step() -> None:
        patches_KMD = model.projector(model.vision_tower(_zeros(max(1, shape.num_pictures), 3, side, side)))
        features = [patches_KMD.flatten(0, 1), model.image_newline[None]]
        if model.layout.delta_tokens:
            encoder = model.delta_encoder
            num_tokens, width = encoder.config.num_tokens, encoder.config.output_width
            tokens_FND = _zeros(shape.num_slots - shape.num_deltas, num_tokens, width)
            if shape.num_deltas:
                tokens_FND = torch.cat((tokens_FND, _delta_tokens(encoder, shape.num_deltas, shape.frame_px)))
            features.append(model.delta_projector(tokens_FND).flatten(0, 1))
        token_ids_RL = _zeros(shape.num_sequences, shape.length).long()
        # Where each feature goes costs nothing; that gradients reach all of them does.
        inputs_RLD = language.get_input_embeddings()(token_ids_RL) + torch.cat(features).mean(dim=0)
        hidden_RLD = language.model(
            # The mask that it would make, without a look at values: none, and every layer is causal.
            inputs_embeds=inputs_RLD, attention_mask={"full_attention": None}, use_cache=False
        ).last_hidden_state  # fmt: skip
        logits_AV = language.lm_head(hidden_RLD.flatten(0, 1)[: shape.num_answer_tokens])
        logits_AV.sum().backward()

    return _flops(step)


def count_pretrain_step(model: AlignmentModel, tower: VisionTower, shape: StepShape) -> int:
    """Forward and backward of stage 1, and forward of its frozen tower."""
    model, tower = _on_meta(model), _on_meta(tower)

    def step() -> None:
        with torch.no_grad():
            patches_KMD = tower(_zeros(shape.num_pictures, 3, tower.side_px, tower.side_px))
        reference_FMD, target_FMD = patches_KMD.unflatten(0, (-1, 2)).unbind(dim=1)
        tokens_FND = _delta_tokens(model.delta_encoder, shape.num_deltas, shape.frame_px)
        patch_error(model.predict(reference_FMD, tokens_FND), target_FMD).backward()

    return _flops(step)


def _delta_tokens(encoder: DeltaEncoder, num_frames: int, frame_px: tuple[int, int]) -> torch.Tensor:
    """[F, N, D] of frames that go through it together; its own forward asks which of them are there."""
    height, width = frame_px
    grid = (height // BLOCK_PX, width // BLOCK_PX)
    tokens = []
    if encoder.motion is not None:
        tokens.append(encoder.motion(_zeros(num_frames, 2, *grid), _zeros(num_frames, *grid)))
    if encoder.residual is not None:
        luma_FCHW, chroma_FCHW = (
            _zeros(num_frames, 1, height, width),
            _zeros(num_frames, 2, height // 2, width // 2),
        )
        tokens.append(encoder.residual(luma_FCHW, chroma_FCHW))
    return torch.cat(tokens, dim=1)


def _on_meta(model: ModuleT) -> ModuleT:
    """The same modules with tensors that have shapes alone; no tensor is copied."""
    memo: dict[int, Any] = {}
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        twin = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(twin, tensor.requires_grad) if is_parameter else twin
    return copy.deepcopy(model, memo)


def _zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, device="meta")


def _flops(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
