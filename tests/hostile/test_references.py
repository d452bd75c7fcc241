"""No file is read and no address is opened but the source itself, whatever the source says."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import av
import av.error
import pytest

from cope_prep.jobs.worker import Failure
from cope_prep.pipeline.decode import read_frames
from cope_prep.schemas.errors import BitstreamError

sys.path.insert(0, str(Path(__file__).parent))
import references
from references import Maker, OpenWatch, WebServer
from supervised import SOURCE_ERRORS, Sandbox

MAKERS: list[Maker] = [
    *(references.hls, references.hls_key, references.hls_of_playlists, references.concat_script),
    *(references.dash, references.sdp, references.smooth_streaming, references.real_media_link),
    *(references.image_sequence, references.playlist_in_subtitles),
    *(references.quicktime_alias, references.quicktime_url, references.quicktime_reference_movie),
]
NAMES = ["clip.mp4", "clip.m3u8", "clip%03d.jpg", "clip.ffconcat", "clip.mpd", "clip.avi"]

FOLLOWED = {
    references.hls: {"allowed_extensions": "ALL", "extension_picky": "0"},
    references.concat_script: {"safe": "0"},
    references.quicktime_alias: {"enable_drefs": "1", "use_absolute_path": "1"},
}
"""What FFmpeg must be told so that it goes there: the files are right, and the watch sees it."""


@pytest.fixture(scope="module")
def clip(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = media.write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", num_frames=8, size_px=(48, 32))
    return path.read_bytes()


@pytest.fixture(scope="module")
def secret(clip: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "secret.mp4"
    path.write_bytes(clip)
    return path


@pytest.fixture
def watch(secret: Path) -> Iterator[OpenWatch]:
    with contextlib.closing(OpenWatch(secret)) as watch:
        yield watch


@pytest.fixture
def server(clip: bytes) -> Iterator[WebServer]:
    with contextlib.closing(WebServer(clip)) as server:
        yield server


def _name(maker: Maker) -> str:
    return maker.__name__


@pytest.mark.parametrize("maker", FOLLOWED, ids=_name)
def test_ffmpeg_would_follow(
    maker: Maker, clip: bytes, secret: Path, watch: OpenWatch, tmp_path: Path
) -> None:
    """The control: without our options these files do lead to others."""
    path = tmp_path / ("clip.m3u8" if maker is references.hls else "clip.mp4")
    path.write_bytes(maker(str(secret), clip))
    with contextlib.suppress(av.error.FFmpegError), av.open(str(path), options=FOLLOWED[maker]) as container:
        next(container.decode(video=0), None)
    assert watch.was_opened()


def test_ffmpeg_would_ask_the_server(clip: bytes, server: WebServer, tmp_path: Path) -> None:
    path = tmp_path / "clip.m3u8"
    path.write_bytes(references.hls(f"{server.url}/a.ts", clip))
    options = {"protocol_whitelist": "file,http,tcp"}
    with contextlib.suppress(av.error.FFmpegError), av.open(str(path), options=options):
        pass
    assert server.requests


@pytest.mark.parametrize("maker", MAKERS, ids=_name)
def test_source_leads_nowhere(
    maker: Maker, clip: bytes, secret: Path, watch: OpenWatch, server: WebServer, sandbox: Sandbox
) -> None:
    targets = [str(secret), f"file:{secret}", f"{server.url}/a.mp4", f"concat:{secret}|{secret}", "clip.mp4"]
    targets += [
        f"../{secret.parent.name}/secret.mp4",
        f"crypto+{server.url}/a",
        f"subfile,,start,0,end,0,,:{secret}",
    ]
    for name in NAMES:
        for target in targets:
            reply = sandbox.reencode(name, maker(target, clip))
            # A QuickTime file with a reference that is ignored may still have its pictures in itself.
            if isinstance(reply, Failure):
                assert reply.error_class in SOURCE_ERRORS, (name, target, reply)
            else:
                assert maker in (references.quicktime_alias, references.quicktime_url), (name, target)
    assert not watch.was_opened()
    assert server.requests == []
    sandbox.check()


@pytest.mark.parametrize("maker", MAKERS, ids=_name)
def test_reencoded_file_leads_nowhere(
    maker: Maker, clip: bytes, secret: Path, watch: OpenWatch, server: WebServer, tmp_path: Path
) -> None:
    """A dataset from a stranger, whose re-encoded files are not what they should be."""
    path = tmp_path / "0123456789abcdef.mp4"
    for target in (str(secret), f"{server.url}/a.mp4"):
        path.write_bytes(maker(target, clip))
        with contextlib.suppress(BitstreamError):
            list(read_frames(str(path)))
    assert not watch.was_opened()
    assert server.requests == []
