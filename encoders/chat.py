r"""Conversations as token ids with labels: LLaVA-Video's `qwen_1_5` template, tokenised piece by piece.

    <|im_start|>system\nYou are a helpful assistant.<|im_end|>\n
    <|im_start|>user\n<image>\n{prompt}\n{question}<|im_end|>\n
    <|im_start|>assistant\n{answer}<|im_end|>\n                      and so on: user, assistant, ...

`prompt` says how long the video is and where its frames are (`video_prompt`). Each piece between two special
tokens, and each answer, is tokenised alone: the ids of special tokens are put in by hand. So the border between
what is asked and what is learned is exact, an answer that starts with white space cannot melt into the template's
newline, and a question that spells `<|im_end|>` ends nothing.

Labels are the answer's tokens and the `<|im_end|>` that ends it, for every pair of a conversation. The newline
behind it is not learned: generation stops at `<|im_end|>`. (LLaVA-NeXT's `preprocess_qwen` learns more: also the
header of assistant turns, and every newline, `<|im_start|>` and `<|im_end|>` of the template, users' turns
included. These are constants that say nothing about the video, and would dilute a mean over short answers.)

There is one newline between prompt and question. LLaVA-NeXT's inference has one too; its training code leaves the
question's own one as well, an empty line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from cope_prep.schemas.errors import ConfigurationError, FormatError

IMAGE_TOKEN = "<image>"
IMAGE_INDEX = -200
"""Stands for all of the video's features in `EncodedChat.token_ids`."""
IGNORE_INDEX = -100
"""Label of what is not learned."""
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
SYSTEM = "You are a helpful assistant."

Turns = Sequence[tuple[str, str]]
"""(speaker, text) with speaker `human` or `gpt`, as in QARecord.turns."""
_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedChat:
    """One conversation about one video."""

    token_ids: np.ndarray
    """int64 [T]: with exactly one IMAGE_INDEX, the place of the video."""
    labels: np.ndarray
    """int64 [T]: of the token at the same place (the loss shifts them); IGNORE_INDEX where nothing is learned."""

    def __post_init__(self) -> None:
        if self.token_ids.ndim != 1 or self.labels.shape != self.token_ids.shape:
            raise ValueError(f"token_ids {self.token_ids.shape} and labels {self.labels.shape} differ")
        if (num_slots := np.count_nonzero(self.token_ids == IMAGE_INDEX)) != 1:
            raise ValueError(f"{num_slots} places for the video, not 1")

    def __len__(self) -> int:
        return len(self.token_ids)


def video_prompt(duration_s: float, times_s: Sequence[float]) -> str:
    """What LLaVA-Video's user turn says about the video, to the letter (there is no space behind the full stop).

    times_s: of all anchors, pictures and Δ alike: to the model both are frames.
    """
    return (
        f"The video lasts for {duration_s:.2f} seconds, and {len(times_s)} frames are uniformly sampled from it. "
        f"These frames are located at {time_list(times_s)}."
        "Please answer the following questions related to this video."
    )


def time_list(times_s: Sequence[float]) -> str:
    """`0.00s,1.00s`: to Qwen2 a token a character, so about as many tokens a frame as a Δ has."""
    return ",".join(f"{time_s:.2f}s" for time_s in times_s)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """The tokenizer has the template's special tokens.

    Raises:
        ConfigurationError: it has not; names them.
    """
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in (IM_START, IM_END) if token not in vocabulary]
    if missing:
        raise ConfigurationError(
            f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}",
            f"has no token {' and no '.join(missing)}",
            "Use the language model's own tokenizer (Qwen2's has them), or add them with add_special_tokens"
            " and resize the embeddings.",
        )


def encode_chat(
    turns: Turns,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt: str | None = None,
    system: str = SYSTEM,
    question_id: str = "conversation",
) -> EncodedChat:
    """A conversation to learn from: labels on all of its answers.

    question_id: for errors.

    Raises:
        FormatError: the turns do not alternate between human and gpt, or `<image>` is not where it can be.
    """
    _check_turns(turns, question_id)
    if len(turns) % 2:
        raise FormatError(question_id, "its last turn is a human's: there is no answer to learn")
    return _encode(turns, tokenizer, prompt=prompt, system=system, ask=False)


