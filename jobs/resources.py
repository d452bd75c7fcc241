"""What one task asks of the cluster: Ray places it by this, and the process that does the work is held to it."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_MEMORY_BYTES = 2 * 1024**3
"""Most memory of a worker process, where nothing else is asked for.

Measured peaks, imports and compiled code included: 220 MiB for ordinary video, 550 MiB for 4K H.264 with 16
reference frames. The largest picture that is read at all (67 megapixels) has 100 MB, so 16 of them fit as well.
"""
MIN_MEMORY_BYTES = 512 * 1024**2
"""Below this a worker would hardly fit with nothing to do: its imports and compiled code take 170 MiB."""
MAX_MEMORY_BYTES = 16 * 1024**3
"""What a call can ask for where the user has set no limit: a header is quickly written, and a file is not to
choose the limit that holds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """A task's share of a machine: one CPU, always, for one thread works on a video; and memory."""

    memory_bytes: int | None = None
    """What the process that does the work is expected to need at most; Ray places it where that is free. None:
    what any ordinary video needs, for which Ray is asked nothing."""

    def limit_bytes(self, given_bytes: int | None) -> int:
        """Most memory that the process may take. `given_bytes`: what the user allows every process, if he says."""
        if given_bytes is not None:
            return given_bytes
        return max(DEFAULT_MEMORY_BYTES, min(self.memory_bytes or 0, MAX_MEMORY_BYTES))


ORDINARY = Resources()
"""A core, and the memory of an ordinary video."""
