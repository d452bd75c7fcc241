"""What a file is, by its first picture; and for each bad kind the error that says so."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import av.error
import pytest

from cope_prep.pipeline import source
from cope_prep.pipeline.probe import Orientation, probe_source
from cope_prep.schemas.errors import (
    CorruptVideoError,
    NotAVideoError,
    NoVideoStreamError,
    SourceError,
    SourceNotFoundError,
    StorageError,
    UnsupportedVideoError,
)


def test_real_clips(real_clips: list[Path]) -> None:
    sizes = {clip.stem: probe_source(str(clip)) for clip in real_clips}
    assert {name: (info.width_px, info.height_px, info.codec) for name, info in sizes.items()} == {
        "bigbuckbunny": (1280, 720, "h264"),
        "bikes": (640, 272, "h264"),
        "carphone_distorted": (176, 144, "h264"),
        "carphone_pristine": (176, 144, "h264"),
    }
    carphone = sizes["carphone_pristine"]
    assert carphone.sample_aspect == Fraction(128, 117)
    assert carphone.display_size_px == (193, 144)
    assert carphone.claimed_rate == Fraction(30000, 1001)
    assert carphone.claimed_duration_s == pytest.approx(4.004)


@pytest.mark.parametrize(
    ("counterclockwise_deg", "clockwise_deg"), [(0, 0), (90, 270), (180, 180), (-90, 90), (270, 90)]
)
def test_rotation(media: ModuleType, tmp_path: Path, counterclockwise_deg: int, clockwise_deg: int) -> None:
    clip = media.write_clip(
        tmp_path / "turned.mp4", num_frames=2, rotation=(counterclockwise_deg, False, False)
    )
    info = probe_source(str(clip))
    assert info.orientation.clockwise_deg == clockwise_deg
    assert not info.orientation.mirrored
    assert info.display_size_px == ((96, 144) if clockwise_deg % 180 else (144, 96))


def test_oblique_rotation_is_noted(media: ModuleType, tmp_path: Path) -> None:
    info = probe_source(
        str(media.write_clip(tmp_path / "oblique.mp4", num_frames=2, rotation=(-80, False, False)))
    )
    assert info.orientation == Orientation(transpose=True, mirror_x=True)
    assert any("80 degrees was taken to the nearest quarter turn" in note for note in info.notes)


def test_absurd_sample_aspect_is_ignored(media: ModuleType, tmp_path: Path) -> None:
    clip = media.write_clip(tmp_path / "thin.mp4", num_frames=2, sample_aspect=Fraction(1, 100))
    assert probe_source(str(clip)).sample_aspect == 1


def test_interlaced_and_pixel_format(media: ModuleType, tmp_path: Path) -> None:
    options = {"flags": "+ildct+ilme", "x264-params": "tff=1"}
    info = probe_source(
        str(media.write_clip(tmp_path / "a.mkv", num_frames=4, options=options, pix_fmt="yuv420p10le"))
    )
    assert info.interlaced
    assert info.pixel_format == "yuv420p10le"


def empty(media: ModuleType, path: Path) -> None:
    path.write_bytes(b"")


def noise(media: ModuleType, path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(100_000))


def text(media: ModuleType, path: Path) -> None:
    path.write_text("not a video\n" * 500)


def playlist(media: ModuleType, path: Path) -> None:
    other = media.write_clip(path.with_name("other.ts"), num_frames=4)
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\n{other}\n#EXT-X-ENDLIST\n")


def concat_list(media: ModuleType, path: Path) -> None:
    other = media.write_clip(path.with_name("other.ts"), num_frames=4)
    path.write_text(f"ffconcat version 1.0\nfile '{other}'\n")


def sound(media: ModuleType, path: Path) -> None:
    media.write_sound_only(
        path, codec="pcm_s16be" if path.suffix == ".au" else "pcm_s16le" if path.suffix == ".wav" else "aac"
    )


def sound_with_cover(media: ModuleType, path: Path) -> None:
    media.write_sound_only(path, cover=True)


def still(media: ModuleType, path: Path) -> None:
    media.write_clip(path, num_frames=1, codec="mjpeg", pix_fmt="yuvj420p", container_format="image2")


def header_only(media: ModuleType, path: Path) -> None:
    media.write_clip(path, container_options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 4])


def without_index(media: ModuleType, path: Path) -> None:
    media.write_clip(path)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])


def scrambled(media: ModuleType, path: Path) -> None:
    media.write_clip(path)
    data = bytearray(path.read_bytes())
    begin, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[begin:end] = bytes(end - begin)
    path.write_bytes(data)


def enormous(media: ModuleType, path: Path) -> None:
    media.write_clip(path, codec="ffv1", num_frames=1, size_px=(400, 300))
    data = path.read_bytes()
    width, patched = b"\xb0\x82\x01\x90", b"\xb0\x82\x75\x30"  # Matroska's PixelWidth: 400, 30000
    assert data.count(width) == 1
    path.write_bytes(data.replace(width, patched))


BAD = [
    (empty, "empty.mp4", NotAVideoError, "0 bytes"),
    (noise, "noise.mp4", NotAVideoError, "not a video"),
    (text, "text.mp4", NotAVideoError, "text or playlist"),
    (text, "text.txt", NotAVideoError, "text or playlist"),
    (playlist, "list.m3u8", NotAVideoError, "text or playlist"),
    (concat_list, "list.ffconcat", NotAVideoError, "text or playlist"),
    (sound, "sound.m4a", NoVideoStreamError, "no video stream"),
    (sound, "sound.aac", NoVideoStreamError, "no video stream"),
    (sound, "sound.wav", NoVideoStreamError, "no video stream"),
    (sound, "sound.au", NotAVideoError, "container that is read here"),
    (sound_with_cover, "cover.mp4", NoVideoStreamError, "attached picture"),
    (still, "still.jpg", NoVideoStreamError, "still picture"),
    (header_only, "header.mp4", CorruptVideoError, "no frame of it decodes"),
    (without_index, "noindex.mp4", CorruptVideoError, "moov"),
    (scrambled, "scrambled.mp4", CorruptVideoError, "no frame of it decodes"),
    (enormous, "enormous.mkv", UnsupportedVideoError, "30000 x 300"),
]


@pytest.mark.parametrize(("make", "name", "error", "found"), BAD, ids=[name for _, name, _, _ in BAD])
def test_bad_source_fails(
    media: ModuleType,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    make: Callable[[ModuleType, Path], None],
    name: str,
    error: type[SourceError],
    found: str,
) -> None:
    path = tmp_path / name
    make(media, path)
    capfd.readouterr()
    with pytest.raises(error) as caught:
        probe_source(str(path))
    assert type(caught.value) is error
    assert found in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.remedy
    assert capfd.readouterr() == ("", "")


def test_missing_source_fails(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError):
        probe_source(str(tmp_path / "missing.mp4"))


FFMPEG_ERRORS = sorted(
    {
        item
        for item in vars(av.error).values()
        if isinstance(item, type) and issubclass(item, av.error.FFmpegError)
    },
    key=lambda item: item.__name__,
)


@pytest.mark.parametrize("kind", FFMPEG_ERRORS, ids=lambda kind: kind.__name__)
def test_every_ffmpeg_error_is_mapped(
    media: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[av.error.FFmpegError]
) -> None:
    assert len(FFMPEG_ERRORS) > 30
    clip = media.write_clip(tmp_path / "clip.ts", num_frames=2)

    def fail(*args: object, **kwargs: object) -> None:
        raise kind(-1, "a reason")

    monkeypatch.setattr(source.av, "open", fail)
    # An invalid argument is what FFmpeg calls a container that it may not open.
    said = "in a container that is read here" if kind is av.error.ArgumentError else "a reason"
    with pytest.raises(SourceError, match=said):
        probe_source(str(clip))


def test_store_that_fails_midway_is_a_storage_error(
    media: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = media.write_clip(tmp_path / "clip.ts", num_frames=200, painter=media.moving)

    class Flaky:
        def __init__(self) -> None:
            self._file = clip.open("rb")

        def read(self, size: int = -1) -> bytes:
            if self._file.tell() > 2000:
                raise ConnectionResetError("connection reset")
            return self._file.read(min(size, 1000))

        def __enter__(self) -> Flaky:
            return self

        def __exit__(self, *args: object) -> None:
            self._file.close()

        def seek(self, offset: int, whence: int = 0) -> int:
            return self._file.seek(offset, whence)

        def tell(self) -> int:
            return self._file.tell()

    monkeypatch.setattr(source.storage, "open_read", lambda uri: Flaky())
    with pytest.raises(StorageError, match="connection reset"):
        probe_source(str(clip))
