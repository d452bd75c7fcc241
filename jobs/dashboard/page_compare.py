"""Compare: two sets of specs of this dataset, or this dataset and one that the command line names, side by side.

Which datasets there are is up to `--compare`; a URL cannot name one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import streamlit as st

from cope_prep.jobs.dashboard import clip_parts, compare_figures, compare_video, kept, shared
from cope_prep.jobs.dashboard.kept import Keeper
from cope_prep.jobs.dashboard.opened import Choice, Opened, find_choices
from cope_prep.jobs.dashboard.words import plain
from cope_prep.jobs.progress import format_bytes
from cope_prep.jobs.stats_words import FIGURES
from cope_prep.pipeline.compare import (
    FigureLine,
    MaxErrors,
    distribution_of,
    figure_lines,
    max_errors,
    spec_lines,
)
from cope_prep.pipeline.stats_records import DatasetStats
from cope_prep.schemas.errors import ConfigurationError, CopePrepError

_ERRORS = Keeper(max_errors)
_HINT = (
    "There is one set of specs here and nothing to compare it with. Make a second one, for instance with"
    " `cope-prep run DATASET --residual int8`, or name another dataset when you start the dashboard:"
    " `cope-prep dashboard DATASET --compare OTHER`."
)
_WORDS = "Reading the tables of both …"


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two."""

    choice: Choice
    name: str
    """For people, and different from the other's."""


def show(opened: Opened) -> None:
    """Draw the page."""
    sides = _sides(opened)
    if not sides:
        raise ConfigurationError(
            shared.short_name(opened.dataset), "has no outputs to compare", "Run cope-prep run."
        )
    if len(sides) < 2:
        st.info(_HINT, icon=":material/info:")
        return
    left, right = _choose(sides, opened)
    if left == right:
        st.info("Choose two different ones.", icon=":material/info:")
        return
    both, errors = None, (None, None)
    with shared.errors_shown(part="figures"):  # the settings and the pictures do not need all tables
        with st.spinner(_WORDS, show_time=True):
            both = tuple(kept.STATS.get(side.choice.layout).value for side in (left, right))
            errors = tuple(_ERRORS.get(side.choice.layout).value for side in (left, right))
        _headlines((left, right), both)
    st.subheader("Settings", anchor=False)
    _settings(left, right)
    if both is not None:
        _show_figures((both[0], both[1]), (errors[0], errors[1]))
    st.subheader("The same anchor of both", anchor=False)
    with shared.errors_shown(part="video"):
        compare_video.show_video(left.choice.layout, right.choice.layout)


def _show_figures(
    both: tuple[DatasetStats, DatasetStats], errors: tuple[MaxErrors | None, MaxErrors | None]
) -> None:
    """All that comes of the statistics of both."""
    named = [("Left", both[0]), ("Right", both[1])]
    st.subheader("Bytes", anchor=False)
    shared.chart(compare_figures.bytes_figure(named), key="compare_bytes")
    st.subheader("Windows", anchor=False)
    for first in range(0, len(compare_figures.SHOWN), 2):
        for column, name in zip(st.columns(2), compare_figures.SHOWN[first : first + 2], strict=False):
            with column:
                st.markdown(f"**{FIGURES[name][0]}**")
                shared.chart(compare_figures.distribution_figure(name, named), key=f"compare_{name}")
    st.subheader("Figures", anchor=False)
    _figures(figure_lines(*both, errors=errors))


@st.cache_data(ttl=10, show_spinner=False)
def _choices(dataset: str) -> tuple[Choice, ...]:
    return find_choices(dataset)


def _sides(opened: Opened) -> list[Side]:
    """What can be compared; a dataset that cannot be read is said, and left out."""
    choices = list(opened.choices or (Choice(layout=opened.layout, stage=opened.stage),))
    for dataset in opened.compare:
        try:
            choices += _choices(dataset)
        except CopePrepError as exc:
            st.error(plain(str(exc)), icon=":material/error:")
    several = len({choice.layout.dataset for choice in choices}) > 1
    return [
        Side(
            choice=choice,
            name=f"{shared.short_name(choice.layout.dataset)}: {choice.label}" if several else choice.label,
        )
        for choice in choices
        if choice.stage
    ]


def _choose(sides: Sequence[Side], opened: Opened) -> tuple[Side, Side]:
    here = [number for number, side in enumerate(sides) if side.choice.layout == opened.layout]
    first = here[0] if here else 0
    second = 1 if first == 0 else 0
    chosen = []
    for column, name, index in zip(st.columns(2), ("Left", "Right"), (first, second), strict=True):
        number = column.selectbox(
            name,
            range(len(sides)),
            index=index,
            format_func=lambda number: sides[number].name,
            key=f"compare_{name.lower()}",
        )
        chosen.append(sides[number])
    return chosen[0], chosen[1]


def _headlines(sides: Sequence[Side], both: Sequence[DatasetStats]) -> None:
    for column, side, stats in zip(st.columns(2), sides, both, strict=True):
        with column.container(border=True):
            st.markdown(f"**{plain(side.name)}**")
            for note in stats.notes:
                st.caption(plain(note))
            total = stats.total
            rate = total.per_second(total.sample_bytes)
            psnr = distribution_of(stats, "psnr_y_db")
            clip_parts.show_strip(
                [
                    ("Videos", f"{total.num_videos:,}"),
                    ("Samples", "–" if rate is None else f"{format_bytes(rate)}/s"),
                    ("Over source", _shown("ratio", total.source.ratio)),
                    ("PSNR, median", "–" if psnr is None else f"{psnr.median:.1f} dB"),
                ]
            )


def _settings(left: Side, right: Side) -> None:
    lines = spec_lines(left.choice.layout.specs, right.choice.layout.specs)
    differing = [line for line in lines if line.differs]
    if not differing:
        st.caption("All settings are the same.")
    shown = lines if st.toggle("Also those that are the same", key="compare_all") else differing
    if shown:
        shared.table(
            pd.DataFrame(
                {
                    "Setting": [line.name for line in shown],
                    "Left": [line.left for line in shown],
                    "Right": [line.right for line in shown],
                }
            ),
            key="compare_settings",
        )


def _figures(lines: Sequence[FigureLine]) -> None:
    shared.table(
        pd.DataFrame(
            {
                "Figure": [line.name for line in lines],
                "Left": [_shown(line.kind, line.left) for line in lines],
                "Right": [_shown(line.kind, line.right) for line in lines],
                "Right over left": ["–" if line.ratio is None else f"{line.ratio:.3g} ×" for line in lines],
            }
        ),
        key="compare_figures",
        height="content",
    )


def _shown(kind: str, value: float | None) -> str:
    if value is None:
        return "–"
    match kind:
        case "bytes":
            return format_bytes(value)
        case "bytes_per_s":
            return f"{format_bytes(value)}/s"
        case "ratio":
            return f"{value:.3g} ×"
        case "share":
            return f"{value:.1%}"
        case "dB":
            return "identical" if value >= 100 else f"{value:.1f} dB"
        case "px":
            return f"{value:.2f} px"
        case "seconds":
            return f"{value:,.1f} s"
        case "levels":
            return f"{value:.0f} grey levels"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
