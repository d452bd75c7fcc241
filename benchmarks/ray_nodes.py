"""Several Ray nodes on this machine that share nothing: each with folders, a name and an address of its own.

    with RayNodes(folder, num_cpus=[1, 1, 1]) as nodes:
        nodes.run(["cope-prep", "run", "s3://bucket/dataset", "--address", nodes.address])
        nodes.kill(2)

Each node is one `ray start --block`, in a session of its own, with its own home, temporary folder, working
directory and object store, on 127.0.0.2, .3, .4 and so on. Every port is chosen by the system, so several of
these may run side by side. The head is node 0; `run` starts a command beside it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

_OBJECT_STORE_BYTES = 80 * 1024 * 1024
_START_S = 90.0
_BIN = Path(sys.executable).parent

_AWAIT = """
import sys, time
from ray._raylet import GcsClient

client = GcsClient(address=sys.argv[1])
deadline_s = time.monotonic() + float(sys.argv[3])
while sum(node.state == 0 for node in client.get_all_node_info().values()) < int(sys.argv[2]):
    if time.monotonic() > deadline_s:
        sys.exit(1)
    time.sleep(0.1)
"""
"""Waits for so many nodes to be alive (GcsNodeInfo.ALIVE is 0). Not ray.init, which would be a driver."""


class RayNodes:
    """A Ray cluster of several nodes; a context manager that leaves no process behind."""

    def __init__(
        self,
        folder: Path,
        *,
        num_cpus: Sequence[float],
        environment: Mapping[str, str] = {},
        dashboard: bool = False,
    ) -> None:
        """`num_cpus`: one entry a node. `folder` holds the nodes' folders; a short one, for Ray's sockets."""
        self.folder = folder
        self.num_cpus = list(num_cpus)
        self.address = ""
        """HOST:PORT, for --address."""
        self.dashboard_url = ""
        self._dashboard = dashboard
        self._processes: list[subprocess.Popen[bytes]] = []
        self._token = uuid.uuid4().hex + uuid.uuid4().hex
        self._environment = dict(environment)

    def __enter__(self) -> Self:
        try:
            port, client_port, dashboard_port = _free_ports(3)
            self.address = f"127.0.0.2:{port}"
            self.dashboard_url = f"http://127.0.0.1:{dashboard_port}" if self._dashboard else ""
            self._start(
                0,
                "--head",
                f"--port={port}",
                f"--ray-client-server-port={client_port}",
                f"--include-dashboard={self._dashboard}",
                f"--dashboard-port={dashboard_port}",
            )
            self._await_head()
            for index in range(1, len(self.num_cpus)):
                self._start(index, f"--address={self.address}")
            self._await_nodes()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def name(self, index: int) -> str:
        """What a node is called in the ledger."""
        return f"node-{index}"

    def environment(self, index: int = 0) -> dict[str, str]:
        """What a process on a node finds."""
        home = self.folder / self.name(index)
        temporary = home / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        kept = {name: os.environ[name] for name in ("LANG", "LC_ALL") if name in os.environ}
        return {
            **kept,
            "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "COPE_PREP_NODE": self.name(index),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            **self._environment,
        }

    def popen(self, command: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
        """Start a command beside the head."""
        return self._popen(0, command, **options)

    def run(self, command: Sequence[str], *, timeout_s: float = 240.0) -> subprocess.CompletedProcess[str]:
        """Run a command beside the head, to its end; its output as text."""
        return subprocess.run(
            list(command),
            env=self.environment(),
            cwd=self.folder / self.name(0),
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def kill(self, index: int) -> None:
        """SIGKILL to all processes of a node at once, as if the machine had gone."""
        process = self._processes[index]
        for pid in [*descendants(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def start_again(self, index: int) -> None:
        """A node that was killed comes back, under its name; not the head, which the others have joined."""
        self._start(index, f"--address={self.address}")

    def pid(self, index: int) -> int:
        """Process id of a node's `ray start`, above all others of the node."""
        return self._processes[index].pid

    def close(self) -> None:
        """Stop every node."""
        for index in reversed(range(len(self._processes))):
            self.kill(index)
        self._processes.clear()

    def _start(self, index: int, *arguments: str) -> None:
        home = self.folder / self.name(index)
        command = [
            *("ray", "start", "--block", "--disable-usage-stats", *arguments),
            f"--node-ip-address=127.0.0.{index + 2}",
            f"--node-name={self.name(index)}",
            f"--num-cpus={self.num_cpus[index]:g}",
            f"--object-store-memory={_OBJECT_STORE_BYTES}",
            f"--temp-dir={home / 'ray'}",
            *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"),
        ]
        self._processes[index : index + 1] = [self._popen(index, command)]

    def _popen(self, index: int, command: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
        environment = self.environment(index)
        home = self.folder / self.name(index)
        program = shutil.which(command[0], path=environment["PATH"]) or command[0]
        output = open(home / "output.log", "ab")  # noqa: SIM115  (the process has it then)
        with output:
            defaults = {"stdout": output, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
            return subprocess.Popen(  # pyright: ignore[reportCallIssue]
                [program, *command[1:]],
                env=environment,
                cwd=home,
                start_new_session=True,
                **(defaults | options),  # pyright: ignore[reportArgumentType]
            )

    def _await_head(self) -> None:
        """Until its port is open: the others may start then."""
        host, _, port = self.address.partition(":")
        deadline_s = time.monotonic() + _START_S
        while time.monotonic() < deadline_s and self._processes[0].poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection((host, int(port)), timeout=1.0).close()
                return
            time.sleep(0.1)
        raise self._not_started()

    def _await_nodes(self) -> None:
        command = [sys.executable, "-c", _AWAIT, self.address, str(len(self.num_cpus)), str(_START_S)]
        if self.run(command).returncode != 0:
            raise self._not_started()

    def _not_started(self) -> RuntimeError:
        logs = [self.folder / self.name(index) / "output.log" for index in range(len(self._processes))]
        said = "\n".join(log.read_text(errors="replace")[-2000:] for log in logs if log.exists())
        return RuntimeError(f"{len(self.num_cpus)} Ray nodes did not start within {_START_S:g} s:\n{said}")


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for entry in sockets:
            entry.bind(("127.0.0.1", 0))
        return [entry.getsockname()[1] for entry in sockets]


def descendants(pid: int) -> list[int]:
    """Processes below one, the deepest last. Those that left their parent are not found."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            stat = (entry / "stat").read_text()
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found = []
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found.append(child)
            waiting.append(child)
    return found
