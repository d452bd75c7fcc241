"""What the page Clip reads, each kind in a cache of bounded size that all sessions share.

Arguments that begin with an underscore are not part of a cache's key; `Source` is, and changes with the tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import streamlit as st

from cope_prep.jobs.dashboard import shared
from cope_prep.jobs.dashboard.kept import Keeper
from cope_prep.jobs.dashboard.opened import Opened
from cope_prep.pipeline.clip_data import Clip, read_clip, read_questions
from cope_prep.pipeline.clip_tokens import TokenRow, token_rows
from cope_prep.pipeline.clip_video import PlayableVideo, playable_video
from cope_prep.pipeline.clip_view import (
    MAX_GOP_BYTES,
    AnchorView,
    Scales,
    draw_anchor,
    draw_iframe,
    draw_legend,
    draw_thumbnails,
    encode_picture,
)
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.sheet_data import reencoded_anchors
from cope_prep.pipeline.token_counts import TokenCounts
from cope_prep.pipeline.video_list import VideoList, read_video_list, version_of
from cope_prep.pipeline.video_samples import read_gop
from cope_prep.schemas.errors import CopePrepError
from cope_prep.schemas.records import GopRecord, QARecord

TOKENS = TokenCounts()
"""LLaVA-Video's."""

_TTL_S = 60
"""Ledgers grow while a job runs, and the version of the tables does not tell."""
_THUMBNAIL_PX = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A dataset, its specs, and the version of its tables: what decides what is read."""

    layout: Layout
    version: tuple[str, ...]

    @property
    def key(self) -> str:
        """As text, for the keys of the caches."""
        return "\n".join((self.layout.dataset, self.layout.specs.hash_of("shards"), *self.version))


@dataclass(frozen=True, slots=True, kw_only=True)
class GopPictures:
    """One GOP, ready to be stepped through."""

    record: GopRecord
    reencoded: np.ndarray | None
    """uint8 [num_anchors, 3H/2, W]; None if the file is gone or damaged, or the pictures are too many."""
    note: str
    """Why there are no re-encoded frames; empty if there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """The panels of one anchor as JPEGs."""

    view: AnchorView
    jpegs: dict[str, bytes]


def open_source(opened: Opened) -> tuple[Source, VideoList]:
    """The dataset as it was when its list of videos was read, and that list."""
    source, videos = shared.load(_VIDEOS, opened, words="Looking for the videos …")
    return source, videos


def source_of(layout: Layout) -> tuple[Source, VideoList]:
    """As `open_source`, for a dataset that is not the one of the page."""
    return _VIDEOS.get(layout).value


def matching(video_ids: pa.Array, text: str, *, limit: int) -> list[str]:
    """Up to `limit` of some ids that hold the text, whatever its case."""
    held = pc.match_substring(video_ids, text, ignore_case=True)  # pyright: ignore[reportAttributeAccessIssue]
    return video_ids.filter(held)[:limit].to_pylist()


def first_video(videos: VideoList) -> str:
    """What is shown if the URL names none: the first with samples, else the first."""
    sampled = np.flatnonzero(videos.row_groups[:, 0] >= 0)
    return videos.video_ids[int(sampled[0]) if len(sampled) else 0].as_py()


def clip_of(source: Source, videos: VideoList, video_id: str) -> Clip:
    """What is known of a video."""
    return _clip(source.key, video_id, source, videos)


def questions_of(source: Source, video_id: str) -> tuple[tuple[QARecord, ...], int]:
    """Questions about a video, and how many there are."""
    return _questions(source.key, video_id, source)


def playable_of(source: Source, video_key: str, size_bytes: int) -> PlayableVideo | None:
    """What can be played of a re-encoded file of this size."""
    return _playable(source.key, video_key, size_bytes, source)


def gop_of(source: Source, clip: Clip, gop_index: int) -> GopPictures:
    """A GOP of a clip that has samples."""
    return _gop(source.key, clip.video_id, gop_index, source, clip)


def anchor_of(source: Source, clip: Clip, gop_index: int, anchor: int, scales: Scales) -> Drawn:
    """The panels of an anchor."""
    return _anchor(source.key, clip.video_id, gop_index, anchor, scales, source, clip)


