"""`cope-prep train describe` for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from cope_prep.encoders.describe import Cost, Description


def print_description(found: Description, console: Console) -> None:
    """Three tables: parameters, cost of a frame, tokens."""
    parts = Table(title=f"Parameters ({found.task})", title_justify="left")
    parts.add_column("Part")
    parts.add_column("Parameters", justify="right")
    for name, count in found.parameters.items():
        parts.add_row(name, f"{count:,}")
    parts.add_section()
    parts.add_row("all", f"{sum(found.parameters.values()):,}")
    console.print(parts)

    height_px, width_px = found.frame_px
    costs = Table(title=f"One frame of {width_px} x {height_px} ({found.device})", title_justify="left")
    costs.add_column("Given as")
    for name in ("Parameters", "GFLOPs", "Latency", "Tokens"):
        costs.add_column(name, justify="right")
    _add_cost(
        costs,
        f"a P-frame: Δ-encoder, {found.delta_encoder.num_together} at a time",
        found.delta_encoder,
        found.delta_tokens,
    )
    _add_cost(costs, "a picture: vision tower", found.vision_tower, found.picture_tokens)
    costs.add_section()
    costs.add_row("picture / P-frame", *_ratios(found))
    console.print(costs)

    tokens = Table(title=f"A full GOP of {found.num_anchors} anchors", title_justify="left")
    tokens.add_column("Key frames")
    tokens.add_column("Tokens", justify="right")
    for key_frames, count in found.gop_tokens.items():
        tokens.add_row(f"{key_frames} I + {found.num_anchors - key_frames} P", f"{count:,}")
    console.print(tokens)


def _add_cost(table: Table, name: str, cost: Cost, num_tokens: int) -> None:
    latency = "" if cost.latency_ms is None else f"{cost.latency_ms:,.1f} ms"
    table.add_row(name, f"{cost.num_parameters:,}", f"{cost.flops / 1e9:,.1f}", latency, f"{num_tokens:,}")


def _ratios(found: Description) -> list[str]:
    pictures, deltas = found.vision_tower, found.delta_encoder
    pairs = [
        (pictures.num_parameters, deltas.num_parameters),
        (pictures.flops, deltas.flops),
        (pictures.latency_ms, deltas.latency_ms),
        (found.picture_tokens, found.delta_tokens),
    ]
    return [f"{one / other:.1f}" if one and other else "" for one, other in pairs]
