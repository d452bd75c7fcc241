"""Overview: what is in the dataset at a glance, what to look at, what failed, and what stands out."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from cope_prep.jobs.dashboard import charts, kept, shared
from cope_prep.jobs.dashboard.opened import Opened
from cope_prep.jobs.dashboard.words import clip_url, compact, plain
from cope_prep.jobs.progress import format_bytes, format_duration
from cope_prep.jobs.stats_words import FIGURES, KIND_TITLES, hours, in_unit, sorted_kinds, titled
from cope_prep.pipeline.finding_shares import named
from cope_prep.pipeline.findings import Finding, findings
from cope_prep.pipeline.redact import redacted
from cope_prep.pipeline.stats_records import DatasetStats, GroupStats

_MARKS = {
    "problem": (":material/error:", "red"),
    "warning": (":material/warning:", "orange"),
    "note": (":material/info:", "blue"),
    "good": (":material/check_circle:", "green"),
}
WORDS = "Reading index, ledgers and questions. With 178,000 videos that takes some seconds, once."


def show(opened: Opened) -> None:
    """Draw the page."""
    stats = shared.load(kept.STATS, opened, words=WORDS)
    _headline(stats)
    for note in stats.notes:
        st.info(plain(note), icon=":material/info:")
    _findings(findings(stats))
    _charts(stats)
    st.subheader("Subsets", anchor=False)
    _subsets(stats)
    if stats.failures:
        st.subheader("What failed", anchor=False)
        _failures(stats)
    if any(stats.outliers.values()):
        st.subheader("What stands out", anchor=False)
        _outliers(stats)
    st.subheader("Specs", anchor=False)
    _specs(opened, stats)


def _headline(stats: DatasetStats) -> None:
    total = stats.total
    num_listed = total.num_listed or total.num_videos
    rate = total.per_second(total.sample_bytes)
    against = total.source.ratio
    metrics = [
        ("Videos", compact(num_listed), f"{total.num_videos:,} of {num_listed:,} are in the shards"),
        ("Duration", _video(total.duration_s), f"{hours(total.duration_s)} hours in the shards"),
        ("GOPs", compact(total.num_gops), f"{total.num_gops:,}, one sample each"),
        ("Windows", compact(total.num_windows), f"{total.num_windows:,} fused P-frames"),
        ("Questions", compact(sum(total.num_questions.values())), _kinds(total)),
        ("Failed", compact(total.num_failed), f"{total.num_failed:,} videos; {total.num_partial:,} partial"),
        ("Samples", format_bytes(total.sample_bytes), "All bytes of the samples"),
        (
            "Samples, a second",
            "–" if rate is None else format_bytes(rate),
            "Bytes of samples, a second of video"
            + ("" if against is None else f"; {against:.3g} × the source files"),
        ),
    ]
    for row in st.columns(4), st.columns(4):
        for column in row:
            name, value, about = metrics.pop(0)
            column.metric(name, value, help=about, border=True)


def _video(duration_s: float) -> str:
    """Hours, as datasets are counted in; of a small one, minutes or seconds."""
    return f"{hours(duration_s)} h" if duration_s >= 3600 else format_duration(duration_s)


def _kinds(group: GroupStats) -> str:
    counts = [
        f"{group.num_questions[kind]:,} {KIND_TITLES.get(kind, kind).lower()}"
        for kind in sorted_kinds(group.num_questions)
    ]
    return plain(", ".join(counts) or "None")


def _findings(found: tuple[Finding, ...]) -> None:
    st.subheader("What to look at", anchor=False)
    with st.container(border=True):
        for finding in found:
            icon, colour = _MARKS[finding.severity]
            advice = f" {plain(finding.advice)}" if finding.advice else ""
            st.markdown(f":{colour}[{icon}] {plain(finding.text)}:gray[{advice}]")


def _charts(stats: DatasetStats) -> None:
    names = ["Size", "Motion and residual", "Sources", "Questions", "Tokens"]
    # Only the open tab is drawn: a browser takes longer for a dozen charts than the server for all the rest.
    size, figures, sources, questions, tokens = st.tabs(names, key="charts", on_change="rerun")
    if size.open:
        with size:
            left, right = st.columns(2)
            with left:
                st.caption("Bytes a second of video, by part")
                shared.chart(charts.bytes_figure(stats), key="bytes")
            with right:
                st.caption("Samples against other forms of the same videos")
                shared.chart(charts.sizes_figure(stats), key="sizes")
    if figures.open:
        with figures:
            there = [name for name in FIGURES if any(one.name == name for one in stats.distributions)]
            if there:
                name = st.selectbox("Figure", there, format_func=titled, width=320)
                shared.chart(charts.distribution_figure(stats, name), key="distribution")
            else:
                st.caption("No sample is in the shards yet.")
    if sources.open:
        with sources:
            for column, (what, title) in zip(st.columns(3), _SOURCES.items(), strict=True):
                with column:
                    st.caption(title)
                    shared.chart(charts.sources_figure(stats, what), key=f"source-{what}")
    if questions.open:
        with questions:
            shared.chart(charts.questions_figure(stats), key="questions")
    if tokens.open:
        with tokens:
            st.caption("All videos once, by key frames a GOP, against a picture for every second")
            shared.chart(charts.token_figure(stats), key="tokens")


_SOURCES = {"codec": "Codec", "resolution": "Resolution", "frame_rate": "Frames a second"}


def _subsets(stats: DatasetStats) -> None:
    # One unit for a column, so that its numbers compare.
    unit, video_s = ("h", 3600) if stats.total.duration_s >= 3600 else ("s", 1)
    video = f"Video ({unit})"
    unit, samples_bytes = ("GiB", 1 << 30) if stats.total.sample_bytes >= 1 << 30 else ("MiB", 1 << 20)
    samples = f"Samples ({unit})"
    rows = [
        {
            "Subset": redacted(named(group.subset)),
            "Listed": group.num_listed,
            "In shards": group.num_videos,
            "Failed": group.num_failed,
            "Partial": group.num_partial,
            video: group.duration_s / video_s,
            "GOPs": group.num_gops,
            "Questions": sum(group.num_questions.values()),
            samples: group.sample_bytes / samples_bytes,
            "KiB/s": (group.per_second(group.sample_bytes) or 0) / 1024 if group.duration_s else None,
            "× source": group.source.ratio,
            "Vectors clipped": group.window_share(group.num_clipped_vector_windows),
            "Residual clipped": group.window_share(group.num_clipped_residual_windows),
        }
        for group in (stats.total, *stats.subsets)
    ]
    number = st.column_config.NumberColumn
    shared.table(
        pd.DataFrame(rows),
        key="subsets",
        columns={
            **{name: number(format="localized") for name in ("Listed", "In shards", "Failed", "Partial")},
            **{name: number(format="localized") for name in ("GOPs", "Questions")},
            video: number(format="%.1f", help="Of the re-encoded videos in the shards."),
            samples: number(format="%.2f"),
            "KiB/s": number(format="%.1f", help="Samples, a second of video."),
            "× source": number(format="%.3f", help="Samples over the source files."),
            "Vectors clipped": number(
                format="percent", help="Windows with a vector beyond the coding's range."
            ),
            "Residual clipped": number(
                format="percent", help="Windows with a residual beyond the coding's range."
            ),
        },
    )


def _failures(stats: DatasetStats) -> None:
    left, right = st.columns([2, 3])
    with left:
        shared.chart(charts.failures_figure(stats), key="failures")
    rows = [
        {
            "Stage": end.stage,
            "Status": end.status,
            "Error": end.error_class,
            "Videos": end.num_videos,
            "For instance": redacted(end.example_message),
            "Clip": clip_url(end.example_video_id, spec=shared.chosen_spec()),
        }
        for end in stats.failures
    ]
    shared.table(
        place=right,
        rows=pd.DataFrame(rows),
        key="failure-rows",
        columns={
            "Videos": st.column_config.NumberColumn(format="localized"),
            "For instance": st.column_config.TextColumn(width="large"),
            "Clip": shared.clip_column(),
        },
    )


def _outliers(stats: DatasetStats) -> None:
    there = [name for name, found in stats.outliers.items() if found]
    tabs = st.tabs([titled(name) for name in there], key="outliers", on_change="rerun")
    for tab, name in zip(tabs, there, strict=True):
        if not tab.open:
            continue
        rows = [
            {
                "Clip": clip_url(outlier.video_id, spec=shared.chosen_spec()),
                titled(name): in_unit(name, outlier.value),
                "Video": outlier.video_id,
                "Subset": redacted(named(outlier.subset)),
                "Duration": outlier.duration_s,
            }
            for outlier in stats.outliers[name]
        ]
        shared.table(
            place=tab,
            rows=pd.DataFrame(rows),
            key=f"outliers-{name}",
            height=min(38 + 35 * len(rows), 388),
            columns={
                "Clip": shared.clip_column(),
                titled(name): st.column_config.ProgressColumn(
                    format="%.3g", min_value=0, max_value=rows[0][titled(name)] or 1
                ),
                "Video": st.column_config.TextColumn(width="large"),
                "Duration": st.column_config.NumberColumn(format="%.1f s"),
            },
        )


def _specs(opened: Opened, stats: DatasetStats) -> None:
    specs = opened.layout.specs
    columns = st.columns(3)
    parts = (("reencode", specs.encode), ("extract", specs.extract), ("shards", specs.shard))
    for column, (stage, spec) in zip(columns, parts, strict=True):
        spec_hash = stats.spec_hashes.get(stage)
        with column:
            st.markdown(f"**{stage}** " + (f"`{spec_hash}`" if spec_hash else ":gray[not begun]"))
            values = {
                name: " ".join(str(part) for part in value.values())
                if isinstance(value, dict)
                else str(value)
                for name, value in spec.model_dump(mode="json").items()
            }
            shared.table(
                pd.DataFrame({"Setting": list(values), "Value": list(values.values())}),
                key=f"spec-{stage}",
            )