def iframe_of(source: Source, clip: Clip, gop_index: int) -> bytes:
    """The stored I-frame as a JPEG."""
    return _iframe(source.key, clip.video_id, gop_index, source, clip)


def tokens_of(source: Source, clip: Clip, gop_index: int) -> tuple[tuple[TokenRow, ...], dict[int, bytes]]:
    """The token rows of a GOP, and pictures of the anchors that are key frames in one of them."""
    return _tokens(source.key, clip.video_id, gop_index, source, clip)


def _read_videos(layout: Layout) -> tuple[Source, VideoList]:
    version = version_of(layout)  # before the tables: a newer one is then seen at the next look
    return Source(layout=layout, version=version), read_video_list(layout)


_VIDEOS = Keeper(_read_videos, versions=version_of)


@st.cache_resource(max_entries=64, ttl=_TTL_S, show_spinner=False)
def _clip(key: str, video_id: str, _source: Source, _videos: VideoList) -> Clip:
    return read_clip(_source.layout, video_id, _videos)


@st.cache_resource(max_entries=64, ttl=_TTL_S, show_spinner=False)
def _questions(key: str, video_id: str, _source: Source) -> tuple[tuple[QARecord, ...], int]:
    return read_questions(_source.layout, video_id)


@st.cache_resource(max_entries=2, ttl=3600, show_spinner="Making the video playable …")
def _playable(key: str, video_key: str, size_bytes: int, _source: Source) -> PlayableVideo | None:
    return playable_video(_source.layout, video_key)


@st.cache_resource(max_entries=4, ttl=3600, show_spinner=False)
def _gop(key: str, video_id: str, gop_index: int, _source: Source, _clip: Clip) -> GopPictures:
    assert _clip.samples is not None
    record = read_gop(_clip.samples, gop_index)
    size_bytes = record.num_anchors * record.height_px * record.width_px * 3 // 2
    if size_bytes > MAX_GOP_BYTES:
        return GopPictures(record=record, reencoded=None, note="")
    try:
        reencoded = reencoded_anchors(_source.layout, record, range(record.num_anchors))
    except CopePrepError as exc:  # what is stored can be shown without
        return GopPictures(record=record, reencoded=None, note=str(exc))
    note = "The re-encoded file is gone: there is no frame to compare with." if reencoded is None else ""
    return GopPictures(record=record, reencoded=reencoded, note=note)


@st.cache_resource(max_entries=64, ttl=3600, show_spinner=False)
def _anchor(
    key: str, video_id: str, gop_index: int, anchor: int, scales: Scales, _source: Source, _clip: Clip
) -> Drawn:
    gop = gop_of(_source, _clip, gop_index)
    reencoded = gop.reencoded
    if reencoded is not None:
        reencoded = reencoded[anchor]
    elif not gop.note:  # too many to hold them all
        found = reencoded_anchors(_source.layout, gop.record, [anchor])
        reencoded = None if found is None else found[0]
    view = draw_anchor(gop.record, anchor, scales=scales, reencoded=reencoded)
    return Drawn(view=view, jpegs={name: encode_picture(panel) for name, panel in view.panels.items()})


@st.cache_resource(max_entries=64, show_spinner=False)
def legend_of(name: str, scales: Scales) -> bytes:
    """The colours of a panel, as a JPEG."""
    return encode_picture(draw_legend(name, scales))


@st.cache_resource(max_entries=16, ttl=3600, show_spinner=False)
def _iframe(key: str, video_id: str, gop_index: int, _source: Source, _clip: Clip) -> bytes:
    return encode_picture(draw_iframe(gop_of(_source, _clip, gop_index).record))


@st.cache_resource(max_entries=16, ttl=3600, show_spinner=False)
def _tokens(
    key: str, video_id: str, gop_index: int, _source: Source, _clip: Clip
) -> tuple[tuple[TokenRow, ...], dict[int, bytes]]:
    record = gop_of(_source, _clip, gop_index).record
    rows = token_rows(
        num_frames=record.num_frames,
        start_s=record.start_s,
        fps=record.fps,
        gop_size=_source.layout.specs.encode.gop_size,
        window=record.window,
        tokens=TOKENS,
    )
    shown = {run.anchor for row in rows for run in row.runs if run.kind != "Δ" and run.anchor is not None}
    return rows, draw_thumbnails(record, sorted(shown), side_px=_THUMBNAIL_PX)
