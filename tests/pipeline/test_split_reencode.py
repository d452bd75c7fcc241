"""Re-encoding in parts gives what re-encoding in one piece gives, or says that it would not."""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import re
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import av
import av.error
import fsspec
import pytest
from av.video.frame import PictureType
from split_calls import run_parts, run_split, through_pickle

from cope_prep.pipeline import encode, storage
from cope_prep.pipeline.reencode import ReencodeReport, reencode_video
from cope_prep.pipeline.reencode_parts import PartReport, reencode_or_split
from cope_prep.pipeline.resample import Clock
from cope_prep.pipeline.source_range import timed_pictures
from cope_prep.pipeline.split import NeedsMemory, Split, Unfit
from cope_prep.schemas.errors import SourceError, StorageError
from cope_prep.schemas.specs import EncodeSpec

SIZE: dict[str, Any] = {"width_px": 96, "height_px": 64}
SPECS = {
    "h264": EncodeSpec(codec="h264", gop_size=10, preset="ultrafast", **SIZE),
    "mpeg4": EncodeSpec(codec="mpeg4", gop_size=10, quality=3, **SIZE),
}
SECONDS = 7
NUM_FRAMES = 30 * SECONDS


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment lasts a second."""
    monkeypatch.setattr(encode, "MIN_SEGMENT_S", 1)


def uneven(num_frames: int) -> dict[str, Any]:
    """Milliseconds between 15 and 55 a picture."""
    pts, now = [], 0
    for index in range(num_frames):
        pts.append(now)
        now += 15 + (index * 7919) % 41
    return {"pts": pts, "time_base": Fraction(1, 1000), "num_frames": num_frames}


PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "mp4, b-frames": ("a.mp4", {"max_b_frames": 3}),
    "open gop": ("a.mp4", {"max_b_frames": 3, "options": {"x264-params": "open-gop=1"}}),
    "variable rate": ("a.mp4", {**uneven(180), "max_b_frames": 2}),
    "matroska, variable rate, from 7 s on": ("a.mkv", {**uneven(180), "fps": 28}),
    "matroska, b-frames": ("a.mkv", {"max_b_frames": 2}),
    "25 fps": ("a.mp4", {"fps": 25, "num_frames": 25 * SECONDS}),
    "60 fps": ("a.mp4", {"fps": 60, "num_frames": 60 * SECONDS}),
    "with sound, rotated": ("a.mp4", {"audio": True, "rotation": (90, False, False)}),
    "hevc 10 bit": (
        "a.mp4",
        {
            "codec": "libx265",
            "pix_fmt": "yuv420p10le",
            "options": {"x265-params": "log-level=none:keyint=12", "crf": "10"},
            "max_b_frames": 3,
        },
    ),
    "webm vp9": ("a.webm", {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}}),
    "motion jpeg": ("a.mov", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
}


def write(media: ModuleType, folder: Path, name: str, **how: Any) -> Path:
    return media.write_clip(folder / name, **{"num_frames": NUM_FRAMES, "painter": media.moving, **how})


def split_of(source: Path, out: Path, spec: EncodeSpec = SPECS["h264"]) -> Split:
    found = reencode_or_split(str(source), str(out), spec=spec, part_work_s=0.001)
    assert isinstance(found, Split)
    return found


def without_times(report: ReencodeReport) -> dict[str, Any]:
    return {**dataclasses.asdict(report), "wall_s": 0, "cpu_s": 0}


@pytest.mark.parametrize("codec", SPECS)
@pytest.mark.parametrize("kind", PLAIN)
def test_parts_join_to_the_same_bytes(media: ModuleType, tmp_path: Path, kind: str, codec: str) -> None:
    name, how = PLAIN[kind]
    source = write(media, tmp_path, name, **how)
    whole = reencode_video(str(source), str(tmp_path / "whole.mp4"), spec=SPECS[codec])
    out = tmp_path / "out.mp4"
    split = split_of(source, out, SPECS[codec])
    assert len(split.parts) >= 6  # the checksum of the source, and a part a second
    report = run_split(split)
    assert isinstance(report, ReencodeReport)
    assert out.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert without_times(report) == without_times(whole)
    assert not list((tmp_path / "parts").iterdir())


def test_join_that_is_done_again_leads_to_one_piece(media: ModuleType, tmp_path: Path) -> None:
    source, out = write(media, tmp_path, "a.mp4"), tmp_path / "out.mp4"
    split = split_of(source, out)
    results = run_parts(split)
    through_pickle(functools.partial(split.join, results))
    published = out.read_bytes()
    unfit = through_pickle(functools.partial(split.join, results))
    assert isinstance(unfit, Unfit)
    report = through_pickle(functools.partial(split.whole, unfit))
    assert report.notes == ()  # nothing of the video was odd
    assert out.read_bytes() == published


def test_parts_that_a_store_will_not_remove_fail_nothing(
    media: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(uri: str) -> None:
        raise StorageError(uri, "cannot be removed")

    source, out = write(media, tmp_path, "a.mp4"), "memory://split-refused/out.mp4"
    found = reencode_or_split(str(source), out, spec=SPECS["h264"], part_work_s=0.001)
    assert isinstance(found, Split)
    results = run_parts(found)
    monkeypatch.setattr(storage, "remove", refuse)
    assert isinstance(found.join(results), ReencodeReport)
    assert storage.exists(out)


def one_key_frame(media: ModuleType, path: Path) -> None:
    write(media, path.parent, path.name, fps=2, num_frames=150, gop_size=10_000)


ODD: dict[str, tuple[str, Any]] = {
    "transport stream": ("a.ts", {}),
    "avi": ("a.avi", {"codec": "mpeg4"}),
    "interlaced": ("a.mp4", {"options": {"flags": "+ildct+ilme", "x264-params": "tff=1"}}),
    "one key frame in 75 s": ("a.mp4", one_key_frame),
    "short": ("a.mp4", {"num_frames": 40}),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_not_plain_is_done_in_one_piece(media: ModuleType, tmp_path: Path, kind: str) -> None:
    name, how = ODD[kind]
    source, out = tmp_path / name, tmp_path / "out.mp4"
    if callable(how):
        how(media, source)
    else:
        write(media, tmp_path, name, **how)
    report = reencode_or_split(str(source), str(out), spec=SPECS["h264"], part_work_s=0.001)
    assert isinstance(report, ReencodeReport)
    assert without_times(report) == without_times(
        reencode_video(str(source), str(tmp_path / "whole.mp4"), spec=SPECS["h264"])
    )
    assert out.read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def damage_a_picture(media: ModuleType, source: Path) -> None:
    write(media, source.parent, source.name, max_b_frames=2)
    with av.open(str(source)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    place, size = packets[100].pos, packets[100].size
    assert place is not None
    content = bytearray(source.read_bytes())
    content[place : place + size] = bytes(
        size
    )  # all of it: what FFmpeg makes up for a part is not always the same
    source.write_bytes(content)


def jump_in_time(media: ModuleType, source: Path) -> None:
    """Two minutes without a picture after 2 s."""
    pts = [*range(60), *range(3660, 3840)]
    write(media, source.parent, source.name, pts=pts, num_frames=len(pts), time_base=Fraction(1, 30))


def set_a_clock_back(media: ModuleType, source: Path) -> None:
    """The ninth cluster of a Matroska file says that it begins at 0."""
    write(media, source.parent, source.name, gop_size=15, container_options={"cluster_time_limit": "400"})
    content = bytearray(source.read_bytes())
    clusters = [match.start() for match in re.finditer(b"\x1f\x43\xb6\x75", content)]
    time_element = content.index(b"\xe7", clusters[8] + 4)
    size = content[time_element + 1] & 0x7F
    assert 2000 < int.from_bytes(content[time_element + 2 : time_element + 2 + size]) < 5000  # ms
    content[time_element + 2 : time_element + 2 + size] = bytes(size)
    source.write_bytes(content)


def _ue(bits: str, at: int) -> int:
    """Where a number in H.264's Exp-Golomb code ends that begins at bit `at`."""
    num_zeros = bits.index("1", at) - at
    return at + 2 * num_zeros + 1


