"""Questions of a batch as rows of integers: which tokens are text, which are visual features, what is learned.

VideoLM computes the features of a batch's GOPs once, in one table, however many questions share them:

    flat_FD = pictures [B, K, T], then Δ [B, P, N], then one row: the newline vector

A sequence is text ids and rows of that table. The `<image>` slot of each chat becomes the runs of its question in
order of time. Nothing here touches a feature: it is numpy over the loader's host tensors, once a step, with no loop
over tokens.

Packing puts several questions into one row, first fit in order of falling length: the padding that a short question
would get beside a long one is not computed. Questions of a row do not see each other (`attention_mask_4d`) and
count their positions from 0.

Letters: Q questions, S runs, R rows, L length of a row; B GOPs, K pictures, P Δ-frames; T and N tokens of one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch

from cope_prep.encoders.chat import IGNORE_INDEX, IMAGE_INDEX, EncodedChat
from cope_prep.encoders.token_stream import TokenLayout
from cope_prep.pipeline.loader.batch import DELTA, PICTURE, GopBatch, QABatch
from cope_prep.schemas.errors import ConfigurationError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceBatch:
    """Rows for the language model: one question each, or several if packed, padded at the right."""

    token_ids: torch.Tensor
    """int64 [R, L]: text; 0 where visual or padding."""
    visual_index: torch.Tensor
    """int64 [R, L]: row of flat_FD; -1 where text or padding."""
    labels: torch.Tensor
    """int64 [R, L]: of the token at the same place (the loss shifts them); IGNORE_INDEX but on answers."""
    position_ids: torch.Tensor
    """int64 [R, L]: from 0 in each question; 0 where padding."""
    question: torch.Tensor
    """int32 [R, L]: index in the batch; -1 where padding."""

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> SequenceBatch:
        """On a device."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return SequenceBatch(
            **{name: tensor.to(device, non_blocking=non_blocking) for name, tensor in tensors.items()}
        )

    @property
    def questions(self) -> set[int]:
        """Those of the batch that have a row."""
        return set(self.question.unique().tolist()) - {-1}

    @property
    def num_answer_tokens(self) -> int:
        """Labels that are learned: the weight of the loss."""
        # The first token of a question is never an answer, so that shifting loses none.
        return int((self.labels != IGNORE_INDEX).sum())


def build_sequences(
    batch: QABatch,
    chats: Sequence[EncodedChat | None],
    layout: TokenLayout,
    *,
    packing: bool = False,
    max_length: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
) -> SequenceBatch:
    """The sequences of a batch's questions; those that were skipped are left out (R is 0 if all were).

    batch: its run_* tensors on the host.
    chats: [Q], one for each question; None leaves it out.
    packing: several questions a row, R at most Q; needs max_length.
    max_length: no question, and no packed row, is longer. Not packed, None is no limit.
    on_error: "skip" leaves a question out that is longer than max_length, with a warning.

    Raises:
        ConfigurationError: a question is longer than max_length.
    """
    if len(chats) != len(batch):
        raise ValueError(f"{len(chats)} chats for {len(batch)} questions")
    if packing and max_length is None:
        raise ConfigurationError("packing", "there is no max_length to pack into", "Give max_length.")
    is_valid = batch.question_is_valid.tolist()
    kept = np.array(
        [index for index, chat in enumerate(chats) if chat is not None and is_valid[index]], np.int64
    )
    used = [chat for chat, valid in zip(chats, is_valid, strict=True) if chat is not None and valid]
    first_QS, length_QS = _visual_runs(batch, layout, kept)

    num_text = np.array([len(chat) for chat in used], np.int64) - 1
    num_visual = length_QS.sum(axis=1)
    length = num_text + num_visual
    if max_length is not None and (length > max_length).any():
        error = _too_long(batch, kept, num_text, num_visual, max_length)
        if on_error == "raise":
            raise error
        logger.warning("left out: %s", error)
        fits = length <= max_length
        used = [chat for chat, fit in zip(used, fits.tolist(), strict=True) if fit]
        kept, first_QS, length_QS = kept[fits], first_QS[fits], length_QS[fits]
        num_text, num_visual, length = num_text[fits], num_visual[fits], length[fits]
    row, start, num_rows = _place(length, max_length if packing else None)
    width = int((start + length).max(initial=0))

    text_ids = _concatenate([chat.token_ids for chat in used])
    text_labels = _concatenate([chat.labels for chat in used])
    is_text = text_ids != IMAGE_INDEX
    question = np.repeat(np.arange(len(kept)), num_text + 1)
    place = _within(num_text + 1)
    slot = place[~is_text]
    # Behind the slot, a token moves on by the video's tokens less the slot itself.
    place += np.where(place > slot[question], num_visual[question] - 1, 0)

    origin = row * width + start
    flat = {
        "token_ids": np.zeros(num_rows * width, np.int64),
        "visual_index": np.full(num_rows * width, -1, np.int64),
        "labels": np.full(num_rows * width, IGNORE_INDEX, np.int64),
        "position_ids": np.zeros(num_rows * width, np.int64),
        "question": np.full(num_rows * width, -1, np.int32),
    }
    target = (origin[question] + place)[is_text]
    flat["token_ids"][target] = text_ids[is_text]
    flat["labels"][target] = text_labels[is_text]
    visual_target = np.repeat(origin + slot, num_visual) + _within(num_visual)
    runs = length_QS.reshape(-1)
    flat["visual_index"][visual_target] = np.repeat(first_QS.reshape(-1), runs) + _within(runs)
    position = _within(length)
    target = np.repeat(origin, length) + position
    flat["position_ids"][target] = position
    flat["question"][target] = np.repeat(kept, length)
    return SequenceBatch(
        **{name: torch.from_numpy(values.reshape(num_rows, width)) for name, values in flat.items()}
    )


