"""One process that does the work and may die alone, and the supervisor that watches it.

    driver ── Ray task ──> supervise() ── pipe ──> child process: perform(call)

A video from the open internet can crash a decoder, fill the memory or never end. The child is the process in
which that happens. It lives as long as the Ray worker that supervises it, so what it imports and compiles it
does once; the supervisor imports neither decoder nor compiler. It knows from the operating system by which
signal the child died, and it measures the time limit from the moment the child begins. No exception crosses
the pipe: `perform` turns each into a Failure, whose class and message become a row of the ledger.

A call is a pickled `functools.partial` of a top-level function. Cost per call: two messages on a pipe, below
0.1 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from cope_prep.schemas.errors import CopePrepError, JobError, StorageError, TimeLimitError, WorkerDiedError

_START = "import sys; from cope_prep.jobs.worker import serve; serve(int(sys.argv[1]), int(sys.argv[2]))"
_POLL_S = 0.2
"""A stop is noticed between two polls; the end of a call is seen at once."""
_GRACE_S = 2.0
"""Time for a child to remove its temporary file after SIGTERM, before SIGKILL."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
"""A task has one CPU: libraries that would start a thread per core of the machine must not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The call returned."""

    value: Any
    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The call raised, or its process died."""

    error_class: str
    error_message: str
    retriable: bool
    """True if the infrastructure failed, so that another attempt may end otherwise."""
    traceback: str = ""
    """Only of errors that cope-prep does not raise on purpose."""
    wall_s: float = 0.0
    cpu_s: float = 0.0


Reply = Done | Failure


def failure_of(exc: BaseException, *, wall_s: float = 0.0, cpu_s: float = 0.0) -> Failure:
    """What the ledger says about an exception."""
    if isinstance(exc, CopePrepError):
        return Failure(
            error_class=type(exc).__name__,
            error_message=str(exc),
            retriable=isinstance(exc, StorageError | WorkerDiedError),
            wall_s=wall_s,
            cpu_s=cpu_s,
        )
    frames = traceback.extract_tb(exc.__traceback__)
    where = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return Failure(
        error_class=type(exc).__name__,
        error_message=f"{type(exc).__name__}: {exc}{where}; this is a bug in cope-prep: please report it",
        retriable=False,
        traceback="".join(traceback.format_exception(exc)),
        wall_s=wall_s,
        cpu_s=cpu_s,
    )


def perform(call: bytes) -> Reply:
    """Unpickle a call and run it."""
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    try:
        value = pickle.loads(call)()
    except Exception as exc:
        return failure_of(exc, wall_s=time.perf_counter() - start_s, cpu_s=time.process_time() - start_cpu_s)
    return Done(value=value, wall_s=time.perf_counter() - start_s, cpu_s=time.process_time() - start_cpu_s)


def serve(descriptor: int, parent_pid: int) -> None:
    """The child's life: perform calls until the supervisor closes the pipe."""
    # SIGKILL, because a decoder that hangs runs no handler; the parent is gone, so nobody could insist.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        return
    signal.signal(signal.SIGTERM, _exit_cleanly)
    connection = Connection(descriptor)
    connection.send_bytes(b"ready")
    with contextlib.suppress(EOFError):
        while True:
            connection.send_bytes(pickle.dumps(perform(connection.recv_bytes())))


def _exit_cleanly(signum: int, frame: object) -> NoReturn:
    # An exception, so that `storage.publish` removes its temporary file on the way out.
    raise SystemExit(128 + signum)


class StoppedError(JobError):
    """The run was stopped while the call was in progress. Never recorded."""


class Child:
    """The process that performs calls, seen from its supervisor."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="cope-prep-worker-")
        self._connection, theirs = Pipe()
        search_path = os.pathsep.join(path for path in sys.path if path)
        environment = {**os.environ, **ONE_THREAD, "TMPDIR": self._folder, "PYTHONPATH": search_path}
        with theirs:
            self._process = subprocess.Popen(
                # -P: what lies in the current folder must not stand before what is installed.
                [sys.executable, "-P", "-c", _START, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
                # Ctrl-C in the terminal goes to the driver, which stops the children in order.
                start_new_session=True,
            )
        try:
            self._connection.recv_bytes()
        except EOFError:
            raise WorkerDiedError(
                "worker", f"its process did not start: {self._end()}", "Is cope-prep installed on every node?"
            ) from None

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
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> bytes:
        """Have a call performed; the pickled Reply.

        Raises:
            StoppedError: `is_stopped` came true; the child was ended.
            WorkerDiedError: the child died of a signal, or left.
            TimeLimitError: the call took longer than allowed; the child was killed.
        """
        start_s = time.monotonic()
        try:
            self._connection.send_bytes(call)
            while not self._connection.poll(_POLL_S):
                if time_limit_s is not None and time.monotonic() - start_s > time_limit_s:
                    self.stop()
                    raise TimeLimitError(
                        subject,
                        f"was not done after {time_limit_s:g} s",
                        "Look at the file, or allow more with --time-limit and --retry-failed.",
                    )
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
    def alive(self) -> bool:
        """False once the process has ended."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End the process: politely first, so that it removes its temporary file."""
        self._connection.close()
        self._process.terminate()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self) -> str:
        self._connection.close()
        code = self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"left with exit status {code}"


_child: Child | None = None


def supervise(
    call: bytes, *, subject: str, time_limit_s: float | None, is_stopped: Callable[[], bool] = lambda: False
) -> bytes:
    """Have this process's child perform a call; the pickled Reply. This is the body of a Ray task."""
    global _child
    start_s = time.perf_counter()
    try:
        if _child is None or not _child.alive:
            _child = Child()
        return _child.run(call, subject=subject, time_limit_s=time_limit_s, is_stopped=is_stopped)
    except CopePrepError as exc:
        _child = None
        return pickle.dumps(failure_of(exc, wall_s=time.perf_counter() - start_s))
    except BaseException:  # a signal to this process
        if _child is not None:
            _child.stop()
            _child = None
        raise
