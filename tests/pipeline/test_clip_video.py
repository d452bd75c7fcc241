"""What the dashboard plays is an MP4 with H.264, and says what differs from the re-encoded file."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from cope_prep.pipeline import storage
from cope_prep.pipeline.clip_video import playable_video
from cope_prep.pipeline.decode import read_frames, read_pictures
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.reencode import reencode_video
from cope_prep.schemas.errors import BitstreamError, SourceNotFoundError
from cope_prep.schemas.specs import PAPER, EncodeSpec

KEY = "0123456789abcdef"
SIZE = {"width_px": 144, "height_px": 96, "gop_size": 12}


def reencoded(media: ModuleType, folder: Path, encode: EncodeSpec, *, num_frames: int = 40) -> Layout:
    """A numbered clip, re-encoded."""
    layout = Layout(dataset=str(folder / "dataset"), specs=Specs(encode=encode))
    media.write_clip(folder / "source.mp4", num_frames=num_frames)
    reencode_video(str(folder / "source.mp4"), layout.reencoded(KEY), spec=encode)
    return layout


def numbers(media: ModuleType, folder: Path, content: bytes) -> list[int]:
    path = folder / "played.mp4"
    path.write_bytes(content)
    assert media.ffprobe(path).codec == "h264"
    return media.numbers_in(path)


def test_h264_is_played_as_it_is(media: ModuleType, tmp_path: Path) -> None:
    layout = reencoded(media, tmp_path, EncodeSpec(**SIZE))
    video = playable_video(layout, KEY)
    assert video is not None
    assert video.content == Path(layout.reencoded(KEY)).read_bytes()
    assert video.size_bytes == len(video.content)
    assert video.note == ""


def test_of_a_long_file_the_beginning_is_played(media: ModuleType, tmp_path: Path) -> None:
    layout = reencoded(media, tmp_path, EncodeSpec(**SIZE))
    whole = storage.stat(layout.reencoded(KEY)).size_bytes
    video = playable_video(layout, KEY, max_bytes=whole // 2)
    assert video is not None
    found = numbers(media, tmp_path, video.content)
    assert 5 < len(found) < 40
    assert found == list(range(len(found)))
    assert video.note.startswith(f"The first {len(found) / 30:.1f} s: the file has")
    assert video.size_bytes == whole


@pytest.mark.parametrize(("preview_s", "num_frames"), [(30, 40), (1, 30)], ids=["whole", "part"])
def test_mpeg4_becomes_h264(media: ModuleType, tmp_path: Path, preview_s: int, num_frames: int) -> None:
    layout = reencoded(media, tmp_path, EncodeSpec(**{**PAPER.model_dump(), **SIZE}))
    video = playable_video(layout, KEY, preview_s=preview_s)
    assert video is not None
    assert numbers(media, tmp_path, video.content) == list(range(num_frames))
    assert video.note.startswith("The re-encoded file is MPEG-4 part 2, which browsers do not play.")
    assert ("of its first 1 s" in video.note) == (num_frames < 40)
    stream = media.ffprobe(tmp_path / "played.mp4")
    assert (stream.color_range, stream.color_space) == ("pc", "smpte170m")


def test_what_is_gone_is_not_played(tmp_path: Path) -> None:
    assert playable_video(Layout(dataset=str(tmp_path), specs=Specs()), KEY) is None


@pytest.mark.parametrize("encode", [EncodeSpec(), PAPER], ids=["h264", "mpeg4"])
def test_a_damaged_file_fails_if_it_must_be_read(tmp_path: Path, encode: EncodeSpec) -> None:
    layout = Layout(dataset=str(tmp_path), specs=Specs(encode=encode))
    storage.publish_bytes(layout.reencoded(KEY), b"no video " * 1000)
    with pytest.raises(BitstreamError, match=f"{KEY}.mp4: cannot be opened as video"):
        playable_video(layout, KEY, max_bytes=100)


@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
def test_frames_of_a_gop_are_those_of_a_whole_read(media: ModuleType, tmp_path: Path, codec: str) -> None:
    encode = EncodeSpec(**SIZE) if codec == "h264" else EncodeSpec(**{**PAPER.model_dump(), **SIZE})
    uri = reencoded(media, tmp_path, encode).reencoded(KEY)
    every = [frame.picture() for frame in read_frames(uri)]
    assert len(every) == 40
    for indices in ([0], [12, 17, 23], [39], [25, 38], list(range(36, 40))):
        assert np.array_equal(
            read_pictures(uri, indices, fps=30), np.stack([every[index] for index in indices])
        )


def test_frames_that_are_not_there_fail(media: ModuleType, tmp_path: Path) -> None:
    uri = reencoded(media, tmp_path, EncodeSpec(**SIZE)).reencoded(KEY)
    with pytest.raises(BitstreamError, match="has no frame 40"):
        read_pictures(uri, [39, 40], fps=30)
    with pytest.raises(SourceNotFoundError):
        read_pictures(str(tmp_path / "none.mp4"), [0], fps=30)
