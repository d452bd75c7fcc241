"""One process that does the work and may die alone, and the supervisor that watches it.

    driver ── Ray task ──> supervise() ── pipe ──> child process: perform(call)

A video from the open internet can crash a decoder, fill the memory or never end. The child is the process in
which that happens. It lives as long as the Ray worker that supervises it, so what it imports and compiles it
does once; the supervisor imports neither decoder nor compiler. It knows from the operating system by which
signal the child died, and it measures the time limit from the moment the child begins and what memory it
occupies (limits.py). No exception crosses the pipe: `perform` turns each into a Failure (replies.py).

A call is a pickled `functools.partial` of a top-level function. Cost per call: two messages on a pipe, below
0.1 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from cope_prep.jobs import limits
from cope_prep.jobs.node_name import node_name
from cope_prep.jobs.replies import Done, Reply, failure_of, not_begun
from cope_prep.jobs.replies import Failure as Failure
from cope_prep.jobs.worker_folder import make_folder, remove_old_folders
from cope_prep.pipeline.printable import log_printably
from cope_prep.schemas.errors import (
    CopePrepError,
    JobError,
    TimeLimitError,
    WorkerDiedError,
    WorkerLostError,
)

_START = "import sys; from cope_prep.jobs.worker import serve; serve(int(sys.argv[1]), int(sys.argv[2]))"
_POLL_S = 0.1
"""A stop or too much memory is noticed between two polls; the end of a call is seen at once."""
_GRACE_S = 2.0
"""Time for a child to remove its temporary file after SIGTERM, before SIGKILL."""
_KILL_S = 5.0
"""What the kernel gets to end a killed process. One that waits for a stalled disk does not end, and is left."""
_START_S = 120.0
"""Most time from a child's start until it is ready: its imports take seconds, also on a busy machine."""
_LONGEST_START_PAUSE_S = 30.0
_NOT_BEGUN = b"not begun "
"""Before the reply to a call that the child could not load; a pickle never begins so."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
"""A task has one CPU: libraries that would start a thread per core of the machine must not."""


def stopped(subject: str) -> bytes:
    """The pickled Reply to a call that is not to begin any more."""
    return pickle.dumps(failure_of(StoppedError(subject, "was stopped")))


def perform(call: bytes, *, subject: str = "this call", memory_bytes: int | None = None) -> Reply:
    """Unpickle a call and run it. Its subject and limit are for the message if memory runs out."""
    start_s, start_cpu_s = time.perf_counter(), time.process_time()

    def cost() -> dict[str, Any]:
        return {
            "wall_s": time.perf_counter() - start_s,
            "cpu_s": time.process_time() - start_cpu_s,
            "node": node_name(),
        }

    function = None
    try:
        function = pickle.loads(call)
        value = function()
    except Exception as exc:
        if limits.ran_out(exc):
            return failure_of(limits.refused(exc, subject, memory_bytes), **cost())
        if function is None:  # this installation lacks what the driver's has
            return not_begun(subject, f"{node_name()}: {type(exc).__name__}: {exc}", **cost())
        return failure_of(exc, **cost())
    return Done(value=value, **cost())


def serve(descriptor: int, parent_pid: int) -> None:
    """The child's life: perform calls until the supervisor closes the pipe."""
    # SIGKILL, because a decoder that hangs runs no handler; the parent is gone, so nobody could insist.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        return
    signal.signal(signal.SIGTERM, _exit_cleanly)
    limits.hold_process()
    log_printably()
    connection = Connection(descriptor)
    connection.send_bytes(b"ready")
    with contextlib.suppress(EOFError):
        while True:
            call, subject, memory_bytes = pickle.loads(connection.recv_bytes())
            limits.hold_memory(memory_bytes)
            reply = perform(call, subject=subject, memory_bytes=memory_bytes)
            limits.hold_memory(None)
            is_lost = isinstance(reply, Failure) and reply.not_begun
            connection.send_bytes((_NOT_BEGUN if is_lost else b"") + pickle.dumps(reply))


def _exit_cleanly(signum: int, frame: object) -> NoReturn:
    # An exception, so that `storage.publish` removes its temporary file on the way out.
    raise SystemExit(128 + signum)


class StoppedError(JobError):
    """The run was stopped while the call was in progress. Never recorded."""


