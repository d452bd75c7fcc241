"""Stage 2 as a run: what is learned, which parts change, and that an interruption changes nothing."""

from __future__ import annotations

import gc
import re
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from cope_prep.encoders.build import build_video_lm
from cope_prep.encoders.chat import video_prompt
from cope_prep.encoders.checkpoint import find_checkpoints
from cope_prep.encoders.data import ExpectedGeometry
from cope_prep.encoders.evaluate import Tally
from cope_prep.encoders.finetune import FinetuneConfig, FinetuneTask, GroupConfig, GroupsConfig
from cope_prep.encoders.pretrain import PretrainTask
from cope_prep.encoders.program import run_training
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader import QADataset
from cope_prep.pipeline.loader.batch import DELTA
from cope_prep.schemas.errors import ConfigurationError, FormatError

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
import small_models

pytestmark = pytest.mark.usefixtures("one_thread")

FROZEN = GroupConfig(train=False)


def run(small: Layout, models: Path, output: Path, **values: Any) -> FinetuneConfig:
    config = small_models.finetune_config(small, models, output, **values)
    run_training(config, FinetuneTask)
    return config


def task_of(small: Layout, models: Path, output: Path, **values: Any) -> FinetuneTask:
    return FinetuneTask(small_models.finetune_config(small, models, output, **values))


def test_loss_falls_and_answers_become_exact(small: Layout, models: Path, tmp_path: Path) -> None:
    """Of three kinds of question, each has its answer: the question alone says it."""
    training = small_models.training(max_steps=40, eval_every=20, batch_size=8, micro_batch_size=8, lr=1e-2)
    data = small_models.data(small)
    run(
        small, models, tmp_path, training=training, eval_data=data, eval_batch_size=5, eval_batches="all",
        max_gops=1, time_prompt=False, system="",
    )  # fmt: skip
    lines = small_models.lines(tmp_path)
    assert len(lines) == 40
    assert lines[-1]["loss"] < lines[0]["loss"] / 4
    assert lines[-1]["token_accuracy"] > lines[0]["token_accuracy"] + 0.3
    assert [line["step"] for line in lines if "eval/accuracy/all" in line] == [20, 40]
    shares = {name: value for name, value in lines[-1].items() if name.startswith("eval/")}
    sources = ["0_30_s_academic_v0_1", "30_60_s_youtube_v0_1"]
    assert shares.keys() == {f"eval/accuracy/{name}" for name in (*sources, "all")}
    # 24 questions of each source, though 48 in batches of 5 repeat 2.
    assert shares["eval/accuracy/all"] == pytest.approx(
        sum(shares[f"eval/accuracy/{name}"] for name in sources) / 2
    )


def test_answers_alone_are_learned(small: Layout, models: Path, tmp_path: Path) -> None:
    task = task_of(small, models, tmp_path)
    batch = next(iter(task.dataset))
    found = task.sequences(batch)
    for row, question in enumerate(batch.questions):
        answer = [*question.turns[1][1].encode()]
        learned = found.labels[row] != -100
        text = small_models.TOKENIZER.decode(found.labels[row][learned])
        assert text == question.turns[1][1] + "<|im_end|>"
        assert int(learned.sum()) == len(answer) + 1
        assert torch.equal(found.labels[row][learned], found.token_ids[row][learned])
        assert not learned[found.visual_index[row] >= 0].any()
        # All at once, at the end, behind the question; the newline behind <|im_end|> is not learned.
        places = learned.nonzero().flatten().tolist()
        assert places == list(range(places[0], places[0] + len(places)))
        assert int((found.question[row] >= 0).sum()) == places[-1] + 2
    prepared = task.prepare(batch, torch.device("cpu"))
    assert prepared.weight == float((found.labels != -100).sum())
    assert prepared.num_samples == len(batch)


@pytest.mark.parametrize("is_told", [True, False])
def test_time_prompt_says_length_and_times(
    small: Layout, models: Path, tmp_path: Path, is_told: bool
) -> None:
    task = task_of(small, models, tmp_path, time_prompt=is_told)
    batch = next(iter(task.dataset))
    found = task.sequences(batch)
    num_seen = 0
    for row, question in enumerate(batch.questions):
        of_video = [index for index, name in enumerate(batch.info.video_ids) if name == question.video_id]
        gops = batch.gops
        times = sorted(
            time for index in of_video
            for time in (*gops.picture_s[index][gops.picture_mask[index]].tolist(),
                         *gops.delta_s[index][gops.delta_mask[index]].tolist())
        )  # fmt: skip
        assert len(times) > 1
        is_text = (found.visual_index[row] < 0) & (found.question[row] >= 0)
        text = small_models.TOKENIZER.decode(found.token_ids[row][is_text])
        prompt = video_prompt(float(batch.duration_s[row]), times)
        assert (prompt in text) == is_told
        assert ("lasts for" in text) == is_told
        num_seen += 1
    assert num_seen == 4


