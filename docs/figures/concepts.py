"""The figures of docs/concepts.md: `python docs/figures/concepts.py` makes them anew from a real clip.

docs/img/gop.svg, docs/img/closed-loop.svg   diagrams, put into the page as text: their colours follow its theme
docs/img/window-*.jpg                        one window of Big Buck Bunny, as stored and as rebuilt
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from cope_prep.pipeline.extract import extract_gops
from cope_prep.pipeline.rebuild import predict, rebuild_anchors
from cope_prep.pipeline.reencode import reencode_video
from cope_prep.pipeline.residual import decode_residual
from cope_prep.pipeline.sheet_parts import draw_arrows, movement_of, rgb_of
from cope_prep.schemas.records import GopRecord
from cope_prep.schemas.specs import EncodeSpec

IMAGES = Path(__file__).parents[1] / "img"
WINDOW = 1
"""The second window of the first GOP: the camera pans up while the rabbit gets up."""
SIDE_PX = 288


def main(clip: str) -> None:
    """Make every figure from one clip."""
    with tempfile.TemporaryDirectory() as folder:
        reencoded = f"{folder}/reencoded.mp4"
        reencode_video(clip, reencoded, spec=EncodeSpec())
        gop = next(iter(extract_gops(reencoded)))
    window_pictures(gop)
    (IMAGES / "gop.svg").write_text(gop_diagram())
    (IMAGES / "closed-loop.svg").write_text(loop_diagram())
    parts = {"iframe": len(gop.iframe), "residuals": [len(window.residual) for window in gop.windows]}
    stats = gop.windows[WINDOW].stats
    print(parts, f"{gop.windows[WINDOW].motion_step_px} px a step", stats)


def window_pictures(gop: GopRecord) -> None:
    """window-before, -motion, -prediction, -residual, -after."""
    anchors = rebuild_anchors(gop)
    window = gop.windows[WINDOW]
    before, after = anchors[WINDOW], anchors[WINDOW + 1]
    prediction = np.empty_like(before)
    predict(
        before, window.motion, compensation=gop.compensation, step_qpel=window.motion_step_qpel,
        block_px=gop.block_px, rounding=window.rounding, out=prediction,
    )  # fmt: skip
    height = gop.height_px
    stored = decode_residual(gop.residual_spec, window.residual, shape=before.shape, name=gop.key)
    residual = 2 * (stored[:height].astype(int) - 128)  # `dct` stores half of it, around 128
    save("before", rgb_of(before))
    save("prediction", rgb_of(prediction))
    save("residual", np.clip(128 + 2 * residual, 0, 255).astype(np.uint8))  # doubled, so that it can be seen
    save("after", rgb_of(after))
    figure = plt.figure(figsize=(4, 4), dpi=SIDE_PX / 4 * 2)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    draw_arrows(axes, after, movement_of(window), intra=window.intra, block_px=gop.block_px)
    content = io.BytesIO()
    figure.savefig(content)
    save("motion", np.asarray(Image.open(content).convert("RGB")))


def save(name: str, picture: np.ndarray) -> None:
    """uint8 [H, W] or [H, W, 3] -> docs/img/window-NAME.jpg."""
    image = Image.fromarray(picture).resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    image.save(IMAGES / f"window-{name}.jpg", quality=80, optimize=True)


HEAD = """<svg class="figure" viewBox="0 0 {width} {height}" role="img" aria-label="{label}"
 style="min-width: {least}px">
