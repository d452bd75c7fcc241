"""What describe says of a model: the paper's figures for its sizes, and a hand count for a tiny one."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cope_prep.encoders.delta_encoder import DeltaEncoder, DeltaEncoderConfig
from cope_prep.encoders.describe import LIKE, describe
from cope_prep.encoders.finetune import FinetuneConfig
from cope_prep.encoders.pretrain import PretrainConfig
from cope_prep.schemas.errors import ConfigurationError

DELTA: dict[str, Any] = {
    "width": 16,
    "num_heads": 2,
    "num_layers": 1,
    "resnet_widths": (8,),
    "output_width": 32,
}


@pytest.fixture
def folder(load_helper: Any, tmp_path: Path) -> Path:
    """config.json of a tiny LLaVA-Video, and no weights."""
    helper: ModuleType = load_helper("llava_checkpoint")
    (tmp_path / "config.json").write_text(json.dumps(helper.MULTIMODAL | helper.LANGUAGE))
    (tmp_path / "siglip").mkdir()
    (tmp_path / "siglip" / "config.json").write_text(
        json.dumps({"model_type": "siglip_vision_model", **helper.VISION})
    )
    return tmp_path


def finetune(folder: Path, **model: Any) -> FinetuneConfig:
    sources = {} if "siglip" in model else {"llava": str(folder)}
    return FinetuneConfig.model_validate(
        {
            "output_dir": "run",
            "model": {"delta_encoder": DELTA, **sources, **model},
            "data": {"dataset": "none", "expect": {"gop_size": 32, "window": 4, "block_px": 8}},
            "training": {},
        }
    )


def test_llava_video_7b_has_the_papers_figures() -> None:
    found = describe(None, like=LIKE, measure=False)
    assert found.parameters["language model"] == 7_615_616_512
    assert found.picture_tokens == 210
    assert found.delta_tokens == 8
    assert found.gop_tokens == {1: 266, 2: 468, 4: 872, 8: 1680}
    # 26 layers of so400m at 729 patches: 24 D^2 or so a token and layer, and attention.
    width, mlp, tokens = 1152, 4304, 729
    layer = 2 * tokens * (4 * width**2 + 2 * width * mlp) + 4 * tokens**2 * width
    patches = 2 * tokens * width * 3 * 14 * 14
    assert found.vision_tower.flops == 26 * layer + patches
    assert found.delta_encoder.flops < found.vision_tower.flops / 20
    assert found.delta_encoder.latency_ms is None


def test_model_of_a_config_without_weights(folder: Path) -> None:
    found = describe(finetune(folder), height_px=64, width_px=64)
    encoder = DeltaEncoder(DeltaEncoderConfig(**DELTA))
    assert found.delta_encoder.num_parameters == sum(p.numel() for p in encoder.parameters())
    assert sum(found.parameters.values()) == found.to_dict()["num_parameters"]
    assert found.parameters["projector"] == 32 * 48 + 48 + 48 * 48 + 48
    assert found.parameters["image newline"] == 48
    assert found.delta_encoder.latency_ms is not None
    assert found.delta_encoder.latency_ms > 0
    # 2 x 2 patches, pooled to 1, and a newline.
    assert (found.picture_tokens, found.num_anchors) == (2, 8)
    assert json.loads(json.dumps(found.to_dict()))["gop_tokens"]["1"] == 2 + 7 * 8


@pytest.mark.parametrize("layout", [None, {"newline": "frame"}])
def test_run_of_pictures_alone_has_no_delta_tokens(folder: Path, layout: dict[str, Any] | None) -> None:
    found = describe(finetune(folder, delta_frames=False, layout=layout), measure=False)
    assert found.delta_tokens == 0
    assert found.gop_tokens == {1: 2, 2: 4, 4: 8, 8: 16}


def test_siglip_and_qwen2_apart_are_described_as_they_are_built(load_helper: Any, tmp_path: Path) -> None:
    """Of each only config.json; that of another architecture is refused, though it has the same fields."""
    helper: ModuleType = load_helper("llava_checkpoint")
    parts = {
        "siglip": {"model_type": "siglip_vision_model", **helper.VISION},
        "qwen2": {"model_type": "qwen2", **helper.LANGUAGE},
    }
    for name, values in parts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(values))
    config = finetune(tmp_path, siglip=str(tmp_path / "siglip"), qwen2=str(tmp_path / "qwen2"))
    found = describe(config, measure=False)
    assert (found.picture_tokens, found.delta_tokens) == (2, 8)
    for name, kind in (("siglip", "clip_vision_model"), ("qwen2", "llama")):
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps(parts[name] | {"model_type": kind}))
        with pytest.raises(ConfigurationError, match=rf"{name}/config\.json: model_type is '{kind}', not"):
            describe(config, measure=False)
        path.write_text(json.dumps(parts[name]))


def test_llava_that_could_not_be_built_fails(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"mm_projector_type": "linear"}))
    with pytest.raises(ConfigurationError, match="mm_projector_type is 'linear'"):
        describe(finetune(folder), measure=False)


def test_cost_follows_the_frame(folder: Path) -> None:
    small, large = (
        describe(finetune(folder), height_px=side, width_px=64, measure=False) for side in (64, 128)
    )
    assert small.delta_encoder.flops < large.delta_encoder.flops < 2 * small.delta_encoder.flops
    assert small.vision_tower == large.vision_tower


def test_stage_one_has_its_transformers_and_no_language_model(folder: Path) -> None:
    config = PretrainConfig.model_validate(
        {
            "output_dir": "run",
            "tower": {"llava": str(folder)},
            "delta_encoder": DELTA,
            "alignment": {"width": 16, "num_heads": 2, "reference_layers": 1, "warp_layers": 1},
            "data": {"dataset": "none"},
            "training": {},
        }
    )
    found = describe(config, measure=False)
    assert found.task == "pretrain"
    assert found.parameters["warp transformer"] > found.parameters["reference transformer"] > 0
    assert "language model" not in found.parameters


def test_frame_that_is_no_whole_grid_fails(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="60x64: is no multiple of 8 px"):
        describe(finetune(folder), height_px=64, width_px=60, measure=False)


def test_nothing_to_describe_fails(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--like llava-video-7b"):
        describe(None)
    with pytest.raises(ConfigurationError, match=r"config\.json"):
        describe(finetune(tmp_path), measure=False)
