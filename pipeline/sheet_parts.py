"""The panels of an inspect sheet and their legends: each draws one thing into one matplotlib Axes.

Motion is shown as movement, from where a block was to where it is: the opposite of the stored vector, which
points backward. The flow map follows the colour wheel of optical flow papers (Baker et al., "A Database and
Evaluation Methodology for Optical Flow", 2011): hue is direction, saturation is length, white is rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cope_prep.pipeline.residual import decode_residual
from cope_prep.schemas.records import FusedPFrame, GopRecord
from cope_prep.schemas.specs import DctResidual, Int8Residual

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#1a1a1a"
FAINT = "#6b6b6b"
PAPER = "#f4f4f2"
ARROW = "#ffe21f"
INTRA = "#ff7a1a"
NO_MOTION = "#c9c9c9"
"""Intra blocks of the flow map: white would read as rest."""
ERROR_MAP = "inferno"

_MAX_ARROWS_ACROSS = 16
_MIN_ARROW_PX = 0.5
_SCALES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)


def scale_above(values: np.ndarray, *, percentile: float, least: int, most: int = 2048) -> int:
    """The smallest round number that most of the values do not exceed."""
    reached = float(np.percentile(values, percentile)) if values.size else 0.0
    return min(next((scale for scale in _SCALES if scale >= max(reached, least)), most), most)


def rgb_of(picture: np.ndarray) -> np.ndarray:
    """uint8 [3H/2, W] (I420, full range, BT.601) -> uint8 [H, W, 3], for a screen."""
    height, half_w = luma_of(picture).shape[0], picture.shape[1] // 2
    luma = luma_of(picture).astype(np.float32)
    blue, red = (
        plane.repeat(2, axis=0).repeat(2, axis=1).astype(np.float32) - 128
        for plane in (picture[height:, :half_w], picture[height:, half_w:])
    )
    channels = (luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue)
    return np.stack(channels, axis=-1).round().clip(0, 255).astype(np.uint8)


def luma_of(picture: np.ndarray) -> np.ndarray:
    """The Y plane, [H, W], of a [3H/2, W] array."""
    return picture[: picture.shape[0] * 2 // 3]


def movement_of(window: FusedPFrame) -> np.ndarray:
    """float32 [Hb, Wb, 2] px (x, y): how each block of a window moved; 0 where intra."""
    return -window.motion.astype(np.float32) * window.motion_step_px


def residual_levels(record: GopRecord, window: FusedPFrame) -> np.ndarray:
    """int16 [H, W]: the decoded luma residual of a window in grey levels."""
    spec = record.residual_spec
    shape = (record.height_px * 3 // 2, record.width_px)
    stored = decode_residual(spec, window.residual, shape=shape, name=f"{record.key}.residual")
    levels = luma_of(stored).astype(np.int16)
    if isinstance(spec, DctResidual):
        return (levels - 128) * 2
    return levels * (spec.step if isinstance(spec, Int8Residual) else 1)


def flow_rgb(movement_px: np.ndarray, *, scale_px: float) -> np.ndarray:
    """float [..., 2] (x, y) -> float [..., 3] in 0 to 1; fully saturated at `scale_px` and beyond."""
    saturation = np.minimum(np.hypot(movement_px[..., 0], movement_px[..., 1]) / scale_px, 1)
    # y points down in a picture and hue turns counter-clockwise, as on paper.
    hue = 6 * (np.arctan2(-movement_px[..., 1], movement_px[..., 0]) / (2 * np.pi) % 1)
    pure = np.stack([np.abs(hue - 3) - 1, 2 - np.abs(hue - 2), 2 - np.abs(hue - 4)], axis=-1).clip(0, 1)
    return 1 - saturation[..., None] * (1 - pure)


def arrow_stride(grid: tuple[int, ...]) -> int:
    """Every how many blocks an arrow is drawn on a grid of [Hb, Wb] blocks."""
    return -(-max(grid) // _MAX_ARROWS_ACROSS)


def draw_picture(axes: Axes, picture: np.ndarray) -> None:
    """A frame in colour."""
    axes.imshow(rgb_of(picture), interpolation="antialiased")


def draw_arrows(
    axes: Axes, picture: np.ndarray, movement_px: np.ndarray, intra: np.ndarray, *, block_px: int
) -> None:
    """Movement [Hb, Wb, 2] as arrows of true length over a subdued frame; none where intra [Hb, Wb]."""
    height, width = luma_of(picture).shape
    subdued = (rgb_of(picture).mean(axis=-1) * 0.62).astype(np.uint8)
    axes.imshow(subdued, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
    stride = arrow_stride(movement_px.shape[:2])
    rows, cols = (
        index.ravel()
        for index in np.meshgrid(
            *(np.arange(stride // 2, count, stride) for count in movement_px.shape[:2]), indexing="ij"
        )
    )
    moves = movement_px[rows, cols]
    moving = np.hypot(moves[:, 0], moves[:, 1]) >= _MIN_ARROW_PX
    if moving.any():
        moves = moves[moving]
        ends_x = (cols[moving] + 0.5) * block_px
        ends_y = (rows[moving] + 0.5) * block_px
        axes.quiver(
            *(ends_x - moves[:, 0], ends_y - moves[:, 1], moves[:, 0], moves[:, 1]),
            angles="xy",
            scale_units="xy",
            scale=1,
            units="width",
            width=0.0075,
            headwidth=4.2,
            headlength=4.6,
            headaxislength=4.2,
            minlength=0.6,
            color=ARROW,
            edgecolor="black",
            linewidth=0.25,
        )
    else:
        below = f"all below {_MIN_ARROW_PX:g} px" if movement_px.any() else "no movement"
        write_note(axes, "all intra" if intra.all() else below, color="white")
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)


def draw_flow(
    axes: Axes,
    movement_px: np.ndarray,
    intra: np.ndarray,
    *,
    scale_px: float,
    block_px: int,
    size_px: tuple[int, int],
) -> None:
    """Movement [Hb, Wb, 2] as colour, grey where intra; `size_px` is the picture's (width, height)."""
    colours = flow_rgb(movement_px, scale_px=scale_px)
    colours[intra] = rgb_of_hex(NO_MOTION)
    _draw_grid(axes, colours, block_px=block_px, size_px=size_px)
    if intra.all():
        write_note(axes, "all intra")
    elif not movement_px.any():
        write_note(axes, "no movement")


