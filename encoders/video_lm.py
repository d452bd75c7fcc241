"""VideoLM: a causal language model that reads I-frames as pooled patches and every other anchor as Δ-tokens.

    pictures -> vision tower -> projector -> 2-D pooling + newlines ─┐
    Δ        -> Δ-encoder -> Δ-projector ────────────────────────────┴ one table of features -> rows at <image>
    text     -> embedding ───────────────────────────────────────────> sequence -> language model

A GOP that several questions share is encoded once. The Δ-projector has the projector's shape behind a norm, and
weights of its own: copied from the projector it would be blind at first, because a tower's tokens are ten times
the size of Δ-tokens or more, and the projector's hidden layer then sees little but its biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - as torch has it
from torch import nn
from transformers import Qwen2ForCausalLM

from cope_prep.encoders.delta_encoder import DeltaEncoder
from cope_prep.encoders.frame_sizes import picture_squares
from cope_prep.encoders.sequences import SequenceBatch, attention_mask_4d
from cope_prep.encoders.task import StepLoss
from cope_prep.encoders.token_stream import TokenLayout, picture_features
from cope_prep.encoders.vision_tower import VisionTower
from cope_prep.pipeline.loader import DeviceGops
from cope_prep.schemas.errors import ConfigurationError

# Letters: B GOPs, K pictures, P Δ-frames, N Δ-tokens, T tokens of a picture, M patches, F rows of the table
# of features, R sequences, L their length, V vocabulary, D width.

DeltaMode = Literal["given", "zero", "swap"]
"""The Δ-encoder's tokens as they are; all zero, which is what it says of a frame in which nothing moves; those of
another video of the batch."""
IGNORE_INDEX = -100


class VideoLM(nn.Module):
    """Vision tower, projector, Δ-encoder and a causal language model of transformers."""

    def __init__(
        self,
        *,
        vision_tower: VisionTower,
        delta_encoder: DeltaEncoder,
        language_model: Qwen2ForCausalLM,
        layout: TokenLayout,
    ) -> None:
        """
        Raises:
            ConfigurationError: the parts' widths or grids do not fit one another.
        """
        super().__init__()
        _check_parts(vision_tower, delta_encoder, layout)
        self.layout = layout
        self.vision_tower = vision_tower
        self.delta_encoder = delta_encoder
        self.language_model = language_model
        width = language_model.config.hidden_size
        self.projector = _projector(vision_tower.width, width)
        self.delta_projector = nn.Sequential(
            nn.LayerNorm(vision_tower.width), *_projector(vision_tower.width, width)
        )
        self.image_newline = nn.Parameter(torch.randn(width) * width**-0.5)

    def features(self, gops: DeviceGops, *, delta: DeltaMode = "given") -> torch.Tensor:
        """Rows [F, D] of all features of a batch: pictures [B, K, T], Δ [B, P, N], then the newline.

        Raises:
            ConfigurationError: delta="swap", and the batch has Δ-frames of one video only.
        """
        width = self.image_newline.shape[-1]
        pictures_BKTD = self._pictures(gops)
        if self.layout.delta_tokens == 0:
            return torch.cat((pictures_BKTD.reshape(-1, width), self.image_newline[None]))
        delta_BPND = self.delta_encoder.encode(gops)
        if delta == "zero":
            delta_BPND = torch.zeros_like(delta_BPND)
        elif delta == "swap":
            delta_BPND = _of_other_videos(delta_BPND, gops)
        delta_BPND = self.delta_projector(delta_BPND)
        rows = (pictures_BKTD.reshape(-1, width), delta_BPND.reshape(-1, width), self.image_newline[None])
        return torch.cat([part.to(rows[-1].dtype) for part in rows])

    def embed(
        self, gops: DeviceGops, sequences: SequenceBatch, *, delta: DeltaMode = "given"
    ) -> torch.Tensor:
        """What the language model reads, [R, L, D]: text embeddings, and features where `<image>` was."""
        flat_FD = self.features(gops, delta=delta)
        text_RLD = self.language_model.get_input_embeddings()(sequences.token_ids).to(flat_FD.dtype)
        is_visual_RL1 = (sequences.visual_index >= 0)[..., None]
        return torch.where(is_visual_RL1, flat_FD[sequences.visual_index.clamp(min=0)], text_RLD)

    def forward(
        self,
        *,
        gops: DeviceGops,
        sequences: SequenceBatch,
        is_packed: bool = False,
        delta: DeltaMode = "given",
        num_questions: int | None = None,
    ) -> StepLoss:
        """Cross-entropy summed over the answers' tokens; metrics: how many of them are predicted right.

        With `num_questions`, of the batch, `num_wrong` [num_questions] too: wrong tokens of each one's answers.
        """
        logits_AV, labels_A, question_A = self.answer_logits(
            gops, sequences, is_packed=is_packed, delta=delta
        )
        loss = F.cross_entropy(logits_AV.float(), labels_A, reduction="sum")
        is_wrong_A = (logits_AV.argmax(dim=-1) != labels_A).float()
        metrics = {"token_accuracy": len(labels_A) - is_wrong_A.sum()}
        if num_questions is not None:
            none_Q = is_wrong_A.new_zeros(num_questions)
            metrics["num_wrong"] = none_Q.index_add(0, question_A.long(), is_wrong_A)
        return StepLoss(loss_sum=loss, metrics=metrics)

    def answer_logits(
        self,
        gops: DeviceGops,
        sequences: SequenceBatch,
        *,
        is_packed: bool = False,
        delta: DeltaMode = "given",
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """At the answers' tokens alone: logits [A, V], labels [A], and the question of each [A].

        The vocabulary is wide: logits of the prompt's and the video's tokens would cost more memory than all
        else.
        """
        if sequences.token_ids.numel() == 0:
            sequences = _padding_alone(sequences)
        hidden_RLD = self._hidden(self.embed(gops, sequences, delta=delta), sequences, is_packed=is_packed)
        labels_RL = sequences.labels[:, 1:]
        rows, columns = (labels_RL != IGNORE_INDEX).nonzero(as_tuple=True)
        logits_AV = self.language_model.lm_head(hidden_RLD[rows, columns])
        return logits_AV, labels_RL[rows, columns], sequences.question[:, 1:][rows, columns]

    def _hidden(self, inputs_RLD: torch.Tensor, sequences: SequenceBatch, *, is_packed: bool) -> torch.Tensor:
        if is_packed:
            mask, positions = attention_mask_4d(sequences), sequences.position_ids
        else:
            # Padding is behind: with a causal mask no token meets it, and the plain mask has the fastest kernel.
            mask, positions = None, None
        return self.language_model.model(
            inputs_embeds=inputs_RLD, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state

    @torch.no_grad()
    def generate(
        self,
        gops: DeviceGops,
        sequences: SequenceBatch,
        *,
        max_new_tokens: int = 64,
        min_new_tokens: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int = 0,
        delta: DeltaMode = "given",
    ) -> torch.Tensor:
        """Greedy continuation of each sequence (one question each, not packed): token ids [R, new tokens].

        eos_token_id: ends an answer, and is its last token; behind it a row has pad_token_id. None: what the
            language model's generation_config names. With LLaVA-Video and Qwen2-Instruct that is `<|im_end|>`, as
            answers are learned; Qwen2 without instructions names another.
        """
        # Given as None, it would take the model's own away.
        ends = {} if eos_token_id is None else {"eos_token_id": eos_token_id}
        is_real_RL = sequences.question >= 0
        # The new token goes behind the last one: rows of unequal length are padded in front.
        missing_R1 = (~is_real_RL).sum(dim=1, keepdim=True)
        length = is_real_RL.shape[1]
        source_RL = torch.arange(length, device=is_real_RL.device) - missing_R1
        rows_R1 = torch.arange(len(is_real_RL), device=is_real_RL.device)[:, None]
        embeds_RLD = self.embed(gops, sequences, delta=delta)[rows_R1, source_RL.clamp(min=0)]
        # Its `self` is a protocol with attributes that no model has.
        return self.language_model.generate(  # pyright: ignore[reportAttributeAccessIssue]
            inputs_embeds=embeds_RLD.to(self.language_model.dtype),
            attention_mask=(source_RL >= 0).long(),
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,  # Qwen2-Instruct's generation_config has another: no greedy answer
            pad_token_id=pad_token_id,
            **ends,
        )

    def _pictures(self, gops: DeviceGops) -> torch.Tensor:
        """[B, K, T, D]; zeros where there is no picture.

        The tower is called once, whatever is in the batch: under FSDP2 every rank must gather its blocks equally
        often. Where everything was skipped it computes a black picture, so that every parameter has a gradient, of
        zero.
        """
        mask_BK = gops.batch.picture_mask
        squares = picture_squares(gops, mask_BK, side_px=self.vision_tower.side_px)
        num_pictures = len(squares)
        if num_pictures == 0:
            squares = squares.new_zeros(1, *squares.shape[1:])
        patches = self.projector(self.vision_tower(squares))
        tokens = picture_features(patches, self.image_newline, self.layout)[:num_pictures]
        shape = (*mask_BK.shape, *tokens.shape[1:])
        features = gops.rgb.new_zeros(shape, dtype=self.image_newline.dtype)
        return features.index_put(mask_BK.nonzero(as_tuple=True), tokens.to(features.dtype))


def gops_of_other_videos(video_ids: Sequence[str], num_deltas: Sequence[int]) -> list[int]:
    """For each GOP of a batch, the one whose Δ-frames it gets instead of its own.

    It is of another video and has as many Δ-frames or more, if there is one; else the longest that there is. Of
    those, the one that was given away least, the next behind it in the batch. So where each video has one GOP,
    all of one length, each gets those of the next. A GOP without Δ-frames stays as it is.

    Raises:
        ConfigurationError: there are Δ-frames of one video only.
    """
    num_gops = len(num_deltas)
    num_given = [0] * num_gops
    givers = []
    for gop, wanted in enumerate(num_deltas):
        others = [
            other for other in range(num_gops) if video_ids[other] != video_ids[gop] and num_deltas[other] > 0
        ]
        if wanted == 0:
            givers.append(gop)
            continue
        if not others:
            raise ConfigurationError(
                "delta='swap'",
                f"a batch has Δ-frames of one video only, {video_ids[gop]}",
                "Raise eval_batch_size above 8, the questions of a video that come together; with a loader of your"
                " own, batch_size above questions_per_visit.",
            )
        giver = min(
            others,
            key=lambda other: (
                max(wanted - num_deltas[other], 0),
                num_given[other],
                (other - gop) % num_gops,
            ),
        )
        num_given[giver] += 1
        givers.append(giver)
    return givers


def _of_other_videos(delta_BPND: torch.Tensor, gops: DeviceGops) -> torch.Tensor:
    """Δ-tokens, each GOP's replaced by those of a GOP of another video; of a shorter one, from its start again.

    What is there of a GOP does not change: a swapped token stands in every place that had one, and padding, which
    no sequence looks at, gets some as well.
    """
    num_deltas = gops.batch.delta_mask.sum(dim=1)
    givers = gops_of_other_videos(gops.batch.info.video_ids, num_deltas.tolist())
    giver_B1 = torch.tensor(givers, device=delta_BPND.device)[:, None]
    slot_P = torch.arange(delta_BPND.shape[1], device=delta_BPND.device)
    return delta_BPND[giver_B1, slot_P % num_deltas[giver_B1].clamp(min=1)]


def _padding_alone(sequences: SequenceBatch) -> SequenceBatch:
    """A row of one token that is padding: for a batch without a question that could be read."""
    like = {field.name: getattr(sequences, field.name) for field in fields(sequences)}
    empty = {"visual_index": -1, "labels": IGNORE_INDEX, "question": -1}
    return SequenceBatch(
        **{name: tensor.new_full((1, 1), empty.get(name, 0)) for name, tensor in like.items()}
    )


def _projector(vision_width: int, width: int) -> nn.Sequential:
    """LLaVA's `mlp2x_gelu`."""
    return nn.Sequential(nn.Linear(vision_width, width), nn.GELU(), nn.Linear(width, width))


def _check_parts(tower: VisionTower, encoder: DeltaEncoder, layout: TokenLayout) -> None:
    if encoder.config.output_width != tower.width:
        raise ConfigurationError(
            "delta_encoder.output_width",
            f"is {encoder.config.output_width}, but the vision tower's tokens have {tower.width}",
            "Both go through projectors of one shape: make them equal.",
        )
    if layout.patches_per_side != tower.patches_per_side:
        raise ConfigurationError(
            "layout.patches_per_side",
            f"is {layout.patches_per_side}, but the vision tower has {tower.patches_per_side} x"
            f" {tower.patches_per_side} patches",
        )
    if layout.delta_tokens not in (0, encoder.config.num_tokens):
        raise ConfigurationError(
            "layout.delta_tokens",
            f"is {layout.delta_tokens}, but the Δ-encoder makes {encoder.config.num_tokens}",
        )
