"""The stepper of the page Clip: one anchor at a time, with what is stored of it, its figures and its tokens."""

from __future__ import annotations

import streamlit as st

from cope_prep.jobs.dashboard import clip_figures, clip_parts, clip_reads, shared
from cope_prep.jobs.dashboard.token_chart import token_figure
from cope_prep.jobs.dashboard.words import plain
from cope_prep.jobs.progress import format_bytes
from cope_prep.pipeline.clip_data import Clip
from cope_prep.pipeline.clip_view import Scales, scales_of
from cope_prep.schemas.errors import CopePrepError

_MAX_OPTIONS = 1000
"""With more anchors the slider shows numbers: every label would travel to the browser."""
_PLACE = "clip_place"
_OF = "clip_place_of"
_MOVED = "clip_place_moved"
_SEEN = "clip_query_seen"
_IDENTICAL_DB = 100.0


@st.fragment
def show_steps(source: clip_reads.Source, clip: Clip) -> None:
    """Draw the stepper and all that belongs to the step. What goes wrong in a step is one line in its place."""
    with shared.errors_shown(part="steps"):  # in here, or a rerun of the fragment alone would not have it
        _show_steps(source, clip)


def _show_steps(source: clip_reads.Source, clip: Clip) -> None:
    labels = _labels(source, clip)
    place = _place(source, clip, labels)
    gop_index, anchor = clip.anchor_at(place)
    query = shared.clip_query(clip.video_id) | {"gop": str(gop_index), "anchor": str(anchor)}
    if place or "anchor" in st.query_params:
        st.query_params.from_dict(query)
    st.session_state[_SEEN] = _anchor_query()
    scales = scales_of(clip.figures)
    try:
        drawn = clip_reads.anchor_of(source, clip, gop_index, anchor, scales)
    except CopePrepError:  # the rest of the page may be fine
        clip_parts.show_about(source, clip)
        raise
    note = clip_reads.gop_of(source, clip, gop_index).note
    if note:
        st.caption(plain(note))
    _show_panels(source, clip, anchor, drawn, scales)
    _show_figures(clip, gop_index, anchor)
    _show_about(source, clip, gop_index)
    st.subheader("Along the video", anchor=False)
    shared.chart(
        clip_figures.window_figure(clip.figures, anchor_s=_anchor_s(source), place=place, labels=labels),
        key="clip_windows",
    )
    _show_tokens(source, clip, gop_index)


def _show_tokens(source: clip_reads.Source, clip: Clip, gop_index: int) -> None:
    rows, pictures = clip_reads.tokens_of(source, clip, gop_index)
    st.subheader("Tokens", anchor=False)
    st.caption(
        f"What GOP {gop_index + 1} of {len(clip.figures)} is to a language model, to scale: a picture is"
        f" {clip_reads.TOKENS.picture} tokens, a Δ {clip_reads.TOKENS.delta}. Percentages are of dense RGB."
    )
    shared.chart(token_figure(rows, pictures=pictures), key="clip_tokens")


def _anchor_s(source: clip_reads.Source) -> float:
    specs = source.layout.specs
    return specs.extract.window / specs.encode.fps


def _labels(source: clip_reads.Source, clip: Clip) -> list[str]:
    """A name for every anchor: `GOP 1, P 3, 3.00 s`."""
    anchors = [(gop, anchor) for gop in clip.figures for anchor in range(gop.num_anchors)]
    return [
        f"GOP {gop.gop_index + 1}, {f'P {anchor}' if anchor else 'I'}, {time_s:.2f} s"
        for (gop, anchor), time_s in zip(anchors, clip.anchor_times(_anchor_s(source)), strict=True)
    ]


def _place(source: clip_reads.Source, clip: Clip, labels: list[str]) -> int:
    """The chosen anchor, counted through the whole video, and the widgets that choose it."""
    state = st.session_state
    owner = (source.key, clip.video_id)
    # Another anchor in the URL without a step: the browser went back. While one steps fast the URL is behind.
    has_moved = state.pop(_MOVED, False)
    went_back = not has_moved and _anchor_query() != state.get(_SEEN)
    if state.get(_OF) != owner or _PLACE not in state or went_back:
        state[_OF], state[_PLACE] = owner, _asked_for(clip)
    place = min(state[_PLACE], len(labels) - 1)
    back, slider, on = st.columns([1.3, 6, 1.3], vertical_alignment="bottom")
    back.button(
        "Previous",
        icon=":material/chevron_left:",
        shortcut="Left",
        disabled=place == 0,
        on_click=_move,
        args=(-1,),
        width="stretch",
        key="clip_back",
    )
    if len(labels) > _MAX_OPTIONS:
        slider.slider("Anchor", 0, len(labels) - 1, key=_PLACE, on_change=_move)
    elif len(labels) > 1:
        slider.select_slider(
            "Anchor", range(len(labels)), key=_PLACE, format_func=labels.__getitem__, on_change=_move
        )
    on.button(
        "Next",
        icon=":material/chevron_right:",
        icon_position="right",
        shortcut="Right",
        disabled=place == len(labels) - 1,
        on_click=_move,
        args=(1,),
        width="stretch",
        key="clip_on",
    )
    return place


def _move(by: int = 0) -> None:
    st.session_state[_MOVED] = True
    if by:
        st.session_state[_PLACE] += by


