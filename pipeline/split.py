"""What a call may return instead of its result: that it is to go on as several calls, or with more memory.

A call finds out only when it has opened its video that it is a long one, or a large one. It then returns one of
these, and whoever runs calls (jobs/stage.py) acts on it. All are pickled, as calls are.
"""

from __future__ import annotations

import contextlib
import functools
import posixpath
import shutil
from dataclasses import dataclass
from typing import Any

from cope_prep.pipeline import storage
from cope_prep.schemas.errors import StorageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Go on as `parts`, which may run side by side, and then `join`."""

    parts: tuple[functools.partial[Any], ...]
    join: functools.partial[Any]
    """Called with the parts' results, a list in their order, as one more argument; its result is the whole's."""
    whole: functools.partial[Any]
    """Does all the work in one call: where nothing runs side by side, or after Unfit, which is then one more
    argument (else None)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfit:
    """Returned by a part or by `join`: the parts would not give what the whole gives; do `whole`."""

    reason: str
    """For people: a clause."""
    noted: bool = False
    """True if the result should say so: nothing was wrong with the video itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedsMemory:
    """Run `call` where there is this much memory for one process."""

    memory_bytes: int
    call: functools.partial[Any]


class UnfitError(Exception):
    """What becomes an Unfit where the call ends; the text is its reason."""


Instruction = Split | Unfit | NeedsMemory


def cut(length: int, *, unit: int, units_per_part: int) -> list[int]:
    """Where the parts of something begin: multiples of `units_per_part` units, the first 0.

    The last part runs to the end, and is at least half as long as the others. A length of which no two parts can
    be made gives one.
    """
    part = unit * units_per_part
    starts = list(range(0, max(1, length), part))
    if len(starts) > 1 and length - starts[-1] < part / 2:
        starts.pop()
    return starts


def parts_folder(output_uri: str) -> str:
    """Where the parts of an output lie until they are joined: `parts/<name>` beside it."""
    name = posixpath.splitext(posixpath.basename(output_uri))[0]
    return storage.join(storage.parent(output_uri), "parts", name)


def remove_parts(output_uri: str) -> None:
    """Delete the parts of an output; no error if there are none.

    Nor if the store fails: what they were for is done, or given up, and `cope-prep gc` finds what is left.
    """
    folder = parts_folder(output_uri)
    if storage.is_local(folder):
        shutil.rmtree(storage.local_path(folder), ignore_errors=True)
        return
    with contextlib.suppress(StorageError):
        for name in storage.list_files(folder):
            storage.remove(storage.join(folder, name))
