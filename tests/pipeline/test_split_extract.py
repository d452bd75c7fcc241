"""Extraction in parts gives the tar that extraction in one piece gives."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from split_calls import run_parts, run_split, through_pickle

from cope_prep.pipeline import extract_parts
from cope_prep.pipeline.extract import ExtractReport, extract_gops, extract_video
from cope_prep.pipeline.extract_parts import extract_or_split
from cope_prep.pipeline.reencode import reencode_video
from cope_prep.pipeline.split import NeedsMemory, Split, Unfit
from cope_prep.schemas.errors import BitstreamError, ChecksumError
from cope_prep.schemas.specs import EncodeSpec, ExtractSpec, LosslessIframe, LosslessResidual

SIZE: dict[str, Any] = {"width_px": 96, "height_px": 64}
SPECS = {
    "h264": EncodeSpec(codec="h264", gop_size=10, preset="ultrafast", **SIZE),
    "mpeg4": EncodeSpec(codec="mpeg4", gop_size=10, quality=3, **SIZE),
}
NUM_FRAMES = 95
"""Nine GOPs and a half."""


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part is two GOPs."""
    monkeypatch.setattr(extract_parts, "_WORK_PER_FRAME_S", 120.0)
    monkeypatch.setattr(extract_parts, "_WORK_PER_WINDOW_S", 0.0)
    monkeypatch.setattr(extract_parts, "_MEASURED_PX", 96 * 64 * 40)


@pytest.fixture(scope="module", params=SPECS)
def fixed(
    request: pytest.FixtureRequest, media: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, EncodeSpec]:
    folder = tmp_path_factory.mktemp("fixed")
    source = media.write_clip(folder / "source.mp4", num_frames=NUM_FRAMES, painter=media.moving)
    spec = SPECS[request.param]
    reencode_video(str(source), str(folder / "fixed.mp4"), spec=spec)
    return folder / "fixed.mp4", spec


def names(spec: EncodeSpec, **extract: Any) -> dict[str, Any]:
    return {"spec": ExtractSpec(**extract), "encode_spec": spec, "video_id": "a/b.mp4"}


@pytest.mark.parametrize("window", [1, 3])
def test_parts_join_to_the_same_tar(fixed: tuple[Path, EncodeSpec], tmp_path: Path, window: int) -> None:
    path, spec = fixed
    how = names(spec, window=window)
    whole = extract_video(str(path), str(tmp_path / "whole.tar"), **how)
    split = extract_or_split(str(path), str(tmp_path / "out.tar"), **how)
    assert isinstance(split, Split)
    assert len(split.parts) == 5
    report = run_split(split)
    assert isinstance(report, ExtractReport)
    assert (tmp_path / "out.tar").read_bytes() == (tmp_path / "whole.tar").read_bytes()
    times = {"wall_s": 0.0, "cpu_s": 0.0}
    assert dataclasses.replace(report, **times) == dataclasses.replace(whole, **times)
    assert report.num_frames == NUM_FRAMES
    assert not list((tmp_path / "parts").iterdir())


def test_damaged_part_file_leads_to_one_piece(fixed: tuple[Path, EncodeSpec], tmp_path: Path) -> None:
    path, spec = fixed
    out = tmp_path / "out.tar"
    split = extract_or_split(str(path), str(out), **names(spec, window=3))
    assert isinstance(split, Split)
    results = run_parts(split)
    part = sorted((tmp_path / "parts/out").iterdir())[1]
    part.write_bytes(part.read_bytes()[:-512])
    unfit = through_pickle(functools.partial(split.join, results))
    assert isinstance(unfit, Unfit)
    assert not out.exists()
    through_pickle(functools.partial(split.whole, unfit))
    extract_video(str(path), str(tmp_path / "whole.tar"), **names(spec, window=3))
    assert out.read_bytes() == (tmp_path / "whole.tar").read_bytes()
    assert not list((tmp_path / "parts").iterdir())


def test_join_that_is_done_again_leads_to_one_piece(fixed: tuple[Path, EncodeSpec], tmp_path: Path) -> None:
    """Its worker was lost after it had removed the parts, and before it had answered."""
    path, spec = fixed
    out = tmp_path / "out.tar"
    split = extract_or_split(str(path), str(out), **names(spec, window=3))
    assert isinstance(split, Split)
    results = run_parts(split)
    through_pickle(functools.partial(split.join, results))
    published = out.read_bytes()
    unfit = through_pickle(functools.partial(split.join, results))
    assert isinstance(unfit, Unfit)
    report = through_pickle(functools.partial(split.whole, unfit))
    assert report.num_frames == NUM_FRAMES
    assert out.read_bytes() == published


def test_checksum_is_looked_at_before_anything_is_split(
    fixed: tuple[Path, EncodeSpec], tmp_path: Path
) -> None:
    path, spec = fixed
    with pytest.raises(ChecksumError):
        extract_or_split(str(path), str(tmp_path / "out.tar"), **names(spec, window=3), source_crc32c=1)


def test_some_gops_of_a_file(fixed: tuple[Path, EncodeSpec]) -> None:
    path, spec = fixed
    how = names(spec, window=3)
    everything = list(extract_gops(str(path), **how))
    some = list(extract_gops(str(path), **how, first_gop=4, stop_gop=7))
    assert [record.gop_index for record in some] == [4, 5, 6]
    assert [record.anchor_crc32c for record in some] == [record.anchor_crc32c for record in everything[4:7]]
    with pytest.raises(BitstreamError):
        list(extract_gops(str(path), **how, first_gop=12))


def test_large_gops_ask_for_memory(fixed: tuple[Path, EncodeSpec], tmp_path: Path) -> None:
    path, spec = fixed
    how = names(spec, window=1, residual=LosslessResidual(), iframe=LosslessIframe())
    asked = extract_or_split(str(path), str(tmp_path / "out.tar"), **how, memory_bytes=200 << 20)
    assert isinstance(asked, NeedsMemory)
    assert isinstance(through_pickle(asked.call), Split)