def _without_vui(sps: bytes) -> bytes:
    """A sequence parameter set of the Main profile without what tells the reorder depth; as many bytes."""
    raw = sps.replace(b"\0\0\3", b"\0\0")
    assert raw[1] == 77
    bits = "".join(f"{byte:08b}" for byte in raw)
    at = _ue(bits, _ue(bits, 32))  # id, log2_max_frame_num
    is_counted = bits[at] == "1"  # pic_order_cnt_type 0
    at = _ue(bits, at)
    at = _ue(bits, at) if is_counted else at
    at = (
        _ue(bits, _ue(bits, _ue(bits, at) + 1)) + 2
    )  # reference frames, gaps, width, height, frame_mbs_only, 8x8
    at = at + 1 if bits[at] == "0" else _ue(bits, _ue(bits, _ue(bits, _ue(bits, at + 1))))  # cropping
    assert bits[at] == "1"  # vui_parameters_present_flag
    cut = bits[:at] + "01"
    cut += "0" * (-len(cut) % 8)
    return int(cut, 2).to_bytes(len(cut) // 8, "big").ljust(len(sps), b"\0")


def reorder_unannounced(media: ModuleType, source: Path) -> None:
    """B-frames at 1.6 s and 4.4 s, and nothing that says so: FFmpeg drops a picture at the first of them."""
    params = "bframes=3:b-pyramid=normal:b-adapt=0:keyint=12:scenecut=0:ref=4"
    options = {"preset": "ultrafast", "profile": "main", "x264-params": params}
    with av.open(str(source), "w") as container:
        stream = media.add_video(container, size_px=(144, 96), options=options)
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = 12, 3
        for index in range(NUM_FRAMES):
            frame = media.make_frame(media.moving(index, 144, 96))
            frame.pts, frame.time_base = index, Fraction(1, 30)
            is_reordered = 49 <= index < 59 or 133 <= index < 143
            frame.pict_type = PictureType.B if is_reordered and index % 4 else PictureType.P
            if index % 12 == 0:
                frame.pict_type = PictureType.I
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(source)) as container:
        extradata = container.streams.video[0].codec_context.extradata
    assert extradata is not None
    sps = extradata[8 : 8 + int.from_bytes(extradata[6:8], "big")]
    content = source.read_bytes()
    assert content.count(sps) == 1
    source.write_bytes(content.replace(sps, _without_vui(sps)))
    with av.open(str(source)) as container:
        assert sum(1 for _ in container.decode(video=0)) == NUM_FRAMES - 1


