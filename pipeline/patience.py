"""Writing down what a run has kept, every two seconds, where writing may fail for a while.

What cannot be written, on a full disk above all, is kept and tried again; only when that has lasted for
`patience_s` is it an error. At the end of a run that was stopped, for two seconds: it must not take long. There
is no thread: whoever waits for work asks now and then whether it is time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from cope_prep.schemas.errors import StorageError

FLUSH_INTERVAL_S = 2.0
PATIENCE_S = 60.0
"""How long who cannot write keeps what it has before it gives up."""
STOP_PATIENCE_S = 2.0
_AGAIN_S = 0.5

_logger = logging.getLogger("cope_prep")


class PatientFlush:
    """When to call a function that writes what is kept, and what to do when it cannot."""

    def __init__(self, write: Callable[[], None], *, patience_s: float, keeping: str) -> None:
        """`write` raises StorageError if it could not, and keeps what it has; `keeping` names that to the user."""
        self._write = write
        self._patience_s = patience_s
        self._keeping = keeping
        self._flushed_s = time.monotonic()
        self._failing_since_s: float | None = None

    def now(self) -> None:
        """Write.

        Raises:
            StorageError: it could not be written; it is kept.
        """
        self._write()
        self._failing_since_s = None
        self._flushed_s = time.monotonic()

    def if_due(self, *, is_much: bool = False) -> None:
        """Write if the last time is two seconds ago, or if it is much and the last time was no failure.

        Raises:
            StorageError: it could not be written for so long that it is given up.
        """
        waited_s = time.monotonic() - self._flushed_s
        if waited_s < FLUSH_INTERVAL_S and not (is_much and self._failing_since_s is None):
            return
        try:
            self.now()
        except StorageError as exc:
            now_s = self._flushed_s = time.monotonic()
            if self._failing_since_s is None:
                self._failing_since_s = now_s
                _logger.warning(
                    "%s; keeping %s, and trying again for %g s", exc, self._keeping, self._patience_s
                )
            elif now_s - self._failing_since_s > self._patience_s:
                raise

    def at_end(self, *, stopped: bool) -> None:
        """Write, again and again if need be; for STOP_PATIENCE_S at most if the run was stopped.

        Raises:
            StorageError: it could not be written.
        """
        patience_s = min(self._patience_s, STOP_PATIENCE_S) if stopped else self._patience_s
        until_s = time.monotonic() + patience_s
        while True:
            try:
                self.now()
                return
            except StorageError:
                if time.monotonic() >= until_s:
                    raise
                time.sleep(_AGAIN_S)
