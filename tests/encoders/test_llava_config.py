"""config.json of LLaVA-Video: what is read, and what is refused by its field."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from transformers import SiglipVisionConfig

from cope_prep.encoders.llava_config import read_llava_config, read_llava_tokenizer
from cope_prep.schemas.errors import ConfigurationError

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
import llava_checkpoint as tiny


def test_the_configuration_is_read(tmp_path: Path) -> None:
    checkpoint = tiny.write_checkpoint(
        tmp_path / "llava", fields={"mm_newline_position": "no_token", "mm_spatial_pool_mode": "average"}
    )
    config = read_llava_config(checkpoint.folder, delta_tokens=16)
    assert (config.layout.newline, config.layout.pooling) == ("none", "average")
    assert (config.layout.patches_per_side, config.layout.pool_stride, config.layout.delta_tokens) == (
        2,
        2,
        16,
    )
    assert config.vision.num_hidden_layers == 3
    assert config.language.rope_parameters["rope_theta"] == 1e6  # type: ignore[index]
    assert config.language.num_key_value_heads == 2


def test_the_tower_of_the_published_checkpoint_is_known(tmp_path: Path) -> None:
    name = {"mm_vision_tower": "google/siglip-so400m-patch14-384"}
    checkpoint = tiny.write_checkpoint(tmp_path / "llava", fields=name)
    with pytest.raises(ConfigurationError, match=r"hidden_size, patch_size says \[1152, 3, 14, 14\]"):
        read_llava_config(checkpoint.folder)
    for path in checkpoint.folder.glob("*.safetensors*"):
        path.unlink()
    config = read_llava_config(checkpoint.folder, has_weights=False)
    assert (config.vision.hidden_size, config.layout.patches_per_side) == (1152, 27)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "llava_mistral", "architectures": None}, "model_type is 'llava_mistral'.*llava_qwen"),
        ({"mm_projector_type": "linear"}, "mm_projector_type is 'linear'.*mlp2x_gelu"),
        ({"mm_resampler_type": "qformer"}, "mm_resampler_type is 'qformer'"),
        ({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, "clip-vit-large.*so400m.*local folder"),
        ({"mm_vision_tower": None}, "mm_vision_tower is 'None'"),
        ({"mm_vision_select_layer": -1}, "mm_vision_select_layer is -1.*-2"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature is 'cls_patch'"),
        ({"mm_spatial_pool_mode": "conv"}, "mm_spatial_pool_mode is 'conv'.*average"),
        ({"mm_newline_position": "row"}, "mm_newline_position is 'row'.*no_token"),
        ({"mm_spatial_pool_stride": "two"}, "token layout"),
        ({"add_faster_video": True}, "add_faster_video is True"),
        ({"mm_hidden_size": 64}, "mm_hidden_size is 64, the tower's is 32"),
        ({"hidden_size": "wide"}, "no Qwen2Config"),
        ({"hidden_size": 64}, r"says \[320, 64\].*embed_tokens.weight is \[320, 48\]"),
        ({"num_key_value_heads": 4}, "num_key_value_heads says"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, stored are 2"),
    ],
)
def test_an_unsupported_configuration_fails(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "llava", fields=fields)
    with pytest.raises(ConfigurationError, match=message):
        read_llava_config(checkpoint.folder)


def test_a_field_that_is_not_there_fails(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "llava").folder
    values = json.loads((folder / "config.json").read_text())
    del values["rope_theta"], values["num_key_value_heads"]
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigurationError, match=r"fields of Qwen2 \(2\): num_key_value_heads, rope_theta"):
        read_llava_config(folder)


def test_a_tower_of_another_depth_fails(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "llava").folder
    SiglipVisionConfig(**tiny.VISION | {"num_hidden_layers": 6}).save_pretrained(folder / "siglip")
    with pytest.raises(ConfigurationError, match="the tower has 6 layers, stored are 2"):
        read_llava_config(folder)


def test_the_tokenizer_is_read(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "llava").folder
    tokenizer = read_llava_tokenizer(folder)
    assert tokenizer("<|im_start|>a<|im_end|>")["input_ids"][::2] == [1, 2]

    # As older versions of transformers wrote Qwen2's, and lmms-lab's training code with them.
    values = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(values["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {str(token.pop("id")): token for token in values["added_tokens"]}
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "added_tokens_decoder": special,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert read_llava_tokenizer(folder)("<|im_start|>a<|im_end|>")["input_ids"][::2] == [1, 2]

    (folder / "merges.txt").unlink()
    with pytest.raises(ConfigurationError, match=r"has no tokenizer: neither tokenizer.json nor"):
        read_llava_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"no tokenizer that transformers can load"):
        read_llava_tokenizer(folder)


def test_the_tower_of_siglip_as_a_whole_is_its_vision_part(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "llava").folder
    whole = {"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model", **tiny.VISION}}
    (folder / "siglip" / "config.json").write_text(json.dumps(whole))
    assert read_llava_config(folder).vision.image_size == 28
    (folder / "siglip" / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))
    with pytest.raises(ConfigurationError, match=r"model_type is 'clip_vision_model'.*siglip_vision_model"):
        read_llava_config(folder)
