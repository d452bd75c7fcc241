"""Windows of s = 10 and s = 1 read as s = 30: the closed loop, and a direct extraction at s = 30 beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cope_prep.pipeline.decode import read_frames
from cope_prep.pipeline.extract import extract_gops
from cope_prep.pipeline.kernels.warp import warp
from cope_prep.pipeline.loader.merge import merge_whole, windows_to_merge
from cope_prep.pipeline.loader.primitives import (
    GopArrays,
    GopLayout,
    WholeGop,
    allocate,
    apply_decoded,
    decode_whole,
    gop_layout,
    load_gop,
    load_window,
    residual_scale,
)
from cope_prep.pipeline.rebuild import rebuild_anchors
from cope_prep.pipeline.reencode import reencode_video
from cope_prep.schemas.errors import ChecksumError, ConfigurationError, FormatError
from cope_prep.schemas.records import GopRecord
from cope_prep.schemas.specs import (
    DctResidual,
    EncodeSpec,
    ExtractSpec,
    Int8Residual,
    LosslessIframe,
    LosslessResidual,
)

H264 = EncodeSpec()
MPEG4 = EncodeSpec(codec="mpeg4", quality=4)
BIKES, CARPHONE = 1, 2

Reencode = Callable[[int, EncodeSpec], Path]


@pytest.fixture(scope="module")
def reencoded(real_clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Reencode:
    """A real clip, re-encoded once for each spec."""
    folder = tmp_path_factory.mktemp("reencoded")
    made: dict[tuple[int, EncodeSpec], Path] = {}

    def reencode(clip: int, spec: EncodeSpec) -> Path:
        if (clip, spec) not in made:
            made[clip, spec] = folder / f"{len(made)}.mp4"
            reencode_video(str(real_clips[clip]), str(made[clip, spec]), spec=spec)
        return made[clip, spec]

    return reencode


@pytest.fixture(scope="module")
def bikes(reencoded: Reencode) -> list[GopRecord]:
    """At s = 10, a full GOP of 24 anchors and a short one of 6: 8 and 2 at s = 30."""
    return list(extract_gops(str(reencoded(BIKES, H264)), spec=ExtractSpec(window=10)))


def layout_of(record: GopRecord, key_frames: int, window: int = 30) -> GopLayout:
    return gop_layout(
        num_frames=record.num_frames,
        gop_size=240,
        fps=record.fps,
        start_s=record.start_s,
        window=window,
        key_frames=key_frames,
    )


def arrays_for(record: GopRecord, num_pictures: int, num_deltas: int) -> GopArrays:
    return allocate(
        num_pictures=num_pictures,
        num_deltas=num_deltas,
        height_px=record.height_px,
        width_px=record.width_px,
        block_px=record.block_px,
        window=30,
        residual_spec=record.residual_spec,
    )


def next_anchor(record: GopRecord, reference: np.ndarray, out: GopArrays, p: int) -> np.ndarray:
    prediction, rebuilt = np.empty((2, *reference.shape), np.uint8)
    warp(reference, out.motion[p], round(float(out.motion_step_px[p]) * 4), record.block_px, prediction)
    scale = residual_scale(record.residual_spec)
    apply_decoded(scale, prediction=prediction, decoded=out.residual[p], rebuilt=rebuilt)
    return rebuilt


def consume(record: GopRecord, whole: WholeGop, layout: GopLayout) -> np.ndarray:
    """All anchors, from nothing but what load_gop hands on."""
    out = arrays_for(record, layout.num_pictures, layout.num_deltas)
    load_gop(whole, layout=layout, out=out)
    anchors: list[np.ndarray] = []
    num_pictures = num_deltas = 0
    for is_picture in layout.is_picture:
        if is_picture:
            anchors.append(out.pictures[num_pictures])
            num_pictures += 1
        else:
            anchors.append(next_anchor(record, anchors[-1], out, num_deltas))
            num_deltas += 1
    return np.stack(anchors)


def errors_of(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.abs(found.astype(int) - expected).max(axis=(1, 2))


def psnr_y(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    rows = found.shape[1] * 2 // 3
    return 10 * np.log10(
        255**2 / np.mean((found[:, :rows].astype(float) - expected[:, :rows]) ** 2, axis=(1, 2))
    )


@pytest.mark.parametrize("key_frames", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("residual", "bound"),
    [(DctResidual(), 1), (Int8Residual(step=6, deadzone=2), 3), (LosslessResidual(), 0)],
)
def test_consumer_stays_within_the_codings_bound(
    key_frames: int,
    residual: DctResidual | Int8Residual | LosslessResidual,
    bound: int,
    reencoded: Reencode,
) -> None:
    spec = ExtractSpec(window=10, residual=residual, iframe=LosslessIframe())
    records = list(extract_gops(str(reencoded(BIKES, H264)), spec=spec))
    assert [record.num_anchors for record in records] == [24, 6]
    for record in records:
        layout = layout_of(record, key_frames)
        stored = rebuild_anchors(record)[::3]
        whole = merge_whole(record, window=30, layout=layout, check=True)
        np.testing.assert_array_equal(whole.anchors, stored[: layout.num_anchors])
        errors = errors_of(consume(record, whole, layout), whole.anchors)
        assert not errors[layout.is_picture].any()
        assert errors.max() <= bound


@pytest.mark.parametrize("clip", range(4))
@pytest.mark.parametrize("spec", [H264, MPEG4], ids=["h264", "mpeg4"])
def test_merging_tens_is_as_good_as_extracting_at_thirty(
    clip: int, spec: EncodeSpec, reencoded: Reencode
) -> None:
    path = str(reencoded(clip, spec))
    record = next(extract_gops(path, spec=ExtractSpec(window=10), encode_spec=spec))
    direct = decode_whole(next(extract_gops(path, encode_spec=spec)))
    layout = layout_of(record, 1)
    merged = merge_whole(record, window=30, layout=layout)
    assert merged.residual.shape == direct.residual.shape
    assert merged.motion.shape == direct.motion.shape
    assert len(merged.motion) >= 4

    frames = np.stack([frame.picture() for frame in read_frames(path)])[: record.num_frames : 30]
    rebuilt = consume(record, merged, layout)
    # Merging costs what half amplitude does. Against the direct extraction the shard's own fidelity counts too: at
    # s = 10 three generations of JPEG lie between two anchors, at s = 30 one.
    assert (psnr_y(rebuilt, frames) >= psnr_y(merged.anchors, frames) - 1).all()
    assert psnr_y(rebuilt, frames)[1:].mean() >= psnr_y(direct.anchors, frames)[1:].mean() - 2

    energy, direct_energy = (((whole.residual - 128.0) ** 2).mean() for whole in (merged, direct))
    assert 0.8 <= energy / direct_energy <= 1.05
    vectors, direct_vectors = (
        whole.motion * whole.motion_step_px[:, None, None, None] for whole in (merged, direct)
    )
    # The pristine carphone is handheld and finely textured: many vectors predict it equally well.
    close = (np.abs(vectors - direct_vectors) <= 1).all(axis=-1)
    assert close.mean() >= (0.45 if clip == 3 else 0.65)
    still, direct_still = (~whole.motion.any(axis=-1) for whole in (merged, direct))
    assert (still == direct_still).mean() >= 0.85
    assert abs(merged.intra.mean() - direct.intra.mean()) <= 0.05


@pytest.mark.parametrize("spec", [H264, MPEG4], ids=["h264", "mpeg4"])
def test_merging_single_frames_follows_the_extractors_own_paths(
    spec: EncodeSpec, reencoded: Reencode
) -> None:
    path = str(reencoded(CARPHONE, spec))
    lossless = {"residual": LosslessResidual(), "iframe": LosslessIframe()}
    record = next(extract_gops(path, spec=ExtractSpec(window=1, **lossless), encode_spec=spec))
    direct = next(
        extract_gops(path, spec=ExtractSpec(window=30, motion_block_px=8, **lossless), encode_spec=spec)
    )
    expected = decode_whole(direct)
    merged = merge_whole(record, window=30, check=True)
    for field in ("anchors", "motion", "motion_step_px", "intra", "residual"):
        np.testing.assert_array_equal(getattr(merged, field), getattr(expected, field))
    assert merged.motion.dtype == np.int8
    assert len(merged.motion) == 4


def test_merging_single_frames_of_a_lossy_shard(reencoded: Reencode) -> None:
    record = next(extract_gops(str(reencoded(CARPHONE, H264)), spec=ExtractSpec(window=1)))
    layout = layout_of(record, 1)
    merged = merge_whole(record, window=30, layout=layout, check=True)
    np.testing.assert_array_equal(merged.anchors, rebuild_anchors(record)[::30])
    assert errors_of(consume(record, merged, layout), merged.anchors).max() == 1


@pytest.mark.parametrize("block_px", [16, 8, 4])
@pytest.mark.parametrize("window", [20, 60])
def test_every_block_size_and_multiple(block_px: int, window: int, reencoded: Reencode) -> None:
    spec = ExtractSpec(window=10, motion_block_px=block_px)
    record = next(extract_gops(str(reencoded(CARPHONE, H264)), spec=spec))
    layout = layout_of(record, 1, window)
    whole = merge_whole(record, window=window, layout=layout)
    assert whole.motion.shape == ((record.num_frames - 1) // window, 384 // block_px, 384 // block_px, 2)
    assert errors_of(consume(record, whole, layout), whole.anchors).max() == 1


def test_windows_alone_are_coded_against_the_stored_anchors(bikes: list[GopRecord]) -> None:
    record = bikes[0]
    whole = merge_whole(record, window=30)
    stored = rebuild_anchors(record)[::3]
    out = arrays_for(record, 2, 1)
    for index in range(7):
        load_window(whole, index, out=out)
        np.testing.assert_array_equal(out.pictures, stored[index : index + 2])
        rebuilt = next_anchor(record, out.pictures[0], out, 0)
        assert errors_of(rebuilt[None], stored[index + 1][None]).max() <= 1


def test_window_of_the_shard_is_read_as_it_is(bikes: list[GopRecord]) -> None:
    whole, expected = merge_whole(bikes[1], window=10), decode_whole(bikes[1])
    np.testing.assert_array_equal(whole.residual, expected.residual)
    assert whole.chain_starts is None


def test_merge_ends_with_the_last_whole_window(bikes: list[GopRecord]) -> None:
    assert (bikes[1].num_frames, len(bikes[1].windows)) == (60, 5)
    whole = merge_whole(bikes[1], window=30)
    np.testing.assert_array_equal(whole.anchors, rebuild_anchors(bikes[1])[[0, 3]])
    assert len(merge_whole(bikes[1], window=60).motion) == 0


@pytest.mark.parametrize("window", [15, 5, 1, 0, -10])
def test_merge_to_no_multiple_fails(window: int, bikes: list[GopRecord]) -> None:
    with pytest.raises(ConfigurationError, match=f"window {window}: is no multiple of 10"):
        merge_whole(bikes[1], window=window)
    assert windows_to_merge(stored_window=10, window=30) == 3


def test_load_for_other_pictures_than_merged_for_fails(bikes: list[GopRecord]) -> None:
    out = arrays_for(bikes[0], 2, 6)
    for merged_for in (None, layout_of(bikes[0], 1)):
        whole = merge_whole(bikes[0], window=30, layout=merged_for)
        with pytest.raises(ValueError, match="was merged for pictures at"):
            load_gop(whole, layout=layout_of(bikes[0], 2), out=out)
    with pytest.raises(ValueError, match="window 3 alone would be inexact"):
        load_window(whole, 3, out=arrays_for(bikes[0], 2, 1))
    with pytest.raises(FormatError, match="has 8 anchors at window 30, its layout 2"):
        merge_whole(bikes[0], window=30, layout=layout_of(bikes[1], 1))


def test_merge_of_a_damaged_record_fails(bikes: list[GopRecord]) -> None:
    record = bikes[1]
    crcs = (*record.anchor_crc32c[:2], 0, *record.anchor_crc32c[3:])
    with pytest.raises(ChecksumError, match="anchor 2 rebuilds"):
        merge_whole(dataclasses.replace(record, anchor_crc32c=crcs), window=30, check=True)
    windows = list(record.windows)
    windows[1] = dataclasses.replace(windows[1], residual=b"no JPEG")
    with pytest.raises(FormatError, match=r"_00001\.residual\.01\.jpg"):
        merge_whole(dataclasses.replace(record, windows=tuple(windows)), window=30)


def test_merge_of_a_size_that_blocks_do_not_cover_fails(bikes: list[GopRecord]) -> None:
    windows = tuple(
        dataclasses.replace(window, motion=window.motion[:23], intra=window.intra[:23])
        for window in bikes[1].windows
    )
    cut = dataclasses.replace(bikes[1], height_px=362, windows=windows)
    with pytest.raises(FormatError, match="362: only whole blocks of 16 px"):
        merge_whole(cut, window=30)