def _anchor_query() -> tuple[str | None, str | None]:
    return st.query_params.get("gop"), st.query_params.get("anchor")


def _asked_for(clip: Clip) -> int:
    """The anchor that the URL names, or the first one."""
    try:
        gop_index = int(st.query_params.get("gop", "0"))
        anchor = int(st.query_params.get("anchor", "0"))
    except ValueError:
        return 0
    if not 0 <= gop_index < len(clip.figures) or not 0 <= anchor < clip.figures[gop_index].num_anchors:
        return 0
    return clip.place(gop_index, anchor)


def _show_panels(
    source: clip_reads.Source,
    clip: Clip,
    anchor: int,
    drawn: clip_reads.Drawn,
    scales: Scales,
) -> None:
    before = "anchor" if source.layout.specs.extract.window > 1 else "frame"
    panels = {
        "rebuilt": ("Rebuilt", "From the sample alone; its checksum holds."),
        "arrows": ("Motion", f"Movement since the {before} before, true length."),
        "residual": (
            "Residual",
            f"What the prediction leaves: \N{MINUS SIGN}{scales.residual_levels} to"
            f" +{scales.residual_levels} grey levels.",
        ),
        "reencoded": ("Re-encoded", "The anchor in the fixed-GOP file."),
        "error": ("Error", f"Rebuilt against re-encoded: 0 to {scales.error_levels} grey levels."),
        "flow": (
            "Motion field",
            f"Hue is direction, colour is full at {scales.flow_px} px; grey is intra.",
        ),
        "intra": ("Intra mask", f"Blocks without a path to the {before} before."),
    }
    # Two rows of columns: in one, long captions would shift the pictures below them.
    player, *columns = [*st.columns(4, gap="small"), *st.columns(4, gap="small")]
    for column, (name, (title, caption)) in zip(columns, panels.items(), strict=True):
        with column.container(key=f"clip_panel_{name}"):
            _show_panel(name, title, drawn.view.notes.get(name, caption), drawn, anchor, scales)
    with player:  # last: MPEG-4 part 2 is converted first
        st.markdown("**Video**")
        clip_parts.show_video(source, clip)
    if drawn.view.reduced_by > 1:
        st.caption(f"Pictures are shown at 1/{drawn.view.reduced_by} of their size.")


def _show_about(source: clip_reads.Source, clip: Clip, gop_index: int) -> None:
    """The GOP's stored I-frame, and what is known of the video."""
    iframe, details = st.columns([1, 3], gap="medium")
    with iframe.container(key="clip_panel_iframe"):
        st.markdown("**Stored I-frame**")
        st.image(clip_reads.iframe_of(source, clip, gop_index), width="stretch")
        gop = clip.figures[gop_index]
        st.caption(
            f"Of GOP {gop_index + 1}: {format_bytes(gop.iframe_bytes)}, {psnr_words(gop.iframe_psnr_y_db)}."
        )
    with details:
        st.markdown("**This video**")
        clip_parts.show_details(clip, source.layout)


def _show_panel(
    name: str, title: str, caption: str, drawn: clip_reads.Drawn, anchor: int, scales: Scales
) -> None:
    st.markdown(f"**{title}**")
    if name not in drawn.jpegs:
        of_window = anchor == 0 and name in ("arrows", "flow", "intra", "residual")
        st.info("None: this is the I-frame." if of_window else "The re-encoded file is gone.")
        return
    st.image(drawn.jpegs[name], width="stretch")
    if name == "flow":
        wheel, text = st.columns([1, 4], gap="small", vertical_alignment="center")
        wheel.image(clip_reads.legend_of(name, scales), width=44)
        text.caption(caption)
        return
    if name in ("residual", "error"):
        st.image(clip_reads.legend_of(name, scales), width="stretch")
    st.caption(caption)


def _show_figures(clip: Clip, gop_index: int, anchor: int) -> None:
    gop = clip.figures[gop_index]
    if anchor:
        value = {name: values[anchor - 1] for name, values in gop.windows.items()}
        residual_bytes = gop.residual_bytes[anchor - 1]
        facts = [
            ("Motion, mean", f"{value['motion_mean_px']:.1f} px"),
            ("Motion, p95", f"{value['motion_p95_px']:.1f} px"),
            ("Zero motion", f"{value['zero_motion_share']:.1%}"),
            ("Intra", f"{value['intra_share']:.1%}"),
            ("Energy", f"{value['residual_energy']:,.0f}"),
            ("PSNR", psnr_words(value["psnr_y_db"])),
            ("Max. error", f"{value['max_error']:.0f}"),
            ("Vectors", format_bytes(gop.motion_bytes / gop.num_windows)),
            ("Residual", format_bytes(residual_bytes)),
            ("Its packets", format_bytes(value["packet_bytes"])),
        ]
    else:
        facts = [
            ("PSNR", psnr_words(gop.iframe_psnr_y_db)),
            ("I-frame", format_bytes(gop.iframe_bytes)),
            ("Its packet", format_bytes(gop.iframe_packet_bytes)),
        ]
    clip_parts.show_strip(facts)


def psnr_words(value_db: float) -> str:
    """`41.2 dB`, or `identical`."""
    return "identical" if value_db >= _IDENTICAL_DB else f"{value_db:.1f} dB"
