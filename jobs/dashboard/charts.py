"""Charts of the statistics: DatasetStats in, a plotly figure out. The report and the dashboard show the same.

Each function works on any statistics: where a dataset has nothing to show, the figure says so in words. Tooltips
have the full numbers and their units. Of many subsets the largest are drawn; the tables beside have all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go

from cope_prep.jobs.dashboard import chart_style as style
from cope_prep.jobs.dashboard.distribution_chart import distribution_figure as distribution_figure
from cope_prep.jobs.progress import format_bytes
from cope_prep.jobs.stats_words import KIND_TITLES, PROPERTIES, length, sorted_kinds
from cope_prep.pipeline.finding_shares import named
from cope_prep.pipeline.redact import redacted
from cope_prep.pipeline.stats_records import Compared, DatasetStats, GroupStats

MAX_SUBSETS = 24
MAX_VALUES = 12
"""Values of a property of the sources; the rest is one bar."""
_NO_SAMPLES = "No sample is in the shards yet."
_PARTS: tuple[tuple[str, str, Callable[[GroupStats], int]], ...] = (
    ("I-frames", style.BLUE, lambda group: group.iframe_bytes),
    ("Motion", style.TEAL, lambda group: group.motion_bytes),
    ("Residuals", style.ORANGE, lambda group: group.residual_bytes),
    ("Overhead", style.GREY, lambda group: group.overhead_bytes),
)
_KIND_COLOURS = {"cap": style.BLUE, "oe": style.TEAL, "mc": style.ORANGE}
_OTHERS: tuple[tuple[str, str, Callable[[GroupStats], Compared]], ...] = (
    ("RGB, 1 FPS", "a 24-bit picture for every second", lambda group: group.rgb),
    ("JPEG, 1 FPS", "an estimate: a stored I-frame for every second", lambda group: group.jpeg_estimate),
    ("Re-encoded", "the re-encoded files", lambda group: group.reencoded),
    ("Source", "the source files, sound and all", lambda group: group.source),
)


def bytes_figure(stats: DatasetStats) -> go.Figure:
    """KiB of samples a second of video, by part: a bar for all, and one a subset."""
    groups = _groups(stats, lambda group: group.num_videos)
    if not groups:
        return style.nothing(_NO_SAMPLES)
    figure = _group_chart(groups)
    for name, colour, size_of in _PARTS:
        rates, hovers = [], []
        for group in groups:
            size = size_of(group)
            rate = (group.per_second(size) or 0.0) / 1024
            rates.append(rate)
            share = size / group.sample_bytes if group.sample_bytes else 0.0
            hovers.append(
                style.hover(
                    _name(group),
                    f"{name}: {rate:,.2f} KiB a second of video, {share:.1%}",
                    f"{format_bytes(size)} of {format_bytes(group.sample_bytes)} in {length(group.duration_s)}",
                )
            )
        figure.add_trace(_bars(groups, rates, hovers, name=name, colour=colour))
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title_text="KiB a second of video")
    return figure


def sizes_figure(stats: DatasetStats) -> go.Figure:
    """Samples over other forms of the same videos, on a logarithmic axis: a dot for all, small ones by subset."""
    total = stats.total
    rows = [(name, about, of) for name, about, of in _OTHERS if of(total).ratio]
    if not rows:
        return style.nothing(_NO_SAMPLES if not total.num_videos else "There is nothing to compare with.")
    figure = style.chart(num_rows=2 * len(rows), around_px=76)
    figure.update_layout(showlegend=False)
    style.rows_downward(figure, [name for name, _, _ in rows], [name for name, _, _ in rows])
    every: list[float] = [1.0]
    subsets = _subsets(stats)
    for name, about, of in rows:
        ratio = of(total).ratio or 1.0
        colour = style.TEAL if ratio <= 1 else style.ORANGE
        figure.add_trace(
            go.Scatter(
                x=[1, ratio],
                y=[name, name],
                mode="lines",
                line={"color": colour, "width": 4},
                hoverinfo="skip",
            )
        )
        ratios = [(group, of(group)) for group in subsets if of(group).ratio]
        every += [ratio, *(other.ratio or 1.0 for _, other in ratios)]
        for size, shown in ((8, ratios), (17, [(total, of(total))])):
            figure.add_trace(
                go.Scatter(
                    x=[other.ratio for _, other in shown],
                    y=[name] * len(shown),
                    mode="markers",
                    marker={
                        "color": colour,
                        "size": size,
                        "opacity": 1 if size > 8 else 0.45,
                        "line": {"width": 0},
                    },
                    hovertext=[_compared_hover(group, other, about) for group, other in shown],
                    hovertemplate="%{hovertext}<extra></extra>",
                )
            )
        # Beside the line at 1 ×, not across it.
        anchor = "center" if not 0.5 < ratio < 2 else "right" if ratio < 1 else "left"
        figure.add_annotation(
            x=math.log10(ratio),
            y=name,
            text=f"<b>{ratio:.3g} ×</b>",
            showarrow=False,
            xanchor=anchor,
            xshift={"right": 10, "left": -10}.get(anchor, 0),
            yshift=19,
        )
    figure.add_vline(x=1, line={"color": style.GREY, "width": 1.5, "dash": "dot"})
    low, high = min(every) / 1.5, max(every) * 1.5
    steps = _DECADES if high / low > 100 else _RATIO_TICKS  # a phone has room for five
    ticks = [tick for tick in steps if low <= tick <= high]
    figure.update_xaxes(
        type="log",
        range=[math.log10(low), math.log10(high)],
        tickmode="array",
        tickvals=ticks,
        ticktext=[f"{tick:g} ×" for tick in ticks],
        tickangle=0,
        title_text="samples over the other",
    )
    return figure


_DECADES = (0.001, 0.01, 0.1, 1, 10, 100, 1000)
_RATIO_TICKS = (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


def _compared_hover(group: GroupStats, other: Compared, about: str) -> str:
    return style.hover(
        _name(group),
        f"{other.ratio:,.3f} × {about}" if other.ratio else about,
        f"{format_bytes(other.sample_bytes)} against {format_bytes(other.other_bytes)}",
        f"of {other.num_videos:,} videos of which both are known",
    )


def questions_figure(stats: DatasetStats) -> go.Figure:
    """Questions by kind: a bar for all, and one a subset."""
    groups = _groups(stats, lambda group: sum(group.num_questions.values()))
    if not groups:
        return style.nothing("No question is about a listed video.")
    figure = _group_chart(groups)
    spare = [style.PINK, style.GOLD, style.RED, style.GREY]
    for number, kind in enumerate(sorted_kinds(stats.total.num_questions)):
        title = KIND_TITLES.get(kind, kind)
        hovers = [
            style.hover(
                _name(group),
                f"{style.text(title)}: {group.num_questions.get(kind, 0):,}",
                f"of {sum(group.num_questions.values()):,} questions about {group.num_listed:,} listed videos",
            )
            for group in groups
        ]
        counts = [group.num_questions.get(kind, 0) for group in groups]
        colour = _KIND_COLOURS.get(kind, spare[number % len(spare)])
        figure.add_trace(_bars(groups, counts, hovers, name=style.text(title), colour=colour))
    figure.update_layout(barmode="stack")
    longest = max(sum(group.num_questions.values()) for group in groups)
    figure.update_xaxes(title_text="questions", **_whole_ticks(longest))
    return figure


def sources_figure(stats: DatasetStats, what: str) -> go.Figure:
    """Re-encoded videos by a property of their source: `codec`, `resolution` or `frame_rate`."""
    shares = [share for share in stats.sources if share.what == what]
    if not shares:
        return style.nothing("Nothing is known of the sources: no video is re-encoded.")
    number = sum(share.num_videos for share in shares)
    rows = [(share.value, share.num_videos, share.duration_s) for share in shares[:MAX_VALUES]]
    rest = shares[MAX_VALUES:]
    if rest:
        rows.append(
            (
                f"{len(rest):,} others",
                sum(share.num_videos for share in rest),
                sum(share.duration_s for share in rest),
            )
        )
    figure = style.chart(num_rows=len(rows), around_px=76)
    keys = [value for value, _, _ in rows]
    style.rows_downward(figure, keys, keys)
    figure.add_trace(
        go.Bar(
            x=[videos for _, videos, _ in rows],
            y=keys,
            orientation="h",
            marker={"color": [style.BLUE] * (len(rows) - bool(rest)) + [style.GREY] * bool(rest)},
            text=[f" {videos / number:.1%}" for _, videos, _ in rows],
            textposition="outside",
            cliponaxis=False,
            hovertext=[
                style.hover(
                    f"{PROPERTIES.get(what, what)} {value}",
                    f"{videos:,} of {number:,} videos, {length(duration_s)}",
                )
                for value, videos, duration_s in rows
            ],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    )
    # Room for the longest bar's percentage.
    longest = max(videos for _, videos, _ in rows)
    figure.update_xaxes(title_text="videos", range=[0, 1.18 * longest], **_whole_ticks(longest))
    return figure


def token_figure(stats: DatasetStats) -> go.Figure:
    """Tokens a second of video at each density of key frames, and of dense RGB."""
    tokens, total = stats.tokens, stats.total
    if tokens is None or not total.duration_s:
        return style.nothing(_NO_SAMPLES)
    rows = [
        (
            f"{budget.key_frames} of {budget.num_anchors} key frames",
            budget.num_tokens,
            f" {budget.tokens_per_s:,.1f} ({budget.ratio:.0%})",
        )
        for budget in tokens.budgets
    ]
    dense = tokens.dense_rgb_tokens
    rows.append(("dense RGB, 1 FPS", dense, f" {dense / total.duration_s:,.1f}"))
    figure = style.chart(num_rows=len(rows), around_px=64)
    keys = [name for name, _, _ in rows]
    style.rows_downward(figure, keys, keys)
    rates = [number / total.duration_s for _, number, _ in rows]
    figure.add_trace(
        go.Bar(
            x=rates,
            y=keys,
            orientation="h",
            marker={"color": [style.TEAL] * len(tokens.budgets) + [style.GREY]},
            text=[label for _, _, label in rows],
            textposition="outside",
            cliponaxis=False,
            hovertext=[
                style.hover(
                    name,
                    f"{number / total.duration_s:,.1f} tokens a second of video",
                    f"{number:,} tokens of all videos once, {number / max(total.num_videos, 1):,.0f} a video",
                    f"{number / dense:.1%} of dense RGB" if dense else "",
                )
                for name, number, _ in rows
            ],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="tokens a second of video", range=[0, 1.4 * max(rates)])
    return figure


def failures_figure(stats: DatasetStats) -> go.Figure:
    """Share of listed videos that failed, or of which only a part could be used: for all, and by subset."""
    groups = _groups(stats, lambda group: group.num_listed)
    if not groups or not (stats.total.num_failed or stats.total.num_partial):
        return style.nothing("No video failed, and none is partial." if groups else "No video is listed.")
    figure = _group_chart(groups)
    outcomes: tuple[tuple[str, str, Callable[[GroupStats], int]], ...] = (
        ("Failed", style.RED, lambda group: group.num_failed),
        ("Partial", style.GOLD, lambda group: group.num_partial),
    )
    for name, colour, number_of in outcomes:
        if not number_of(stats.total):
            continue
        shares = [100 * number_of(group) / max(group.num_listed, 1) for group in groups]
        hovers = [
            style.hover(
                _name(group),
                f"{name}: {number_of(group):,} of {group.num_listed:,} videos, {share:.2f} %",
            )
            for group, share in zip(groups, shares, strict=True)
        ]
        figure.add_trace(_bars(groups, shares, hovers, name=name, colour=colour))
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title_text="% of listed videos")
    return figure


def _groups(stats: DatasetStats, size_of: Callable[[GroupStats], int]) -> list[GroupStats]:
    """All together, then the subsets; nothing if there is nothing in them."""
    if not size_of(stats.total):
        return []
    return [stats.total, *_subsets(stats)]


def _subsets(stats: DatasetStats) -> list[GroupStats]:
    """If there are several: those with the most videos, in the order of the statistics."""
    if len(stats.subsets) < 2:
        return []
    largest = sorted(stats.subsets, key=lambda group: -max(group.num_listed, group.num_videos))
    kept = {group.subset for group in largest[:MAX_SUBSETS]}
    return [group for group in stats.subsets if group.subset in kept]


def _group_chart(groups: Sequence[GroupStats]) -> go.Figure:
    figure = style.chart_with_legend(num_rows=len(groups))
    style.rows_downward(figure, _keys(groups), [_name(group) for group in groups])
    return figure


def _bars(
    groups: Sequence[GroupStats],
    values: Sequence[float],
    hovers: Sequence[str],
    *,
    name: str,
    colour: str,
) -> go.Bar:
    return go.Bar(
        x=list(values),
        y=_keys(groups),
        orientation="h",
        name=name,
        marker={"color": colour},
        hovertext=list(hovers),
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _whole_ticks(longest: int) -> dict[str, Any]:
    """No tick at half a video."""
    return {"dtick": 1} if longest < 8 else {}


def _keys(groups: Sequence[GroupStats]) -> list[str]:
    return style.row_keys([group.subset for group in groups])


def _name(group: GroupStats) -> str:
    return redacted(named(group.subset))
