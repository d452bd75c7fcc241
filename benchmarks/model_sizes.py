"""Models of random weights and datasets of looped real clips, for the benchmarks that time a model.

    7b      LLaVA-Video-7B's shapes: SigLIP so400m-patch14-384, Qwen2-7B, the paper's Δ-encoder
    1b      the same tower with Qwen2-1.5B's shapes
    small   for a CPU: the true token layout (27 x 27 patches, 210 tokens a picture, 8 a Δ) on true 384 x 384
            pictures, with about 1/600 of the FLOPs of every part: of the tower a picture, of the language model a
            token, of the Δ-encoder a P-frame, and of attention beside them at the length of 64 pictures. That
            takes few layers with wide MLPs: a model that is merely narrow would be all attention
    tiny    for tests: 64 x 64 pictures, 6 tokens each

FLOPs are those of matrix products and convolutions, two a multiply-add. Causal attention counts the half that is
not masked.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from clips import machine, real_clips
from loader_data import SPECS, write_looped
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig

from cope_prep.encoders.build import ModelConfig
from cope_prep.encoders.chat import SYSTEM, video_prompt
from cope_prep.encoders.delta_encoder import DeltaEncoder, DeltaEncoderConfig
from cope_prep.encoders.vision_tower import VisionTower

FOLDER = Path("/tmp/cope-prep-bench-efficiency")
QUESTION = "What happens in the video?"
ANSWER = "People ride their bicycles along a street."
_SUBSET = "1_2_m_academic_v0_1"
_SO400M = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
    "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
}  # fmt: skip
_QWEN2 = {"model_type": "qwen2", "vocab_size": 152064, "max_position_embeddings": 32768, "rope_theta": 1e6}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The shapes of one model, as its config.json files have them."""

    tower: dict[str, Any]
    language: dict[str, Any]
    delta: dict[str, Any]
    alignment: dict[str, Any]
    """Of stage 1."""

    @property
    def side_px(self) -> int:
        """Of the pictures of its dataset."""
        return self.tower["image_size"]


