"""Writes a tiny checkpoint in exactly the layout of lmms-lab/LLaVA-Video-7B-Qwen2: for tests, not a test.

Tower: SigLIP of 3 layers, 32 wide, 28 px in patches of 14 (2 x 2). Language model: Qwen2 of 2 layers, 48 wide, with
a byte-level tokenizer that has the template's tokens. Names are spelt out here, apart from the reader's own table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from cope_prep.encoders.delta_encoder import DeltaEncoder, DeltaEncoderConfig
from cope_prep.encoders.llava_config import LlavaConfig
from cope_prep.encoders.video_lm import VideoLM
from cope_prep.encoders.vision_tower import VisionTower

TOWER = "model.vision_tower.vision_tower.vision_model."
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
LANGUAGE = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": True,
}
MULTIMODAL = {
    "_name_or_path": "lmms-lab/LLaVA-Video-7B-Qwen2",
    "architectures": ["LlavaQwenForCausalLM"],
    "model_type": "llava_qwen",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0.dev0",
    "add_faster_video": False,
    "add_time_instruction": True,
    "image_aspect_ratio": "anyres_max_9",
    "image_crop_resolution": None,
    "image_grid_pinpoints": [[384, 384], [384, 768]],
    "image_token_index": 151646,
    "mm_hidden_size": 32,
    "mm_newline_position": "grid",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_lr": None,
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_spatial_pool_mode": "bilinear",
    "mm_spatial_pool_stride": 2,
    "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "siglip",
    "mm_vision_tower_lr": 2e-06,
    "tokenizer_model_max_length": 32768,
    "tokenizer_padding_side": "right",
    "use_mm_proj": True,
    "use_pos_skipping": False,
    "vision_tower_pretrained": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    folder: Path
    tensors: Mapping[str, torch.Tensor]
    """What was written, by the checkpoint's names."""
    tower: SiglipVisionModel
    """The whole tower, whose last layer and head the checkpoint lacks, with the stored values."""
    language: Qwen2ForCausalLM


def write_checkpoint(
    folder: Path,
    *,
    whole_tower: bool = False,
    tied: bool = False,
    num_shards: int = 3,
    dtype: torch.dtype = torch.bfloat16,
    fields: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Checkpoint:
    """`whole_tower` keeps the tower's last layer and head; one shard is written without an index."""
    torch.manual_seed(seed)
    values = LANGUAGE | {"tie_word_embeddings": tied}
    tower = SiglipVisionModel(SiglipVisionConfig(**VISION)).eval()
    language = Qwen2ForCausalLM(Qwen2Config(**values)).eval()
    for model in (tower, language):
        for parameter in model.parameters():
            parameter.data = (torch.randn_like(parameter) * 0.1).to(dtype).float()
    tensors = {TOWER + name: tensor for name, tensor in tower.state_dict().items()}
    if not whole_tower:
        tensors = {
            name: tensor
            for name, tensor in tensors.items()
            if not name.startswith((TOWER + "encoder.layers.2.", TOWER + "head."))
        }
    tensors |= language.state_dict()
    if tied:
        del tensors["lm_head.weight"]
    for name, shape in {
        "model.mm_projector.0.weight": (48, 32),
        "model.mm_projector.0.bias": (48,),
        "model.mm_projector.2.weight": (48, 48),
        "model.mm_projector.2.bias": (48,),
        "model.image_newline": (48,),
    }.items():
        tensors[name] = torch.randn(shape) * 0.1
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in tensors.items()}
    folder.mkdir(parents=True)
    write_shards(folder, tensors, num_shards=num_shards)
    (folder / "config.json").write_text(json.dumps(MULTIMODAL | values | dict(fields or {}), indent=2))
    (folder / "siglip").mkdir()
    SiglipVisionConfig(**VISION).save_pretrained(folder / "siglip")
    make_tokenizer().save_pretrained(folder)
    return Checkpoint(folder=folder, tensors=tensors, tower=tower, language=language)


def write_shards(folder: Path, tensors: Mapping[str, torch.Tensor], *, num_shards: int) -> None:
    if num_shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map = {}
    for index in range(num_shards):
        file = f"model-{index + 1:05}-of-{num_shards:05}.safetensors"
        part = names[index * len(names) // num_shards : (index + 1) * len(names) // num_shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the template's special ones."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        initial_alphabet=alphabet, special_tokens=special, vocab_size=259, show_progress=False
    )
    core.train_from_iterator([], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def build_model(config: LlavaConfig, *, seed: int = 1) -> VideoLM:
    """VideoLM with random values, for a checkpoint's configuration."""
    torch.manual_seed(seed)
    delta = DeltaEncoderConfig(width=16, num_heads=2, num_layers=1, resnet_widths=(8,), output_width=32)
    return VideoLM(
        vision_tower=VisionTower(config.vision),
        delta_encoder=DeltaEncoder(delta),
        language_model=Qwen2ForCausalLM(config.language),
        layout=config.layout,
    ).eval()
