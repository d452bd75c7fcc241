"""The words and figures of an inspect sheet: headings, captions of the rows, and the table below them."""

from __future__ import annotations

import textwrap

from cope_prep.pipeline.extract import IDENTICAL_PSNR_DB
from cope_prep.pipeline.sheet_data import SheetGop
from cope_prep.schemas.records import FusedPFrame, GopRecord
from cope_prep.schemas.specs import DctResidual, EncodeSpec, Int8Residual, LosslessResidual

CAPTION_CHARS = 27
"""Of 7 pt, beside the panels."""
FOOTNOTE = (
    "Residual energy: mean square before coding, grey levels squared. Motion bytes: the GOP's motion and intra"
    " members, divided by its windows; the I-frame's column gives its stored image."
)
_NO_VALUE = "\N{EN DASH}"


def gop_line(gop: SheetGop) -> str:
    """Which GOP this is, and where it was found."""
    record = gop.record
    end_s = record.start_s + record.num_frames / record.fps
    anchors = "1 anchor" if record.num_anchors == 1 else f"{record.num_anchors} anchors"
    if len(gop.shown) < record.num_anchors:
        anchors += f", {len(gop.shown)} of them shown"
    parts = (
        f"GOP {record.gop_index + 1} of {gop.num_gops}",
        f"{record.start_s:.2f} to {end_s:.2f} s, {record.num_frames} frames",
        anchors,
        f"{gop.sample_bytes / 1000:,.1f} kB in {gop.found_in}",
    )
    return "   |   ".join(parts)


def spec_line(record: GopRecord, encode: EncodeSpec) -> str:
    """How it was made."""
    fit = "kept" if encode.fit == "keep" else encode.fit
    scale = "crf" if encode.codec == "h264" else "qscale"
    match record.residual_spec:
        case DctResidual(quality=quality):
            residual = f"dct q{quality}"
        case Int8Residual(step=step, deadzone=deadzone):
            residual = f"int8 step {step}, dead zone {deadzone}"
        case LosslessResidual():
            residual = "lossless"
    iframe = "JPEG" if isinstance(record.iframe, bytes) else "lossless"
    parts = (
        f"{encode.codec} {scale} {encode.quality}, {encode.fps} FPS, GOP {encode.gop_size},"
        f" {record.width_px} × {record.height_px} {fit}",
        f"s = {record.window}, residual {residual}, I-frame {iframe}, spec {record.spec_hash}",
    )
    return "   |   ".join(parts)


def anchor_label(record: GopRecord, index: int) -> str:
    """Kind, number and time of an anchor."""
    time_s = record.start_s + index * record.window / record.fps
    decimals = 2 if record.window * 100 % record.fps == 0 else 3
    return f"{f'P {index}' if index else 'I'}   {time_s:.{decimals}f} s"


def row_captions(record: GopRecord, *, arrow_stride: int) -> dict[str, tuple[str, str]]:
    """Name of a row of panels -> its title, and a few lines about it, in the order of the rows."""
    before = "anchor before" if record.window > 1 else "frame before"
    every = {1: "every block", 2: "every 2nd block", 3: "every 3rd block"}
    blocks = every.get(arrow_stride, f"every {arrow_stride}th block")
    compensation = "warp" if record.compensation == "warp" else f"{record.compensation} compensation"
    captions = {
        "reencoded": ("Re-encoded", "the anchor frame, decoded from the fixed-GOP file"),
        "arrows": (
            "Motion",
            f"movement since the {before}, of {blocks}, true length, over the rebuilt frame",
        ),
        "flow": ("Motion field", f"hue: direction; saturation: length; blocks of {record.block_px} px"),
        "residual": (
            "Residual",
            f"luma, decoded: what the {compensation} of the {before} leaves; signed grey levels",
        ),
        "intra": ("Intra mask", f"blocks without a usable path to the {before}"),
        "rebuilt": ("Rebuilt", "from the sample alone; equals the writer's frame (CRC-32C checked)"),
        "error": ("Absolute error", "luma, rebuilt against re-encoded; grey levels"),
    }
    return {
        name: (title, textwrap.fill(text, CAPTION_CHARS, break_on_hyphens=False))
        for name, (title, text) in captions.items()
    }


def figure_lines(gop: SheetGop) -> list[tuple[str, list[str]]]:
    """(label, one text a column) of every line of the table."""
    record, sizes = gop.record, gop.member_bytes
    motion_bytes = sum(size for name, size in sizes.items() if name.startswith(("motion", "intra")))
    iframe_bytes = sum(size for name, size in sizes.items() if name.startswith("iframe"))
    per_window = motion_bytes / max(1, len(record.windows))
    first = [
        *[_NO_VALUE] * 3,
        _psnr(record.iframe_psnr_y_db, record.iframe_max_error),
        f"{iframe_bytes:,}",
        f"{record.iframe_packet_bytes:,}",
    ]
    columns = [
        _window_figures(record.windows[index - 1], motion_bytes=per_window) if index else first
        for index in gop.shown
    ]
    labels = (
        "motion, mean (p95)  px",
        "intra share",
        "residual energy",
        "PSNR-Y dB (max. error)",
        "motion + residual  B",
        "re-encoded packets  B",
    )
    return [(label, list(texts)) for label, texts in zip(labels, zip(*columns, strict=True), strict=True)]


def shortened(text: str, at_most: int) -> str:
    """The text, its middle left out if it is longer."""
    if len(text) <= at_most:
        return text
    return f"{text[: at_most // 2 - 1]}\N{HORIZONTAL ELLIPSIS}{text[-(at_most // 2) :]}"


def _window_figures(window: FusedPFrame, *, motion_bytes: float) -> list[str]:
    stats = window.stats
    return [
        f"{stats.motion_mean_px:.1f}  ({stats.motion_p95_px:.1f})",
        f"{stats.intra_share:.1%}",
        f"{stats.residual_energy:.1f}",
        _psnr(stats.psnr_y_db, stats.max_error),
        f"{motion_bytes:,.0f} + {len(window.residual):,}",
        f"{stats.packet_bytes:,}",
    ]


def _psnr(psnr_db: float, max_error: int) -> str:
    return f"{'identical' if psnr_db >= IDENTICAL_PSNR_DB else f'{psnr_db:.1f}'}  ({max_error})"
