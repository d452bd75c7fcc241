"""What to do, as frozen values. The hash of the specs is part of every output's identity and path.

    EncodeSpec   source video  -> fixed-GOP file
    ExtractSpec  fixed-GOP file -> GOP samples (closed loop)
    ShardSpec    GOP samples   -> shards

`PAPER` is the profile of CoPE-VideoLM (arXiv 2602.13191): MPEG-4 part 2, 30 FPS, GOP 240, windows of 30.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cope_prep.schemas.errors import ConfigurationError

SCHEMA_VERSION = 1
"""Version of the sample and index formats. A reader refuses a higher one."""


_MAX_MPEG4_GOP = 600


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class EncodeSpec(_Spec):
    """How a source video becomes a fixed-GOP file of I- and P-frames.

    H.264 is encoded so that motion compensation is exact: one reference, no weighted prediction, no
    deblocking, no partition below 8 x 8, closed GOPs, no scene cuts, one encoder thread.
    """

    codec: Literal["h264", "mpeg4"] = "h264"
    fps: int = Field(default=30, ge=1, le=240)
    gop_size: int = Field(default=240, ge=2, le=1200)
    """Frames from one I-frame to the next."""
    width_px: int = Field(default=384, ge=32, le=4096, multiple_of=16)
    height_px: int = Field(default=384, ge=32, le=4096, multiple_of=16)
    """Multiples of 16, so that the coded area is the picture and edge clamping is exact.
    Unused when fit is `keep`."""
    fit: Literal["squash", "crop", "pad", "keep"] = "squash"
    """squash: aspect ratio ignored, as LLaVA-Video does; crop: centred; pad: black bars;
    keep: the source's own display size, scaled to the nearest multiples of 16."""
    quality: int = 23
    """h264: crf, 0 to 51. mpeg4: qscale, 1 to 31."""
    preset: Literal[
        "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"
    ] = "medium"
    """x264 preset; ignored by mpeg4."""

    @model_validator(mode="after")
    def _check_quality(self) -> Self:
        low, high = (0, 51) if self.codec == "h264" else (1, 31)
        if not low <= self.quality <= high:
            raise ValueError(f"quality {self.quality} is out of range for {self.codec}: {low} to {high}")
        if self.codec == "mpeg4" and self.gop_size > _MAX_MPEG4_GOP:
            raise ValueError(
                f"gop_size is {self.gop_size}, but FFmpeg's mpeg4 encoder stops at {_MAX_MPEG4_GOP}"
            )
        return self


class DctResidual(_Spec):
    """`residual / 2 + 128` as one grey JPEG of the [3H/2, W] array; error recorded, not bounded."""

    kind: Literal["dct"] = "dct"
    quality: int = Field(default=90, ge=1, le=100)


