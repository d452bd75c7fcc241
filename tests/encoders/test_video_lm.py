"""VideoLM against slow references: a question at a time, a GOP at a time, plain Qwen2."""

from __future__ import annotations

import sys
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
from cope_prep.pipeline.loader import GopFilter, MixPart, QADataset, to_device
from cope_prep.pipeline.loader.batch import PICTURE, QABatch
from cope_prep.schemas.errors import ConfigurationError

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
import small_models
from small_models import COUNTS, questions

pytestmark = pytest.mark.usefixtures("one_thread")

IGNORED = -100
LONG = GopFilter(min_duration_s=2)
"""Videos of several GOPs."""


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


@pytest.mark.parametrize("num_sizes", [0, 1, 2])
def test_the_tower_is_called_once_whatever_the_sizes(num_sizes: int, small: Layout, tall: Layout) -> None:
    """Ranks of FSDP2 gather its blocks together: those with fewer sizes, or no picture, must not call it less."""
    parts = [MixPart(dataset=layout.dataset) for layout in (small, tall)]
    found = questions(parts[: max(num_sizes, 1)], batch_size=8)
    assert len(found.gops.size_px.unique(dim=0)) == max(num_sizes, 1)
    gops = to_device(found, "cpu")
    if num_sizes == 0:
        gops.batch.picture_mask[:], gops.batch.delta_mask[:] = False, False
    model = small_models.video_lm()
    calls: list[int] = []
    model.vision_tower.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    with torch.no_grad():
        model.features(gops)
    assert calls == [max(int(gops.batch.picture_mask.sum()), 1)]


@pytest.mark.parametrize("empty", [0, 1])
def test_bf16_with_a_size_that_has_no_delta_frame(empty: int, small: Layout, tall: Layout) -> None:
    """As of a GOP of one anchor, which is its I-frame."""
    parts = [MixPart(dataset=layout.dataset) for layout in (small, tall)]
    gops = to_device(questions(parts, batch_size=8), "cpu")
    sizes = gops.batch.size_px.unique(dim=0)
    assert len(sizes) == 2
    is_empty = (gops.batch.size_px == sizes[empty]).all(dim=1)
    assert gops.batch.delta_mask[is_empty].any()
    model = small_models.video_lm()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model.delta_encoder.encode(gops)
        gops.batch.delta_mask[is_empty] = False
        found = model.delta_encoder.encode(gops)
    # Some of autocast's devices promote where others fail: what is not there must not be of another type.
    assert found.dtype == expected.dtype == torch.bfloat16
    assert not found[is_empty].any()
    assert found[~is_empty].any()
    assert torch.equal(found[~is_empty], expected[~is_empty])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model.features(gops)
    found = gradients(model, features.float().square().sum())
    assert {name for name, _ in model.named_parameters() if name.startswith("delta_")} <= found.keys()
    assert all(gradient.isfinite().all() for gradient in found.values())


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
