"""Sources of every kind -> fixed-GOP files, looked at with ffprobe and with the numbers in the pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import pickle
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import fsspec
import numpy as np
import pytest

from cope_prep.pipeline import reencode as reencode_module
from cope_prep.pipeline import source as source_module
from cope_prep.pipeline.encode import Muxer, SegmentEncoder
from cope_prep.pipeline.probe import probe_source
from cope_prep.pipeline.reencode import ReencodeReport, reencode_video
from cope_prep.pipeline.storage import FileStat
from cope_prep.pipeline.transcode import Transcoder
from cope_prep.schemas.errors import (
    CorruptVideoError,
    NotAVideoError,
    NoVideoStreamError,
    SourceError,
    SourceNotFoundError,
    StorageError,
    UnsupportedVideoError,
)
from cope_prep.schemas.specs import EncodeSpec

GOP = 8
SIZE = {"width_px": 96, "height_px": 64}
SPECS = {
    "h264": EncodeSpec(codec="h264", gop_size=GOP, quality=10, preset="ultrafast", **SIZE),
    "mpeg4": EncodeSpec(codec="mpeg4", gop_size=GOP, quality=2, **SIZE),
}
FAITHFUL = EncodeSpec(codec="h264", gop_size=GOP, quality=1, preset="ultrafast", **SIZE)


def encode(source: Path, spec: EncodeSpec = SPECS["h264"]) -> tuple[ReencodeReport, Path]:
    out = source.with_name(f"{source.stem}-out.mp4")
    return reencode_video(str(source), str(out), spec=spec), out


def assert_structure(media: ModuleType, out: Path, report: ReencodeReport, spec: EncodeSpec) -> None:
    """I at every multiple of the GOP, P elsewhere, k/fps seconds exactly, full range flagged."""
    found = media.ffprobe(out)
    assert report.num_frames > 0
    expected = "".join("I" if index % spec.gop_size == 0 else "P" for index in range(report.num_frames))
    assert found.types == expected
    assert found.key_frames == tuple(range(0, report.num_frames, spec.gop_size))
    assert found.times_s == pytest.approx([k / spec.fps for k in range(report.num_frames)], abs=1e-6)
    assert (found.color_range, found.color_space) == ("pc", "smpte170m")
    assert found.codec == spec.codec
    assert report.num_gops == -(-report.num_frames // spec.gop_size)
    assert report.duration_s == report.num_frames / spec.fps
    assert report.output_bytes == out.stat().st_size


def ms(num_frames: int, start_ms: int = 0) -> dict[str, Any]:
    """Timestamps of 30 FPS as Matroska rounds them."""
    pts = [start_ms + round(index * 1000 / 30) for index in range(num_frames)]
    return {"pts": pts, "time_base": Fraction(1, 1000)}


KINDS: dict[str, tuple[str, dict[str, Any], int]] = {
    # name: (file name, how to write 30 pictures of it, source pictures a second)
    "mp4 h264 b-frames": ("a.mp4", {"max_b_frames": 3}, 30),
    "open gop": ("a.mp4", {"max_b_frames": 3, "options": {"x264-params": "open-gop=1"}}, 30),
    "hevc 10 bit": (
        "a.mp4",
        {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": {"x265-params": "log-level=none"}},
        30,
    ),
    "matroska milliseconds": ("a.mkv", ms(30), 30),
    "matroska starts at 7 s": ("a.mkv", ms(30, 7033), 30),
    "webm vp9": ("a.webm", {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}}, 30),
    "avi mpeg4 b-frames": ("a.avi", {"codec": "mpeg4", "max_b_frames": 2}, 30),
    "avi h264 b-frames": ("a.avi", {"max_b_frames": 2}, 30),
    "transport stream": ("a.ts", {"max_b_frames": 2}, 30),
    "program stream mpeg2": ("a.mpg", {"codec": "mpeg2video", "max_b_frames": 2, "fps": 25}, 25),
    "raw h264, no timestamps": ("a.h264", {"fps": 25}, 25),
    "flash": ("a.flv", {"max_b_frames": 2}, 30),
    "windows media": ("a.wmv", {"codec": "wmv2"}, 30),
    "motion jpeg, full range": ("a.mov", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}, 30),
    "prores 422 10 bit": ("a.mov", {"codec": "prores", "pix_fmt": "yuv422p10le"}, 30),
    "gif": ("a.gif", {"codec": "gif", "pix_fmt": "gray", "fps": 10}, 10),
    "interlaced h264": (
        "a.mp4",
        {"fps": 25, "options": {"flags": "+ildct+ilme", "x264-params": "tff=1"}},
        25,
    ),
    "interlaced mpeg2": (
        "a.mpg",
        {"fps": 25, "codec": "mpeg2video", "options": {"flags": "+ildct+ilme"}},
        25,
    ),
    "50 fps": ("a.mp4", {"fps": 50}, 50),
    "odd size": ("a.mkv", {"codec": "ffv1", "size_px": (135, 77), "pix_fmt": "yuv444p"}, 30),
    "with sound": ("a.mp4", {"audio": True}, 30),
}


@pytest.mark.parametrize("codec", SPECS)
@pytest.mark.parametrize("kind", KINDS)
def test_source_kinds(media: ModuleType, tmp_path: Path, kind: str, codec: str) -> None:
    name, how, fps = KINDS[kind]
    if "size_px" in how and how["size_px"][0] % 2:
        how = {**how, "painter": odd_numbered(media)}
    source = media.write_clip(tmp_path / name, **how)
    before = source.read_bytes()
    report, out = encode(source, SPECS[codec])
    assert_structure(media, out, report, SPECS[codec])
    assert (report.status, report.error_class, report.error_message) == ("ok", "", "")
    # k/30 s shows picture floor(k * fps / 30), to the end of the last one.
    assert media.numbers_in(out) == [k * fps // 30 for k in range(-(-30 * 30 // fps))]
    assert source.read_bytes() == before
    assert report.source_size_bytes == len(before)
    assert report.source_sha256 == hashlib.sha256(before).hexdigest()
    assert report.source_version == str(source.stat().st_mtime_ns)


@pytest.mark.parametrize(
    ("name", "how", "fps"),
    [
        ("a.mp4", {"fps": Fraction(30000, 1001), "rotation": (90, False, False)}, 30000 / 1001),
        ("a.webm", {"fps": 25, "codec": "libvpx-vp9", "size_px": (160, 80)}, 25.0),
    ],
)
def test_report_says_what_the_source_was(
    media: ModuleType, tmp_path: Path, name: str, how: dict[str, Any], fps: float
) -> None:
    source = media.write_clip(tmp_path / name, num_frames=50, **how)
    found = media.ffprobe(source)
    report, _ = encode(source)
    assert report.source_codec == found.codec
    assert (report.source_width_px, report.source_height_px) == (found.width_px, found.height_px)
    assert report.source_fps == pytest.approx(fps, rel=1e-3)
    assert report.source_duration_s == pytest.approx(50 / fps, abs=0.05)


def test_source_without_a_header_has_no_claims(media: ModuleType, tmp_path: Path) -> None:
    source = media.write_clip(tmp_path / "a.h264", num_frames=50)
    report, _ = encode(source)
    assert (report.source_codec, report.source_duration_s) == ("h264", None)


def odd_numbered(media: ModuleType) -> Callable[[int, int, int], np.ndarray]:
    def paint(index: int, width: int, height: int) -> np.ndarray:
        luma = media.numbered(index, width + 1, height + 1)[:height, :width]
        return np.stack([luma, np.full_like(luma, 128), np.full_like(luma, 128)])

    return paint


@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
def test_real_clips(media: ModuleType, real_clips: list[Path], tmp_path: Path, codec: str) -> None:
    seconds = {"bigbuckbunny": 5.28, "bikes": 10.0, "carphone_distorted": 4.004, "carphone_pristine": 4.004}
    quality = 23 if codec == "h264" else 4
    spec = EncodeSpec(
        codec=codec, quality=quality, preset="superfast", width_px=192, height_px=192, gop_size=48
    )
    for clip in real_clips:
        out = tmp_path / clip.name
        report = reencode_video(str(clip), str(out), spec=spec)
        assert_structure(media, out, report, spec)
        assert report.status == "ok"
        assert report.num_frames == -(-int(seconds[clip.stem] * 30000) // 1000)


def test_default_spec_has_one_i_frame_in_240(
    media: ModuleType, real_clips: list[Path], tmp_path: Path
) -> None:
    bikes = next(clip for clip in real_clips if clip.stem == "bikes")
    out = tmp_path / "bikes.mp4"
    report = reencode_video(str(bikes), str(out), spec=EncodeSpec(width_px=192, height_px=192))
    assert_structure(media, out, report, EncodeSpec())
    assert (report.num_frames, report.num_gops) == (300, 2)
    settings = out.read_bytes()
    for setting in (b"ref=1 ", b"weightp=0", b"deblock=0:", b"bframes=0", b"threads=1 ", b"scenecut=0"):
        assert setting in settings


@pytest.mark.parametrize("preset", ["ultrafast", "veryslow"])
def test_preset_does_not_override_exactness(media: ModuleType, tmp_path: Path, preset: Any) -> None:
    source = media.write_clip(tmp_path / "a.mp4", painter=media.moving)
    _, out = encode(source, SPECS["h264"].model_copy(update={"preset": preset}))
    settings = out.read_bytes()
    assert b"ref=1 deblock=0:" in settings
    # Inter partitions: 0x10 is p8x8, and 0x20 would be p4x4.
    assert b"analyse=0x3:0x13" in settings or b"analyse=0:0x11" in settings
    smallest = 16
    with av.open(str(out)) as container:
        container.streams.video[0].codec_context.options = {"flags2": "+export_mvs"}
        for frame in container.decode(video=0):
            vectors = frame.side_data.get("MOTION_VECTORS")
            if vectors is not None and len(vectors):
                array = vectors.to_ndarray()
                smallest = min(smallest, array["w"].min(), array["h"].min())
    assert smallest >= 8


def test_scene_cuts_make_no_i_frames(media: ModuleType, tmp_path: Path) -> None:
    def cuts(index: int, width: int, height: int) -> np.ndarray:
        scene = np.random.default_rng(index // 5).integers(16, 235, (height * 3 // 2, width), np.uint8)
        scene[height:] = 128
        return scene

    source = media.write_clip(tmp_path / "cuts.mp4", num_frames=40, painter=cuts)
    for spec in SPECS.values():
        report, out = encode(source, spec)
        assert_structure(media, out, report, spec)


@pytest.mark.parametrize("qscale", [1, 3, 12, 31])
def test_mpeg4_quantizer_is_the_spec_s(media: ModuleType, tmp_path: Path, qscale: int) -> None:
    source = media.write_clip(tmp_path / "a.mp4", painter=media.moving)
    _, out = encode(source, SPECS["mpeg4"].model_copy(update={"quality": qscale}))
    found = set()
    with av.open(str(out)) as container:
        container.streams.video[0].codec_context.options = {"export_side_data": "venc_params"}
        for frame in container.decode(video=0):
            found |= set(np.unique(frame.side_data["VIDEO_ENC_PARAMS"].qp_map()))
    # FFmpeg exports twice the quantizer, in the scale of MPEG-2.
    assert found == {2 * qscale}


@pytest.mark.parametrize("codec", SPECS)
def test_same_source_and_spec_give_the_same_bytes(
    media: ModuleType, real_clips: list[Path], tmp_path: Path, codec: str
) -> None:
    clip = next(clip for clip in real_clips if clip.stem == "carphone_pristine")
    spec = SPECS[codec].model_copy(update={"preset": "medium"})
    # Each in a process of its own, as jobs run them, under another output name: neither may leave a trace.
    code = (
        "import sys; from cope_prep.pipeline.reencode import reencode_video;"
        "from cope_prep.schemas.specs import EncodeSpec;"
        "reencode_video(sys.argv[1], sys.argv[2], spec=EncodeSpec.model_validate_json(sys.argv[3]))"
    )
    outs = [tmp_path / "one.mp4", tmp_path / "another name.mp4"]
    for out in outs:
        subprocess.run([sys.executable, "-c", code, str(clip), str(out), spec.model_dump_json()], check=True)
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_variable_frame_rate_by_presentation_time(media: ModuleType, tmp_path: Path) -> None:
    steps = np.random.default_rng(5).choice([1, 7, 16, 33, 50, 120, 400], 60)
    times_ms = [0, *np.cumsum(steps).tolist()]
    source = media.write_clip(
        tmp_path / "vfr.mkv", num_frames=61, pts=times_ms, time_base=Fraction(1, 1000), max_b_frames=2
    )
    report, out = encode(source)
    numbers = media.numbers_in(out)
    assert len(numbers) == report.num_frames > 60
    for k, number in enumerate(numbers):
        begun = [index for index, time_ms in enumerate(times_ms) if time_ms <= k * 1000 / 30 + 0.5]
        assert number == begun[-1], f"frame {k}"
    assert len(set(numbers)) < 61  # some pictures were too short to be seen


def test_last_picture_stays_for_its_duration(media: ModuleType, tmp_path: Path) -> None:
    source = media.write_clip(tmp_path / "slides.mp4", num_frames=3, fps=1)
    _, out = encode(source)
    assert media.numbers_in(out) == [0] * 30 + [1] * 30 + [2] * 30


def test_single_picture_makes_a_single_gop(media: ModuleType, tmp_path: Path) -> None:
    report, out = encode(media.write_clip(tmp_path / "one.mkv", num_frames=1, fps=120))
    assert (report.num_frames, report.num_gops) == (1, 1)
    assert media.ffprobe(out).types == "I"


def test_other_frame_rates(media: ModuleType, tmp_path: Path) -> None:
    source = media.write_clip(tmp_path / "a.mp4")
    for fps, step in ((10, 3), (60, 0.5)):
        spec = SPECS["h264"].model_copy(update={"fps": fps})
        report, out = encode(source, spec)
        assert_structure(media, out, report, spec)
        assert media.numbers_in(out) == [int(k * step) for k in range(fps)]


def test_edit_list_trims_what_a_player_trims(media: ModuleType, tmp_path: Path) -> None:
    # Pictures before time 0 are in the file, but behind its edit list.
    source = media.write_clip(
        tmp_path / "a.mp4", pts=[index - 5 for index in range(30)], time_base=Fraction(1, 30)
    )
    report, out = encode(source)
    assert media.numbers_in(out) == list(range(5, 30))
    assert report.status == "ok"


def test_timestamp_jump_is_closed(media: ModuleType, tmp_path: Path) -> None:
    pts = [round(index * 1000 / 30) + (7_200_000 if index >= 15 else 0) for index in range(30)]
    source = media.write_clip(tmp_path / "jump.mkv", pts=pts, time_base=Fraction(1, 1000))
    report, out = encode(source)
    assert media.numbers_in(out) == list(range(30))
    assert report.status == "partial"
    assert "1 jump of the timestamps" in report.error_message


def test_still_picture_is_held(media: ModuleType, tmp_path: Path) -> None:
    """Slides: the header's duration has room for the gaps."""
    source = media.write_clip(
        tmp_path / "slides.mkv", num_frames=4, pts=[0, 90_000, 180_000, 181_000], time_base=Fraction(1, 1000)
    )
    out = tmp_path / "out.mp4"
    report = reencode_video(str(source), str(out), spec=EncodeSpec(fps=2, preset="ultrafast"))
    assert report.status == "ok"
    shown = media.numbers_in(out)
    assert shown[:362] == [0] * 180 + [1] * 180 + [2] * 2
    assert set(shown[362:]) == {3}


