"""One picture that shows what a sample holds: anchors from left to right, what is stored of them downward.

    time axis          one column an anchor, in seconds of the re-encoded video
    re-encoded         what the sample was made from (left out if that file has been deleted)
    motion, residual,  what is stored, decoded as a reader would; a panel belongs to the window that ends at
    intra mask         its anchor, so the I-frame has none
    rebuilt, error     what a reader gets of it
    figures            as in index.parquet, and what the window costs beside the packets of its frames

Scales are common to all columns, so that columns can be compared. matplotlib is imported when a sheet is
made, not before, and its global state is not touched: sheets may be made in any thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cope_prep.pipeline import sheet_parts as parts
from cope_prep.pipeline import sheet_text, storage
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.sheet_data import SheetGop, read_sheet_gop
from cope_prep.schemas.specs import EncodeSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 200
_CELL_IN = 1.55
"""Side of a panel if it were square; others have the same area."""
_GAP_IN = 0.06
_MARGIN_IN = 0.2
_LEFT_IN = 1.55
_RIGHT_IN = 0.85
_TITLE_IN = 0.74
_AXIS_IN = 0.42
_LINE_IN = 0.165
_MIN_WIDTH_IN = 8.6


def write_sheet(layout: Layout, video_id: str, out_path: str, *, gop_index: int = 0) -> None:
    """Publish the sheet of one GOP of a video as a PNG.

    Raises:
        ConfigurationError: the dataset has no such video, no sample of it, or no such GOP.
        FormatError, ChecksumError: the sample is damaged.
        StorageError: the sheet cannot be written.
    """
    gop = read_sheet_gop(layout, video_id, gop_index=gop_index)
    figure = draw_sheet(gop, encode=layout.specs.encode)
    with storage.publish(out_path) as path, open(path, "wb") as file:
        figure.savefig(file, format="png", dpi=_DPI, metadata={"Title": f"{video_id}, GOP {gop_index}"})


def draw_sheet(gop: SheetGop, *, encode: EncodeSpec) -> Figure:
    """The sheet as a matplotlib figure: one Axes a panel, row by row, each row's legend after it."""
    return _Sheet(gop, encode=encode).draw()


