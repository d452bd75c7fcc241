"""Specs: defaults, limits, their text forms, and the hash that names outputs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from cope_prep.schemas.errors import ConfigurationError
from cope_prep.schemas.specs import (
    PAPER,
    DctResidual,
    EncodeSpec,
    ExtractSpec,
    Int8Residual,
    JpegIframe,
    LosslessIframe,
    LosslessResidual,
    ShardSpec,
    parse_iframe,
    parse_residual,
    spec_hash,
)


def test_defaults_are_the_documented_ones() -> None:
    encode, extract = EncodeSpec(), ExtractSpec()
    assert (encode.codec, encode.fps, encode.gop_size) == ("h264", 30, 240)
    assert (encode.width_px, encode.height_px, encode.fit) == (384, 384, "squash")
    assert (extract.window, extract.block_px) == (30, 16)
    assert extract.residual == DctResidual(quality=90)
    assert extract.iframe == JpegIframe(quality=90)
    assert ShardSpec().target_bytes == 512 * 2**20


def test_paper_profile_is_mpeg4_at_30_fps_and_gop_240() -> None:
    assert (PAPER.codec, PAPER.fps, PAPER.gop_size) == ("mpeg4", 30, 240)


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (EncodeSpec, {"codec": "hevc"}),
        (EncodeSpec, {"width_px": 390}),
        (EncodeSpec, {"height_px": 0}),
        (EncodeSpec, {"fps": "30"}),  # strict: no silent conversion
        (EncodeSpec, {"gop_size": 1}),
        (EncodeSpec, {"quality": 52}),
        (EncodeSpec, {"codec": "mpeg4", "quality": 0}),
        (EncodeSpec, {"codec": "mpeg4", "quality": 32}),
        (EncodeSpec, {"bitrate": 1}),
        (ExtractSpec, {"window": 0}),
        (ExtractSpec, {"motion_block_px": 5}),
        (ExtractSpec, {"window": 1, "motion_block_px": 16}),
        (Int8Residual, {"step": 1}),
        (DctResidual, {"quality": 101}),
        (ShardSpec, {"target_bytes": 10}),
    ],
)
def test_spec_out_of_range_fails(cls: type[BaseModel], fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        cls.model_validate(fields)


def test_specs_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        EncodeSpec().fps = 25  # pyright: ignore[reportAttributeAccessIssue]


def test_window_1_stores_the_partitions_of_the_codec() -> None:
    assert ExtractSpec(window=1).block_px == 8
    assert ExtractSpec(window=1, motion_block_px=8).block_px == 8
    assert ExtractSpec(window=10, motion_block_px=4).block_px == 4


@pytest.mark.parametrize(("step", "deadzone", "bound"), [(8, 8, 8), (8, 0, 4), (4, 3, 3), (64, 0, 32)])
def test_int8_error_bound(step: int, deadzone: int, bound: int) -> None:
    assert Int8Residual(step=step, deadzone=deadzone).error_bound == bound


def test_hash_is_the_same_in_another_process() -> None:
    code = "from cope_prep.schemas.specs import *; print(spec_hash(EncodeSpec(), ExtractSpec()))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == spec_hash(EncodeSpec(), ExtractSpec())


def test_hash_tells_specs_apart() -> None:
    chains = [
        (EncodeSpec(),),
        (EncodeSpec(quality=24),),
        (PAPER,),
        (EncodeSpec(), ExtractSpec()),
        (EncodeSpec(), ExtractSpec(window=10)),
        (EncodeSpec(), ExtractSpec(residual=LosslessResidual())),
        (EncodeSpec(), ExtractSpec(iframe=LosslessIframe())),
        (ExtractSpec(), EncodeSpec()),
        (EncodeSpec(), ExtractSpec(), ShardSpec()),
    ]
    hashes = [spec_hash(*chain) for chain in chains]
    assert len(set(hashes)) == len(chains)
    assert all(len(text) == 12 and int(text, 16) >= 0 for text in hashes)


@given(
    st.builds(
        ExtractSpec,
        window=st.integers(2, 60),
        motion_block_px=st.sampled_from([None, 16, 8, 4]),
        residual=st.one_of(
            st.builds(DctResidual, quality=st.integers(1, 100)),
            st.builds(Int8Residual, step=st.integers(2, 64), deadzone=st.integers(0, 64)),
            st.just(LosslessResidual()),
        ),
        iframe=st.one_of(st.builds(JpegIframe, quality=st.integers(1, 100)), st.just(LosslessIframe())),
    )
)
def test_json_round_trip_keeps_value_and_hash(spec: ExtractSpec) -> None:
    copy = ExtractSpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json"))))
    assert copy == spec
    assert spec_hash(copy) == spec_hash(spec)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("dct", DctResidual()),
        ("dct:80", DctResidual(quality=80)),
        ("int8", Int8Residual()),
        ("int8:4", Int8Residual(step=4, deadzone=4)),
        ("int8:4:2", Int8Residual(step=4, deadzone=2)),
        ("lossless", LosslessResidual()),
    ],
)
def test_parse_residual(text: str, spec: BaseModel) -> None:
    assert parse_residual(text) == spec


@pytest.mark.parametrize("text", ["", "jpeg", "dct:", "dct:high", "dct:0", "dct:1:2", "int8:1", "lossless:1"])
def test_parse_residual_fails(text: str) -> None:
    with pytest.raises(ConfigurationError, match="residual"):
        parse_residual(text)


@pytest.mark.parametrize(
    ("text", "spec"),
    [("jpeg", JpegIframe()), ("jpeg:80", JpegIframe(quality=80)), ("lossless", LosslessIframe())],
)
def test_parse_iframe(text: str, spec: BaseModel) -> None:
    assert parse_iframe(text) == spec


@pytest.mark.parametrize("text", ["", "png", "jpeg:x", "jpeg:101", "jpeg:1:2", "lossless:1"])
def test_parse_iframe_fails(text: str) -> None:
    with pytest.raises(ConfigurationError, match="iframe"):
        parse_iframe(text)
