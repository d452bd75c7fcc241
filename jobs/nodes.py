"""The nodes of a cluster as a run knows them: how many CPUs, how large, and on which of them no call can begin.

A node may lack cope-prep, have another one, or get no wheel. One such node among good ones fails no video: others
get its calls. Where no call has begun yet and every node has said so, nothing will begin, and the run ends at once.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

from cope_prep.jobs.resources import Resources
from cope_prep.pipeline.redact import redacted
from cope_prep.schemas.errors import ConfigurationError

_COUNT_INTERVAL_S = 5.0
_HOPELESS_TIMES = 5
"""So often in a row one call could not be begun, while nothing has begun anywhere: nothing will."""

_logger = logging.getLogger("cope_prep")


class Nodes:
    """Of one Ray; counted anew every five seconds."""

    def __init__(self, ray: Any, *, address: str, memory_bytes: int | None) -> None:
        """`memory_bytes`: what the user allows every process, if he says."""
        self._ray = ray
        self._address = address
        self._memory_bytes = memory_bytes
        self._num_cpus = 0.0
        self._most_bytes: int | None = None
        self._counted_s = float("-inf")
        self._unfit: set[str] = set()
        """Ray's ids of nodes on which no call can begin; empty for those that Ray does not name."""
        self._told: set[str] = set()
        """Of which of them the log has it."""
        self.has_worked = False
        """True once a call has begun on any of them."""

    def num_cpus(self) -> float:
        """Of all nodes together."""
        self._count()
        return self._num_cpus

    def most_bytes(self) -> float:
        """Memory of the largest node; infinite if there is none, for an autoscaler may bring any."""
        self._count()
        return math.inf if self._most_bytes is None else self._most_bytes

    def request(self, resources: Resources) -> dict[str, int]:
        """Options of a task for Ray: the memory it needs, as far as it may have it and one node has it.

        Only where it is placed: what its process is held to does not depend on the nodes of the moment.
        """
        self._count()
        # Without a node an autoscaler brings ordinary ones, of unknown size.
        if self._most_bytes is None or resources.memory_bytes is None:
            return {}
        limit_bytes = resources.limit_bytes(self._memory_bytes)
        return {"memory": min(resources.memory_bytes, limit_bytes, self._most_bytes)}

    def cannot_begin(
        self, problem: str, *, node_id: str | None, num_times: int, has_visitors: Callable[[], bool]
    ) -> None:
        """Take note of a call that could not be begun, now `num_times` in a row.

        `node_id`: None where Ray does not say which node it was. `has_visitors`: may a call have begun somewhere?

        Raises:
            ConfigurationError: nothing has begun, and no node is left that could.
        """
        name = node_id or ""
        is_news = name not in self._unfit
        self._unfit.add(name)
        if self.has_worked:
            if name not in self._told:
                self._told.add(name)
                _logger.warning("%s; no call can begin there, other nodes get them", redacted(problem))
            return
        is_everywhere = is_news and bool(ids := self._ids()) and ids <= self._unfit
        if is_everywhere or (num_times >= _HOPELESS_TIMES and not has_visitors()):
            raise ConfigurationError(
                f"--address {self._address}",
                f"no node there can begin a call ({problem})",
                "Install this cope-prep on every node, or give --wheel.",
            )

    def _ids(self) -> set[str]:
        nodes = self._ray.nodes()
        return {node["NodeID"] for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) >= 1}

    def _count(self) -> None:
        if time.monotonic() - self._counted_s <= _COUNT_INTERVAL_S:
            return
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        sizes = [int(node.get("memory", 0)) for node in nodes if node.get("CPU", 0) >= 1]
        self._num_cpus = self._ray.cluster_resources().get("CPU", 0.0)
        self._most_bytes = max(sizes, default=None)
        self._counted_s = time.monotonic()
