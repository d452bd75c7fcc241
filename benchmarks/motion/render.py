"""A scene as pictures: two textured objects over a background with the statistics of photographs.

The background is coloured 1/f noise (the spectrum of natural images; Field 1987) with soft-edged ellipses and half
planes, larger than the frame so that the camera can pan. Objects are textures with antialiased alpha. Everything
is placed with sub-pixel accuracy, bilinearly; textures are smooth enough that this hardly shows. What a scene
looks like is drawn from a stream of random numbers of its own: the first frame knows nothing of the script.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scenes import NUM_FRAMES, Script, generator

SIDE_PX = 128
MARGIN_PX = 44
"""Of the background on each side: what the fastest and longest pan uncovers, and a little more."""
COLOURS = {"red": (215, 40, 35), "green": (35, 165, 60), "blue": (45, 75, 215), "yellow": (235, 205, 40)}
SHAPES = ("disc", "square", "triangle", "cross")
_SPRITE_PX = 48
_NOISE_SD = 1.0
_NUM_NOISES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """One object as it looks, and where it begins."""

    centre_px: tuple[float, float]
    sprite: np.ndarray
    """float32 [48, 48, 4]: RGB in grey levels, multiplied by alpha, and alpha in 0 to 1; the border is empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a scene looks like."""

    colour: str
    """Of both objects: a control is to be answered by seeing, and binding sides to looks takes long to learn."""
    background: np.ndarray
    """float32 [SIDE + 2 MARGIN, SIDE + 2 MARGIN, 3], grey levels."""
    objects: dict[str, Object]
    """`left` and `right`."""
    noise_seed: int


def make_look(index: int, *, split: str, seed: int) -> Look:
    """The looks of a split's video; they do not depend on its script."""
    rng = generator(seed, split, index, "look")
    colour, shape = str(rng.choice(tuple(COLOURS))), str(rng.choice(SHAPES))
    return Look(
        colour=colour,
        background=_background(rng),
        objects={
            "left": _object(rng, colour, shape, centre_x=36),
            "right": _object(rng, colour, shape, centre_x=92),
        },
        noise_seed=int(rng.integers(1 << 31)),
    )


def frames(look: Look, script: Script) -> Iterator[np.ndarray]:
    """The video: uint8 [128, 128, 3] RGB, NUM_FRAMES times."""
    tracks = script.tracks_px()
    rng = np.random.default_rng(look.noise_seed)
    state, clean = None, np.empty(0)
    for index in range(NUM_FRAMES):
        now = tuple(tuple(tracks[actor][index]) for actor in ("camera", "left", "right"))
        if now != state:
            state, clean = now, _compose(look, *now)
        noise = _NOISES[rng.integers(_NUM_NOISES)]
        noise = np.roll(noise, tuple(rng.integers(SIDE_PX, size=2)), axis=(0, 1))
        yield (clean + noise[:, :, None]).clip(0, 255).astype(np.uint8)


def _compose(
    look: Look, camera: tuple[float, float], left: tuple[float, float], right: tuple[float, float]
) -> np.ndarray:
    """float32 [128, 128, 3]: grey levels plus 0.5, ready for truncation."""
    picture = _crop(look.background, MARGIN_PX + camera[0], MARGIN_PX + camera[1])
    for thing, moved in ((look.objects["left"], left), (look.objects["right"], right)):
        corner = np.array(thing.centre_px) - _SPRITE_PX / 2 + moved - camera
        _paint(picture, thing.sprite, float(corner[0]), float(corner[1]))
    return picture + 0.5


