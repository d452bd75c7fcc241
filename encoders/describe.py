"""What a configuration's model is made of, and what its Δ-encoder saves: without anybody's weights.

    parameters   of the model on torch's meta device, where tensors have shapes and no memory
    FLOPs        counted by torch there: matrix products, convolutions, attention; a multiply-add is two
    latency      measured here, with random weights of the true sizes

P-frames are those of a GOP together, divided by their number: the frame at rest that the Δ-encoder adds to a batch
is shared by them. The peer is one frame through the vision tower (so400m without its last layer, as LLaVA-Video
uses it). Projectors and language model come on top of both. Meta tensors have no values, so the branches of the
Δ-encoder are called one by one: its forward first asks which frames are there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig

from cope_prep.encoders.alignment import AlignmentModel
from cope_prep.encoders.build import LayoutConfig, token_layout
from cope_prep.encoders.delta_encoder import DeltaEncoder, DeltaEncoderConfig
from cope_prep.encoders.finetune import FinetuneConfig
from cope_prep.encoders.llava_config import SO400M, read_llava_config
from cope_prep.encoders.pretrain import PretrainConfig
from cope_prep.encoders.pretrained import load_config
from cope_prep.encoders.token_stream import TokenLayout, gop_tokens
from cope_prep.encoders.video_lm import VideoLM
from cope_prep.encoders.vision_tower import VisionTower
from cope_prep.schemas.errors import ConfigurationError

# Letters: F frames, C channels, H, W frame, Hb, Wb grid of blocks.

LIKE = "llava-video-7b"
_MEASURE_S = 2.0
"""A median of as many runs as fit; one at least."""
_MAX_RUNS = 20
QWEN2_7B: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one frame through a module."""

    num_together: int
    """Frames at a time; the figures are for one of them."""

    num_parameters: int
    flops: int
    latency_ms: float | None
    """Median; None if not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A model in numbers."""

    task: str
    parameters: dict[str, int]
    """By part, in the order of the data."""
    delta_encoder: Cost
    vision_tower: Cost
    frame_px: tuple[int, int]
    """Height, width of the P-frame; the tower's picture has its own."""
    block_px: int
    device: str
    """What the latencies were measured on, and in which type."""
    picture_tokens: int
    delta_tokens: int
    num_anchors: int
    """Of a full GOP."""
    gop_tokens: dict[int, int]
    """By key frames of a full GOP."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"num_parameters": sum(self.parameters.values())}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """What is needed to build a model without weights. A run of stage 1 has no language model."""

    vision: SiglipVisionConfig
    language: Qwen2Config | None
    delta: DeltaEncoderConfig
    layout: TokenLayout


def describe(
    config: PretrainConfig | FinetuneConfig | None,
    *,
    like: str | None = None,
    height_px: int = 384,
    width_px: int = 384,
    measure: bool = True,
) -> Description:
    """
    like: `llava-video-7b`: take tower, language model and token layout of LLaVA-Video-7B, and read no folder.
    Else config.json alone is read of each.

    Raises:
        ConfigurationError: a folder has no config.json, or that of a model which build.py would not take; or a
            P-frame of that size has no whole grid of blocks.
    """
    shapes = _shapes(config, like=like)
    expect = config.data.expect if config is not None else None
    block_px = (expect and expect.block_px) or 16
    if height_px % block_px or width_px % block_px:
        raise ConfigurationError(f"{width_px}x{height_px}", f"is no multiple of {block_px} px")
    num_anchors = max(1, ((expect and expect.gop_size) or 240) // ((expect and expect.window) or 30))
    parts = _parts(config, shapes)
    device, dtype = _measured_on()
    timed_on, num_frames = device if measure else None, max(1, num_anchors - 1)
    frame_px = (height_px, width_px)
    delta_costs = _delta_cost(shapes.delta, frame_px, block_px, num_frames, timed_on, dtype)
    tower_costs = _tower_cost(shapes.vision, timed_on, dtype)
    return Description(
        task="finetune" if config is None else config.task,
        parameters=parts,
        delta_encoder=delta_costs,
        vision_tower=tower_costs,
        frame_px=frame_px,
        block_px=block_px,
        device=f"{_name(device)}, {str(dtype).removeprefix('torch.')}",
        picture_tokens=shapes.layout.picture_tokens,
        delta_tokens=shapes.layout.delta_tokens,
        num_anchors=num_anchors,
        gop_tokens={
            key_frames: gop_tokens(num_anchors, key_frames, shapes.layout)
            for key_frames in range(1, num_anchors + 1)
            if num_anchors % key_frames == 0
        },
    )


def _shapes(config: PretrainConfig | FinetuneConfig | None, *, like: str | None) -> Shapes:
    if config is None and like is None:
        raise ConfigurationError("describe", "has nothing to describe", f"Give a CONFIG, or --like {LIKE}.")
    if isinstance(config, FinetuneConfig):
        sources, delta, chosen = config.model, config.model.delta_encoder, config.model.layout
        siglip, llava, qwen2 = sources.siglip, sources.llava, sources.qwen2
        delta_tokens = config.model.delta_tokens
    else:
        delta = DeltaEncoderConfig() if config is None else config.delta_encoder
        chosen, qwen2, delta_tokens = None, None, delta.num_tokens
        siglip, llava = (None, None) if config is None else (config.tower.siglip, config.tower.llava)
    language: Qwen2Config | None = None
    layout: TokenLayout | None = None
    if like is not None:
        vision = SiglipVisionConfig(**SO400M)
        language = Qwen2Config(**QWEN2_7B)
    elif llava is not None:
        stored = read_llava_config(llava, delta_tokens=delta_tokens, has_weights=False)
        vision, language = stored.vision, stored.language
        layout = stored.layout if chosen is None else None
    else:
        assert siglip is not None
        vision = load_config(SiglipVisionConfig, siglip)
        language = load_config(Qwen2Config, qwen2) if qwen2 else None
    if isinstance(config, PretrainConfig):
        language = None
    if layout is None:
        side = int(vision.image_size) // int(vision.patch_size)  # type: ignore[arg-type]
        layout = token_layout(chosen or LayoutConfig(), patches_per_side=side, delta_tokens=delta_tokens)
    return Shapes(
        vision=vision,
        language=language,
        delta=delta.model_copy(update={"resnet_checkpoint": None}),
        layout=layout,
    )


def _parts(config: PretrainConfig | FinetuneConfig | None, shapes: Shapes) -> dict[str, int]:
    """Parameters by part of the model that a run trains, and the frozen tower of stage 1."""
    with torch.device("meta"):
        tower = VisionTower(shapes.vision)
        delta = DeltaEncoder(shapes.delta)
        parts: dict[str, nn.Module | None] = {
            "vision tower": tower,
            "Δ-encoder: motion branch": delta.motion,
            "Δ-encoder: residual branch": delta.residual,
        }
        if isinstance(config, PretrainConfig):
            side = shapes.layout.patches_per_side
            model = AlignmentModel(config.alignment, shapes.delta, patches_per_side=side)
            parts |= {
                "reference transformer": model.reference,
                "warp transformer": model.warp,
                "projections of stage 1": nn.ModuleList(
                    (model.patch_in, model.delta_in, model.norm, model.out)
                ),
            }
            counts = {name: _count(part) for name, part in parts.items()}
            assert sum(counts.values()) == _count(model) + _count(tower)
            return counts
        assert shapes.language is not None
        whole = VideoLM(
            vision_tower=tower,
            delta_encoder=delta,
            language_model=Qwen2ForCausalLM(shapes.language),
            layout=shapes.layout,
        )
    parts |= {
        "projector": whole.projector,
        "Δ-projector": whole.delta_projector,
        "language model": whole.language_model,
    }
    counts = {name: _count(part) for name, part in parts.items()}
    counts["image newline"] = whole.image_newline.numel()
    assert sum(counts.values()) == _count(whole)
    return counts


def _count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


def _delta_cost(
    config: DeltaEncoderConfig,
    frame_px: tuple[int, int],
    block_px: int,
    num_frames: int,
    device: torch.device | None,
    dtype: torch.dtype,
) -> Cost:
    height, width = frame_px
    grid = (height // block_px, width // block_px)

    def call(encoder: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        assert isinstance(encoder, DeltaEncoder)
        if encoder.motion is not None:
            motion_FCHW = torch.zeros(num_frames, 2, *grid, device=device, dtype=dtype)
            encoder.motion(motion_FCHW, torch.zeros(num_frames, *grid, device=device, dtype=torch.bool))
        if encoder.residual is not None:
            luma_FCHW = torch.zeros(num_frames, 1, height, width, device=device, dtype=dtype)
            chroma_FCHW = torch.zeros(num_frames, 2, height // 2, width // 2, device=device, dtype=dtype)
            encoder.residual(luma_FCHW, chroma_FCHW)

    return _cost(lambda: DeltaEncoder(config), call, device, dtype, num_together=num_frames)


def _tower_cost(config: SiglipVisionConfig, device: torch.device | None, dtype: torch.dtype) -> Cost:
    def call(tower: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        size = (config.image_size, config.image_size)
        tower(torch.zeros(1, 3, *size, device=device, dtype=dtype))  # type: ignore[arg-type]

    return _cost(lambda: VisionTower(config), call, device, dtype, num_together=1)


@torch.no_grad()
def _cost(
    build: Callable[[], nn.Module],
    call: Callable[[nn.Module, torch.device, torch.dtype], None],
    device: torch.device | None,
    dtype: torch.dtype,
    *,
    num_together: int,
) -> Cost:
    """Parameters and FLOPs on the meta device; the time on `device`, if there is one."""
    meta = torch.device("meta")
    with meta:
        module = build().eval().requires_grad_(False)  # else the counter looks for graphs
    with FlopCounterMode(display=False) as counter:
        call(module, meta, torch.float32)
    latency_ms = None
    if device is not None:
        with torch.device(device):
            real = build().eval().to(dtype)
        latency_ms = _latency_ms(lambda: call(real, device, dtype), device) / num_together
    return Cost(
        num_together=num_together,
        num_parameters=_count(module),
        flops=round(counter.get_total_flops() / num_together),
        latency_ms=latency_ms,
    )


def _latency_ms(call: Callable[[], None], device: torch.device) -> float:
    """Median over repetitions, after one that does not count."""

    def timed() -> float:
        begun_s = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun_s

    timed()
    times_s = [timed()]
    while sum(times_s) < _MEASURE_S and len(times_s) < _MAX_RUNS:
        times_s.append(timed())
    return 1000 * statistics.median(times_s)


def _measured_on() -> tuple[torch.device, torch.dtype]:
    if torch.cuda.is_available():
        return torch.device("cuda"), torch.bfloat16
    return torch.device("cpu"), torch.float32


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