def test_concatenated_transport_streams_run_on(media: ModuleType, tmp_path: Path) -> None:
    """The clock starts anew and the picture size changes: two recordings in one file."""
    one = media.write_clip(tmp_path / "one.ts", num_frames=60)
    two = media.write_clip(tmp_path / "two.ts", num_frames=60, size_px=(288, 160), first_index=60)
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    for spec in SPECS.values():
        report, out = encode(both, spec)
        assert_structure(media, out, report, spec)
        numbers = media.numbers_in(out)
        assert len(numbers) >= 118
        assert numbers[:50] == list(range(50))
        assert numbers[-50:] == list(range(70, 120))
        assert any("size changes midway, to 288 x 160" in note for note in report.notes)


def test_size_change_midway(media: ModuleType, tmp_path: Path) -> None:
    parts = [
        media.write_clip(
            tmp_path / f"{index}.h264", fps=25, num_frames=10, size_px=size, first_index=10 * index
        )
        for index, size in enumerate([(144, 96), (96, 96), (270, 90)])
    ]
    source = tmp_path / "changing.h264"
    source.write_bytes(b"".join(part.read_bytes() for part in parts))
    for fit in ("squash", "keep"):
        report, out = encode(source, SPECS["h264"].model_copy(update={"fit": fit}))
        assert media.numbers_in(out) == [k * 25 // 30 for k in range(36)]
        assert sum("size changes midway" in note for note in report.notes) == 2
    assert (media.ffprobe(out).width_px, media.ffprobe(out).height_px) == (144, 96)


# Colour and geometry


def plane_means(picture: np.ndarray, inset: float = 0.25) -> tuple[float, float, float]:
    """Mean Y, U, V of the middle of a [3H/2, W] picture in PyAV's plane order."""
    height, width = picture.shape[0] * 2 // 3, picture.shape[1]
    planes = [
        picture[:height],
        picture[height : height * 5 // 4].reshape(height // 2, width // 2),
        picture[height * 5 // 4 :].reshape(height // 2, width // 2),
    ]
    means = []
    for plane in planes:
        y, x = (int(side * inset) for side in plane.shape)
        means.append(float(plane[y : plane.shape[0] - y, x : plane.shape[1] - x].mean()))
    return means[0], means[1], means[2]


WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}


def yuv(rgb: tuple[int, int, int], matrix: str, *, full: bool) -> tuple[int, int, int]:
    """The textbook: 8-bit R'G'B' -> Y'CbCr."""
    red_weight, blue_weight = WEIGHTS[matrix]
    red, green, blue = (level / 255 for level in rgb)
    y = red_weight * red + (1 - red_weight - blue_weight) * green + blue_weight * blue
    u, v = (blue - y) / (2 - 2 * blue_weight), (red - y) / (2 - 2 * red_weight)
    if full:
        return round(255 * y), round(128 + 255 * u), round(128 + 255 * v)
    return round(16 + 219 * y), round(128 + 224 * u), round(128 + 224 * v)


COLOURS = [(0, 0, 0), (255, 255, 255), (118, 118, 118), (180, 60, 40), (30, 150, 70), (50, 60, 200)]
COLOUR_KINDS = {
    # name: (size, color_range, colorspace, pix_fmt, matrix of the source, full range)
    "SD, nothing said": ((144, 96), 0, 2, "yuv420p", "bt601", False),
    "HD, nothing said": ((1280, 720), 0, 2, "yuv420p", "bt709", False),
    "says BT.709": ((144, 96), 1, 1, "yuv420p", "bt709", False),
    "HD, says BT.601": ((1280, 720), 1, 6, "yuv420p", "bt601", False),
    "says BT.2020": ((144, 96), 1, 9, "yuv420p", "bt2020", False),
    "says full range": ((144, 96), 2, 6, "yuv420p", "bt601", True),
    "says full range BT.709": ((144, 96), 2, 1, "yuv420p", "bt709", True),
    "10 bit": ((144, 96), 1, 1, "yuv420p10le", "bt709", False),
    "4:4:4": ((144, 96), 1, 6, "yuv444p", "bt601", False),
}


@pytest.mark.parametrize("kind", COLOUR_KINDS)
def test_levels_are_right_to_within_two(media: ModuleType, tmp_path: Path, kind: str) -> None:
    size, color_range, colorspace, pix_fmt, matrix, full = COLOUR_KINDS[kind]

    def paint(index: int, width: int, height: int) -> np.ndarray:
        return media.flat(*yuv(COLOURS[index], matrix, full=full))(index, width, height)

    source = media.write_clip(
        tmp_path / "colours.mkv",
        num_frames=len(COLOURS),
        size_px=size,
        codec="libx264",
        pix_fmt=pix_fmt,
        options={"qp": "0", "crf": "0"},
        color_range=color_range,
        colorspace=colorspace,
        painter=paint,
    )
    _, out = encode(source, FAITHFUL)
    pictures = media.read_pictures(out)
    assert len(pictures) == len(COLOURS)
    for rgb, picture in zip(COLOURS, pictures, strict=True):
        assert plane_means(picture) == pytest.approx(yuv(rgb, "bt601", full=True), abs=2), rgb


def test_rgb_source_levels(media: ModuleType, tmp_path: Path) -> None:
    def paint(index: int, width: int, height: int) -> np.ndarray:
        return np.broadcast_to(np.array(COLOURS[index], np.uint8), (height, width, 3)).copy()

    source = media.write_clip(
        tmp_path / "rgb.mov", num_frames=len(COLOURS), codec="png", pix_fmt="rgb24", painter=paint
    )
    _, out = encode(source, FAITHFUL)
    for rgb, picture in zip(COLOURS, media.read_pictures(out), strict=True):
        assert plane_means(picture) == pytest.approx(yuv(rgb, "bt601", full=True), abs=2), rgb


def quadrants(index: int, width: int, height: int) -> np.ndarray:
    """Four grey levels that tell every turn and mirroring apart: 40 80 / 160 220."""
    picture = np.full((height * 3 // 2, width), 128, np.uint8)
    picture[: height // 2, : width // 2], picture[: height // 2, width // 2 :] = 40, 80
    picture[height // 2 : height, : width // 2], picture[height // 2 : height, width // 2 :] = 160, 220
    return picture


def read_quadrants(picture: np.ndarray) -> list[list[int]]:
    height, width = picture.shape[0] * 2 // 3, picture.shape[1]
    rows, columns = (height // 4, 3 * height // 4), (width // 4, 3 * width // 4)
    return [[int(picture[y - 3 : y + 3, x - 3 : x + 3].mean().round()) for x in columns] for y in rows]


TURNS = {
    # counterclockwise degrees, hflip, vflip -> what is seen
    (0, False, False): [[40, 80], [160, 220]],
    (-90, False, False): [[160, 40], [220, 80]],
    (180, False, False): [[220, 160], [80, 40]],
    (90, False, False): [[80, 220], [40, 160]],
    (0, True, False): [[80, 40], [220, 160]],
    (0, False, True): [[160, 220], [40, 80]],
}


@pytest.mark.parametrize("fit", ["squash", "keep"])
@pytest.mark.parametrize("turn", TURNS)
def test_rotation(media: ModuleType, tmp_path: Path, turn: tuple[int, bool, bool], fit: Any) -> None:
    degrees, hflip, vflip = turn

    source = media.write_clip(
        tmp_path / "turned.mp4",
        num_frames=3,
        painter=quadrants,
        rotation=(degrees, hflip, vflip),
        color_range=2,
    )
    report, out = encode(source, FAITHFUL.model_copy(update={"fit": fit}))
    for picture in media.read_pictures(out):
        np.testing.assert_allclose(read_quadrants(picture), TURNS[turn], atol=2)
    turned = degrees % 180 != 0
    if fit == "keep":
        found = media.ffprobe(out)
        assert (found.width_px, found.height_px) == ((96, 144) if turned else (144, 96))
    assert any("rotated" in note for note in report.notes) == (turn != (0, False, False))


def bars(left: int, top: int) -> Callable[[int, int, int], np.ndarray]:
    """Light, with a dark frame: `left` columns at each side, `top` rows above and below."""

    def paint(index: int, width: int, height: int) -> np.ndarray:
        picture = np.full((height * 3 // 2, width), 128, np.uint8)
        picture[:height] = 30
        picture[top : height - top, left : width - left] = 220
        return picture

    return paint


def light_box(picture: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what is light: half open."""
    luma = picture[: picture.shape[0] * 2 // 3]
    columns, rows = np.flatnonzero(luma.max(axis=0) > 128), np.flatnonzero(luma.max(axis=1) > 128)
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


FITS = {
    # (fit, source size, sample aspect, dark frame) -> box of the light part in 96 x 64
    ("squash", (192, 64), 1, (0, 0)): (0, 0, 96, 64),
    ("squash", (192, 64), 2, (0, 0)): (0, 0, 96, 64),
    ("crop", (192, 64), 1, (48, 0)): (0, 0, 96, 64),  # exactly the dark sides are cut off
    ("crop", (96, 128), 1, (0, 32)): (0, 0, 96, 64),
    ("crop", (96, 64), 2, (24, 0)): (0, 0, 96, 64),
    ("pad", (192, 64), 1, (0, 0)): (0, 16, 96, 48),
    ("pad", (64, 128), 1, (0, 0)): (32, 0, 64, 64),
    ("pad", (96, 64), 2, (0, 0)): (0, 16, 96, 48),
    ("pad", (96, 64), 1, (0, 0)): (0, 0, 96, 64),
}


@pytest.mark.parametrize("case", FITS, ids=str)
def test_fit(media: ModuleType, tmp_path: Path, case: tuple[Any, ...]) -> None:
    fit, size, aspect, frame = case
    source = media.write_clip(
        tmp_path / "a.mkv",
        num_frames=2,
        size_px=size,
        sample_aspect=Fraction(aspect),
        painter=bars(*frame),
        color_range=2,
    )
    _, out = encode(source, FAITHFUL.model_copy(update={"fit": fit}))
    picture = media.read_pictures(out)[0]
    left, top, right, bottom = light_box(picture)
    np.testing.assert_allclose([left, top, right, bottom], FITS[case], atol=1)
    luma = picture[:64]
    outside = np.ones_like(luma, bool)
    outside[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2] = False
    if outside.any():
        assert luma[outside].max() <= 2  # full-range black
        assert abs(picture[64:].astype(int) - 128).max() <= 2


def test_pad_with_rotation(media: ModuleType, tmp_path: Path) -> None:
    source = media.write_clip(
        tmp_path / "a.mp4", num_frames=2, size_px=(192, 96), painter=bars(0, 0), rotation=(90, False, False)
    )
    _, out = encode(source, FAITHFUL.model_copy(update={"fit": "pad"}))
    np.testing.assert_allclose(light_box(media.read_pictures(out)[0]), (32, 0, 64, 64), atol=1)


@pytest.mark.parametrize(
    ("size", "aspect", "expected"),
    [
        ((144, 96), 1, (144, 96)),
        ((150, 90), 1, (144, 96)),
        ((144, 96), 2, (288, 96)),
        ((34, 18), 1, (32, 32)),
    ],
)
def test_keep_is_the_display_size_in_multiples_of_16(
    media: ModuleType, tmp_path: Path, size: tuple[int, int], aspect: int, expected: tuple[int, int]
) -> None:
    source = media.write_clip(tmp_path / "a.mkv", num_frames=2, size_px=size, sample_aspect=Fraction(aspect))
    _, out = encode(source, SPECS["h264"].model_copy(update={"fit": "keep"}))
    found = media.ffprobe(out)
    assert (found.width_px, found.height_px) == expected


def test_interlaced_frames_lose_their_combs(media: ModuleType, tmp_path: Path) -> None:
    def combed(index: int, width: int, height: int) -> np.ndarray:
        picture = np.full((height * 3 // 2, width), 128, np.uint8)
        picture[:height] = 60
        for field, shift in ((0, 0), (1, 8)):  # the square moves 8 px from one field to the next
            left = (16 * index + shift) % (width - 32)
            picture[16 + field : height - 16 : 2, left : left + 32] = 200
        return picture

    def combing(picture: np.ndarray) -> float:
        luma = picture[: picture.shape[0] * 2 // 3].astype(int)
        return float(np.abs(2 * luma[1:-1] - luma[:-2] - luma[2:]).mean())

    interlaced = {"flags": "+ildct+ilme", "x264-params": "tff=1"}
    means = []
    for name, options in (("flagged.mp4", interlaced), ("progressive.mp4", {})):
        source = media.write_clip(tmp_path / name, painter=combed, options=options, size_px=(144, 96))
        report, out = encode(source, FAITHFUL.model_copy(update={"fit": "keep"}))
        assert report.num_frames == 30
        assert ("interlaced frames were deinterlaced" in report.notes) == (name == "flagged.mp4")
        means.append(np.mean([combing(picture) for picture in media.read_pictures(out)]))
    assert means[0] < means[1] / 3


# Streams and damage


def test_default_of_several_video_streams_is_used(media: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "two.mkv"
    with av.open(str(source), "w") as container:
        streams = [
            media.add_video(container, size_px=size, options={"preset": "ultrafast"})
            for size in ((288, 192), (144, 96))
        ]
        streams[0].disposition = 0
        streams[1].disposition = av.stream.Disposition.default
        for index in range(20):
            for stream, offset in zip(streams, (0, 100), strict=True):
                picture = media.numbered(index + offset, stream.width, stream.height)
                frame = media.make_frame(picture)
                frame.pts, frame.time_base = index, Fraction(1, 30)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    report, out = encode(source)
    assert media.numbers_in(out) == list(range(100, 120))
    assert "has 2 video streams, number 1 was used" in report.notes


def test_attached_picture_is_not_the_video(media: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "cover.mp4"
    with av.open(str(source), "w") as container:
        cover = media.add_video(container, size_px=(640, 480), codec="mjpeg", pix_fmt="yuvj420p")
        cover.disposition = av.stream.Disposition.attached_pic
        video = media.add_video(container, size_px=(144, 96), options={"preset": "ultrafast"})
        frame = media.make_frame(media.flat(200)(0, 640, 480), "yuvj420p")
        frame.pts = 0
        container.mux(cover.encode(frame))
        container.mux(cover.encode(None))
        for index in range(12):
            frame = media.make_frame(media.numbered(index, 144, 96))
            frame.pts, frame.time_base = index, Fraction(1, 30)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    with av.open(str(source)) as container:
        assert len(container.streams.video) == 2
    report, out = encode(source)
    assert media.numbers_in(out) == list(range(12))
    assert report.notes == ()


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("cut.mp4", {"container_options": {"movflags": "faststart"}}),
        ("fragmented.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
        ("cut.mkv", {}),
        ("cut.flv", {}),
        ("cut.avi", {"codec": "mpeg4"}),
    ],
)
def test_truncated_source_keeps_what_decodes(
    media: ModuleType, tmp_path: Path, name: str, how: dict[str, Any]
) -> None:
    def textured(index: int, width: int, height: int) -> np.ndarray:
        picture = media.numbered(index, width, height)
        picture[: height // 4] = np.random.default_rng(index).integers(16, 235, (height // 4, width))
        return picture

    source = media.write_clip(tmp_path / name, num_frames=120, painter=textured, gop_size=30, **how)
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 6 // 10])
    report, out = encode(source)
    assert report.status == "partial"
    assert report.error_class == "CorruptVideoError"
    assert report.error_message.startswith(str(source))
    numbers = media.numbers_in(out)
    assert 50 < len(numbers) < 90
    assert numbers[:50] == list(range(50))
    assert_structure(media, out, report, SPECS["h264"])


def test_report_of_damage_hides_credentials(media: ModuleType, tmp_path: Path) -> None:
    content = media.write_clip(tmp_path / "a.mkv", num_frames=120, painter=media.moving).read_bytes()
    folder = f"memory://KEY:HUSH4321HUSH@{tmp_path.name}"
    fsspec.filesystem("memory").pipe(f"{folder}/a.mkv", content[: len(content) // 2])
    report = reencode_video(f"{folder}/a.mkv", str(tmp_path / "out.mp4"), spec=SPECS["h264"])
    assert report.status == "partial"
    assert report.error_message.startswith(f"memory://***@{tmp_path.name}/a.mkv: ")
    assert "HUSH4321HUSH" not in str(report)


def replace_after_decoding(monkeypatch: pytest.MonkeyPatch, source: Path, content: bytes) -> None:
    """While a file is made of `source`, have others put in its place, once all its pictures are decoded."""
    run = Transcoder.run
    fillers = iter(range(1000))

    def run_then_replace(transcoder: Transcoder, path: str) -> int:
        num_frames = run(transcoder, path)
        beside = source.with_name("beside")
        beside.write_bytes(content + bytes(next(fillers)))
        beside.replace(source)
        return num_frames

    monkeypatch.setattr(Transcoder, "run", run_then_replace)


def test_source_that_is_replaced_after_decoding_is_not_hashed(
    media: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = media.write_clip(tmp_path / "a.mp4")
    other = media.write_clip(tmp_path / "b.mp4", first_index=100)
    with monkeypatch.context() as patch:
        replace_after_decoding(patch, source, other.read_bytes())
        with pytest.raises(StorageError, match="was replaced while it was read"):
            encode(source)
    assert not (tmp_path / "a-out.mp4").exists()
    report, out = encode(source)
    assert media.numbers_in(out) == list(range(100, 130))
    assert report.source_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()


def test_store_whose_tags_differ_by_machine_replaces_nothing(
    media: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = media.write_clip(tmp_path / "a.mp4")
    stat = reencode_module.storage.stat
    machines = itertools.cycle("ABC")

    def stat_of_next(uri: str) -> FileStat:
        found = stat(uri)
        return dataclasses.replace(found, version=next(machines)) if uri == str(source) else found

    monkeypatch.setattr(reencode_module.storage, "stat", stat_of_next)
    report, _ = encode(source)
    assert (report.status, report.source_version) == ("ok", "A")


def test_damaged_middle_is_skipped(media: ModuleType, tmp_path: Path) -> None:
    source = media.write_clip(tmp_path / "a.mkv", num_frames=120, painter=media.moving, gop_size=10)
    data = bytearray(source.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    source.write_bytes(data)
    report, out = encode(source)
    assert report.status == "partial"
    assert report.notes
    assert 100 <= report.num_frames <= 121
    assert_structure(media, out, report, SPECS["h264"])


@pytest.mark.parametrize("factor", [50, 0.1])
def test_wrong_header_is_not_believed(media: ModuleType, tmp_path: Path, factor: float) -> None:
    """Durations in an MP4's headers are wrong; every picture is there all the same."""
    source = media.write_clip(tmp_path / "a.mp4", num_frames=60)
    data = bytearray(source.read_bytes())
    for box, skip in ((b"mvhd", 16), (b"mdhd", 16), (b"tkhd", 20)):
        at = data.index(box) + 4 + skip
        duration = int.from_bytes(data[at : at + 4], "big")
        data[at : at + 4] = int(duration * factor).to_bytes(4, "big")
    source.write_bytes(data)
    report, out = encode(source)
    assert media.numbers_in(out) == list(range(60))
    assert report.num_frames == 60


def test_avi_with_wrong_frame_count(media: ModuleType, tmp_path: Path) -> None:
    source = media.write_clip(tmp_path / "a.avi", codec="mpeg4", num_frames=60)
    data = bytearray(source.read_bytes())
    at = data.index(b"avih") + 8 + 16  # dwTotalFrames
    data[at : at + 4] = (7).to_bytes(4, "little")
    source.write_bytes(data)
    _, out = encode(source)
    assert media.numbers_in(out) == list(range(60))


def make_empty(media: ModuleType, path: Path) -> None:
    path.write_bytes(b"")


def make_text(media: ModuleType, path: Path) -> None:
    path.write_text("hello\n" * 100)


def make_sound(media: ModuleType, path: Path) -> None:
    media.write_sound_only(path)


def make_undecodable(media: ModuleType, path: Path) -> None:
    media.write_clip(path, container_options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 4])


def make_enormous(media: ModuleType, path: Path) -> None:
    media.write_clip(path, codec="ffv1", num_frames=1, size_px=(400, 300))
    path.write_bytes(path.read_bytes().replace(b"\xb0\x82\x01\x90", b"\xb0\x82\x75\x30"))


@pytest.mark.parametrize(
    ("make", "name", "error"),
    [
        (make_empty, "a.mp4", NotAVideoError),
        (make_text, "a.mp4", NotAVideoError),
        (make_sound, "a.m4a", NoVideoStreamError),
        (make_undecodable, "a.mp4", CorruptVideoError),
        (make_enormous, "a.mkv", UnsupportedVideoError),
        (lambda media, path: None, "a.mp4", SourceNotFoundError),
    ],
)
def test_bad_source_fails_and_leaves_nothing(
    media: ModuleType,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    make: Callable[[ModuleType, Path], None],
    name: str,
    error: type[SourceError],
) -> None:
    source = tmp_path / name
    make(media, source)
    capfd.readouterr()
    out = tmp_path / "out" / "a.mp4"
    with pytest.raises(error) as caught:
        reencode_video(str(source), str(out), spec=SPECS["h264"])
    assert str(source) in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args
    assert list(tmp_path.rglob("*.mp4")) == ([source] if source.suffix == ".mp4" and source.exists() else [])
    assert list(tmp_path.rglob(".tmp-*")) == []
    assert capfd.readouterr() == ("", "")


def test_failure_leaves_the_former_output(media: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    out.write_bytes(b"former")
    (tmp_path / "bad.mp4").write_bytes(b"")
    with pytest.raises(NotAVideoError):
        reencode_video(str(tmp_path / "bad.mp4"), str(out), spec=SPECS["h264"])
    assert out.read_bytes() == b"former"


def test_remote_source_and_output(media: ModuleType, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    source = media.write_clip(tmp_path / "a.mp4")
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/reencode-test/in.mp4", source.read_bytes())
    local, out = encode(source)
    remote = reencode_video(
        "memory://reencode-test/in.mp4", "memory://reencode-test/out.mp4", spec=SPECS["h264"]
    )
    assert memory.cat_file("/reencode-test/out.mp4") == out.read_bytes()
    assert remote.source_sha256 == local.source_sha256
    assert probe_source("memory://reencode-test/in.mp4").codec == "h264"


def test_names_that_ffmpeg_might_misread(media: ModuleType, tmp_path: Path) -> None:
    for name in ("100%d.mp4", "concat:a.mp4", "-y.mp4", "ä ö.mp4", "file:x.mp4"):
        source = tmp_path / name
        source.write_bytes(media.write_clip(tmp_path / "plain.mp4", num_frames=3).read_bytes())
        report = reencode_video(str(source), str(tmp_path / "out" / name), spec=SPECS["h264"])
        assert report.num_frames == 3
        assert (tmp_path / "out" / name).stat().st_size == report.output_bytes


def test_store_that_fails_midway_is_no_partial_result(
    media: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = media.write_clip(tmp_path / "a.mkv", num_frames=120, painter=media.moving)
    limit = clip.stat().st_size // 2

    class Failing(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            if self.tell() >= limit:
                raise ConnectionResetError("connection reset")
            return super().read(min(size, 1000))

    monkeypatch.setattr(source_module.storage, "open_read", lambda uri: Failing(uri))
    with pytest.raises(StorageError, match="connection reset"):
        encode(clip)
    assert list(tmp_path.iterdir()) == [clip]


def test_full_disk_is_a_storage_error(media: ModuleType) -> None:
    def fill_the_disk() -> None:
        with (
            Muxer("/dev/full", spec=SPECS["h264"], size_px=(96, 64)) as muxer,
            SegmentEncoder(muxer, spec=SPECS["h264"], size_px=(96, 64)) as encoder,
        ):
            for index in range(300):
                encoder.write(media.make_frame(media.moving(index, 96, 64)), range(index, index + 1))

    with pytest.raises(StorageError, match="/dev/full"):
        fill_the_disk()


def test_clock_without_times_fails(media: ModuleType, tmp_path: Path) -> None:
    source = media.write_clip(tmp_path / "a.avi", codec="mpeg4")
    data = bytearray(source.read_bytes())
    at = data.index(b"strh") + 8 + 20  # dwScale: seconds a frame, with dwRate
    data[at : at + 4] = (2**31 - 1).to_bytes(4, "little")
    source.write_bytes(data)
    with pytest.raises(UnsupportedVideoError, match="clock ticks once"):
        encode(source)


def test_damaged_files_give_a_file_or_a_source_error(
    media: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Random damage to every container: no other exception, and nothing on stderr. Seeded."""
    names = ["a.mp4", "a.mkv", "a.avi", "a.ts", "a.flv", "a.wmv", "a.mpg", "a.gif"]
    codecs = {"a.wmv": "wmv2", "a.mpg": "mpeg2video", "a.gif": "gif"}
    whole = {}
    for name in names:
        codec = codecs.get(name, "libx264")
        pix_fmt = "gray" if codec == "gif" else "yuv420p"
        fps = 25 if codec == "mpeg2video" else 30
        clip = media.write_clip(tmp_path / name, num_frames=12, codec=codec, pix_fmt=pix_fmt, fps=fps)
        whole[name] = clip.read_bytes()
    capfd.readouterr()
    rng = random.Random(2)
    outcomes = Counter()
    for round_index in range(25):
        for name, content in whole.items():
            data = bytearray(content)
            for _ in range(rng.choice([1, 5, 50, 500])):
                data[rng.randrange(len(data))] = rng.randrange(256)
            if rng.random() < 0.3:
                data = data[: rng.randrange(len(data))]
            path = tmp_path / f"{round_index}-{name}"
            path.write_bytes(data)
            try:
                outcomes[encode(path)[0].status] += 1
            except SourceError as exc:
                outcomes[type(exc).__name__] += 1
    assert outcomes["partial"] > 20
    assert outcomes["CorruptVideoError"] > 10
    assert list(tmp_path.glob(".tmp-*")) == []
    assert capfd.readouterr() == ("", "")
