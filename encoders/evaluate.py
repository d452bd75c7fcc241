"""Are the answers right? Exact match of greedy answers, in one forward for a batch.

A greedy decoder gives exactly the stored answer if and only if each of the answer's tokens is the most likely
one behind those before it. So one forward with the answers in place says what generation would have given,
without generating.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from typing import Annotated, Literal, TypeVar

import torch
import torch.distributed as dist
from pydantic import BeforeValidator

from cope_prep.encoders.sequences import SequenceBatch
from cope_prep.encoders.video_lm import DeltaMode, VideoLM
from cope_prep.pipeline.loader import DeviceGops

ValueT = TypeVar("ValueT")


def _check_batches(value: object) -> object:
    if value != "all" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError('must be a number of 1 or more, or "all"')
    return value


EvalBatches = Annotated[int | Literal["all"], BeforeValidator(_check_batches)]
"""How many held-out batches of a rank are evaluated each time."""


def limit_of(num_batches: EvalBatches) -> int | None:
    """As `itertools.islice` has it."""
    return None if num_batches == "all" else num_batches


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
    # Through forward: what FSDP2 has sharded is whole there only.
    result = model(
        gops=gops, sequences=sequences, is_packed=is_packed, delta=delta, num_questions=num_questions
    )
    return result.metrics["num_wrong"] == 0


class Tally:
    """Right answers by kind of question, over all ranks; a question that was asked twice counts once.

    The last batches of an epoch are filled up with questions from its beginning, which another rank may have had.
    """

    def __init__(self) -> None:
        self._answers: dict[Hashable, tuple[str, bool]] = {}

    def add(self, question: Hashable, name: str, is_right: bool) -> None:
        """Take one answer down. `question`: what it is known by, in all parts of a mix."""
        self._answers.setdefault(question, (name, is_right))

    def shares(self) -> dict[str, float]:
        """Share of right answers of each kind, and of all as `all`; the same on every rank."""
        answers: dict[Hashable, tuple[str, bool]] = {}
        for of_rank in _gather(self._answers):
            answers = of_rank | answers
        of_name: dict[str, list[bool]] = defaultdict(list)
        for name, is_right in answers.values():
            for key in (name, "all"):
                of_name[key].append(is_right)
        return {name: sum(found) / len(found) for name, found in sorted(of_name.items())}


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
