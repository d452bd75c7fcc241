"""Fuzz `wire.decode_gop`, and what every reader does next: rebuild the anchors with compiled kernels.

The kernels check no index, so whatever decode_gop lets pass must be within them: a crash here is a finding too.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from fuzzing import fuzz, instrumented, mutate_bytes, mutate_json

from cope_prep.pipeline.kernels import compensate, residual, warp  # noqa: F401 - numba compiles no instrumented code

with instrumented():
    import sample_input

    from cope_prep.pipeline.rebuild import rebuild_anchors
    from cope_prep.schemas import wire
    from cope_prep.schemas.errors import CopePrepError

_MAX_PIXELS = 1 << 22
"""Larger samples are decoded, but not rebuilt: that takes its time."""


def one_input(data: bytes) -> None:
    """Decode a sample; if it is one, it must survive being written again, and rebuild or say why not."""
    try:
        record = wire.decode_gop(sample_input.members_of(data))
    except CopePrepError:
        return
    again = wire.decode_gop(wire.encode_gop(record))
    assert (again.key, again.num_frames) == (record.key, record.num_frames)
    if record.width_px * record.height_px * record.num_anchors <= _MAX_PIXELS:
        try:
            rebuild_anchors(record, check=False)
        except CopePrepError:
            return


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Change one member: the .json by its values, another by its bytes."""
    rng = random.Random(seed)
    parts = sample_input.split(data)
    if not parts or rng.random() < 0.05:
        return mutate_bytes(data, max_size)
    place = 0 if rng.random() < 0.5 else rng.randrange(len(parts))
    number, packed, content = parts[place]
    changed = mutate_json(content, rng) if number == 0 and rng.random() < 0.9 else None
    if rng.random() < 0.03:
        packed = not packed
    parts[place] = number, packed, mutate_bytes(content, len(content) + 64) if changed is None else changed
    if rng.random() < 0.03:
        del parts[rng.randrange(len(parts))]
    return sample_input.join(parts)[:max_size]


def seeds() -> list[bytes]:
    """Good samples, of every coding."""
    return sample_input.seeds()


if __name__ == "__main__":
    fuzz(one_input, seeds=seeds(), mutate=mutate)
