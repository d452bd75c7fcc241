"""Decoding with motion, against PyAV's own arrays; and the MPEG-4 header bits."""

from __future__ import annotations

import os
import threading
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest

from cope_prep.pipeline import decode
from cope_prep.pipeline.bits import BitReader, VopParser
from cope_prep.pipeline.decode import read_frames, read_pictures
from cope_prep.pipeline.reencode import reencode_video
from cope_prep.schemas.errors import BitstreamError, SourceNotFoundError
from cope_prep.schemas.specs import EncodeSpec


@pytest.fixture(scope="module", params=["h264", "mpeg4"])
def encoded(
    request: pytest.FixtureRequest, real_clips: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "clip.mp4"
    quality = 23 if request.param == "h264" else 4
    spec = EncodeSpec(codec=request.param, quality=quality, gop_size=60)
    reencode_video(str(real_clips[2]), str(path), spec=spec)
    return path


def test_motion_field_equals_the_list_of_vectors(encoded: Path) -> None:
    container = av.open(str(encoded))
    container.streams.video[0].codec_context.options = {"flags2": "+export_mvs"}
    num_checked = 0
    for frame, ours in zip(container.decode(video=0), read_frames(str(encoded)), strict=True):
        field = ours.motion_field()
        vectors = frame.side_data.get("MOTION_VECTORS")
        expected = np.zeros((48, 48, 2), int)
        covered = np.zeros((48, 48), bool)
        for vector in vectors.to_ndarray() if vectors is not None else []:
            rows = slice((vector["dst_y"] - vector["h"] // 2) // 8, (vector["dst_y"] + vector["h"] // 2) // 8)
            cols = slice((vector["dst_x"] - vector["w"] // 2) // 8, (vector["dst_x"] + vector["w"] // 2) // 8)
            scale = 4 // vector["motion_scale"]
            expected[rows, cols] = (vector["motion_x"] * scale, vector["motion_y"] * scale)
            covered[rows, cols] = True
            num_checked += 1
        np.testing.assert_array_equal(field.motion, expected)
        np.testing.assert_array_equal(field.intra, ~covered)
        assert field.coverage == pytest.approx(covered.mean())
        assert ours.is_keyframe == (ours.index % 60 == 0) == bool(field.intra.all() and vectors is None)
    assert num_checked > 10_000


def test_pictures_equal_pyav(encoded: Path) -> None:
    container = av.open(str(encoded))
    num_checked = 0
    for frame, ours in zip(container.decode(video=0), read_frames(str(encoded)), strict=True):
        y, u, v = np.split(frame.to_ndarray().ravel(), [384 * 384, 384 * 384 + 192 * 192])
        picture = ours.picture()
        np.testing.assert_array_equal(picture[:384].ravel(), y)
        np.testing.assert_array_equal(picture[384:, :192].ravel(), u)
        np.testing.assert_array_equal(picture[384:, 192:].ravel(), v)
        num_checked += 1
    assert num_checked == 121


def test_packet_sizes_are_matched(encoded: Path) -> None:
    sizes = {packet.pts: packet.size for packet in av.open(str(encoded)).demux(video=0) if packet.size}
    assert [frame.packet_bytes for frame in read_frames(str(encoded))] == [
        sizes[pts] for pts in sorted(sizes)
    ]


def test_rounding_alternates_from_each_iframe(encoded: Path) -> None:
    rounding = [frame.rounding for frame in read_frames(str(encoded))]
    if "mpeg4" not in str(encoded.parent):
        assert set(rounding) == {0}
        return
    for start in (0, 60, 120):
        gop = rounding[start : start + 60]
        assert gop == [0] + [1 - index % 2 for index in range(len(gop) - 1)]


def test_no_such_file_fails(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError):
        next(read_frames(str(tmp_path / "absent.mp4")))


def test_not_a_video_fails(tmp_path: Path) -> None:
    path = tmp_path / "text.mp4"
    path.write_text("not a video" * 100)
    with pytest.raises(BitstreamError, match=r"text\.mp4: cannot be opened"):
        next(read_frames(str(path)))


def test_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "a.mp4"
    os.mkfifo(pipe)
    # Whoever waits for it gets an end at once, so that this test ends whatever happens.
    writer = threading.Thread(target=lambda: os.close(os.open(pipe, os.O_WRONLY)))
    writer.start()
    try:
        with pytest.raises(BitstreamError, match="is not a file"):
            next(read_frames(str(pipe)))
    finally:
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        writer.join()
        os.close(reader)


def test_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(BitstreamError, match="is not a file"):
        next(read_frames(str(tmp_path / "a.mp4")))


def growing_clip(media: ModuleType, path: Path) -> Path:
    """192 x 128 pixels in the stream from its second GOP on, 96 x 64 before and in the header."""
    how = {"num_frames": 24, "options": {"x264-params": "repeat-headers=1", "flags": "-global_header"}}
    small = media.write_clip(path.with_name("small.h264"), size_px=(96, 64), **how)
    large = media.write_clip(path.with_name("large.h264"), size_px=(192, 128), **how)
    joined = path.with_name("joined.h264")
    joined.write_bytes(small.read_bytes() + large.read_bytes())
    with av.open(str(joined)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for index, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            packet.stream, packet.time_base = stream, Fraction(1, 30)
            packet.pts = packet.dts = index
            container.mux(packet)
    return path


def test_size_that_grows_midway_is_refused_before_memory_is_asked_for(
    media: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = str(growing_clip(media, tmp_path / "a.mp4"))
    assert {frame.frame.width for frame in read_frames(clip)} == {96, 192}
    monkeypatch.setitem(decode._DECODER_OPTIONS, "max_pixels", str(96 * 64))
    with pytest.raises(BitstreamError, match="does not decode"):
        list(read_frames(clip))
    with pytest.raises(BitstreamError, match="does not decode"):
        read_pictures(clip, [30], fps=30)


def test_absurd_size_is_refused(media: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = str(media.write_clip(tmp_path / "a.mp4", size_px=(96, 64)))
    monkeypatch.setattr(decode, "MAX_SIDE_PX", 80)
    with pytest.raises(BitstreamError, match="96 x 64, no size of a video"):
        next(read_frames(clip))


def test_bit_reader() -> None:
    reader = BitReader(bytes([0xFF, 0b1010_0110, 0b0111_1111]), 1)
    assert [reader.read(bits) for bits in (1, 3, 5, 7)] == [1, 0b010, 0b01100, 0b1111111]
    with pytest.raises(EOFError):
        reader.read(1)


@pytest.mark.parametrize("extradata", [b"", b"\0\0\1\xb0\xf5", b"\0\0\1\x20\x00"])
def test_vop_parser_without_a_whole_vol_header_fails(extradata: bytes) -> None:
    with pytest.raises(BitstreamError, match="VOL header"):
        VopParser(extradata)
