"""A program as several ranks of one machine, over gloo. A helper of tests.

The ranks are forked from one process that has imported torch and the task: on two ranks that takes ten CPU seconds,
which each test would pay. What a rank does from there on is its own: main module, environment, output, exit.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
import warnings
from pathlib import Path

from torch.distributed import TCPStore

_PRELOADED = ["torch.distributed.fsdp", "cope_prep.encoders.finetune", "cope_prep.encoders.pretrain"]
_PRELOADED += ["cope_prep.encoders.program", "cope_prep.pipeline.loader"]


def run_ranks(
    program: str, *arguments: str, world_size: int = 2, timeout_s: float = 200
) -> list[tuple[int, str, str]]:
    """A Python file and its arguments -> exit code, stdout and stderr of each rank. A warning is an error."""
    # The ranks meet here, as under torchrun: a port that one of them were to open might be somebody else's by then.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        outputs = [(Path(folder, f"{rank}.out"), Path(folder, f"{rank}.err")) for rank in range(world_size)]
        processes = []
        for rank in range(world_size):
            environment = {
                **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
            }  # fmt: skip
            processes.append(
                context.Process(target=_rank, args=([program, *arguments], environment, outputs[rank]))
            )
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join(timeout_s)
                assert process.exitcode is not None, f"a rank was not done after {timeout_s:g} s"
        finally:
            for process in processes:
                process.kill()
                process.join()
        return [
            (process.exitcode or 0, out.read_text(), err.read_text())
            for process, (out, err) in zip(processes, outputs, strict=True)
        ]


def _rank(command: list[str], environment: dict[str, str], output: tuple[Path, Path]) -> None:
    os.setsid()
    for descriptor, path in zip((1, 2), output, strict=True):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    warnings.simplefilter("error")
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")
