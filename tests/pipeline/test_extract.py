"""Extraction on real clips: exact compensation, the closed loop, the codings' promises, and what is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av.logging
import google_crc32c
import numpy as np
import pytest

from cope_prep.pipeline import storage, tar
from cope_prep.pipeline.decode import read_frames
from cope_prep.pipeline.extract import extract_gops, extract_video
from cope_prep.pipeline.rebuild import rebuild_anchors
from cope_prep.pipeline.reencode import reencode_video
from cope_prep.pipeline.residual import decode_residual
from cope_prep.schemas.errors import BitstreamError, ChecksumError, ConfigurationError, SourceNotFoundError
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
LOSSLESS = {"residual": LosslessResidual(), "iframe": LosslessIframe()}

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


def decoded(path: Path) -> np.ndarray:
    """uint8 [num_frames, 3H/2, W]."""
    return np.stack([frame.picture() for frame in read_frames(str(path))])


def anchors_of(
    records: list[GopRecord], frames: np.ndarray, gop_size: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rebuilt anchors, the decoded frames that they stand for) of each GOP, after a trip over the wire."""
    pairs = []
    for record in records:
        first = record.gop_index * gop_size
        rebuilt = rebuild_anchors(decode_gop(encode_gop(record)))
        pairs.append((rebuilt, frames[first : first + record.num_frames : record.window]))
    assert pairs
    return pairs


def psnr_y(rebuilt: np.ndarray, frame: np.ndarray) -> float:
    rows = frame.shape[0] * 2 // 3
    return 10 * np.log10(255**2 / np.mean((rebuilt[:rows].astype(float) - frame[:rows]) ** 2))


