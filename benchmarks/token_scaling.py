"""Tokens against the length of a video, for each density of key frames: docs/img/token-scaling.png and a table.

    python benchmarks/token_scaling.py [--out docs/img/token-scaling.png]

Nothing is measured: the counts are those of the default TokenLayout (LLaVA-Video's, 210 tokens a picture and 8 a
Δ), at 1 frame a second and GOPs of 8 s. All 8 frames of a GOP as pictures is what a model of RGB frames reads.

The table says how much video fits into a context: with nothing else in it, and with the prompt's list of times.
That list is not small beside Δ-tokens: Qwen2 splits off every digit, point and comma, so a frame's `12.00s,` is 7
tokens, one a character (tests/docs/test_tokens_md.py checks it against Qwen2's own rule).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from cope_prep.encoders.chat import time_list
from cope_prep.encoders.token_stream import TokenLayout, gop_tokens

GOP_S = 8
NUM_ANCHORS = 8
DENSITIES = (1, 2, 4, 8)
"""Key frames of a GOP."""
LIMITS = {"32K": 1 << 15, "64K": 1 << 16, "128K": 1 << 17, "1M": 1 << 20}
OUT = Path(__file__).parents[1] / "docs" / "img" / "token-scaling.png"

COLOURS = {1: "#0072B2", 2: "#009E73", 4: "#E69F00", 8: "#CC3311"}
"""Of Okabe and Ito's palette (the red is Tol's): told apart by those who do not tell red from green."""
SIDES = {1: ((6, -4), "left", "top"), 8: ((-6, 4), "right", "bottom")}
"""Where a curve's lengths stand beside its points."""
LONGEST_S = 12 * 3600
MINUTE_S, HOUR_S = 60, 3600


def video_s(limit: int, key_frames: int, *, with_times: bool) -> int:
    """Seconds of video, in whole GOPs, whose tokens fit into `limit`; with the prompt's times, or without."""
    per_gop = gop_tokens(NUM_ANCHORS, key_frames, TokenLayout())
    num_gops = limit // per_gop
    if not with_times:
        return num_gops * GOP_S
    times = time_list(range(num_gops * NUM_ANCHORS))
    behind_gop = np.cumsum([len(time) + 1 for time in times.split(",")])[NUM_ANCHORS - 1 :: NUM_ANCHORS] - 1
    total = np.arange(1, num_gops + 1) * per_gop + behind_gop
    return int(np.searchsorted(total, limit, side="right")) * GOP_S


def describe(duration_s: float) -> str:
    """`56 s`, `2 min 36 s`, `1 h 5 min`: cut to the last unit shown."""
    if duration_s < MINUTE_S:
        return f"{duration_s:.0f} s"
    large, small = ("min", "s") if duration_s < HOUR_S else ("h", "min")
    size = MINUTE_S if large == "min" else HOUR_S
    count, rest = divmod(int(duration_s), size)
    rest = rest * 60 // size
    return f"{count} {large} {rest} {small}" if rest else f"{count} {large}"


def short(duration_s: float) -> str:
    """`2.5 min`, `37 min`, `1.1 h`."""
    size, unit = (HOUR_S, "h") if duration_s >= HOUR_S else (MINUTE_S, "min")
    return f"{duration_s / size:.2g} {unit}"


def limits_table() -> str:
    """Markdown: the longest video for each limit and density, and in brackets with the times in the prompt."""
    head = " | ".join(f"{density} of {NUM_ANCHORS}" for density in DENSITIES)
    lines = [f"| context | {head} |", "|---" * (len(DENSITIES) + 1) + "|"]
    for name, limit in LIMITS.items():
        cells = []
        for density in DENSITIES:
            alone, with_times = (
                describe(video_s(limit, density, with_times=with_times)) for with_times in (False, True)
            )
            cells.append(f"{alone} ({with_times})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(path: Path) -> None:
    """The figure."""
    with rc_context({"font.size": 12, "font.family": "DejaVu Sans"}):
        _draw(path)


def _draw(path: Path) -> None:
    figure = Figure(figsize=(10, 6.2), dpi=125, layout="constrained")
    axes = figure.subplots()
    length_s = np.array([GOP_S, LONGEST_S])
    for name, limit in LIMITS.items():
        axes.axhline(limit, color="#777777", linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
        axes.text(
            GOP_S * 1.06,
            limit * 1.06,
            f"{name} context",
            color="#444444",
            fontsize=11,
            va="bottom",
            ha="left",
        )
    for density in DENSITIES:
        per_gop = gop_tokens(NUM_ANCHORS, density, TokenLayout())
        colour = COLOURS[density]
        axes.plot(length_s, length_s / GOP_S * per_gop, color=colour, linewidth=2.6, zorder=3)
        for limit in LIMITS.values():
            reached_s = limit / per_gop * GOP_S
            axes.plot(reached_s, limit, "o", color=colour, markersize=7, markeredgecolor="white", zorder=4)
            if density in SIDES:  # the outer curves: between the others there is no room
                xytext, ha, va = SIDES[density]
                axes.annotate(
                    short(video_s(limit, density, with_times=False)),
                    (reached_s, limit),
                    xytext=xytext,
                    textcoords="offset points",
                    color="#333333",
                    fontsize=10.5,
                    ha=ha,
                    va=va,
                )
        num_deltas = NUM_ANCHORS - density
        kinds = f"{density} I + {num_deltas} Δ" if num_deltas else f"{density} I: RGB at 1 FPS"
        axes.annotate(
            f"{kinds}, {per_gop / GOP_S:.3g}/s",
            (LONGEST_S, LONGEST_S / GOP_S * per_gop),
            xytext=(8, 0),
            textcoords="offset points",
            color="#222222",
            va="center",
            annotation_clip=False,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(GOP_S, LONGEST_S)
    axes.set_ylim(200, 1.4e7)
    ticks_s = [8, 30, 60, 300, 900, 3600, 3 * 3600, 12 * 3600]
    axes.set_xticks(ticks_s, [describe(tick_s) for tick_s in ticks_s])
    axes.set_yticks([1e3, 1e4, 1e5, 1e6, 1e7], ["1,000", "10,000", "100,000", "1 million", "10 million"])
    axes.minorticks_off()
    axes.grid(color="#E3E3E3", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("length of the video")
    axes.set_ylabel("tokens in the language model")
    ratio = gop_tokens(NUM_ANCHORS, NUM_ANCHORS, TokenLayout()) / gop_tokens(NUM_ANCHORS, 1, TokenLayout())
    axes.set_title(
        f"One I-frame in {GOP_S} s and Δ-tokens: {ratio:.1f} times as much video in the same context\n"
        "(tokens of the video alone; beside each curve its tokens a second)",
        loc="left",
        fontsize=12.5,
        pad=12,
    )
    figure.savefig(path, pil_kwargs={"optimize": True})


def main() -> None:
    """Draw, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    draw(arguments.out)
    print(limits_table())
    size_kb = math.ceil(arguments.out.stat().st_size / 1000)
    print(f"\n{arguments.out}: {size_kb} KB")


if __name__ == "__main__":
    main()