class _Sheet:
    """The sheet of one GOP: geometry in inches from the top left, panels by row and column."""

    def __init__(self, gop: SheetGop, *, encode: EncodeSpec) -> None:
        self._gop = gop
        self._encode = encode
        record = gop.record
        aspect = record.width_px / record.height_px
        # Within bounds, so that captions and figures have room; a picture beyond them is centred in its panel.
        self._cell_in = (
            min(max(_CELL_IN * aspect**0.5, 1.0), 3.2),
            min(max(_CELL_IN / aspect**0.5, 0.8), 3.2),
        )
        # Column k shows the window that ends at its anchor.
        self._windows = [record.windows[index - 1] if index else None for index in gop.shown]
        self._movements = [None if window is None else parts.movement_of(window) for window in self._windows]
        self._residuals = [
            None if window is None else parts.residual_levels(record, window) for window in self._windows
        ]
        self._errors = (
            None
            if gop.reencoded is None
            else [
                np.abs(parts.luma_of(rebuilt).astype(np.int16) - parts.luma_of(original))
                for rebuilt, original in zip(gop.rebuilt, gop.reencoded, strict=True)
            ]
        )
        lengths = [
            np.hypot(move[..., 0], move[..., 1]).ravel() for move in self._movements if move is not None
        ]
        self._flow_px = parts.scale_above(_joined(lengths), percentile=98, least=1)
        levels = [np.abs(residual).ravel() for residual in self._residuals if residual is not None]
        self._residual_scale = parts.scale_above(_joined(levels), percentile=97, least=8, most=255)
        errors = [error.ravel() for error in self._errors or []]
        self._error_scale = parts.scale_above(_joined(errors), percentile=99.5, least=4, most=255)

    def draw(self) -> Figure:
        """The whole sheet."""
        from matplotlib.figure import Figure

        rows = self._rows()
        lines = sheet_text.figure_lines(self._gop)
        num_columns = len(self._gop.shown)
        columns_in = num_columns * (self._cell_in[0] + _GAP_IN) - _GAP_IN
        self._width_in = max(_MIN_WIDTH_IN, 2 * _MARGIN_IN + _LEFT_IN + columns_in + _RIGHT_IN)
        panels_in = _MARGIN_IN + _TITLE_IN + _AXIS_IN
        figures_in = panels_in + len(rows) * (self._cell_in[1] + _GAP_IN) + 0.08
        self._height_in = figures_in + len(lines) * _LINE_IN + 0.3 + _MARGIN_IN
        self._figure = Figure(figsize=(self._width_in, self._height_in), dpi=_DPI, facecolor="white")

        self._draw_title()
        self._draw_time_axis(_MARGIN_IN + _TITLE_IN)
        for index, (name, (title, caption)) in enumerate(rows.items()):
            top_in = panels_in + index * (self._cell_in[1] + _GAP_IN)
            self._write(_MARGIN_IN, top_in + 0.02, title, size=9, bold=True)
            self._write(_MARGIN_IN, top_in + 0.2, caption, size=7, color=parts.FAINT)
            for column in range(num_columns):
                axes = self._axes(self._column_in(column), top_in, *self._cell_in)
                self._draw_panel(axes, name, column)
            self._draw_legend(name, self._column_in(num_columns) + 0.08, top_in)
        self._draw_figures(lines, figures_in)
        return self._figure

    def _rows(self) -> dict[str, tuple[str, str]]:
        record = self._gop.record
        stride = parts.arrow_stride(record.windows[0].intra.shape) if record.windows else 1
        rows = sheet_text.row_captions(record, arrow_stride=stride)
        left_out: set[str] = set()
        if self._gop.reencoded is None:
            left_out |= {"reencoded", "error"}
        if not record.windows:  # a GOP shorter than a window
            left_out |= {"arrows", "flow", "residual", "intra"}
        return {name: row for name, row in rows.items() if name not in left_out}

    def _draw_panel(self, axes: Axes, name: str, column: int) -> None:
        gop, record = self._gop, self._gop.record
        window, movement = self._windows[column], self._movements[column]
        residual = self._residuals[column]
        axes.set_xticks([])
        axes.set_yticks([])
        parts.frame_axes(axes)
        if name == "rebuilt":
            parts.draw_picture(axes, gop.rebuilt[column])
        elif name == "reencoded":
            assert gop.reencoded is not None
            parts.draw_picture(axes, gop.reencoded[column])
        elif name == "error":
            assert self._errors is not None
            parts.draw_error(axes, self._errors[column], scale=self._error_scale)
        elif window is None or movement is None or residual is None:
            parts.draw_absent(axes, "none: I-frame")
        elif name == "arrows":
            parts.draw_arrows(axes, gop.rebuilt[column], movement, window.intra, block_px=record.block_px)
        elif name == "flow":
            size_px = (record.width_px, record.height_px)
            parts.draw_flow(
                *(axes, movement, window.intra),
                scale_px=self._flow_px,
                block_px=record.block_px,
                size_px=size_px,
            )
        elif name == "residual":
            parts.draw_residual(axes, residual, scale=self._residual_scale)
        else:
            parts.draw_intra(axes, gop.rebuilt[column], window.intra, block_px=record.block_px)

    def _draw_legend(self, name: str, left_in: float, top_in: float) -> None:
        if name in ("reencoded", "rebuilt", "arrows"):
            return
        height_in = self._cell_in[1]
        if name == "flow":
            wheel_in = min(0.6, height_in - 0.42)
            wheel = self._axes(left_in, top_in + 0.16, wheel_in, wheel_in)
            parts.draw_wheel(wheel, scale_px=self._flow_px)
            swatch = self._axes(left_in, top_in + wheel_in + 0.26, 0.14, 0.14)
            parts.draw_swatch(swatch, "intra", colour=parts.NO_MOTION)
        elif name == "intra":
            parts.draw_swatch(self._axes(left_in, top_in + 0.05, 0.14, 0.14), "intra", colour=parts.INTRA)
        elif name == "residual":
            axes = self._axes(left_in, top_in + 0.05, 0.12, height_in - 0.1)
            parts.draw_scale(axes, cmap="gray", low=-self._residual_scale, high=self._residual_scale)
        else:
            axes = self._axes(left_in, top_in + 0.05, 0.12, height_in - 0.1)
            parts.draw_scale(axes, cmap=parts.ERROR_MAP, low=0, high=self._error_scale)

    def _draw_title(self) -> None:
        record = self._gop.record
        width_chars = int((self._width_in - 2 * _MARGIN_IN) * 6.3)  # of 14 pt bold
        title = sheet_text.shortened(_drawable(record.video_id), width_chars)
        about = sheet_text.spec_line(record, self._encode)
        self._write(_MARGIN_IN, _MARGIN_IN, title, size=14, bold=True)
        self._write(_MARGIN_IN, _MARGIN_IN + 0.29, sheet_text.gop_line(self._gop), size=8.5)
        self._write(_MARGIN_IN, _MARGIN_IN + 0.47, about, size=8.5, color=parts.FAINT)

    def _draw_time_axis(self, top_in: float) -> None:
        record = self._gop.record
        line_in = top_in + _AXIS_IN - 0.1
        centres_in = [
            self._column_in(column) + self._cell_in[0] / 2 for column in range(len(self._gop.shown))
        ]
        left_in, right_in = self._column_in(0), self._column_in(len(centres_in)) - _GAP_IN
        self._line([left_in, right_in], [line_in, line_in])
        self._write(_MARGIN_IN, line_in - 0.24, "Time", size=9, bold=True)
        for index, centre_in in zip(self._gop.shown, centres_in, strict=True):
            self._line([centre_in, centre_in], [line_in - 0.05, line_in + 0.05])
            label = sheet_text.anchor_label(record, index)
            self._write(centre_in, line_in - 0.24, label, size=9, align="center")

    def _draw_figures(self, lines: list[tuple[str, list[str]]], top_in: float) -> None:
        for number, (label, texts) in enumerate(lines):
            line_in = top_in + number * _LINE_IN
            self._write(_MARGIN_IN, line_in, label, size=7.5)
            for column, text in enumerate(texts):
                self._write(
                    self._column_in(column) + self._cell_in[0] / 2, line_in, text, size=7.5, align="center"
                )
        self._write(
            _MARGIN_IN,
            top_in + len(lines) * _LINE_IN + 0.08,
            sheet_text.FOOTNOTE,
            size=6.5,
            color=parts.FAINT,
        )

    def _column_in(self, column: int) -> float:
        return _MARGIN_IN + _LEFT_IN + column * (self._cell_in[0] + _GAP_IN)

    def _axes(self, left_in: float, top_in: float, width_in: float, height_in: float) -> Axes:
        bottom_in = self._height_in - top_in - height_in
        return self._figure.add_axes(
            (
                left_in / self._width_in,
                bottom_in / self._height_in,
                width_in / self._width_in,
                height_in / self._height_in,
            )
        )

    def _write(
        self,
        left_in: float,
        top_in: float,
        text: str,
        *,
        size: float,
        bold: bool = False,
        color: str = parts.INK,
        align: str = "left",
    ) -> None:
        self._figure.text(
            left_in / self._width_in,
            1 - top_in / self._height_in,
            text,
            fontsize=size,
            fontweight="bold" if bold else "normal",
            color=color,
            ha=align,
            va="top",
            linespacing=1.25,
            parse_math=False,  # a video id may hold dollar signs
        )

    def _line(self, xs_in: list[float], ys_in: list[float]) -> None:
        from matplotlib.lines import Line2D

        xs = [x / self._width_in for x in xs_in]
        ys = [1 - y / self._height_in for y in ys_in]
        self._figure.add_artist(Line2D(xs, ys, color=parts.INK, linewidth=0.7))


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0)


def _drawable(text: str) -> str:
    """The text with what the font cannot draw (Chinese, control characters) escaped as in Python."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))  # comes with matplotlib
    return "".join(
        char
        if char.isprintable() and font.get_char_index(ord(char))
        else char.encode("unicode_escape").decode()
        for char in text
    )
