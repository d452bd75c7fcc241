"""When a stage is over because the store refuses everything: credentials ran out, or a role has lost its rights.

A file that may not be read is a row of the ledger, and no more. A store that refuses all would make such rows of a
whole dataset within minutes. So a stage begins nothing more once many videos in a row were refused, and waits for
those that still run: if one of them is not refused the stage goes on, else it is over. What an earlier run was
refused comes last and is not counted again, so every run gets further.
"""

from __future__ import annotations

from cope_prep.jobs.failure_limit import TRIED_AGAIN
from cope_prep.schemas.errors import StoreRefusedError

REFUSED = StoreRefusedError.__name__
MIN_IN_A_ROW = 200
"""Fewer are tried to the end: that takes seconds."""
_SHARE = 0.05
"""Of the videos that went well, in former runs too. So many that may not be read are a part of the dataset: an
archived subset of short videos, which are the last to be begun."""


class Refusals:
    """The ends of one stage, as far as they tell whether the store still serves this run."""

    def __init__(self, stage: str, *, num_good: int) -> None:
        """`num_good`: videos of the stage that are done already."""
        self._stage = stage
        self._num_good = num_good
        self._num_ended = 0
        self._num_refused = 0
        self._num_in_a_row = 0
        self._last = ""

    def add(self, error_class: str, error_message: str, *, was_refused: bool = False) -> None:
        """Count one end; an empty class is a good one. `was_refused`: by an earlier run, which says nothing new."""
        self._num_ended += 1
        self._num_good += not error_class
        if error_class == REFUSED:
            self._num_refused += 1
            self._num_in_a_row += not was_refused
            self._last = error_message
        elif error_class not in TRIED_AGAIN:  # which say nothing about it
            self._num_in_a_row = 0

    def are_too_many(self) -> bool:
        """True if nothing more should be begun, until something is not refused."""
        return self._num_in_a_row >= max(MIN_IN_A_ROW, _SHARE * self._num_good)

    def why_stopped(self, *, num_items: int) -> str:
        """Once nothing runs: why the stage is over before its work is done, in whole sentences; else empty.

        `num_items`: videos that it was to try.
        """
        if self._num_refused == self._num_ended > 0 and not self._num_good:
            found = f"the store refused all videos that were tried ({self._num_ended})"
        elif self.are_too_many() and self._num_ended < num_items:
            found = f"the store refused {self._num_in_a_row} videos one after the other"
        else:
            return ""
        return (
            f"{self._stage} was stopped: {found}. The last: {self._last.removesuffix('.')}. What is done is"
            " recorded; run the same command again to go on, with these as well."
        )