@pytest.mark.parametrize("clip", range(4))
def test_h264_residual_is_zero_where_x264_signalled_skip(
    clip: int, real_clips: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        with av.logging.Capture() as logs:
            reencode_video(str(real_clips[clip]), str(out), spec=H264)
    finally:
        av.logging.set_level(level)
    text = "".join(message for _, _, message in logs)
    found = re.search(r"mb P  I16\.\.4:.*P16\.\.4: *([\d.]+)% *([\d.]+)% *([\d.]+)%.*skip: *([\d.]+)%", text)
    assert found, text
    *coded_shares, skip_share = (float(share) / 100 for share in found.groups())

    record_spec = ExtractSpec(window=1, **LOSSLESS)
    num_zero = num_blocks = num_intra = 0
    for record in extract_gops(str(out), spec=record_spec, encode_spec=H264):
        for window in record.windows:
            shape = (record.height_px * 3 // 2, record.width_px)
            residual = decode_residual(record.residual_spec, window.residual, shape=shape, name="")
            luma = residual[: record.height_px].reshape(24, 16, 24, 16).any(axis=(1, 3))
            chroma = residual[record.height_px :].reshape(24, 8, 48, 8).any(axis=(1, 3))
            changed = luma | chroma[:, :24] | chroma[:, 24:]
            intra = window.intra.reshape(24, 2, 24, 2).any(axis=(1, 3))
            num_zero += np.count_nonzero(~changed & ~intra)
            num_intra += np.count_nonzero(intra)
            num_blocks += changed.size
    assert num_blocks
    # Every skipped macroblock is exactly zero; a coded one may be, when it has no coefficients.
    assert skip_share - 0.001 <= num_zero / num_blocks <= skip_share + sum(coded_shares) + 0.001
    assert num_zero / num_blocks > 0.3
    assert num_intra / num_blocks == pytest.approx(1 - skip_share - sum(coded_shares), abs=0.003)


def test_mpeg4_residual_is_zero_for_most_blocks_of_a_still_scene(reencoded: Reencode) -> None:
    records = list(
        extract_gops(str(reencoded(2, MPEG4)), spec=ExtractSpec(window=1, **LOSSLESS), encode_spec=MPEG4)
    )
    rounding = [window.rounding for window in records[0].windows]
    assert rounding == [1 - index % 2 for index in range(len(rounding))]
    exact = [1 - window.stats.residual_nonzero_share for window in records[0].windows]
    assert np.mean(exact) > 0.5
    # Only the right rounding is exact: with the other one, half-pel blocks are off by one.
    frames = decoded(reencoded(2, MPEG4))
    pairs = anchors_of(records, frames, MPEG4.gop_size)
    assert all((rebuilt == expected).all() for rebuilt, expected in pairs)


@pytest.mark.parametrize("spec", [H264, MPEG4], ids=["h264", "mpeg4"])
@pytest.mark.parametrize("window", [30, 10, 1])
def test_lossless_gives_the_decoded_frames(spec: EncodeSpec, window: int, reencoded: Reencode) -> None:
    path = reencoded(2, spec)
    records = list(extract_gops(str(path), spec=ExtractSpec(window=window, **LOSSLESS), encode_spec=spec))
    for rebuilt, expected in anchors_of(records, decoded(path), spec.gop_size):
        np.testing.assert_array_equal(rebuilt, expected)
    assert {stats.max_error for record in records for stats in (w.stats for w in record.windows)} == {0}


@pytest.mark.parametrize("clip", range(4))
@pytest.mark.parametrize("spec", [H264, MPEG4], ids=["h264", "mpeg4"])
def test_dct_keeps_36_db_on_every_clip(clip: int, spec: EncodeSpec, reencoded: Reencode) -> None:
    path = reencoded(clip, spec)
    records = list(extract_gops(str(path), encode_spec=spec))
    pairs = anchors_of(records, decoded(path), spec.gop_size)
    for record, (rebuilt, expected) in zip(records, pairs, strict=True):
        measured = [psnr_y(*pair) for pair in zip(rebuilt, expected, strict=True)]
        assert min(measured) >= 36
        recorded = [record.iframe_psnr_y_db, *(window.stats.psnr_y_db for window in record.windows)]
        assert recorded == pytest.approx(measured, abs=0.001)
        worst = [record.iframe_max_error, *(window.stats.max_error for window in record.windows)]
        assert worst == [int(abs(a.astype(int) - b).max()) for a, b in zip(rebuilt, expected, strict=True)]


@pytest.mark.parametrize(("step", "deadzone"), [(8, 8), (4, 2), (2, 0)])
@pytest.mark.parametrize("window", [30, 10, 1])
def test_int8_keeps_its_bound_at_every_pixel(
    step: int, deadzone: int, window: int, reencoded: Reencode
) -> None:
    coding = Int8Residual(step=step, deadzone=deadzone)
    path = reencoded(2, H264)
    records = list(extract_gops(str(path), spec=ExtractSpec(window=window, residual=coding)))
    for rebuilt, expected in anchors_of(records, decoded(path), H264.gop_size):
        error = np.abs(rebuilt.astype(int) - expected)
        assert error[1:].max() <= coding.error_bound


def test_error_does_not_grow_along_a_gop(reencoded: Reencode) -> None:
    # The clip's content gets harder towards its end, so the last anchors of a GOP of 240 are compared with the
    # same moments in a GOP of 60. After its first two windows, where the I-frame's own quality still helps, 22
    # generations must be no worse than 5.
    record = next(extract_gops(str(reencoded(1, H264)), spec=ExtractSpec(window=10)))
    assert (record.num_frames, len(record.windows)) == (240, 23)
    shorter = EncodeSpec(gop_size=60)
    path = str(reencoded(1, shorter))
    fresh = list(extract_gops(path, spec=ExtractSpec(window=10), encode_spec=shorter))[3]
    assert (fresh.start_s, len(fresh.windows)) == (6.0, 5)
    psnr = np.array([window.stats.psnr_y_db for window in record.windows[-3:]])
    fresh_psnr = np.array([window.stats.psnr_y_db for window in fresh.windows[-3:]])
    assert (psnr > fresh_psnr - 0.5).all()


def test_another_process_rebuilds_the_same_bytes(reencoded: Reencode, tmp_path: Path) -> None:
    out = tmp_path / "video.tar"
    extract_video(str(reencoded(1, H264)), str(out), spec=ExtractSpec(), encode_spec=H264, video_id="bikes")
    script = """
import sys
from cope_prep.pipeline import tar
from cope_prep.pipeline.rebuild import checksum, rebuild_anchors
from cope_prep.schemas.wire import decode_gop
with open(sys.argv[1], "rb") as file:
    for span in tar.scan(file, name="tar"):
        anchors = rebuild_anchors(decode_gop(tar.read_members(file, span)), check=False)
        print(*(checksum(anchor) for anchor in anchors))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(out)], capture_output=True, text=True, check=True
    )
    elsewhere = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    here = [record.anchor_crc32c for record in extract_gops(str(reencoded(1, H264)))]
    assert elsewhere == here
    assert len(here) == 2


def test_windows_of_a_short_last_gop(reencoded: Reencode) -> None:
    records = list(extract_gops(str(reencoded(1, H264)), video_id="bikes"))
    assert [(r.gop_index, r.start_s, r.num_frames, len(r.windows)) for r in records] == [
        (0, 0.0, 240, 7),
        (1, 8.0, 60, 1),
    ]


def test_packet_bytes_are_those_of_the_window(reencoded: Reencode) -> None:
    path = reencoded(1, H264)
    container = av.open(str(path))
    sizes = {packet.pts: packet.size for packet in container.demux(video=0) if packet.size}
    in_order = [sizes[pts] for pts in sorted(sizes)]
    record = next(extract_gops(str(path)))
    assert record.iframe_packet_bytes == in_order[0]
    assert [w.stats.packet_bytes for w in record.windows] == [
        sum(in_order[1 + 30 * k : 31 + 30 * k]) for k in range(7)
    ]


@pytest.mark.parametrize("block_px", [16, 8, 4])
@pytest.mark.parametrize("residual", [DctResidual(), Int8Residual(), LosslessResidual()])
def test_every_block_size_rebuilds(
    block_px: int, residual: DctResidual | Int8Residual | LosslessResidual, reencoded: Reencode
) -> None:
    spec = ExtractSpec(motion_block_px=block_px, residual=residual)
    records = list(extract_gops(str(reencoded(3, H264)), spec=spec))
    assert records[0].windows[0].motion.shape == (384 // block_px, 384 // block_px, 2)
    assert rebuild_anchors(decode_gop(encode_gop(records[0]))).shape == (5, 576, 384)


def test_pan_of_known_speed_gives_known_motion(media, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texture = sum(
        rng.integers(0, 60, (size, 2 * size)).repeat(512 // size, 0).repeat(512 // size, 1)
        for size in (8, 16, 64, 128)
    )

    def paint(index: int, width: int, height: int) -> np.ndarray:
        picture = np.full((height * 3 // 2, width), 128, np.uint8)
        picture[:height] = texture[:height, 2 * index : 2 * index + width]  # 2 px a frame to the left
        return picture

    source = media.write_clip(tmp_path / "pan.mkv", painter=paint, size_px=(384, 384), num_frames=61)
    out = tmp_path / "out.mp4"
    reencode_video(str(source), str(out), spec=H264)
    record = next(extract_gops(str(out), spec=ExtractSpec(window=10)))
    for window in record.windows:
        inner = window.motion[4:-4, 4:-4] * window.motion_step_px
        # What is at p now was at p + 20 ten frames ago.
        np.testing.assert_allclose(np.median(inner, axis=(0, 1)), (20, 0), atol=0.5)


def test_extract_video_writes_a_tar_of_its_gops(reencoded: Reencode, tmp_path: Path) -> None:
    out = tmp_path / "folder" / "video.tar"
    report = extract_video(
        str(reencoded(1, H264)), str(out), spec=ExtractSpec(), encode_spec=H264, video_id="bikes"
    )
    assert report.output_bytes == out.stat().st_size
    assert (report.num_frames, report.num_gops, report.num_windows, report.duration_s) == (300, 2, 8, 10.0)
    expected = list(extract_gops(str(reencoded(1, H264)), video_id="bikes"))
    with out.open("rb") as file:
        spans = list(tar.scan(file, name=str(out)))
        members = [tar.read_members(file, span) for span in spans]
    assert [span.key for span in spans] == [record.key for record in expected]
    assert members == [encode_gop(record) for record in expected]


def test_extract_is_reproducible(reencoded: Reencode) -> None:
    first, second = (
        [encode_gop(record) for record in extract_gops(str(reencoded(0, H264)))] for _ in range(2)
    )
    assert first == second


def test_extract_with_another_encode_spec_fails(reencoded: Reencode) -> None:
    with pytest.raises(BitstreamError, match="frame 60 is a P-frame, but the GOP is 60"):
        list(extract_gops(str(reencoded(3, H264)), encode_spec=EncodeSpec(gop_size=60)))
    with pytest.raises(BitstreamError, match="expected mpeg4"):
        list(extract_gops(str(reencoded(3, H264)), encode_spec=MPEG4))


def test_extract_of_an_ordinary_video_fails(real_clips: list[Path]) -> None:
    with pytest.raises(BitstreamError):  # B-frames, several references, its own GOPs, an odd size
        list(extract_gops(str(real_clips[1])))


def test_extract_of_a_window_as_long_as_the_gop_fails(reencoded: Reencode) -> None:
    with pytest.raises(ConfigurationError, match="window 240"):
        next(extract_gops(str(reencoded(3, H264)), spec=ExtractSpec(window=240)))


def test_extract_of_no_file_fails(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError):
        next(extract_gops(str(tmp_path / "absent.mp4")))


def test_extract_of_a_damaged_file_leaves_nothing(reencoded: Reencode, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.mp4"
    content = reencoded(3, H264).read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    with pytest.raises(BitstreamError, match=re.escape(str(damaged))):
        extract_video(
            str(damaged), str(tmp_path / "out.tar"), spec=ExtractSpec(), encode_spec=H264, video_id="x"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.mp4"]


def test_extract_of_a_file_with_a_flipped_bit_fails(reencoded: Reencode, tmp_path: Path) -> None:
    """Decoders conceal most damage, so only the recorded checksum finds all of it."""
    sound = reencoded(3, H264)
    damaged = tmp_path / "damaged.mp4"
    content = bytearray(sound.read_bytes())
    content[len(content) // 3] ^= 4
    damaged.write_bytes(content)
    with pytest.raises(ChecksumError, match=rf"{re.escape(str(damaged))}: has crc32c .* recorded"):
        extract_video(
            str(damaged),
            str(tmp_path / "out.tar"),
            spec=ExtractSpec(),
            encode_spec=H264,
            video_id="x",
            source_crc32c=storage.crc32c(str(sound)),
        )
    assert not (tmp_path / "out.tar").exists()


def test_reports_carry_the_checksum_of_what_was_published(real_clips: list[Path], tmp_path: Path) -> None:
    fixed, out = tmp_path / "fixed.mp4", tmp_path / "out.tar"
    first = reencode_video(str(real_clips[3]), str(fixed), spec=H264)
    assert first.output_crc32c == google_crc32c.value(fixed.read_bytes())
    second = extract_video(
        str(fixed),
        str(out),
        spec=ExtractSpec(),
        encode_spec=H264,
        video_id="x",
        source_crc32c=first.output_crc32c,
    )
    assert second.output_crc32c == google_crc32c.value(out.read_bytes())
