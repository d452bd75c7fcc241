"""The samples of a catalog, by number: their bytes, their records, and which chunk of a shard each is read with.

A few megabytes of records are kept, oldest use first out, so that the questions of one video, or the windows
of one GOP, that come near each other share one reading of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

import numpy as np

from cope_prep.pipeline.loader.catalog import Catalog, ShardFolder
from cope_prep.pipeline.loader.order import cut_chunks
from cope_prep.pipeline.loader.reader import Extent, ShardReader
from cope_prep.pipeline.tar import split_sample
from cope_prep.schemas.errors import ChecksumError, CopePrepError, FormatError
from cope_prep.schemas.records import GopRecord, sample_key, video_key
from cope_prep.schemas.wire import decode_gop

MAX_GAP_BYTES = 256 << 10
"""Unwanted bytes between two samples that are read along, rather than asking a store twice."""

_MAX_EXTENTS = 1 << 14
_MAX_KEYS = 1 << 12

V = TypeVar("V")


class ByteLimitedCache(Generic[V]):
    """The last used values, up to a number of bytes; a value larger than all of it is not kept."""

    def __init__(self, limit_bytes: int, size_of: Callable[[V], int]) -> None:
        self._limit_bytes = limit_bytes
        self._size_of = size_of
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self.used_bytes = 0

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value of a key, made if it is not there."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = make()
        size_bytes = self._size_of(value)
        if size_bytes <= self._limit_bytes:
            self._values[key] = value
            self.used_bytes += size_bytes
            while self.used_bytes > self._limit_bytes:
                _, dropped = self._values.popitem(last=False)
                self.used_bytes -= self._size_of(dropped)
        return value


class SampleStore:
    """Reads samples of a catalog by number."""

    def __init__(
        self,
        catalog: Catalog,
        *,
        reader: ShardReader,
        chunk_bytes: int,
        by_video: bool = False,
        keep_bytes: int = 0,
    ) -> None:
        """`by_video`: chunks begin where videos do. `keep_bytes` of records are kept; 0 for none."""
        self.catalog = catalog
        self.reader = reader
        self.chunk = cut_chunks(
            catalog.shard,
            catalog.offset_bytes,
            catalog.size_bytes,
            chunk_bytes=chunk_bytes,
            max_gap_bytes=MAX_GAP_BYTES,
            group=catalog.video if by_video else None,
        )
        self.chunk_first = np.flatnonzero(np.diff(self.chunk, prepend=-1))
        """int64 [num_chunks]: first sample of each chunk."""
        ends = catalog.offset_bytes + catalog.size_bytes
        last = np.append(self.chunk_first, len(catalog))[1:] - 1
        self.chunk_bytes = (ends[last] - catalog.offset_bytes[self.chunk_first]).astype(np.int64)
        """int64 [num_chunks]: size of each chunk's extent."""
        self.remembers_failures = False
        """Do not try again in an epoch what has failed in it, and fail with the same error."""
        self.num_failures_in_row = 0
        """Samples that could not be read since the last one that could."""
        self._failures: dict[tuple[str, int], CopePrepError] = {}
        self._keys: dict[int, str] = {}
        self._scratch = bytearray()
        self._extents: dict[int, Extent] = {}
        self._wanted: list[int] = []
        self._kept: ByteLimitedCache[GopRecord] = ByteLimitedCache(keep_bytes, _record_bytes)

    def begin_epoch(self) -> None:
        """Failures may have passed, and the page cache may have been emptied since."""
        self._failures.clear()
        self.reader.forget_advice()

    def extent(self, chunk: int) -> Extent:
        """Where a chunk lies."""
        extent = self._extents.get(chunk)
        if extent is None:
            first = self.chunk_first[chunk]
            shard = self.catalog.shard[first]
            extent = Extent(
                uri=self.catalog.shard_uris[shard],
                shard_bytes=int(self.catalog.shard_bytes[shard]),
                offset_bytes=int(self.catalog.offset_bytes[first]),
                size_bytes=int(self.chunk_bytes[chunk]),
            )
            if len(self._extents) == _MAX_EXTENTS:
                self._extents.clear()
            self._extents[chunk] = extent
        return extent

    def prefetch(self, chunks: Iterable[int]) -> None:
        """Say which chunks are wanted next, all of them, soonest first."""
        wanted = list(dict.fromkeys(chunks))
        if wanted != self._wanted:
            self._wanted = wanted
            self.reader.prefetch([self.extent(chunk) for chunk in wanted])

    def key(self, sample: int) -> str:
        """WebDataset key of a sample."""
        key = self._keys.get(sample)
        if key is None:
            key = sample_key(video_key(self.catalog.video_id(sample)), int(self.catalog.gop_index[sample]))
            if len(self._keys) == _MAX_KEYS:
                self._keys.clear()
            self._keys[sample] = key
        return key

    def shard_uri(self, sample: int) -> str:
        """URI of the shard that holds a sample."""
        return self.catalog.shard_uris[self.catalog.shard[sample]]

    def _folder(self, sample: int) -> ShardFolder:
        return self.catalog.folders[self.catalog.shard_folder[self.catalog.shard[sample]]]

    def read_into(self, out: memoryview, sample: int) -> None:
        """Fill `out` with a sample's bytes as they are in the shard, verified against the index.

        Raises:
            FormatError, ChecksumError, SourceNotFoundError, StorageError: they cannot be had, or are not the
                ones that the index describes.
        """
        catalog = self.catalog
        chunk = int(self.chunk[sample])
        self.num_failures_in_row += 1
        for place in (("chunk", chunk), ("sample", sample)):
            if place in self._failures:
                raise self._failures[place]
        try:
            self.reader.read_into(
                out,
                self.extent(chunk),
                int(catalog.offset_bytes[sample]),
                crc32c=int(catalog.crc32c[sample]),
                name=self.key(sample),
                expected_spec=self._folder(sample).spec_hash,
            )
        except CopePrepError as exc:
            if self.remembers_failures:
                # What is the matter with bytes is one sample's; anything else is the whole chunk's.
                place = ("sample", sample) if isinstance(exc, ChecksumError) else ("chunk", chunk)
                self._failures[place] = exc
            raise
        self.num_failures_in_row = 0

    def record(self, sample: int) -> GopRecord:
        """A sample as a record. Raises as `read_into`."""
        return self._kept.get(sample, lambda: self._read(sample))

    def _read(self, sample: int) -> GopRecord:
        key = self.key(sample)
        size_bytes = int(self.catalog.size_bytes[sample])
        if len(self._scratch) < size_bytes:
            self._scratch = bytearray(size_bytes)
        block = memoryview(self._scratch)[:size_bytes]
        self.read_into(block, sample)
        found_key, members = split_sample(block, name=key)
        record = decode_gop(members, key=key)
        catalog, folder = self.catalog, self._folder(sample)
        if found_key != key or record.spec_hash != folder.spec_hash:
            raise FormatError(
                self.shard_uri(sample),
                f"holds {found_key} of spec {record.spec_hash} at byte {catalog.offset_bytes[sample]}, the index"
                f" has {key} of spec {folder.spec_hash} there",
                "The shard was replaced by another one: restore it, or run cope-prep shard.",
            )
        expected = (catalog.num_frames[sample], *catalog.size_px[sample])
        if (record.num_frames, record.height_px, record.width_px) != tuple(expected):
            raise FormatError(
                key, "is not of the length or size that the index gives", "Run cope-prep verify."
            )
        return record


def _record_bytes(record: GopRecord) -> int:
    iframe_bytes = len(record.iframe) if isinstance(record.iframe, bytes) else record.iframe.nbytes
    return iframe_bytes + sum(
        len(window.residual) + window.motion.nbytes + window.intra.nbytes for window in record.windows
    )
