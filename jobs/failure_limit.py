"""How many failures a run puts up with (`--max-failures`), and which ones later runs try again by themselves.

A wrong bucket or a broken installation fails every video in the same way. Without a limit 64 nodes would write
failures into the ledger all night.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from cope_prep.schemas import errors
from cope_prep.schemas.errors import ConfigurationError, CopePrepError

MIN_OUTCOMES = 50
"""A percentage is looked at once so many videos have ended: before, one failure would be many percent."""

TRIED_AGAIN = frozenset({"StorageError", "StoreRefusedError", "WorkerLostError"})
"""Error classes of the infrastructure: the next run tries these videos again without being asked."""

WORTH_ANOTHER_RUN = TRIED_AGAIN - {"StoreRefusedError"}
"""Those of which a run that follows at once may end otherwise."""

_HINTS = {
    "StorageError": "The store failed, not the videos: check that it can be reached, and has room.",
    "StoreRefusedError": "The store refused, which says nothing of the videos: check credentials and rights.",
    "SourceNotFoundError": "Check that the sources are where the manifest says; make it again if they moved.",
    "WorkerLostError": "The nodes failed, not the videos: check that cope-prep is installed on them.",
    "WorkerDiedError": "Check the memory of the nodes; fewer --workers need less.",
    "TimeLimitError": "Check whether --time-limit is long enough for such videos.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureLimit:
    """So many failures of a stage, or such a share of the videos that ended, are no reason to stop."""

    number: int | None = None
    share: float | None = None
    """In [0, 1]; looked at after MIN_OUTCOMES."""

    def __str__(self) -> str:
        return f"{self.number}" if self.share is None else f"{100 * self.share:g}%"

    def is_exceeded(self, *, num_failed: int, num_ended: int) -> bool:
        """True if there are more."""
        if self.number is not None and num_failed > self.number:
            return True
        return self.share is not None and num_ended >= MIN_OUTCOMES and num_failed > self.share * num_ended


def parse_failure_limit(text: str | None) -> FailureLimit | None:
    """`100` or `5%`; None is no limit.

    Raises:
        ConfigurationError: it is neither.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)\s*%", text.strip(), re.ASCII)
    if match is None or float(match[2] or 0) > 100:
        raise ConfigurationError(
            f"--max-failures {text}", "is neither a number nor a percentage", "For instance 100 or 5%."
        )
    if match[1]:
        return FailureLimit(number=int(match[1]))
    return FailureLimit(share=float(match[2]) / 100)


class TooManyFailures(Exception):  # noqa: N818 - it stops a stage, and never leaves it
    """More than the limit."""


class FailureCount:
    """The ends of one stage in one run, against its limit."""

    def __init__(self, stage: str, limit: FailureLimit | None) -> None:
        self._stage = stage
        self._limit = limit
        self._num_ended = 0
        self._num_by_class: Counter[str] = Counter()

    @property
    def num_ended(self) -> int:
        """All ends, good or bad."""
        return self._num_ended

    def add(self, error_class: str) -> None:
        """Count one end; an empty class is a good one."""
        self._num_ended += 1
        if error_class:
            self._num_by_class[error_class] += 1

    def check(self) -> None:
        """Raises:
        TooManyFailures: there are more failures than the limit allows; says what most of them are.
        """
        num_failed = self._num_by_class.total()
        if self._limit is None or not self._limit.is_exceeded(
            num_failed=num_failed, num_ended=self._num_ended
        ):
            return
        error_class, number = self._num_by_class.most_common(1)[0]
        is_tried_again = self._stage == "shards" or error_class in TRIED_AGAIN
        again = "" if is_tried_again else f", with --retry-failed={error_class} if that was its fault"
        raise TooManyFailures(
            f"{self._stage} was stopped: {num_failed} of {self._num_ended} failed, and --max-failures is"
            f" {self._limit}. {number} of them: {error_class}. {_hint(error_class)} What is done is recorded;"
            f" run the same command again to go on{again}."
        )


def _hint(error_class: str) -> str:
    if error_class in _HINTS:
        return _HINTS[error_class]
    found = getattr(errors, error_class, None)
    if isinstance(found, type) and issubclass(found, CopePrepError):
        return "Look at one of the files."
    return "No video's fault: a broken installation, or a bug; the log has a traceback."
