"""Generation with a cache against greedy decoding without one, and what exact match makes of it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cope_prep.encoders.chat import EncodedChat, encode_question
from cope_prep.encoders.evaluate import Tally, is_exact, mean_over_ranks
from cope_prep.encoders.sequences import SequenceBatch, build_sequences
from cope_prep.encoders.video_lm import VideoLM
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader import QADataset, TokenCounts, to_device
from cope_prep.pipeline.loader.batch import QABatch

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
import small_models

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_NEW = 6
NO_END = -1


@pytest.fixture(scope="module")
def batch(small: Layout) -> QABatch:
    counts = TokenCounts(picture=6, delta=3)
    return next(iter(QADataset(small.dataset, batch_size=4, key_frames=2, tokens=counts)))


def asked(batch: QABatch) -> list[EncodedChat]:
    """Questions of unequal lengths."""
    return [
        encode_question("why? " * (3 * index + 1), small_models.TOKENIZER, system="S")
        for index in range(len(batch))
    ]


def sequences(batch: QABatch, chats: list[EncodedChat], **options: Any) -> SequenceBatch:
    return build_sequences(batch, chats, small_models.LAYOUT, **options)


def with_answers(batch: QABatch, answers: torch.Tensor) -> list[EncodedChat]:
    found = []
    for chat, answer in zip(asked(batch), answers.numpy(), strict=True):
        labels = np.concatenate((np.full(len(chat), -100), answer))
        found.append(EncodedChat(token_ids=np.concatenate((chat.token_ids, answer)), labels=labels))
    return found


@torch.no_grad()
def greedy(model: VideoLM, batch: QABatch) -> torch.Tensor:
    """[Q, NUM_NEW]: one question at a time, the whole of it anew for each token."""
    given = sequences(batch, asked(batch))
    embeds_RLD = model.embed(to_device(batch, "cpu"), given)
    table = model.language_model.get_input_embeddings().weight
    rows = []
    for row in range(len(batch)):
        inputs = embeds_RLD[row, : int((given.question[row] >= 0).sum())]
        chosen: list[int] = []
        for _ in range(NUM_NEW):
            logits = model.language_model(inputs_embeds=inputs[None], use_cache=False).logits[0, -1]
            chosen.append(int(logits.argmax()))
            inputs = torch.cat((inputs, table[chosen[-1:]]))
        rows.append(chosen)
    return torch.tensor(rows)


def test_cache_and_padding_change_no_token(batch: QABatch) -> None:
    model = small_models.video_lm()
    given = sequences(batch, asked(batch))
    lengths = (given.question >= 0).sum(dim=1)
    assert len(set(lengths.tolist())) == len(batch)
    found = model.generate(to_device(batch, "cpu"), given, max_new_tokens=NUM_NEW, eos_token_id=NO_END)
    expected = greedy(model, batch)
    assert torch.equal(found, expected)
    assert len({tuple(row) for row in expected.tolist()}) > 1  # it looks at what it is asked


def test_generation_ends_at_the_given_token(batch: QABatch) -> None:
    model = small_models.video_lm()
    expected = greedy(model, batch)
    end = int(expected[0, 2])
    found = model.generate(
        to_device(batch, "cpu"),
        sequences(batch, asked(batch)),
        max_new_tokens=NUM_NEW,
        eos_token_id=end,
        pad_token_id=7,
    )
    for row, whole in zip(found.tolist(), expected.tolist(), strict=True):
        stop = whole.index(end) + 1 if end in whole else NUM_NEW
        assert row[:stop] == whole[:stop]
        assert set(row[stop:]) <= {7}


def test_generation_ends_where_the_language_model_does(batch: QABatch) -> None:
    """Without an argument, by its configuration; and what else that says of generation does not count."""
    model = small_models.video_lm()
    expected = greedy(model, batch)
    end = int(expected[0, 2])
    weights = model.language_model.state_dict()
    model.language_model = small_models.qwen2(eos_token_id=[300, end])
    model.language_model.load_state_dict(weights)
    settings = model.language_model.generation_config
    assert settings is not None
    settings.repetition_penalty, settings.do_sample, settings.top_k = 2.0, True, 3
    given = sequences(batch, asked(batch))
    found = model.generate(to_device(batch, "cpu"), given, max_new_tokens=NUM_NEW, pad_token_id=7)
    num_ended = 0
    for row, whole in zip(found.tolist(), expected.tolist(), strict=True):
        stop = whole.index(end) + 1 if end in whole else NUM_NEW
        assert row[:stop] == whole[:stop]
        assert set(row[stop:]) <= {7}
        num_ended += stop < NUM_NEW
    assert num_ended
    for chosen in (NO_END, [NO_END]):  # an argument still is what counts
        found = model.generate(
            to_device(batch, "cpu"), given, max_new_tokens=NUM_NEW, eos_token_id=chosen, pad_token_id=7
        )
        assert torch.equal(found, expected)


@pytest.mark.parametrize("packing", [False, True])
def test_exact_match_is_what_generation_would_give(batch: QABatch, packing: bool) -> None:
    """Right answers are those that were generated; one wrong token at any place is wrong."""
    model, gops = small_models.video_lm(), to_device(batch, "cpu")
    answers = greedy(model, batch)
    for place, row in ((None, None), (0, 1), (NUM_NEW - 1, 2), (3, 0)):
        changed = answers.clone()
        if place is not None and row is not None:
            changed[row, place] = (changed[row, place] + 1) % 256
        given = sequences(batch, with_answers(batch, changed), packing=packing, max_length=1000)
        right = is_exact(model, gops, given, num_questions=len(batch), is_packed=packing)
        assert right.tolist() == [index != row for index in range(len(batch))]


def test_exact_match_of_delta_modes(batch: QABatch) -> None:
    """The answers with Δ are not those without: the mode reaches the features."""
    model, gops = small_models.video_lm(), to_device(batch, "cpu")
    given = sequences(batch, asked(batch))
    zero = model.generate(gops, given, max_new_tokens=NUM_NEW, eos_token_id=NO_END, delta="zero")
    answered = sequences(batch, with_answers(batch, zero))
    assert is_exact(model, gops, answered, num_questions=len(batch), delta="zero").all()
    features = model.features(gops), model.features(gops, delta="zero")
    assert not torch.equal(*features)


def test_no_readable_question_is_no_error(batch: QABatch) -> None:
    nothing = small_models.without(batch, list(range(len(batch))))
    given = sequences(nothing, asked(batch))
    right = is_exact(small_models.video_lm(), to_device(nothing, "cpu"), given, num_questions=len(batch))
    assert len(right) == len(batch)


def test_shares_count_a_question_once_and_by_kind() -> None:
    tally = Tally()
    for question_id, name, is_right in (
        ("1", "a", True),
        ("2", "a", False),
        ("3", "b", True),
        ("2", "a", False),  # the last batch of an epoch is filled up from its beginning
        ("1", "a", True),
    ):
        tally.add(question_id, name, is_right)
    assert tally.shares() == {"a": 0.5, "all": pytest.approx(2 / 3), "b": 1.0}
    assert Tally().shares() == {}


def test_what_several_ranks_have_seen_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [{"2": ("a", False), "4": ("b", False)}, (({"loss": 2.0, "only": 1.0}, 4.0))]
    ranks = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        get_world_size=lambda: 2,
        all_gather_object=lambda values, value: values.__setitem__(slice(None), [value, others.pop(0)]),
    )
    monkeypatch.setattr("cope_prep.encoders.evaluate.dist", ranks)
    tally = Tally()
    tally.add("1", "a", True)
    tally.add("2", "a", False)
    assert tally.shares() == {"a": 0.5, "all": pytest.approx(1 / 3), "b": 0.0}
    assert mean_over_ranks({"loss": 4.0}, 8.0) == {"loss": 0.5, "only": pytest.approx(1 / 12)}


def test_mean_of_nothing_is_nothing() -> None:
    assert mean_over_ranks({}, 0.0) == {}
    assert mean_over_ranks({"loss": 3.0}, 2.0) == {"loss": 1.5}


def test_times_are_not_needed_to_generate(batch: QABatch) -> None:
    """A batch whose questions share their video: each row has the same features at its own place."""
    same = replace(
        batch,
        **{
            name: getattr(batch, name)[[0] * len(batch)]
            for name in ("run_kind", "run_gop", "run_slot", "run_s", "run_tokens")
        },
    )
    model = small_models.video_lm()
    one = encode_question("why?", small_models.TOKENIZER, system="S")
    given = sequences(same, [one] * len(batch))
    found = model.generate(to_device(same, "cpu"), given, max_new_tokens=3, eos_token_id=NO_END)
    assert len({tuple(row) for row in found.tolist()}) == 1
