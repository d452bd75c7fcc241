"""How fast a stage goes and whether it goes at all, from when its videos ended and how long each took.

    the job's clock    ──[a──a]────[b──b]──────────── pause ───[c──c]──[d─────d]── idle ──> now
    the window                                                 └ first start        last end + idle ┘

The rate is that of the last ten minutes before the last end, from the last pause on: a stretch in which no video
was worked on, for the job was stopped. While something is pending, the time since the last end counts as well: a
job that is stuck gets slower. That time is measured by the clock of who asks, for that of the job may differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from cope_prep.jobs.status_records import NodeRate

pc: Any = pyarrow.compute

RATE_WINDOW_S = 600.0
RUNNING_WITHIN_S = 120.0
"""A stage with work left, in which something ended so recently, is taken to be running."""
PAUSE_S = 10.0
"""Between the end of a task and the start of the next one a job takes a second or two."""
CLOCKS_DIFFER_S = 5.0
"""Clocks that are set over a network agree better than that."""


class LastEnd:
    """When the last video of a ledger ended, by the clock of who looks at it from time to time."""

    def __init__(self) -> None:
        self._known: tuple[float, int] | None = None
        self._own_unix_s = 0.0
        self._looked_unix_s = float("-inf")

    def idle_s(self, last_unix_s: float, *, num_rows: int, now_unix_s: float) -> float:
        """How long ago it was; `last_unix_s` is what the ledger says, and with `num_rows` shows what is new."""
        if (last_unix_s, num_rows) != self._known:
            # It was written between the look before and this one, whatever the other clock said.
            self._own_unix_s = min(max(last_unix_s, self._looked_unix_s), now_unix_s)
            self._known = last_unix_s, num_rows
        self._looked_unix_s = now_unix_s
        return max(now_unix_s - self._own_unix_s, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """As in StageStatus."""

    is_running: bool = False
    last_unix_s: float | None = None
    idle_s: float | None = None
    clock_ahead_s: float = 0.0
    videos_per_s: float | None = None
    video_seconds_per_s: float | None = None
    weight_per_s: float | None = None
    nodes: tuple[NodeRate, ...] = ()


def rates_of(
    rows: pa.Table, *, weight: np.ndarray, is_pending: bool, last_end: LastEnd, now_unix_s: float
) -> Rates:
    """The rates of a stage with these rows of its ledger; `weight` is float64 [num_rows]."""
    if not len(rows):
        return Rates()
    finished_unix_s = rows["finished_unix_s"].to_numpy()
    wall_s = rows["wall_s"].to_numpy()
    last_unix_s = float(finished_unix_s.max())
    idle_s = last_end.idle_s(last_unix_s, num_rows=len(rows), now_unix_s=now_unix_s)
    # Of long videos none may end for long.
    is_running = is_pending and idle_s < max(RUNNING_WITHIN_S, 2 * float(wall_s.max()))
    # The first of them began its wall time earlier: a stage of one video has a rate too.
    recent, start_unix_s = _window(finished_unix_s, wall_s)
    elapsed_s = max(last_unix_s + (idle_s if is_running else 0.0) - start_unix_s, 1e-3)
    video_s = rows["duration_s"].to_numpy()[recent]
    names = pc.fill_null(rows["node"].filter(pa.array(recent)), "").to_numpy(zero_copy_only=False)
    nodes, node = np.unique(names.astype(str), return_inverse=True)
    num_videos = np.bincount(node)
    ahead_s = last_unix_s - now_unix_s
    return Rates(
        is_running=is_running,
        last_unix_s=last_unix_s,
        idle_s=idle_s,
        clock_ahead_s=ahead_s if ahead_s > CLOCKS_DIFFER_S else 0.0,
        videos_per_s=len(video_s) / elapsed_s,
        video_seconds_per_s=float(video_s.sum()) / elapsed_s,
        weight_per_s=float(weight[recent].sum()) / elapsed_s,
        nodes=tuple(
            NodeRate(
                node=str(name), num_videos=number, videos_per_s=number / elapsed_s, video_seconds_per_s=rate
            )
            for name, number, rate in zip(
                nodes, num_videos.tolist(), (np.bincount(node, video_s) / elapsed_s).tolist(), strict=True
            )
        ),
    )


def _window(finished_unix_s: np.ndarray, wall_s: np.ndarray) -> tuple[np.ndarray, float]:
    """bool [num_rows]: over which of them the rate is taken; and when the first of these began."""
    recent = finished_unix_s > finished_unix_s.max() - RATE_WINDOW_S
    order = np.argsort(finished_unix_s[recent])
    ends_unix_s = finished_unix_s[recent][order]
    # Entry i: when the first of what ended at i or later began.
    starts_unix_s = np.minimum.accumulate((finished_unix_s - wall_s)[recent][order][::-1])[::-1]
    pauses = np.flatnonzero(starts_unix_s[1:] - ends_unix_s[:-1] > PAUSE_S)
    first = int(pauses[-1]) + 1 if len(pauses) else 0
    return finished_unix_s >= ends_unix_s[first], float(starts_unix_s[first])
