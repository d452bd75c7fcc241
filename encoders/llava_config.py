"""config.json of a LLaVA-Video checkpoint, as configurations of transformers' classes and our token layout.

What we cannot do is refused by its field, and the fields are held against the shapes in the weights' headers: a
wrong config.json is one message about a field, not seven hundred about tensors.

Fields were checked against a copy of llava-onevision-qwen2-7b-ov's config.json in PaddleMIX's tests (its
`model_type` is "llava", its architecture LlavaQwenForCausalLM) and LLaVA-NeXT's `llava_arch.py`; that of
LLaVA-Video-7B-Qwen2 itself could not be downloaded. `mm_vision_select_layer` must be -2: LLaVA-NeXT's
`siglip_encoder.py` drops the last layer whatever that field says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Config, SiglipVisionConfig

from cope_prep.encoders.llava import map_key, num_layers
from cope_prep.encoders.safetensors_folder import (
    StoredTensor,
    listed,
    local_folder,
    read_json,
    stored_tensors,
)
from cope_prep.encoders.token_stream import Newline, TokenLayout
from cope_prep.schemas.errors import ConfigurationError

_NEWLINES: dict[str, Newline] = {
    "grid": "grid",
    "frame": "frame",
    "one_token": "one_token",
    "no_token": "none",
}
_SO400M = "siglip-so400m-patch14-384"
SO400M: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LlavaConfig:
    """What config.json says of the model, checked against the stored shapes."""

    language: Qwen2Config
    vision: SiglipVisionConfig
    """Of the whole tower (27 layers for so400m), as VisionTower takes it, though one layer less is stored."""
    layout: TokenLayout


def read_llava_config(folder: str | Path, *, delta_tokens: int = 8, has_weights: bool = True) -> LlavaConfig:
    """Read config.json and check it against the shapes in the weights' headers; without weights, by itself.

    The tower's own configuration is not part of the checkpoint. so400m's is known; for another, `mm_vision_tower`
    is a folder with a SigLIP's config.json, absolute or relative to `folder`.

    Raises:
        ConfigurationError: no such folder, a field that is missing or not supported, or shapes of another model.
        FormatError: a damaged file.
    """
    folder = local_folder(folder)
    path = folder / "config.json"
    values = read_json(path)
    _check_supported(values, path)
    language = _language_config(values, path)
    vision = _vision_config(folder, values)
    if has_weights:
        _check_shapes(values, language, vision, stored_tensors(folder), path)
    try:
        layout = TokenLayout(
            patches_per_side=_side(vision),
            pool_stride=values.get("mm_spatial_pool_stride") or 2,
            pooling=values.get("mm_spatial_pool_mode") or "bilinear",
            newline=_NEWLINES[values.get("mm_newline_position", "one_token")],
            delta_tokens=delta_tokens,
        )
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(str(path), f"describes no token layout: {exc}") from exc
    return LlavaConfig(language=language, vision=vision, layout=layout)


def read_llava_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint.

    Raises:
        ConfigurationError: the folder has none that transformers can load.
    """
    folder = local_folder(folder)
    names = {path.name for path in folder.iterdir()}
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
        # transformers would make an empty one.
        raise ConfigurationError(
            str(folder), "has no tokenizer: neither tokenizer.json nor vocab.json and merges.txt"
        )
    try:
        # With a configuration of its own: config.json's model_type is none of transformers'.
        return AutoTokenizer.from_pretrained(str(folder), config=Qwen2Config(), local_files_only=True)
    except Exception as exc:  # tokenizers raises that very class for a file it cannot parse
        found = f"has no tokenizer that transformers can load: {' '.join(str(exc).split())}"
        raise ConfigurationError(str(folder), found) from exc


def _check_supported(values: Mapping[str, Any], path: Path) -> None:
    if "LlavaQwenForCausalLM" not in (values.get("architectures") or ()):
        _require(values, path, "model_type", "llava_qwen")
    _require(values, path, "mm_projector_type", "mlp2x_gelu")
    _require(values, path, "mm_resampler_type", None, "", default=None)
    _require(values, path, "add_faster_video", False, None, default=False)
    _require(values, path, "use_mm_proj", True, default=True)
    _require(values, path, "mm_use_im_start_end", False, default=False)
    _require(values, path, "mm_vision_select_layer", -2, default=-2)
    _require(values, path, "mm_vision_select_feature", "patch", default="patch")
    _require(values, path, "mm_spatial_pool_mode", "bilinear", "average", "max", None, default=None)
    _require(values, path, "mm_newline_position", *_NEWLINES, default="one_token")


def _require(
    values: Mapping[str, Any], path: Path, field: str, *supported: object, default: object = "not there"
) -> None:
    found = values.get(field, default)
    if found not in supported:
        known = " or ".join(json.dumps(value) for value in supported)
        raise ConfigurationError(str(path), f"{field} is {found!r}", f"Supported: {known}.")