<defs><marker id="{name}-tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0 8 4 0 8z" class="ink"/></marker></defs>"""


def text(x: float, y: float, content: str, *, kind: str = "", anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{content}</text>'


def box(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" class="{kind}"/>'


def line(points: str, name: str = "") -> str:
    tip = f' marker-end="url(#{name}-tip)"' if name else ""
    return f'<path d="M{points}" class="line"{tip}/>'


def gop_diagram() -> str:
    """Frames of a GOP, the sample that they become, and what a reader makes of it."""
    left, frame, top = 124.0, 3.0, 34.0
    head = HEAD.format(
        width=870, height=300, least=680, name="gop",
        label="A GOP of 240 frames becomes one I-frame and seven pairs of motion and residual,"
        " from which eight anchor frames are rebuilt",
    )  # fmt: skip
    out = [head, text(84, top + 20, "re-encoded", anchor="end"), text(84, top + 36, "file", anchor="end")]
    for index in range(240):
        x = left + index * frame
        if index % 30:
            out.append(f'<rect x="{x:g}" y="{top + 8:g}" width="1.6" height="24" class="frame"/>')
    for anchor in range(8):
        x = left + anchor * 30 * frame
        out.append(box(x - 3, top, 8, 40, "key" if anchor == 0 else "anchor"))
        out.append(text(x + 1, top - 10, str(anchor * 30), kind="small"))
        out.append(line(f"{x + 1:g} {top + 44:g} V {top + 66:g}", "gop"))
    out.append(text(left + 225 * frame, top + 56, "no window", kind="small"))
    out.append(text(left + 240 * frame, top - 10, "240", kind="small"))
    top = 104.0
    out += [text(84, top + 22, "stored", anchor="end"), text(84, top + 38, "sample", anchor="end")]
    out += [box(left - 20, top, 42, 52, "key"), text(left + 1, top + 31, "I", kind="on")]
    for window in range(1, 8):
        x = left + window * 30 * frame
        out += [box(x - 33, top, 68, 24, "motion"), text(x + 1, top + 17, "motion", kind="on small")]
        out += [box(x - 33, top + 28, 68, 24, "residual"), text(x + 1, top + 45, "residual", kind="small")]
    top = 218.0
    out += [text(84, top + 20, "rebuilt", anchor="end"), text(84, top + 36, "anchors", anchor="end")]
    for anchor in range(8):
        x = left + anchor * 30 * frame
        out.append(box(x - 20, top, 42, 42, "key" if anchor == 0 else "anchor"))
        out.append(text(x + 1, top + 26, f"{anchor}", kind="on" if anchor == 0 else ""))
        out.append(line(f"{x + 1:g} 160 V {top - 5:g}", "gop"))
        if anchor:
            out.append(line(f"{x - 66:g} {top + 21:g} H {x - 25:g}", "gop"))
    out.append(
        text(left + 330, top + 68, "each from the one before, its motion and its residual", kind="small")
    )
    return "\n".join([*out, "</svg>\n"])


def loop_diagram() -> str:
    """The writer rebuilds what the reader will, and takes each residual against that."""
    head = HEAD.format(
        width=860, height=270, least=680, name="loop",
        label="The writer predicts an anchor from the rebuilt one before it, stores the difference,"
        " and decodes what it stored, as the reader does",
    )  # fmt: skip
    out = [head, box(4, 4, 852, 262, "group")]

    def step(x: float, y: float, width: float, kind: str, *lines: str) -> None:
        out.append(box(x, y, width, 46, kind))
        on = "on" if kind in ("key", "motion") else ""
        for number, content in enumerate(lines):
            out.append(text(x + width / 2, y + 28 + (number - (len(lines) - 1) / 2) * 16, content, kind=on))

    step(24, 40, 130, "anchor", "rebuilt k \N{MINUS SIGN} 1")
    step(214, 40, 130, "plain", "warp")
    step(404, 40, 130, "anchor", "prediction")
    step(24, 130, 130, "plain", "quantize", "motion")
    step(214, 130, 130, "motion", "stored", "motion")
    step(404, 130, 130, "plain", "subtract")
    step(594, 130, 130, "plain", "quantize")
    step(594, 202, 130, "residual", "stored", "residual")
    step(404, 202, 130, "anchor", "anchor k")
    step(594, 40, 130, "plain", "add")
    step(754, 40, 90, "anchor", "rebuilt k")
    out += [
        line("154 63 H 209", "loop"), line("344 63 H 399", "loop"), line("154 153 H 209", "loop"),
        line("279 130 V 91", "loop"), line("469 86 V 125", "loop"), line("469 202 V 181", "loop"),
        line("534 153 H 589", "loop"), line("659 176 V 197", "loop"), line("534 63 H 589", "loop"),
        line("724 225 H 740 V 108 H 659 V 91", "loop"), line("724 63 H 749", "loop"),
        line("799 40 V 20 H 89 V 35", "loop"),
    ]  # fmt: skip
    out += [text(444, 16, "the next window starts from here", kind="small halo")]
    return "\n".join([*out, "</svg>\n"])


if __name__ == "__main__":
    main(sys.argv[1])
