"""The counts in docs/tokens.md are those of the code, its chat is the template, and its Python runs as it is."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from cope_prep.encoders.chat import (
    IM_END,
    IM_START,
    IMAGE_INDEX,
    IMAGE_TOKEN,
    encode_chat,
    time_list,
    video_prompt,
)
from cope_prep.encoders.token_stream import TokenLayout, gop_tokens, stream_length
from cope_prep.pipeline.layout import Specs
from cope_prep.schemas.specs import EncodeSpec, ExtractSpec, ShardSpec

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tokens.md"
DENSITIES = (1, 2, 4, 8)
DURATION = re.compile(r"(?:(\d+) h)? ?(?:(\d+) min)? ?(?:(\d+) s)?")


def load(path: Path) -> ModuleType:
    """A module that is on no search path."""
    spec = importlib.util.spec_from_file_location(f"tests_tokens_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(first_header: str) -> list[list[str]]:
    """The rows of the page's table whose first column is so called, without the header."""
    found = re.search(rf"^\| {first_header} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE.read_text(), re.MULTILINE)
    assert found is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines()]


def seconds(text: str) -> int:
    match = DURATION.fullmatch(text)
    assert match is not None
    hours, minutes, rest = (int(part or 0) for part in match.groups())
    return (hours * 60 + minutes) * 60 + rest


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level one that splits as Qwen2's does and knows no words."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )  # type: ignore[assignment]
    core.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    special = ["<|endoftext|>", IM_START, IM_END]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        ["12.00s,"] * 9,
        BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=special, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=special)


def test_counts_are_those_of_the_code() -> None:
    rows = table("pooling")
    assert [tuple(row[:2]) for row in rows] == [
        (pooling, newline)
        for pooling in ("bilinear", "average")
        for newline in ("grid", "frame", "one_token", "none")
    ]
    for pooling, newline, *counts in rows:
        layout = TokenLayout.model_validate({"pooling": pooling, "newline": newline})
        gops = [gop_tokens(8, key_frames, layout) for key_frames in DENSITIES]
        streams = [stream_length(8 * key_frames, 64 - 8 * key_frames, layout) for key_frames in DENSITIES]
        expected = [layout.picture_tokens, *gops, *streams]
        assert [int(count.replace(",", "")) for count in counts] == expected
        if pooling == "average":
            assert (
                TokenLayout.model_validate({"pooling": "max", "newline": newline}).counts() == layout.counts()
            )


def test_lengths_are_the_longest_that_fit() -> None:
    scaling = load(ROOT / "benchmarks" / "token_scaling.py")
    assert scaling.limits_table() in PAGE.read_text()
    for name, *cells in table("context"):
        limit = {"32K": 32_768, "64K": 65_536, "128K": 131_072, "1M": 1_048_576}[name]
        for key_frames, cell in zip(DENSITIES, cells, strict=True):
            alone, with_times = re.fullmatch(r"(.*) \((.*)\)", cell).groups()  # type: ignore[union-attr]
            for text, is_with_times in ((alone, False), (with_times, True)):

                def needed(num_gops: int, key_frames: int = key_frames, times: bool = is_with_times) -> int:
                    num_tokens = num_gops * gop_tokens(8, key_frames, TokenLayout())
                    return num_tokens + (len(time_list(range(8 * num_gops))) if times else 0)

                num_gops, rest = divmod(scaling.video_s(limit, key_frames, with_times=is_with_times), 8)
                assert rest == 0
                assert needed(num_gops) <= limit < needed(num_gops + 1)
                assert 0 <= 8 * num_gops - seconds(text) < 60  # hours are shown without seconds


def test_a_time_is_a_token_a_character_to_qwen2(tokenizer: PreTrainedTokenizerFast) -> None:
    times_s = [*range(64), 3599.97, 40_000.0]
    assert len(tokenizer(time_list(times_s), add_special_tokens=False)["input_ids"]) == len(
        time_list(times_s)
    )
    assert f"`12.00s,` is {len('12.00s,')} tokens" in PAGE.read_text()
    counted = (
        f"are {stream_length(8, 56, TokenLayout()):,} tokens, and their times {len(time_list(range(64)))}."
    )
    assert counted in PAGE.read_text()


def test_the_chat_is_the_template(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = video_prompt(16.0, range(16))
    chat = encode_chat([("human", "<image>\nWhat is it?"), ("gpt", "A cat.")], tokenizer, prompt=prompt)
    slot = int(np.flatnonzero(chat.token_ids == IMAGE_INDEX)[0])
    text = tokenizer.decode(chat.token_ids[:slot].tolist()) + IMAGE_TOKEN
    text += tokenizer.decode(chat.token_ids[slot + 1 :].tolist())
    text = text.replace(time_list(range(16)), "0.00s,1.00s,...,15.00s")
    assert "".join(f"    {line}\n" for line in text.splitlines()) in PAGE.read_text()


def test_sequences(
    tokenizer: PreTrainedTokenizerFast,
    media: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    datasets = load(ROOT / "tests" / "pipeline" / "loader" / "datasets.py")
    (tmp_path / "made").mkdir()
    specs = Specs(
        encode=EncodeSpec(width_px=96, height_px=64, preset="ultrafast"),
        extract=ExtractSpec(window=30),
        shard=ShardSpec(target_bytes=60_000),
    )
    made = datasets.make_dataset(
        tmp_path / "made", media, num_videos=4, clip_frames=(240, 480), specs=specs, questions_per_video=2
    )
    shutil.move(made.dataset, tmp_path / "dataset")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COPE_PREP_CACHE", str(tmp_path / "cache"))
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    exec(compile(block, "sequences.py", "exec"), {"__name__": "__main__"})
    lines = capsys.readouterr().out.splitlines()
    found = [re.fullmatch(r"\((\d+), (\d+)\) (\d+) (\d+)", line) for line in lines]
    assert len(found) == 2
    visual = 0
    for match in found:
        assert match is not None
        num_rows, length, num_answers, num_visual = map(int, match.groups())
        assert num_rows == 1
        assert num_visual + num_answers < length <= 16_384
        assert num_answers > 4
        visual += num_visual
    assert visual == 2 * (2 * 266 + 2 * 2 * 266)  # 2 questions about each of 2 short videos and 2 long ones