def draw_residual(axes: Axes, residual: np.ndarray, *, scale: int) -> None:
    """Signed grey levels [H, W]: mid-grey is zero."""
    axes.imshow(residual, cmap="gray", vmin=-scale, vmax=scale, interpolation="antialiased")


def draw_intra(axes: Axes, picture: np.ndarray, intra: np.ndarray, *, block_px: int) -> None:
    """Intra blocks [Hb, Wb] in colour over a pale frame."""
    height, width = luma_of(picture).shape
    # Pale, so that the marked blocks stand out in print as well.
    pale = (255 - (255 - luma_of(picture).astype(np.float32)) * 0.45).astype(np.uint8)
    axes.imshow(pale, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
    if intra.any():
        mask = np.zeros((*intra.shape, 4))
        mask[intra] = (*rgb_of_hex(INTRA), 0.72)
        _draw_grid(axes, mask, block_px=block_px, size_px=(width, height))


def draw_error(axes: Axes, error: np.ndarray, *, scale: int) -> None:
    """Absolute error [H, W] in grey levels."""
    axes.imshow(error, cmap=ERROR_MAP, vmin=0, vmax=scale, interpolation="antialiased")
    if not error.any():
        write_note(axes, "none", color="white")


def draw_absent(axes: Axes, text: str) -> None:
    """An empty panel that says why it is empty."""
    axes.set_facecolor(PAPER)
    write_note(axes, text)


def draw_wheel(axes: Axes, *, scale_px: float) -> None:
    """Legend of `draw_flow`: the colour of every direction and length up to `scale_px`."""
    # Drawn four times as fine as it is shown, for a smooth rim.
    steps = np.linspace(-1, 1, 257)
    movement = np.stack(np.meshgrid(steps, steps), axis=-1)
    colours = np.ones((257, 257, 4))
    colours[..., :3] = flow_rgb(movement, scale_px=1)
    radius = np.hypot(movement[..., 0], movement[..., 1])
    colours[..., 3] = ((1 - radius) * 128).clip(0, 1)
    axes.imshow(colours, extent=(-1, 1, 1, -1), interpolation="antialiased")
    axes.plot([0, 1], [0, 0], color=INK, linewidth=0.6)
    axes.set_axis_off()
    axes.set_title(f"{scale_px:g} px", fontsize=7, color=INK, pad=2)


def draw_scale(axes: Axes, *, cmap: str, low: int, high: int) -> None:
    """Legend of `draw_residual` and `draw_error`: a vertical scale in grey levels."""
    axes.imshow(np.linspace(1, 0, 256)[:, None], cmap=cmap, aspect="auto", extent=(0, 1, low, high))
    middle = (low + high) // 2
    labels = [f"{value:+d}" if low < 0 and value else str(value) for value in (low, middle, high)]
    axes.yaxis.tick_right()
    axes.set_xticks([])
    axes.set_yticks([low, middle, high], [label.replace("-", "\N{MINUS SIGN}") for label in labels])
    axes.tick_params(labelsize=7, length=2, width=0.5, colors=INK, pad=2)
    frame_axes(axes)


def draw_swatch(axes: Axes, text: str, *, colour: str) -> None:
    """A coloured square and what it means."""
    axes.set_facecolor(colour)
    axes.set_xticks([])
    axes.set_yticks([])
    frame_axes(axes)
    axes.text(1.3, 0.5, text, transform=axes.transAxes, va="center", ha="left", fontsize=7, color=INK)


def frame_axes(axes: Axes) -> None:
    """A thin line around a panel, without which white panels would run into the page."""
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)
        spine.set_color("#9a9a9a")


def write_note(axes: Axes, text: str, *, color: str = FAINT) -> None:
    """A word in the middle of a panel."""
    axes.text(
        0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=7.5, color=color,
        style="italic",
    )  # fmt: skip


def rgb_of_hex(colour: str) -> tuple[float, ...]:
    """`#rrggbb` -> three numbers from 0 to 1."""
    return tuple(int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))


def _draw_grid(axes: Axes, colours: np.ndarray, *, block_px: int, size_px: tuple[int, int]) -> None:
    width, height = size_px
    extent: Any = (-0.5, colours.shape[1] * block_px - 0.5, colours.shape[0] * block_px - 0.5, -0.5)
    axes.imshow(colours, extent=extent, interpolation="nearest")
    # The last blocks of a row or column may reach beyond the picture.
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
