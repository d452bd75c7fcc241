"""What a job tells Prometheus, through Ray: docs/cluster-metrics.md.

    driver: emit(row) ──ray.util.metrics──> metrics agent of the driver's node ──HTTP──> Prometheus

The driver counts, where it records: so each row of a ledger counts once, with whatever attempts it took. A worker
could not know whether its result was the one that was kept. Ray puts `ray_` before the names and labels of its own
beside ours. No label grows with the dataset: error classes are those of the code, and no video is named.

Without Ray nothing is emitted. What goes wrong here is logged once, and never fails a job.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, ParamSpec

from cope_prep.jobs.executors import Executor, RayExecutor

SECONDS_BOUNDARIES = (
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    3600.0,
)
_logger = logging.getLogger("cope_prep")

P = ParamSpec("P")


def _never_fails(method: Callable[P, None]) -> Callable[P, None]:
    """Turn the first exception into a warning, and whatever comes after it into nothing."""

    @functools.wraps(method)
    def wrapped(*arguments: P.args, **options: P.kwargs) -> None:
        metrics: Any = arguments[0]
        if not metrics.is_on:
            return
        try:
            method(*arguments, **options)
        except Exception as exc:
            metrics.is_on = False
            _logger.warning("metrics are off for this stage: %s: %s", type(exc).__name__, exc)

    return wrapped


class StageMetrics:
    """The metrics of one stage in one run."""

    def __init__(self, stage: str, executor: Executor | None) -> None:
        """They are on if the executor is Ray's."""
        self.is_on = isinstance(executor, RayExecutor)
        self._stage = stage
        self._make()

    @_never_fails
    def _make(self) -> None:
        from ray.util import metrics

        self._videos = metrics.Counter(
            "cope_prep_videos_total", "Videos that ended.", tag_keys=("stage", "status")
        )
        self._video_seconds = metrics.Counter(
            "cope_prep_video_seconds_total", "Seconds of video that were done.", tag_keys=("stage",)
        )
        self._bytes = metrics.Counter(
            "cope_prep_bytes_total", "Bytes of what was done.", tag_keys=("stage", "direction")
        )
        self._failures = metrics.Counter(
            "cope_prep_failures_total", "Failures by class of error.", tag_keys=("stage", "error_class")
        )
        self._seconds = metrics.Histogram(
            "cope_prep_stage_seconds",
            "Seconds that a video, or a shard, took.",
            boundaries=list(SECONDS_BOUNDARIES),
            tag_keys=("stage",),
        )
        self._items = metrics.Gauge(
            "cope_prep_items", "Videos or shards that have not ended.", tag_keys=("stage", "state")
        )

    @_never_fails
    def video_ended(self, *, status: str, video_s: float) -> None:
        """A row was recorded: `ok`, `partial` or `failed`."""
        self._videos.inc(1, {"stage": self._stage, "status": status})
        if video_s > 0:
            self._video_seconds.inc(video_s, {"stage": self._stage})

    @_never_fails
    def item_ended(
        self, *, wall_s: float, bytes_in: int = 0, bytes_out: int = 0, error_class: str = ""
    ) -> None:
        """A video or shard ended. `error_class` if it failed; else the sizes of its input and its output."""
        tags = {"stage": self._stage}
        self._seconds.observe(wall_s, tags)
        if error_class:
            self._failures.inc(1, tags | {"error_class": error_class})
        for direction, size_bytes in (("in", bytes_in), ("out", bytes_out)):
            if size_bytes > 0:
                self._bytes.inc(size_bytes, tags | {"direction": direction})

    @_never_fails
    def waiting(self, pending: int, in_flight: int) -> None:
        """How many items wait here, and how many Ray has: three a CPU, of which it runs one."""
        for state, number in (("pending", pending), ("in_flight", in_flight)):
            self._items.set(number, {"stage": self._stage, "state": state})
