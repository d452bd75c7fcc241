"""A run of training on Ray Train: each rank is a process of its own, watched, restarted, and stopped in order.

    driver ── Ray Train ──> a Ray worker for each rank ── pipe ──> its process: encoders.program.run_training
      ^                        │ stopped? SIGTERM: the engine ends the step, writes a checkpoint, leaves
      └──── mailbox actor ─────┘ lines of rank 0, errors, the wish to stop

As in worker.py, a process and not the Ray worker does the work: signals reach the engine, which is in a main thread
there, a death is known by its signal, and no DataLoader forks Ray's threads. When a rank dies, Ray Train ends them
all and starts as many again; the engine goes on from the newest checkpoint in `output_dir`, which all of them must
reach. An error of ours that would only come back (a wrong configuration, a NaN) ends the run at once.

Checkpoints and metrics are the engine's own: nothing of them goes through Ray.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cope_prep.jobs import train_rank
from cope_prep.jobs.executors import RayExecutor
from cope_prep.jobs.session import Terminated
from cope_prep.jobs.train_config import Kind
from cope_prep.jobs.train_rank import Mailbox, Outcome, train_worker
from cope_prep.schemas.errors import ConfigurationError, CopePrepError, WorkerDiedError

_POLL_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """Where a run's ranks are."""

    workers: int = 1
    """Ranks."""
    address: str = "local"
    wheel: str | None = None
    cpus_per_worker: int = 1
    gpus_per_worker: int | None = None
    """None: one, if the cluster has any and the configuration does not say cpu."""
    max_failures: int = 3
    """So often the ranks begin again after a death; -1: always."""


def train_here(kind: Kind, config: Any) -> Outcome:
    """Train in this process, alone.

    Raises:
        KeyboardInterrupt: stopped by Ctrl-C or (Terminated) SIGTERM, with a checkpoint.
    """
    outcome = train_rank.train(kind, config)
    if outcome.was_stopped:
        raise _interruption([outcome.signal_number or signal.SIGINT])
    return outcome


def train_on_ray(kind: Kind, config: Any, options: RayOptions, *, say: Callable[[str], None]) -> Outcome:
    """Train on Ray, and go on after deaths. `say` gets the lines that rank 0 prints.

    Raises:
        ConfigurationError: before Ray is started, if this process can know.
        CopePrepError: what a rank has raised.
        WorkerDiedError: a rank died once more than allowed.
        KeyboardInterrupt: stopped by Ctrl-C or (Terminated) SIGTERM, with a checkpoint; by two, without.
    """
    config.training.accumulation(options.workers)
    executor = RayExecutor(
        address=options.address, workers=options.workers * options.cpus_per_worker, wheel=options.wheel
    )
    from ray.exceptions import RayError

    try:
        return _fit(kind, config, options, say)
    except RayError as exc:
        raise WorkerDiedError(
            "Ray", f"the run lost what connects driver and ranks ({_first_line(exc)})"
        ) from exc
    finally:
        executor.close()


def _fit(kind: Kind, config: Any, options: RayOptions, say: Callable[[str], None]) -> Outcome:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Where the driver is: an actor without resources goes to any node, and its death would end the run.
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox).remote()
    job = {"mailbox": mailbox, "kind": kind, "config": config.model_dump_json(), "folder": os.getcwd()}
    # Ray Train wants a folder that all workers reach, for markers of its own.
    scratch = Path(config.output_dir).absolute() / ".ray"
    trainer = _trainer(job, options, _gpus_per_worker(config, options), scratch)
    failures: list[Exception] = []

    def body() -> None:
        try:
            trainer.fit()
        except Exception as exc:
            failures.append(exc)

    def relay() -> None:
        for line in ray.get(mailbox.take_lines.remote()):
            say(line)

    is_stopping = False
    # Ray prints news of dead workers on stdout, which is the result's.
    with _noted_signals() as received, contextlib.redirect_stdout(sys.stderr):
        # Not in the main thread: there it would set a handler for Ctrl-C that ends the ranks within their step.
        fitting = threading.Thread(target=body, daemon=True)
        fitting.start()
        while fitting.is_alive():
            fitting.join(_POLL_S)
            relay()
            if len(received) > 1:
                raise _interruption(received)
            if received and not is_stopping:
                is_stopping = True
                say("stopping after this step, with a checkpoint; once more stops at once")
                if not ray.get(mailbox.stop.remote()):
                    raise _interruption(received)
        relay()
    shutil.rmtree(scratch, ignore_errors=True)
    error, outcome = ray.get(mailbox.ending.remote())
    if error is not None:
        raise pickle.loads(error)
    if is_stopping and (outcome is None or outcome.was_stopped):
        raise _interruption(received)
    if failures:
        raise _death(failures[0]) from failures[0]
    assert outcome is not None
    return outcome


def _trainer(job: dict[str, Any], options: RayOptions, gpus: int, scratch: Path) -> Any:
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.backend import Backend, BackendConfig
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    except ImportError as exc:
        raise ConfigurationError(
            "Ray Train", "a package that it needs is not installed", "Run: pip install 'cope-prep[train]'"
        ) from exc

    class AllGpusOfTheNode(Backend):
        # A rank sees its neighbours' GPUs, too: NCCL goes from one directly to the other only then.
        share_cuda_visible_devices = True

    class Neighbours(BackendConfig):
        # And no process group of Ray's: the ranks' processes make theirs.
        @property
        def backend_cls(self) -> type[Backend]:
            return AllGpusOfTheNode

    resources: dict[str, float] = {"CPU": options.cpus_per_worker}
    if gpus:
        resources["GPU"] = gpus
    return DataParallelTrainer(
        train_worker,
        train_loop_config=job,
        backend_config=Neighbours(),
        scaling_config=ScalingConfig(
            num_workers=options.workers, use_gpu=gpus > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name="run",
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=options.max_failures),
        ),
    )


def _gpus_per_worker(config: Any, options: RayOptions) -> int:
    """
    Raises:
        ConfigurationError: more than this machine has, which Ray would wait for without an end.
    """
    import ray

    there = int(ray.cluster_resources().get("GPU", 0))
    wanted = options.gpus_per_worker
    if wanted is None:
        wanted = 1 if there and config.training.device != "cpu" else 0
    if options.address == "local" and wanted * options.workers > there:
        raise ConfigurationError(
            f"--workers {options.workers}",
            f"with {wanted} GPUs each is more than the {there} of this machine",
            "Use fewer workers, or --gpus-per-worker 0.",
        )
    return wanted


@contextlib.contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM, in a list instead of as exceptions: none may strike within a call of Ray's."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {
        number: signal.signal(number, lambda signum, frame: received.append(signum)) for number in numbers
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interruption(received: list[int]) -> KeyboardInterrupt:
    return Terminated() if received[0] == signal.SIGTERM else KeyboardInterrupt()


def _death(exc: Exception) -> CopePrepError:
    """What ended the last attempt: of several ranks' errors the one that the others follow from."""
    found = {
        rank: getattr(error, "_base_exc", error)
        for rank, error in sorted(getattr(exc, "worker_failures", {}).items())
    }
    ours = [error for error in found.values() if isinstance(error, CopePrepError)]
    for error in sorted(ours, key=lambda error: "killed by" not in str(error)):
        return error
    for rank, error in found.items():
        return WorkerDiedError(f"rank {rank}", f"its Ray worker was lost ({_first_line(error)})")
    return WorkerDiedError("Ray Train", _first_line(exc))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
