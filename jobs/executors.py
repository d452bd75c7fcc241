"""Where calls run: on Ray, or in this process. Both have the same methods.

    submit(token, call, ...)       begin, or queue
    wait(timeout_s)                what has ended since: (token, Reply)
    capacity()                     how many calls it is worth to have submitted at this moment
    parallel()                     how many of them run side by side
    cancel()                       stop everything; what ended in the meantime

On Ray a call is one task of one CPU, which `worker.supervise` runs in a process that may die alone. Three
times as many tasks as CPUs are in flight: enough that no core waits for the driver, few enough that the
order (longest first) is kept, and more than the cluster can run, so that an autoscaler sees demand.

A node that is lost is not the fault of what ran there: its calls are submitted again here, and nobody hears of
it. So are those that a node could not begin (nodes.py). `drain` is what a preemption notice asks for: nothing more
begins, what runs gets some seconds to end, and then `wait` raises KeyboardInterrupt, as Ctrl-C would.
"""

from __future__ import annotations

import dataclasses
import logging
import pickle
import re
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol

from cope_prep.jobs import node_entry, worker
from cope_prep.jobs.gate import DRAINING, STOPPED, Gate
from cope_prep.jobs.in_process import InProcessExecutor as InProcessExecutor
from cope_prep.jobs.nodes import Nodes
from cope_prep.jobs.ray_connection import connect, last_line, reason
from cope_prep.jobs.replies import Failure, Reply, failure_of, not_begun
from cope_prep.jobs.resources import ORDINARY, Resources
from cope_prep.pipeline.redact import redacted
from cope_prep.schemas.errors import WorkerLostError

IN_FLIGHT_PER_CPU = 3
MIN_IN_FLIGHT = 8
"""On a cluster that has no CPU yet: the demand that makes it grow."""
DRAIN_S = 8.0
"""What running calls get to end after a preemption notice. With what follows it stays below 20 s."""
NODE_LOSSES = 10
"""A call that lost so many nodes is perhaps what they died of: it is reported. So is one that as many times no
node could begin."""
_LONGEST_PAUSE_S = 30.0
_SHRUNK_S = 300.0
"""What an autoscaler gets to bring a node as large as the largest one that was lost."""
_CANCEL_S = 6.0
_NOT_LOADED = "failed to import on the worker"
"""Part of what Ray raises in the place of a function that it could not unpickle."""

_logger = logging.getLogger("cope_prep")


