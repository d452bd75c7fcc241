"""Models from folders: every weight where it belongs, and a message for every wrong folder."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Qwen2ForCausalLM, SiglipVisionModel

from cope_prep.encoders.alignment import AlignmentConfig, AlignmentModel
from cope_prep.encoders.build import (
    LayoutConfig,
    ModelConfig,
    TowerConfig,
    build_tokenizer,
    build_tower,
    build_video_lm,
)
from cope_prep.encoders.checkpoint import load_model_weights
from cope_prep.encoders.delta_encoder import DeltaEncoder
from cope_prep.encoders.finetune import _check_vocabulary
from cope_prep.encoders.run_record import write_record
from cope_prep.schemas.errors import ConfigurationError, CopePrepError, FormatError

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
import llava_checkpoint
import small_models


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> llava_checkpoint.Checkpoint:
    return llava_checkpoint.write_checkpoint(tmp_path_factory.mktemp("llava") / "checkpoint")


def save_run(model: nn.Module, run: Path) -> Path:
    """As a run leaves its weights: a folder with checkpoints, of which the last counts."""
    for step in (1, 2):
        folder = run / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        scale = 1.0 if step == 2 else 0.0
        tensors = {name: value.detach() * scale for name, value in model.state_dict().items()}
        save_file(tensors, folder / "model.safetensors")
        (folder / "trainer.json").write_text("{}")
    return run


WITHOUT_DELTA = ("vision_tower", "projector", "language_model")


def assert_same(module: nn.Module, expected: nn.Module, *, prefix: str = "") -> None:
    state = {name: value for name, value in module.state_dict().items() if name.startswith(prefix)}
    stored = expected.state_dict()
    assert state
    assert all(torch.equal(value, stored[name]) for name, value in state.items())


def test_stored_parts_are_taken_as_they_are(models: Path) -> None:
    model = build_video_lm(small_models.model_config(models))
    assert_same(model.vision_tower.model, SiglipVisionModel.from_pretrained(models / "siglip"))
    assert_same(model.language_model, Qwen2ForCausalLM.from_pretrained(models / "qwen2"))
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert model.layout == small_models.LAYOUT
    assert len(build_tokenizer(small_models.model_config(models))) == len(small_models.TOKENIZER)
    assert_same(build_tower(TowerConfig(siglip=str(models / "siglip"))), model.vision_tower)


def test_random_weights_need_only_the_configurations(models: Path, tmp_path: Path) -> None:
    for part in ("siglip", "qwen2"):
        (tmp_path / part).mkdir()
        shutil.copy(models / part / "config.json", tmp_path / part)
    shutil.copytree(models / "tokenizer", tmp_path / "tokenizer")
    config = small_models.model_config(tmp_path, weights="random", layout=LayoutConfig(newline="frame"))
    torch.manual_seed(5)
    first = build_video_lm(config)
    torch.manual_seed(5)
    assert_same(build_video_lm(config), first)
    stored = build_video_lm(small_models.model_config(models)).state_dict()
    assert first.state_dict().keys() == stored.keys()
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(first.state_dict()[name], stored[name])
    assert first.layout.picture_tokens == 5


def test_pictures_alone(models: Path) -> None:
    assert build_video_lm(small_models.model_config(models, delta_frames=False)).layout.delta_tokens == 0


def test_llava_as_a_whole_and_its_tower(llava: llava_checkpoint.Checkpoint) -> None:
    config = ModelConfig(llava=str(llava.folder), delta_encoder=small_models.DELTA)
    model = build_video_lm(config)
    for name in ("weight", "bias"):
        stored = llava.tensors[f"model.mm_projector.2.{name}"].float()
        assert torch.equal(model.projector[2].get_parameter(name), stored)
    assert_same(model.language_model, llava.language)
    assert_same(model.vision_tower.model, llava.tower)
    assert model.layout.newline == "grid"
    assert_same(build_tower(TowerConfig(llava=str(llava.folder))), model.vision_tower)
    assert build_tokenizer(config).convert_tokens_to_ids("<|im_end|>") == 2


def test_layout_of_llava_is_its_own_or_the_configured_one(llava: llava_checkpoint.Checkpoint) -> None:
    common: dict[str, Any] = {"llava": str(llava.folder), "delta_encoder": small_models.DELTA}
    alone = build_video_lm(ModelConfig(**common, delta_frames=False)).layout
    assert (alone.newline, alone.delta_tokens) == ("grid", 0)
    chosen = build_video_lm(ModelConfig(**common, layout=LayoutConfig(newline="frame"))).layout
    assert (chosen.newline, chosen.patches_per_side, chosen.delta_tokens) == ("frame", 2, 3)


def test_what_a_llava_checkpoint_has_not_or_is_left_of_it_is_said(
    llava: llava_checkpoint.Checkpoint,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the level that programs show, once for all ranks."""

    def said(make: Callable[[], object]) -> str:
        caplog.clear()
        make()
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        return record.getMessage()

    def model(**values: Any) -> str:
        config = ModelConfig(llava=str(llava.folder), delta_encoder=small_models.DELTA, **values)
        return said(lambda: build_video_lm(config))

    text = model()
    num_loaded = len(llava.tensors) - 2
    num_delta = sum(name.startswith("delta_") for name in small_models.video_lm().state_dict())
    assert text.startswith(f"{llava.folder}: {num_loaded} tensors loaded; 2 left out: the tower's final")
    assert f"({llava_checkpoint.TOWER}post_layernorm.bias, {llava_checkpoint.TOWER}post_layernorm.w" in text
    assert f"; {num_delta} not in the checkpoint: delta_encoder, delta_projector; " in text
    assert text.endswith("; untrained in a new run: delta_encoder, delta_projector")
    whole = build_video_lm(ModelConfig(llava=str(llava.folder), delta_encoder=small_models.DELTA))
    run = str(save_run(whole, tmp_path))
    assert model(stage1=run).endswith("; untrained in a new run: delta_projector")
    assert model(start_from=run).endswith("not in the checkpoint: delta_encoder, delta_projector")
    assert model(start_from=run, start_parts=WITHOUT_DELTA) == text

    tower = said(lambda: build_tower(TowerConfig(llava=str(llava.folder))))
    num_language = len(llava.language.state_dict())
    assert f"; {num_language} left out: of language_model, which was not asked for (lm_head.weight, " in tower
    assert f", and {num_language - 2} more)" in tower
    assert "untrained" not in tower

    monkeypatch.setattr(
        "cope_prep.encoders.build.dist", SimpleNamespace(is_initialized=lambda: True, get_rank=lambda: 1)
    )
    caplog.clear()
    build_tower(TowerConfig(llava=str(llava.folder)))
    assert not caplog.records