_PAPER = Size(
    tower=_SO400M,
    language=_QWEN2
    | {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
    delta={},
    alignment={},
)  # fmt: skip
SIZES = {
    "7b": _PAPER,
    "1b": Size(
        tower=_SO400M,
        language=_QWEN2
        | {
            "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
            "num_key_value_heads": 2, "tie_word_embeddings": True,
        },
        delta={},
        alignment={},
    ),
    "small": Size(
        # One layer more than is used, as in so400m.
        tower=_SO400M
        | {"hidden_size": 64, "intermediate_size": 2560, "num_hidden_layers": 2, "num_attention_heads": 2},
        language=_QWEN2
        | {
            "vocab_size": 2048, "hidden_size": 448, "intermediate_size": 2368, "num_hidden_layers": 3,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 24, "tie_word_embeddings": False,
        },
        delta={
            "width": 32, "num_layers": 1, "num_heads": 2, "resnet_widths": (1, 2, 4), "output_width": 64,
        },
        alignment={"width": 32, "num_heads": 2, "reference_layers": 1, "warp_layers": 2},
    ),
    "tiny": Size(
        tower=_SO400M
        | {
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 16,
        },
        language=_QWEN2
        | {
            "vocab_size": 256, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False,
        },
        delta={
            "width": 8, "num_layers": 1, "num_heads": 2, "resnet_widths": (2, 4, 8), "output_width": 16,
        },
        alignment={"width": 16, "num_heads": 2, "reference_layers": 1, "warp_layers": 1},
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """What the parts of a model cost, forward."""

    picture: float
    """Tower and projector, a picture."""
    delta: float
    """Δ-encoder and its projector, a P-frame."""
    token: float
    """Language model without attention and head, a token."""
    attention: float
    """Attention of a token to one other."""

    def of_prefill(self, *, num_pictures: int, num_deltas: int, num_tokens: int) -> float:
        """Up to the first token."""
        seen = self.picture * num_pictures + self.delta * num_deltas
        return seen + self.token * num_tokens + self.attention * num_tokens**2 / 2


def count_flops(size: Size) -> Flops:
    """Run the parts on the meta device, where nothing is computed."""
    with torch.device("meta"):
        tower = VisionTower(SiglipVisionConfig.from_dict(dict(size.tower))).requires_grad_(False)
        encoder = DeltaEncoder(DeltaEncoderConfig(**size.delta)).requires_grad_(False).eval()
        language = Qwen2ForCausalLM(Qwen2Config.from_dict(dict(size.language)))
    config, side = language.config, size.side_px
    assert encoder.motion is not None
    assert encoder.residual is not None
    motion, residual = encoder.motion, encoder.residual

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(*shape, device="meta")

    projector = 2 * config.hidden_size * (tower.width + config.hidden_size)
    layers = [module for module in language.model.layers.modules() if isinstance(module, nn.Linear)]
    heads = layers[0].out_features  # the first is the query's
    return Flops(
        picture=_flops(lambda: tower(zeros(1, 3, side, side))) + projector * tower.patches_per_side**2,
        delta=_flops(lambda: motion(zeros(1, 2, side // 16, side // 16), zeros(1, side // 16, side // 16)))
        + _flops(lambda: residual(zeros(1, 1, side, side), zeros(1, 2, side // 2, side // 2)))
        + projector * encoder.config.num_tokens,
        token=2 * sum(layer.weight.numel() for layer in layers),
        attention=4 * heads * config.num_hidden_layers,
    )


def _flops(run: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def write_models(folder: Path, size: Size) -> dict[str, Any]:
    """config.json of tower and language model, and a tokenizer; what ModelConfig takes."""
    for name, values in (("siglip", size.tower), ("qwen2", size.language)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(values, indent=1))
    _write_tokenizer(folder / "tokenizer")
    values = {
        "siglip": str(folder / "siglip"),
        "qwen2": str(folder / "qwen2"),
        "weights": "random",
        "tokenizer": str(folder / "tokenizer"),
        "delta_encoder": size.delta,
    }
    ModelConfig.model_validate(values)
    return values


def _write_tokenizer(folder: Path) -> None:
    # As Qwen2's does with the prompt's times, which are most of it: a token a digit and a mark.
    piece = r"\n|[0-9]|[A-Za-z]+|[^\sA-Za-z0-9]"
    texts = (
        f"system\n{SYSTEM}user\nassistant\n",
        video_prompt(0, [0.0, 0.0]),
        "0123456789",
        QUESTION,
        ANSWER,
    )
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = dict.fromkeys([*special, "<|unknown|>", *re.findall(piece, "\n".join(texts))])
    tokenizer = Tokenizer(
        WordLevel({word: index for index, word in enumerate(words)}, unk_token="<|unknown|>")
    )
    tokenizer.pre_tokenizer = Split(Regex(piece), "removed", invert=True)  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<|unknown|>").save_pretrained(str(folder))


def make_dataset(
    folder: Path, *, side_px: int, duration_s: int, clips: list[Path], num_questions: int
) -> Path:
    """Looped clips with questions, through `cope-prep manifest` and `cope-prep run`; made once for each folder."""
    name = f"{len(clips)}-{clips[0].stem}-{duration_s}s-{side_px}px-{num_questions}q"
    sources, dataset = folder / name / "sources", folder / name / "dataset"
    if any(dataset.glob("shards/*/dataset.json")):
        return dataset
    videos = sources / "academic_source" / "looped"
    videos.mkdir(parents=True, exist_ok=True)
    (sources / _SUBSET).mkdir(exist_ok=True)
    records = []
    for clip in clips:
        video = videos / f"{clip.stem}.mp4"
        if not video.exists():
            part = video.with_suffix(".part.mp4")
            write_looped(clip, part, num_frames=duration_s * SPECS.encode.fps)
            part.replace(video)
        records += [
            {
                "id": f"{clip.stem}-{number}",
                "data_source": "looped",
                "video": f"academic_source/looped/{clip.stem}.mp4",
                "conversations": [
                    # Each its own: a manifest takes no record twice.
                    {"from": "human", "value": f"<image>\n{QUESTION} ({number})"},
                    {"from": "gpt", "value": ANSWER},
                ],
            }
            for number in range(num_questions)
        ]
    questions = sources / _SUBSET / f"{_SUBSET.removesuffix('_v0_1')}_oe_v0_1_qa_processed.json"
    questions.write_text(json.dumps(records))
    _cope_prep("manifest", "llava-video", str(sources), str(dataset))
    _cope_prep("run", str(dataset), "--size", f"{side_px}x{side_px}", "--no-ray", "--quiet")
    return dataset


def _cope_prep(*arguments: str) -> None:
    program = str(Path(sys.executable).with_name("cope-prep"))
    subprocess.run([program, *arguments], check=True, stdout=sys.stderr)


def clip_named(stem: str) -> Path:
    """One of the real clips."""
    return next(clip for clip in real_clips() if clip.stem == stem)


def hardware(device: torch.device) -> dict[str, str]:
    """What was measured on, for the results."""
    about = machine() | {"torch": torch.__version__, "device": device.type}
    if device.type == "cuda":
        about |= {"gpu": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
    return about