class Executor(Protocol):
    """Runs calls: pickled `functools.partial` objects of top-level functions."""

    def submit(
        self,
        token: int,
        call: bytes,
        *,
        subject: str,
        time_limit_s: float | None,
        resources: Resources = ORDINARY,
    ) -> None:
        """Begin a call, or queue it. `subject` names it in error messages."""
        ...

    def wait(self, timeout_s: float) -> list[tuple[int, Reply]]:
        """Calls that have ended; waits for the first one at most `timeout_s`, and not at all if none runs."""
        ...

    def capacity(self) -> int:
        """How many calls should be submitted and not ended, at this moment."""
        ...

    def parallel(self) -> int:
        """How many calls can run side by side: 1 if it makes no sense to split one."""
        ...

    def cancel(self) -> list[tuple[int, Reply]]:
        """Stop all calls; returns those that ended by themselves before it took effect."""
        ...

    def close(self) -> None:
        """Give back everything."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    token: int
    subject: str
    call: bytes
    time_limit_s: float | None
    resources: Resources
    asked_bytes: int = 0
    """Memory that Ray is to place it by; 0: none."""
    submission: str | None = None
    """By this name it can be withdrawn. Only a task that asks for memory has one."""
    num_lost: int = 0
    """Nodes that were lost under it, or could not begin it."""


class RayExecutor:
    """Calls as Ray tasks, on a Ray of our own (`local`), a running one (`auto`) or a remote one (`ray://`)."""

    def __init__(
        self,
        *,
        address: str = "local",
        workers: int | None = None,
        wheel: str | None = None,
        memory_bytes: int | None = None,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        """`memory_bytes`: most memory of any worker process; None: by what its call asks for (resources.py).

        `watch` is called by every `wait`; what it raises ends the run.
        """
        self._local = address == "local"
        self._workers = workers
        self._memory_bytes = memory_bytes
        self._watch = watch
        self._running: dict[Any, _Running] = {}  # by ObjectRef
        self._drain_until_s: float | None = None
        self._is_draining = False
        self._is_cancelled = False
        self._paused: list[tuple[float, _Running]] = []
        """Tasks that no node could begin, and when they are submitted again (time.monotonic)."""
        self._shrunk_since_s: float | None = None
        self._ray = connect(address=address, workers=workers, wheel=wheel)
        self._nodes = Nodes(self._ray, address=address, memory_bytes=memory_bytes)
        # Attempts are counted by `stage.run_items`, which knows whose fault a death was.
        self._task = self._ray.remote(num_cpus=1, max_retries=0)(node_entry.supervise_on_node)
        self._gate: Gate | None = None

    def submit(
        self,
        token: int,
        call: bytes,
        *,
        subject: str,
        time_limit_s: float | None,
        resources: Resources = ORDINARY,
    ) -> None:
        """Queue a task. It asks for no more than one node has, so that it is placed."""
        self._begin(
            _Running(token=token, subject=subject, call=call, time_limit_s=time_limit_s, resources=resources)
        )

    def _begin(self, running: _Running) -> None:
        """Submit a task, perhaps again, by the nodes that there are now."""
        if self._gate is None:
            self._gate = Gate(self._ray)
        task, asked_bytes = self._task, 0
        if running.resources != ORDINARY:
            request = self._nodes.request(running.resources)
            task, asked_bytes = task.options(**request), request.get("memory", 0)
        submission = uuid.uuid4().hex if asked_bytes else None
        ref = task.remote(
            running.call,
            subject=running.subject,
            time_limit_s=running.time_limit_s,
            memory_bytes=running.resources.limit_bytes(self._memory_bytes),
            gate_name=self._gate.name,
            submission=submission,
        )
        self._running[ref] = dataclasses.replace(running, asked_bytes=asked_bytes, submission=submission)

    def wait(self, timeout_s: float) -> list[tuple[int, Reply]]:
        """Replies of the tasks that have ended.

        Raises:
            KeyboardInterrupt: the run is drained: nothing runs any more, or the time for it has passed.
        """
        self._watch()
        if self._drain_until_s is None:
            self._begin_paused()
            self._begin_unplaceable()
            return self._ended(timeout_s)
        if self._gate is not None and not self._is_draining:
            self._gate.reach(DRAINING)
            self._is_draining = True
        left_s = self._drain_until_s - time.monotonic()
        if not self._running or left_s <= 0:
            raise KeyboardInterrupt
        return self._ended(min(timeout_s, left_s))

    def _ended(self, timeout_s: float) -> list[tuple[int, Reply]]:
        refs = list(self._running)
        if self._paused and not self._is_ending:
            timeout_s = max(0.0, min(timeout_s, self._paused[0][0] - time.monotonic()))
            time.sleep(0 if refs else timeout_s)
        if not refs or not self._ray.wait(refs, num_returns=1, timeout=timeout_s)[0]:
            return []
        replies = []
        for ref in self._ray.wait(refs, num_returns=len(refs), timeout=0)[0]:
            running = self._running.pop(ref)
            reply = self._reply(ref, running)
            if reply is not None:
                replies.append((running.token, reply))
        return replies

    def _reply(self, ref: Any, running: _Running) -> Reply | None:
        """None if there is nothing to say: it was stopped before it began, or another node gets it."""
        exceptions = self._ray.exceptions
        try:
            node_id, answer = self._ray.get(ref)
        except exceptions.RuntimeEnvSetupError as exc:
            return self._not_begun(running, last_line(exc), node_id=None)
        except exceptions.RayTaskError as exc:
            if _NOT_LOADED in str(exc):
                return self._not_begun(running, last_line(exc), node_id=None)
            error = WorkerLostError(running.subject, f"its Ray worker failed ({last_line(exc)})")
            # Without process and address it is the same text each time, and logged once.
            text = re.sub(r"\(pid=\d+, ip=[^)]*\)", "", str(exc))
            return dataclasses.replace(failure_of(error), traceback=redacted(text))
        except exceptions.RayError as exc:  # worker, node or raylet lost, or Ray's memory monitor struck
            is_node = isinstance(exc, exceptions.NodeDiedError)
            if is_node and running.num_lost < NODE_LOSSES and not self._is_ending:
                self._begin(dataclasses.replace(running, num_lost=running.num_lost + 1))
                return None
            return failure_of(WorkerLostError(running.subject, f"its Ray worker was lost ({reason(exc)})"))
        if isinstance(answer, str):
            return self._not_begun(running, answer, node_id=node_id)
        reply = pickle.loads(answer)
        if isinstance(reply, Failure) and reply.error_class == worker.StoppedError.__name__:
            return None
        if isinstance(reply, Failure) and reply.not_begun:
            return self._not_begun(running, reply.not_begun, node_id=node_id)
        self._nodes.has_worked = True
        return reply

    def _not_begun(self, running: _Running, problem: str, *, node_id: str | None) -> Reply | None:
        """Another node gets the call; which one is Ray's choice, so that the call may have to wait for it.

        Raises:
            ConfigurationError: nothing has begun anywhere, and no node is left that could.
        """
        if self._is_ending:
            return None
        running = dataclasses.replace(running, num_lost=running.num_lost + 1)
        self._nodes.cannot_begin(
            problem,
            node_id=node_id,
            num_times=running.num_lost,
            has_visitors=lambda: self._gate is not None and self._gate.has_visitors(),
        )
        if running.num_lost > NODE_LOSSES:
            return not_begun(running.subject, problem)
        # A node that says so itself has waited before. Ray does not wait.
        pause_s = 0.0 if node_id else min(2.0 ** (running.num_lost - 1), _LONGEST_PAUSE_S)
        self._paused.append((time.monotonic() + pause_s, running))
        self._paused.sort(key=lambda entry: entry[0])
        return None

    def _begin_paused(self) -> None:
        while self._paused and self._paused[0][0] <= time.monotonic():
            self._begin(self._paused.pop(0)[1])

    def _begin_unplaceable(self) -> None:
        """Submit tasks again that ask for more memory than any node has had for minutes.

        They have not begun, for what is larger than every node runs on none. Not `ray.cancel` (gate.py): should
        a large node come after all, the withdrawn task does nothing there.
        """
        most_bytes = self._nodes.most_bytes()
        waiting = [ref for ref, running in self._running.items() if running.asked_bytes > most_bytes]
        if not waiting:
            self._shrunk_since_s = None
            return
        if self._shrunk_since_s is None:
            self._shrunk_since_s = time.monotonic()
        if time.monotonic() - self._shrunk_since_s < _SHRUNK_S:
            return
        for ref in waiting:
            running = self._running.pop(ref)
            if self._gate is not None and running.submission is not None:
                self._gate.withdraw(running.submission)
            _logger.warning(
                "%s: no node has %.1f GiB any more; it goes where most is",
                running.subject,
                running.asked_bytes / 2**30,
            )
            self._begin(running)

    @property
    def _is_ending(self) -> bool:
        return self._is_cancelled or self._drain_until_s is not None

    def capacity(self) -> int:
        """Three tasks a CPU of the cluster as it is now; none more once the run is drained."""
        if self._drain_until_s is not None:
            return 0
        if self._workers is not None and not self._local:
            return self._workers
        return max(MIN_IN_FLIGHT, int(IN_FLIGHT_PER_CPU * self._nodes.num_cpus()))

    def parallel(self) -> int:
        """The workers that were asked for; else a CPU each, of this machine, or of a cluster that may grow."""
        if self._workers is not None:
            return self._workers
        return max(1 if self._local else MIN_IN_FLIGHT, int(self._nodes.num_cpus()))

    def drain(self) -> bool:
        """Begin nothing more, and give what runs DRAIN_S to end. False if nothing runs, or it was asked before.

        Safe in a signal handler: it calls nothing of Ray, whose call it may have interrupted.
        """
        if not self._running or self._drain_until_s is not None:
            return False
        self._drain_until_s = time.monotonic() + DRAIN_S
        return True

    def cancel(self) -> list[tuple[int, Reply]]:
        """Stop all tasks; their children get the time to remove temporary files."""
        self._is_cancelled = True
        if self._gate is not None:
            self._gate.reach(STOPPED)
        ended: list[tuple[int, Reply]] = []
        deadline_s = time.monotonic() + _CANCEL_S
        while self._running and (left_s := deadline_s - time.monotonic()) > 0:
            ended += self._ended(left_s)
        self._running.clear()
        self._paused.clear()
        self._is_cancelled = False
        self._gate, self._drain_until_s, self._is_draining = None, None, False
        return ended

    def close(self) -> None:
        """Stop our own Ray, or leave the cluster."""
        self._ray.shutdown()