def test_run_of_ours_with_and_without_its_delta_parts(models: Path, tmp_path: Path) -> None:
    torch.manual_seed(9)
    trained = small_models.video_lm(seed=9)
    run = save_run(trained, tmp_path / "run")
    for start in (run, run / "checkpoints" / "step-00000002"):
        model = build_video_lm(small_models.model_config(models, start_from=str(start)))
        assert_same(model, trained)
    other = build_video_lm(small_models.model_config(models, start_from=str(run), start_parts=WITHOUT_DELTA))
    for part in ("vision_tower.", "projector.", "language_model.", "image_newline"):
        assert_same(other, trained, prefix=part)
    first = "motion.mlp.0.weight"
    assert not torch.equal(
        other.delta_encoder.get_parameter(first), trained.delta_encoder.get_parameter(first)
    )
    tower = build_tower(TowerConfig(siglip=str(models / "siglip"), video_lm=str(run)))
    assert_same(tower, trained.vision_tower)


def test_delta_encoder_of_stage_1(models: Path, tmp_path: Path) -> None:
    """Also where the rest comes from a run of stage 2: of that no Δ part is taken."""
    torch.manual_seed(9)
    sizes = AlignmentConfig(width=16, num_heads=2, reference_layers=1, warp_layers=1)
    stage1 = AlignmentModel(sizes, small_models.DELTA, patches_per_side=3)
    stage2 = small_models.video_lm(seed=3)
    runs = {"stage1": str(save_run(stage1, tmp_path / "1"))}
    model = build_video_lm(small_models.model_config(models, **runs))
    assert_same(model.delta_encoder, stage1.delta_encoder)
    runs["start_from"] = str(save_run(stage2, tmp_path / "2"))
    model = build_video_lm(small_models.model_config(models, **runs, start_parts=WITHOUT_DELTA))
    assert_same(model.delta_encoder, stage1.delta_encoder)
    assert_same(model, stage2, prefix="language_model.")
    name = "1.weight"
    assert not torch.equal(
        model.delta_projector.get_parameter(name), stage2.delta_projector.get_parameter(name)
    )


