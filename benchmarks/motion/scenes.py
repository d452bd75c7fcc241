"""What happens in each video of the motion benchmark: scripts on the grid of windows, with the answers they give.

    move    one object moves once: which one, which way, how fast, and did it stop before the end
    count   one object moves one, two or three times: how many times, and which one
    order   both objects move, one after the other: which one first
    pan     the camera moves: which way
    what    the camera or an object moves: which of the two

A motion fills whole windows of 8 frames, so that at every anchor a scene is either at rest or on the boundary of
two windows. The answers of one kind are the factors of a balanced design: of each block of consecutive videos of
a kind every combination of answers occurs once. So no answer tells another, and each is at chance for who sees
no motion. What else is in a script (speeds, directions, times that nobody asks for) is drawn independently of them.

Everything depends on (seed, split, index) only: the first videos of a larger set are those of a smaller one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

FPS = 30
NUM_FRAMES = 64
"""One GOP."""
WINDOW = 8
NUM_WINDOWS = (NUM_FRAMES - 1) // WINDOW
"""Seven: the anchors are the frames 0, 8, ..., 56."""

ACTORS = ("left", "right", "camera")
"""The object that begins in the left half, the one that begins in the right half, the camera."""
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS_PX = {"slow": 0.5, "fast": 1.25}
"""Pixels a frame; multiples of H.264's quarter pixel. Over 3 windows the fast one comes 30 px far."""

_BLOCK_OF_KINDS = ("move",) * 6 + ("count",) * 4 + ("order",) * 4 + ("pan",) * 3 + ("what",) * 3
KINDS = tuple(dict.fromkeys(_BLOCK_OF_KINDS))
FACTORS: dict[str, dict[str, tuple[str, ...]]] = {
    "move": {
        "direction": tuple(DIRECTIONS),
        "speed": tuple(SPEEDS_PX),
        "which": ("left", "right"),
        "stop": ("yes", "no"),
    },
    "count": {"count": ("one", "two", "three"), "which": ("left", "right")},
    "order": {"order": ("left", "right")},
    "pan": {"pan": tuple(DIRECTIONS)},
    "what": {"what": ("camera", "object")},
}
"""Kind of script -> question type -> answers; the answer to `order` is the object that moves first."""
_ORDER_STARTS = tuple((first, second) for first in range(3) for second in range(first + 3, 6))
"""First windows of the two motions of `order`, of two windows each, with one of rest between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """An actor moves evenly over whole windows."""

    actor: str
    direction: str
    speed: str
    start_window: int
    num_windows: int

    @property
    def goes_on(self) -> bool:
        """It lasts to the end of the video, beyond the last anchor."""
        return self.start_window + self.num_windows == NUM_WINDOWS

    def track_px(self) -> np.ndarray:
        """float64 [NUM_FRAMES, 2]: how far the actor has come at each frame, (x, y)."""
        start = self.start_window * WINDOW
        last = NUM_FRAMES if self.goes_on else start + self.num_windows * WINDOW
        num_steps = np.clip(np.arange(NUM_FRAMES), start, last) - start
        return num_steps[:, None] * np.array(DIRECTIONS[self.direction]) * SPEEDS_PX[self.speed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What happens in one video, and what can be asked about it."""

    kind: str
    motions: tuple[Motion, ...]
    answers: dict[str, str]
    """Question type -> answer, of the questions about motion that fit the script."""

    def tracks_px(self) -> dict[str, np.ndarray]:
        """Actor -> float64 [NUM_FRAMES, 2]: its displacement since frame 0 in the world's pixels, (x, y)."""
        tracks = {actor: np.zeros((NUM_FRAMES, 2)) for actor in ACTORS}
        for motion in self.motions:
            tracks[motion.actor] += motion.track_px()
        return tracks


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A stream of random numbers of its own for each name."""
    text = "/".join(map(str, (seed, *names)))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16]))


def plan_script(index: int, *, split: str, seed: int) -> Script:
    """The script of a split's video."""
    kind, answers = _design(index, split=split, seed=seed)
    rng = generator(seed, split, index, "script")
    motions = _MOTIONS[kind](answers, rng)
    return Script(kind=kind, motions=tuple(motions), answers=answers)


