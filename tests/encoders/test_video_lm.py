"""VideoLM against slow references: a question at a time, a GOP at a time, plain Qwen2."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from cope_prep.encoders.delta_encoder import DeltaEncoder
from cope_prep.encoders.token_stream import TokenLayout, picture_features, runs_of_question
from cope_prep.encoders.video_lm import VideoLM
from cope_prep.encoders.vision_tower import VisionTower
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader import GopFilter, MixPart, QADataset, TokenCounts, to_device
from cope_prep.pipeline.loader.batch import PICTURE, QABatch
from cope_prep.schemas.errors import ConfigurationError

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
import small_models

COUNTS = TokenCounts(picture=6, delta=3)
IGNORED = -100


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with small_models.one_thread():
        yield


def questions(source: Any, *, batch_size: int = 6, **options: Any) -> QABatch:
    options = {"key_frames": 2, "tokens": COUNTS, "last": "wrap", **options}
    return next(iter(QADataset(source, batch_size=batch_size, **options)))


@pytest.fixture(scope="module")
def batch(small: Layout) -> QABatch:
    """6 questions about videos of 1 to 4 GOPs, two of them about the same."""
    found = questions(small.dataset, questions_per_visit=2)
    videos = [question.video_id for question in found.questions]
    assert len(set(videos)) < len(videos)
    assert len({int(kinds.count_nonzero()) for kinds in found.run_kind}) > 1
    return found


@pytest.fixture(scope="module")
def tall(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """4 videos of 32 x 96."""
    return small_models.make_tall(media, tmp_path_factory.mktemp("tall"))


def slow_loss(model: VideoLM, batch: QABatch, question: int) -> torch.Tensor:
    """Of one question: token by token in Python, then transformers' own loss."""
    flat = model.features(to_device(batch, "cpu"))
    num_pictures, num_deltas = batch.gops.picture_mask.shape[1], batch.gops.delta_mask.shape[1]
    first_delta = len(batch.gops) * num_pictures * 6
    table = model.language_model.get_input_embeddings().weight
    chat = small_models.encode_chat(batch.questions[question].turns, small_models.TOKENIZER, system="S")
    rows, labels = [], []
    for token, label in zip(chat.token_ids.tolist(), chat.labels.tolist(), strict=True):
        if token >= 0:
            rows.append(table[token])
            labels.append(label)
            continue
        for index in range(len(runs_of_question(batch, question))):
            gop, slot = int(batch.run_gop[question, index]), int(batch.run_slot[question, index])
            if int(batch.run_kind[question, index]) == PICTURE:
                start, count = (gop * num_pictures + slot) * 6, 6
            else:
                start, count = first_delta + (gop * num_deltas + slot) * 3, 3
            rows += flat[start : start + count]
            labels += [IGNORED] * count
    result = model.language_model(inputs_embeds=torch.stack(rows)[None], labels=torch.tensor([labels]))
    return result.loss * sum(label != IGNORED for label in labels)


def run(model: VideoLM, batch: QABatch, **options: Any) -> torch.Tensor:
    sequences = small_models.sequences(batch, **options)
    return model(
        gops=to_device(batch, "cpu"), sequences=sequences, is_packed=options.get("packing", False)
    ).loss_sum


def gradients(model: VideoLM, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Some are 0 but for rounding, as those of the keys' biases are: their measure is the largest of all."""
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in found.items():
        scale = float(expected[name].abs().max())
        atol = 1e-3 * scale + 1e-6 * largest
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=atol)


