"""Inspect sheets: every panel shows something, figures are the sample's, and what is missing is said."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cope_prep.pipeline import sheet_parts, sheet_text, storage
from cope_prep.pipeline.extract import extract_video
from cope_prep.pipeline.finish import finish_shards
from cope_prep.pipeline.inspect_sheet import draw_sheet, write_sheet
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.ledger import Ledger, LedgerRow
from cope_prep.pipeline.manifest import manifest_from_files
from cope_prep.pipeline.reencode import reencode_video
from cope_prep.pipeline.shard import build_shard
from cope_prep.pipeline.shard_plan import ExtractedVideo, plan_shards
from cope_prep.pipeline.sheet_data import MAX_ANCHORS, read_sheet_gop, spread
from cope_prep.schemas.errors import ConfigurationError, FormatError
from cope_prep.schemas.records import video_key
from cope_prep.schemas.specs import (
    EncodeSpec,
    ExtractSpec,
    Int8Residual,
    LosslessIframe,
    LosslessResidual,
)

BIKES, BUNNY = "clips/bikes.mp4", "clips/bigbuckbunny.mp4"
ENCODE = EncodeSpec(width_px=128, height_px=128, preset="ultrafast")
SPECS = Specs(encode=ENCODE)


def prepare(layout: Layout, video_id: str, source: Path) -> None:
    key = video_key(video_id)
    specs = layout.specs
    reencode_video(str(source), layout.reencoded(key), spec=specs.encode)
    extract_video(
        layout.reencoded(key),
        layout.extracted(key),
        spec=specs.extract,
        encode_spec=specs.encode,
        video_id=video_id,
    )


@pytest.fixture(scope="module")
def dataset(real_clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Both films extracted; two small clips in the manifest only."""
    folder = tmp_path_factory.mktemp("inspect")
    (folder / "source" / "clips").mkdir(parents=True)
    for clip in real_clips:
        (folder / "source" / "clips" / clip.name).write_bytes(clip.read_bytes())
    dataset = str(folder / "dataset")
    manifest_from_files(str(folder / "source"), dataset)
    layout = Layout(dataset=dataset, specs=SPECS)
    for video_id in (BIKES, BUNNY):
        prepare(layout, video_id, folder / "source" / video_id)
    return dataset


@pytest.fixture
def layout(dataset: str) -> Layout:
    return Layout(dataset=dataset, specs=SPECS)