def encode_question(
    question: str | Turns,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt: str | None = None,
    system: str = SYSTEM,
    question_id: str = "conversation",
) -> EncodedChat:
    r"""A conversation to go on with: ends with `<|im_start|>assistant\n`, and has no labels.

    question: a text, or turns. Of turns, an answer behind the last question is left out; those before it stay,
        as context.

    Raises:
        FormatError: as encode_chat.
    """
    turns = [("human", question)] if isinstance(question, str) else list(question)
    _check_turns(turns, question_id)
    asked = turns if len(turns) % 2 else turns[:-1]
    return _encode(asked, tokenizer, prompt=prompt, system=system, ask=True)


def _check_turns(turns: Turns, question_id: str) -> None:
    if not turns:
        raise FormatError(question_id, "has no turns")
    speakers = [speaker for speaker, _ in turns]
    if speakers != [("human", "gpt")[index % 2] for index in range(len(turns))]:
        raise FormatError(
            question_id,
            f"its turns are of {', '.join(speakers)}; they must alternate, human first",
            "Correct the question file, or leave this record out.",
        )
    places = [index for index, (_, text) in enumerate(turns) for _ in range(text.count(IMAGE_TOKEN))]
    if len(places) > 1:
        raise FormatError(
            question_id,
            f"has {len(places)} {IMAGE_TOKEN}",
            f"A conversation is about one video: keep one {IMAGE_TOKEN}.",
        )
    if places and places[0] != 0:
        raise FormatError(
            question_id,
            f"has its {IMAGE_TOKEN} in turn {places[0]}",
            f"Move {IMAGE_TOKEN} to the first turn.",
        )


def _encode(
    turns: Turns, tokenizer: PreTrainedTokenizerBase, *, prompt: str | None, system: str, ask: bool
) -> EncodedChat:
    # A piece is a text to tokenise or the id of a token, and whether it is learned.
    start, end = (cast(int, tokenizer.convert_tokens_to_ids(token)) for token in (IM_START, IM_END))
    pieces: list[tuple[str | int, bool]] = [
        (start, False),
        (f"system\n{system}", False),
        (end, False),
        ("\n", False),
    ]
    for index, (speaker, text) in enumerate(turns):
        is_answer = speaker == "gpt" and not ask
        pieces += [(start, False), (f"{_ROLES[speaker]}\n", False)]
        if index == 0:
            # Wherever the question has its <image>, it goes first, as LLaVA-NeXT's preprocess_multimodal does.
            question = text.replace(IMAGE_TOKEN, "").strip()
            told = "" if prompt is None else f"\n{prompt}"
            pieces += [(IMAGE_INDEX, False), (f"{told}\n{question}", False)]
        else:
            pieces.append((text, is_answer))
        pieces += [(end, is_answer), ("\n", False)]
    if ask:
        pieces += [(start, False), (f"{_ROLES['gpt']}\n", False)]
    return _join(pieces, tokenizer)


def _join(pieces: Sequence[tuple[str | int, bool]], tokenizer: PreTrainedTokenizerBase) -> EncodedChat:
    # One call for all texts: a tokenizer's call costs more than a short text.
    texts = sorted({piece for piece, _ in pieces if isinstance(piece, str) and piece})
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ids_of = dict(zip(texts, encoded, strict=True)) | {"": []}
    token_ids: list[int] = []
    labels: list[int] = []
    for piece, is_learned in pieces:
        ids = ids_of[piece] if isinstance(piece, str) else [piece]
        token_ids += ids
        labels += ids if is_learned else [IGNORE_INDEX] * len(ids)
    return EncodedChat(token_ids=np.array(token_ids, np.int64), labels=np.array(labels, np.int64))
