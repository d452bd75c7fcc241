"""What a command that works holds while it works: its executor, the locks of what it writes, the signals.

SIGTERM   a preemption notice: nothing more begins, what runs gets 8 s to end, what is left is stopped.
          Within 20 s the process is gone; a second SIGTERM stops at once
Ctrl-C    stops at once; the children still remove their temporary files

After either one a store that does not answer is given two seconds an operation, not a minute: also for a listing,
and for what is under way.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

from cope_prep.jobs.executors import Executor, InProcessExecutor, RayExecutor
from cope_prep.jobs.options import parse_memory_limit
from cope_prep.jobs.run_lock import RunLocks
from cope_prep.pipeline import retries
from cope_prep.schemas.errors import ConfigurationError, CopePrepError

_BEGUN = "The command had begun to work."


def had_begun(exc: CopePrepError) -> bool:
    """True if a session had given out its executor when the error left it: something may have been done."""
    return _BEGUN in getattr(exc, "__notes__", ())


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a run like Ctrl-C, with another exit code."""


@contextlib.contextmanager
def executor_session(
    *,
    address: str,
    workers: int | None,
    no_ray: bool,
    time_limit: float | None,
    wheel: str | None,
    memory_limit: str | None = None,
    outputs: Sequence[str] = (),
) -> Iterator[Callable[[], Executor]]:
    """A function that gives the executor; it is made at the first call, and closed at the end.

    `outputs`: the folders that the command writes. No other run may write them meanwhile (run_lock.py).

    Raises:
        ConfigurationError: options that do not go together; RunLockedError: another run writes an output.
        Terminated: SIGTERM came, and what ran had some seconds to end.
    """
    if no_ray and (time_limit is not None or address != "local" or (workers or 1) > 1 or memory_limit):
        raise ConfigurationError(
            "--no-ray",
            "runs one video at a time in this process",
            "Leave out --address, --workers, --time-limit, --memory-limit.",
        )
    memory_bytes = parse_memory_limit(memory_limit)
    if wheel is not None and address == "local":
        raise ConfigurationError("--wheel", "is for a cluster", "A local Ray uses this installation.")
    if wheel is not None and not (wheel.endswith(".whl") and os.path.isfile(wheel)):
        raise ConfigurationError(f"--wheel {wheel}", "is no wheel", "Build one: python -m build --wheel")
    opened: list[Executor] = []
    received: list[int] = []
    handlers_before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def interrupt(signum: int, frame: object) -> None:
        retries.set_haste(True)
        raise KeyboardInterrupt

    def terminate(signum: int, frame: object) -> None:
        retries.set_haste(True)
        received.append(signum)
        runners = [executor for executor in opened if isinstance(executor, RayExecutor)]
        if len(received) == 1 and any(runner.drain() for runner in runners):
            return
        # Ray replaces whatever a handler raises inside its calls by a plain KeyboardInterrupt.
        raise KeyboardInterrupt

    def listen() -> None:
        signal.signal(signal.SIGTERM, terminate)
        if (
            handlers_before[signal.SIGINT] is not signal.SIG_IGN
        ):  # else started so, behind nohup or by a shell
            signal.signal(signal.SIGINT, interrupt)

    def get() -> Executor:
        if not opened:
            if no_ray:
                opened.append(InProcessExecutor(watch=locks.check))
            else:
                opened.append(
                    RayExecutor(
                        address=address,
                        workers=workers,
                        wheel=wheel,
                        memory_bytes=memory_bytes,
                        watch=locks.check,
                    )
                )
            listen()  # again, for Ray sets its own
        return opened[0]

    locks = RunLocks(outputs)
    try:
        listen()
        # Ray prints on stdout that a node has died; stdout is for the command's result, which comes later.
        with locks, contextlib.redirect_stdout(sys.stderr):
            try:
                yield get
            finally:
                for executor in opened:
                    executor.close()
    except KeyboardInterrupt:
        if received:
            raise Terminated from None
        raise
    except CopePrepError as exc:
        if opened:
            exc.add_note(_BEGUN)
        raise
    finally:
        for number, handler in handlers_before.items():
            signal.signal(number, handler)
        retries.set_haste(False)
