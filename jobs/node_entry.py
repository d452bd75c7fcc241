"""The body of a Ray task: hands a call to the node's own cope-prep, or says that there is none.

It travels by value (`executors` has cloudpickle see to that), so it runs on nodes that lack cope-prep, where Ray
itself would fail every task within milliseconds: such a node would take the work faster than all good ones. Here
it waits before it answers, longer each time, and the other nodes get the work meanwhile. Nothing of cope-prep is
imported at the top for that reason.
"""

from __future__ import annotations

import os
import socket
import time

_LONGEST_PAUSE_S = 30.0

_num_failed = 0
"""Answers of this process that it cannot work, one after the other."""


def supervise_on_node(
    call: bytes,
    *,
    subject: str,
    time_limit_s: float | None,
    memory_bytes: int,
    gate_name: str,
    submission: str | None,
) -> tuple[str, bytes | str]:
    """The Ray id of this node, and the pickled Reply; or, where cope-prep cannot be imported, why.

    `submission`: a name by which the driver may have withdrawn this task at the gate.
    """
    import ray

    global _num_failed
    node_id: str = ray.get_runtime_context().get_node_id()
    try:
        from cope_prep.jobs import gate, worker
    except Exception as exc:  # an installation may be broken in any way
        time.sleep(min(2.0 ** min(_num_failed, 5), _LONGEST_PAUSE_S))
        _num_failed += 1
        name = os.environ.get("COPE_PREP_NODE") or socket.gethostname()
        return node_id, f"{name}: {type(exc).__name__}: {exc}"
    _num_failed = 0
    if gate.has_reached(gate_name, gate.DRAINING) or (
        submission is not None and gate.is_withdrawn(gate_name, submission)
    ):
        return node_id, worker.stopped(subject)
    return node_id, worker.supervise(
        call,
        subject=subject,
        time_limit_s=time_limit_s,
        memory_bytes=memory_bytes,
        is_stopped=lambda: gate.has_reached(gate_name, gate.STOPPED),
    )
