"""Explore: every video as a row, to filter, sort and page through. Each page of rows comes from DuckDB."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import pyarrow as pa
import streamlit as st

from cope_prep.jobs.dashboard import kept, shared
from cope_prep.jobs.dashboard.opened import Opened
from cope_prep.jobs.dashboard.words import clip_url, counted, plain
from cope_prep.pipeline.explore import Between, Contains, Filter, OneOf, VideoTable
from cope_prep.pipeline.explore_table import Column

PAGE_SIZES = (25, 50, 100, 250)
WORDS = "Reading index, ledgers and questions. With 178,000 videos that takes some seconds, once."
_FILTERS = ("video_id", "subset", "error_class")
"""What can be filtered without asking for it."""
_HIDDEN = ("num_windows", "psnr_mean_db", "source_bytes", "error_message")
"""What is shown when asked for."""
_KEEP = "session"
"""Of every widget: what was chosen is still so after a look at another page."""
_UNKNOWN = "(not known)"
_FORMATS = {
    "s": "%.1f s",
    "px": "%.2f",
    "dB": "%.1f",
    "share": "percent",
    "grey²": "%.1f",
    "B": "bytes",
    "B/s": "bytes",
}


def show(opened: Opened) -> None:
    """Draw the page."""
    videos = shared.load(kept.VIDEOS, opened, words=WORDS)
    filters = _ask_filters(videos)
    sort, descending, page_size, shown = _ask_view(videos)
    page, key = _page_number(filters, sort, descending, page_size)
    found = videos.find(
        filters, sort=sort, descending=descending, offset=(page - 1) * page_size, limit=page_size
    )
    num_pages = max(1, -(-found.num_matches // page_size))
    _rows(videos, found.rows, shown, found.num_matches, page, page_size)
    left, right = st.columns([4, 1], vertical_alignment="center")
    with left:
        st.pagination(num_pages, default=min(page, num_pages), key=key, max_visible_pages=9)
    with right.container(horizontal_alignment="right"):
        st.download_button(
            "Download all",
            lambda: videos.csv(filters, sort=sort, descending=descending),
            file_name="videos.csv",
            mime="text/csv",
            on_click="ignore",
            icon=":material/download:",
            disabled=not found.num_matches,
            help=f"{counted(found.num_matches, 'video')} with every column, as CSV.",
        )


def _ask_filters(videos: VideoTable) -> list[Filter]:
    chosen = st.multiselect(
        "Filter by",
        list(videos.columns),
        default=list(_FILTERS),
        format_func=lambda name: videos.columns[name].title,
        key="filter-by",
        persist_state=_KEEP,
    )
    filters: list[Filter] = []
    width = 3
    for start in range(0, len(chosen), width):
        for place, name in zip(st.columns(width), chosen[start : start + width], strict=False):
            with place:
                one = _ask_filter(videos, videos.columns[name])
            if one is not None:
                filters.append(one)
    return filters


def _ask_filter(videos: VideoTable, column: Column) -> Filter | None:
    label, key = _label(column), f"filter-{column.name}"
    match column.kind:
        case "text":
            text = st.text_input(f"{label} contains", key=key, persist_state=_KEEP, help=column.help or None)
            return Contains(column=column.name, text=text) if text else None
        case "category":
            counts = dict(videos.categories(column.name))
            values = st.multiselect(
                label,
                list(counts),
                format_func=lambda value: f"{_UNKNOWN if value is None else value} · {counts[value]:,}",
                key=key,
                persist_state=_KEEP,
                placeholder="All",
                help=column.help or None,
            )
            return OneOf(column=column.name, values=tuple(values)) if values else None
        case "number":
            return _ask_bounds(videos, column, label, key)


def _ask_bounds(videos: VideoTable, column: Column, label: str, key: str) -> Between | None:
    bounds = videos.bounds(column.name)
    if bounds is None:
        st.text_input(label, value="no video has it", disabled=True, key=key)
        return None
    scale = 100.0 if column.unit == "share" else 1.0
    low_place, high_place = st.columns(2)
    low = low_place.number_input(
        f"{label} from",
        value=None,
        placeholder=f"{bounds[0] * scale:.4g}",
        key=f"{key}-low",
        persist_state=_KEEP,
        help=column.help or None,
    )
    high = high_place.number_input(
        "to",
        value=None,
        placeholder=f"{bounds[1] * scale:.4g}",
        key=f"{key}-high",
        persist_state=_KEEP,
    )
    if low is None and high is None:
        return None
    return Between(
        column=column.name,
        low=None if low is None else low / scale,
        high=None if high is None else high / scale,
    )


def _label(column: Column) -> str:
    unit = "%" if column.unit == "share" else column.unit
    return f"{column.title} ({unit})" if unit else _title(column)


def _title(column: Column) -> str:
    # Where Markdown is drawn: a kind of question may be named anything.
    return plain(column.title) if column.csv_name else column.title


def _ask_view(videos: VideoTable) -> tuple[str, bool, int, list[str]]:
    sort_place, direction_place, size_place, columns_place = st.columns(
        [2, 2, 1, 2], vertical_alignment="bottom"
    )
    sort = sort_place.selectbox(
        "Sort by",
        list(videos.columns),
        format_func=lambda name: videos.columns[name].title,
        key="sort",
        persist_state=_KEEP,
    )
    direction = direction_place.segmented_control(
        "Order",
        ["ascending", "descending"],
        default="ascending",
        required=True,
        key="order",
        persist_state=_KEEP,
    )
    page_size = size_place.selectbox("Rows", PAGE_SIZES, index=1, key="page-size", persist_state=_KEEP)
    with columns_place.popover("Columns", icon=":material/view_column:", width="stretch"):
        shown = st.pills(
            "Columns",
            list(videos.columns),
            default=[name for name in videos.columns if name not in _HIDDEN],
            selection_mode="multi",
            format_func=lambda name: _title(videos.columns[name]),
            key="columns",
            persist_state=_KEEP,
            label_visibility="collapsed",
        )
    return sort, direction == "descending", page_size, shown


def _page_number(filters: Sequence[Filter], sort: str, descending: bool, page_size: int) -> tuple[int, str]:
    """The page that is shown, and the key of its widget: a new one, on the first page, for every new question."""
    asked = (tuple(filters), sort, descending, page_size)
    before, number, page = st.session_state.get("asked", (None, 0, 1))
    if before != asked:
        number, page = number + 1, 1
    key = f"page-{number}"
    page = st.session_state.get(key, page)  # not there after a look at another page
    st.session_state["asked"] = asked, number, page
    return page, key


def _rows(
    videos: VideoTable, rows: pa.Table, shown: Sequence[str], num_matches: int, page: int, page_size: int
) -> None:
    first = (page - 1) * page_size
    of_all = f" of {videos.num_videos:,}" if num_matches != videos.num_videos else ""
    num_named = videos.num_videos if of_all else num_matches
    words = f"**{num_matches:,}**{of_all} video{'' if num_named == 1 else 's'}"
    if len(rows):
        words += f", {first + 1:,} to {first + len(rows):,} shown"
    st.markdown(words)
    if not len(rows):
        st.info("No video matches. Widen a filter, or clear it.", icon=":material/filter_alt_off:")
        return
    names = [name for name in videos.columns if name in shown]
    table = rows.select(names)
    ids: list[str] = rows["video_id"].to_pylist()
    links = pa.array([clip_url(video_id, spec=shared.chosen_spec()) for video_id in ids], pa.string())
    table = table.add_column(0, "clip", links)
    selected = shared.table(
        table,
        # What is ticked is a place: among other rows it would be another video.
        key=f"rows-{zlib.crc32(chr(10).join(ids).encode(errors='surrogatepass')):08x}",
        place=st.container(key="rows"),
        height=min(38 + 35 * len(rows), 563),
        on_select="rerun",
        selection_mode="single-row",
        columns={
            "clip": shared.clip_column(),
            **{name: _column_config(videos.columns[name]) for name in names},
        },
    )
    for place in selected["selection"]["rows"][:1]:
        if place < len(rows):
            _selected(rows.slice(place, 1).to_pylist()[0])


def _column_config(column: Column) -> object:
    if column.kind == "number":
        return st.column_config.NumberColumn(
            column.title, format=_FORMATS.get(column.unit, "localized"), help=column.help or None
        )
    width = 360 if column.kind == "text" else None
    return st.column_config.TextColumn(column.title, width=width, help=column.help or None)


def _selected(row: dict[str, object]) -> None:
    with st.container(border=True):
        st.markdown(f"**{plain(str(row['video_id']))}**")
        if row["error_message"]:
            st.error(plain(f"{row['error_class']}: {row['error_message']}"), icon=":material/error:")
        shared.clip_link(str(row["video_id"]))
