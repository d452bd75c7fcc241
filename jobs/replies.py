"""How a call ended, as it travels from the process that did it to the driver, and becomes a row of the ledger."""

from __future__ import annotations

import os
import traceback
from dataclasses import dataclass, replace
from typing import Any

from cope_prep.pipeline.redact import redacted
from cope_prep.schemas.errors import (
    CopePrepError,
    MemoryLimitError,
    StorageError,
    WorkerDiedError,
    WorkerLostError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The call returned."""

    value: Any
    wall_s: float
    cpu_s: float
    node: str | None = None
    """Host name of the machine on which it ran, here and in a Failure; None where it is not known."""


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
    node: str | None = None
    memory_limit_bytes: int | None = None
    """Of a MemoryLimitError: what the process was allowed."""
    not_begun: str = ""
    """Why no call can begin on that node, as the executor is to say it; empty if this one began."""


Reply = Done | Failure


def failure_of(
    exc: BaseException, *, wall_s: float = 0.0, cpu_s: float = 0.0, node: str | None = None
) -> Failure:
    """What the ledger says about an exception."""
    if isinstance(exc, CopePrepError):
        return Failure(
            error_class=type(exc).__name__,
            error_message=redacted(str(exc)),
            retriable=isinstance(exc, StorageError | WorkerDiedError),
            wall_s=wall_s,
            cpu_s=cpu_s,
            node=node,
            memory_limit_bytes=exc.memory_bytes if isinstance(exc, MemoryLimitError) else None,
        )
    frames = traceback.extract_tb(exc.__traceback__)
    where = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return Failure(
        error_class=type(exc).__name__,
        error_message=redacted(
            f"{type(exc).__name__}: {exc}{where}; this is a bug in cope-prep: please report it"
        ),
        retriable=False,
        traceback=redacted("".join(traceback.format_exception(exc))),
        wall_s=wall_s,
        cpu_s=cpu_s,
        node=node,
    )


def not_begun(subject: str, problem: str, **cost: Any) -> Failure:
    """What is said of a call that its node could not begin, by no fault of the call. `problem` names the node."""
    error = WorkerLostError(
        subject,
        f"its node could not begin it ({problem})",
        "Is this cope-prep installed on every node? Else give --wheel.",
    )
    return replace(failure_of(error, **cost), not_begun=redacted(problem))