def _language_config(values: Mapping[str, Any], path: Path) -> Qwen2Config:
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    needed += ("num_attention_heads", "num_key_value_heads", "rms_norm_eps")
    lacking = [name for name in needed if name not in values]
    if "rope_theta" not in values and "rope_parameters" not in values:
        lacking.append("rope_theta")
    if lacking:
        # transformers would take its own defaults for them, and train another model.
        raise ConfigurationError(str(path), listed("lacks fields of Qwen2", lacking))
    taken = {field.name for field in fields(Qwen2Config)} | {"rope_theta", "rope_scaling"}
    taken -= {"architectures", "transformers_version", "dtype"}
    return _configured(Qwen2Config, {k: v for k, v in values.items() if k in taken}, path)


def _configured(kind: type, values: Mapping[str, Any], path: Path) -> Any:
    try:
        return kind(**{key: value for key, value in values.items() if key != "model_type"})
    except (TypeError, ValueError, KeyError, StrictDataclassError) as exc:
        raise ConfigurationError(str(path), f"is no {kind.__name__}: {' '.join(str(exc).split())}") from exc


def _vision_config(folder: Path, values: Mapping[str, Any]) -> SiglipVisionConfig:
    named = str(values.get("mm_vision_tower", ""))
    tower = folder / named
    if not named or not tower.is_dir():
        if named.rsplit("/", 1)[-1] != _SO400M:
            raise ConfigurationError(
                str(folder / "config.json"),
                f"mm_vision_tower is {named!r}",
                f"Supported: google/{_SO400M}, or a local folder with a SigLIP's config.json.",
            )
        return SiglipVisionConfig(**SO400M)
    path = tower / "config.json"
    tower_values = read_json(path)
    if tower_values.get("model_type") == "siglip":
        tower_values = tower_values.get("vision_config") or {}
    _require(tower_values, path, "model_type", "siglip_vision_model")
    return _configured(SiglipVisionConfig, tower_values, path)


def _side(vision: SiglipVisionConfig) -> int:
    return int(vision.image_size) // int(vision.patch_size)  # type: ignore[arg-type]


def _check_shapes(
    values: Mapping[str, Any],
    language: Qwen2Config,
    vision: SiglipVisionConfig,
    stored: Mapping[str, StoredTensor],
    path: Path,
) -> None:
    """The configurations against the headers: the mismatch is named by its field, not by 700 tensors."""
    shapes = {map_key(name): tensor.shape for name, tensor in stored.items()}
    theirs = {map_key(name): name for name in stored}
    assert language.num_key_value_heads is not None  # transformers puts num_attention_heads for None
    kv_width = language.hidden_size // language.num_attention_heads * language.num_key_value_heads
    text, tower = "language_model.model.", "vision_tower.model."
    expected: dict[str, tuple[str, tuple[object, ...]]] = {
        "vocab_size, hidden_size": (
            f"{text}embed_tokens.weight",
            (language.vocab_size, language.hidden_size),
        ),
        "intermediate_size": (
            f"{text}layers.0.mlp.gate_proj.weight",
            (language.intermediate_size, language.hidden_size),
        ),
        "num_key_value_heads": (f"{text}layers.0.self_attn.k_proj.weight", (kv_width, language.hidden_size)),
        "the tower's hidden_size, patch_size": (
            f"{tower}embeddings.patch_embedding.weight",
            (vision.hidden_size, vision.num_channels, vision.patch_size, vision.patch_size),
        ),
        "the tower's image_size": (
            f"{tower}embeddings.position_embedding.weight",
            (_side(vision) ** 2, vision.hidden_size),
        ),
        "the tower's intermediate_size": (
            f"{tower}encoder.layers.0.mlp.fc1.weight",
            (vision.intermediate_size, vision.hidden_size),
        ),
        "hidden_size of the projector": ("projector.0.weight", (language.hidden_size, vision.hidden_size)),
    }
    wrong = [
        f"{field} says {list(shape)}, {theirs[name]} is {list(shapes[name])}"
        for field, (name, shape) in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if values.get("mm_hidden_size", vision.hidden_size) != vision.hidden_size:
        wrong.append(f"mm_hidden_size is {values['mm_hidden_size']}, the tower's is {vision.hidden_size}")
    layers = num_layers(shapes, f"{text}layers.")
    if layers != language.num_hidden_layers:
        wrong.append(f"num_hidden_layers is {language.num_hidden_layers}, stored are {layers}")
    layers = num_layers(shapes, f"{tower}encoder.layers.")
    whole = vision.num_hidden_layers
    if layers not in (0, whole - 1, whole):
        wrong.append(
            f"the tower has {whole} layers, stored are {layers} (all, or all but the last, would do)"
        )
    if wrong:
        raise ConfigurationError(str(path), "does not describe the stored tensors: " + "; ".join(wrong))
