"""A figure's distribution: a histogram over all windows or videos, and a box for all and for each subset below it.

The histogram's edges are not evenly spaced (0, 1/4, 1/2, 1, 2, 4 ... px), its bars are: the axis runs from edge to
edge, so that the many small values can be told apart and the few large ones are seen. The boxes lie on the same
axis, between edges in proportion.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cope_prep.jobs.dashboard import chart_style as style
from cope_prep.jobs.stats_words import FIGURES, in_unit, shown
from cope_prep.pipeline.finding_shares import named
from cope_prep.pipeline.redact import redacted
from cope_prep.pipeline.stats_records import DatasetStats, Distribution

MAX_BOXES = 24
_HISTOGRAM_PX = 190
_BOX_PX = 26
_AROUND_PX = 80
_NUM_TICKS = 9
"""About as many fit the width of a phone."""


def distribution_figure(stats: DatasetStats, name: str) -> go.Figure:
    """The distribution of one figure of `stats.distributions`, for instance `motion_mean_px`."""
    found = [one for one in stats.distributions if one.name == name]
    whole = next((one for one in found if one.subset is None), None)
    if whole is None:
        return style.nothing("There is no value of this figure.")
    subsets = [one for one in found if one.subset is not None]
    if len(subsets) < 2:
        subsets = []
    kept = {id(one) for one in sorted(subsets, key=lambda one: -one.count)[:MAX_BOXES]}
    boxes = [whole, *(one for one in subsets if id(one) in kept)]
    boxes_px = len(boxes) * _BOX_PX + 12
    figure = make_subplots(
        rows=2,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.03,
        row_heights=[_HISTOGRAM_PX, boxes_px],
    )
    figure.update_layout(
        template=style.TEMPLATE,
        height=_HISTOGRAM_PX + boxes_px + _AROUND_PX,
        showlegend=False,
        bargap=0.06,
        barmode="overlay",
    )
    _add_histogram(figure, whole)
    _add_boxes(figure, boxes)
    _set_axes(figure, whole)
    return figure


def _add_histogram(figure: go.Figure, whole: Distribution) -> None:
    counts = whole.histogram.counts
    shares = [100 * count / whole.count for count in counts]
    figure.add_trace(
        go.Bar(
            x=[index - 0.5 for index in range(len(counts))],
            y=shares,
            marker={"color": style.BLUE},
            hovertext=[
                style.hover(
                    _range(whole, index),
                    f"{count:,} of {whole.count:,} {whole.of}s, {share:.2f} %",
                )
                for index, (count, share) in enumerate(zip(counts, shares, strict=True))
            ],
            hovertemplate="%{hovertext}<extra></extra>",
        ),
        row=1,
        col=1,
    )
    figure.update_yaxes(title_text=f"% of {whole.of}s", rangemode="tozero", nticks=5, row=1, col=1)


def _add_boxes(figure: go.Figure, boxes: Sequence[Distribution]) -> None:
    edges = boxes[0].histogram.edges
    keys = style.row_keys([one.subset for one in boxes])
    labels = [redacted(named(one.subset)) for one in boxes]
    style.rows_downward(figure, keys, labels, row=2, col=1)
    hovers = [_box_hover(label, one) for label, one in zip(labels, boxes, strict=True)]
    tooltip = {"hovertext": hovers, "hovertemplate": "%{hovertext}<extra></extra>"}
    whiskers_x: list[float | None] = []
    whiskers_y: list[str | None] = []
    for key, one in zip(keys, boxes, strict=True):
        for ends in ((one.minimum, one.p25), (one.p75, one.p95)):
            whiskers_x += [*(place(value, edges) for value in ends), None]
            whiskers_y += [key, key, None]
    figure.add_trace(
        go.Scatter(
            x=whiskers_x,
            y=whiskers_y,
            mode="lines",
            line={"color": style.GREY, "width": 2},
            hoverinfo="skip",
        ),
        row=2,
        col=1,
    )
    lows = [place(one.p25, edges) for one in boxes]
    figure.add_trace(
        go.Bar(
            base=lows,
            # A box of no width is still drawn: half the values may be alike.
            x=[max(place(one.p75, edges) - low, 0.08) for one, low in zip(boxes, lows, strict=True)],
            y=keys,
            orientation="h",
            width=0.56,
            marker={"color": [style.BLUE if one.subset is None else style.TEAL for one in boxes]},
            **tooltip,
        ),
        row=2,
        col=1,
    )
    figure.add_trace(
        go.Scatter(
            x=[place(one.median, edges) for one in boxes],
            y=keys,
            mode="markers",
            marker={"symbol": "line-ns", "size": 7, "line": {"color": "white", "width": 2.5}},
            **tooltip,
        ),
        row=2,
        col=1,
    )
    figure.add_trace(
        go.Scatter(
            x=[place(one.maximum, edges) for one in boxes],
            y=keys,
            mode="markers",
            marker={"symbol": "circle", "size": 6, "color": style.GREY},
            **tooltip,
        ),
        row=2,
        col=1,
    )


def _set_axes(figure: go.Figure, whole: Distribution) -> None:
    edges, counts = whole.histogram.edges, whole.histogram.counts
    filled = [index for index, count in enumerate(counts) if count]
    first, last = filled[0] - 1, filled[-1]  # bin k lies from k - 1 to k
    ticks: list[tuple[float, str]] = []
    if first < 0:
        at_most = "" if edges[0] == 0 else "≤ "  # nothing is below 0
        ticks.append((-0.5, at_most + _label(whole.name, edges[0])))
    inner = list(range(max(first, 0), min(last, len(edges) - 1) + 1))
    if first < 0 and edges[0] == 0:
        inner = [index for index in inner if index > 0]
    step = -(-len(inner) // _NUM_TICKS) if inner else 1
    ticks += [(float(index), _label(whole.name, edges[index])) for index in inner[::step]]
    if last == len(edges):
        ticks = [tick for tick in ticks if tick[0] != len(edges) - 1]  # its label would touch this one
        beyond = "100" if whole.name == "psnr_y_db" else f"> {_label(whole.name, edges[-1])}"
        ticks.append((len(edges) - 0.5, beyond))
    figure.update_xaxes(
        range=[first - 0.15, last + 0.15],
        tickmode="array",
        tickvals=[at for at, _ in ticks],
        ticktext=[label for _, label in ticks],
        showgrid=True,
        tickangle=0,
    )
    title, unit = FIGURES[whole.name]
    figure.update_xaxes(title_text=f"{title}, {unit}", row=2, col=1)


def place(value: float, edges: Sequence[float]) -> float:
    """Where a value lies if edge k lies at k: between edges in proportion, beyond them half a bin out."""
    above = bisect_left(edges, value)
    if above == 0:
        return -0.5
    if above == len(edges):
        return len(edges) - 0.5
    low, high = edges[above - 1], edges[above]
    return above - 1 + (value - low) / (high - low)


def _range(one: Distribution, index: int) -> str:
    edges, unit = one.histogram.edges, FIGURES[one.name][1]
    if index == 0:
        return f"{'' if edges[0] == 0 else 'up to '}{_label(one.name, edges[0])} {unit}"
    if index == len(edges):
        return f"above {_label(one.name, edges[-1])} {unit}"
    return f"above {_label(one.name, edges[index - 1])} up to {_label(one.name, edges[index])} {unit}"


def _box_hover(label: str, one: Distribution) -> str:
    unit = FIGURES[one.name][1]
    values = {
        "maximum": one.maximum,
        "95 %": one.p95,
        "75 %": one.p75,
        "median": one.median,
        "25 %": one.p25,
        "minimum": one.minimum,
        "mean": one.mean,
    }
    lines = [f"{name}: {shown(one.name, value)} {unit}" for name, value in values.items()]
    return style.hover(label, *lines, f"of {one.count:,} {one.of}s")


def _label(name: str, edge: float) -> str:
    """An edge as it is, in the figure's unit."""
    return f"{in_unit(name, edge):.6g}"
