"""The inspect sheets of a report: of the first outliers of each figure, each video once, as small images.

A sheet that cannot be drawn (the sample is damaged, or gone, or the store does not answer) has a reason instead.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass

from cope_prep.jobs.stats_words import titled
from cope_prep.pipeline.inspect_sheet import draw_sheet
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.outlier_gops import most_telling_gops
from cope_prep.pipeline.sheet_data import read_sheet_gop
from cope_prep.pipeline.stats_records import DatasetStats
from cope_prep.schemas.errors import CopePrepError

DEFAULT_PER_FIGURE = 2
_DPI = 120
"""Its smallest letters can be read when the sheet is opened; a sheet is about 2,000 pixels wide."""
_QUALITY = 80
"""Of WebP: about 200 KB a sheet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """One GOP of one outlier."""

    video_id: str
    gop_index: int
    figures: tuple[str, ...]
    """Of which the video is among the first outliers."""
    image: bytes | None
    """WebP; None if it could not be drawn."""
    reason: str = ""
    """Why not."""

    @property
    def labels(self) -> list[str]:
        """The figures' titles."""
        return [titled(name) for name in self.figures]

    @property
    def data_url(self) -> str:
        """The image as the source of an <img>; empty if there is none."""
        if self.image is None:
            return ""
        return f"data:image/webp;base64,{base64.b64encode(self.image).decode()}"


def wanted_sheets(stats: DatasetStats, *, per_figure: int) -> dict[str, tuple[str, ...]]:
    """Video id -> figures, for the first outliers of each figure, in the order of the figures."""
    wanted: dict[str, tuple[str, ...]] = {}
    for name, found in stats.outliers.items():
        for outlier in found[:per_figure]:
            wanted[outlier.video_id] = (*wanted.get(outlier.video_id, ()), name)
    return wanted


def draw_sheets(
    layout: Layout,
    stats: DatasetStats,
    *,
    per_figure: int = DEFAULT_PER_FIGURE,
    progress: Callable[[int, int], None] = lambda done, number: None,
) -> tuple[Sheet, ...]:
    """Draw the sheets, one after the other: a second or two each. Opens shards. Nothing of a sample raises.

    `progress` is told the number done and the number in all.
    """
    wanted = wanted_sheets(stats, per_figure=per_figure)
    if not wanted:
        return ()
    try:
        gops = most_telling_gops(layout, {video_id: names[0] for video_id, names in wanted.items()})
    except CopePrepError:
        gops = {}  # each sheet will say what is wrong
    sheets = []
    for number, (video_id, names) in enumerate(wanted.items()):
        progress(number, len(wanted))
        gop_index = gops.get(video_id, 0)
        image, reason = None, ""
        try:
            image = _draw(layout, video_id, gop_index=gop_index)
        except CopePrepError as exc:
            reason = str(exc)
        except Exception as exc:  # of the store while it is read: aiohttp's and botocore's are no OSErrors
            reason = f"{type(exc).__name__}: {exc}"
        sheets.append(
            Sheet(video_id=video_id, gop_index=gop_index, figures=names, image=image, reason=reason)
        )
    progress(len(wanted), len(wanted))
    return tuple(sheets)


def _draw(layout: Layout, video_id: str, *, gop_index: int) -> bytes:
    gop = read_sheet_gop(layout, video_id, gop_index=gop_index)
    image = io.BytesIO()
    draw_sheet(gop, encode=layout.specs.encode).savefig(
        image, format="webp", dpi=_DPI, pil_kwargs={"quality": _QUALITY, "method": 6}
    )
    return image.getvalue()
