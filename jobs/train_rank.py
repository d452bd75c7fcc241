"""One rank of a run: the Ray worker that watches it, and the process that trains.

The process finds the other ranks as under torchrun. It dies with its Ray worker (SIGKILL from the kernel), so that
no rank of a run that Ray has ended goes on writing. Its outcome comes back through a pipe: what it returned, or
the error of ours that it raised; any other error is what it has printed, and its exit status.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Any

from cope_prep.jobs.train_config import Kind, the_task
from cope_prep.pipeline.printable import log_levels_printably
from cope_prep.schemas.errors import CopePrepError, StorageError, WorkerDiedError

_START = "import sys; from cope_prep.jobs.train_rank import run_rank; run_rank(*map(int, sys.argv[1:]))"
_POLL_S = 0.5
_LAST_LINES_S = 10.0
"""For what a rank has printed to arrive after its end; its loader's processes may hold the pipe a little longer."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended, in plain values: what reads it need not import torch."""

    num_steps: int
    checkpoint: str
    metrics: Mapping[str, float]
    was_stopped: bool
    signal_number: int | None = None


class Mailbox:
    """An actor between driver and ranks."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._is_stopped = False
        self._num_attempts = 0
        self._error: bytes | None = None
        self._outcome: Outcome | None = None

    def begin(self) -> tuple[int, bool]:
        """Rank 0 asks: which attempt this is, and whether there is nothing to do any more."""
        self._num_attempts += 1
        return self._num_attempts, self._is_stopped or self._error is not None

    def put_line(self, line: str) -> None:
        """For the terminal."""
        self._lines.append(line)

    def take_lines(self) -> list[str]:
        """What was put since."""
        lines, self._lines = self._lines, []
        return lines

    def stop(self) -> bool:
        """Ask all ranks to end after their step; False if there are none yet, and nothing to wait for."""
        self._is_stopped = True
        return self._num_attempts > 0

    def is_stopped(self) -> bool:
        """True from `stop` on."""
        return self._is_stopped

    def fail(self, error: bytes) -> None:
        """Pickled error that another attempt would only meet again; the first one counts."""
        self._error = self._error or error

    def finish(self, outcome: Outcome) -> None:
        """Rank 0 is done."""
        self._outcome = outcome

    def ending(self) -> tuple[bytes | None, Outcome | None]:
        """What `fail` and `finish` were told."""
        return self._error, self._outcome


def train_worker(job: dict[str, Any]) -> None:
    """The body of a Ray worker: watch one rank to its end.

    Raises:
        WorkerDiedError: its process died, or raised what may be gone the next time.
        CopePrepError: another attempt would end the same way.
    """
    import ray
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    mailbox = job["mailbox"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    plan = None
    if rank == 0:
        attempt, is_over = ray.get(mailbox.begin.remote())
        plan = (is_over, ray.util.get_node_ip_address(), _free_port())
        if attempt > 1 and not is_over:
            mailbox.put_line.remote(f"a rank died; attempt {attempt} goes on from the newest checkpoint")
    # Rank 0 asks for all: with answers of their own, some would leave and others wait for them.
    told = broadcast_from_rank_zero(plan)
    assert told is not None
    is_over, host, port = told
    if is_over:
        return
    environment = {
        "RANK": rank,
        "WORLD_SIZE": context.get_world_size(),
        "LOCAL_RANK": context.get_local_rank(),
        "LOCAL_WORLD_SIZE": context.get_local_world_size(),
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
    }

    def tell(line: str) -> None:
        if rank == 0:
            mailbox.put_line.remote(line)
        else:
            print(line, file=sys.stderr)  # into the Ray worker's log

    try:
        outcome = watch(
            job,
            rank=rank,
            environment={name: str(value) for name, value in environment.items()},
            tell=tell,
            is_stopped=lambda: ray.get(mailbox.is_stopped.remote()),
        )
    except (StorageError, WorkerDiedError):
        raise
    except CopePrepError as exc:
        ray.get(mailbox.fail.remote(pickle.dumps(exc)))
        raise
    if rank == 0 and outcome is not None:
        ray.get(mailbox.finish.remote(outcome))


def watch(
    job: Mapping[str, Any],
    *,
    rank: int,
    environment: Mapping[str, str],
    tell: Callable[[str], None],
    is_stopped: Callable[[], bool],
) -> Outcome | None:
    """Start the process of a rank, and wait for its end. None: stopped before there was a step.

    job: kind, config (JSON), folder (that relative paths begin at).

    Raises:
        CopePrepError: what the process has raised.
        WorkerDiedError: it died.
    """
    mine, theirs = Pipe(duplex=False)
    search_path = os.pathsep.join(path for path in sys.path if path)
    last_lines: deque[str] = deque(maxlen=20)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, **environment, "PYTHONPATH": search_path, "PYTHONUTF8": "1"},
            # Ray Train has gone elsewhere; on another node there may be no such folder.
            cwd=job["folder"] if os.path.isdir(job["folder"]) else None,
            # Ctrl-C in the terminal goes to the driver, which stops the ranks in order.
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    listener = threading.Thread(target=_listen, args=(process.stdout, last_lines, tell), daemon=True)
    listener.start()
    is_stopping = False
    try:
        with contextlib.suppress(BrokenPipeError), process.stdin:
            json.dump({"kind": job["kind"], "config": job["config"]}, process.stdin)
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
                break
            if not is_stopping and is_stopped():
                is_stopping = True
                process.terminate()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        listener.join(_LAST_LINES_S)
    with mine, contextlib.suppress(EOFError):
        ending: Outcome | CopePrepError = pickle.loads(mine.recv_bytes())
        if isinstance(ending, CopePrepError):
            raise ending
        return ending
    if is_stopping:
        return None
    code = process.returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"left with exit status {code}"
    said = next((line for line in reversed(last_lines) if line.strip()), "")
    raise WorkerDiedError(f"rank {rank}", f"its process {how}" + (f": {said}" if code > 0 and said else ""))


def _listen(stream: IO[str], last_lines: deque[str], tell: Callable[[str], None]) -> None:
    for line in stream:
        last_lines.append(line.rstrip("\n"))
        tell(line.rstrip("\n"))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def run_rank(descriptor: int, parent_pid: int) -> None:
    """The life of a rank's process."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        return
    # Ray's processes have it blocked, and what they start inherits that.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    log_levels_printably()
    job = json.load(sys.stdin)
    ending: Outcome | CopePrepError
    try:
        config_class, _ = the_task(job["kind"])
        ending = train(job["kind"], config_class.model_validate_json(job["config"]))
    except CopePrepError as exc:
        ending = exc
    with Connection(descriptor, readable=False) as connection:
        connection.send_bytes(pickle.dumps(ending))


def train(kind: Kind, config: Any) -> Outcome:
    """Train in this process, as one rank or alone."""
    from cope_prep.encoders.program import run_training

    _, task_class = the_task(kind)
    result = run_training(config, task_class)
    return Outcome(
        num_steps=result.num_steps,
        checkpoint=str(result.checkpoint),
        metrics=dict(result.metrics),
        was_stopped=result.was_stopped,
        signal_number=result.signal_number,
    )
