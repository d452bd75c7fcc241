"""Charts of one clip: what is recorded of each anchor, and what it is to a language model.

window_figure    bytes, motion, shares, residual energy, PSNR and clipping along the video, one anchor marked
token_figure     the tokens of one GOP at each density of key frames, to scale, against dense RGB
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from cope_prep.jobs.dashboard import chart_style as style
from cope_prep.pipeline.video_samples import GopFigures

_OTHER_OPACITY = 0.5
"""Of the anchors that are not the marked one."""
_ROW_PX = 150
_MAX_LARGE = 60
"""With more anchors their dots are small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Series:
    """One bar an anchor."""

    name: str
    colour: str
    of_window: Callable[[GopFigures, int], float]
    of_iframe: Callable[[GopFigures], float] | None = None
    """None: an I-frame has none."""
    as_dots: bool = False
    """Where zero means nothing, a bar would."""


def _figure(name: str) -> Callable[[GopFigures, int], float]:
    return lambda gop, window: gop.windows[name][window]


def _share(name: str) -> Callable[[GopFigures, int], float]:
    return lambda gop, window: 100 * gop.windows[name][window]


_PANELS: tuple[tuple[str, str, tuple[_Series, ...]], ...] = (
    (
        "Stored bytes",
        "kB",
        (
            _Series(
                name="I-frame",
                colour=style.BLUE,
                of_window=lambda gop, window: 0,
                of_iframe=lambda gop: gop.iframe_bytes / 1000,
            ),
            _Series(
                name="motion",
                colour=style.TEAL,
                of_window=lambda gop, window: gop.motion_bytes / gop.num_windows / 1000,
            ),
            _Series(
                name="residual",
                colour=style.ORANGE,
                of_window=lambda gop, window: gop.residual_bytes[window] / 1000,
            ),
        ),
    ),
    (
        "Motion",
        "px",
        (
            _Series(name="95th percentile", colour=style.GOLD, of_window=_figure("motion_p95_px")),
            _Series(name="mean", colour=style.TEAL, of_window=_figure("motion_mean_px")),
        ),
    ),
    (
        "Blocks",
        "%",
        (
            _Series(name="zero motion", colour=style.GREY, of_window=_share("zero_motion_share")),
            _Series(name="intra", colour=style.PINK, of_window=_share("intra_share")),
        ),
    ),
    (
        "Residual energy",
        "grey levels²",
        (_Series(name="mean square", colour=style.ORANGE, of_window=_figure("residual_energy")),),
    ),
    (
        "PSNR of the rebuilt luma",
        "dB",
        (
            _Series(
                name="PSNR",
                colour=style.BLUE,
                of_window=_figure("psnr_y_db"),
                of_iframe=lambda gop: gop.iframe_psnr_y_db,
                as_dots=True,
            ),
        ),
    ),
    (
        "Clipped",
        "",
        (
            _Series(name="vectors", colour=style.RED, of_window=_figure("clipped_vectors")),
            _Series(name="residual values", colour=style.PINK, of_window=_figure("clipped_residuals")),
        ),
    ),
)
_OVERLAID = {"Motion"}
"""The mean is part of the 95th percentile's bar; other series of a panel lie on top of each other."""
_NUM_COLUMNS = 3
_NUM_ROWS = -(-len(_PANELS) // _NUM_COLUMNS)
_GAP = (0.055, 0.2)
"""Between panels, as shares of width and height."""


def window_figure(
    figures: Sequence[GopFigures], *, anchor_s: float, place: int, labels: Sequence[str]
) -> go.Figure:
    """Bars along the video, an anchor every `anchor_s` seconds; `labels` names each anchor, `place` is marked."""
    times = [gop.start_s + anchor * anchor_s for gop in figures for anchor in range(gop.num_anchors)]
    opacity = [1.0 if number == place else _OTHER_OPACITY for number in range(len(times))]
    traces: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    shapes: list[dict[str, Any]] = []
    axes: dict[str, Any] = {}
    for number, (title, unit, series) in enumerate(_PANELS):
        axis = str(number + 1) if number else ""
        values = [_values(one, figures) for one in series]
        known = [value for of_one in values for value in of_one if value is not None]
        axes |= _axes(number, _y_range(unit, known, as_dots=series[0].as_dots), times, anchor_s=anchor_s)
        place_of = {"xref": f"x{axis} domain", "yref": f"y{axis} domain", "showarrow": False}
        annotations.append(
            {**place_of, "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"}
            | {"text": _heading(title, unit, series), "font": {"size": 13}}
        )
        if not any(known):
            annotations.append({**place_of, "x": 0.5, "y": 0.5, "text": "none", "font": {"size": 13}})
        shapes += _marks(figures, f"x{axis}", f"y{axis} domain", at_s=times[place], anchor_s=anchor_s)
        for one, of_one in zip(series, values, strict=True):
            hovers = [
                style.hover(label, f"{one.name}: {'none' if value is None else f'{value:,.4g} {unit}'}")
                for label, value in zip(labels, of_one, strict=True)
            ]
            traces.append(
                {"x": times, "y": of_one, "xaxis": f"x{axis}", "yaxis": f"y{axis}", "name": one.name}
                | {"hovertext": hovers, "hovertemplate": "%{hovertext}<extra></extra>"}
                | _mark(one, opacity, anchor_s=anchor_s, overlaid=title in _OVERLAID)
            )
    return go.Figure(
        data=traces,
        layout={
            **axes,
            "template": style.TEMPLATE,
            "height": _NUM_ROWS * _ROW_PX + 70,
            "barmode": "stack",
            "margin": {"l": 8, "r": 8, "t": 30, "b": 8},
            "showlegend": False,
            "annotations": annotations,
            "shapes": shapes,
        },
    )


def _mark(one: _Series, opacity: list[float], *, anchor_s: float, overlaid: bool) -> dict[str, Any]:
    marker = {"color": one.colour, "opacity": opacity, "line": {"width": 0}}
    if one.as_dots:
        return {
            "type": "scatter",
            "mode": "markers",
            "marker": marker | {"size": 9 if len(opacity) <= _MAX_LARGE else 4},
        }
    # Two bars of one place with their own bases and offsets are not stacked.
    own = {"offset": -0.4 * anchor_s, "offsetgroup": one.name, "base": 0} if overlaid else {}
    return {"type": "bar", "width": 0.8 * anchor_s, "marker": marker} | own


def _axes(
    number: int, y_range: list[float] | None, times: Sequence[float], *, anchor_s: float
) -> dict[str, Any]:
    """Both axes of a panel, in its part of the page."""
    row, col = divmod(number, _NUM_COLUMNS)
    width = (1 - _GAP[0] * (_NUM_COLUMNS - 1)) / _NUM_COLUMNS
    height = (1 - _GAP[1] * (_NUM_ROWS - 1)) / _NUM_ROWS
    left, top = col * (width + _GAP[0]), 1 - row * (height + _GAP[1])
    axis = str(number + 1) if number else ""
    return {
        f"xaxis{axis}": {
            "anchor": f"y{axis}",
            "domain": [left, left + width],
            "range": [times[0] - 0.6 * anchor_s, times[-1] + 0.6 * anchor_s],
            "showgrid": False,
            "showticklabels": row == _NUM_ROWS - 1,
            "ticksuffix": " s",
        },
        f"yaxis{axis}": {
            "anchor": f"x{axis}",
            "domain": [max(0, top - height), top],
            "nticks": 4,
            "rangemode": "tozero",
            **({} if y_range is None else {"range": y_range}),
        },
    }


def _y_range(unit: str, known: Sequence[float], *, as_dots: bool) -> list[float] | None:
    if as_dots:
        return [5 * math.floor(min(known) / 5) - 2, max(known) + 2]
    if unit == "%":
        return [0, 100]
    return None if any(known) else [0, 1]


def _marks(
    figures: Sequence[GopFigures], x: str, y: str, *, at_s: float, anchor_s: float
) -> list[dict[str, Any]]:
    """The marked anchor's background, and a line before each I-frame but the first."""
    whole = {"xref": x, "yref": y, "y0": 0, "y1": 1, "layer": "below"}
    ends = {"x0": at_s - anchor_s / 2, "x1": at_s + anchor_s / 2}
    lines = [
        {**whole, "type": "line", "x0": gop.start_s - anchor_s / 2, "x1": gop.start_s - anchor_s / 2}
        | {"line": {"color": style.GREY, "width": 1, "dash": "dot"}}
        for gop in figures[1:]
    ]
    marked = {"type": "rect", "fillcolor": style.GREY, "opacity": 0.18, "line": {"width": 0}}
    return [whole | ends | marked, *lines]


def _heading(title: str, unit: str, series: Sequence[_Series]) -> str:
    """Title, unit, and the series in their colours: a legend would be far from its bars."""
    text = f"<b>{title}</b>{f', {unit}' if unit else ''}"
    if len(series) == 1:
        return text
    return f"{text}: " + "  ".join(f"<span style='color:{one.colour}'>{one.name}</span>" for one in series)


def _values(one: _Series, figures: Sequence[GopFigures]) -> list[float | None]:
    """One an anchor; None where an I-frame has none."""
    found: list[float | None] = []
    for gop in figures:
        found.append(None if one.of_iframe is None else one.of_iframe(gop))
        found += [one.of_window(gop, window) for window in range(gop.num_windows)]
    return found
