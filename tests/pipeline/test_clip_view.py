"""Panels of an anchor: the pictures are the sample's, arrows and colours point where things went."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import clip_dataset
from clip_dataset import BIKES

from cope_prep.pipeline import clip_view, sheet_parts
from cope_prep.pipeline.clip_view import (
    PANELS,
    Scales,
    draw_anchor,
    draw_iframe,
    draw_legend,
    draw_thumbnails,
    encode_picture,
    scales_of,
    wider_scales,
)
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.rebuild import rebuild_anchors
from cope_prep.pipeline.sheet_data import reencoded_anchors
from cope_prep.pipeline.video_samples import GopFigures, find_samples, read_figures, read_gop
from cope_prep.schemas.errors import ChecksumError
from cope_prep.schemas.records import GopRecord
from cope_prep.schemas.specs import (
    DctResidual,
    EncodeSpec,
    ExtractSpec,
    Int8Residual,
    LosslessIframe,
    LosslessResidual,
)

SCALES = Scales(flow_px=8, residual_levels=64, error_levels=8)


def a_gop(layout: Layout, video_id: str, gop_index: int = 0) -> tuple[GopRecord, tuple[GopFigures, ...]]:
    samples = find_samples(layout, video_id)
    assert samples is not None
    return read_gop(samples, gop_index), read_figures(samples)


@pytest.fixture(scope="module")
def bikes(real_clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = Layout(
        dataset=str(tmp_path_factory.mktemp("view")),
        specs=Specs(encode=EncodeSpec(width_px=128, height_px=96, preset="ultrafast")),
    )
    clip_dataset.process(layout, BIKES, next(clip for clip in real_clips if clip.name == "bikes.mp4"))
    return layout


def moving_record(
    media: ModuleType, folder: Path, *, extract: ExtractSpec, size_px: tuple[int, int] = (160, 96)
) -> tuple[Layout, GopRecord]:
    """A texture that drifts 2 px to the left and 1 px down a frame."""
    specs = Specs(encode=EncodeSpec(width_px=size_px[0], height_px=size_px[1]), extract=extract)
    layout = Layout(dataset=str(folder / "dataset"), specs=specs)
    media.write_clip(folder / "source.mp4", num_frames=11, size_px=size_px, painter=media.moving)
    clip_dataset.process(layout, "moving.mp4", folder / "source.mp4")
    return layout, a_gop(layout, "moving.mp4")[0]


def test_pictures_are_those_that_a_reader_rebuilds(bikes: Layout) -> None:
    record, figures = a_gop(bikes, BIKES)
    originals = reencoded_anchors(bikes, record, range(record.num_anchors))
    assert originals is not None
    rebuilt = rebuild_anchors(record)
    for index in range(record.num_anchors):
        view = draw_anchor(record, index, scales=scales_of(figures), reencoded=originals[index])
        zoom = 3  # 128 px are shown as 384
        assert {panel.shape for name, panel in view.panels.items() if name != "arrows"} == {(288, 384, 3)}
        assert np.array_equal(view.panels["rebuilt"][::zoom, ::zoom], sheet_parts.rgb_of(rebuilt[index]))
        assert np.array_equal(view.panels["reencoded"][::zoom, ::zoom], sheet_parts.rgb_of(originals[index]))
        luma = slice(0, record.height_px)
        error = np.abs(rebuilt[index][luma].astype(int) - originals[index][luma])
        assert view.max_error == error.max()
        worst = np.unravel_index(error.argmax(), error.shape)
        shown = view.panels["error"][::zoom, ::zoom].sum(axis=-1, dtype=int)
        assert shown[worst] == shown.max()
        expected = set(PANELS) if index else {"reencoded", "rebuilt", "error"}
        assert set(view.panels) == expected


def test_recorded_figures_are_those_of_the_pictures(bikes: Layout) -> None:
    record, figures = a_gop(bikes, BIKES)
    originals = reencoded_anchors(bikes, record, range(record.num_anchors))
    assert originals is not None
    for index in range(1, record.num_anchors):
        view = draw_anchor(record, index, scales=SCALES, reencoded=originals[index])
        assert view.max_error is not None
        assert view.max_error <= figures[0].windows["max_error"][index - 1]


def test_the_second_gop_is_compared_with_its_own_frames(bikes: Layout) -> None:
    record, _ = a_gop(bikes, BIKES, 1)
    originals = reencoded_anchors(bikes, record, [0, 1])
    assert originals is not None
    # Frames of another GOP would differ by far more than the coding error.
    for index in (0, 1):
        view = draw_anchor(record, index, scales=SCALES, reencoded=originals[index])
        assert view.max_error is not None
        assert view.max_error < 60
    assert np.array_equal(draw_iframe(record)[::3, ::3], sheet_parts.rgb_of(rebuild_anchors(record)[0]))


def test_arrows_and_colours_point_where_things_went(media: ModuleType, tmp_path: Path) -> None:
    _, record = moving_record(media, tmp_path, extract=ExtractSpec(window=5))
    view = draw_anchor(record, 2, scales=SCALES, reencoded=None)
    assert "reencoded" not in view.panels
    assert "error" not in view.panels
    # To the left and a little down: between cyan (left) and blue (down left).
    flow = np.median(view.panels["flow"].reshape(-1, 3), axis=0)
    wheel = draw_legend("flow", SCALES)
    side = len(wheel) - 1
    at = (round(side * (0.5 + 0.5 / np.sqrt(5) * 0.98)), round(side * (0.5 - 1 / np.sqrt(5) * 0.98)))
    assert flow == pytest.approx(wheel[at], abs=30)
    assert is_yellow(view.panels["arrows"]).any()


def test_an_arrow_has_its_head_where_the_block_is(media: ModuleType, tmp_path: Path) -> None:
    _, record = moving_record(media, tmp_path, extract=ExtractSpec(window=5))
    window = record.windows[1]
    motion = np.zeros_like(window.motion)
    motion[3, 5] = (-40, 0)  # backward: it came from 10 px to the left, if a step is a quarter pixel
    still = replace(window, motion=motion, intra=np.zeros_like(window.intra), motion_step_qpel=1)
    rgb = clip_view._arrows_rgb(
        rebuild_anchors(record)[1], sheet_parts.movement_of(still), block_px=record.block_px
    )
    rows, cols = np.nonzero(is_yellow(rgb))
    zoom = rgb.shape[1] // record.width_px
    block = record.block_px
    head_x, y = 5.5 * block * zoom, 3.5 * block * zoom
    assert abs(rows.mean() - y) <= zoom
    assert cols.max() == pytest.approx(head_x, abs=2 * zoom)
    assert cols.min() == pytest.approx(head_x - 10 * zoom, abs=2 * zoom)
    heights = [np.count_nonzero(cols == col) for col in (cols.max() - 3 * zoom, cols.min() + 2)]
    assert heights[0] > heights[1]


def is_yellow(rgb: np.ndarray) -> np.ndarray:
    return (rgb[..., 0] > 200) & (rgb[..., 1] > 180) & (rgb[..., 2] < 90)


@pytest.mark.parametrize(
    "extract",
    [
        ExtractSpec(window=5, residual=Int8Residual(step=4, deadzone=4)),
        ExtractSpec(window=5, residual=LosslessResidual(), iframe=LosslessIframe()),
        ExtractSpec(window=1),
        ExtractSpec(window=5, residual=DctResidual(quality=40)),
    ],
    ids=["int8", "lossless", "every frame", "dct"],
)
def test_every_coding_is_drawn(media: ModuleType, tmp_path: Path, extract: ExtractSpec) -> None:
    layout, record = moving_record(media, tmp_path, extract=extract)
    last = record.num_anchors - 1
    originals = reencoded_anchors(layout, record, [last])
    assert originals is not None
    view = draw_anchor(record, last, scales=SCALES, reencoded=originals[0])
    assert set(view.panels) == set(PANELS)
    grey = view.panels["residual"][..., 0].astype(float)
    assert grey.std() > 0
    if extract.residual.kind == "lossless":
        assert view.max_error == 0
        assert view.notes["error"] == "None: the frames are identical."


def test_large_pictures_are_reduced_and_small_ones_enlarged(media: ModuleType, tmp_path: Path) -> None:
    _, record = moving_record(media, tmp_path, extract=ExtractSpec(window=5), size_px=(1280, 640))
    view = draw_anchor(record, 1, scales=SCALES, reencoded=None)
    assert view.reduced_by == 2
    assert view.panels["rebuilt"].shape == (320, 640, 3)
    assert max(draw_iframe(record).shape) == 640


def test_thumbnails_are_small_jpegs_of_the_anchors(bikes: Layout) -> None:
    record, _ = a_gop(bikes, BIKES)
    found = draw_thumbnails(record, [0, 3], side_px=64)
    assert set(found) == {0, 3}
    rebuilt = rebuild_anchors(record)
    for index, content in found.items():
        picture = np.asarray(Image.open(io.BytesIO(content)))
        assert picture.shape == (48, 64, 3)
        means = sheet_parts.rgb_of(rebuilt[index]).reshape(48, 2, 64, 2, 3).mean(axis=(1, 3))
        assert np.abs(picture - means).mean() < 4


def test_scales_hold_most_of_a_clip(bikes: Layout) -> None:
    record, figures = a_gop(bikes, BIKES)
    scales = scales_of(figures)
    beyond = [
        (np.abs(sheet_parts.residual_levels(record, window)) > scales.residual_levels).mean()
        for window in record.windows
    ]
    assert len(beyond) == 7
    assert np.mean(beyond) < 0.05
    narrow = Scales(flow_px=4096, residual_levels=8, error_levels=4)
    assert wider_scales(scales, narrow) == replace(scales, flow_px=4096)
    assert scales_of(()) == Scales(flow_px=1, residual_levels=8, error_levels=4)


def test_legends_go_from_low_to_high() -> None:
    for name in ("residual", "error"):
        bar = draw_legend(name, SCALES).sum(axis=-1, dtype=int)[0]
        assert bar[0] < bar[128] < bar[-1]
    picture = np.asarray(Image.open(io.BytesIO(encode_picture(draw_legend("residual", SCALES)))))
    assert picture.shape == (16, 256, 3)


def test_a_damaged_anchor_fails(bikes: Layout) -> None:
    record, _ = a_gop(bikes, BIKES)
    wrong = replace(record, anchor_crc32c=(*record.anchor_crc32c[:3], 1, *record.anchor_crc32c[4:]))
    draw_anchor(wrong, 2, scales=SCALES, reencoded=None)
    with pytest.raises(ChecksumError, match="anchor 3 rebuilds to crc32c"):
        draw_anchor(wrong, 3, scales=SCALES, reencoded=None)