def _crop(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """The frame whose top left corner is at (x, y) of a larger picture, bilinearly."""
    column, row = int(np.floor(x)), int(np.floor(y))
    right, down = np.float32(x - column), np.float32(y - row)
    part = image[row : row + SIDE_PX + 1, column : column + SIDE_PX + 1]
    part = part[:-1] + (part[1:] - part[:-1]) * down
    return part[:, :-1] + (part[:, 1:] - part[:, :-1]) * right


def _paint(picture: np.ndarray, sprite: np.ndarray, x: float, y: float) -> None:
    """Put a sprite's corner at (x, y), bilinearly, over what is there."""
    column, row = int(np.floor(x)), int(np.floor(y))
    right, down = np.float32(x - column), np.float32(y - row)
    padded = np.pad(sprite, ((1, 1), (1, 1), (0, 0)))
    moved = padded[1:] + (padded[:-1] - padded[1:]) * down
    moved = moved[:, 1:] + (moved[:, :-1] - moved[:, 1:]) * right  # [49, 49, 4], its corner at (column, row)
    top, left = max(row, 0), max(column, 0)
    bottom, end = min(row + len(moved), SIDE_PX), min(column + len(moved), SIDE_PX)
    if top >= bottom or left >= end:
        return
    moved = moved[top - row : bottom - row, left - column : end - column]
    under = picture[top:bottom, left:end]
    under *= 1 - moved[:, :, 3:]
    under += moved[:, :, :3]


def _pink_noise(rng: np.random.Generator, side: int, *, exponent: float) -> np.ndarray:
    """float32 [side, side] of mean 0 and deviation 1, whose amplitude falls with frequency ** exponent."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) / frequency**exponent
    spectrum[frequency > 0.35] = (
        0  # a lens blurs the finest detail; so bilinear shifts hardly change anything
    )
    noise = np.fft.irfft2(spectrum, s=(side, side))
    return (noise / noise.std()).astype(np.float32)


def _background(rng: np.random.Generator) -> np.ndarray:
    side = SIDE_PX + 2 * MARGIN_PX
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    tint = rng.uniform(95, 155) + rng.uniform(-18, 18, size=3)
    image = np.broadcast_to(tint, (side, side, 3)).astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = ((x - side / 2) * np.cos(angle) + (y - side / 2) * np.sin(angle)) / side
    image += ramp[:, :, None] * rng.uniform(-40, 40, size=3).astype(np.float32)
    for _ in range(rng.integers(6, 12)):
        mask = _soft_region(rng, x, y, side)
        tone = image.mean(axis=(0, 1)) + rng.uniform(-55, 55) + rng.uniform(-15, 15, size=3)
        weight = (mask * rng.uniform(0.5, 0.95))[:, :, None].astype(np.float32)
        image += (tone.astype(np.float32) - image) * weight
    image += rng.uniform(14, 26) * _pink_noise(rng, side, exponent=rng.uniform(0.9, 1.2))[:, :, None]
    for channel in range(3):
        image[:, :, channel] += rng.uniform(3, 7) * _pink_noise(rng, side, exponent=1.2)
    return image.clip(8, 247)


def _soft_region(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, side: int) -> np.ndarray:
    """float32 [side, side] in 0 to 1: an ellipse, or a half plane, with an edge of about 1 to 4 px."""
    centre_x, centre_y = rng.uniform(0, side, size=2)
    angle, softness = rng.uniform(0, np.pi), rng.uniform(1, 4)
    along = (x - centre_x) * np.cos(angle) + (y - centre_y) * np.sin(angle)
    across = (y - centre_y) * np.cos(angle) - (x - centre_x) * np.sin(angle)
    if rng.random() < 0.25:
        distance = along - rng.uniform(0, side / 3)
    else:
        radii = rng.uniform(8, 60, size=2)
        distance = (1 - np.hypot(along / radii[0], across / radii[1])) * radii.min()
    return np.clip(distance / softness + 0.5, 0, 1)


def _object(rng: np.random.Generator, colour: str, shape: str, *, centre_x: float) -> Object:
    centre = centre_x + rng.uniform(-6, 6), SIDE_PX / 2 + rng.uniform(-16, 16)
    axis = np.arange(_SPRITE_PX, dtype=np.float32) + 0.5 - _SPRITE_PX / 2
    x, y = axis[None, :], axis[:, None]
    alpha = np.clip(_inside_px(shape, x, y, radius=rng.uniform(14, 18)) + 0.5, 0, 1)
    shade = 0.78 + 0.22 * _texture(rng, x, y)
    shade += 0.05 * _pink_noise(rng, _SPRITE_PX, exponent=0.8)
    rgb = (shade[:, :, None] * np.array(COLOURS[colour], np.float32)).clip(0, 255)
    sprite = np.concatenate([rgb * alpha[:, :, None], alpha[:, :, None]], axis=2)
    return Object(centre_px=centre, sprite=sprite.astype(np.float32))


def _inside_px(shape: str, x: np.ndarray, y: np.ndarray, *, radius: float) -> np.ndarray:
    """Distance to the shape's edge in pixels, positive inside; all shapes have about the same area."""
    if shape == "disc":
        return radius - np.hypot(x, y)
    if shape == "square":
        return 0.89 * radius - np.maximum(abs(x), abs(y))
    if shape == "triangle":
        return np.minimum(0.75 * radius - y, (y + 1.35 * radius) * 0.5 - abs(x) * 0.87)
    arm, half = 1.05 * radius, 0.5 * radius
    return np.maximum(np.minimum(arm - abs(x), half - abs(y)), np.minimum(half - abs(x), arm - abs(y)))


def _texture(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[48, 48] in -1 to 1: stripes, checks, rings or blotches."""
    angle, period, phase = rng.uniform(0, np.pi), rng.uniform(7, 12), rng.uniform(0, 2 * np.pi)
    along = (x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period + phase
    across = (y * np.cos(angle) - x * np.sin(angle)) * 2 * np.pi / period
    pattern = rng.integers(4)
    if pattern == 0:
        wave = np.sin(along) * np.ones_like(along)
    elif pattern == 1:
        wave = 2 * np.sin(along) * np.cos(across)
    elif pattern == 2:
        wave = np.sin(np.hypot(x, y) * 2 * np.pi / period + phase)
    else:
        wave = _pink_noise(rng, _SPRITE_PX, exponent=0.9)
    return np.tanh(2 * wave)


def _noises() -> np.ndarray:
    rng = np.random.default_rng(20260101)
    return (rng.standard_normal((_NUM_NOISES, SIDE_PX, SIDE_PX)) * _NOISE_SD).astype(np.float32)


_NOISES = _noises()
"""float32 [_NUM_NOISES, 128, 128]: a camera's noise; each frame takes one of them, shifted."""
