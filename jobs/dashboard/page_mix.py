"""Mix: what an epoch of a mix holds, by source and kind, in tokens and bytes; as `cope-prep mix plan` says it."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from cope_prep.jobs.dashboard import chart_style as style
from cope_prep.jobs.dashboard import shared
from cope_prep.jobs.dashboard.mixes import MixChoice, count, find_mixes, read_parts
from cope_prep.jobs.dashboard.opened import Opened
from cope_prep.jobs.dashboard.words import compact, counted, plain
from cope_prep.jobs.progress import format_bytes
from cope_prep.jobs.stats_words import KIND_TITLES, sorted_kinds
from cope_prep.pipeline import storage
from cope_prep.pipeline.explore_table import table_versions
from cope_prep.pipeline.loader.mix_plan import MixPlan, SourceCount
from cope_prep.pipeline.redact import redacted

_COLOURS = (style.BLUE, style.TEAL, style.ORANGE, style.PINK, style.GOLD, style.RED, style.GREY)
_MAX_BARS = 30
_PUBLISHED = {
    "matches": ("matches the published counts", st.success),
    "differs": ("differs from the published counts", st.warning),
    "not compared": ("not compared with the published counts", st.info),
}


def show(opened: Opened) -> None:
    """Draw the page."""
    choices = find_mixes(opened)
    left, right = st.columns([4, 1])
    choice = left.selectbox("Mix", choices, format_func=lambda choice: choice.label, key="mix")
    seed = right.number_input(
        "Seed", min_value=0, max_value=2**31 - 1, value=0, step=1, help="For random samples and weights."
    )
    if len(choices) == 1:
        st.caption(
            "More to choose from: mix files in the dataset's folder, or of the command line, `--mix FILE`."
        )
    version = "" if choice.uri is None else storage.stat(choice.uri).version
    plan = _plan(choice, opened, int(seed), version, table_versions(opened.layout))
    _headline(plan)
    if not plan.num_records:
        st.info("No record of this mix is about a video that is there.", icon=":material/info:")
    _sources(plan)
    _tokens(plan)
    _left_out(plan)


@st.cache_resource(ttl=300, max_entries=16, show_spinner="Counting the questions of the mix …")
def _plan(choice: MixChoice, _opened: Opened, seed: int, version: str, versions: tuple[str, ...]) -> MixPlan:
    return count(read_parts(choice, _opened), seed=seed)


def _headline(plan: MixPlan) -> None:
    metrics = [
        ("Records", compact(plan.num_records), f"{plan.num_records:,} an epoch"),
        ("Videos", compact(plan.num_videos), f"{plan.num_videos:,} distinct"),
        (
            "Streamed, each video once",
            "–" if plan.bytes_once is None else format_bytes(plan.bytes_once),
            "An epoch, if every video stays in a cache",
        ),
        (
            "Streamed without a cache",
            "–" if plan.bytes_per_record is None else format_bytes(plan.bytes_per_record),
            "An epoch, if the video of each record is fetched anew",
        ),
    ]
    for column, (name, value, about) in zip(st.columns(len(metrics)), metrics, strict=True):
        column.metric(name, value, help=about, border=True)


def _sources(plan: MixPlan) -> None:
    st.subheader("Sources", anchor=False)
    sources = sorted(plan.sources, key=lambda source: -source.num_records)
    kinds = sorted_kinds({kind.kind: kind.num_records for source in sources for kind in source.kinds})
    has_several = len({source.dataset for source in sources}) > 1
    left, right = st.columns(2)
    with left:
        st.caption("Records an epoch, by kind")
        shared.chart(records_figure(sources, kinds), key="records")
    rows = [
        {
            **({"Dataset": redacted(source.dataset)} if has_several else {}),
            "Source": source.source,
            "Records": source.num_records,
            "Share": source.num_records / max(plan.num_records, 1),
            "Videos": source.num_videos,
            **{KIND_TITLES.get(kind, kind): num_records(source, kind) for kind in kinds},
        }
        for source in sources
    ]
    whole = st.column_config.NumberColumn(format="localized")
    shared.table(
        place=right,
        rows=pd.DataFrame(rows),
        key="sources",
        height="content" if len(rows) <= _MAX_BARS else "auto",
        columns={
            **dict.fromkeys((*(KIND_TITLES.get(kind, kind) for kind in kinds), "Records", "Videos"), whole),
            "Share": st.column_config.NumberColumn(format="percent"),
            "Videos": st.column_config.NumberColumn(format="localized", help="Distinct, over all kinds."),
        },
    )


def num_records(source: SourceCount, kind: str) -> int:
    """Of one kind."""
    return sum(part.num_records for part in source.kinds if part.kind == kind)


def records_figure(sources: list[SourceCount], kinds: list[str]) -> go.Figure:
    """A bar a source, its records by kind; the largest sources, in their order."""
    shown = [source for source in sources if source.num_records][:_MAX_BARS]
    if not shown:
        return style.nothing("No record.")
    figure = style.chart(num_rows=len(shown))
    keys = [str(number) for number in range(len(shown))]
    style.rows_downward(figure, keys, [source.source or "(no folder)" for source in shown])
    for number, kind in enumerate(kinds):
        counts = [num_records(source, kind) for source in shown]
        title = KIND_TITLES.get(kind, kind)
        figure.add_trace(
            go.Bar(
                x=counts,
                y=keys,
                orientation="h",
                name=style.text(title),
                marker={"color": _COLOURS[number % len(_COLOURS)], "line": {"width": 0}},
                hovertext=[
                    style.hover(
                        source.source,
                        f"{style.text(title)}: {number:,} of {source.num_records:,} records",
                        f"{counted(source.num_videos, 'video')}",
                    )
                    for source, number in zip(shown, counts, strict=True)
                ],
                hovertemplate="%{hovertext}<extra></extra>",
            )
        )
    figure.update_layout(barmode="stack")
    return figure


def _tokens(plan: MixPlan) -> None:
    st.subheader("Tokens", anchor=False)
    if plan.unknown:
        st.info(
            plain(f"Tokens and bytes are not known yet: {'; '.join(plan.unknown)}."), icon=":material/info:"
        )
        return
    left, right = st.columns(2)
    with left:
        st.caption("Tokens an epoch, by key frames a GOP: each record has those of its whole video")
        figure = style.chart(num_rows=len(plan.densities))
        keys = [str(density.key_frames) for density in plan.densities]
        style.rows_downward(figure, keys, [f"{key} of a GOP" for key in keys])
        figure.add_trace(
            go.Bar(
                x=[density.num_tokens for density in plan.densities],
                y=keys,
                orientation="h",
                marker={"color": style.BLUE, "line": {"width": 0}},
                hovertext=[f"{density.num_tokens:,} tokens" for density in plan.densities],
                hovertemplate="%{hovertext}<extra></extra>",
            )
        )
        shared.chart(figure, key="densities")
    rows = [
        {
            "Key frames a GOP": density.key_frames,
            "Tokens an epoch": density.num_tokens,
            "Tokens a record": round(density.tokens_per_record),
        }
        for density in plan.densities
    ]
    whole = st.column_config.NumberColumn(format="localized")
    shared.table(
        place=right, rows=pd.DataFrame(rows), key="density-rows", columns=dict.fromkeys(rows[0], whole)
    )


def _left_out(plan: MixPlan) -> None:
    if plan.published is not None:
        words, tell = _PUBLISHED[plan.published.status]
        tell(plain(f"LLaVA-Video-178K without LLaVA-Hound: {words}: {plan.published.detail}."))
    if not plan.left_out and not plan.not_video:
        return
    st.subheader("Left out", anchor=False)
    for path in plan.not_video:
        st.markdown(plain(f"{path}: LLaVA-Hound comes as folders of frames, without motion."))
    rows = [
        {
            "Records": left_out.num_records,
            "Videos": left_out.num_videos,
            "Why": left_out.reason,
            "For instance": ", ".join(left_out.examples),
            "Dataset": redacted(left_out.dataset),
        }
        for left_out in plan.left_out
    ]
    if rows:
        whole = st.column_config.NumberColumn(format="localized")
        shared.table(
            pd.DataFrame(rows),
            key="left-out",
            columns={
                "Records": whole,
                "Videos": whole,
                "For instance": st.column_config.TextColumn(width="large"),
            },
        )