def _design(index: int, *, split: str, seed: int) -> tuple[str, dict[str, str]]:
    """Kind and answers of a video: a place in a shuffled block of kinds, then in a shuffled block of answers."""
    block, place = divmod(index, len(_BLOCK_OF_KINDS))
    kinds = generator(seed, split, "kinds", block).permutation(_BLOCK_OF_KINDS).tolist()
    kind = kinds[place]
    number = block * _BLOCK_OF_KINDS.count(kind) + kinds[:place].count(kind)
    factors = FACTORS[kind]
    num_combinations = prod(map(len, factors.values()))
    answer_block, answer_place = divmod(number, num_combinations)
    order = generator(seed, split, kind, answer_block).permutation(num_combinations)
    combination = tuple(product(*factors.values()))[order[answer_place]]
    return kind, dict(zip(factors, combination, strict=True))


def _any_motion(rng: np.random.Generator, *, actor: str, start_window: int, num_windows: int) -> Motion:
    return Motion(
        actor=actor,
        direction=str(rng.choice(tuple(DIRECTIONS))),
        speed=str(rng.choice(tuple(SPEEDS_PX))),
        start_window=start_window,
        num_windows=num_windows,
    )


def _move(answers: dict[str, str], rng: np.random.Generator) -> list[Motion]:
    num_windows = int(rng.integers(2, 4))
    # Who stops rests for two windows at least; who does not is still on the way at the end.
    start = NUM_WINDOWS - num_windows
    if answers["stop"] == "yes":
        start = int(rng.integers(0, start - 1))
    return [
        Motion(
            actor=answers["which"],
            direction=answers["direction"],
            speed=answers["speed"],
            start_window=start,
            num_windows=num_windows,
        )
    ]


def _count(answers: dict[str, str], rng: np.random.Generator) -> list[Motion]:
    num_bursts = FACTORS["count"]["count"].index(answers["count"]) + 1
    # At least one window of rest between two bursts, and one after the last: they are placed in what is left.
    free = NUM_WINDOWS - num_bursts
    places = np.sort(rng.choice(free, size=num_bursts, replace=False)) + np.arange(num_bursts)
    return [
        _any_motion(rng, actor=answers["which"], start_window=int(place), num_windows=1) for place in places
    ]


def _order(answers: dict[str, str], rng: np.random.Generator) -> list[Motion]:
    first = answers["order"]
    second = "right" if first == "left" else "left"
    starts = _ORDER_STARTS[rng.integers(len(_ORDER_STARTS))]
    return [
        _any_motion(rng, actor=actor, start_window=start, num_windows=2)
        for actor, start in zip((first, second), starts, strict=True)
    ]


def _pan(answers: dict[str, str], rng: np.random.Generator) -> list[Motion]:
    num_windows = int(rng.integers(2, 4))
    start = int(rng.integers(0, NUM_WINDOWS - num_windows + 1))
    speed = str(rng.choice(tuple(SPEEDS_PX)))
    return [
        Motion(
            actor="camera",
            direction=answers["pan"],
            speed=speed,
            start_window=start,
            num_windows=num_windows,
        )
    ]


def _what(answers: dict[str, str], rng: np.random.Generator) -> list[Motion]:
    num_windows = int(rng.integers(2, 4))
    start = int(rng.integers(0, NUM_WINDOWS - num_windows + 1))
    actor = "camera" if answers["what"] == "camera" else str(rng.choice(("left", "right")))
    return [_any_motion(rng, actor=actor, start_window=start, num_windows=num_windows)]


_MOTIONS = {"move": _move, "count": _count, "order": _order, "pan": _pan, "what": _what}
