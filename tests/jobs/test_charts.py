"""The charts show the figures of the statistics, in words too, and can be read on a dark and a light page."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import plotly.graph_objects as go
import pytest

from cope_prep.jobs.dashboard import chart_style, charts
from cope_prep.jobs.dashboard.distribution_chart import place
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.stats_records import DatasetStats, SourceShare

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))
from plain_rows import fail, plain_rows, windows
from stats_rows import Rows, publish

EVIL = "<i>films</i>"


@pytest.fixture(scope="module")
def stats(tmp_path_factory: pytest.TempPathFactory) -> DatasetStats:
    """Of 120 videos in three subsets, of which three failed and some windows stand out."""
    rows = plain_rows(tmp_path_factory.mktemp("charts"))
    for spoil in (fail(1, 4, 7), windows(60, subset="sports", motion_mean_px=40.0, psnr_y_db=100.0)):
        spoil(rows)
    return publish(rows)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> DatasetStats:
    layout = Layout(dataset=str(tmp_path_factory.mktemp("empty")), specs=Specs())
    return publish(Rows(layout=layout, manifest=[], questions=[], gops=[], ledger={}))


def all_figures(stats: DatasetStats) -> dict[str, go.Figure]:
    names = dict.fromkeys(one.name for one in stats.distributions) or {"duration_s": None}
    return {
        "bytes": charts.bytes_figure(stats),
        "sizes": charts.sizes_figure(stats),
        "questions": charts.questions_figure(stats),
        "tokens": charts.token_figure(stats),
        "failures": charts.failures_figure(stats),
        **{what: charts.sources_figure(stats, what) for what in ("codec", "resolution", "frame_rate")},
        **{name: charts.distribution_figure(stats, name) for name in names},
    }


def hovers(figure: go.Figure) -> str:
    return "\n".join(text for trace in figure.data for text in (trace.hovertext or ()))


def test_bytes_are_stacked_to_the_whole(stats: DatasetStats) -> None:
    figure = charts.bytes_figure(stats)
    assert [trace.name for trace in figure.data] == ["I-frames", "Motion", "Residuals", "Overhead"]
    assert figure.data[0].y == ("all", "subset films", "subset slides", "subset sports")
    for index, group in enumerate((stats.total, *stats.subsets)):
        rate = group.per_second(group.sample_bytes)
        assert rate is not None
        assert sum(trace.x[index] for trace in figure.data) == pytest.approx(rate / 1024)
    assert "Residuals: 7.32 KiB a second of video, 67.4%" in hovers(figure)


def test_sizes_are_ratios_to_the_other_forms(stats: DatasetStats) -> None:
    figure = charts.sizes_figure(stats)
    large = [trace for trace in figure.data if trace.mode == "markers" and trace.marker.size > 10]
    total = stats.total
    expected = [total.rgb.ratio, total.jpeg_estimate.ratio, total.reencoded.ratio, total.source.ratio]
    assert [trace.x[0] for trace in large] == expected
    assert "0.089 × the source files" in hovers(figure)


def test_questions_tokens_sources_and_failures_have_the_counts(stats: DatasetStats) -> None:
    assert charts.questions_figure(stats).data[0].x == (120, 40, 40, 40)
    tokens = charts.token_figure(stats)
    assert stats.tokens is not None
    assert tokens.data[0].x[:-1] == pytest.approx([one.tokens_per_s for one in stats.tokens.budgets])
    assert f"{stats.tokens.dense_rgb_tokens:,} tokens of all videos once" in hovers(tokens)
    assert charts.sources_figure(stats, "resolution").data[0].x == (117,)
    assert "Resolution 1280x720" in hovers(charts.sources_figure(stats, "resolution"))
    failures = charts.failures_figure(stats)
    assert [trace.name for trace in failures.data] == ["Failed"]  # none is partial
    assert failures.data[0].x == pytest.approx((2.5, 0.0, 7.5, 0.0))
    assert "Failed: 3 of 40 videos, 7.50 %" in hovers(failures)


def test_rare_values_of_the_sources_are_one_bar(stats: DatasetStats) -> None:
    shares = tuple(
        SourceShare(what="resolution", value=f"{width}x100", num_videos=2, duration_s=60.0)
        for width in range(charts.MAX_VALUES + 5)
    )
    figure = charts.sources_figure(dataclasses.replace(stats, sources=shares), "resolution")
    assert figure.data[0].y[-1] == "5 others"
    assert sum(figure.data[0].x) == 2 * len(shares)


def test_a_distribution_has_its_histogram_and_a_box_a_subset(stats: DatasetStats) -> None:
    figure = charts.distribution_figure(stats, "motion_mean_px")
    (whole,) = [one for one in stats.distributions if one.name == "motion_mean_px" and one.subset is None]
    bars, _, boxes = figure.data[:3]
    assert bars.y == pytest.approx([100 * count / whole.count for count in whole.histogram.counts])
    assert boxes.y == ("all", "subset films", "subset slides", "subset sports")
    assert "60 of 1,638 windows, 3.66 %" in hovers(figure)
    assert "maximum: 40.0 px" in hovers(figure)
    assert "above 32 up to 64 px" in hovers(figure)
    assert "100" in charts.distribution_figure(stats, "psnr_y_db").layout.xaxis2.ticktext


def test_values_lie_between_their_edges() -> None:
    edges = (0.0, 1.0, 2.0, 4.0)
    values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 9.0]
    assert [place(value, edges) for value in values] == [-0.5, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]


def test_a_dataset_without_anything_is_said_in_words(empty: DatasetStats) -> None:
    figures = all_figures(empty)
    assert len(figures) == 9
    for name, figure in figures.items():
        assert len(figure.data) == 0, name
        assert figure.layout.annotations[0].text, name
    assert "No video is listed." in figures["failures"].layout.annotations[0].text


def test_names_are_text_and_not_markup_or_numbers(stats: DatasetStats) -> None:
    renamed = {"films": EVIL, "slides": "2020", "sports": "2021"}
    changed = dataclasses.replace(
        stats,
        subsets=tuple(dataclasses.replace(one, subset=renamed[one.subset or ""]) for one in stats.subsets),
        distributions=tuple(
            dataclasses.replace(one, subset=renamed.get(one.subset or "", one.subset))
            for one in stats.distributions
        ),
    )
    for name in ("bytes", "questions", "failures", "motion_mean_px"):
        figure = all_figures(changed)[name]
        assert "&lt;i&gt;films&lt;/i&gt;" in hovers(figure), name
        assert EVIL not in hovers(figure), name
        axis = figure.layout.yaxis2 if name == "motion_mean_px" else figure.layout.yaxis
        assert axis.type == "category"
        assert axis.ticktext == ("all", "&lt;i&gt;films&lt;/i&gt;", "2020", "2021")


def test_names_show_no_credentials_and_stay_apart(stats: DatasetStats) -> None:
    renamed = {"films": "s3://KEY:SECRET@b", "slides": "s3://KEY:SECRET2@b", "sports": "all"}
    changed = dataclasses.replace(
        stats,
        subsets=tuple(dataclasses.replace(one, subset=renamed[one.subset or ""]) for one in stats.subsets),
        distributions=tuple(
            dataclasses.replace(one, subset=renamed.get(one.subset or "", one.subset))
            for one in stats.distributions
        ),
    )
    for name in ("bytes", "sizes", "questions", "failures", "motion_mean_px"):
        figure = all_figures(changed)[name]
        assert "SECRET" not in figure.to_json(), name
        if name != "sizes":
            axis = figure.layout.yaxis2 if name == "motion_mean_px" else figure.layout.yaxis
            assert axis.ticktext == ("all", "s3://***@b", "s3://***@b", '"all"')
            assert len(set(axis.tickvals)) == 4


def test_of_many_subsets_the_largest_are_drawn(stats: DatasetStats) -> None:
    many = tuple(
        dataclasses.replace(stats.subsets[0], subset=f"s{number:03d}", num_listed=number)
        for number in range(1, 101)
    )
    figure = charts.failures_figure(dataclasses.replace(stats, subsets=many))
    assert len(figure.data[0].y) == 1 + charts.MAX_SUBSETS
    assert figure.data[0].y[-1] == "subset s100"


def test_long_names_keep_both_ends() -> None:
    assert chart_style.shortened("30_60_s_activitynetqa") == "30_60_s_ac…vitynetqa"
    assert chart_style.shortened("short") == "short"


def luminance(colour: str) -> float:
    """Of `#rrggbb`, as WCAG 2 defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("page", ["#ffffff", "#181d24"])
def test_marks_can_be_seen_on_dark_and_light(page: str, stats: DatasetStats) -> None:
    colours = {chart_style.BLUE, chart_style.ORANGE, chart_style.TEAL, chart_style.PINK}
    colours |= {chart_style.RED, chart_style.GOLD, chart_style.GREY, chart_style.TEXT}
    for colour in colours:
        low, high = sorted((luminance(colour), luminance(page)))
        assert (high + 0.05) / (low + 0.05) >= 3, colour
    for figure in all_figures(stats).values():
        assert figure.layout.template.layout.paper_bgcolor == "rgba(0,0,0,0)"