class Child:
    """The process that performs calls, seen from its supervisor."""

    def __init__(self, *, is_stopped: Callable[[], bool] = lambda: False) -> None:
        """Start it, and wait until it is ready.

        Raises:
            WorkerLostError: it ended instead, or was not ready after two minutes; StoppedError.
            OSError: the machine lacks the memory or the disk for it.
        """
        remove_old_folders()
        self._folder, self._folder_lock = make_folder()
        search_path = os.pathsep.join(path for path in sys.path if path)
        environment = {**os.environ, **ONE_THREAD, "TMPDIR": self._folder, "PYTHONPATH": search_path}
        with contextlib.ExitStack() as undo:
            undo.callback(self._remove_folder)
            self._connection, theirs = Pipe()
            undo.callback(self._connection.close)
            undo.callback(theirs.close)
            self._process = subprocess.Popen(
                # -P: what lies in the current folder must not stand before what is installed.
                [sys.executable, "-P", "-c", _START, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
                # Ctrl-C in the terminal goes to the driver, which stops the children in order.
                start_new_session=True,
            )
            undo.pop_all()
            theirs.close()
        try:
            self._wait_until_ready(is_stopped)
        except (EOFError, ConnectionError):
            raise WorkerLostError(
                "worker", f"its process did not start: {self._end()}", "Is cope-prep installed on every node?"
            ) from None
        except BaseException:  # not ready in time, stopped, or a signal to this process
            self.stop()
            raise

    def _wait_until_ready(self, is_stopped: Callable[[], bool]) -> None:
        start_s = time.monotonic()
        while not self._connection.poll(_POLL_S):
            if time.monotonic() - start_s > _START_S:
                raise WorkerLostError(
                    "worker",
                    f"its process was not ready after {_START_S:g} s",
                    "Look at the node's disk: Python and the packages are read from it.",
                )
            if is_stopped():
                raise StoppedError("worker", "was stopped")
        self._connection.recv_bytes()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def run(
        self,
        call: bytes,
        *,
        subject: str,
        time_limit_s: float | None,
        memory_bytes: int | None = None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> bytes:
        """Have a call performed; the pickled Reply, after _NOT_BEGUN if the child could not load the call.

        Raises:
            StoppedError: `is_stopped` came true; the child was ended.
            WorkerDiedError: the child died of a signal, or left.
            TimeLimitError: the call took longer than allowed; the child was killed.
            MemoryLimitError: the child occupied more than `memory_bytes`, and was ended.
        """
        start_s = time.monotonic()
        try:
            self._connection.send_bytes(pickle.dumps((call, subject, memory_bytes)))
            while not self._connection.poll(_POLL_S):
                if time_limit_s is not None and time.monotonic() - start_s > time_limit_s:
                    self.stop()
                    raise TimeLimitError(
                        subject,
                        f"was not done after {time_limit_s:g} s",
                        "Look at the file, or allow more with --time-limit and --retry-failed.",
                    )
                if memory_bytes is not None and limits.resident_bytes(self.pid) > memory_bytes:
                    self.stop()
                    raise limits.over_limit(subject, memory_bytes)
                if is_stopped():
                    self.stop()
                    raise StoppedError(subject, "was stopped")
            return self._connection.recv_bytes()
        except (EOFError, ConnectionError):
            raise WorkerDiedError(
                subject,
                f"its worker process {self._end()}",
                "If memory ran out, use fewer --workers; else the file crashes the decoder.",
            ) from None

    @property
    def resident_bytes(self) -> int:
        """Memory that it occupies."""
        return limits.resident_bytes(self.pid)

    @property
    def alive(self) -> bool:
        """False once the process has ended."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End the process: politely first, so that it removes its temporary file."""
        self._connection.close()
        self._process.terminate()
        self._wait_or_kill()
        self._remove_folder()

    def _wait_or_kill(self) -> int | None:
        """The exit code, as subprocess has it; None if not even a kill has ended the process."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(_GRACE_S)
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(_KILL_S)
        return None

    def _remove_folder(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._folder_lock)

    def _end(self) -> str:
        self._connection.close()
        code = self._wait_or_kill()
        self._remove_folder()
        if code is None:
            return "does not end, though it was killed"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"left with exit status {code}"


_child: Child | None = None
_failed_starts = 0
"""Children that this process could not start, or that could not load a call, one after the other."""


def _pause(subject: str, is_stopped: Callable[[], bool]) -> None:
    """Who cannot work waits before saying so, longer each time: other nodes are to get the work meanwhile."""
    global _failed_starts
    until_s = time.monotonic() + min(2.0 ** min(_failed_starts, 5), _LONGEST_START_PAUSE_S)
    _failed_starts += 1
    while time.monotonic() < until_s:
        if is_stopped():
            raise StoppedError(subject, "was stopped")
        time.sleep(_POLL_S)


def _start(subject: str, is_stopped: Callable[[], bool]) -> Child:
    try:
        return Child(is_stopped=is_stopped)
    except (OSError, WorkerLostError) as exc:
        _pause(subject, is_stopped)
        if isinstance(exc, WorkerLostError):
            raise
        problem = f"its worker process could not be started ({exc})"
        raise WorkerLostError(subject, problem, "Look at the node's disk and memory.") from exc


def supervise(
    call: bytes,
    *,
    subject: str,
    time_limit_s: float | None,
    memory_bytes: int | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> bytes:
    """Have this process's child perform a call; the pickled Reply."""
    global _child, _failed_starts
    start_s = time.perf_counter()
    try:
        # What an earlier call left behind in memory must not count against this one.
        is_full = _child is not None and _child.resident_bytes > (memory_bytes or math.inf) / 2
        if _child is not None and (is_full or not _child.alive):
            _child.stop()
            _child = None
        if _child is None:
            _child = _start(subject, is_stopped)
        answer = _child.run(
            call,
            subject=subject,
            time_limit_s=time_limit_s,
            memory_bytes=memory_bytes,
            is_stopped=is_stopped,
        )
        if answer.startswith(_NOT_BEGUN):
            _child.stop()  # the next one may find the installation mended
            _child = None
            _pause(subject, is_stopped)
        else:
            _failed_starts = 0
        return answer.removeprefix(_NOT_BEGUN)
    except CopePrepError as exc:
        _child = None
        wall_s = time.perf_counter() - start_s
        return pickle.dumps(failure_of(exc, wall_s=wall_s, node=node_name()))
    except BaseException:  # a signal to this process
        if _child is not None:
            _child.stop()
            _child = None
        raise
