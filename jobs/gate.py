"""How a run tells its supervisors, wherever they are, to begin nothing more or to stop.

    driver: Gate(DRAINING or STOPPED) ──actor──> supervisors: has_reached(name, level)

An actor answers when the run reaches a level. Every supervisor asks once for each level and watches for the
answer: no message travels while a call runs. The gate also knows whether any supervisor has come by at all, and
which tasks were withdrawn before they began.

Not `ray.cancel`: when it meets a task that is just ending, Ray 2.60 aborts the driver ("Tried to complete task
that was not pending", the race of ray-project/ray#54785), and with it our ledger.
"""

from __future__ import annotations

import asyncio
import uuid
from concurrent.futures import Future
from typing import Any

DRAINING = 1
"""Begin no further call."""
STOPPED = 2
"""Stop the calls that run."""
_FIRST_ANSWER_S = 2.0
_MAX_SUPERVISORS = 100_000
"""Ray workers of one run: a bound only on the questions that wait at the gate."""


class Gate:
    """The driver's end."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        # Tasks get its name, and not a reference: Ray's driver would keep 17 KB for every task that carries one.
        self.name = f"cope-prep-gate-{uuid.uuid4().hex}"
        options = {
            "name": self.name,
            "num_cpus": 0,
            "max_concurrency": _MAX_SUPERVISORS,
            "resources": {"node:__internal_head__": 0.001},  # the node that no provider takes away
        }
        self._actor = ray.remote(**options)(_GateActor).remote()

    def reach(self, level: int) -> None:
        """Tell all supervisors; does not wait."""
        self._actor.reach.remote(level)

    def withdraw(self, submission: str) -> None:
        """Have a task that has not begun do nothing when it does; does not wait."""
        self._actor.withdraw.remote(submission)

    def has_visitors(self) -> bool:
        """True if a call may have begun somewhere: a supervisor has come by, or the gate does not answer."""
        try:
            return self._ray.get(self._actor.has_visitors.remote(), timeout=_FIRST_ANSWER_S)
        except self._ray.exceptions.RayError:
            return True


class _GateActor:
    def __init__(self) -> None:
        self._level = 0
        self._has_visitors = False
        self._withdrawn: set[str] = set()
        self._is_reached = {level: asyncio.Event() for level in (DRAINING, STOPPED)}

    async def reach(self, level: int) -> None:
        self._level = max(level, self._level)
        for lower, event in self._is_reached.items():
            if lower <= level:
                event.set()

    async def level(self) -> int:
        self._has_visitors = True
        return self._level

    async def has_visitors(self) -> bool:
        return self._has_visitors

    async def withdraw(self, submission: str) -> None:
        self._withdrawn.add(submission)

    async def is_withdrawn(self, submission: str) -> bool:
        return submission in self._withdrawn

    async def wait_until(self, level: int) -> None:
        await self._is_reached[level].wait()


_answers: dict[str, tuple[Any, dict[int, Any]]] = {}
"""In a Ray worker: name of a gate -> its actor, and the futures of its answers by level."""


def has_reached(name: str, level: int) -> bool:
    """True if the run has; asked in a Ray worker.

    Futures, and no `ray.get`: while a task waits there Ray lends its CPU to another task, and then both run.
    """
    import ray
    import ray.exceptions

    try:
        if name not in _answers:
            actor = ray.get_actor(name)
            _answers[name] = actor, {at: actor.wait_until.remote(at).future() for at in (DRAINING, STOPPED)}
            return (_now(actor.level.remote().future()) or 0) >= level
        answer = _answers[name][1][level]
        return answer.done() and answer.exception() is None
    except (ValueError, ray.exceptions.RayError):
        return False  # not there yet, or lost with its node: no reason to stop


def is_withdrawn(name: str, submission: str) -> bool:
    """True if the run has withdrawn this task; asked in a Ray worker, after `has_reached`."""
    import ray.exceptions

    try:
        return name in _answers and bool(_now(_answers[name][0].is_withdrawn.remote(submission).future()))
    except ray.exceptions.RayError:
        return False


def _now(answer: Future[Any]) -> Any:
    try:
        return answer.result(_FIRST_ANSWER_S)
    except TimeoutError:
        return None
