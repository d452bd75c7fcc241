"""When a loss is not finite: keep the batches of the step, of all ranks, so that it can be looked into.

    nonfinite-step-120/
      rank-00000.pt     the micro-batches of a rank, as the loader gave them
      keys.json         of each rank and micro-batch: the loss, and the keys of its samples

The weights of that moment are gone with the process. The run begun again comes from the newest checkpoint, by
the same samples, to the same step; these batches say what to look at, in the data first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from cope_prep.encoders.distributed import Ranks
from cope_prep.pipeline import storage
from cope_prep.pipeline.loader.batch import GopBatch, QABatch
from cope_prep.schemas.errors import NonFiniteLossError, SourceNotFoundError

Batch = GopBatch | QABatch
_MOST_KEYS = 8


def fail_nonfinite(
    run: str | Path, step: int, batches: Sequence[Batch], losses: Sequence[float], ranks: Ranks
) -> NoReturn:
    """Save a step's batches and end the run, on all ranks. `losses`: of this rank's batches.

    Raises:
        NonFiniteLossError: names the step, the rank and the keys.
    """
    folder = Path(run) / f"nonfinite-step-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    with storage.publish(str(folder / _file_name(ranks.rank))) as path:
        torch.save(list(batches), path)
    of_rank = [
        {"loss": repr(loss), "keys": list(batch.info.keys)}
        for batch, loss in zip(batches, losses, strict=True)
    ]
    everything = ranks.gather(of_rank)
    bad = [
        (rank, part)
        for rank, parts in enumerate(everything)
        for part in parts
        if not math.isfinite(float(part["loss"]))
    ]
    rank, part = bad[0] if bad else (0, everything[0][0])
    document = {
        "step": step,
        "what": "loss" if bad else "gradient",
        "ranks": [{"rank": rank, "micro_batches": parts} for rank, parts in enumerate(everything)],
    }
    ranks.on_first(
        lambda: storage.publish_bytes(str(folder / "keys.json"), json.dumps(document, indent=1).encode())
    )
    if bad:
        found = f"the loss is {part['loss']} on rank {rank}, keys {_some(part['keys'])}"
    else:
        keys = [key for parts in everything for part in parts for key in part["keys"]]
        found = f"the gradient is not finite, though the loss of every rank is; keys {_some(keys)}"
    raise NonFiniteLossError(
        f"step {step}",
        found,
        f"The batch is in {folder}, load_saved_batch reads it. No checkpoint has been touched.",
    )


def load_saved_batch(folder: str | Path, *, rank: int = 0) -> list[Batch]:
    """The micro-batches of a rank in a `nonfinite-step-N` folder. Unpickles: only for files of one's own.

    Raises:
        SourceNotFoundError: nothing of that rank there.
    """
    path = Path(folder) / _file_name(rank)
    if not path.is_file():
        raise SourceNotFoundError(str(path), "no such file")
    return torch.load(path, weights_only=False)


def _file_name(rank: int) -> str:
    return f"rank-{rank:05d}.pt"


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _MOST_KEYS} more" if len(keys) > _MOST_KEYS else ""
    return ", ".join(keys[:_MOST_KEYS]) + more
