"""LLaVA-Video checkpoints: every tensor in its place or reported, and the models compute what theirs do."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cope_prep.encoders.llava import load_llava_weights, map_key
from cope_prep.encoders.llava_config import read_llava_config
from cope_prep.schemas.errors import ConfigurationError, CopePrepError, FormatError

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
import llava_checkpoint as tiny

INDEX = "model.safetensors.index.json"
SECOND = "model-00002-of-00003.safetensors"


def expected_name(name: str) -> str:
    """VideoLM's name, the slow way."""
    if name.startswith(tiny.TOWER):
        return "vision_tower.model." + name.removeprefix(tiny.TOWER)
    if name.startswith("model.mm_projector"):
        return name.removeprefix("model.mm_")
    return "image_newline" if name == "model.image_newline" else "language_model." + name


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("num_shards", [1, 3])
def test_every_tensor_is_in_its_place_or_reported(tmp_path: Path, num_shards: int) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "llava", num_shards=num_shards)
    model = tiny.build_model(read_llava_config(checkpoint.folder))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_llava_weights(model, checkpoint.folder)
    state = model.state_dict()
    assert set(report.unused) == {tiny.TOWER + "post_layernorm.weight", tiny.TOWER + "post_layernorm.bias"}
    assert len(report.loaded) + len(report.unused) == len(checkpoint.tensors) > 50
    for name in checkpoint.tensors.keys() - report.unused.keys():
        assert torch.equal(state[expected_name(name)], checkpoint.tensors[name].float()), name
    assert {name.split(".")[0] for name in report.missing} == {"delta_encoder", "delta_projector"}
    assert set(report.missing) | set(report.loaded) == set(state)
    assert all(torch.equal(state[name], before[name]) for name in report.missing)
    assert report.missing_parts == ("delta_encoder", "delta_projector")
    assert f"; {len(report.missing)} not in the checkpoint: delta_encoder, delta_projector" in str(report)
    assert "; 2 left out: the tower's final norm" in str(report)


def test_the_language_model_computes_what_qwen2_does(tmp_path: Path) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "llava")
    model = tiny.build_model(read_llava_config(checkpoint.folder))
    load_llava_weights(model, checkpoint.folder)
    token_ids = torch.randint(0, 320, (2, 9))
    with torch.no_grad():
        expected = checkpoint.language(token_ids).logits
        found = model.language_model(token_ids).logits
    assert expected.abs().max() > 0
    assert torch.equal(found, expected)


@pytest.mark.parametrize("whole_tower", [False, True])
def test_patches_are_the_hidden_states_before_the_last_layer(tmp_path: Path, whole_tower: bool) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "llava", whole_tower=whole_tower)
    model = tiny.build_model(read_llava_config(checkpoint.folder))
    report = load_llava_weights(model, checkpoint.folder)
    rgb = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        states = checkpoint.tower(rgb * 2 - 1, output_hidden_states=True).hidden_states
        patches = model.vision_tower(rgb)
    torch.testing.assert_close(patches, states[-2])
    assert not torch.allclose(states[-2], states[-1])
    reasons = set(report.unused.values())
    assert any("last layer" in reason for reason in reasons) == whole_tower
    assert any("pooling head" in reason for reason in reasons) == whole_tower
    assert len(report.unused) == (2 if not whole_tower else 2 + 16 + 11)
    # Short, though it tells of all of them.
    last = f"{tiny.TOWER}encoder.layers.2.layer_norm1"
    shown = f"whose output is not used ({last}.bias, {last}.weight, and 14 more)"
    assert (f"; 16 left out: the tower's last layer, {shown}" in str(report)) == whole_tower


def test_tensors_are_cast_to_the_parameters_dtype(tmp_path: Path) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "llava", dtype=torch.float32)
    model = tiny.build_model(read_llava_config(checkpoint.folder)).to(torch.bfloat16)
    load_llava_weights(model, checkpoint.folder)
    stored = checkpoint.tensors["model.mm_projector.0.weight"]
    assert torch.equal(model.projector[0].weight, stored.bfloat16())


