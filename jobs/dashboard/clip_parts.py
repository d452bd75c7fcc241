"""Parts of the page Clip that do not change from step to step: figures of the video, its sources, its questions."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from cope_prep.jobs.dashboard import clip_reads
from cope_prep.jobs.dashboard.words import counted, plain
from cope_prep.jobs.progress import format_bytes
from cope_prep.jobs.stats_words import KIND_TITLES
from cope_prep.pipeline.clip_data import Clip
from cope_prep.pipeline.layout import Layout
from cope_prep.schemas.errors import CopePrepError
from cope_prep.schemas.records import QARecord

_SPEAKERS = {"human": ":material/person:", "gpt": ":material/smart_toy:"}
_KIND_COLOURS = {"cap": "blue", "oe": "green", "mc": "orange"}


def show_facts(clip: Clip, layout: Layout) -> None:
    """The figures that one asks for first, in one row."""
    fps = layout.specs.encode.fps
    num_frames = sum(gop.num_frames for gop in clip.figures)
    facts: list[tuple[str, str]] = []
    if clip.figures:
        duration_s = num_frames / fps
        facts += [
            ("Duration", f"{duration_s:.1f} s"),
            ("GOPs", f"{len(clip.figures):,}"),
            ("Anchors", f"{clip.num_anchors:,}"),
            ("Samples", format_bytes(clip.sample_bytes)),
            ("Per second", f"{format_bytes(clip.sample_bytes / duration_s)}/s"),
        ]
    end = clip.ends.get("reencode")
    if clip.figures and clip.reencoded_bytes:
        facts.append(("Against re-encoded", f"{clip.sample_bytes / clip.reencoded_bytes:.0%}"))
    source_bytes = (end.source_size_bytes if end else None) or clip.source_bytes
    if clip.figures and source_bytes:
        facts.append(("Against source", f"{clip.sample_bytes / source_bytes:.0%}"))
    show_strip(facts)


def show_video(source: clip_reads.Source, clip: Clip) -> None:
    """The re-encoded video, or why there is nothing to play."""
    if clip.reencoded_bytes is None:
        done = "reencode" in clip.ends and clip.ends["reencode"].status != "failed"
        why = "is gone: it was deleted after sharding" if done else "is not there"
        st.info(f"The re-encoded video {why}. There is nothing to play.", icon=":material/movie_off:")
        return
    try:
        video = clip_reads.playable_of(source, clip.video_key, clip.reencoded_bytes)
    except CopePrepError as exc:  # all else of the page may be fine
        st.error(plain(str(exc)), icon=":material/error:")
        return
    if video is None:
        st.info("The re-encoded video has just been deleted.", icon=":material/movie_off:")
        return
    st.video(video.content, muted=True, alt="The re-encoded video")
    st.caption(plain(video.note) or "The fixed-GOP file.")


def show_about(source: clip_reads.Source, clip: Clip) -> None:
    """The video beside what is known of it, where there are no anchors to step through."""
    player, details = st.columns([1, 3], gap="medium")
    with player:
        show_video(source, clip)
    with details:
        show_details(clip, source.layout)


def show_strip(facts: Sequence[tuple[str, str]]) -> None:
    """Names above their values, side by side: smaller than metrics, so that none is cut off."""
    for column, (name, value) in zip(st.columns(max(1, len(facts)), gap="small"), facts, strict=False):
        column.caption(plain(name))
        column.markdown(f"**{plain(value)}**")


def show_details(clip: Clip, layout: Layout) -> None:
    """Source, re-encoded file and samples, a line or two each, and what the ledgers say."""
    for name, lines in (
        ("Source", _source_lines(clip)),
        ("Re-encoded", _reencoded_lines(clip, layout)),
        ("Samples", _sample_lines(clip, layout)),
    ):
        title, text = st.columns([1, 4])
        title.markdown(f"**{name}**")
        text.markdown("  \n".join(plain(line) for line in lines))
    for stage, row in clip.ends.items():
        if row.status == "partial":
            st.warning(
                f"{stage}: only a part could be used: {plain(row.error_message)}", icon=":material/warning:"
            )


def show_questions(records: tuple[QARecord, ...], number: int) -> None:
    """Every turn as plain text."""
    st.subheader("Questions", anchor=False)
    if not records:
        st.caption("No question is about this video.")
        return
    if number > len(records):
        st.caption(f"The first {len(records)} of {number:,}.")
    for record in records:
        with st.container(border=True, key=None):
            st.badge(
                plain(KIND_TITLES.get(record.kind, record.kind)),
                color=_KIND_COLOURS.get(record.kind, "gray"),  # type: ignore[arg-type]
            )
            for speaker, value in record.turns:
                icon, text = st.columns([1, 30], gap="small")
                icon.markdown(_SPEAKERS.get(speaker, plain(speaker)))
                text.text(value.removeprefix("<image>").strip())


def _source_lines(clip: Clip) -> list[str]:
    end = clip.ends.get("reencode")
    size = (end.source_size_bytes if end else None) or clip.source_bytes
    parts = [] if size is None else [format_bytes(size)]
    if end is not None and end.source_codec is not None:
        parts.insert(0, end.source_codec)
        if end.source_width_px and end.source_height_px:
            parts.insert(1, f"{end.source_width_px} × {end.source_height_px}")
        if end.source_fps:
            parts.insert(2, f"{end.source_fps:.5g} FPS")
        if end.source_duration_s is not None:
            parts.append(f"{end.source_duration_s:.2f} s")
    lines = [", ".join(parts) or "Nothing is known of it."]
    if clip.subset:
        lines.append(f"Subset {clip.subset}")
    return lines


def _reencoded_lines(clip: Clip, layout: Layout) -> list[str]:
    encode = layout.specs.encode
    scale = "crf" if encode.codec == "h264" else "qscale"
    size = ""
    if clip.figures:
        size = f"{clip.figures[0].width_px} × {clip.figures[0].height_px}, "
    lines = [
        f"{'H.264' if encode.codec == 'h264' else 'MPEG-4 part 2'}, {size}{encode.fps} FPS,"
        f" GOP {encode.gop_size}, {scale} {encode.quality}"
    ]
    if clip.reencoded_bytes is not None:
        lines[0] += f", {format_bytes(clip.reencoded_bytes)}"
    end = clip.ends.get("reencode")
    return [*lines, *(end.notes if end else ())]


def _sample_lines(clip: Clip, layout: Layout) -> list[str]:
    if clip.samples is None:
        return ["None."]
    extract = layout.specs.extract
    iframes = sum(gop.iframe_bytes for gop in clip.figures)
    motion = sum(gop.motion_bytes for gop in clip.figures)
    residual = sum(sum(gop.residual_bytes) for gop in clip.figures)
    rest = clip.sample_bytes - iframes - motion - residual
    end = clip.ends.get("extract")
    return [
        f"In {clip.samples.found_in}: {format_bytes(iframes)} I-frames, {format_bytes(motion)} motion,"
        f" {format_bytes(residual)} residuals, {format_bytes(rest)} json and tar",
        f"Windows of {counted(extract.window, 'frame')}, blocks of {extract.block_px} px,"
        f" residual {extract.residual.kind}",
        *(end.notes if end else ()),
    ]
