"""Models of random weights and datasets of looped real clips, for the benchmarks that time a model.

    7b      LLaVA-Video-7B's shapes: SigLIP so400m-patch14-384, Qwen2-7B, the paper's Δ-encoder
    1b      the same tower with Qwen2-1.5B's shapes
    small   for a CPU: the true token layout (27 x 27 patches, 210 tokens a picture, 8 a Δ) on true 384 x 384
            pictures, with about 1/600 of the FLOPs of every part: of the tower a picture, of the language model a
            token, of the Δ-encoder a P-frame, and of attention beside them at the length of 64 pictures. That
            takes few layers with wide MLPs: a model that is merely narrow would be all attention
    tiny    for tests: 64 x 64 pictures, 6 tokens each

What the parts cost is counted in flops.py.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from clips import machine, real_clips
from loader_data import SPECS, write_looped
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from cope_prep.encoders.build import ModelConfig
from cope_prep.encoders.chat import SYSTEM, video_prompt

FOLDER = Path("/tmp/cope-prep-bench-efficiency")
QUESTION = "What happens in the video?"
ANSWER = "People ride their bicycles along a street."
_HERE = Path(__file__).parent
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


def write_models(folder: Path, size: Size) -> dict[str, Any]:
    """config.json of tower and language model, and a tokenizer; what ModelConfig takes."""
    for name, values in (("siglip", size.tower), ("qwen2", size.language)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(values, indent=1))
    _write_tokenizer(folder / "tokenizer")
    return model_values(folder, size)


def model_values(folder: Path, size: Size) -> dict[str, Any]:
    """What ModelConfig takes, of models that are written: one rank writes them, all read."""
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


def measured_on(device: torch.device) -> dict[str, Any]:
    """The head of a results file: day, machine, and which code it was. Call it before measuring."""
    about: dict[str, Any] = machine() | {
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "device": device.type,
    }
    if device.type == "cuda":
        about |= {"gpu": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
    return {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": about, **_code(), **load("before")}


def load(when: str) -> dict[str, float]:
    """How many processes wanted to run in the last minute, ours with them: whether a machine was shared."""
    return {f"load_average_{when}": round(os.getloadavg()[0], 2)}


def _code() -> dict[str, Any]:
    """The commit, and whether the code is another (results are not code); None where there is no git."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=_HERE, capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!results")
    return {"commit": commit, "has_uncommitted_changes": None if changed is None else bool(changed)}


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, least and most."""
    values = list(values)
    found = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: round(value, 6) for name, value in found.items()}
