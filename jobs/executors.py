"""Where calls run: on Ray, or in this process. Both have the same four methods.

    submit(token, call, ...)       begin, or queue
    wait(timeout_s)                what has ended since: (token, Reply)
    capacity()                     how many calls it is worth to have submitted at this moment
    cancel()                       stop everything; what ended in the meantime

On Ray a call is one task of one CPU, which `worker.supervise` runs in a process that may die alone. Three
times as many tasks as CPUs are in flight: enough that no core waits for the driver, few enough that the
order (longest first) is kept, and more than the cluster can run, so that an autoscaler sees demand.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import pickle
import socket
import tempfile
import time
import uuid
import zipfile
from typing import Any, Protocol

from cope_prep.jobs import worker
from cope_prep.jobs.worker import Reply
from cope_prep.schemas.errors import ConfigurationError, WorkerDiedError

IN_FLIGHT_PER_CPU = 3
MIN_IN_FLIGHT = 8
"""On a cluster that has no CPU yet: the demand that makes it grow."""
_CAPACITY_INTERVAL_S = 5.0
_CANCEL_S = 6.0
_MAX_SUPERVISORS = 100_000
"""Ray workers of one run: a bound only on the questions that wait at the gate."""
_CONNECT_S = 5.0
_OBJECT_STORE_BYTES = 128 * 1024 * 1024
"""Calls and replies are a few hundred bytes, and travel inside Ray's own messages."""


class Executor(Protocol):
    """Runs calls: pickled `functools.partial` objects of top-level functions."""

    def submit(self, token: int, call: bytes, *, subject: str, time_limit_s: float | None) -> None:
        """Begin a call, or queue it. `subject` names it in error messages."""
        ...

    def wait(self, timeout_s: float) -> list[tuple[int, Reply]]:
        """Calls that have ended; waits for the first one at most `timeout_s`."""
        ...

    def capacity(self) -> int:
        """How many calls should be submitted and not ended, at this moment."""
        ...

    def cancel(self) -> list[tuple[int, Reply]]:
        """Stop all calls; returns those that ended by themselves before it took effect."""
        ...

    def close(self) -> None:
        """Give back everything."""
        ...


class InProcessExecutor:
    """One call at a time in this process (`--no-ray`): for debuggers. It has no time limit."""

    def __init__(self) -> None:
        self._submitted: list[tuple[int, bytes]] = []

    def submit(self, token: int, call: bytes, *, subject: str, time_limit_s: float | None) -> None:
        """Queue a call; `wait` performs it."""
        self._submitted.append((token, call))

    def wait(self, timeout_s: float) -> list[tuple[int, Reply]]:
        """Perform one call."""
        token, call = self._submitted.pop(0)
        return [(token, worker.perform(call))]

    def capacity(self) -> int:
        """One."""
        return 1

    def cancel(self) -> list[tuple[int, Reply]]:
        """Nothing runs between two calls of `wait`."""
        self._submitted.clear()
        return []

    def close(self) -> None:
        """Nothing to give back."""


class RayExecutor:
    """Calls as Ray tasks, on a Ray of our own (`local`), a running one (`auto`) or a remote one (`ray://`)."""

    def __init__(
        self,
        *,
        address: str = "local",
        workers: int | None = None,
        wheel: str | None = None,
    ) -> None:
        self._local = address == "local"
        self._workers = workers
        self._running: dict[Any, tuple[int, str]] = {}  # ObjectRef -> token, subject
        self._num_cpus = 0.0
        self._counted_s = float("-inf")
        self._ray = _connect(address=address, workers=workers, wheel=wheel)
        # Attempts are counted by `stage.run_items`, which knows whose fault a death was.
        self._task = self._ray.remote(num_cpus=1, max_retries=0)(_supervise)
        self._gate: Any = None
        self._gate_name = ""

    def submit(self, token: int, call: bytes, *, subject: str, time_limit_s: float | None) -> None:
        """Queue a task."""
        if self._gate is None:
            self._gate_name = f"cope-prep-gate-{uuid.uuid4().hex}"
            options = {"name": self._gate_name, "num_cpus": 0, "max_concurrency": _MAX_SUPERVISORS}
            self._gate = self._ray.remote(**options)(_Gate).remote()
        # Its name, and not a reference: Ray's driver would keep 17 KB for every task that carries one.
        ref = self._task.remote(call, subject=subject, time_limit_s=time_limit_s, gate_name=self._gate_name)
        self._running[ref] = token, subject

    def wait(self, timeout_s: float) -> list[tuple[int, Reply]]:
        """Replies of the tasks that have ended."""
        refs = list(self._running)
        if not self._ray.wait(refs, num_returns=1, timeout=timeout_s)[0]:
            return []
        replies = []
        for ref in self._ray.wait(refs, num_returns=len(refs), timeout=0)[0]:
            token, subject = self._running.pop(ref)
            replies.append((token, self._reply(ref, subject)))
        return replies

    def _reply(self, ref: Any, subject: str) -> Reply:
        exceptions = self._ray.exceptions
        try:
            return pickle.loads(self._ray.get(ref))
        except exceptions.RuntimeEnvSetupError as exc:
            raise ConfigurationError("--wheel", f"Ray cannot give it to its workers ({exc})") from exc
        except exceptions.RayTaskError as exc:
            return worker.failure_of(exc)
        except exceptions.RayError as exc:  # worker, node or raylet lost, or Ray's memory monitor struck
            return worker.failure_of(WorkerDiedError(subject, f"its Ray worker was lost ({_reason(exc)})"))

    def capacity(self) -> int:
        """Three tasks a CPU of the cluster as it is now."""
        if time.monotonic() - self._counted_s > _CAPACITY_INTERVAL_S:
            self._num_cpus = self._ray.cluster_resources().get("CPU", 0.0)
            self._counted_s = time.monotonic()
        if self._workers is not None and not self._local:
            return self._workers
        return max(MIN_IN_FLIGHT, int(IN_FLIGHT_PER_CPU * self._num_cpus))

    def cancel(self) -> list[tuple[int, Reply]]:
        """Stop all tasks; their children get the time to remove temporary files.

        Not by `ray.cancel`: when it meets a task that is just ending, Ray 2.60 aborts the driver ("Tried to
        complete task that was not pending", the race of ray-project/ray#54785), and with it our ledger.
        """
        if self._gate is not None:
            self._gate.open.remote()
        ended: list[tuple[int, Reply]] = []
        deadline_s = time.monotonic() + _CANCEL_S
        while self._running and (left_s := deadline_s - time.monotonic()) > 0:
            ended += self.wait(left_s)
        self._running.clear()
        self._gate = None
        return ended

    def close(self) -> None:
        """Stop our own Ray, or leave the cluster."""
        self._ray.shutdown()


