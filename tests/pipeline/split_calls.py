"""Runs a Split as the stage runner does, in this process."""

from __future__ import annotations

import functools
import pickle
from typing import Any

from cope_prep.pipeline.split import Split, Unfit


def through_pickle(call: functools.partial[Any]) -> Any:
    """Perform a call as a worker does: from its pickled bytes, the result pickled again."""
    return pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(call))()))


def run_parts(split: Split) -> list[Any]:
    """The results of all parts, the last one first: they must not depend on each other."""
    return [through_pickle(part) for part in reversed(split.parts)][::-1]


def run_split(split: Split) -> Any:
    """What the whole split gives: the join's result, or Unfit."""
    results = run_parts(split)
    unfit = next((result for result in results if isinstance(result, Unfit)), None)
    return unfit or through_pickle(functools.partial(split.join, results))
