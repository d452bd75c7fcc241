"""Are the answers right? Exact match of greedy answers, in one forward for a batch.

A greedy decoder gives exactly the stored answer if and only if each of the answer's tokens is the most likely
one behind those before it. So one forward with the answers in place says what generation would have given,
without generating.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.distributed as dist

from cope_prep.encoders.sequences import SequenceBatch
from cope_prep.encoders.video_lm import DeltaMode, VideoLM
from cope_prep.pipeline.loader import DeviceGops

ValueT = TypeVar("ValueT")


@torch.no_grad()
def is_exact(
    model: VideoLM,
    gops: DeviceGops,
    sequences: SequenceBatch,
    *,
    num_questions: int,
    is_packed: bool = False,
    delta: DeltaMode = "given",
) -> torch.Tensor:
    """bool [num_questions]: every token of the question's answers is what greedy decoding gives."""
    logits_AV, labels_A, question_A = model.answer_logits(gops, sequences, is_packed=is_packed, delta=delta)
    wrong_A = (logits_AV.argmax(dim=-1) != labels_A).to(torch.int64)
    num_wrong = torch.zeros(num_questions, dtype=torch.int64, device=wrong_A.device)
    return num_wrong.index_add(0, question_A.long(), wrong_A) == 0


class Tally:
    """Right answers by kind of question, summed over ranks at the end."""

    def __init__(self) -> None:
        self._right: dict[str, int] = defaultdict(int)
        self._asked: dict[str, int] = defaultdict(int)

    def add(self, name: str, is_right: bool) -> None:
        """Count one answer."""
        self._right[name] += int(is_right)
        self._asked[name] += 1

    def shares(self) -> dict[str, float]:
        """Share of right answers of each kind, and of all as `all`; the same on every rank."""
        counts = {name: (self._right[name], self._asked[name]) for name in self._asked}
        right: dict[str, int] = defaultdict(int)
        asked: dict[str, int] = defaultdict(int)
        for of_rank in _gather(counts):
            for name, (num_right, num_asked) in of_rank.items():
                for key in (name, "all"):
                    right[key] += num_right
                    asked[key] += num_asked
        return {name: right[name] / asked[name] for name in sorted(asked)}


def mean_over_ranks(sums: Mapping[str, float], weight: float) -> dict[str, float]:
    """Sums divided by their weight, both over all ranks; empty if nothing was weighed."""
    every = _gather((dict(sums), weight))
    total = sum(of_rank for _, of_rank in every)
    names = sorted({name for of_rank, _ in every for name in of_rank})
    return {name: sum(of_rank.get(name, 0.0) for of_rank, _ in every) / total for name in names if total}


def _gather(value: ValueT) -> list[ValueT]:
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[ValueT] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