class _Gate:
    """An actor that answers when the run is stopped. Every supervisor asks once, and watches for the answer."""

    def __init__(self) -> None:
        self._is_open = asyncio.Event()

    async def wait_until_open(self) -> None:
        await self._is_open.wait()

    async def open(self) -> None:
        self._is_open.set()


_answers: dict[str, Any] = {}  # in a Ray worker: name of a gate -> ObjectRef of its answer


def _is_open(gate_name: str) -> bool:
    import ray
    import ray.exceptions

    try:
        if gate_name not in _answers:
            _answers[gate_name] = ray.get_actor(gate_name).wait_until_open.remote()
        if not ray.wait([_answers[gate_name]], timeout=0)[0]:
            return False
        ray.get(_answers[gate_name])
    except (ValueError, ray.exceptions.RayError):
        return False  # not there yet, or lost with its node: no reason to stop
    return True


def _supervise(call: bytes, *, subject: str, time_limit_s: float | None, gate_name: str) -> bytes:
    """The body of a Ray task."""
    return worker.supervise(
        call, subject=subject, time_limit_s=time_limit_s, is_stopped=lambda: _is_open(gate_name)
    )


def _connect(*, address: str, workers: int | None, wheel: str | None) -> Any:
    """Start or join a Ray; returns the module."""
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        # Ray listens on all interfaces unless it believes to be on a laptop, where this variable is its
        # own way to say: this is no cluster, stay on 127.0.0.1. Ray reads it when it is imported.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Other users of this machine reach 127.0.0.1 too: a token that only our own processes inherit.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", uuid.uuid4().hex + uuid.uuid4().hex)
        options |= {
            "num_cpus": workers,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    _check_reachable(address)
    with contextlib.ExitStack() as stack:
        if wheel is not None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="cope-prep-wheel-"))
            options["runtime_env"] = {"py_modules": _unpack(wheel, folder)}
        import ray

        try:
            ray.init(**options)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as exc:
            raise ConfigurationError(f"--address {address}", f"no Ray there ({_reason(exc)})") from exc
    return ray


def _unpack(wheel: str, folder: str) -> list[str]:
    """The wheel's folders, for Ray to send to its workers.

    Not the wheel itself: Ray would have pip install it on every node together with all that it depends on,
    beside what is there already. It took two minutes a node, and put a second Ray before the first.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    except (OSError, zipfile.BadZipFile) as exc:
        raise ConfigurationError(f"--wheel {wheel}", f"cannot be read ({exc})") from exc
    if not os.path.isdir(os.path.join(folder, "cope_prep")):
        raise ConfigurationError(f"--wheel {wheel}", "is not a wheel of cope-prep")
    return sorted(entry.path for entry in os.scandir(folder))


def _reason(exc: BaseException) -> str:
    """The first line of a message of Ray's, which may have many."""
    lines = str(exc).strip().splitlines()
    return lines[0] if lines else type(exc).__name__


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes, and log its attempts, where nothing listens."""
    if address.startswith("ray://") and importlib.util.find_spec("grpc") is None:
        raise ConfigurationError(
            f"--address {address}",
            "needs the Ray client",
            "Run: pip install 'ray[client]', or use HOST:PORT.",
        )
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as exc:
        raise ConfigurationError(f"--address {address}", f"no Ray there ({exc})") from exc
