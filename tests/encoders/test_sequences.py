"""Sequences: every row against lists joined by hand, packed and not, and what may look at what."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from cope_prep.encoders.chat import IGNORE_INDEX, IMAGE_INDEX, EncodedChat
from cope_prep.encoders.sequences import SequenceBatch, attention_mask_4d, build_sequences, num_features
from cope_prep.encoders.token_stream import Newline, TokenLayout, stream_length
from cope_prep.pipeline.loader.batch import DELTA, PAD, PICTURE, RUN_FIELDS, BatchInfo, GopBatch, QABatch
from cope_prep.pipeline.loader.buffer import Buffer
from cope_prep.schemas.errors import ConfigurationError
from cope_prep.schemas.records import QARecord

LAYOUT = TokenLayout(patches_per_side=3, delta_tokens=2)  # 2 x (2 + 1) = 6 tokens a picture
Run = tuple[int, int, int]
"""Kind, row in the GOPs, slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A batch, and what is in it as plain lists."""

    batch: QABatch
    chats: list[EncodedChat]
    runs: list[list[Run]]
    """[Q][S]: without PAD."""
    valid: list[bool]


def make_batch(
    runs: Sequence[Sequence[Run]], valid: Sequence[bool], *, num_gops: int, num_pictures: int, num_deltas: int
) -> QABatch:
    """A QABatch with these runs over GOPs of K pictures and P Δ-frames; what the models would read is zero."""
    shape = (len(runs), max((len(of_question) for of_question in runs), default=0))
    b, k, p = num_gops, num_pictures, num_deltas
    shapes = {
        "picture_mask": (np.bool_, (b, k)),
        "delta_mask": (np.bool_, (b, p)),
        "run_kind": (np.int8, shape),
        "run_gop": (np.int32, shape),
        "run_slot": (np.int32, shape),
        "question_is_valid": (np.bool_, shape[:1]),
    }
    # What sequences do not look at is there, of another shape.
    unused = dict.fromkeys((*GopBatch.tensor_names(), *RUN_FIELDS), (np.int8, (1,)))
    buffer = Buffer.allocate(unused | shapes)
    buffer.memory.zero_()
    arrays = buffer.arrays()
    arrays["question_is_valid"][:] = valid
    for question, of_question in enumerate(runs):
        for index, (kind, gop, slot) in enumerate(of_question):
            arrays["run_kind"][question, index] = kind
            arrays["run_gop"][question, index] = gop
            arrays["run_slot"][question, index] = slot
    records = tuple(
        QARecord(
            question_id=f"file.json:{question}", video_id="v", subset="", data_source="", kind="oe", turns=(),
            json_path="", json_sha256="",
        )
        for question in range(len(runs))
    )  # fmt: skip
    info = BatchInfo(
        keys=(), video_ids=(), positions=(), skipped=(), residual_offset=0, residual_scale=1, state={}
    )
    return QABatch.from_buffer(buffer, info, records)


def make_given(seed: int, *, num_questions: int = 9, skip: float = 0.25) -> Given:
    """Questions about videos of 1 to 4 GOPs of up to 2 pictures and 3 Δ-frames, some shared, some skipped."""
    chance = random.Random(seed)
    num_gops, num_pictures, num_deltas = 7, 2, 3
    runs, valid, chats = [], [], []
    for _ in range(num_questions):
        is_valid = chance.random() >= skip
        of_question: list[Run] = []
        for gop in sorted(chance.sample(range(num_gops), chance.randint(1, 4))) if is_valid else []:
            kinds = [PICTURE] * chance.randint(1, num_pictures) + [DELTA] * chance.randint(0, num_deltas)
            chance.shuffle(kinds)
            of_question += [(kind, gop, kinds[:index].count(kind)) for index, kind in enumerate(kinds)]
        runs.append(of_question)
        valid.append(is_valid)
        before, after = chance.randint(1, 9), chance.randint(1, 30)
        ids = [chance.randint(0, 999) for _ in range(before)] + [IMAGE_INDEX]
        ids += [chance.randint(0, 999) for _ in range(after)]
        learned = [index > before and chance.random() < 0.5 for index in range(len(ids))]
        labels = [
            token_id if is_learned else IGNORE_INDEX
            for token_id, is_learned in zip(ids, learned, strict=True)
        ]
        chats.append(EncodedChat(token_ids=np.array(ids), labels=np.array(labels)))
    batch = make_batch(runs, valid, num_gops=num_gops, num_pictures=num_pictures, num_deltas=num_deltas)
    return Given(batch=batch, chats=chats, runs=runs, valid=valid)


def feature_table(batch: QABatch, layout: TokenLayout) -> dict[tuple[int, int, int, int], int]:
    """Row of flat_FD of (kind, gop, slot, token), by counting them off; the newline is (PAD, 0, 0, 0)."""
    num_gops, num_pictures = batch.gops.picture_mask.shape
    num_deltas = batch.gops.delta_mask.shape[1]
    names = [
        (PICTURE, gop, slot, token)
        for gop in range(num_gops)
        for slot in range(num_pictures)
        for token in range(layout.picture_tokens)
    ]
    names += [
        (DELTA, gop, slot, token)
        for gop in range(num_gops)
        for slot in range(num_deltas)
        for token in range(layout.delta_tokens)
    ]
    names.append((PAD, 0, 0, 0))
    return {name: row for row, name in enumerate(names)}


Token = tuple[int, int, int, int, int]
"""Text id, feature row, label, position, question: one column of a SequenceBatch."""


def slow_question(given: Given, question: int, layout: TokenLayout) -> list[Token]:
    table = feature_table(given.batch, layout)
    tokens: list[tuple[int, int, int]] = []
    chat = given.chats[question]
    for token_id, label in zip(chat.token_ids.tolist(), chat.labels.tolist(), strict=True):
        if token_id != IMAGE_INDEX:
            tokens.append((token_id, -1, label))
            continue
        for kind, gop, slot in given.runs[question]:
            count = layout.picture_tokens if kind == PICTURE else layout.delta_tokens
            tokens += [(0, table[kind, gop, slot, token], IGNORE_INDEX) for token in range(count)]
        if layout.newline == "one_token":
            tokens.append((0, table[PAD, 0, 0, 0], IGNORE_INDEX))
    return [(*token, position, question) for position, token in enumerate(tokens)]


def rows_of(sequences: SequenceBatch) -> list[list[Token]]:
    columns = (
        sequences.token_ids, sequences.visual_index, sequences.labels, sequences.position_ids, sequences.question
    )  # fmt: skip
    return [
        list(zip(*row, strict=True)) for row in zip(*(column.tolist() for column in columns), strict=True)
    ]


def padded(tokens: list[Token], width: int) -> list[Token]:
    return tokens + [(0, -1, IGNORE_INDEX, 0, -1)] * (width - len(tokens))


@pytest.mark.parametrize("newline", ["grid", "frame", "one_token", "none"])
@pytest.mark.parametrize("seed", range(4))
def test_rows_are_those_of_joined_lists(seed: int, newline: Newline) -> None:
    layout = TokenLayout(patches_per_side=3, delta_tokens=2, newline=newline)
    given = make_given(seed)
    sequences = build_sequences(given.batch, given.chats, layout)
    expected = [slow_question(given, question, layout) for question in np.flatnonzero(given.valid).tolist()]
    assert len(expected) > 1
    width = max(map(len, expected))
    assert rows_of(sequences) == [padded(tokens, width) for tokens in expected]
    assert num_features(given.batch.gops, layout) == len(feature_table(given.batch, layout))
    answers = sum(token[2] != IGNORE_INDEX for tokens in expected for token in tokens)
    assert sequences.num_answer_tokens == answers > 0


def slow_packing(lengths: dict[int, int], max_length: int) -> list[list[int]]:
    rows: list[list[int]] = []
    for question in sorted(lengths, key=lambda question: (-lengths[question], question)):
        for row in rows:
            if sum(lengths[other] for other in row) + lengths[question] <= max_length:
                row.append(question)
                break
        else:
            rows.append([question])
    return rows


@pytest.mark.parametrize("seed", range(6))
def test_packed_rows_hold_the_same_questions(seed: int) -> None:
    given = make_given(seed, num_questions=14)
    by_question = {
        question: slow_question(given, question, LAYOUT) for question in np.flatnonzero(given.valid).tolist()
    }
    lengths = {question: len(tokens) for question, tokens in by_question.items()}
    for max_length in (max(lengths.values()), 160, sum(lengths.values())):
        packing = slow_packing(lengths, max_length)
        expected = [[token for question in row for token in by_question[question]] for row in packing]
        sequences = build_sequences(given.batch, given.chats, LAYOUT, packing=True, max_length=max_length)
        width = max(map(len, expected))
        assert width <= max_length
        assert rows_of(sequences) == [padded(tokens, width) for tokens in expected]
        unpacked = build_sequences(given.batch, given.chats, LAYOUT)
        assert sequences.num_answer_tokens == unpacked.num_answer_tokens
    assert len(packing) == 1


@pytest.mark.parametrize("packing", [False, True])
def test_a_token_sees_its_own_question_up_to_itself(packing: bool) -> None:
    given = make_given(3)
    sequences = build_sequences(given.batch, given.chats, LAYOUT, packing=packing, max_length=120)
    mask = attention_mask_4d(sequences)
    question = sequences.question
    num_rows, length = question.shape
    assert mask.shape == (num_rows, 1, length, length)
    assert (question == -1).any()
    for row in range(num_rows):
        for query in range(length):
            seen = [key for key in range(query + 1) if question[row, key] == question[row, query]]
            assert mask[row, 0, query].nonzero().flatten().tolist() == seen
            assert query in seen


def test_a_packed_question_gets_what_it_gets_alone() -> None:
    given = make_given(5, skip=0.0)
    layout = TokenLayout(patches_per_side=3, delta_tokens=2, newline="one_token")
    torch.manual_seed(0)
    width = 8
    flat_FD = torch.randn(num_features(given.batch.gops, layout), width)
    text = torch.randn(1000, width)
    position = torch.randn(400, width)

    def outputs(sequences: SequenceBatch, dtype: torch.dtype) -> dict[int, torch.Tensor]:
        visual = sequences.visual_index
        inputs = torch.where(
            (visual >= 0)[..., None], flat_FD[visual.clamp(min=0)], text[sequences.token_ids]
        )
        inputs = (inputs + position[sequences.position_ids])[:, None]
        mask = attention_mask_4d(sequences, dtype)
        attended = torch.nn.functional.scaled_dot_product_attention(inputs, inputs, inputs, attn_mask=mask)[
            :, 0
        ]
        assert attended.isfinite().all()
        return {question: attended[sequences.question == question] for question in range(len(given.batch))}

    alone = outputs(build_sequences(given.batch, given.chats, layout), torch.bool)
    packed_sequences = build_sequences(given.batch, given.chats, layout, packing=True, max_length=300)
    assert len(packed_sequences.token_ids) < len(alone)
    for dtype in (torch.bool, torch.float32):
        packed = outputs(packed_sequences, dtype)
        for question in alone:
            torch.testing.assert_close(packed[question], alone[question])


@pytest.mark.parametrize("packing", [False, True])
def test_nothing_is_left_when_all_are_skipped(packing: bool) -> None:
    given = make_given(0, num_questions=3, skip=1.0)
    sequences = build_sequences(given.batch, given.chats, LAYOUT, packing=packing, max_length=100)
    assert sequences.token_ids.shape == sequences.question.shape == (0, 0)
    assert sequences.num_answer_tokens == 0
    assert attention_mask_4d(sequences).shape == (0, 1, 0, 0)


def test_real_layout_has_the_published_length() -> None:
    runs = [
        [(PICTURE, gop, 0) if slot == 0 else (DELTA, gop, slot - 1) for gop in range(8) for slot in range(8)]
    ]
    batch = make_batch(runs, [True], num_gops=8, num_pictures=1, num_deltas=7)
    chat = EncodedChat(
        token_ids=np.array([5, IMAGE_INDEX, 6]), labels=np.array([IGNORE_INDEX, IGNORE_INDEX, 6])
    )
    sequences = build_sequences(batch, [chat], TokenLayout())
    assert int((sequences.visual_index >= 0).sum()) == stream_length(8, 56, TokenLayout()) == 8 * 266
    assert sequences.token_ids.shape == (1, 8 * 266 + 2)
    assert sequences.visual_index[0, 1:-1].unique().numel() == 8 * 266


def test_dtypes_are_those_promised_and_survive_a_move() -> None:
    given = make_given(1)
    sequences = build_sequences(given.batch, given.chats, LAYOUT)
    moved = sequences.to("cpu")
    for tensors in (sequences, moved):
        assert tensors.question.dtype == torch.int32
        for tensor in (tensors.token_ids, tensors.visual_index, tensors.labels, tensors.position_ids):
            assert tensor.dtype == torch.int64
    assert rows_of(moved) == rows_of(sequences)


@pytest.mark.parametrize("packing", [False, True])
def test_too_long_a_question_fails(packing: bool) -> None:
    given = make_given(2, skip=0.0)
    lengths = [len(slow_question(given, question, LAYOUT)) for question in range(len(given.batch))]
    limit = sorted(lengths)[-2]  # one is longer
    longest = lengths.index(max(lengths))
    assert limit < max(lengths)
    with pytest.raises(ConfigurationError) as raised:
        build_sequences(given.batch, given.chats, LAYOUT, packing=packing, max_length=limit)
    assert str(raised.value).startswith(f"question file.json:{longest}: {max(lengths)} tokens (")
    assert str(raised.value).endswith(
        f"are more than max_length {limit}. Give the dataset a smaller max_gops or fewer key_frames,"
        " raise max_length, or set data.on_error to skip."
    )
    build_sequences(given.batch, given.chats, LAYOUT, packing=packing, max_length=max(lengths))
    with pytest.raises(ConfigurationError, match="; so are 8 others of its batch"):
        build_sequences(given.batch, given.chats, LAYOUT, packing=packing, max_length=1)


@pytest.mark.parametrize("packing", [False, True])
def test_too_long_a_question_can_be_left_out(packing: bool, caplog: pytest.LogCaptureFixture) -> None:
    given = make_given(2, skip=0.0)
    lengths = [len(slow_question(given, question, LAYOUT)) for question in range(len(given.batch))]
    limit = sorted(lengths)[-3]
    used = {question for question, length in enumerate(lengths) if length <= limit}
    assert len(used) < len(lengths)
    sequences = build_sequences(
        given.batch, given.chats, LAYOUT, packing=packing, max_length=limit, on_error="skip"
    )
    assert sequences.questions == used
    alone = [chat if question in used else None for question, chat in enumerate(given.chats)]
    expected = build_sequences(given.batch, alone, LAYOUT, packing=packing, max_length=limit)
    assert rows_of(sequences) == rows_of(expected)
    assert f"are more than max_length {limit}" in caplog.text


def test_a_skipped_question_is_never_too_long() -> None:
    given = make_given(2, skip=0.0)
    lengths = [len(slow_question(given, question, LAYOUT)) for question in range(len(given.batch))]
    longest = lengths.index(max(lengths))
    valid = given.batch.question_is_valid.clone()
    valid[longest] = False
    batch = replace(given.batch, question_is_valid=valid)
    sequences = build_sequences(batch, given.chats, LAYOUT, max_length=sorted(lengths)[-2])
    assert set(sequences.question.flatten().tolist()) - {-1} == set(range(len(lengths))) - {longest}


def test_packing_without_a_length_fails() -> None:
    given = make_given(0)
    with pytest.raises(ConfigurationError, match=r"no max_length to pack into. Give max_length"):
        build_sequences(given.batch, given.chats, LAYOUT, packing=True)