SURPRISES = {
    "a reorder depth that nothing tells": ("a.mkv", reorder_unannounced),
    "a damaged picture": ("a.mp4", damage_a_picture),
    "a silence of two minutes": ("a.mp4", jump_in_time),
    "a clock that goes back": ("a.mkv", set_a_clock_back),
}


@pytest.mark.parametrize("kind", SURPRISES)
def test_surprise_midway_falls_back_to_one_piece(media: ModuleType, tmp_path: Path, kind: str) -> None:
    name, surprise = SURPRISES[kind]
    source, out = tmp_path / name, tmp_path / "out.mp4"
    surprise(media, source)
    whole = reencode_video(str(source), str(tmp_path / "whole.mp4"), spec=SPECS["h264"])
    split = split_of(source, out)
    unfit = run_split(split)
    assert isinstance(unfit, Unfit)
    report = through_pickle(functools.partial(split.whole, unfit))
    assert without_times(report) == without_times(whole)
    assert out.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert not list((tmp_path / "parts").iterdir())


@pytest.mark.parametrize("claim", ["9999999999999:0:0", "00:00:1e999", "00:00:nan"])
def test_absurd_duration_is_no_claim(media: ModuleType, tmp_path: Path, claim: str) -> None:
    source, out = write(media, tmp_path, "a.mkv"), tmp_path / "out.mp4"
    content = source.read_bytes()
    tag = b"00:00:07.000000000"
    assert content.count(tag) == 1
    source.write_bytes(content.replace(tag, claim.encode().ljust(len(tag), b"\0")))
    report = reencode_or_split(str(source), str(out), spec=SPECS["h264"], part_work_s=0.001)
    assert isinstance(report, ReencodeReport)
    assert (report.status, report.num_frames, report.source_duration_s) == ("ok", NUM_FRAMES, None)


@pytest.mark.parametrize("pts", [0, 20])
def test_memory_that_is_refused_is_no_damage(pts: int) -> None:
    """Neither of the pictures before those that count, nor of these."""

    def refuse(packet: Any) -> list[Any]:
        raise av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory")

    source: Any = SimpleNamespace(
        stream=SimpleNamespace(codec_context=SimpleNamespace(name="h264", decode=refuse)),
        packets=lambda: iter([SimpleNamespace(pts=pts, is_discard=False)]),
        read_error="",
    )
    clock = Clock(time_base=Fraction(1, 30), nominal_ticks=1)
    with pytest.raises(MemoryError):
        next(timed_pictures(source, clock, start=10, picture=(96, 64, "yuv420p", 0, 0), enter_at=0))


