"""A program as several ranks of one machine, over gloo. A helper of tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def run_ranks(*command: str, world_size: int = 2, timeout_s: float = 200) -> list[tuple[int, str, str]]:
    """Arguments of Python -> exit code, stdout and stderr of each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={
                **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONDONTWRITEBYTECODE": "1",
            },
        )
        for rank in range(world_size)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=timeout_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]