def test_rows_of_the_feature_table(batch: QABatch) -> None:
    model, gops = small_models.video_lm(), to_device(batch, "cpu")
    with torch.no_grad():
        flat = model.features(gops)
        delta = model.delta_projector(model.delta_encoder.encode(gops))
        num_gops, num_pictures = batch.gops.picture_mask.shape
        num_deltas = batch.gops.delta_mask.shape[1]
        num_rows = num_gops * (num_pictures * 6 + num_deltas * 3) + 1
        assert flat.shape == (num_rows, 48)
        assert torch.equal(flat[-1], model.image_newline)
        row = 0
        for gop in range(num_gops):
            for picture in range(num_pictures):
                expected = torch.zeros(6, 48)
                if batch.gops.picture_mask[gop, picture]:
                    patches = model.projector(model.vision_tower(gops.rgb[gop, picture][None]))
                    expected = picture_features(patches, model.image_newline, model.layout)[0]
                    assert torch.equal(expected[2], model.image_newline)
                torch.testing.assert_close(flat[row : row + 6], expected)
                row += 6
        for gop in range(num_gops):
            for frame in range(num_deltas):
                torch.testing.assert_close(flat[row : row + 3], delta[gop, frame])
                row += 3
        assert row == num_rows - 1


def test_loss_is_that_of_qwen2_one_question_at_a_time(batch: QABatch) -> None:
    model = small_models.video_lm()
    loss = run(model, batch)
    found = gradients(model, loss)
    slow = torch.stack([slow_loss(model, batch, question) for question in range(len(batch))])
    torch.testing.assert_close(loss, slow.sum())
    expected = gradients(model, slow.sum())
    assert found.keys() == expected.keys() == dict(model.named_parameters()).keys()
    assert_same_gradients(found, expected)
    assert found["delta_encoder.motion.mlp.0.weight"].abs().max() > 0
    assert found["vision_tower.model.embeddings.patch_embedding.weight"].abs().max() > 0


def test_packed_gives_the_same_loss_and_gradients(batch: QABatch) -> None:
    model = small_models.video_lm()
    packed = small_models.sequences(batch, packing=True, max_length=500)
    assert len(packed.token_ids) < len(batch)
    expected = gradients(model, plain := run(model, batch))
    found = gradients(model, loss := run(model, batch, packing=True, max_length=500))
    torch.testing.assert_close(loss, plain)
    assert len(found) > 50
    assert_same_gradients(found, expected)


def test_a_shared_gop_is_encoded_once(small: Layout) -> None:
    shared = questions(small.dataset, batch_size=3, questions_per_visit=3, shuffle=None)
    assert len({question.video_id for question in shared.questions}) == 1
    model = small_models.video_lm()
    seen: list[int] = []
    model.vision_tower.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    with torch.no_grad():
        together = run(model, shared)
        assert sum(seen) == int(shared.gops.picture_mask.sum()) > 0
        dataset = QADataset(
            small.dataset, batch_size=1, key_frames=2, tokens=COUNTS, questions_per_visit=3, shuffle=None
        )
        apart = [run(model, one) for one, _ in zip(dataset, range(3), strict=False)]
    torch.testing.assert_close(together, torch.stack(apart).sum())


def test_two_sizes_in_a_batch_are_each_as_alone(small: Layout, tall: Layout) -> None:
    short = GopFilter(max_duration_s=2)
    parts = [MixPart(dataset=layout.dataset, filter=short) for layout in (small, tall)]
    mixed = questions(parts, batch_size=8)
    assert len(mixed.gops.size_px.unique(dim=0)) == 2
    model = small_models.video_lm()
    losses = {}
    with torch.no_grad():
        for part in parts:
            for one in QADataset(part, batch_size=1, key_frames=2, tokens=COUNTS):
                losses[one.questions[0].question_id] = run(model, one)
        expected = sum(losses[question.question_id] for question in mixed.questions)
        torch.testing.assert_close(run(model, mixed), expected)
        pictures_only = questions(parts, batch_size=8, key_frames=8)
        assert pictures_only.gops.delta_mask.shape[1] == 0
        assert run(model, pictures_only).isfinite()


