"""The look of all charts: one palette for dark and light pages, a transparent background, nothing that distracts.

Every colour of a mark has a contrast of at least 3 : 1 against a white and against a near-black page, and
neighbours differ along blue - yellow, which colour-blind readers see. Text has the colour of the template; a page
may set its own (the report does by CSS, Streamlit by its theme).
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from cope_prep.pipeline.redact import redacted

BLUE, ORANGE, TEAL, PINK = "#3a86d4", "#cc7414", "#179a80", "#c2559d"
RED, GOLD, GREY = "#d5503e", "#a8871a", "#808894"
TEXT, GRID = "#767d89", "rgba(128, 136, 148, 0.28)"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

CONFIG: Mapping[str, Any] = {"displayModeBar": False, "displaylogo": False, "responsive": True}
"""For plotly's `config`: no tool bar, no logo, as wide as the page."""

_NAME_CHARS = 20
"""Of a tick label; the hover text has all of it."""
_ROW_PX = 30
_LEGEND_PX = 44
_AXIS = {
    "fixedrange": True,  # or a finger that scrolls the page would zoom the chart
    "gridcolor": GRID,
    "linecolor": GRID,
    "zeroline": False,
    "automargin": True,
    "title": {"font": {"size": 12}, "standoff": 8},
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 13, "color": TEXT},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "colorway": [BLUE, ORANGE, TEAL, PINK, RED, GOLD, GREY],
        "margin": {"l": 8, "r": 16, "t": 8, "b": 8},
        "bargap": 0.32,
        "dragmode": False,
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "font": {"family": FONT, "size": 13}},
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.01,
            "yanchor": "bottom",
            "traceorder": "normal",
            "itemclick": "toggle",
        },
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)


def text(value: str) -> str:
    """Any text as plotly must be given it: it takes tags for formatting."""
    return html.escape(value, quote=False)


def hover(title: str, *lines: str) -> str:
    """The text of a tooltip: a title that may hold anything, and lines of ours."""
    return "<br>".join([f"<b>{text(title)}</b>", *lines])


def chart(*, num_rows: int, around_px: int = 90) -> go.Figure:
    """An empty chart with room for horizontal rows, and for axis and legend around them."""
    return go.Figure(layout={"template": TEMPLATE, "height": num_rows * _ROW_PX + around_px})


def chart_with_legend(*, num_rows: int) -> go.Figure:
    """An empty chart with room for horizontal rows, the axis below them, and a legend above.

    The legend begins at the left edge of the chart: above the plot alone a phone has room for one entry a line.
    """
    figure = chart(num_rows=num_rows, around_px=_LEGEND_PX + 60)
    container = {"xref": "container", "yref": "container", "y": 1, "yanchor": "top"}
    figure.update_layout(showlegend=True, legend=container, margin={"t": _LEGEND_PX})
    return figure


def nothing(message: str) -> go.Figure:
    """A chart that says why there is none."""
    figure = go.Figure(layout={"template": TEMPLATE, "height": 90})
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.add_annotation(
        text=text(message), x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False, font={"size": 14}
    )
    return figure


def row_keys(subsets: Sequence[str | None]) -> list[str]:
    """For rows_downward: unique, whatever the subsets are called, and without credentials. None is all of them."""
    keys: list[str] = []
    for subset in subsets:
        key = "all" if subset is None else f"subset {redacted(subset)}"
        keys.append(key if key not in keys else f"{key} {len(keys)}")
    return keys


def rows_downward(figure: go.Figure, keys: Sequence[str], labels: Sequence[str], **where: Any) -> None:
    """Make the y axis one of named rows, the first on top. Keys are unique; labels are what is shown."""
    figure.update_yaxes(
        type="category",  # or subsets that are named 2019 and 2020 would lie on a scale
        categoryorder="array",
        categoryarray=list(keys),
        autorange="reversed",
        tickmode="array",
        tickvals=list(keys),
        ticktext=[text(shortened(label)) for label in labels],
        showgrid=False,
        tickfont={"size": 12},
        ticklabelstandoff=6,
        **where,
    )


def shortened(label: str) -> str:
    """A name that leaves a phone room for the bars: the middle goes, as names differ at both ends."""
    if len(label) <= _NAME_CHARS:
        return label
    half = (_NAME_CHARS - 1) // 2
    return f"{label[: _NAME_CHARS - 1 - half]}…{label[-half:]}"
