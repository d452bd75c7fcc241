"""Clip: one video as the dataset has it. It plays, and its anchors are stepped through.

    ?video=ID&spec=HASH&gop=G&anchor=A

The URL names a video of the manifest or the index, never a file. What is read stays in bounded caches that all
sessions share; their keys hold the version of the tables, so that a new index is seen at the next rerun. A step
reruns only the fragment that shows it.
"""

from __future__ import annotations

import streamlit as st

from cope_prep.jobs.dashboard import clip_parts, clip_reads, clip_steps, shared
from cope_prep.jobs.dashboard.opened import Opened
from cope_prep.jobs.dashboard.words import plain
from cope_prep.pipeline.video_list import VideoList
from cope_prep.schemas.errors import ConfigurationError

_MAX_MATCHES = 20
_MAX_ID_CHARS = 500


def show(opened: Opened) -> None:
    """Draw the page."""
    source, videos = clip_reads.open_source(opened)
    if not len(videos):
        raise ConfigurationError(
            shared.short_name(opened.dataset),
            "has no video: neither a manifest nor an index lists one",
            "Run cope-prep manifest.",
        )
    video_id = st.query_params.get("video") or clip_reads.first_video(videos)
    _choose(videos, video_id)
    clip = clip_reads.clip_of(source, videos, video_id)
    st.subheader(plain(video_id), anchor=False)
    clip_parts.show_facts(clip, opened.layout)
    if clip.samples is None:
        st.warning(plain(clip.state()), icon=":material/info:")
        clip_parts.show_about(source, clip)
    else:
        clip_steps.show_steps(source, clip)
    with shared.errors_shown(part="questions"):  # the video is there without them
        clip_parts.show_questions(*clip_reads.questions_of(source, video_id))


def _choose(videos: VideoList, video_id: str) -> None:
    """Search, and the videos before and after this one."""
    before, after = videos.neighbours(video_id)
    row = st.container(horizontal=True)  # in columns the buttons' words are cut on a small screen
    row.button(
        "Previous video",
        icon=":material/skip_previous:",
        disabled=before is None,
        on_click=_go_to,
        args=(before,),
    )
    text = row.text_input(
        "Find a video",
        key="clip_search",
        placeholder=f"Find one of {len(videos):,} videos by a part of its id",
        label_visibility="collapsed",
        max_chars=_MAX_ID_CHARS,
    )
    row.button(
        "Next video",
        icon=":material/skip_next:",
        icon_position="right",
        disabled=after is None,
        on_click=_go_to,
        args=(after,),
    )
    if not text:
        return
    found, number = videos.search(text, limit=_MAX_MATCHES)
    if not found:
        st.info(f"No id of {len(videos):,} videos holds this text.", icon=":material/search_off:")
        return
    shown = "" if number <= len(found) else f", the first {len(found)} are listed"
    st.selectbox(
        f"{number:,} of {len(videos):,} videos match{shown}",
        found,
        index=None,
        placeholder="Choose one",
        key="clip_match",
        on_change=_go_to_match,
    )


def _go_to_match() -> None:
    _go_to(st.session_state.clip_match)


def _go_to(video_id: str | None) -> None:
    """Open a video at its beginning."""
    if video_id is not None:
        st.query_params.from_dict(shared.clip_query(video_id))
        st.session_state.clip_search = ""
