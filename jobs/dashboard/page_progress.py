"""Progress: how far each stage is, live while a job runs. Only the ledgers are polled (jobs/status.py)."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from cope_prep.jobs.dashboard import chart_style as style
from cope_prep.jobs.dashboard import kept, shared
from cope_prep.jobs.dashboard.opened import Opened
from cope_prep.jobs.dashboard.progress_state import TITLES, GrowthWatch, headline, state_of, without_ledger
from cope_prep.jobs.dashboard.words import clip_url, clock_time, counted, plain
from cope_prep.jobs.progress import format_bytes, format_duration
from cope_prep.jobs.status import DatasetStatus, ShardsStatus, StageStatus
from cope_prep.pipeline.redact import redacted

_MAX_FAILURES = 50
_GROWTH = GrowthWatch()


def show(opened: Opened) -> None:
    """Draw the page; it goes on by itself."""
    _live(opened)


@st.fragment(run_every=kept.POLL_EVERY_S)
def _live(opened: Opened) -> None:
    with shared.errors_shown():
        status = kept.status_of(opened.dataset)
        now_unix_s = time.time()
        growth = _GROWTH.look(status, now_unix_s=now_unix_s)
        missing = without_ledger(status, opened.choices)
        st.markdown(
            headline(
                status,
                growth,
                dataset=redacted(opened.dataset),
                now_unix_s=now_unix_s,
                choices=opened.choices,
                missing=missing,
            )
        )
        is_over = not any(stage.is_running or stage.num_pending for stage in status.stages)
        for stage in status.stages:
            _stage(stage, is_over=is_over, has_ledger=(stage.stage, stage.spec_hash) not in missing)
        _shards(status)
        _failures(status.stages)
        st.caption(f"Ledgers read at {clock_time(time.time())}, again every {kept.POLL_EVERY_S:g} s.")


def _stage(stage: StageStatus, *, is_over: bool, has_ledger: bool) -> None:
    words, colour = state_of(stage, is_over=is_over, has_ledger=has_ledger)
    num_done = stage.num_ok + stage.num_partial
    num_tried = num_done + stage.num_failed
    with st.container(border=True, key=f"stage-{stage.stage}-{stage.spec_hash}"):
        st.markdown(f"#### {TITLES[stage.stage]} `{stage.spec_hash}` :{colour}-badge[{words}]")
        st.progress(
            num_tried / max(stage.num_videos, 1),
            text=f"**{num_tried:,}** of {stage.num_videos:,} tried, {num_tried / max(stage.num_videos, 1):.1%}",
        )
        metrics = [
            ("Done", f"{num_done:,}"),
            ("Partial", f"{stage.num_partial:,}"),
            ("Failed", f"{stage.num_failed:,}"),
            ("To do", f"{stage.num_pending:,}"),
            ("Videos/s", _rate(stage.videos_per_s)),
            ("Video s/s", _rate(stage.video_seconds_per_s)),
            ("Time left", _left(stage)),
            ("Output", _size(stage.output_bytes)),
        ]
        _metrics(metrics)
        if stage.num_waiting:
            st.caption(f"{counted(stage.num_waiting, 'video')} without an output of the stage before.")
        left, right = st.columns([3, 2])
        with left:
            st.caption("Videos a second over time, in the last run; red: failed")
            shared.chart(throughput_figure(stage), key=f"throughput-{stage.stage}-{stage.spec_hash}")
        with right:
            st.caption("Machines, in the last ten minutes of work")
            _nodes(stage)


def _metrics(metrics: Sequence[tuple[str, str]]) -> None:
    """Side by side as far as there is room: in columns their values would be cut on a small screen."""
    with st.container(horizontal=True, gap="medium"):
        for name, value in metrics:
            st.metric(name, value, width="content")


def _rate(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _size(size_bytes: int) -> str:
    """With three digits, to fit a metric."""
    number, unit = format_bytes(size_bytes).split()
    return f"{float(number):.0f} {unit}" if float(number) >= 100 else f"{number} {unit}"


def _left(stage: StageStatus) -> str:
    if not stage.num_pending:
        return "–"
    return "not running" if stage.left_s is None else format_duration(stage.left_s)


def throughput_figure(stage: StageStatus) -> go.Figure:
    """Videos that ended a second, over the last run."""
    if not stage.history:
        return style.nothing("Nothing has ended yet.")
    figure = go.Figure(layout={"template": style.TEMPLATE, "height": 170, "barmode": "stack", "bargap": 0.1})
    middles = pd.to_datetime(
        [round((point.unix_s + point.span_s / 2) * 1000) for point in stage.history], unit="ms", utc=True
    ).tz_convert(time.strftime("%z"))
    hovers = [
        style.hover(
            f"{clock_time(point.unix_s)} to {clock_time(point.unix_s + point.span_s)}",
            f"{counted(point.num_videos, 'video')}, {point.num_failed:,} failed",
            f"{format_duration(point.video_s)} of video in {format_duration(point.span_s)}",
        )
        for point in stage.history
    ]
    for name, colour, counts in (
        ("Done", style.BLUE, [point.num_videos - point.num_failed for point in stage.history]),
        ("Failed", style.RED, [point.num_failed for point in stage.history]),
    ):
        rates = [count / point.span_s for count, point in zip(counts, stage.history, strict=True)]
        figure.add_trace(
            go.Bar(
                x=[middle.replace(tzinfo=None) for middle in middles],
                y=rates,
                name=name,
                marker={"color": colour, "line": {"width": 0}},
                hovertext=hovers,
                hovertemplate="%{hovertext}<extra></extra>",
            )
        )
    figure.update_layout(showlegend=False)
    figure.update_yaxes(rangemode="tozero", nticks=4)
    figure.update_xaxes(tickangle=0, nticks=6)
    return figure


def _nodes(stage: StageStatus) -> None:
    if not stage.nodes:
        st.caption("None.")
        return
    rows = [
        {
            "Machine": node.node or "(not recorded)",
            "Videos": node.num_videos,
            "Videos/s": node.videos_per_s,
            "Video s/s": node.video_seconds_per_s,
        }
        for node in sorted(stage.nodes, key=lambda node: -node.videos_per_s)
    ]
    shared.table(
        pd.DataFrame(rows),
        height=min(38 + 35 * len(rows), 178),
        key=f"nodes-{stage.stage}-{stage.spec_hash}",
        columns={
            "Videos": st.column_config.NumberColumn(format="localized"),
            "Videos/s": st.column_config.NumberColumn(format="%.2f"),
            "Video s/s": st.column_config.NumberColumn(format="%.2f", help="Seconds of video a second."),
        },
    )


def _shards(status: DatasetStatus) -> None:
    with st.container(border=True, key="stage-shards"):
        if not (status.shards or status.begun_shards or status.damaged_shards):
            st.markdown("#### Shards :gray-badge[none yet]")
            st.caption("They come at the end: sharding keeps no ledger.")
        for begun in status.begun_shards:
            st.markdown(f"#### Shards `{begun.spec_hash}` :gray-badge[not finished]")
            st.caption(f"{counted(begun.num_shards, 'shard')} so far. Sharding keeps no ledger.")
        for shards in status.shards:
            _finished_shards(shards)
        for damaged in status.damaged_shards:
            st.error(plain(f"Shards {damaged.spec_hash}: {damaged.message}"), icon=":material/error:")


def _finished_shards(shards: ShardsStatus) -> None:
    st.markdown(f"#### Shards `{shards.spec_hash}` :blue-badge[finished]")
    metrics = [
        ("Shards", f"{shards.num_shards:,}"),
        ("Videos", f"{shards.num_videos:,}"),
        ("GOPs", f"{shards.num_gops:,}"),
        ("Windows", f"{shards.num_windows:,}"),
        ("Video", format_duration(shards.duration_s)),
        ("Size", _size(shards.output_bytes)),
    ]
    _metrics(metrics)


def _failures(stages: Sequence[StageStatus]) -> None:
    found = sorted(
        ((failure, stage.spec_hash) for stage in stages for failure in stage.recent_failures),
        key=lambda one: -one[0].finished_unix_s,
    )[:_MAX_FAILURES]
    num_failed = sum(stage.num_failed for stage in stages)
    if not found:
        return
    st.subheader("Failures, the latest first", anchor=False)
    if num_failed > len(found):
        st.caption(f"The last {len(found)} of {num_failed:,}. Explore has all of them: filter by Error.")
    rows = [
        {
            "When": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(failure.finished_unix_s)),
            "Stage": failure.stage,
            "Error": failure.error_class,
            "Clip": clip_url(failure.subject, spec=spec_hash),
            "Video": failure.subject,
            "Message": redacted(failure.error_message),
            "Machine": failure.node,
        }
        for failure, spec_hash in found
    ]
    shared.table(
        pd.DataFrame(rows),
        key="failures",
        columns={
            "Clip": shared.clip_column(),
            "Video": st.column_config.TextColumn(width="medium"),
            "Message": st.column_config.TextColumn(width="large"),
        },
    )
