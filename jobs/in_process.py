"""Calls in this process, one after the other: the executor of `--no-ray`."""

from __future__ import annotations

from collections.abc import Callable

from cope_prep.jobs import worker
from cope_prep.jobs.replies import Reply
from cope_prep.jobs.resources import ORDINARY, Resources


class InProcessExecutor:
    """One call at a time: for debuggers. It has no limits."""

    def __init__(self, *, watch: Callable[[], None] = lambda: None) -> None:
        """`watch` is called before each call; what it raises ends the run."""
        self._watch = watch
        self._submitted: list[tuple[int, bytes]] = []

    def submit(
        self,
        token: int,
        call: bytes,
        *,
        subject: str,
        time_limit_s: float | None,
        resources: Resources = ORDINARY,
    ) -> None:
        """Queue a call; `wait` performs it."""
        self._submitted.append((token, call))

    def wait(self, timeout_s: float) -> list[tuple[int, Reply]]:
        """Perform one call."""
        self._watch()
        if not self._submitted:
            return []
        token, call = self._submitted.pop(0)
        return [(token, worker.perform(call))]

    def capacity(self) -> int:
        """One."""
        return 1

    def parallel(self) -> int:
        """One."""
        return 1

    def cancel(self) -> list[tuple[int, Reply]]:
        """Nothing runs between two calls of `wait`."""
        self._submitted.clear()
        return []

    def close(self) -> None:
        """Nothing to give back."""