def num_features(gops: GopBatch, layout: TokenLayout) -> int:
    """F: rows of flat_FD."""
    num_gops, num_pictures = gops.picture_mask.shape
    num_deltas = gops.delta_mask.shape[1]
    return num_gops * (num_pictures * layout.picture_tokens + num_deltas * layout.delta_tokens) + 1


def attention_mask_4d(sequences: SequenceBatch, dtype: torch.dtype = torch.bool) -> torch.Tensor:
    """[R, 1, L, L], query by key: causal, within a question only.

    True where it may look; if `dtype` is a float, 0 there and the lowest number elsewhere.
    Padding looks at padding, so that no row of the softmax is empty. L * L bytes a row as bool.
    """
    question_RL = sequences.question
    length = question_RL.shape[1]
    is_same_RLL = question_RL[:, :, None] == question_RL[:, None, :]
    is_past_LL = torch.ones(length, length, dtype=torch.bool, device=question_RL.device).tril()
    mask_R1LL = (is_same_RLL & is_past_LL)[:, None]
    if dtype == torch.bool:
        return mask_R1LL
    lowest = torch.finfo(dtype).min
    return torch.zeros_like(mask_R1LL, dtype=dtype).masked_fill_(~mask_R1LL, lowest)


def _visual_runs(batch: QABatch, layout: TokenLayout, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First row in flat_FD and length of each run of the kept questions: int64 [Q, S + 1] each.

    The last run is the stream's newline, of length 0 if the layout has none. So is a run that is PAD.
    """
    num_gops, num_pictures = batch.gops.picture_mask.shape
    num_deltas = batch.gops.delta_mask.shape[1]
    kind = batch.run_kind.numpy()[kept]
    gop = batch.run_gop.numpy()[kept].astype(np.int64)
    slot = batch.run_slot.numpy()[kept].astype(np.int64)
    first_delta = num_gops * num_pictures * layout.picture_tokens
    newline = num_features(batch.gops, layout) - 1
    first_QS = np.where(
        kind == PICTURE,
        (gop * num_pictures + slot) * layout.picture_tokens,
        first_delta + (gop * num_deltas + slot) * layout.delta_tokens,
    )
    length_QS = np.where(
        kind == PICTURE, layout.picture_tokens, np.where(kind == DELTA, layout.delta_tokens, 0)
    )
    last = ((0, 0), (0, 1))
    return (
        np.pad(first_QS, last, constant_values=newline),
        np.pad(length_QS, last, constant_values=layout.stream_tokens),
    )


def _too_long(
    batch: QABatch, kept: np.ndarray, num_text: np.ndarray, num_visual: np.ndarray, max_length: int
) -> ConfigurationError:
    length = num_text + num_visual
    num_too_long = int((length > max_length).sum())
    longest = int(length.argmax())
    others = "" if num_too_long == 1 else f"; so are {num_too_long - 1} others of its batch"
    return ConfigurationError(
        f"question {batch.questions[kept[longest]].question_id}",
        f"{length[longest]} tokens ({num_text[longest]} of text, {num_visual[longest]} of video) are more than"
        f" max_length {max_length}{others}",
        "Give the dataset a smaller max_gops or fewer key_frames, raise max_length, or set data.on_error to skip.",
    )


def _place(length: np.ndarray, max_length: int | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Row and start of each question, and the number of rows. None: a row each.

    First fit, longest first (at most 11/9 of the best possible number of rows, and one); equal lengths in order.
    """
    if max_length is None:
        return np.arange(len(length)), np.zeros(len(length), np.int64), len(length)
    row, start = np.zeros(len(length), np.int64), np.zeros(len(length), np.int64)
    filled: list[int] = []
    for question in np.argsort(-length, kind="stable").tolist():
        size = int(length[question])
        chosen = next((index for index, used in enumerate(filled) if used + size <= max_length), len(filled))
        if chosen == len(filled):
            filled.append(0)
        row[question], start[question] = chosen, filled[chosen]
        filled[chosen] += size
    return row, start, len(filled)


def _within(counts: np.ndarray) -> np.ndarray:
    """0, 1, ... within each of several groups, one after the other: [3, 2] gives 0 1 2 0 1."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _concatenate(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *arrays])
