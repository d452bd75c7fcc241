"""The tokens of one GOP to scale: a row a density of key frames, and one of dense RGB."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from cope_prep.jobs.dashboard import chart_style as style
from cope_prep.pipeline.clip_tokens import TokenRow, TokenRun

_KINDS = {
    "I": (style.BLUE, "Key frame"),
    "Δ": (style.ORANGE, "Δ: motion and residual"),
    "RGB": (style.GREY, "Picture of dense RGB"),
}
"""Kind of a run -> colour and title."""
_ROW_PX = 54
_MAX_EDGED = 64
_WORDS_PX = 105
"""Right of the longest bar, for its number: as wide on a small screen as on a large one."""
_BAR_SHARE = 0.72
"""Of a row's height."""


def token_figure(rows: Sequence[TokenRow], *, pictures: Mapping[int, bytes]) -> go.Figure:
    """Each row as blocks as wide as their tokens; `pictures` are JPEGs by anchor, for the key frames."""
    figure = go.Figure(
        data=[_blocks(rows, kind) for kind in _KINDS],
        layout={
            "template": style.TEMPLATE,
            "height": len(rows) * _ROW_PX + 70,
            "barmode": "overlay",
            "bargap": 1 - _BAR_SHARE,
            "margin": {"r": _WORDS_PX},
            "legend": {"itemclick": False, "itemdoubleclick": False},
            "xaxis": {"title": {"text": "tokens"}, "range": [0, max(row.num_tokens for row in rows)]},
            "images": [
                _picture(run, number, pictures[run.anchor])
                for number, row in enumerate(rows)
                for run in row.runs
                if run.kind != "Δ" and run.anchor is not None and run.anchor in pictures
            ],
            "annotations": [
                {
                    "x": row.num_tokens,
                    "y": row.name,
                    "text": f" <b>{row.num_tokens:,}</b> {row.about}",
                    "showarrow": False,
                    "xanchor": "left",
                    "font": {"size": 13},
                }
                for row in rows
            ],
        },
    )
    names = [row.name for row in rows]
    style.rows_downward(figure, names, names)
    return figure


def _blocks(rows: Sequence[TokenRow], kind: str) -> dict[str, Any]:
    colour, title = _KINDS[kind]
    blocks = [(row, run) for row in rows for run in row.runs if run.kind == kind]
    return {
        "type": "bar",
        "orientation": "h",
        "x": [run.num_tokens for _, run in blocks],
        "base": [run.first_token for _, run in blocks],
        "y": [row.name for row, _ in blocks],
        "name": title,
        "marker": {
            "color": colour,
            # Of narrow blocks there would be nothing left but their edges.
            "line": {"color": "rgba(255, 255, 255, 0.75)", "width": int(len(blocks) <= _MAX_EDGED)},
        },
        "hovertext": [
            style.hover(title, f"{run.num_tokens} tokens, at {run.time_s:.2f} s") for _, run in blocks
        ],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def _picture(run: TokenRun, row: int, content: bytes) -> dict[str, Any]:
    """A key frame in its block, whose colour stays visible as a frame around it."""
    return {
        "source": f"data:image/jpeg;base64,{base64.b64encode(content).decode()}",
        "xref": "x",
        "yref": "y",
        "x": run.first_token + run.num_tokens / 2,
        "y": row,
        "sizex": 0.95 * run.num_tokens,
        "sizey": 0.88 * _BAR_SHARE,
        "xanchor": "center",
        "yanchor": "middle",
        "sizing": "fill",
        "layer": "above",
    }
