"""Names of the figures of the statistics, and how their values are written: terminal, charts and report alike."""

from __future__ import annotations

from cope_prep.jobs.progress import format_duration

FIGURES = {
    "motion_mean_px": ("Motion, mean", "px"),
    "motion_p95_px": ("Motion, p95", "px"),
    "zero_motion_share": ("No motion", "% of blocks"),
    "intra_share": ("Intra", "% of blocks"),
    "residual_energy": ("Residual energy", "grey²"),
    "residual_nonzero_share": ("Residual not 0", "%"),
    "psnr_y_db": ("Rebuilt luma PSNR", "dB"),
    "duration_s": ("Duration of video", "s"),
    "bytes_per_s": ("Size", "KiB/s"),
    "clipped_share": ("Clipped", "% of windows"),
}
"""Name in DatasetStats -> title, and the unit in which `shown` writes it."""
KIND_TITLES = {"cap": "Captions", "oe": "Open-ended", "mc": "Multiple choice"}
"""Kind of a question -> title, in the order in which they are shown."""
PROPERTIES = {"codec": "Codec", "resolution": "Resolution", "frame_rate": "Frames/s"}
"""Property of the sources -> title."""


def titled(name: str) -> str:
    """Title and unit of a figure: `Motion, mean (px)`."""
    title, unit = FIGURES[name]
    return f"{title} ({unit})"


def in_unit(name: str, value: float) -> float:
    """A figure's value in the unit of its title."""
    unit = FIGURES[name][1]
    return value * (100 if unit.startswith("%") else 1 / 1024 if unit == "KiB/s" else 1)


def shown(name: str, value: float) -> str:
    """In the unit of the title, with about three digits and separators."""
    value = in_unit(name, value)
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def hours(duration_s: float) -> str:
    """With as many decimals as tell something: a demo has minutes, LLaVA-Video-178K two thousand hours."""
    number = duration_s / 3600
    return f"{number:,.1f}" if number >= 10 else f"{number:.2f}" if number >= 1 else f"{number:.4f}"


def length(duration_s: float) -> str:
    """A duration for people: in hours from one hour on, `23 s` or `3 min 05 s` below."""
    return f"{hours(duration_s)} h" if duration_s >= 3600 else format_duration(duration_s)


def sorted_kinds(kinds: dict[str, int]) -> list[str]:
    """The kinds of questions in the order in which they are shown."""
    return sorted(kinds, key=lambda kind: [*KIND_TITLES, kind].index(kind))
