"""Extracted videos -> one shard and its index rows. Nothing is decoded: sample bytes are copied as they are.

    DATASET/shards/<hash>/shard-00000.tar
    DATASET/shards/<hash>/index/shard-00000.parquet    its rows of the index, and what it was built from

Order of the steps, each atomic: publish the tar; publish the rows; then, if asked to, delete the inputs. The
rows are the mark of completion. A crash before them leaves a tar that the next run writes again, from inputs
that are all still there; a crash after them leaves inputs that the next run deletes. A shard whose rows and
size are as planned is not touched.

A video that was extracted again makes its shard stale. The shard is then written anew, and those of its
videos whose own tars have been consumed are taken from the published shard. One whose rows are damaged is written
anew if all tars are there: which versions a published shard holds, only its rows know.

Memory: one sample, and the rows of one shard (about 1 KB a sample).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import IO, Any

import google_crc32c
import pyarrow as pa

from cope_prep.pipeline import storage
from cope_prep.pipeline.index_rows import index_row, moved, read_json
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.shard_plan import ExtractedVideo, PlannedShard
from cope_prep.pipeline.tar import END_OF_ARCHIVE, SampleSpan, scan
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.errors import FormatError, SchemaVersionError, SourceNotFoundError
from cope_prep.schemas.records import sample_key

_ABOUT_SHARD = b"cope_prep.shard"
"""Key in the metadata of a shard's rows under which BuiltShard is kept, as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltShard:
    """What a published shard holds: written into the metadata of its rows."""

    size_bytes: int
    crc32c: int
    """Of the whole tar."""
    versions: dict[str, str]
    """Version of the extraction of each of its videos, by video id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """What `build_shard` did."""

    name: str
    was_published: bool
    """True if the shard was there already, as planned, and was left as it is."""
    num_videos: int
    num_gops: int
    size_bytes: int
    num_consumed: int
    """Input files deleted."""


def build_shard(
    layout: Layout, shard: PlannedShard, *, consume: bool = False, consume_reencoded: Container[str] = ()
) -> ShardReport:
    """Publish one planned shard and its index rows, if they are not there as planned.

    `consume` then deletes the extract tars of its videos, `consume_reencoded` the re-encoded files of those
    whose keys it holds: those that are what was extracted, and not a newer file that waits for extraction.

    Raises:
        FormatError: an extract tar is damaged, or is not the one that was planned; or the published rows are, and
            some extract tars are gone.
        SourceNotFoundError: an extract tar is gone, and no published shard holds that version of the video.
        StorageError: the store refused to read or write.
    """
    published = find_readable(layout, shard.index)
    is_current = published is not None and published[0].versions == shard.versions
    if published is not None and is_current:
        built, num_gops = published[0], len(published[1])
    else:
        built, num_gops = _write(layout, shard)
    num_consumed = 0
    if consume:
        num_consumed += sum(_consume_extracted(layout, video) for video in shard.videos)
    num_consumed += sum(
        _delete(layout.reencoded(video.video_key))
        for video in shard.videos
        if video.video_key in consume_reencoded
    )
    return ShardReport(
        name=shard.name,
        was_published=is_current,
        num_videos=len(shard.videos),
        num_gops=num_gops,
        size_bytes=built.size_bytes,
        num_consumed=num_consumed,
    )


def rows_uri(layout: Layout, index: int) -> str:
    """URI of a shard's own index rows."""
    return storage.join(layout.folder("shards"), "index", f"shard-{index:05d}.parquet")


def find_built(layout: Layout, index: int) -> tuple[BuiltShard, pa.Table] | None:
    """A published shard and its rows; None unless both the rows and a tar of the right size are there.

    Raises:
        FormatError: the rows cannot be read.
    """
    found = _read_rows(layout, index)
    try:
        if found is None or storage.stat(layout.shard(index)).size_bytes != found[0].size_bytes:
            return None
    except SourceNotFoundError:
        return None
    return found


def find_readable(layout: Layout, index: int) -> tuple[BuiltShard, pa.Table] | None:
    """As find_built; None also if the rows are damaged, so that they have to be written again.

    Raises:
        SchemaVersionError: the rows were written by a newer version, which knows better.
    """
    try:
        return find_built(layout, index)
    except SchemaVersionError:
        raise
    except FormatError:
        return None


def published_versions(layout: Layout) -> dict[str, str]:
    """video id -> version of every video that a published shard holds: inputs that may be gone for good."""
    versions: dict[str, str] = {}
    for name in storage.list_files(storage.join(layout.folder("shards"), "index")):
        built = find_built(layout, int(name.removeprefix("shard-").removesuffix(".parquet")))
        if built is not None:
            versions.update(built[0].versions)
    return versions


def _read_rows(layout: Layout, index: int) -> tuple[BuiltShard, pa.Table] | None:
    uri = rows_uri(layout, index)
    remedy = "Delete it, then cope-prep run: what it lists is made again where that is gone."
    try:
        rows = storage.read_table(uri, INDEX)
        built = BuiltShard(**json.loads(rows.schema.metadata[_ABOUT_SHARD]))
    except SourceNotFoundError:
        return None
    except SchemaVersionError:
        raise
    except FormatError as exc:
        raise FormatError(uri, exc.found, remedy) from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise FormatError(uri, f"does not say what it was built from ({exc})", remedy) from exc
    return built, rows.replace_schema_metadata(INDEX.metadata)


