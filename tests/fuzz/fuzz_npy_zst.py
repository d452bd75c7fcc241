"""Fuzz the reader of `.npy.zst` members. What it accepts must be what numpy reads from the same bytes.

    input := shape (1 byte, see SHAPES) | dtypes (1 byte) | packed (1 byte) | content

With `packed` odd the content is compressed first, and with 2 in it the frame does not say its size; else the
content is the frame.
"""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path

import numpy as np
import zstandard

sys.path.insert(0, str(Path(__file__).parent))
from fuzzing import fuzz, instrumented

with instrumented():
    from cope_prep.schemas import wire
    from cope_prep.schemas.errors import FormatError

SHAPES = ((0,), (1,), (7,), (2, 3), (4, 2, 2, 2), (1, 0, 3), (), (1 << 20,), (1 << 40, 8), (1 << 15, 1 << 16))
DTYPES = ((np.uint8,), (np.int8,), (np.int16,), (np.int8, np.int16))
_MAX_RAW_BYTES = 1 << 26

_sized = zstandard.ZstdCompressor(level=1)
_unsized = zstandard.ZstdCompressor(level=1, write_content_size=False)


def one_input(data: bytes) -> None:
    """Read a member as an array of one of the shapes."""
    if len(data) < 3:
        return
    shape, dtypes = SHAPES[data[0] % len(SHAPES)], DTYPES[data[1] % len(DTYPES)]
    content = data[3:]
    if data[2] & 1:
        content = (_unsized if data[2] & 2 else _sized).compress(content)
    try:
        array = wire.unpack_array(content, dtypes=dtypes, shape=shape, name="a.npy.zst")
    except FormatError:
        return
    assert array.shape == shape
    assert array.dtype in dtypes
    raw = zstandard.ZstdDecompressor().decompress(content, max_output_size=_MAX_RAW_BYTES)
    assert np.array_equal(array, np.load(io.BytesIO(raw), allow_pickle=False))


def seeds() -> list[bytes]:
    """An array of each small shape and dtype, unpacked and packed, and one that holds a pickle."""
    found = []
    for shape_number, shape in enumerate(SHAPES[:7]):
        for dtype_number, dtypes in enumerate(DTYPES):
            buffer = io.BytesIO()
            np.save(buffer, np.arange(math.prod(shape)).reshape(shape).astype(dtypes[-1]))
            place = bytes((shape_number, dtype_number))
            found.append(place + b"\1" + buffer.getvalue())
            found.append(place + b"\0" + _sized.compress(buffer.getvalue()))
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}]), allow_pickle=True)
    found.append(bytes((1, 0, 1)) + buffer.getvalue())
    return found


if __name__ == "__main__":
    fuzz(one_input, seeds=seeds())