def test_without_delta_frames_their_times_are_not_told(small: Layout, models: Path, tmp_path: Path) -> None:
    model = small_models.model_config(models, delta_frames=False)
    task = task_of(small, models, tmp_path, model=model)
    batch = next(iter(task.dataset))
    assert (batch.run_kind == DELTA).any()
    found = task.sequences(batch)
    num_pictures = int((batch.run_kind[0] == 1).sum())
    assert int((found.visual_index[0] >= 0).sum()) == num_pictures * task.layout.picture_tokens
    text = small_models.TOKENIZER.decode(found.token_ids[0][found.visual_index[0] < 0])
    assert f"and {num_pictures} frames are uniformly sampled" in text


@pytest.mark.parametrize(
    ("frozen", "prefixes"),
    [
        (("vision_tower", "language_model"), ("vision_tower.", "language_model.")),
        (("projector", "delta"), ("projector.", "image_newline", "delta_encoder.", "delta_projector.")),
    ],
)
def test_frozen_parts_stay_and_others_change(
    small: Layout, models: Path, tmp_path: Path, frozen: tuple[str, ...], prefixes: tuple[str, ...]
) -> None:
    groups = GroupsConfig(**dict.fromkeys(frozen, FROZEN))
    config = run(small, models, tmp_path, groups=groups, training=small_models.training(max_steps=2, lr=0.01))
    torch.manual_seed(config.training.seed)
    before = build_video_lm(config.model).state_dict()
    after = load_file(find_checkpoints(tmp_path)[-1] / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not [name for name in changed if name.startswith(prefixes)]  # BatchNorm's statistics neither
    parts = {name.split(".")[0] for name in before}
    assert {name.split(".")[0] for name in changed} == {
        part for part in parts if not any(prefix.startswith(part) for prefix in prefixes)
    }


def test_learning_rates_by_group(small: Layout, models: Path, tmp_path: Path) -> None:
    groups = GroupsConfig(delta=GroupConfig(lr_scale=3.0), projector=FROZEN)
    training = small_models.training(max_steps=1, lr=1e-3)
    run(small, models, tmp_path, groups=groups, training=training)
    (line,) = small_models.lines(tmp_path)
    rates = {name: value for name, value in line.items() if name.startswith("lr/")}
    assert rates == {
        "lr/vision_tower": pytest.approx(2e-4),
        "lr/delta": pytest.approx(3e-3),
        "lr/language_model": pytest.approx(1e-3),
    }


def test_nothing_to_train_fails(small: Layout, models: Path, tmp_path: Path) -> None:
    groups = GroupsConfig(vision_tower=FROZEN, projector=FROZEN, delta=FROZEN, language_model=FROZEN)
    with pytest.raises(ValidationError, match="groups train nothing"):
        task_of(small, models, tmp_path, groups=groups)
    model = small_models.model_config(models, delta_frames=False)
    alone = groups.model_copy(update={"delta": GroupConfig()})
    with pytest.raises(ValidationError, match=r"groups train delta alone, and model\.delta_frames = false"):
        task_of(small, models, tmp_path, groups=alone, model=model)


@pytest.mark.parametrize("given", [0, -1, "some", True])
def test_number_of_held_out_batches_that_is_none_fails(
    given: Any, small: Layout, models: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match='must be a number of 1 or more, or "all"') as raised:
        task_of(small, models, tmp_path, eval_batches=given)
    assert raised.value.error_count() == 1


def test_packing_without_a_length_fails(small: Layout, models: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="packing needs max_length"):
        task_of(small, models, tmp_path, packing=True)


def test_record_that_is_no_conversation_fails_or_is_skipped(
    small: Layout, models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One of a million such records must not end a run."""
    copied = small_models.copy_dataset(small, tmp_path)
    bad = small_models.ask_for_two_pictures(copied)
    training = small_models.training(max_steps=6, batch_size=8, micro_batch_size=8, lr=1e-5)
    values: dict[str, Any] = {"training": training, "time_prompt": False}
    with pytest.raises(FormatError, match=f"{re.escape(bad)}: has 2 <image>"):
        run(copied, models, tmp_path / "raise", data=small_models.data(copied), **values)
    data = small_models.data(copied, on_error="skip")
    run(copied, models, tmp_path / "skip", data=data, eval_data=data, eval_batches="all", **values)
    last = small_models.lines(tmp_path / "skip")[-1]
    assert last["samples"] == 47
    assert sum(line["num_skipped"] for line in small_models.lines(tmp_path / "skip")) == 1
    assert f"left out: {bad}: has 2 <image>" in caplog.text


def test_questions_of_one_id_are_all_counted() -> None:
    """An id is a place in a file; two datasets of a mix may have files of one name."""
    tally = Tally()
    for video_id, is_right in (("a", True), ("b", False), ("b", False)):
        tally.add(("qa.json:0", video_id), "source", is_right)
    assert tally.shares() == {"source": 0.5, "all": 0.5}


@pytest.mark.parametrize("packing", [False, True])
def test_interrupted_is_as_not_interrupted(
    small: Layout, models: Path, tmp_path: Path, packing: bool
) -> None:
    values: dict[str, Any] = {
        "training": small_models.training(
            max_steps=4, checkpoint_every=2, warmup_steps=2, micro_batch_size=2
        ),
        "packing": packing,
        "max_length": 2000 if packing else None,
    }
    run(small, models, tmp_path / "whole", **values)

    class Interrupted(FinetuneTask):
        num_left = 5

        def prepare(self, *arguments: Any) -> Any:
            if self.num_left == 0:
                raise OSError("unplugged")
            self.num_left -= 1
            return super().prepare(*arguments)

    config = small_models.finetune_config(small, models, tmp_path / "cut", **values)
    with pytest.raises(OSError, match="unplugged"):
        run_training(config, Interrupted)
    assert [path.name for path in find_checkpoints(tmp_path / "cut")] == ["step-00000002"]
    run_training(config, FinetuneTask)
    first, second = (find_checkpoints(tmp_path / name)[-1] for name in ("whole", "cut"))
    for name in ("model.safetensors", "optimizer.safetensors"):
        expected, found = load_file(first / name), load_file(second / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_skipped_questions_weigh_nothing(small: Layout, models: Path, tmp_path: Path) -> None:
    """Also a batch of which no question could be read."""
    copied = small_models.copy_dataset(small, tmp_path)
    key = small_models.damage(copied)
    data = small_models.data(copied, on_error="skip", shuffle=None)
    training = small_models.training(max_steps=48, batch_size=1, micro_batch_size=1, lr=1e-5)
    run(copied, models, tmp_path / "run", data=data, training=training, time_prompt=False)
    lost = sum(key in batch.info.keys for batch in QADataset(small.dataset))
    assert lost == 3  # all questions of a video
    last = small_models.lines(tmp_path / "run")[-1]
    assert (last["samples"], last["num_empty_steps"]) == (45, 3)


def test_other_data_or_architecture_fails(small: Layout, models: Path, tmp_path: Path) -> None:
    data = small_models.data(small, expect=ExpectedGeometry(residual="int8"))
    with pytest.raises(ConfigurationError, match=r"has residual dct, the configuration expects int8"):
        run(small, models, tmp_path / "a", data=data)
    run(small, models, tmp_path / "b", training=small_models.training(max_steps=1))
    wide = small_models.model_config(
        models, delta_encoder=small_models.DELTA.model_copy(update={"num_layers": 2})
    )
    with pytest.raises(
        ConfigurationError, match=r"was begun with model\.delta_encoder\.num_layers 1 \(here 2\)"
    ):
        run(small, models, tmp_path / "b", model=wide, training=small_models.training(max_steps=2))


def test_stage_1_of_another_geometry_fails(small: Layout, models: Path, tmp_path: Path) -> None:
    stage1 = small_models.pretrain_config(
        small, models, tmp_path / "1", training=small_models.training(max_steps=1)
    )
    run_training(stage1, PretrainTask)
    model = small_models.model_config(models, stage1=str(tmp_path / "1"))
    task = task_of(small, models, tmp_path / "2", model=model)
    stored = load_file(find_checkpoints(tmp_path / "1")[-1] / "model.safetensors")
    for name, value in task.model.delta_encoder.state_dict().items():
        assert torch.equal(value, stored[f"delta_encoder.{name}"])
    merged = small_models.data(small, window=8)
    with pytest.raises(ConfigurationError, match=r"/1: was trained on data with window 4 \(here 8\)"):
        task_of(small, models, tmp_path / "3", model=model, data=merged)
    task_of(small, models, tmp_path / "3", model=model, data=merged, allow_other_geometry=True)


def test_vocabulary_that_is_too_small_fails(small: Layout, models: Path, tmp_path: Path) -> None:
    small_models.qwen2(vocab_size=100).save_pretrained(tmp_path / "qwen2")
    model = small_models.model_config(models, qwen2=str(tmp_path / "qwen2"))
    with pytest.raises(
        ConfigurationError, match="has 259 tokens, but the language model has embeddings for 100"
    ):
        task_of(small, models, tmp_path, model=model)


def test_task_does_not_hold_parameters_beside_its_model(small: Layout, models: Path, tmp_path: Path) -> None:
    """FSDP2 puts slices in their place: what else held them would keep the whole model on every GPU."""
    task = task_of(small, models, tmp_path)
    held = [weakref.ref(parameter) for parameter in task.model.parameters()]
    task.model = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    gc.collect()
    assert held
    assert not any(reference() is not None for reference in held)