class Int8Residual(_Spec):
    """Nearest multiple of `step`, zero inside the dead zone, as int8, zstd-compressed.

    Every pixel of every window's rebuilt anchor is within `error_bound` grey levels of the re-encoded frame; of
    the GOP's first anchor, too, when the I-frame is lossless.
    """

    kind: Literal["int8"] = "int8"
    step: int = Field(default=8, ge=2, le=64)
    """Grey levels. From 2 upwards, so that 127 steps cover the whole range of a residual."""
    deadzone: int = Field(default=8, ge=0, le=64)
    """Residuals of magnitude <= deadzone become 0. Grey levels."""

    @property
    def error_bound(self) -> int:
        """Largest absolute error of a rebuilt pixel, grey levels."""
        return max(self.deadzone, self.step // 2)


class LosslessResidual(_Spec):
    """int8 where every value fits, else int16, zstd-compressed.

    With a lossless I-frame the anchors are the decoded frames exactly.
    """

    kind: Literal["lossless"] = "lossless"


ResidualSpec = Annotated[DctResidual | Int8Residual | LosslessResidual, Field(discriminator="kind")]


class JpegIframe(_Spec):
    """The I-frame as a 4:2:0 JPEG."""

    kind: Literal["jpeg"] = "jpeg"
    quality: int = Field(default=90, ge=1, le=100)


class LosslessIframe(_Spec):
    """The I-frame's I420 planes, zstd-compressed."""

    kind: Literal["lossless"] = "lossless"


IframeSpec = Annotated[JpegIframe | LosslessIframe, Field(discriminator="kind")]


class ExtractSpec(_Spec):
    """How a fixed-GOP file becomes GOP samples."""

    window: int = Field(default=30, ge=1, le=1200)
    """s: frames fused into one P-frame. 1 keeps every P-frame and the codec's own compensation."""
    motion_block_px: Literal[16, 8, 4] | None = None
    """Side of a block of the stored motion grid; None: 16, and 8 (the codec's partitions) at window 1."""
    residual: ResidualSpec = DctResidual()
    iframe: IframeSpec = JpegIframe()

    @model_validator(mode="after")
    def _check_block(self) -> Self:
        if self.window == 1 and self.motion_block_px not in (None, 8):
            raise ValueError(
                f"motion_block_px is {self.motion_block_px}, but window 1 stores the codec's own partitions:"
                " use 8"
            )
        return self

    @property
    def block_px(self) -> int:
        """Side of a block of the stored motion grid, px."""
        if self.motion_block_px is not None:
            return self.motion_block_px
        return 8 if self.window == 1 else 16


class ShardSpec(_Spec):
    """How GOP samples are packed into shards."""

    target_bytes: int = Field(default=512 * 1024 * 1024, ge=1024)
    """Size at which a shard is closed. A single larger video makes a larger shard."""
    seed: int = 0
    """Order of the videos over the shards."""


PAPER = EncodeSpec(codec="mpeg4", quality=4)
"""The re-encoding of CoPE-VideoLM: MPEG-4, 30 FPS, GOP 240. qscale 4 is ours: the paper names none."""


def spec_hash(*specs: BaseModel) -> str:
    """12 hex digits that identify the given specs, in order, with the schema version."""
    parts: list[object] = [SCHEMA_VERSION]
    parts += [[type(spec).__name__, spec.model_dump(mode="json")] for spec in specs]
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def parse_residual(text: str) -> DctResidual | Int8Residual | LosslessResidual:
    """`dct[:QUALITY]`, `int8[:STEP[:DEADZONE]]` or `lossless` -> a residual spec.

    Raises:
        ConfigurationError: the text is none of these, or a number is out of range.
    """
    kind, *numbers = text.split(":")
    try:
        values = [int(number) for number in numbers]
        match kind, values:
            case "dct", []:
                return DctResidual()
            case "dct", [quality]:
                return DctResidual(quality=quality)
            case "int8", []:
                return Int8Residual()
            case "int8", [step]:
                return Int8Residual(step=step, deadzone=step)
            case "int8", [step, deadzone]:
                return Int8Residual(step=step, deadzone=deadzone)
            case "lossless", []:
                return LosslessResidual()
    except ValidationError as exc:
        raise ConfigurationError(f"residual {text!r}", exc.errors()[0]["msg"]) from exc
    except ValueError as exc:
        raise ConfigurationError(f"residual {text!r}", f"a number was expected ({exc})") from exc
    raise ConfigurationError(
        f"residual {text!r}",
        "not a residual coding",
        "Use dct[:QUALITY], int8[:STEP[:DEADZONE]] or lossless.",
    )


def parse_iframe(text: str) -> JpegIframe | LosslessIframe:
    """`jpeg[:QUALITY]` or `lossless` -> an I-frame spec.

    Raises:
        ConfigurationError: the text is neither, or the quality is out of range.
    """
    kind, *numbers = text.split(":")
    try:
        match kind, [int(number) for number in numbers]:
            case "jpeg", []:
                return JpegIframe()
            case "jpeg", [quality]:
                return JpegIframe(quality=quality)
            case "lossless", []:
                return LosslessIframe()
    except ValidationError as exc:
        raise ConfigurationError(f"iframe {text!r}", exc.errors()[0]["msg"]) from exc
    except ValueError as exc:
        raise ConfigurationError(f"iframe {text!r}", f"a number was expected ({exc})") from exc
    raise ConfigurationError(f"iframe {text!r}", "not an I-frame coding", "Use jpeg[:QUALITY] or lossless.")
