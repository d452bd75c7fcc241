"""Charts of two outputs beside each other: bytes by part, and how the figures of their windows are distributed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from cope_prep.jobs.dashboard import chart_style as style
from cope_prep.jobs.stats_words import FIGURES, in_unit
from cope_prep.pipeline.compare import distribution_of
from cope_prep.pipeline.stats_records import DatasetStats, Distribution

SIDE_COLOURS = (style.BLUE, style.ORANGE)
"""Of the left and the right one, in every chart but that of the parts."""
SHOWN = ("psnr_y_db", "residual_energy", "motion_mean_px", "zero_motion_share")
_PART_COLOURS = {
    "I-frames": style.BLUE,
    "Motion": style.TEAL,
    "Residuals": style.ORANGE,
    "Overhead": style.GREY,
}
_KIB = 1024
_HISTOGRAM_PX = 250
_MAX_TICKS = 6
"""More would run into each other."""


def bytes_figure(sides: Sequence[tuple[str, DatasetStats]]) -> go.Figure:
    """KiB of samples a second of video, by part: one bar a side. Names must differ."""
    rates = [_parts(stats) for _, stats in sides]
    if not any(total for total in map(sum, (rate.values() for rate in rates))):
        return style.nothing("Neither has samples in shards.")
    figure = style.chart(num_rows=2 * len(sides), around_px=80)
    names = [name for name, _ in sides]
    style.rows_downward(figure, names, names)
    for part, colour in _PART_COLOURS.items():
        figure.add_trace(
            go.Bar(
                x=[rate[part] for rate in rates],
                y=names,
                orientation="h",
                name=part,
                marker={"color": colour},
                hovertext=[
                    style.hover(name, f"{part}: {rate[part]:,.2f} KiB a second of video")
                    for name, rate in zip(names, rates, strict=True)
                ],
                hovertemplate="%{hovertext}<extra></extra>",
            )
        )
    totals = [sum(rate.values()) for rate in rates]
    for name, total in zip(names, totals, strict=True):
        figure.add_annotation(x=total, y=name, text=f" <b>{total:,.1f}</b>", showarrow=False, xanchor="left")
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title_text="KiB a second of video", range=[0, 1.12 * max(totals)])
    return figure


def distribution_figure(name: str, sides: Sequence[tuple[str, DatasetStats]]) -> go.Figure:
    """A figure's histograms, as shares of each side's windows."""
    found = [(side, distribution_of(stats, name)) for side, stats in sides]
    there = [(side, one) for side, one in found if one is not None]
    if not there:
        return style.nothing("Neither has windows.")
    first, last = _filled([one for _, one in there])
    figure = go.Figure(layout={"template": style.TEMPLATE, "height": _HISTOGRAM_PX, "barmode": "group"})
    labels = _bin_labels(name, there[0][1])[first : last + 1]
    for (side, one), colour in zip(found, SIDE_COLOURS, strict=False):
        if one is None:
            continue
        shares = [100 * count / one.count for count in one.histogram.counts[first : last + 1]]
        figure.add_trace(
            go.Bar(
                x=labels,
                y=shares,
                name=style.text(side),
                marker={"color": colour},
                hovertext=[
                    style.hover(side, f"{label}: {share:.1f} % of {one.count:,} windows")
                    for label, share in zip(labels, shares, strict=True)
                ],
                hovertemplate="%{hovertext}<extra></extra>",
            )
        )
    figure.update_layout(bargap=0.18, bargroupgap=0.04)
    shown = labels[:: -(-len(labels) // _MAX_TICKS)]
    figure.update_xaxes(
        type="category",
        title_text=FIGURES[name][1],
        tickangle=0,
        tickvals=shown,
        ticktext=shown,
        showgrid=False,
    )
    figure.update_yaxes(title_text="% of windows")
    return figure


def _parts(stats: DatasetStats) -> dict[str, float]:
    total = stats.total
    sizes = (total.iframe_bytes, total.motion_bytes, total.residual_bytes, total.overhead_bytes)
    return {
        part: (total.per_second(size) or 0.0) / _KIB for part, size in zip(_PART_COLOURS, sizes, strict=True)
    }


def _filled(found: Sequence[Distribution]) -> tuple[int, int]:
    """First and last bin with a value in any of them."""
    bins: list[Any] = [index for one in found for index, count in enumerate(one.histogram.counts) if count]
    return min(bins, default=0), max(bins, default=0)


def _bin_labels(name: str, one: Distribution) -> list[str]:
    edges = [f"{in_unit(name, edge):g}" for edge in one.histogram.edges]
    between = [f"{low}–{high}" for low, high in itertools.pairwise(edges)]
    return [f"≤ {edges[0]}", *between, f"> {edges[-1]}"]
