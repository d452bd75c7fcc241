"""Chats: the template to the letter, and the mask token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from cope_prep.encoders.chat import (
    IGNORE_INDEX,
    IM_END,
    IM_START,
    IMAGE_INDEX,
    IMAGE_TOKEN,
    EncodedChat,
    check_tokenizer,
    encode_chat,
    encode_question,
    video_prompt,
)
from cope_prep.schemas.errors import ConfigurationError, FormatError

PROMPT = (
    "The video lasts for 31.53 seconds, and 3 frames are uniformly sampled from it. These frames are located at "
    "0.00s,1.00s,12.35s.Please answer the following questions related to this video."
)
"""As LLaVA-Video's train.py makes it, but for the numbers."""
SYSTEM_PART = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
LEARNED, NOT = True, False


def make_tokenizer(special: Sequence[str] = ("<|endoftext|>", IM_START, IM_END)) -> PreTrainedTokenizerFast:
    """Byte-level BPE like Qwen2's, with merges that cross every border of the template if they are let."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(special),
        show_progress=False,
    )
    lines = [
        "assistant\nA.",
        "assistant\n A cat.",
        "user\nWhat?",
        "user\nWhat is it?",
        "system\nYou are",
        "A.\n",
        "\n\n",
    ]
    core.train_from_iterator(lines * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=list(special))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def text_of(chat: EncodedChat, tokenizer: PreTrainedTokenizerFast) -> str:
    """What the ids spell, `<image>` included."""
    slot = int(np.flatnonzero(chat.token_ids == IMAGE_INDEX)[0])
    before, after = chat.token_ids[:slot].tolist(), chat.token_ids[slot + 1 :].tolist()
    return tokenizer.decode(before) + IMAGE_TOKEN + tokenizer.decode(after)


def learned_text(chat: EncodedChat, tokenizer: PreTrainedTokenizerFast) -> str:
    return tokenizer.decode(chat.labels[chat.labels != IGNORE_INDEX].tolist())


def slow_chat(
    pieces: Sequence[tuple[str, bool]], tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[int]]:
    """Token ids and labels of pieces written by hand, one tokenizer call each."""
    token_ids: list[int] = []
    labels: list[int] = []
    for text, is_learned in pieces:
        ids = [IMAGE_INDEX] if text == IMAGE_TOKEN else tokenizer(text, add_special_tokens=False)["input_ids"]
        for token_id in ids:
            token_ids.append(token_id)
            labels.append(token_id if is_learned else IGNORE_INDEX)
    return token_ids, labels


def test_prompt_is_that_of_llava_video() -> None:
    assert video_prompt(31.532, [0.0, 1.0, 12.346]) == PROMPT


def test_chat_is_the_template_to_the_letter(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [("human", "<image>\nWhat is it?\nA. cat\nB. dog"), ("gpt", "A. cat")]
    chat = encode_chat(turns, tokenizer, prompt=PROMPT)
    assert text_of(chat, tokenizer) == (
        f"{SYSTEM_PART}<|im_start|>user\n<image>\n{PROMPT}\nWhat is it?\nA. cat\nB. dog<|im_end|>\n"
        "<|im_start|>assistant\nA. cat<|im_end|>\n"
    )
    assert learned_text(chat, tokenizer) == "A. cat<|im_end|>"
    assert len(chat) == chat.token_ids.size
    assert chat.token_ids.dtype == chat.labels.dtype == np.int64


def test_every_answer_is_learned_and_nothing_else(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [
        ("human", "<image>\nWhat is it?"),
        ("gpt", "A cat."),
        ("human", "What is it not?"),
        ("gpt", "A dog.\nOr two."),
    ]
    chat = encode_chat(turns, tokenizer, prompt="Look.")
    token_ids, labels = slow_chat(
        [
            (IM_START, NOT), ("system\nYou are a helpful assistant.", NOT), (IM_END, NOT), ("\n", NOT),
            (IM_START, NOT), ("user\n", NOT), (IMAGE_TOKEN, NOT), ("\nLook.\nWhat is it?", NOT), (IM_END, NOT),
            ("\n", NOT),
            (IM_START, NOT), ("assistant\n", NOT), ("A cat.", LEARNED), (IM_END, LEARNED), ("\n", NOT),
            (IM_START, NOT), ("user\n", NOT), ("What is it not?", NOT), (IM_END, NOT), ("\n", NOT),
            (IM_START, NOT), ("assistant\n", NOT), ("A dog.\nOr two.", LEARNED), (IM_END, LEARNED), ("\n", NOT),
        ],
        tokenizer,
    )  # fmt: skip
    assert chat.token_ids.tolist() == token_ids
    assert chat.labels.tolist() == labels
    assert learned_text(chat, tokenizer) == "A cat.<|im_end|>A dog.\nOr two.<|im_end|>"


def test_borders_hold_where_a_merge_would_cross_them(tokenizer: PreTrainedTokenizerFast) -> None:
    # Tokenised in one go, "\n A cat." behind "assistant" would begin inside the header.
    whole = tokenizer("assistant\n A cat.", add_special_tokens=False)["input_ids"]
    header, answer = tokenizer(["assistant\n", " A cat."], add_special_tokens=False)["input_ids"]
    assert whole != header + answer
    for answer in (" A cat.", "\n\nA.", "A.\n", ""):
        turns = [("human", "<image>\nWhat?"), ("gpt", answer)]
        chat = encode_chat(turns, tokenizer)
        assert learned_text(chat, tokenizer) == f"{answer}<|im_end|>"
        asked = encode_question(turns, tokenizer)
        assert chat.token_ids[: len(asked)].tolist() == asked.token_ids.tolist()


@pytest.mark.parametrize("asked", ["<image>\nWhat?", "What?\n<image>", "What?", "<image>What?"])
def test_image_goes_first_wherever_it_was(tokenizer: PreTrainedTokenizerFast, asked: str) -> None:
    for prompt, told in ((None, ""), (PROMPT, f"{PROMPT}\n")):
        chat = encode_question(asked, tokenizer, prompt=prompt)
        expected = f"{SYSTEM_PART}<|im_start|>user\n<image>\n{told}What?<|im_end|>\n<|im_start|>assistant\n"
        assert text_of(chat, tokenizer) == expected


def test_question_ends_where_the_answer_begins(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [("human", "<image>\nWhat?"), ("gpt", "A."), ("human", "What is it?"), ("gpt", "A cat.")]
    expected = (
        f"{SYSTEM_PART}<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\nA.<|im_end|>\n"
        "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    )
    for given in (turns, turns[:3]):
        chat = encode_question(given, tokenizer)
        assert text_of(chat, tokenizer) == expected
        assert (chat.labels == IGNORE_INDEX).all()


def test_another_system_message(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = encode_question("What?", tokenizer, system="Be brief.")
    assert text_of(chat, tokenizer).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")


def test_text_that_spells_a_special_token_is_text(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [("human", "<image>\nWhat is <|im_end|>?"), ("gpt", "The end: <|im_end|>")]
    chat = encode_chat(turns, tokenizer)
    end = tokenizer.convert_tokens_to_ids(IM_END)
    assert (chat.token_ids == end).sum() == 3
    assert (chat.labels == end).sum() == 1
    assert learned_text(chat, tokenizer) == "The end: <|im_end|><|im_end|>"


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "q7: has no turns"),
        ([("gpt", "A.")], "q7: its turns are of gpt; they must alternate, human first"),
        ([("human", "What?"), ("human", "What?")], "q7: its turns are of human, human; they must alternate"),
        ([("human", "What?"), ("system", "Hm.")], "q7: its turns are of human, system; they must alternate"),
        ([("human", "What?")], "q7: its last turn is a human's: there is no answer to learn"),
        ([("human", "<image><image>What?"), ("gpt", "A.")], "q7: has 2 <image>"),
        ([("human", "<image>What?"), ("gpt", "An <image>.")], "q7: has 2 <image>"),
        ([("human", "What?"), ("gpt", "An <image>.")], "q7: has its <image> in turn 1"),
    ],
)
def test_turns_that_make_no_chat_fails(
    tokenizer: PreTrainedTokenizerFast, turns: list[tuple[str, str]], message: str
) -> None:
    with pytest.raises(FormatError) as raised:
        encode_chat(turns, tokenizer, question_id="q7")
    assert str(raised.value).startswith(message)


def test_tokenizer_without_the_template_fails(tokenizer: PreTrainedTokenizerFast) -> None:
    check_tokenizer(tokenizer)
    with pytest.raises(ConfigurationError, match=r"has no token <\|im_start\|> and no <\|im_end\|>. Use the"):
        check_tokenizer(make_tokenizer(["<|endoftext|>"]))
    with pytest.raises(ConfigurationError, match=r"has no token <\|im_end\|>. Use the"):
        check_tokenizer(make_tokenizer([IM_START]))
