"""Reading tables as verify needs them: the index by shards, another one if its rows and text are no more than it
may have. And the key that must come next.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cope_prep.pipeline import storage
from cope_prep.pipeline.parquet import PARQUET_THREADS, check_schema, open_parquet
from cope_prep.pipeline.verify_report import ProblemKind
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.errors import FormatError

_SHARD_NAME = re.compile(r"shard-\d{5,}\.tar")
MAX_ROWS_A_GROUP = 1 << 20
"""A row group is one shard's samples; they are held in memory together."""
MAX_TEXT_BYTES = 1 << 28
"""Of a row group, counted before its text is unfolded: a file of some KB may say a long name a million times."""
_TEXT_BYTES_A_ROW = 1 << 10
"""On average, and beyond MAX_TEXT_BYTES: a row of provenance.parquet has some 600."""
_MIN_MEMBER_BYTES = 1024
"""A member takes a header and a block; a sample has several, and a window one."""
_VALUES_A_MEMBER = 40
_SPARE_ROWS = 1 << 16
_SPARE_VALUES = 1 << 22
"""A shard that is cut off, and an index that holds several shards in a row group, are told by other checks."""
_TEXT = ("shard", "key", "video_id", "subset", "members")
_KEY = re.compile(r"([0-9a-f]{16})_(\d{5,9})")


def is_shard_name(name: str) -> bool:
    """True if it is one of the sharder's; a crafted one could lead out of the folder."""
    return _SHARD_NAME.fullmatch(name) is not None


def sample_place(name: str, seed: int) -> bytes:
    """The place of a sample or video in a random order that depends on nothing but its name and the seed."""
    return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogatepass")).digest()


def text_bytes(folded: pa.Table) -> int:
    """The bytes of text of a table, were it unfolded: its columns are dictionaries of text, or lists of members."""
    num_bytes = 0
    for column in folded.columns:
        for chunk in column.chunks:
            texts = chunk.values.field("name") if pa.types.is_list(chunk.type) else chunk
            lengths = pc.binary_length(texts.dictionary)  # pyright: ignore[reportAttributeAccessIssue]
            num_bytes += pc.sum(lengths.take(texts.indices)).as_py() or 0  # pyright: ignore[reportAttributeAccessIssue]
    return num_bytes


def read_bounded(uri: str, schema: pa.Schema, *, max_rows: int) -> pa.Table:
    """A table without lists, if it unfolds to no more than `max_rows` and the text that they may have.

    Raises:
        SourceNotFoundError: there is none.
        FormatError, SchemaVersionError: it has more, or is not such a table.
    """
    with storage.open_read(uri) as file:
        try:
            parquet = open_parquet(file)
            check_schema(uri, parquet.schema_arrow, schema)
            num_rows = parquet.metadata.num_rows
            if num_rows > max_rows:
                raise FormatError(
                    uri, f"has {num_rows} rows, and the index {max_rows}", "Run cope-prep shard."
                )
            texts = [field.name for field in parquet.schema_arrow if pa.types.is_string(field.type)]
            folded = open_parquet(file, read_dictionary=texts)
            num_bytes = text_bytes(folded.read(columns=texts, use_threads=PARQUET_THREADS))
        except (pa.ArrowInvalid, OSError) as exc:
            raise FormatError(uri, f"cannot be read ({exc})", "Run cope-prep shard.") from exc
    if num_bytes > MAX_TEXT_BYTES + num_rows * _TEXT_BYTES_A_ROW:
        raise FormatError(uri, f"has {num_bytes} bytes of text in {num_rows} rows", "Run cope-prep shard.")
    return storage.read_table(uri, schema)


