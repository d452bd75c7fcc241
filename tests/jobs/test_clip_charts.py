"""Charts of one clip: their numbers are the recorded ones, and their marks are where they should be."""

from __future__ import annotations

import pytest

pytest.importorskip("plotly")
from cope_prep.jobs.dashboard.clip_figures import window_figure
from cope_prep.jobs.dashboard.token_chart import token_figure
from cope_prep.pipeline.clip_tokens import token_rows
from cope_prep.pipeline.video_samples import WINDOW_FIGURES, GopFigures


def gop(index: int, num_windows: int, *, clipped: int = 0) -> GopFigures:
    """Figures of which each window's is its number, from 1 on."""
    values = tuple(float(window + 1) for window in range(num_windows))
    windows = dict.fromkeys(WINDOW_FIGURES, values)
    windows |= dict.fromkeys(("clipped_vectors", "clipped_residuals"), (float(clipped),) * num_windows)
    windows |= dict.fromkeys(("zero_motion_share", "intra_share"), tuple(value / 10 for value in values))
    return GopFigures(
        gop_index=index,
        start_s=4.0 * index,
        num_frames=30 * num_windows + 1,
        num_windows=num_windows,
        width_px=64,
        height_px=64,
        sample_bytes=9999,
        iframe_bytes=5000 + index,
        motion_bytes=300,
        residual_bytes=tuple(1000 * (window + 1) for window in range(num_windows)),
        iframe_packet_bytes=1,
        iframe_psnr_y_db=50.0,
        windows=windows,
    )


def traces(figure: object) -> dict[str, object]:
    return {trace.name: trace for trace in figure.data}  # type: ignore[attr-defined]


def test_bars_are_what_is_recorded() -> None:
    figures = (gop(0, 3), gop(1, 2))
    labels = [f"anchor {number}" for number in range(7)]
    figure = window_figure(figures, anchor_s=1.0, place=2, labels=labels)
    found = traces(figure)
    assert list(found["I-frame"].y) == [5.0, 0, 0, 0, 5.001, 0, 0]  # type: ignore[attr-defined]
    assert list(found["residual"].y) == [None, 1.0, 2.0, 3.0, None, 1.0, 2.0]  # type: ignore[attr-defined]
    assert list(found["motion"].y)[1] == 0.1  # type: ignore[attr-defined]
    assert list(found["intra"].y) == pytest.approx([None, 10, 20, 30, None, 10, 20])  # type: ignore[attr-defined]
    assert list(found["PSNR"].y) == [50.0, 1.0, 2.0, 3.0, 50.0, 1.0, 2.0]  # type: ignore[attr-defined]
    for trace in figure.data:
        assert list(trace.x) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        assert [level == 1 for level in trace.marker.opacity] == [number == 2 for number in range(7)]
        assert "anchor 5" in trace.hovertext[5]


def test_the_chosen_anchor_is_marked_in_every_panel() -> None:
    figure = window_figure((gop(0, 3), gop(1, 2)), anchor_s=1.0, place=5, labels=["?"] * 7)
    rects = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    lines = [shape for shape in figure.layout.shapes if shape.type == "line"]
    assert [(shape.x0, shape.x1) for shape in rects] == [(4.5, 5.5)] * 6
    assert [shape.x0 for shape in lines] == [3.5] * 6
    assert len({shape.xref for shape in rects}) == 6


@pytest.mark.parametrize("clipped", [0, 4])
def test_nothing_clipped_is_said(clipped: int) -> None:
    figure = window_figure((gop(0, 3, clipped=clipped),), anchor_s=1.0, place=0, labels=["?"] * 4)
    assert [note.text for note in figure.layout.annotations].count("none") == (clipped == 0)


def test_a_gop_without_windows_is_drawn() -> None:
    figure = window_figure((gop(0, 0),), anchor_s=1.0, place=0, labels=["I"])
    assert list(traces(figure)["I-frame"].y) == [5.0]  # type: ignore[attr-defined]


def test_labels_are_text() -> None:
    figure = window_figure((gop(0, 1),), anchor_s=1.0, place=0, labels=["<img src=x>", "b"])
    assert "<img" not in figure.data[0].hovertext[0]


def test_token_blocks_are_to_scale() -> None:
    rows = token_rows(num_frames=240, start_s=0.0, fps=30, gop_size=240, window=30)
    figure = token_figure(rows, pictures={0: b"zero", 4: b"four"})
    widths: dict[str, float] = {}
    for trace in figure.data:
        for name, start, width in zip(trace.y, trace.base, trace.x, strict=True):
            assert start >= 0
            widths[name] = widths.get(name, 0) + width
    assert widths == {row.name: row.num_tokens for row in rows}
    assert set(figure.data[1].x) == {8}
    assert set(figure.data[0].x) == {210}
    # Anchor 0 is a key frame of all five rows; anchor 4 not of the sparsest.
    assert len(figure.layout.images) == 5 + 4
    assert {image.sizex for image in figure.layout.images} == {0.95 * 210}
    assert any("1,680" in note.text for note in figure.layout.annotations)
