"""A hand-written reader of the motion grid: proof that the answers are in the primitives.

    python benchmarks/motion/oracle.py DATASET        # for instance FOLDER/datasets/test

It looks at the vectors of a GOP alone: in which windows blocks move, where these are, which way and how far they
go. The truth is that of questions.parquet, as the loader delivers it with the GOPs, so the whole path is checked.
Prints the accuracy of each type of question about motion.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from questions import MOTION_TYPES, type_of
from render import SIDE_PX
from scenes import DIRECTIONS, SPEEDS_PX, WINDOW

from cope_prep.pipeline.loader import QADataset

_MOVING_PX = 1.5
"""A vector this long moves: the slow speed makes 4 px a window, noise hardly one."""
_MIN_MOVING_SHARE = 0.01
"""Of the picture's blocks, for something to move at all: an object covers about 5 %."""
_CAMERA_SHARE = 0.4
_FAST_PX = sum(SPEEDS_PX.values()) / 2 * WINDOW


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """What moved in one window."""

    window: int
    step_px: tuple[float, float]
    """Median over the moving blocks: the way that the picture's content went."""
    from_x_px: float
    """Where the moving blocks came from, their mean."""
    share: float
    """Of the picture's blocks."""


def movements(motion_px: np.ndarray, intra: np.ndarray) -> list[Movement]:
    """The windows in which something moved, from float [P, Hb, Wb, 2] backward vectors and bool [P, Hb, Wb]."""
    block_px = SIDE_PX / motion_px.shape[2]
    found = []
    for window, (vectors, is_intra) in enumerate(zip(motion_px, intra, strict=True)):
        is_moving = (np.hypot(vectors[..., 0], vectors[..., 1]) > _MOVING_PX) & ~is_intra
        if is_moving.mean() < _MIN_MOVING_SHARE:
            continue
        moving = vectors[is_moving]
        x_px = (np.nonzero(is_moving)[1] + 0.5) * block_px
        back_x, back_y = np.median(moving, axis=0)
        found.append(
            Movement(
                window=window,
                step_px=(-float(back_x), -float(back_y)),
                from_x_px=float(np.median(x_px + moving[:, 0])),
                share=float(is_moving.mean()),
            )
        )
    return found


def answer(question_type: str, found: list[Movement], *, num_windows: int) -> str:
    """The answer to a question about motion."""
    if not found:
        return "nothing moved"
    first = found[0]
    step = np.sum([movement.step_px for movement in found], axis=0)
    match question_type:
        case "direction":
            return _direction(step)
        case "pan":
            return _direction(-step)  # the picture goes left when the camera goes right
        case "speed":
            length = np.median([np.hypot(*movement.step_px) for movement in found])
            return "fast" if length > _FAST_PX else "slow"
        case "which" | "order":
            return "left" if first.from_x_px < SIDE_PX / 2 else "right"
        case "stop":
            return "no" if found[-1].window == num_windows - 1 else "yes"
        case "count":
            return {1: "one", 2: "two", 3: "three"}.get(len(found), "more")
        case "what":
            return "camera" if max(movement.share for movement in found) > _CAMERA_SHARE else "object"
    raise ValueError(f"{question_type!r} is no question about motion")


def _direction(step: np.ndarray) -> str:
    return max(DIRECTIONS, key=lambda name: float(step @ np.array(DIRECTIONS[name])))


def accuracies(dataset: str) -> dict[str, tuple[int, int]]:
    """Question type -> (right, all), over all questions about motion of a dataset."""
    right, total = dict.fromkeys(MOTION_TYPES, 0), dict.fromkeys(MOTION_TYPES, 0)
    for batch in QADataset(dataset, shuffle=None, rank=0, world_size=1):
        gops = batch.gops
        motion_px = gops.motion[0].numpy() * gops.motion_step_px[0].numpy()[:, None, None, None]
        found = movements(motion_px, gops.intra[0].numpy())
        turns = batch.questions[0].turns
        for (_, asked), (_, truth) in zip(turns[::2], turns[1::2], strict=True):
            if (name := type_of(asked)) in total:
                total[name] += 1
                right[name] += answer(name, found, num_windows=len(motion_px)) == truth
    return {name: (right[name], total[name]) for name in MOTION_TYPES}


def main() -> None:
    """Print the accuracy by type."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    for name, (right, total) in accuracies(parser.parse_args().dataset).items():
        print(f"{name:10} {right / max(total, 1):6.1%} of {total}")


if __name__ == "__main__":
    main()
