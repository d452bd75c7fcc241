"""What the pages have in common: errors as one line, tables that are read once, links to a clip."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import pandas as pd
import plotly.graph_objects as go
import pyarrow as pa
import streamlit as st

from cope_prep.jobs.dashboard.chart_style import CONFIG
from cope_prep.jobs.dashboard.kept import Keeper
from cope_prep.jobs.dashboard.opened import Opened
from cope_prep.jobs.dashboard.words import clock_time, plain
from cope_prep.pipeline.redact import redacted
from cope_prep.schemas.errors import CopePrepError

T = TypeVar("T")

_LOG = logging.getLogger("cope_prep.dashboard")
_NAME_CHARS = 60
_FONT = '"Source Sans", sans-serif'
"""Streamlit's."""


def set_pages(pages: Mapping[str, Any]) -> None:
    """Remember the session's pages, for links between them."""
    st.session_state["_pages"] = dict(pages)


def set_spec(spec_hash: str) -> None:
    """Remember which specs the session is about, for links; empty if there is nothing to choose."""
    st.session_state["_spec"] = spec_hash


def chosen_spec() -> str:
    """What was given to `set_spec`: without it a link would show another set of specs."""
    return st.session_state.get("_spec", "")


def clip_query(video_id: str) -> dict[str, str]:
    """The query of the page Clip for a video, with the chosen specs."""
    spec = chosen_spec()
    return {"video": video_id} | ({"spec": spec} if spec else {})


def clip_link(video_id: str, *, label: str = "Open the clip") -> None:
    """A link to the page Clip for a video, in the same tab."""
    page = st.session_state.get("_pages", {}).get("clip")
    if page is not None:
        st.page_link(page, label=label, icon=":material/movie:", query_params=clip_query(video_id))


def chart(figure: go.Figure, *, key: str) -> None:
    """Draw a chart of chart_style's, in the page's own font."""
    figure.update_layout(font_family=_FONT, hoverlabel_font_family=_FONT)
    st.plotly_chart(figure, theme=None, config=dict(CONFIG), key=key)


def table(
    rows: pd.DataFrame | pa.Table,
    *,
    key: str,
    columns: Mapping[str, Any] | None = None,
    place: Any = st,
    **options: Any,
) -> Any:
    """Draw a table, there or here; what is not known is a dash. Its element has the class `st-key-table-KEY`."""
    return place.container(key=f"table-{key}").dataframe(
        rows, key=key, hide_index=True, placeholder="–", column_config=dict(columns or {}), **options
    )


def clip_column() -> Any:
    """The configuration of a column of `words.clip_url`s."""
    return st.column_config.LinkColumn("Clip", display_text="open", width=60, help="The clip, in a new tab.")


def short_name(dataset: str) -> str:
    """A dataset's URL without credentials, and without its middle if it is long."""
    name = redacted(dataset)
    if len(name) <= _NAME_CHARS:
        return name
    half = _NAME_CHARS // 2
    return f"{name[:half]}…{name[-half:]}"


@contextlib.contextmanager
def errors_shown(*, part: str = "page") -> Iterator[None]:
    """What goes wrong inside is one line on the page, and a button to try again.

    `part` is a name of its own for each part of a page that can go wrong beside others.
    """
    try:
        yield
    except CopePrepError as exc:
        _show_error(str(exc), part=part)
    except Exception as exc:
        # Not one of ours: the terminal has the traceback, and the page no path or credential of it.
        _LOG.exception("a page failed")
        _show_error(f"{type(exc).__name__}: the terminal of cope-prep dashboard has the details.", part=part)


def _show_error(message: str, *, part: str) -> None:
    st.error(plain(message), icon=":material/error:")
    st.button("Try again", icon=":material/refresh:", key=f"try-again-{part}")


def load(keeper: Keeper[T], opened: Opened, *, words: str) -> T:
    """What a keeper has of the dataset, with a spinner while it is made, and a word if it is behind.

    Raises:
        CopePrepError: it could not be made.
    """
    with st.spinner(words, show_time=True):
        kept = keeper.get(opened.layout)
    if kept.is_behind:
        st.sidebar.caption(f"The tables have changed since {clock_time(kept.made_unix_s)}.")
        if st.sidebar.button("Read them again", icon=":material/refresh:", width="stretch"):
            with st.spinner(words, show_time=True):
                keeper.get(opened.layout, anew=True)
            st.rerun()
    return kept.value
