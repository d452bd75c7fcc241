"""A tokenizer for a tiny language model: a token for each word of the benchmark, with Qwen's special tokens.

Text is cut into newlines, single digits, words and single punctuation marks; spaces are dropped. So times cost a
token a digit, every answer is one token, and decoding gives the words back with spaces between them.
"""

from __future__ import annotations

import re
from pathlib import Path

from questions import ANSWERS, PHRASINGS
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence, Split
from transformers import PreTrainedTokenizerFast

END_OF_TEXT, TURN_BEGINS, TURN_ENDS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_UNKNOWN = "<|unknown|>"
_PIECE = r"\n|[0-9]|[A-Za-z]+|[^\sA-Za-z0-9]"
_FRAME_TEXTS = (
    "system\nYou are a helpful assistant.",
    "user\nThe video lasts for 0.00 seconds, and 0 frames are uniformly sampled from it. These frames are located"
    " at 0.00s,0.00s.Please answer the following questions related to this video.\n",
    "assistant\n",
    ".,:;?!-'\"()/<>",
)
"""What the chat template and the prompt of LLaVA-Video say, and punctuation."""


def vocabulary() -> list[str]:
    """All tokens, special ones first."""
    texts = [*_FRAME_TEXTS, "0123456789"]
    for name, phrasings in PHRASINGS.items():
        texts += phrasings
        texts += ANSWERS[name]
    words = dict.fromkeys(piece for text in texts for piece in re.findall(_PIECE, text))
    return [END_OF_TEXT, TURN_BEGINS, TURN_ENDS, _UNKNOWN, *words]


def make_tokenizer(folder: Path) -> Path:
    """Save the tokenizer in a folder, for `AutoTokenizer.from_pretrained(folder)`."""
    words = {word: number for number, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(WordLevel(words, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = Sequence([Split(Regex(" +"), "removed"), Split(Regex(_PIECE), "isolated")])
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (END_OF_TEXT, TURN_BEGINS, TURN_ENDS)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_ENDS,
        pad_token=END_OF_TEXT,
        unk_token=_UNKNOWN,
        additional_special_tokens=[TURN_BEGINS, TURN_ENDS],
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(str(folder))
    return folder
