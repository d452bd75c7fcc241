"""One anchor of a video that two outputs have, side by side: what a reader gets, what is stored, what it costs."""

from __future__ import annotations

import streamlit as st

from cope_prep.jobs.dashboard import clip_parts, clip_reads, clip_steps, shared
from cope_prep.jobs.dashboard.words import plain
from cope_prep.jobs.progress import format_bytes
from cope_prep.pipeline.clip_data import Clip
from cope_prep.pipeline.clip_view import Scales, scales_of, wider_scales
from cope_prep.pipeline.compare import common_videos
from cope_prep.pipeline.layout import Layout

_MAX_MATCHES = 50
_PANELS = {"rebuilt": "Rebuilt", "arrows": "Motion", "residual": "Residual", "error": "Error"}


def show_video(left: Layout, right: Layout) -> None:
    """Choose a video and an anchor, and draw it twice."""
    pairs = [clip_reads.source_of(layout) for layout in (left, right)]
    common = common_videos(pairs[0][1], pairs[1][1])
    if not len(common):
        st.info("No video has samples in the shards of both.", icon=":material/info:")
        return
    search, choose = st.columns(2, vertical_alignment="bottom")
    text = search.text_input(
        "Find a video", key="compare_search", placeholder=f"A part of its id. {len(common):,} are in both."
    )
    found = clip_reads.matching(common, text, limit=_MAX_MATCHES)
    if not found:
        st.info("None of them holds this text.", icon=":material/search_off:")
        return
    video_id = choose.selectbox("Video", found, key="compare_video")
    if video_id is None:
        return
    clips = [clip_reads.clip_of(source, videos, video_id) for source, videos in pairs]
    _show_anchor([source for source, _ in pairs], clips)


@st.fragment
def _show_anchor(sources: list[clip_reads.Source], clips: list[Clip]) -> None:
    with shared.errors_shown(part="anchor"):  # in here, or a rerun of the fragment alone would not have it
        times = [clip.anchor_times(_anchor_s(source)) for source, clip in zip(sources, clips, strict=True)]
        place = 0
        if len(times[0]) > 1:
            place = st.select_slider(
                "Anchor of the left one",
                range(len(times[0])),
                value=min(1, len(times[0]) - 1),
                format_func=lambda number: f"{times[0][number]:.2f} s",
                key=f"compare_anchor_{clips[0].video_key}",
            )
        time_s = times[0][place]
        nearest = min(range(len(times[1])), key=lambda number: abs(times[1][number] - time_s))
        scales = wider_scales(*(scales_of(clip.figures) for clip in clips))
        st.caption(
            f"Both at the same scales: residual ±{scales.residual_levels}, error 0 to {scales.error_levels} grey"
            " levels. The right anchor is the nearest in time."
        )
        columns = st.columns(2, gap="medium")
        for side, number in enumerate((place, nearest)):
            with columns[side]:
                _show_side(sources[side], clips[side], number, scales, time_s=times[side][number])


def _show_side(source: clip_reads.Source, clip: Clip, place: int, scales: Scales, *, time_s: float) -> None:
    gop_index, anchor = clip.anchor_at(place)
    drawn = clip_reads.anchor_of(source, clip, gop_index, anchor, scales)
    st.markdown(f"**{time_s:.2f} s**, GOP {gop_index + 1}, {f'P {anchor}' if anchor else 'I-frame'}")
    gop = clip.figures[gop_index]
    if anchor:
        stored = gop.residual_bytes[anchor - 1] + gop.motion_bytes / gop.num_windows
        psnr_db, facts = gop.windows["psnr_y_db"][anchor - 1], []
        facts.append(("Max. error", f"{gop.windows['max_error'][anchor - 1]:.0f}"))
        facts.append(("This anchor", format_bytes(stored)))
    else:
        psnr_db, facts = gop.iframe_psnr_y_db, [("This anchor", format_bytes(gop.iframe_bytes))]
    facts.append(("Whole video", format_bytes(clip.sample_bytes)))
    clip_parts.show_strip([("PSNR", clip_steps.psnr_words(psnr_db)), *facts])
    for first in range(0, len(_PANELS), 2):
        for column, name in zip(st.columns(2), list(_PANELS)[first : first + 2], strict=True):
            column.markdown(f"**{_PANELS[name]}**")
            if name in drawn.jpegs:
                column.image(drawn.jpegs[name], width="stretch")
                column.caption(drawn.view.notes.get(name, ""))
            else:
                column.info(
                    "None: this is the I-frame."
                    if not anchor and name != "error"
                    else "There is no frame to compare."
                )
    note = clip_reads.gop_of(source, clip, gop_index).note
    if note:
        st.caption(plain(note))


def _anchor_s(source: clip_reads.Source) -> float:
    specs = source.layout.specs
    return specs.extract.window / specs.encode.fps
