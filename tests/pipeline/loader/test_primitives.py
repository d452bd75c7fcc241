"""What load_gop and load_window fill, on real clips, against rebuild_anchors and decode_residual."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cope_prep.pipeline.extract import extract_gops
from cope_prep.pipeline.loader.primitives import (
    GopArrays,
    GopLayout,
    allocate,
    apply_decoded,
    decode_whole,
    gop_layout,
    load_gop,
    load_window,
    residual_scale,
)
from cope_prep.pipeline.rebuild import predict, rebuild_anchors
from cope_prep.pipeline.reencode import reencode_video
from cope_prep.pipeline.residual import decode_residual
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
from cope_prep.schemas.wire import decode_gop, encode_gop

H264 = EncodeSpec()
MPEG4 = EncodeSpec(codec="mpeg4", quality=4)
BIKES, CARPHONE = 1, 2

Extract = Callable[[int, EncodeSpec, ExtractSpec], list[GopRecord]]


@pytest.fixture(scope="module")
def extract(real_clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Extract:
    """The records of a real clip, after a trip over the wire; each clip is re-encoded once a spec."""
    folder = tmp_path_factory.mktemp("reencoded")
    paths: dict[tuple[int, EncodeSpec], Path] = {}

    def records(clip: int, encode_spec: EncodeSpec, spec: ExtractSpec) -> list[GopRecord]:
        if (clip, encode_spec) not in paths:
            paths[clip, encode_spec] = folder / f"{len(paths)}.mp4"
            reencode_video(str(real_clips[clip]), str(paths[clip, encode_spec]), spec=encode_spec)
        found = extract_gops(str(paths[clip, encode_spec]), spec=spec, encode_spec=encode_spec, video_id="x")
        return [decode_gop(encode_gop(record)) for record in found]

    return records


@pytest.fixture(scope="module")
def bikes(extract: Extract) -> list[GopRecord]:
    """A full GOP of 8 anchors and a short one of 2."""
    return extract(BIKES, H264, ExtractSpec())


def layout_of(record: GopRecord, key_frames: int) -> GopLayout:
    return gop_layout(
        num_frames=record.num_frames,
        gop_size=240,
        fps=record.fps,
        start_s=record.start_s,
        window=record.window,
        key_frames=key_frames,
    )


def arrays_for(record: GopRecord, num_pictures: int, num_deltas: int) -> GopArrays:
    return allocate(
        num_pictures=num_pictures,
        num_deltas=num_deltas,
        height_px=record.height_px,
        width_px=record.width_px,
        block_px=record.block_px,
        window=record.window,
        residual_spec=record.residual_spec,
    )


def stored_residual(record: GopRecord, index: int) -> np.ndarray:
    shape = (record.height_px * 3 // 2, record.width_px)
    return decode_residual(record.residual_spec, record.windows[index].residual, shape=shape, name="")


def consume(record: GopRecord, layout: GopLayout, arrays: GopArrays) -> np.ndarray:
    """All anchors, from nothing but what a model gets."""
    pictures, deltas = iter(arrays.pictures), iter(range(layout.num_deltas))
    anchors: list[np.ndarray] = []
    for index, is_picture in enumerate(layout.is_picture):
        if is_picture:
            anchors.append(next(pictures))
            continue
        p = next(deltas)
        prediction, rebuilt = np.empty((2, *anchors[-1].shape), np.uint8)
        predict(
            anchors[-1],
            arrays.motion[p],
            compensation=record.compensation,
            step_qpel=round(float(arrays.motion_step_px[p]) * 4),
            block_px=record.block_px,
            rounding=record.windows[index - 1].rounding,
            out=prediction,
        )
        scale = residual_scale(record.residual_spec)
        apply_decoded(scale, prediction=prediction, decoded=arrays.residual[p], rebuilt=rebuilt)
        anchors.append(rebuilt)
    return np.stack(anchors)


def assert_loads(record: GopRecord, key_frames: int) -> None:
    layout = layout_of(record, key_frames)
    out = arrays_for(record, layout.num_pictures, layout.num_deltas)
    for array in (out.pictures, out.motion, out.motion_step_px, out.intra, out.residual):
        array.view(np.uint8)[...] = 77
    load_gop(record, layout=layout, out=out, check=True)
    anchors = rebuild_anchors(record)
    np.testing.assert_array_equal(out.pictures, anchors[layout.is_picture])
    deltas = np.flatnonzero(~layout.is_picture)
    assert len(deltas) == len(out.residual)
    for p, index in enumerate(deltas):
        window = record.windows[index - 1]
        np.testing.assert_array_equal(out.motion[p], window.motion)
        np.testing.assert_array_equal(out.intra[p], window.intra)
        np.testing.assert_array_equal(out.residual[p], stored_residual(record, index - 1))
        assert out.motion_step_px[p] == window.motion_step_px
    np.testing.assert_array_equal(consume(record, layout, out), anchors)

    copied = arrays_for(record, layout.num_pictures, layout.num_deltas)
    load_gop(decode_whole(record), layout=layout, out=copied)
    for field in dataclasses.fields(GopArrays):
        np.testing.assert_array_equal(getattr(copied, field.name), getattr(out, field.name))


@pytest.mark.parametrize("key_frames", [1, 2, 4, 8])
@pytest.mark.parametrize("residual", [DctResidual(), Int8Residual(), LosslessResidual()])
@pytest.mark.parametrize("window", [30, 10])
def test_every_density_of_every_coding(
    key_frames: int, residual: DctResidual | Int8Residual | LosslessResidual, window: int, extract: Extract
) -> None:
    spec = ExtractSpec(window=window, residual=residual)
    records = extract(BIKES, H264, spec)
    assert [record.num_frames for record in records] == [240, 60]  # the last one is short
    for record in records:
        assert_loads(record, key_frames)


@pytest.mark.parametrize("key_frames", [1, 8])
@pytest.mark.parametrize("spec", [H264, MPEG4], ids=["h264", "mpeg4"])
@pytest.mark.parametrize("residual", [DctResidual(), LosslessResidual()])
def test_the_codecs_own_compensation_and_a_lossless_iframe(
    key_frames: int, spec: EncodeSpec, residual: DctResidual | LosslessResidual, extract: Extract
) -> None:
    (record,) = extract(CARPHONE, spec, ExtractSpec(window=1, residual=residual, iframe=LosslessIframe()))
    assert (record.compensation, record.windows[0].motion.dtype) == (spec.codec, np.int16)
    assert_loads(record, key_frames)


def test_single_windows(bikes: list[GopRecord]) -> None:
    record = bikes[0]
    anchors = rebuild_anchors(record)
    whole = decode_whole(record, check=True)
    np.testing.assert_array_equal(whole.anchors, anchors)
    out, copied = arrays_for(record, 2, 1), arrays_for(record, 2, 1)
    for index, window in enumerate(record.windows):
        load_window(record, index, out=out, check=True)
        np.testing.assert_array_equal(out.pictures, anchors[index : index + 2])
        np.testing.assert_array_equal(out.motion[0], window.motion)
        np.testing.assert_array_equal(out.intra[0], window.intra)
        np.testing.assert_array_equal(out.residual[0], stored_residual(record, index))
        load_window(whole, index, out=copied)
        for field in dataclasses.fields(GopArrays):
            np.testing.assert_array_equal(getattr(copied, field.name), getattr(out, field.name))
    assert index == 6
    for source in (record, whole):
        with pytest.raises(IndexError, match="has 7 windows, 7 was asked for"):
            load_window(source, 7, out=out)


def test_whole_gop_knows_its_memory(bikes: list[GopRecord]) -> None:
    picture = 576 * 384
    motion = 24 * 24 * 3  # two components and the intra bit, a byte each
    assert decode_whole(bikes[0]).nbytes == (8 + 7) * picture + 7 * (motion + 4)


def test_lossless_residuals_are_widened(extract: Extract) -> None:
    (record,) = extract(CARPHONE, H264, ExtractSpec(window=1, residual=LosslessResidual()))
    stored = {stored_residual(record, index).dtype.name for index in range(len(record.windows))}
    assert stored == {"int8", "int16"}
    assert decode_whole(record).residual.dtype == np.int16


def test_slices_of_a_batch_are_filled_and_nothing_else(bikes: list[GopRecord]) -> None:
    layout = layout_of(bikes[0], 2)
    batch = {
        "pictures": np.full((3, 4, 576, 384), 77, np.uint8),
        "motion": np.full((3, 9, 24, 24, 2), 77, np.int8),
        "motion_step_px": np.full((3, 9), 77, np.float32),
        "intra": np.zeros((3, 9, 24, 24), np.bool_),
        "residual": np.full((3, 9, 576, 384), 77, np.uint8),
    }
    views = {name: array[1, : 2 if name == "pictures" else 6] for name, array in batch.items()}
    load_gop(bikes[0], layout=layout, out=GopArrays(**views))
    expected = arrays_for(bikes[0], 2, 6)
    load_gop(bikes[0], layout=layout, out=expected)
    for name, array in batch.items():
        np.testing.assert_array_equal(views[name], getattr(expected, name))
        untouched = np.concatenate([array[0], array[2], array[1, len(views[name]) :]])
        assert (untouched == (0 if name == "intra" else 77)).all()


def test_layout_of_full_and_short_gops() -> None:
    counts = {"gop_size": 240, "fps": 30, "start_s": 8.0, "window": 30}
    full = gop_layout(num_frames=240, key_frames=2, **counts)
    assert np.flatnonzero(full.is_picture).tolist() == [0, 4]
    assert full.anchor_s.tolist() == [8, 9, 10, 11, 12, 13, 14, 15]
    assert (full.num_anchors, full.num_pictures, full.num_deltas) == (8, 2, 6)
    short = gop_layout(num_frames=151, key_frames=2, **counts)
    assert np.flatnonzero(short.is_picture).tolist() == [0, 4]
    assert (short.num_anchors, short.num_pictures, short.num_deltas) == (6, 2, 4)
    single = gop_layout(num_frames=1, key_frames=1, **counts)
    assert (single.num_anchors, single.num_pictures, single.num_deltas) == (1, 1, 0)


@pytest.mark.parametrize("key_frames", [3, 0, 16])
def test_layout_of_uneven_pictures_fails(key_frames: int) -> None:
    with pytest.raises(ConfigurationError, match=f"key_frames {key_frames}.* one of 1, 2, 4, 8"):
        gop_layout(num_frames=240, gop_size=240, fps=30, start_s=0, window=30, key_frames=key_frames)


def test_checksums_are_compared_up_to_the_last_picture(bikes: list[GopRecord]) -> None:
    crcs = bikes[0].anchor_crc32c
    damaged = dataclasses.replace(bikes[0], anchor_crc32c=(*crcs[:4], crcs[4] ^ 1, *crcs[5:]))
    loaded = 0
    for key_frames in (1, 2, 4, 8):
        layout = layout_of(damaged, key_frames)
        out = arrays_for(damaged, layout.num_pictures, layout.num_deltas)
        load_gop(damaged, layout=layout, out=out)
        if key_frames == 1:  # anchor 4 is not rebuilt
            load_gop(damaged, layout=layout, out=out, check=True)
            loaded += 1
            continue
        with pytest.raises(ChecksumError, match="anchor 4 rebuilds"):
            load_gop(damaged, layout=layout, out=out, check=True)
    assert loaded == 1


@pytest.mark.parametrize("key_frames", [1, 8])
@pytest.mark.parametrize("damage", [lambda jpeg: jpeg[: len(jpeg) // 2], lambda jpeg: b"no JPEG"])
def test_load_of_a_damaged_residual_fails(
    key_frames: int, damage: Callable[[bytes], bytes], bikes: list[GopRecord]
) -> None:
    window = bikes[0].windows[3]
    windows = list(bikes[0].windows)
    windows[3] = dataclasses.replace(window, residual=damage(window.residual))
    damaged = dataclasses.replace(bikes[0], windows=tuple(windows))
    layout = layout_of(damaged, key_frames)
    out = arrays_for(damaged, layout.num_pictures, layout.num_deltas)
    with pytest.raises(FormatError, match=r"_00000\.residual\.03\.jpg: is not a readable JPEG"):
        load_gop(damaged, layout=layout, out=out)


def test_load_of_a_damaged_iframe_fails_and_the_next_one_does_not(bikes: list[GopRecord]) -> None:
    damaged = dataclasses.replace(bikes[0], iframe=b"no JPEG")
    out = arrays_for(bikes[0], 1, 7)
    with pytest.raises(FormatError, match=r"_00000\.iframe\.jpg"):
        load_gop(damaged, layout=layout_of(damaged, 1), out=out)
    load_gop(bikes[0], layout=layout_of(bikes[0], 1), out=out, check=True)


def test_threads_load_the_same(bikes: list[GopRecord]) -> None:
    expected = rebuild_anchors(bikes[0])
    same: list[bool] = []

    def load() -> None:
        same.extend(np.array_equal(decode_whole(bikes[0]).anchors, expected) for _ in range(5))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == [True] * 20


def test_load_with_another_records_layout_fails(bikes: list[GopRecord]) -> None:
    layout = layout_of(bikes[1], 1)
    out = arrays_for(bikes[1], layout.num_pictures, layout.num_deltas)
    with pytest.raises(FormatError, match="has 8 anchors, its layout 2"):
        load_gop(bikes[0], layout=layout, out=out)


def test_load_into_unfitting_arrays_fails(bikes: list[GopRecord]) -> None:
    with pytest.raises(ValueError, match="out has 2 pictures, 7 motions and 7 residuals"):
        load_gop(bikes[0], layout=layout_of(bikes[0], 1), out=arrays_for(bikes[0], 2, 7))
    out = arrays_for(bikes[0], 1, 7)
    with pytest.raises(ValueError, match="contiguous"):
        dataclasses.replace(out, residual=np.empty((7, 576, 768), np.uint8)[:, :, :384])