class IndexFile:
    """index.parquet, read by row groups: the sharder writes one a shard."""

    def __init__(self, uri: str) -> None:
        """Raises SourceNotFoundError if it is not there, FormatError if it cannot be read."""
        self._uri = uri
        self._handle = storage.open_read(uri)
        try:
            self._file = open_parquet(self._handle)
            if not self._file.schema_arrow.equals(INDEX):
                raise FormatError(uri, "does not have the columns of an index", "Run cope-prep shard.")
            self.num_rows: int = self._file.metadata.num_rows
            texts = [name if name != "members" else "members.list.element.name" for name in _TEXT]
            self._folded = open_parquet(self._handle, read_dictionary=texts)
            self._groups: dict[str, list[int]] = {}
            self._num_rows: dict[str, int] = {}
            for group in range(self._file.num_row_groups):
                num_rows = self._file.metadata.row_group(group).num_rows
                if num_rows > MAX_ROWS_A_GROUP:
                    raise FormatError(uri, f"has a row group of {num_rows} rows", "Run cope-prep shard.")
                for found in self._read(group, ["shard"])["shard"].value_counts().to_pylist():
                    self._groups.setdefault(found["values"], []).append(group)
                    self._num_rows[found["values"]] = self._num_rows.get(found["values"], 0) + found["counts"]
        except (FormatError, MemoryError):
            self._handle.close()
            raise
        except (pa.ArrowException, OSError) as exc:
            self._handle.close()
            raise FormatError(uri, f"cannot be read ({exc})", "Run cope-prep shard.") from exc

    def close(self) -> None:
        """Close the file."""
        self._handle.close()

    @property
    def shards(self) -> list[str]:
        """Shards that have a row."""
        return list(self._groups)

    def check_size(self, total_bytes: int) -> None:
        """Check the number of rows of an index whose shards have so many bytes together.

        Raises:
            FormatError: they cannot have so many samples.
        """
        if self.num_rows > total_bytes // _MIN_MEMBER_BYTES + _SPARE_ROWS:
            raise FormatError(
                self._uri,
                f"has {self.num_rows} rows for shards of {total_bytes} bytes",
                "Run cope-prep shard.",
            )

    def rows(self, shard: str, *, shard_bytes: int) -> list[dict[str, Any]]:
        """The rows of a shard of so many bytes, in order.

        Raises:
            FormatError: they cannot be read, or are more than a shard of this size can have.
        """
        try:
            return self.table(shard, shard_bytes=shard_bytes).to_pylist()
        except MemoryError as exc:
            raise FormatError(self._uri, f"needs more memory than there is for {shard}") from exc

    def table(self, shard: str, *, shard_bytes: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The same as a table: all columns, or some.

        Raises:
            FormatError: as `rows`.
        """
        num_members = shard_bytes // _MIN_MEMBER_BYTES
        groups, num_rows = self._groups.get(shard, []), self._num_rows.get(shard, 0)
        if num_rows > num_members + _SPARE_ROWS:
            raise FormatError(self._uri, f"has {num_rows} rows for {shard}, which is {shard_bytes} bytes")
        num_values = sum(map(self._num_values, groups))
        if num_values > num_members * _VALUES_A_MEMBER + _SPARE_VALUES:
            raise FormatError(self._uri, f"has {num_values} values for {shard}, which is {shard_bytes} bytes")
        wanted = INDEX.names if columns is None else list(columns)
        found = [INDEX.empty_table().select(wanted)]
        try:
            for group in groups:
                part = self._read(group, list(dict.fromkeys(("shard", *wanted))))
                is_it = pc.equal(part["shard"], shard)  # pyright: ignore[reportAttributeAccessIssue]
                found.append(part.filter(is_it).select(wanted))
        except MemoryError as exc:
            raise FormatError(self._uri, f"needs more memory than there is for {shard}") from exc
        except (pa.ArrowException, OSError) as exc:
            raise FormatError(self._uri, f"cannot be read ({exc})", "Run cope-prep shard.") from exc
        return pa.concat_tables(found)

    def choose(self, count: int, *, seed: int) -> set[str]:
        """`count` keys, by a hash of seed and key."""
        return set(heapq.nsmallest(count, self._keys(), key=lambda key: sample_place(key, seed)))

    def _num_values(self, group: int) -> int:
        described = self._file.metadata.row_group(group)
        return sum(described.column(index).num_values for index in range(described.num_columns))

    def _check_text(self, group: int, columns: list[str]) -> None:
        """Sum up the text of a row group as if it were unfolded, without unfolding it."""
        folded = self._folded.read_row_group(group, columns=columns, use_threads=PARQUET_THREADS)
        num_bytes = text_bytes(folded)
        if num_bytes > MAX_TEXT_BYTES:
            raise FormatError(self._uri, f"has a row group with {num_bytes} bytes of text")

    def _read(self, group: int, columns: list[str] | None = None) -> pa.Table:
        self._check_text(group, [name for name in _TEXT if columns is None or name in columns])
        return self._file.read_row_group(group, columns=columns, use_threads=PARQUET_THREADS)

    def _keys(self) -> Iterator[str]:
        for group in range(self._file.num_row_groups):
            yield from self._read(group, ["key"])["key"].to_pylist()


class KeyOrder:
    """Sees the keys of all shards in order. Keeps one number a video, and the GOPs that are out of order."""

    def __init__(self) -> None:
        self._num_gops: dict[str, int] = {}
        """GOPs 0 to n - 1 of the video have been seen."""
        self._beyond: set[tuple[str, int]] = set()
        """Seen, although one before it was not."""
        self._previous = ("", -1)

    @property
    def num_videos(self) -> int:
        """Videos seen so far."""
        return len(self._num_gops)

    def begin_shard(self) -> None:
        """No video goes on from one shard to the next."""
        self._previous = ("", -1)

    def check(self, key: str) -> tuple[ProblemKind, str] | None:
        """(kind of problem, message) if the key may not stand here."""
        match = _KEY.fullmatch(key)
        if match is None:
            return "format", "its key is not <16 hex digits>_<GOP>"
        video, gop_index = match[1], int(match[2])
        (previous_video, previous_gop), self._previous = self._previous, (video, gop_index)
        is_new = video not in self._num_gops
        if not self._take(video, gop_index):
            return "duplicate-key", "this key has occurred before"
        if video == previous_video:
            if gop_index != previous_gop + 1:
                return "adjacency", f"follows GOP {previous_gop} of its video"
        elif not is_new:
            return "adjacency", "other GOPs of its video stand elsewhere: the video was split"
        elif gop_index:
            return "adjacency", f"is the first of its video that is there: GOP {gop_index - 1} is missing"
        return None

    def _take(self, video: str, gop_index: int) -> bool:
        """False if it was seen before."""
        num_gops = self._num_gops.setdefault(video, 0)
        if gop_index < num_gops or (video, gop_index) in self._beyond:
            return False
        self._beyond.add((video, gop_index))
        while (video, num_gops) in self._beyond:
            self._beyond.remove((video, num_gops))
            num_gops += 1
        self._num_gops[video] = num_gops
        return True