def test_delta_encoder_of_other_heads_fails(models: Path, tmp_path: Path) -> None:
    """Its weights have the same names and shapes; the record beside them says what they are for."""
    run = save_run(small_models.video_lm(), tmp_path / "run")
    trained = small_models.model_config(models, start_from=str(run))
    other = small_models.DELTA.model_copy(update={"num_heads": 4})
    build_video_lm(trained.model_copy(update={"delta_encoder": other}))  # nothing says it
    write_record(run, config={"model": trained.model_dump(mode="json")}, geometry={})
    build_video_lm(trained)
    frozen = small_models.DELTA.model_copy(update={"freeze_batch_norm": True})
    build_video_lm(small_models.model_config(models, stage1=str(run), delta_encoder=frozen))
    start: dict[str, Any] = {"start_from": str(run), "delta_encoder": other}
    build_video_lm(small_models.model_config(models, **start, start_parts=WITHOUT_DELTA))
    for values in (start, {"stage1": str(run / "checkpoints" / "step-00000002"), "delta_encoder": other}):
        with pytest.raises(
            ConfigurationError, match=r"run.*: was trained with delta_encoder\.num_heads 2 \(here 4\)"
        ):
            build_video_lm(small_models.model_config(models, **values))
    with pytest.raises(ConfigurationError, match=r"num_heads 2 \(here 4\)"):
        load_model_weights(DeltaEncoder(other), run, prefix="delta_encoder.")


def test_wrong_runs_fail(models: Path, tmp_path: Path) -> None:
    def build(**values: Any) -> None:
        build_video_lm(small_models.model_config(models, **values))

    run = str(save_run(small_models.video_lm(), tmp_path / "run"))
    with pytest.raises(ConfigurationError, match=r"nowhere: holds no model\.safetensors, nor a checkpoint"):
        build(start_from=str(tmp_path / "nowhere"))
    with pytest.raises(
        ConfigurationError, match=r"other tensors: it lacks delta_encoder\..*another architecture"
    ):
        build(start_from=run, delta_encoder=small_models.DELTA.model_copy(update={"num_layers": 2}))
    wide = small_models.DELTA.model_copy(update={"width": 20})
    with pytest.raises(ConfigurationError, match=r"other shapes: .*\[16\] instead of \[20\]"):
        build(stage1=run, delta_encoder=wide)
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigurationError, match=r"no tensor whose name begins with 'delta_encoder\.'"):
        build(stage1=str(tmp_path / "other.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(FormatError, match=r"cut\.safetensors: cannot be read"):
        build(stage1=str(tmp_path / "cut.safetensors"))


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def set_config(part: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def swap_models(folder: Path) -> None:
    (folder / "siglip").rename(folder / "other")
    (folder / "qwen2").rename(folder / "siglip")
    (folder / "other").rename(folder / "qwen2")


@pytest.mark.parametrize("weights", ["stored", "random"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "siglip"), r"siglip: is not a local folder.*Hub"),
        (lambda folder: shutil.rmtree(folder / "qwen2"), r"qwen2: is not a local folder"),
        (drop("qwen2/config.json"), r"qwen2/config\.json: cannot be read: No such file"),
        (swap_models, r"siglip/config\.json: model_type is 'qwen2', not 'siglip_vision_model'"),
        (set_config("qwen2", model_type="llama"), r"qwen2/config\.json: model_type is 'llama', not 'qwen2'"),
        (set_config("qwen2", hidden_size="wide"), r"qwen2/config\.json: is no Qwen2Config: .*hidden_size"),
        (lambda folder: (folder / "qwen2/config.json").write_text("{"), r"qwen2/config\.json: is not JSON"),
    ],
)
def test_wrong_folder_fails(models: Path, tmp_path: Path, weights: str, spoil: Any, message: str) -> None:
    folder = tmp_path / "models"
    shutil.copytree(models, folder)
    spoil(folder)
    with pytest.raises(CopePrepError, match=rf"(?s){message}"):
        build_video_lm(small_models.model_config(folder, weights=weights))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop("siglip/model.safetensors"), r"siglip: is no SiglipVisionModel that transformers can load"),
        (drop("qwen2/model.safetensors"), r"qwen2: is no Qwen2ForCausalLM that transformers can load"),
        (
            set_config("qwen2", num_hidden_layers=3, layer_types=["full_attention"] * 3),
            r"qwen2: is no Qwen2ForCausalLM: lacks weights .*layers\.2\.",
        ),
        (set_config("qwen2", hidden_size=96), r"qwen2: is no Qwen2ForCausalLM"),
        (lambda folder: (folder / "qwen2/model.safetensors").write_bytes(b"\0" * 30), r"qwen2: "),
    ],
)
def test_wrong_weights_fail(models: Path, tmp_path: Path, spoil: Any, message: str) -> None:
    folder = tmp_path / "models"
    shutil.copytree(models, folder)
    spoil(folder)
    with pytest.raises(CopePrepError, match=rf"(?s){message}"):
        build_video_lm(small_models.model_config(folder))