def test_tied_embeddings_need_no_head(tmp_path: Path) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "llava", tied=True)
    model = tiny.build_model(read_llava_config(checkpoint.folder))
    load_llava_weights(model, checkpoint.folder)
    embedding = checkpoint.tensors["model.embed_tokens.weight"].float()
    assert torch.equal(model.language_model.lm_head.weight, embedding)
    assert model.language_model.lm_head.weight is model.language_model.model.embed_tokens.weight

    rewrite(checkpoint.folder / SECOND, lambda tensors: tensors.update({"lm_head.weight": embedding * 2}))
    index = json.loads((checkpoint.folder / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = SECOND
    (checkpoint.folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(FormatError, match="differs from the embedding"):
        load_llava_weights(model, checkpoint.folder)
    rewrite(checkpoint.folder / SECOND, lambda tensors: tensors.update({"lm_head.weight": embedding}))
    assert load_llava_weights(model, checkpoint.folder).unused["lm_head.weight"].startswith("equal to")


def test_names_of_no_part_are_not_mapped() -> None:
    assert map_key("model.image_newline") == "image_newline"
    for name in ("model.image_newlines", "model.vision_resampler.query", "model.delta_encoder.x", "layout"):
        assert map_key(name) is None


def _shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(4, 48)


def _quantized(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.int8)


def _extra(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.faster_token"] = torch.zeros(48)
    tensors["model.vision_resampler.query"] = torch.zeros(48)


def _lacking(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "mlp" in name or name == "model.image_newline"]:
        del tensors[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _shape,
            r"another shape or kind \(1\): .*up_proj.weight is float32 \[96, 48\], stored as F32 \[4, 48\]",
        ),
        (_quantized, r"another shape or kind \(1\): .*stored as I8"),
        (_extra, r"no part of the model takes \(1\): model.vision_resampler.query"),
        (_lacking, r"does not have \(15\): .*image_newline.*, and 5 more"),
    ],
)
def test_a_checkpoint_that_does_not_fit_fails_and_changes_nothing(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "llava", num_shards=1)
    model = tiny.build_model(read_llava_config(checkpoint.folder))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rewrite(checkpoint.folder / "model.safetensors", change)
    with pytest.raises(ConfigurationError, match=message):
        load_llava_weights(model, checkpoint.folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_values_that_are_not_finite_fail(tmp_path: Path) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "llava", num_shards=1)
    model = tiny.build_model(read_llava_config(checkpoint.folder))
    rewrite(checkpoint.folder / "model.safetensors", lambda tensors: tensors["model.norm.weight"].fill_(1e6))
    load_llava_weights(model, checkpoint.folder)
    with pytest.raises(
        FormatError, match=r"model.norm.weight has values that are not finite as torch.float16"
    ):
        load_llava_weights(model.half(), checkpoint.folder)

    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][7] = torch.nan

    rewrite(checkpoint.folder / "model.safetensors", poison)
    with pytest.raises(FormatError, match=r"not finite as torch.float32"):
        load_llava_weights(model.float(), checkpoint.folder)


def _no_second(folder: Path) -> None:
    (folder / SECOND).unlink()


def _cut_second(folder: Path) -> None:
    os.truncate(folder / SECOND, (folder / SECOND).stat().st_size - 10)


def _empty_second(folder: Path) -> None:
    os.truncate(folder / SECOND, 0)


def _not_json(folder: Path) -> None:
    (folder / INDEX).write_text("{")


def _no_map(folder: Path) -> None:
    (folder / INDEX).write_text("{}")


def _no_index(folder: Path) -> None:
    (folder / INDEX).unlink()


def _other_shard(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.image_newline"] = SECOND
    (folder / INDEX).write_text(json.dumps(index))


def _not_listed(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"]["model.image_newline"]
    (folder / INDEX).write_text(json.dumps(index))


def _no_folder(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (_no_second, ConfigurationError, f"files that are not there.*{SECOND}"),
        (_cut_second, FormatError, f"{SECOND}: is damaged or cut short"),
        (_empty_second, FormatError, f"{SECOND}: is damaged or cut short"),
        (_not_json, FormatError, f"{INDEX}: is not JSON"),
        (_no_map, FormatError, f"{INDEX}: has no weight_map"),
        (_no_index, ConfigurationError, "neither model.safetensors nor"),
        (_other_shard, FormatError, f"image_newline .in model-00003-of-00003.safetensors, not in {SECOND}"),
        (_not_listed, FormatError, "image_newline .in model-00003-of-00003.safetensors, not in None"),
        (_no_folder, ConfigurationError, "not a local folder.*nothing is fetched"),
    ],
)
def test_damaged_files_fail(
    tmp_path: Path, damage: Callable[[Path], None], kind: type[CopePrepError], message: str
) -> None:
    folder = tiny.write_checkpoint(tmp_path / "llava").folder
    model = tiny.build_model(read_llava_config(folder))
    damage(folder)
    for read in (read_llava_config, lambda folder: load_llava_weights(model, folder)):
        with pytest.raises(kind, match=message):
            read(folder)
