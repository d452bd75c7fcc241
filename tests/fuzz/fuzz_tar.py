"""Fuzz the two readers of tar: `scan`, which reads headers one by one, and `split_sample`, which the loader uses.

A header's checksum never survives a mutation, so it is set right first, wherever a reader would look for a
header. Then both readers must agree on what a sample holds, and with Python's own tarfile.
"""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from fuzzing import fuzz, instrumented

with instrumented():
    from cope_prep.pipeline import tar
    from cope_prep.schemas.errors import FormatError

_CHECKSUM = slice(148, 156)


def with_checksums(data: bytes) -> bytes:
    """The same tar with right checksums."""
    out = bytearray(data)
    at = 0
    while at + tar.BLOCK_BYTES <= len(out):
        header = out[at : at + tar.BLOCK_BYTES]
        if any(header):
            header[_CHECKSUM] = b" " * 8
            header[_CHECKSUM] = b"%06o\0 " % sum(header)
            out[at : at + tar.BLOCK_BYTES] = header
        try:
            size = tarfile.TarInfo.frombuf(bytes(header), "ascii", "strict").size
        except (tarfile.HeaderError, UnicodeDecodeError):
            size = 0
        at += tar.BLOCK_BYTES + max(0, size) + -max(0, size) % tar.BLOCK_BYTES
    return bytes(out)


def one_input(data: bytes) -> None:
    """Scan a tar, and read each of its samples in every way."""
    data = with_checksums(data)
    file = io.BytesIO(data)
    end = 0
    try:
        for span in tar.scan(file, name="shard"):
            assert span.offset_bytes == end
            end = span.offset_bytes + span.size_bytes
            assert end <= len(data)
            _check_sample(data, span)
    except FormatError:
        pass
    try:
        key, members = tar.split_sample(data, name="sample")
    except FormatError:
        return
    assert sum(map(len, members.values())) <= len(data)
    assert isinstance(key, str)


def _check_sample(data: bytes, span: tar.SampleSpan) -> None:
    block = data[span.offset_bytes : span.offset_bytes + span.size_bytes]
    members = tar.read_members(io.BytesIO(data), span)
    assert members == tar.members_of(block, span)
    names = [member.name for member in span.members]
    assert not any("/" in f"{span.key}.{name}" for name in names)
    with tarfile.open(fileobj=io.BytesIO(block + tar.END_OF_ARCHIVE)) as reference:
        assert [info.name for info in reference] == [f"{span.key}.{name}" for name in names]
    try:
        key, found = tar.split_sample(block, name="sample")
    except FormatError:
        return  # it reads octal sizes only
    assert (key, found) == (span.key, members)


def seeds() -> list[bytes]:
    """Shards of a few samples."""
    small = tar.sample_bytes("0123456789abcdef_00000", {"json": b"{}", "motion.npy.zst": b"m" * 600})
    other = tar.sample_bytes("0123456789abcdef_00001", {"json": b"", "residual.00.jpg": b"r"})
    return [tar.END_OF_ARCHIVE, small, small + tar.END_OF_ARCHIVE, small + other + tar.END_OF_ARCHIVE]


if __name__ == "__main__":
    fuzz(one_input, seeds=seeds())
