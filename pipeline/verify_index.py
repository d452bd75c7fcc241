"""Reading index.parquet as verify needs it: the rows of one shard at a time, and the key that must come next."""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from cope_prep.pipeline import storage
from cope_prep.pipeline.parquet import PARQUET_THREADS, open_parquet
from cope_prep.pipeline.verify_report import ProblemKind
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.errors import FormatError

_KEY = re.compile(r"([0-9a-f]{16})_(\d{5,9})")


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
            self._groups: dict[str, list[int]] = {}
            for group in range(self._file.num_row_groups):
                for shard in self._read(group, ["shard"])["shard"].unique().to_pylist():
                    self._groups.setdefault(shard, []).append(group)
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

    def rows(self, shard: str) -> list[dict[str, Any]]:
        """The rows of a shard, in order.

        Raises:
            FormatError: they cannot be read.
        """
        try:
            tables = [self._read(group) for group in self._groups.get(shard, [])]
        except (pa.ArrowException, OSError) as exc:
            raise FormatError(self._uri, f"cannot be read ({exc})", "Run cope-prep shard.") from exc
        return [row for table in tables for row in table.to_pylist() if row["shard"] == shard]

    def choose(self, count: int, *, seed: int) -> set[str]:
        """`count` keys, by a hash of seed and key."""

        def place(key: str) -> bytes:
            return hashlib.sha256(f"{seed}/{key}".encode("utf-8", "surrogatepass")).digest()

        return set(heapq.nsmallest(count, self._keys(), key=place))

    def _read(self, group: int, columns: list[str] | None = None) -> pa.Table:
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
