"""Tar: the bytes are plain USTAR that anyone reads, the same each time; crafted archives end in FormatError."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from cope_prep.pipeline import tar
from cope_prep.schemas.errors import FormatError

MEMBERS = st.dictionaries(
    st.from_regex(r"[a-z]{1,8}(\.[a-z0-9]{1,4}){0,2}", fullmatch=True),
    st.binary(max_size=1500),
    min_size=1,
    max_size=5,
)
SAMPLES = st.dictionaries(st.from_regex(r"[0-9a-f]{16}_[0-9]{5}", fullmatch=True), MEMBERS, max_size=5)


def archive(samples: dict[str, dict[str, bytes]]) -> bytes:
    return b"".join(tar.sample_bytes(key, members) for key, members in samples.items()) + tar.END_OF_ARCHIVE


def scan(content: bytes) -> list[tar.SampleSpan]:
    return list(tar.scan(io.BytesIO(content), name="test.tar"))


def header(name: str = "key.json", **fields: object) -> bytes:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def with_size(size: bytes) -> bytes:
    """A header whose 12 bytes of size are as given, with the checksum right."""
    block = bytearray(header())
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@given(SAMPLES)
def test_round_trip(samples: dict[str, dict[str, bytes]]) -> None:
    content = archive(samples)
    spans = scan(content)
    assert {span.key: tar.read_members(io.BytesIO(content), span) for span in spans} == samples
    assert [span.key for span in spans] == list(samples)
    end_bytes = 0
    for span in spans:
        assert span.offset_bytes == end_bytes
        end_bytes += span.size_bytes
        for member in span.members:
            found = content[member.offset_bytes : member.offset_bytes + member.size_bytes]
            assert found == samples[span.key][member.name]
    assert content[end_bytes:] == tar.END_OF_ARCHIVE


@given(SAMPLES)
def test_other_readers_agree(samples: dict[str, dict[str, bytes]]) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive(samples))) as file:
        found = {}
        for info in file:
            member = file.extractfile(info)
            assert member is not None
            found[info.name] = member.read()
            assert (info.mtime, info.uid, info.gid, info.uname) == (0, 0, 0, "")
    assert found == {
        f"{key}.{name}": content for key, parts in samples.items() for name, content in parts.items()
    }


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves the file to the garbage collector
def test_webdataset_groups_by_the_same_key(tmp_path: Path) -> None:
    samples = {"00ff_00000": {"json": b"{}", "residual.00.jpg": b"1"}, "00ff_00001": {"json": b"{}"}}
    (tmp_path / "shard.tar").write_bytes(archive(samples))
    dataset = webdataset.WebDataset(str(tmp_path / "shard.tar"), shardshuffle=False)
    found = {sample.pop("__key__"): {k: v for k, v in sample.items() if k[0] != "_"} for sample in dataset}
    assert found == samples


def test_scan_reads_headers_only() -> None:
    class Counting(io.BytesIO):
        num_read = 0

        def read(self, size: int | None = -1, /) -> bytes:
            content = super().read(size)
            self.num_read += len(content)
            return content

    file = Counting(archive({"a_00000": {"json": bytes(100_000), "iframe.jpg": bytes(100_000)}}))
    assert len(list(tar.scan(file, name="test.tar"))) == 1
    assert file.num_read == 4 * tar.BLOCK_BYTES


@given(SAMPLES.filter(bool), st.data())
def test_truncated_archive_fails(samples: dict[str, dict[str, bytes]], data: st.DataObject) -> None:
    content = archive(samples)
    kept = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(FormatError):
        scan(content[:kept])


@given(SAMPLES.filter(bool), st.data())
def test_damaged_archive_never_hangs(samples: dict[str, dict[str, bytes]], data: st.DataObject) -> None:
    content = bytearray(archive(samples))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FormatError):
        spans = scan(bytes(content))
        assert all(span.offset_bytes + span.size_bytes <= len(content) for span in spans)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: header(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "not a member"),
        (lambda: header(type=tarfile.LNKTYPE, linkname="other"), "not a member"),
        (lambda: header(type=tarfile.DIRTYPE), "not a member"),
        (lambda: header(type=tarfile.CHRTYPE), "not a member"),
        (lambda: header(type=tarfile.GNUTYPE_LONGNAME), "not a member"),
        (lambda: header(type=tarfile.GNUTYPE_SPARSE), "not a member"),
        (lambda: header(type=tarfile.XHDTYPE), "not a member"),
        (lambda: header("../key.json"), "not a member"),
        (lambda: header("/etc/key.json"), "not a member"),
        (lambda: header("nodot"), "not a member"),
        (lambda: with_size(b"\xff" * 10 + b"\xfe\x00"), "not a member"),  # -512, in base 256
        (lambda: with_size(b"\x80" + b"\x7f" * 11), "inside key.json"),  # 2 ** 87
        (lambda: with_size(b"77777777777\0"), "inside key.json"),
        (lambda: with_size(b"notanumber!\0"), "damaged header"),
        (lambda: header()[:-1] + b"\1", "damaged header"),
    ],
)
def test_crafted_header_fails(make: Callable[[], bytes], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        scan(make() + bytes(4096))


def test_endless_sample_fails() -> None:
    members = {f"residual.{index:04d}.jpg": b"" for index in range(tar.MAX_MEMBERS)}
    assert len(scan(archive({"key": members}))[0].members) == tar.MAX_MEMBERS
    with pytest.raises(FormatError, match="more than 2048 members of sample key"):
        scan(archive({"key": {**members, "one.more": b""}}))