def panels(figure: Figure) -> list[np.ndarray]:
    """The pixels of every Axes, without its frame."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    page = np.asarray(Image.open(file).convert("RGB"))
    figure.set_dpi(100)
    found = []
    for axes in figure.axes:
        left, bottom, right, top = axes.get_position().extents * np.tile(page.shape[1::-1], 2)
        rows = slice(int(page.shape[0] - top) + 3, int(page.shape[0] - bottom) - 3)
        found.append(page[rows, int(left) + 3 : int(right) - 3])
    return found


def test_sheet_is_a_png_of_sane_size(layout: Layout, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "deeper" / "sheet.png"
    write_sheet(layout, BIKES, str(path))
    with Image.open(path) as image:
        assert image.format == "PNG"
        width, height = image.size
    assert 1500 < width < 5000
    assert 1500 < height < 5000
    assert 100_000 < path.stat().st_size < 12_000_000
    assert [entry.name for entry in path.parent.iterdir()] == ["sheet.png"]


def test_every_panel_shows_something(layout: Layout) -> None:
    gop = read_sheet_gop(layout, BUNNY, gop_index=0)
    figure = draw_sheet(gop, encode=ENCODE)
    num_rows, num_columns, num_legends = 7, 6, 5
    found = panels(figure)
    assert len(found) == num_rows * num_columns + num_legends
    # The legends follow the rows "flow" (two), "residual", "intra" and "error"; a swatch is plain.
    blank = [index for index, pixels in enumerate(found) if pixels.std(axis=(0, 1)).max() < 1]
    assert len(blank) == 2


def test_scales_and_wheel_are_stated(layout: Layout) -> None:
    figure = draw_sheet(read_sheet_gop(layout, BIKES, gop_index=0), encode=ENCODE)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == 1
    assert titles[0].endswith(" px")
    scales = [[label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes if axes.axison]
    scales = [labels for labels in scales if labels]
    assert len(scales) == 2
    assert scales[0][0].startswith("\N{MINUS SIGN}")
    assert scales[1][0] == "0"


def test_figures_are_those_of_the_sample(layout: Layout) -> None:
    gop = read_sheet_gop(layout, BIKES, gop_index=0)
    lines = dict(sheet_text.figure_lines(gop))
    assert {len(texts) for texts in lines.values()} == {8}
    for column, window in enumerate(gop.record.windows, start=1):
        stats = window.stats
        motion = lines["motion, mean (p95)  px"][column]
        assert motion == f"{stats.motion_mean_px:.1f}  ({stats.motion_p95_px:.1f})"
        assert lines["PSNR-Y dB (max. error)"][column].startswith(f"{stats.psnr_y_db:.1f}")
        assert lines["motion + residual  B"][column].endswith(f"+ {len(window.residual):,}")
        assert lines["re-encoded packets  B"][column] == f"{stats.packet_bytes:,}"
    error = np.abs(
        sheet_parts.luma_of(gop.rebuilt[3]).astype(int) - sheet_parts.luma_of(gop.reencoded[3])  # type: ignore[index]
    )
    psnr_db = 10 * np.log10(255**2 / (error**2).mean())
    assert psnr_db == pytest.approx(gop.record.windows[2].stats.psnr_y_db, abs=0.01)


def test_second_gop_and_its_times(layout: Layout, tmp_path: Path) -> None:
    gop = read_sheet_gop(layout, BIKES, gop_index=1)
    assert gop.record.start_s == 8
    assert sheet_text.anchor_label(gop.record, 1) == "P 1   9.00 s"
    assert "GOP 2 of 2" in sheet_text.gop_line(gop)
    write_sheet(layout, BIKES, str(tmp_path / "sheet.png"), gop_index=1)


def test_many_anchors_are_thinned_out_and_said(dataset: str, real_clips: list[Path], tmp_path: Path) -> None:
    residuals = {10: Int8Residual(), 1: LosslessResidual()}
    for window, residual in residuals.items():
        extract = ExtractSpec(window=window, residual=residual, iframe=LosslessIframe())
        layout = Layout(dataset=dataset, specs=Specs(encode=ENCODE, extract=extract))
        clip = next(clip for clip in real_clips if clip.name == "carphone_pristine.mp4")
        prepare(layout, f"clips/{clip.name}", clip)
        gop = read_sheet_gop(layout, f"clips/{clip.name}", gop_index=0)
        assert len(gop.shown) == MAX_ANCHORS
        assert f"{gop.record.num_anchors} anchors, {MAX_ANCHORS} of them shown" in sheet_text.gop_line(gop)
        assert len(panels(draw_sheet(gop, encode=ENCODE))) == 7 * MAX_ANCHORS + 5
    assert dict(sheet_text.figure_lines(gop))["PSNR-Y dB (max. error)"] == ["identical  (0)"] * MAX_ANCHORS


def test_spread_is_even_and_keeps_both_ends() -> None:
    assert spread(1, at_most=8) == (0,)
    assert spread(8, at_most=8) == tuple(range(8))
    for count in (9, 24, 240):
        chosen = spread(count, at_most=8)
        assert len(set(chosen)) == 8
        assert (chosen[0], chosen[-1]) == (0, count - 1)
        assert np.ptp(np.diff(chosen)) <= 1


def test_sample_comes_from_the_shard_when_there_is_one(
    dataset: str, real_clips: list[Path], tmp_path: Path
) -> None:
    layout = Layout(dataset=str(tmp_path), specs=SPECS)
    sizes = {}
    for video_id in (BIKES, BUNNY):
        key = video_key(video_id)
        content = storage.read_bytes(Layout(dataset=dataset, specs=SPECS).extracted(key))
        storage.publish_bytes(layout.extracted(key), content)
        sizes[video_id] = len(content)
    from_extract = read_sheet_gop(layout, BIKES, gop_index=1)
    videos = [
        ExtractedVideo(
            video_id=video_id,
            video_key=video_key(video_id),
            subset="",
            output_bytes=size,
            version="1",
        )
        for video_id, size in sizes.items()
    ]
    plan = plan_shards(layout, videos)
    for shard in plan.shards:
        build_shard(layout, shard, consume=True)
    finish_shards(layout, plan)
    assert not storage.exists(layout.extracted(video_key(BIKES)))

    from_shard = read_sheet_gop(layout, BIKES, gop_index=1)
    assert from_extract.found_in.endswith(".tar")
    assert from_shard.found_in == "shard-00000.tar"
    assert np.array_equal(from_shard.rebuilt, from_extract.rebuilt)
    assert from_shard.member_bytes == from_extract.member_bytes
    # There is no re-encoded file in this dataset.
    assert from_shard.reencoded is None
    assert len(panels(draw_sheet(from_shard, encode=ENCODE))) == 5 * len(from_shard.shown) + 4


def test_odd_names_and_sizes(media: ModuleType, tmp_path: Path) -> None:
    layout = Layout(dataset=str(tmp_path / "dataset"), specs=Specs(encode=EncodeSpec(fit="keep")))
    cases = {
        "long $x_1$ {}\n" + "name " * 60 + ".mp4": (480, 64, 70),
        "长.mp4": (64, 480, 65),
        "1.mp4": (64, 64, 3),
    }
    for video_id, (width, height, num_frames) in cases.items():
        source = tmp_path / "source.mp4"
        media.write_clip(source, num_frames=num_frames, size_px=(width, height), painter=media.moving)
        prepare(layout, video_id, source)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            write_sheet(layout, video_id, str(tmp_path / "sheet.png"))
        with Image.open(tmp_path / "sheet.png") as image:
            assert image.width >= 1500
    # A GOP shorter than a window has no motion to show: re-encoded, rebuilt, error and its scale.
    short = read_sheet_gop(layout, "1.mp4", gop_index=0)
    assert len(draw_sheet(short, encode=layout.specs.encode).axes) == 4


def test_movement_is_where_things_went(media: ModuleType, tmp_path: Path) -> None:
    specs = Specs(encode=EncodeSpec(width_px=160, height_px=96), extract=ExtractSpec(window=5))
    layout = Layout(dataset=str(tmp_path / "dataset"), specs=specs)
    source = tmp_path / "source.mp4"
    media.write_clip(source, num_frames=11, size_px=(160, 96), painter=media.moving)
    prepare(layout, "moving.mp4", source)
    record = read_sheet_gop(layout, "moving.mp4", gop_index=0).record
    assert len(record.windows) == 2
    for window in record.windows:
        # The texture drifts 2 px to the left and 1 px down a frame.
        moved = np.median(sheet_parts.movement_of(window)[~window.intra], axis=0)
        assert moved == pytest.approx([-10, 5], abs=1)


def test_flow_colours() -> None:
    moves = np.array([[0, 0], [8, 0], [-8, 0], [0, -8], [0, 8], [4, 0], [80, 0]], np.float32)
    rest, right, left, up, down, slow, fast = sheet_parts.flow_rgb(moves, scale_px=8)
    assert rest == pytest.approx([1, 1, 1])
    assert right == pytest.approx([1, 0, 0])
    assert left == pytest.approx([0, 1, 1])
    assert up == pytest.approx(1 - down)
    assert slow == pytest.approx([1, 0.5, 0.5])
    assert fast == pytest.approx(right)


def test_rgb_is_full_range_bt601() -> None:
    picture = np.full((6, 4), 128, np.uint8)
    picture[:4] = 255
    assert (sheet_parts.rgb_of(picture) == 255).all()
    picture[:4], picture[4:, :2], picture[4:, 2:] = 76, 85, 255
    red = sheet_parts.rgb_of(picture)[0, 0].astype(int)
    assert np.abs(red - [254, 0, 0]).max() <= 1


def test_scale_above() -> None:
    values = np.arange(101, dtype=float)
    assert sheet_parts.scale_above(values, percentile=50, least=1) == 64
    assert sheet_parts.scale_above(np.zeros(9), percentile=99, least=8) == 8
    assert sheet_parts.scale_above(np.zeros(0), percentile=99, least=8) == 8
    assert sheet_parts.scale_above(values * 3, percentile=99, least=8, most=255) == 255


def test_unknown_video_names_the_closest_fails(layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Closest: clips/bikes\.mp4"):
        write_sheet(layout, "clips/bike.mp4", str(tmp_path / "sheet.png"))
    with pytest.raises(ConfigurationError, match=r"Closest: clips/bikes\.mp4\."):
        write_sheet(layout, "bikes.mp4", str(tmp_path / "sheet.png"))
    with pytest.raises(ConfigurationError, match=r"first column of manifest"):
        write_sheet(layout, "0000", str(tmp_path / "sheet.png"))
    assert not list(tmp_path.iterdir())


def test_video_without_a_sample_fails(layout: Layout, tmp_path: Path) -> None:
    video_id = "clips/carphone_distorted.mp4"
    with pytest.raises(ConfigurationError, match=r"has no sample yet.*cope-prep extract"):
        write_sheet(layout, video_id, str(tmp_path / "sheet.png"))
    row = LedgerRow(
        video_id=video_id,
        video_key=video_key(video_id),
        stage="reencode",
        spec_hash=SPECS.hash_of("reencode"),
        status="failed",
        error_class="CorruptVideoError",
        error_message="it is full of holes",
        source_size_bytes=1,
        source_version="1",
        finished_unix_s=1.0,
    )
    Ledger(layout.ledger("reencode")).append([row])
    with pytest.raises(
        ConfigurationError, match=r"reencode failed with CorruptVideoError. it is full of holes"
    ):
        write_sheet(layout, video_id, str(tmp_path / "sheet.png"))


@pytest.mark.parametrize("gop_index", [-1, 2])
def test_gop_out_of_range_fails(layout: Layout, tmp_path: Path, gop_index: int) -> None:
    with pytest.raises(ConfigurationError, match=r"has 2. Use 0 to 1"):
        write_sheet(layout, BIKES, str(tmp_path / "sheet.png"), gop_index=gop_index)


def test_wrong_reencoded_file_fails(dataset: str, tmp_path: Path) -> None:
    there = Layout(dataset=dataset, specs=SPECS)
    layout = Layout(dataset=str(tmp_path), specs=SPECS)
    key = video_key(BIKES)
    storage.publish_bytes(layout.extracted(key), storage.read_bytes(there.extracted(key)))
    storage.publish_bytes(layout.reencoded(key), storage.read_bytes(there.reencoded(video_key(BUNNY))))
    with pytest.raises(FormatError, match="does not hold the frames of GOP 1"):
        read_sheet_gop(layout, BIKES, gop_index=1)


def test_interrupted_write_leaves_nothing(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Figure, file: io.BufferedWriter, **_: object) -> None:
        file.write(b"half a picture")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(KeyboardInterrupt):
        write_sheet(layout, BIKES, str(tmp_path / "sheet.png"))
    assert not list(tmp_path.iterdir())
