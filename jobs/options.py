"""What the commands are told: flags shared by several of them, and how they become specs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ValidationError

from cope_prep.jobs.resources import MIN_MEMORY_BYTES
from cope_prep.jobs.video_stage import DEFAULT_TIME_LIMIT_S
from cope_prep.pipeline.layout import Specs, find_specs, several_outputs, the_specs
from cope_prep.schemas.errors import ConfigurationError
from cope_prep.schemas.specs import PAPER, EncodeSpec, ExtractSpec, ShardSpec, parse_iframe, parse_residual

_ENCODE, _EXTRACT, _SHARD = "Re-encoding", "Extraction", "Shards"
_WHAT, _WHERE = "What to run", "Where to run"

Dataset = Annotated[str, typer.Argument(help="The dataset: a folder or any fsspec URL.", show_default=False)]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
SpecHash = Annotated[
    str | None,
    typer.Option(
        "--spec", metavar="HASH", help="Which earlier output, when there are several.", rich_help_panel=_WHAT
    ),
]

Profile = Annotated[
    str,
    typer.Option(metavar="default|paper", help="paper: MPEG-4, as CoPE-VideoLM.", rich_help_panel=_ENCODE),
]
Codec = Annotated[str | None, typer.Option(metavar="h264|mpeg4", rich_help_panel=_ENCODE)]
Fps = Annotated[int | None, typer.Option(help="Frames per second.", rich_help_panel=_ENCODE)]
GopSize = Annotated[
    int | None, typer.Option(help="Frames from one I-frame to the next.", rich_help_panel=_ENCODE)
]
Size = Annotated[str | None, typer.Option(metavar="WxH", help="Multiples of 16.", rich_help_panel=_ENCODE)]
Fit = Annotated[
    str | None,
    typer.Option(
        metavar="squash|crop|pad|keep", help="How a picture gets that size.", rich_help_panel=_ENCODE
    ),
]
Quality = Annotated[
    int | None, typer.Option(help="h264: crf, 0 to 51. mpeg4: qscale, 1 to 31.", rich_help_panel=_ENCODE)
]
Preset = Annotated[str | None, typer.Option(help="Of x264.", rich_help_panel=_ENCODE)]

Window = Annotated[
    int | None, typer.Option(help="Frames fused into one P-frame; 1: every frame.", rich_help_panel=_EXTRACT)
]
Block = Annotated[
    int | None, typer.Option(metavar="16|8|4", help="Block of the motion grid, px.", rich_help_panel=_EXTRACT)
]
Residual = Annotated[
    str | None, typer.Option(metavar="dct[:Q]|int8[:STEP[:ZONE]]|lossless", rich_help_panel=_EXTRACT)
]
Iframe = Annotated[str | None, typer.Option(metavar="jpeg[:Q]|lossless", rich_help_panel=_EXTRACT)]

ShardBytes = Annotated[
    str | None, typer.Option(metavar="SIZE", help="For instance 512MiB or 1GB.", rich_help_panel=_SHARD)
]
Seed = Annotated[
    int | None, typer.Option(help="Order of the videos over the shards.", rich_help_panel=_SHARD)
]
Consume = Annotated[
    bool,
    typer.Option(
        "--consume", help="Delete each extracted tar once its shard is published.", rich_help_panel=_SHARD
    ),
]
ConsumeReencoded = Annotated[
    bool,
    typer.Option(
        "--consume-reencoded", help="Delete the re-encoded files then, too.", rich_help_panel=_SHARD
    ),
]

Limit = Annotated[
    int | None,
    typer.Option(min=1, help="Only the first N videos of the manifest.", metavar="N", rich_help_panel=_WHAT),
]
Address = Annotated[
    str,
    typer.Option(metavar="local|auto|HOST:PORT|ray://...", help="The Ray to run on.", rich_help_panel=_WHERE),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Videos at a time; default: one a CPU.", rich_help_panel=_WHERE),
]
NoRay = Annotated[
    bool,
    typer.Option(
        "--no-ray",
        help="In this process, for debugging: no child process stands between it and a hostile video.",
        rich_help_panel=_WHERE,
    ),
]
TimeLimit = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        metavar="SECONDS",
        help=f"Per video, or part of a long one; default {DEFAULT_TIME_LIMIT_S:g}. A slower one fails.",
        rich_help_panel=_WHERE,
    ),
]
MemoryLimit = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Of each worker process; default 2GiB, up to 16GiB for huge pictures. A larger one fails.",
        rich_help_panel=_WHERE,
    ),
]
Wheel = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="This version's wheel, for a cluster that has what it needs, but not it.",
        rich_help_panel=_WHERE,
    ),
]


_FLAGS = {
    "width_px": "size",
    "height_px": "size",
    "motion_block_px": "block",
    "target_bytes": "shard-bytes",
}
"""Field of a spec -> the flag that sets it, where the names differ."""


def override(base: BaseModel, **given: Any) -> Any:
    """The spec with some values changed, checked."""
    values = base.model_dump() | {name: value for name, value in given.items() if value is not None}
    try:
        return type(base).model_validate(values)
    except ValidationError as exc:
        error = exc.errors()[0]
        field = str(error["loc"][0]) if error["loc"] else ""  # no field: a check of several together
        found = error["msg"].removeprefix("Value error, ")
        subject = f"--{_FLAGS.get(field, field.replace('_', '-'))} {error['input']}" if field else "options"
        raise ConfigurationError(subject, found) from exc


def encode_spec(
    *,
    profile: str,
    codec: str | None,
    fps: int | None,
    gop_size: int | None,
    size: str | None,
    fit: str | None,
    quality: int | None,
    preset: str | None,
) -> EncodeSpec:
    """EncodeSpec of the flags: a profile, and what was given on top of it."""
    profiles = {"default": EncodeSpec(), "paper": PAPER}
    if profile not in profiles:
        raise ConfigurationError(f"--profile {profile}", "no such profile", "Use default or paper.")
    base = profiles[profile]
    if codec is not None and codec != base.codec and quality is None:
        # A crf is no qscale: another codec brings its own default.
        quality = PAPER.quality if codec == "mpeg4" else EncodeSpec().quality
    width_px = height_px = None
    if size is not None:
        match = re.fullmatch(r"(\d+)x(\d+)", size.lower())
        if match is None:
            raise ConfigurationError(f"--size {size}", "is not WxH", "For instance --size 384x384.")
        width_px, height_px = int(match[1]), int(match[2])
    return override(
        base,
        codec=codec,
        fps=fps,
        gop_size=gop_size,
        width_px=width_px,
        height_px=height_px,
        fit=fit,
        quality=quality,
        preset=preset,
    )


def extract_spec(
    *, window: int | None, block: int | None, residual: str | None, iframe: str | None
) -> ExtractSpec:
    """ExtractSpec of the flags."""
    return override(
        ExtractSpec(),
        window=window,
        motion_block_px=block,
        residual=None if residual is None else parse_residual(residual).model_dump(),
        iframe=None if iframe is None else parse_iframe(iframe).model_dump(),
    )


def shard_spec(*, shard_bytes: str | None, seed: int | None) -> ShardSpec:
    """ShardSpec of the flags."""
    target_bytes = None if shard_bytes is None else parse_bytes(shard_bytes)
    return override(ShardSpec(), target_bytes=target_bytes, seed=seed)


def whole_specs(*, encode: EncodeSpec, extract: ExtractSpec, shard: ShardSpec | None = None) -> Specs:
    """The specs together, checked for what only shows when they meet."""
    if extract.window >= encode.gop_size:
        raise ConfigurationError(
            f"--window {extract.window}",
            f"leaves no P-frame in a GOP of {encode.gop_size}",
            "Choose a window shorter than the GOP.",
        )
    return Specs(encode=encode, extract=extract, shard=shard or ShardSpec())


_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS |= {f"{_letter}IB": 1024**_power, f"{_letter}B": 1000**_power}


def parse_bytes(text: str, *, flag: str = "--shard-bytes") -> int:
    """`512MiB`, `1.5GB` or `1000000` -> bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise ConfigurationError(f"{flag} {text}", "is not a size", "For instance 512MiB, 1GB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def parse_memory_limit(text: str | None) -> int | None:
    """`--memory-limit` in bytes; None if it was not given.

    Raises:
        ConfigurationError: it is no size, or too small.
    """
    if text is None:
        return None
    memory_bytes = parse_bytes(text, flag="--memory-limit")
    if memory_bytes < MIN_MEMORY_BYTES:
        raise ConfigurationError(
            f"--memory-limit {text}", "is too little for a worker to start", "At least 512MiB."
        )
    return memory_bytes


def parse_rate(text: str, *, flag: str) -> int:
    """`2GB/s` or `500MiB/s` -> bytes a second."""
    size, slash, second = text.strip().partition("/")
    if re.search(r"[a-zA-Z]", size) and size.rstrip()[-1] == "b":
        raise ConfigurationError(
            f"{flag} {text}", "is bits", "Divide by 8 and write bytes: 16 Gb/s is 2GB/s."
        )
    try:
        rate = parse_bytes(size, flag=flag)
    except ConfigurationError:
        rate = 0
    if rate < 1 or (slash and second.strip() != "s"):
        raise ConfigurationError(f"{flag} {text}", "is not a rate", "For instance 2GB/s or 500MiB/s.")
    return rate


def choose_specs(dataset: str, stage: str, spec_hash: str | None) -> Specs:
    """The specs of a stage's output: the one that is named by its hash (or its beginning), or the only one."""
    if spec_hash is None:
        return the_specs(dataset, stage)
    hashes = {specs.hash_of(stage): specs for specs in find_specs(dataset, stage)}
    found = [name for name in hashes if name.startswith(spec_hash)]
    if len(found) != 1:
        there = ", ".join(hashes) or "none"
        raise ConfigurationError(
            f"--spec {spec_hash}", f"names {len(found)} outputs of {stage} in {dataset} (there: {there})"
        )
    return hashes[found[0]]


def choose_sample_specs(dataset: str, spec_hash: str | None) -> Specs:
    """The specs of samples, be they in shards already or in extracted tars still."""
    sharded = [specs.hash_of("shards") for specs in find_specs(dataset, "shards")]
    in_shards = any(name.startswith(spec_hash or "") for name in sharded)
    return choose_specs(dataset, "shards" if in_shards else "extract", spec_hash)


def choose_furthest_specs(dataset: str, spec_hash: str | None) -> Specs:
    """The specs of the furthest stage that has begun, of those that the hash leaves; the default ones if none has.

    The hash of an earlier stage stands for what was made of its output.
    """
    outputs: dict[str, list[Specs]] = {}
    for stage in ("shards", "extract", "reencode"):
        outputs[stage] = find_specs(dataset, stage)
        hashes = [specs.hash_of(stage) for specs in outputs[stage]]
        if any(name.startswith(spec_hash or "") for name in hashes):
            chosen = choose_specs(dataset, stage, spec_hash)
            return _furthest_made_of(chosen, stage, outputs, dataset)
    return Specs() if spec_hash is None else choose_specs(dataset, "shards", spec_hash)


def _furthest_made_of(
    chosen: Specs, stage: str, outputs: Mapping[str, Sequence[Specs]], dataset: str
) -> Specs:
    """`outputs`: those of `stage` and of all later ones, the last stage first."""
    for later, found in outputs.items():
        made_of = [specs for specs in found if specs.hash_of(stage) == chosen.hash_of(stage)]
        if len(made_of) > 1:
            raise several_outputs(dataset, later, made_of)
        if made_of:
            return made_of[0]
    return chosen