def test_parts_that_disagree_are_not_joined(media: ModuleType, tmp_path: Path) -> None:
    """As if a decoder had begun with a wrong picture: the neighbours saw different ones at the cut."""
    source, out = write(media, tmp_path, "a.mp4", max_b_frames=2), tmp_path / "out.mp4"
    split = split_of(source, out)
    results = run_parts(split)
    part = results[3]
    assert isinstance(part, PartReport)
    ticks, crc32c = part.head[-1]
    results[3] = dataclasses.replace(part, head=(*part.head[:-1], (ticks, crc32c ^ 1)))
    unfit = through_pickle(functools.partial(split.join, results))
    assert isinstance(unfit, Unfit)
    assert not out.exists()
    report = through_pickle(functools.partial(split.whole, unfit))
    whole = reencode_video(str(source), str(tmp_path / "whole.mp4"), spec=SPECS["h264"])
    assert report.notes == ("was re-encoded in one piece, for its parts differ around frame 60",)
    assert without_times(report) | {"notes": ()} == without_times(whole)


def test_damaged_part_file_is_noticed(media: ModuleType, tmp_path: Path) -> None:
    source, out = write(media, tmp_path, "a.mp4"), tmp_path / "out.mp4"
    split = split_of(source, out)
    results = run_parts(split)
    part = sorted((tmp_path / "parts/out").iterdir())[2]
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert isinstance(through_pickle(functools.partial(split.join, results)), Unfit)
    assert not out.exists()


def test_source_that_changes_between_two_parts(media: ModuleType, tmp_path: Path) -> None:
    source, out = write(media, tmp_path, "a.mp4"), tmp_path / "out.mp4"
    split = split_of(source, out)
    first = through_pickle(split.parts[1])
    assert isinstance(first, PartReport)
    write(media, tmp_path, "a.mp4", painter=media.numbered)
    assert isinstance(through_pickle(split.parts[2]), Unfit)


def test_source_that_is_replaced_after_its_parts(media: ModuleType, tmp_path: Path) -> None:
    """All parts are of the old file; whether its hash is, too, only the join can tell."""
    source, out = write(media, tmp_path, "a.mp4"), tmp_path / "out.mp4"
    split = split_of(source, out)
    results = run_parts(split)
    write(media, tmp_path, "a.mp4", painter=media.numbered)
    unfit = through_pickle(functools.partial(split.join, results))
    assert isinstance(unfit, Unfit)
    assert not out.exists()
    report = through_pickle(functools.partial(split.whole, unfit))
    assert report.source_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert report.notes == ()


def test_parts_share_one_remote_source(media: ModuleType, tmp_path: Path) -> None:
    source = write(media, tmp_path, "a.mp4", max_b_frames=2)
    memory = f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").pipe(f"{memory}/a.mp4", source.read_bytes())
    split = reencode_or_split(
        f"{memory}/a.mp4", f"{memory}/out/out.mp4", spec=SPECS["h264"], part_work_s=0.001
    )
    assert isinstance(split, Split)
    run_split(split)
    reencode_video(str(source), str(tmp_path / "whole.mp4"), spec=SPECS["h264"])
    made = fsspec.filesystem("memory")
    assert made.cat(f"{memory}/out/out.mp4") == (tmp_path / "whole.mp4").read_bytes()
    assert [name for name in made.find(f"{memory}/out") if "/parts/" in name] == []


def test_large_pictures_ask_for_memory(media: ModuleType, tmp_path: Path) -> None:
    source = write(media, tmp_path, "a.mp4", num_frames=3, size_px=(3840, 2160))
    out = tmp_path / "out.mp4"
    asked = reencode_or_split(str(source), str(out), spec=SPECS["h264"], memory_bytes=400 * 2**20)
    assert isinstance(asked, NeedsMemory)
    assert 400 * 2**20 < asked.memory_bytes < 2 * 2**30  # 4K is ordinary where 2 GiB are
    assert not out.exists()
    assert through_pickle(asked.call).num_frames == 3


def test_error_is_raised_before_anything_is_split(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video at all, and long enough to look at")
    with pytest.raises(SourceError):
        reencode_or_split(str(tmp_path / "a.mp4"), str(tmp_path / "out.mp4"), spec=SPECS["h264"])
