"""A cluster of which a test writes what happens: no process, no time."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from cope_prep.jobs.worker import Done

GIB = 2**30


class RayError(Exception): ...


class RayTaskError(RayError): ...


class NodeDiedError(RayError): ...


class RuntimeEnvSetupError(RayError): ...


class _Exceptions:
    RayError = RayError
    RayTaskError = RayTaskError
    NodeDiedError = NodeDiedError
    RuntimeEnvSetupError = RuntimeEnvSetupError


def done(value: object = "done", node_id: str = "good") -> tuple[str, bytes]:
    """What a task answers whose call returned."""
    return node_id, pickle.dumps(Done(value=value, wall_s=0.0, cpu_s=0.0))


class FakeRay:
    """The ray module, the one task of an executor, and its gate."""

    exceptions = _Exceptions
    name = "gate"

    def __init__(self, answer: Callable[[int, dict[str, Any]], Any], *, nodes: dict[str, int]) -> None:
        """`answer(number, asked)`: what the submission of this number answers, or raises if it is an exception;
        None: it has not ended. `nodes`: id -> memory in bytes; all have two CPUs.
        """
        self._answer = answer
        self.nodes_bytes = nodes
        self.submitted: list[dict[str, Any]] = []
        self.withdrawn: list[str] = []
        self.levels: list[int] = []
        self.visitors = False
        self.timeouts_s: list[float] = []

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": name, "Alive": True, "Resources": {"CPU": 2.0, "memory": float(size)}}
            for name, size in self.nodes_bytes.items()
        ]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0 * len(self.nodes_bytes)}

    def remote(self, *, num_cpus: int, max_retries: int) -> Callable[[object], Task]:
        return lambda function: Task(self, {})

    def wait(self, refs: list[int], *, num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        self.timeouts_s.append(timeout)
        ended = [ref for ref in refs if self._answer(ref, self.submitted[ref]) is not None][:num_returns]
        return ended, [ref for ref in refs if ref not in ended]

    def get(self, ref: int) -> Any:
        found = self._answer(ref, self.submitted[ref])
        if isinstance(found, Exception):
            raise found
        return found

    def reach(self, level: int) -> None:
        self.levels.append(level)

    def withdraw(self, submission: str) -> None:
        self.withdrawn.append(submission)

    def has_visitors(self) -> bool:
        return self.visitors


class Task:
    """A remote function with options."""

    def __init__(self, ray: FakeRay, options: dict[str, Any]) -> None:
        self._ray = ray
        self._options = options

    def options(self, **options: Any) -> Task:
        return Task(self._ray, options)

    def remote(self, call: bytes, **arguments: Any) -> int:
        self._ray.submitted.append(self._options | arguments)
        return len(self._ray.submitted) - 1