def test_delta_of_zero_or_of_another(batch: QABatch) -> None:
    model, gops = small_models.video_lm(), to_device(batch, "cpu")
    with torch.no_grad():
        given, zero, swapped = (model.features(gops, delta=mode) for mode in ("given", "zero", "swap"))
    num_gops, num_deltas = batch.gops.delta_mask.shape
    first = num_gops * batch.gops.picture_mask.shape[1] * 6
    for other in (zero, swapped):
        assert torch.equal(other[:first], given[:first])
        assert torch.equal(other[-1], given[-1])
    assert not zero[first:-1].any()
    of_gop = given[first:-1].reshape(num_gops, num_deltas * 3, 48)
    assert torch.equal(swapped[first:-1].reshape(of_gop.shape), of_gop[[-1, *range(num_gops - 1)]])
    assert not torch.equal(swapped, given)


def test_swap_of_a_single_gop_fails(small: Layout) -> None:
    alone = questions(small.dataset, batch_size=1, max_gops=1)
    with pytest.raises(ValueError, match="two GOPs or more"):
        small_models.video_lm().features(to_device(alone, "cpu"), delta="swap")


@pytest.mark.parametrize("newline", ["frame", "one_token", "none"])
def test_other_newlines(small: Layout, newline: Any) -> None:
    layout = TokenLayout(patches_per_side=3, delta_tokens=3, newline=newline)
    found = questions(small.dataset, batch_size=3, tokens=layout.counts())
    model = small_models.video_lm(layout=layout)
    loss = run(model, found, layout=layout)
    grads = gradients(model, loss)
    assert grads["image_newline"].any() == (newline != "none")


@pytest.mark.parametrize("packing", [False, True])
def test_batch_without_a_readable_question_gives_zero_gradients(small: Layout, packing: bool) -> None:
    """So that a rank with nothing to learn neither fails nor hangs the others."""
    nothing = small_models.without(questions(small.dataset, batch_size=2), [0, 1])  # its own, to be changed
    for mask in (nothing.gops.picture_mask, nothing.gops.delta_mask):
        assert mask.any()
    model = small_models.video_lm().train()
    for is_read in (True, False):
        gops = to_device(nothing, "cpu")
        if not is_read:
            gops.batch.picture_mask[:], gops.batch.delta_mask[:], gops.batch.size_px[:] = False, False, 0
        sequences = small_models.sequences(nothing, packing=packing, max_length=500)
        assert sequences.token_ids.shape == (0, 0)
        result = model(gops=gops, sequences=sequences, is_packed=packing)
        found = gradients(model, result.loss_sum)
        assert result.loss_sum.item() == 0
        assert found.keys() == dict(model.named_parameters()).keys()
        assert not any(gradient.any() for gradient in found.values())


def test_a_skipped_question_leaves_the_others_as_they_are(batch: QABatch) -> None:
    model = small_models.video_lm()
    with torch.no_grad():
        slow = [slow_loss(model, batch, question) for question in (0, 2, 3, 4)]
        found = run(model, small_models.without(batch, [1, 5]))
    torch.testing.assert_close(found, torch.stack(slow).sum())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layout": TokenLayout(patches_per_side=4, delta_tokens=3)},
            r"is 4, but the vision tower has 3 x 3",
        ),
        ({"layout": TokenLayout(patches_per_side=3)}, r"is 8, but the Δ-encoder makes 3"),
        (
            {"delta_encoder": DeltaEncoder(small_models.DELTA.model_copy(update={"output_width": 16}))},
            r"is 16, but the vision tower's tokens have 32",
        ),
    ],
)
def test_parts_that_do_not_fit_fail(change: dict[str, Any], message: str) -> None:
    parts: dict[str, Any] = {
        "vision_tower": VisionTower(small_models.siglip().config),
        "delta_encoder": DeltaEncoder(small_models.DELTA),
        "language_model": small_models.qwen2(),
        "layout": small_models.LAYOUT,
    }
    VideoLM(**parts)
    with pytest.raises(ConfigurationError, match=message):
        VideoLM(**(parts | change))
