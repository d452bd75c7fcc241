"""What a dataset costs in bytes a second of video, by part, beside what it stands in for.

The parts come from index.parquet. The comparisons are made on the very pictures that were stored: the frames
of the re-encoded file at every whole second, which at s = 30 and 30 FPS are the anchors, each as a JPEG and
as raw RGB; and the packets of the re-encoded file. Cost: one decoding of every re-encoded file; for small
datasets, demos and benchmarks.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cope_prep.pipeline import jpeg, storage
from cope_prep.pipeline.decode import read_frames
from cope_prep.pipeline.layout import Layout
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.records import video_key

JPEG_QUALITY = 90
"""What people use who store frames as JPEG."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedSizes:
    """The same seconds of video, stored in other ways."""

    num_pictures: int
    """One for every second that begins."""
    rgb_bytes: int
    """Of the pictures as 24-bit RGB."""
    jpeg_bytes: int
    """Of the pictures as 4:2:0 JPEGs."""
    reencoded_bytes: int
    """All packets of the re-encoded file, without its container."""

    def __add__(self, other: ComparedSizes) -> ComparedSizes:
        return ComparedSizes(
            num_pictures=self.num_pictures + other.num_pictures,
            rgb_bytes=self.rgb_bytes + other.rgb_bytes,
            jpeg_bytes=self.jpeg_bytes + other.jpeg_bytes,
            reencoded_bytes=self.reencoded_bytes + other.reencoded_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSizes:
    """The samples of one video, or of several together."""

    video_id: str
    num_frames: int
    """Of the re-encoded file."""
    duration_s: float
    num_gops: int
    num_windows: int
    iframe_bytes: int
    motion_bytes: int
    """Motion and intra mask."""
    residual_bytes: int
    sample_bytes: int
    """All of it: the parts, the .json, tar headers and padding."""
    anchor_psnr_y_db: tuple[float, ...]
    """Of every rebuilt anchor against the re-encoded frame, I-frames included, in order."""
    compared: ComparedSizes | None
    """None if the re-encoded file is gone."""

    @property
    def other_bytes(self) -> int:
        """The .json members, tar headers and padding."""
        return self.sample_bytes - self.iframe_bytes - self.motion_bytes - self.residual_bytes

    def per_second(self, num_bytes: int) -> float:
        """Bytes a second of video."""
        return num_bytes / self.duration_s


def size_report(layout: Layout, *, jpeg_quality: int = JPEG_QUALITY) -> list[VideoSizes]:
    """The sizes of every video in the index, in order of their ids.

    Raises:
        SourceNotFoundError: there is no index.
        BitstreamError: a re-encoded file is damaged.
    """
    fps = layout.specs.encode.fps
    gops_of: dict[str, list[dict]] = {}
    for row in storage.read_table(layout.index, INDEX).drop_columns(["members"]).to_pylist():
        gops_of.setdefault(row["video_id"], []).append(row)
    return [
        _video_sizes(video_id, gops, fps=fps, compared=_compare(layout, video_id, jpeg_quality=jpeg_quality))
        for video_id, gops in sorted(gops_of.items())
    ]


def total_sizes(videos: Iterable[VideoSizes], *, name: str = "all") -> VideoSizes:
    """Several videos as one; the comparison is None if any of them has none."""
    videos = list(videos)
    compared = [video.compared for video in videos if video.compared is not None]
    whole = functools.reduce(operator.add, compared) if len(compared) == len(videos) and compared else None
    return VideoSizes(
        video_id=name,
        num_frames=sum(video.num_frames for video in videos),
        duration_s=sum(video.duration_s for video in videos),
        num_gops=sum(video.num_gops for video in videos),
        num_windows=sum(video.num_windows for video in videos),
        iframe_bytes=sum(video.iframe_bytes for video in videos),
        motion_bytes=sum(video.motion_bytes for video in videos),
        residual_bytes=sum(video.residual_bytes for video in videos),
        sample_bytes=sum(video.sample_bytes for video in videos),
        anchor_psnr_y_db=tuple(db for video in videos for db in video.anchor_psnr_y_db),
        compared=whole,
    )


def _video_sizes(video_id: str, gops: list[dict], *, fps: int, compared: ComparedSizes | None) -> VideoSizes:
    gops = sorted(gops, key=lambda row: row["gop_index"])
    num_frames = sum(row["num_frames"] for row in gops)
    return VideoSizes(
        video_id=video_id,
        num_frames=num_frames,
        duration_s=num_frames / fps,
        num_gops=len(gops),
        num_windows=sum(row["num_windows"] for row in gops),
        iframe_bytes=sum(row["iframe_bytes"] for row in gops),
        motion_bytes=sum(row["motion_bytes"] for row in gops),
        residual_bytes=sum(row["residual_bytes"] for row in gops),
        sample_bytes=sum(row["size_bytes"] for row in gops),
        anchor_psnr_y_db=tuple(db for row in gops for db in (row["iframe_psnr_y_db"], *row["psnr_y_db"])),
        compared=compared,
    )


def _compare(layout: Layout, video_id: str, *, jpeg_quality: int) -> ComparedSizes | None:
    uri = layout.reencoded(video_key(video_id))
    if not storage.exists(uri):
        return None
    num_pictures = rgb_bytes = jpeg_bytes = reencoded_bytes = 0
    picture: np.ndarray | None = None
    for frame in read_frames(uri):
        reencoded_bytes += frame.packet_bytes
        if frame.index % layout.specs.encode.fps:
            continue
        picture = frame.picture(picture)
        num_pictures += 1
        rgb_bytes += picture.size * 2  # 4:2:0 has one and a half values a pixel, RGB has three
        jpeg_bytes += len(jpeg.encode_picture(picture, quality=jpeg_quality))
    return ComparedSizes(
        num_pictures=num_pictures,
        rgb_bytes=rgb_bytes,
        jpeg_bytes=jpeg_bytes,
        reencoded_bytes=reencoded_bytes,
    )
