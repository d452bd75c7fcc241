"""Samples in tar files: written so that the same samples give the same bytes, read with their offsets.

USTAR headers with zero times and owners; one member after the other, in the order given. The bytes of a
sample (headers, contents, padding) can therefore be copied from one tar to another as they are.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO

from cope_prep.schemas.errors import FormatError

BLOCK_BYTES = 512
END_OF_ARCHIVE = bytes(2 * BLOCK_BYTES)
MAX_MEMBERS = 2048
"""No sample has more: 1,199 windows at most. A crafted tar cannot make a reader collect more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One file of a sample, by its place in the tar."""

    name: str
    """Without the key: `iframe.jpg`."""
    offset_bytes: int
    """Of the content, from the start of the tar."""
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSpan:
    """Where one sample lies in a tar."""

    key: str
    offset_bytes: int
    """Of the first header."""
    size_bytes: int
    """Headers, contents and padding of all members."""
    members: tuple[Member, ...]


def sample_bytes(key: str, members: Mapping[str, bytes]) -> bytes:
    """The tar bytes of one sample, without an end-of-archive mark."""
    out = io.BytesIO()
    for name, content in members.items():
        info = tarfile.TarInfo(f"{key}.{name}")
        info.size = len(content)
        info.mode = 0o644
        out.write(info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
        out.write(content)
        out.write(bytes(-len(content) % BLOCK_BYTES))
    return out.getvalue()


def scan(file: IO[bytes], *, name: str) -> Iterator[SampleSpan]:
    """The samples of a tar in order, by their headers alone; contents are skipped, not read.

    Raises:
        FormatError: a header is damaged, an entry is not a plain file, a name is not `<key>.<member>`, a
            sample has more than MAX_MEMBERS, or the tar ends without its end-of-archive mark.
    """
    size_bytes = file.seek(0, io.SEEK_END)
    offset_bytes = 0
    key: str | None = None
    start_bytes = 0
    members: list[Member] = []
    while True:
        file.seek(offset_bytes)
        header = file.read(BLOCK_BYTES)
        if len(header) < BLOCK_BYTES:
            raise FormatError(name, f"ends at byte {size_bytes} without an end-of-archive mark: truncated")
        if header == bytes(BLOCK_BYTES) and file.read(BLOCK_BYTES) == header:
            break
        try:
            info = tarfile.TarInfo.frombuf(header, "ascii", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as exc:
            raise FormatError(name, f"has a damaged header at byte {offset_bytes} ({exc})") from exc
        found_key, dot, member = info.name.partition(".")
        # A size in base 256 may be negative, which would send us back for ever.
        if info.type != tarfile.REGTYPE or not dot or "/" in info.name or info.size < 0:
            raise FormatError(name, f"holds {info.name!r} at byte {offset_bytes}, not a member of a sample")
        content_bytes = offset_bytes + BLOCK_BYTES
        end_bytes = content_bytes + info.size + -info.size % BLOCK_BYTES
        if end_bytes > size_bytes:
            raise FormatError(name, f"ends at byte {size_bytes} inside {info.name}: truncated")
        if found_key != key:
            if key is not None:
                yield _span(key, start_bytes, offset_bytes, members)
            key, start_bytes, members = found_key, offset_bytes, []
        if len(members) == MAX_MEMBERS:
            raise FormatError(name, f"holds more than {MAX_MEMBERS} members of sample {key}")
        members.append(Member(name=member, offset_bytes=content_bytes, size_bytes=info.size))
        offset_bytes = end_bytes
    if key is not None:
        yield _span(key, start_bytes, offset_bytes, members)


def read_members(file: IO[bytes], span: SampleSpan) -> dict[str, bytes]:
    """The contents of a sample's members by name, in one read."""
    file.seek(span.offset_bytes)
    return members_of(file.read(span.size_bytes), span)


def members_of(block: bytes, span: SampleSpan) -> dict[str, bytes]:
    """The contents of a sample's members by name; `block` is the sample's bytes."""
    return {
        member.name: block[start : start + member.size_bytes]
        for member in span.members
        for start in (member.offset_bytes - span.offset_bytes,)
    }


def split_sample(block: bytes | memoryview, *, name: str) -> tuple[str, dict[str, bytes]]:
    """The key and the members of one sample's bytes, whose checksum has been verified already.

    Only names and sizes of the headers are read: about 2 us a member, where tarfile takes 15.

    Raises:
        FormatError: they are not the bytes of one sample.
    """
    members: dict[str, bytes] = {}
    sample_key = ""
    offset_bytes = 0
    while offset_bytes < len(block):
        header = bytes(block[offset_bytes : offset_bytes + BLOCK_BYTES])
        try:
            key, dot, member = header[:100].partition(b"\0")[0].decode("ascii").partition(".")
            size_bytes = int(header[124:136].rstrip(b" \0"), 8)
        except ValueError as exc:
            raise FormatError(name, f"has a damaged header at byte {offset_bytes} of the sample") from exc
        start = offset_bytes + BLOCK_BYTES
        if not dot or (members and key != sample_key) or size_bytes < 0 or start + size_bytes > len(block):
            raise FormatError(name, f"holds {key}.{member} at byte {offset_bytes}: not one whole sample")
        sample_key = key
        members[member] = bytes(block[start : start + size_bytes])
        offset_bytes = start + size_bytes + -size_bytes % BLOCK_BYTES
    return sample_key, members


def _span(key: str, start_bytes: int, end_bytes: int, members: list[Member]) -> SampleSpan:
    return SampleSpan(
        key=key, offset_bytes=start_bytes, size_bytes=end_bytes - start_bytes, members=tuple(members)
    )