def _write(layout: Layout, shard: PlannedShard) -> tuple[BuiltShard, int]:
    """Returns what was built, and its number of samples."""
    rows: list[dict[str, Any]] = []
    checksum = 0
    offset_bytes = 0
    with (
        _Inputs(layout, shard) as inputs,
        storage.publish(layout.shard(shard.index)) as path,
        open(path, "wb") as file,
    ):
        for video in shard.videos:
            for span, block in inputs.samples(video):
                file.write(block)
                checksum = google_crc32c.extend(checksum, block)
                placed = moved(span, offset_bytes=offset_bytes)
                rows.append(_checked_row(layout, shard, video, placed, block))
                offset_bytes += len(block)
        file.write(END_OF_ARCHIVE)
        checksum = google_crc32c.extend(checksum, END_OF_ARCHIVE)
    built = BuiltShard(
        size_bytes=offset_bytes + len(END_OF_ARCHIVE), crc32c=checksum, versions=shard.versions
    )
    about = {"size_bytes": built.size_bytes, "crc32c": built.crc32c, "versions": built.versions}
    schema = INDEX.with_metadata({**INDEX.metadata, _ABOUT_SHARD: json.dumps(about).encode()})
    storage.publish_table(rows_uri(layout, shard.index), pa.Table.from_pylist(rows, schema=schema))
    return built, len(rows)


def _checked_row(
    layout: Layout, shard: PlannedShard, video: ExtractedVideo, span: SampleSpan, block: bytes
) -> dict[str, Any]:
    about = read_json(block, span)
    expected = {"video_id": video.video_id, "spec_hash": layout.specs.hash_of("extract")}
    found = {name: about.get(name) for name in expected}
    if found != expected:
        raise FormatError(span.key, f"is of {found}, expected {expected}", "Extract the video again.")
    return index_row(block, span, about, shard=shard.name, subset=video.subset)


class _Inputs:
    """Where the samples of a shard's videos come from: their own tars, else the shard as published before."""

    def __init__(self, layout: Layout, shard: PlannedShard) -> None:
        self._layout = layout
        self._shard_uri = layout.shard(shard.index)
        # Whatever the size of the tar: after a crash between tar and rows it is a newer one, and holds the
        # same bytes of every video whose version has not changed, at other offsets.
        self._damage: FormatError | None = None
        try:
            rows = _read_rows(layout, shard.index)
        except FormatError as exc:
            rows, self._damage = None, exc
        self._held = rows[0].versions if rows else {}
        self._files = contextlib.ExitStack()
        self._old_file: IO[bytes] | None = None
        self._old_spans: dict[str, list[SampleSpan]] = {}

    def __enter__(self) -> _Inputs:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def samples(self, video: ExtractedVideo) -> Iterator[tuple[SampleSpan, bytes]]:
        """The samples of a video in order of their GOPs, with their bytes."""
        uri = self._layout.extracted(video.video_key)
        try:
            file = storage.open_read(uri)
        except SourceNotFoundError as exc:
            if self._damage is not None:
                raise self._damage from exc
            if self._held.get(video.video_id) != video.version:
                raise SourceNotFoundError(
                    uri,
                    f"is gone, and no published shard holds version {video.version} of {video.video_id}",
                    "Extract the video again.",
                ) from exc
            file, spans = self._published(video)
            yield from _read_samples(file, spans, video, name=self._shard_uri)
            return
        with file:
            found_bytes = storage.stat(uri).size_bytes
            if found_bytes != video.output_bytes:
                raise FormatError(
                    uri,
                    f"is {found_bytes} bytes, {video.output_bytes} were planned: it has changed since",
                    "Extract the video again, then shard.",
                )
            yield from _read_samples(file, scan(file, name=uri), video, name=uri)

    def _published(self, video: ExtractedVideo) -> tuple[IO[bytes], Iterator[SampleSpan]]:
        # By its headers, not by the offsets of its rows, which may be those of the tar before.
        if self._old_file is None:
            self._old_file = self._files.enter_context(storage.open_read(self._shard_uri))
            for span in scan(self._old_file, name=self._shard_uri):
                self._old_spans.setdefault(span.key.partition("_")[0], []).append(span)
        return self._old_file, iter(self._old_spans.get(video.video_key, []))


def _read_samples(
    file: IO[bytes], spans: Iterator[SampleSpan], video: ExtractedVideo, *, name: str
) -> Iterator[tuple[SampleSpan, bytes]]:
    num_bytes = 0
    for gop_index, span in enumerate(spans):
        expected = sample_key(video.video_key, gop_index)
        if span.key != expected:
            raise FormatError(name, f"holds {span.key} where {expected} was expected")
        file.seek(span.offset_bytes)
        block = file.read(span.size_bytes)
        num_bytes += len(block)
        yield span, block
    if num_bytes != video.sample_bytes:
        raise FormatError(name, f"holds {num_bytes} bytes of {video.video_id}, not {video.sample_bytes}")


def _consume_extracted(layout: Layout, video: ExtractedVideo) -> bool:
    """Delete a video's tar, unless another extraction of it has been published meanwhile."""
    uri = layout.extracted(video.video_key)
    with contextlib.suppress(SourceNotFoundError):
        if storage.stat(uri).size_bytes == video.output_bytes:
            return _delete(uri)
    return False


def _delete(uri: str) -> bool:
    found = storage.exists(uri)
    storage.remove(uri)
    return found
