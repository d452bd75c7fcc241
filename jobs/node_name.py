"""What this machine is called in the ledger."""

from __future__ import annotations

import os
import socket

NODE_VARIABLE = "COPE_PREP_NODE"


def node_name() -> str:
    """The host's name, or what $COPE_PREP_NODE says where hosts have no names of their own (containers)."""
    return os.environ.get(NODE_VARIABLE) or socket.gethostname()
