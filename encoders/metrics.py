"""What a run says of itself: metrics.jsonl, TensorBoard, and the console.

One line of metrics.jsonl is one step, and no step has two: a run that goes on from step k cuts off the lines that
one that was killed had written after it. Names with a slash are groups: loss/copy, lr/encoder, eval/accuracy.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cope_prep.pipeline import storage
from cope_prep.schemas.errors import ConfigurationError

_SHOWN = ("loss", "lr", "grad_norm", "samples_per_s", "eval")
"""Groups that a console has room for."""


class MetricsLog:
    """Writes on the rank that it is made on; give the others None in its place."""

    def __init__(self, run: str | Path, *, step: int, max_steps: int, tensorboard: bool) -> None:
        """`step`: the one that the run goes on from."""
        self._path = Path(run) / "metrics.jsonl"
        cut_after(self._path, step)
        self._file = self._path.open("a")
        self._board = _open_board(Path(run) / "tensorboard", step) if tensorboard else None
        self._console = Console(stderr=True)
        self._bar = Progress(
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._max_steps = max_steps
        self._task = self._bar.add_task("", total=max_steps, completed=step)
        self._bar.start()

    def advance(self, step: int) -> None:
        """A step is done."""
        self._bar.update(self._task, completed=step)

    def say(self, text: str) -> None:
        """A line for people."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One step's figures."""
        line = {"step": step, **{name: _plain(value) for name, value in metrics.items()}}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()
        shown = "  ".join(
            f"{name} {value:.4g}" for name, value in metrics.items() if name.partition("/")[0] in _SHOWN
        )
        if self._console.is_terminal:
            self._bar.update(self._task, description=shown)
        else:
            self.say(f"step {step}/{self._max_steps}  {shown}")

    def close(self) -> None:
        """Idempotent."""
        self._bar.stop()
        self._file.close()
        if self._board is not None:
            self._board.close()


def _open_board(folder: Path, step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as exc:
        raise ConfigurationError(
            "tensorboard = true", "tensorboard is not installed", "pip install 'cope-prep[train]'."
        ) from exc
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _plain(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None


def cut_after(path: Path, step: int) -> None:
    """Leave the lines of a metrics.jsonl up to a step; half a line at the end goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        with contextlib.suppress(ValueError):
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
    storage.publish_bytes(str(path), "".join(kept).encode())


def last_metrics(run: str | Path) -> dict[str, float]:
    """The last line of a run's metrics.jsonl, without its step; empty if there is none."""
    path = Path(run) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: value for name, value in json.loads(lines[-1]).items() if name != "step"} if lines else {}


def has_figures(run: str | Path, step: int) -> bool:
    """Whether metrics.jsonl has a line of that step."""
    path = Path(run) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return bool(lines) and json.loads(lines[-1])["step"] == step


class Stopwatch:
    """Time of steps since the last report, and how much of it went into waiting for batches."""

    def __init__(self) -> None:
        self._step_s = self._wait_s = 0.0
        self._num_samples = 0

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around a step."""
        begun = time.perf_counter()
        yield
        self._step_s += time.perf_counter() - begun

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around taking a batch from the loader."""
        begun = time.perf_counter()
        yield
        self._wait_s += time.perf_counter() - begun

    def count(self, num_samples: int) -> None:
        """Samples of a step, over all ranks."""
        self._num_samples += num_samples

    def report(self) -> dict[str, float]:
        """Figures since the last one."""
        step_s = max(self._step_s, 1e-9)
        figures = {"samples_per_s": self._num_samples / step_s, "loader_share": self._wait_s / step_s}
        self.__init__()
        return figures


def peak_memory_gb(device: torch.device) -> float:
    """The most that this process has held: of the GPU, or on a CPU of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
