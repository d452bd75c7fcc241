"""What the fuzz harnesses share: how one is started, and what counts as a finding.

    python tests/fuzz/fuzz_tar.py CORPUS_DIR -max_total_time=60 -rss_limit_mb=2048 -timeout=60

Everything after the file name is libFuzzer's. A harness has a function `one_input(bytes)` that raises nothing but
on a finding: a reader that lets anything but a CopePrepError out, or that breaks a promise which the harness
checks. Without atheris the harnesses can still be imported, so that stored inputs are replayed anywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

try:
    import atheris
except ImportError:  # no wheel for this Python: replaying needs none
    atheris = None

_DEFAULTS = (
    "-rss_limit_mb=2048",
    "-malloc_limit_mb=1024",
    "-timeout=60",
    "-max_len=16384",
    "-print_final_stats=1",
)

Mutator = Callable[[bytes, int, int], bytes]
"""(input, largest size, seed) -> another input; libFuzzer's custom mutator."""

INTERESTING = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        15,
        16,
        17,
        255,
        256,
        1199,
        1200,
        65_535,
        2**31 - 1,
        2**31,
        2**63,
        10**30,
    ),
    *(0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), "", "a", "../../x", "\0", "\ud800", [], [[]], {}),
)
"""What a number, a text or a list of a JSON document may become."""


def instrumented(*packages: str) -> contextlib.AbstractContextManager[None]:
    """What is imported within it counts for coverage, if the fuzzer is what runs."""
    is_harness = Path(sys.argv[0]).name.startswith("fuzz_")
    if atheris is None or not is_harness:
        return contextlib.nullcontext()
    return atheris.instrument_imports(include=["cope_prep", *packages])


def fuzz(
    one_input: Callable[[bytes], None], *, seeds: Iterable[bytes], mutate: Mutator | None = None
) -> None:
    """Run libFuzzer with the command line's options; `seeds` are written into the corpus folder first."""
    seeds = list(seeds)
    if atheris is None:
        sys.exit("atheris is not installed: it has wheels for CPython 3.11 to 3.13 on Linux (x86-64)")
    folders = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    if folders:
        os.makedirs(folders[0], exist_ok=True)
        for index, seed in enumerate(seeds):
            (Path(folders[0]) / f"seed-{index:02d}").write_bytes(seed)
    for seed in seeds:
        one_input(seed)  # what is compiled on first use is not an input's time
    names = {argument.partition("=")[0] for argument in sys.argv[1:]}
    options = [option for option in _DEFAULTS if option.partition("=")[0] not in names]
    # atheris hands the pair over as keyword arguments of its own.
    custom: dict[str, Any] = {} if mutate is None else {"custom_mutator": mutate}
    atheris.Setup([sys.argv[0], *options, *sys.argv[1:]], one_input, **custom)
    atheris.Fuzz()


def mutate_bytes(data: bytes, max_size: int) -> bytes:
    """libFuzzer's own mutation of a part of an input."""
    assert atheris is not None
    return atheris.Mutate(data, max(1, max_size))


def mutate_json(text: bytes, rng: random.Random) -> bytes | None:
    """A JSON document with one value of it replaced, removed or doubled; None if it is no JSON object."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    places = list(_places(document))
    if not places:
        return None
    holder, key = rng.choice(places)
    match rng.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.insert(key, holder[key])
        case 2 if isinstance(holder[key], int | float):
            with contextlib.suppress(OverflowError):  # an integer beyond all floats, and 0.5
                holder[key] += rng.choice((-1, 1, 0.5, 1 << 16))
        case _:
            holder[key] = rng.choice(INTERESTING)
    with contextlib.suppress(ValueError, RecursionError):
        return json.dumps(document, separators=(",", ":")).encode()
    return None


def _places(value: Any, depth: int = 0) -> Iterable[tuple[Any, Any]]:
    """(container, key or index) of every value in a document."""
    if depth > 20 or not isinstance(value, dict | list):
        return
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        yield from _places(value[key], depth + 1)
