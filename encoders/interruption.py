"""Ctrl-C and SIGTERM: the step is finished and saved first; who asks twice is obeyed at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Within it, the first signal sets `is_set` and `number`, the second one does what it did before.

    Only in the main thread: elsewhere (Ray Train's workers) the signals are whoever's is there.
    """

    def __init__(self) -> None:
        self.is_set = False
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def begin_worker(worker: int) -> None:
    """In a loader's worker: outlive the first signal that is sent to the whole process group.

    Its batches are needed to end the step. The second SIGTERM ends it: torch and multiprocessing send one when they
    are done with a worker that does not leave by itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_next_time)


def _leave_next_time(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