def test_layout_that_leaves_nothing_fails(models: Path) -> None:
    layout = LayoutConfig(pool_stride=4, pooling="average")
    with pytest.raises(ConfigurationError, match=r"model\.layout: pool_stride 4 with average"):
        build_video_lm(small_models.model_config(models, layout=layout))


def test_wrong_tokenizers_fail(models: Path, tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        build_tokenizer(small_models.model_config(models, tokenizer=str(folder)))

    with pytest.raises(ConfigurationError, match="nowhere: is not a local folder"):
        build(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=r"empty: has no tokenizer.*model\.tokenizer"):
        build(tmp_path / "empty")
    shutil.copytree(models / "tokenizer", tmp_path / "plain")
    text = (tmp_path / "plain" / "tokenizer.json").read_text()
    (tmp_path / "plain" / "tokenizer.json").write_text(text.replace("<|im_start|>", "<|start|>"))
    with pytest.raises(ConfigurationError, match=r"has no token <\|im_start\|>"):
        build(tmp_path / "plain")
    model = SimpleNamespace(language_model=small_models.qwen2(vocab_size=100))
    with pytest.raises(
        ConfigurationError, match="has 259 tokens, but the language model has embeddings for 100"
    ):
        _check_vocabulary(build_tokenizer(small_models.model_config(models)), model)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (TowerConfig, {}, "give siglip or llava"),
        (TowerConfig, {"siglip": "a", "llava": "b"}, "give siglip or llava"),
        (TowerConfig, {"llava": "a", "video_lm": "b"}, "video_lm goes with siglip"),
        (ModelConfig, {"siglip": "a"}, "give llava, or siglip and qwen2"),
        (ModelConfig, {"siglip": "a", "qwen2": "b", "llava": "c"}, "give llava, or siglip and qwen2"),
        (ModelConfig, {"llava": "c", "weights": "random"}, "goes with siglip and qwen2"),
        (
            ModelConfig,
            {"llava": "c", "start_parts": ("projector",)},
            "start_parts goes with start_from",
        ),
        (
            ModelConfig,
            {"llava": "c", "stage1": "a", "start_from": "b"},
            r"both have a Δ-encoder: leave out stage1 .* start_parts = \["
            r'"vision_tower", "projector", "language_model"\]',
        ),
        (
            ModelConfig,
            {"llava": "c", "stage1": "a", "start_from": "b", "start_parts": ("projector", "delta")},
            r'start_parts = \["projector"\]',
        ),
    ],
)
def test_contradictory_choices_fail(kind: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**values)
