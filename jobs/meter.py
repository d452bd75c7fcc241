"""What the calls of a stage took, item by item: every attempt, and what no number of cores would make shorter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cope_prep.jobs.executors import Executor
from cope_prep.jobs.worker import Done, Reply
from cope_prep.pipeline.split import Split


@dataclass(slots=True, kw_only=True)
class Spent:
    """The calls of one item."""

    wall_s: float = 0.0
    """Of all of them, those that failed and were tried again included."""
    cpu_s: float = 0.0
    before_s: float = 0.0
    """Of the calls before it was split, or of all."""
    num_parts: int = 0
    """0: it was not split."""
    after_s: list[float] = field(default_factory=list)
    """Of the parts, and of what joins them; or of the one call that did it all, where nothing runs side by side."""

    @property
    def floor_s(self) -> float:
        """With cores without end: the parts at the same time, and then the join."""
        if len(self.after_s) == 1:  # it could have been split: one part of it
            return self.before_s + self.after_s[0] / self.num_parts
        *parts_s, join_s = self.after_s or [0.0]
        return self.before_s + max(parts_s, default=0.0) + join_s

    def add(self, reply: Reply) -> None:
        """Count one call."""
        self.wall_s += reply.wall_s
        self.cpu_s += reply.cpu_s
        if self.num_parts:
            self.after_s.append(reply.wall_s)
            return
        self.before_s += reply.wall_s
        if isinstance(reply, Done) and isinstance(reply.value, Split):
            self.num_parts = len(reply.value.parts)


class Meter:
    """An executor that notes what its calls took."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._subjects: dict[int, str] = {}
        self._spent: defaultdict[str, Spent] = defaultdict(Spent)

    def take(self) -> Mapping[str, Spent]:
        """Subject -> its calls since the last time, or the beginning."""
        taken, self._spent = self._spent, defaultdict(Spent)
        return taken

    def submit(self, token: int, call: bytes, *, subject: str, **how: Any) -> None:
        """As the executor's."""
        self._subjects[token] = subject
        self._executor.submit(token, call, subject=subject, **how)

    def wait(self, timeout_s: float) -> list[tuple[int, Reply]]:
        """As the executor's."""
        replies = self._executor.wait(timeout_s)
        for token, reply in replies:
            self._spent[self._subjects.pop(token)].add(reply)
        return replies

    def capacity(self) -> int:
        """As the executor's."""
        return self._executor.capacity()

    def parallel(self) -> int:
        """As the executor's."""
        return self._executor.parallel()

    def cancel(self) -> list[tuple[int, Reply]]:
        """As the executor's."""
        return self._executor.cancel()

    def close(self) -> None:
        """Nothing: the executor is its owner's."""
