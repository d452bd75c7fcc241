"""Where the console script begins: nothing heavy is imported before Ctrl-C means what it should."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import NoReturn


def main() -> None:
    """`cope-prep`. Ctrl-C while its modules are imported, about a second, ends it with 130 and no traceback."""
    with _ending_at_ctrl_c():
        from cope_prep.jobs.cli import main as run
    run()


@contextlib.contextmanager
def _ending_at_ctrl_c() -> Iterator[None]:
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # whoever started it has it ignored
        return
    signal.signal(signal.SIGINT, _leave)
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(signum: int, frame: object) -> NoReturn:
    # Not by an exception: a module that is half imported may catch it. Nothing is open yet that must be closed.
    os._exit(128 + signum)
