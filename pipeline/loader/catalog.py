"""index.parquet as columns: which samples there are, where they lie, and which of them are wanted.

Everything a plan needs is decided here, before any byte of a shard is read. A million samples (a terabyte of
source video) take some 60 MB. Filters read the columns that they need and no others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, Specs, find_specs, read_specs, the_specs
from cope_prep.pipeline.loader.fetch import DEFAULT_RETRY
from cope_prep.pipeline.loader.filters import GopFilter
from cope_prep.pipeline.loader.remote_file import fetch_exists, fetch_file, fetch_stat, open_file
from cope_prep.pipeline.parquet import PARQUET_THREADS, open_parquet
from cope_prep.pipeline.retries import RetryPolicy
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.errors import ConfigurationError, FormatError, SchemaVersionError, SourceNotFoundError
from cope_prep.schemas.specs import SCHEMA_VERSION

_SHARD_NAME = re.compile(r"[A-Za-z0-9_-]+\.tar")
_PLACE_COLUMNS = (
    "shard", "video_id", "gop_index", "start_s", "num_frames", "width_px", "height_px", "offset_bytes",
    "size_bytes", "crc32c",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFolder:
    """One output of `cope-prep shard`: where it is, and what its dataset.json says."""

    uri: str
    specs: Specs
    spec_hash: str
    """Of EncodeSpec and ExtractSpec: what every sample's .json names."""
    shard_bytes: dict[str, int]
    """Size of each shard by file name."""
    index_bytes: int
    """Size that index.parquet must have; 0 if not known."""
    index_crc32c: int

    @property
    def index_uri(self) -> str:
        """URI of index.parquet."""
        return storage.join(self.uri, "index.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """The samples of one or several shard folders in storage order, one array entry a sample."""

    folders: tuple[ShardFolder, ...]
    shard_uris: tuple[str, ...]
    shard_bytes: np.ndarray
    """int64 [num_shards]: size that each shard must have."""
    shard_folder: np.ndarray
    """int32 [num_shards]: index into `folders`."""
    video_ids: pa.Array
    """string [num_videos]."""
    shard: np.ndarray
    """int32 [num_samples]: index into `shard_uris`."""
    video: np.ndarray
    """int32 [num_samples]: index into `video_ids`; the samples of a video are adjacent."""
    gop_index: np.ndarray
    """int32 [num_samples]."""
    start_s: np.ndarray
    """float64 [num_samples]."""
    num_frames: np.ndarray
    """int32 [num_samples]."""
    size_px: np.ndarray
    """int32 [num_samples, 2]: height, width."""
    offset_bytes: np.ndarray
    """int64 [num_samples]: of the sample in its shard."""
    size_bytes: np.ndarray
    """int64 [num_samples]."""
    crc32c: np.ndarray
    """uint32 [num_samples]."""

    def __len__(self) -> int:
        return len(self.shard)

    def video_id(self, sample: int) -> str:
        """Video id of a sample."""
        return self.video_ids[int(self.video[sample])].as_py()

    def video_spans(self) -> tuple[np.ndarray, np.ndarray]:
        """int64 [num_videos] twice: first sample and number of samples of each video; -1 and 0 if it has none."""
        num_samples = np.bincount(self.video, minlength=len(self.video_ids))
        first_sample = np.full(len(self.video_ids), -1, np.int64)
        first_sample[self.video[::-1]] = np.arange(len(self))[::-1]
        return first_sample, num_samples

    def take(self, samples: np.ndarray) -> Catalog:
        """These samples only; bool [num_samples], or ascending indices."""
        columns = ("shard", "video", "gop_index", "start_s", "num_frames", "size_px")
        places = ("offset_bytes", "size_bytes", "crc32c")
        return replace(self, **{name: getattr(self, name)[samples] for name in columns + places})


def open_shards(uri: str, *, spec: str | None = None, retry: RetryPolicy = DEFAULT_RETRY) -> ShardFolder:
    """The shards of a dataset: `uri` is DATASET, or DATASET/shards/<hash> itself.

    `spec` is the hash of the shards, or its beginning, where a dataset has several.

    Raises:
        ConfigurationError: there are no shards, several, or none of that hash.
        FormatError: dataset.json is malformed.
        StorageError: a remote store failed at every attempt.
    """
    read = partial(fetch_file, retry=retry)
    names = ("dataset.json", "spec.json")
    if any(fetch_exists(storage.join(uri, name), retry=retry) for name in names):
        return _read_folder(uri, read)
    found = find_specs(uri, "shards", read=read)
    if not found and uri.startswith(("http://", "https://")):
        raise ConfigurationError(
            uri,
            "has no shards that can be found: over plain HTTP a folder cannot be listed",
            "Name the folder of the shards, DATASET/shards/<hash>.",
        )
    if spec is not None:
        found = [specs for specs in found if specs.hash_of("shards").startswith(spec)]
        if len(found) != 1:
            raise ConfigurationError(uri, f"has {len(found)} outputs of shards whose hash begins with {spec}")
    elif len(found) != 1:
        found = [the_specs(uri, "shards")]  # says what there is
    return _read_folder(Layout(dataset=uri, specs=found[0]).folder("shards"), read)


def _read_folder(uri: str, read: Callable[[str], bytes]) -> ShardFolder:
    document_uri = storage.join(uri, "dataset.json")
    try:
        document = json.loads(read(document_uri))
        if document["schema_version"] > SCHEMA_VERSION:
            raise SchemaVersionError(
                document_uri,
                f"has schema version {document['schema_version']}, this is {SCHEMA_VERSION}",
                "Update cope-prep.",
            )
        specs = read_specs(storage.join(uri, "spec.json"), read=read)
        return ShardFolder(
            uri=uri,
            specs=specs,
            spec_hash=specs.hash_of("extract"),
            shard_bytes=dict(map(_read_shard, document["shards"])),
            index_bytes=int(document["index"]["bytes"]),
            index_crc32c=int(document["index"]["crc32c"]),
        )
    except SourceNotFoundError as exc:
        raise _unfinished(uri) from exc
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as exc:
        raise FormatError(document_uri, f"is malformed ({exc})", "Run cope-prep shard.") from exc


def _read_shard(shard: Mapping[str, Any]) -> tuple[str, int]:
    """Name and size. The name becomes a path, so it must not lead out of the folder."""
    name, num_bytes = shard["name"], int(shard["bytes"])
    if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name) or not 0 < num_bytes < 1 << 62:
        raise ValueError(f"it names the shard {str(name)[:200]!r} of {num_bytes} bytes")
    return name, num_bytes


def _unfinished(uri: str) -> ConfigurationError:
    return ConfigurationError(
        uri, "holds no finished shards", f"Run: cope-prep shard {storage.parent(uri, 2)}"
    )


def read_catalog(
    folder: ShardFolder,
    *,
    where: GopFilter | None = None,
    per_video: bool = False,
    retry: RetryPolicy = DEFAULT_RETRY,
) -> Catalog:
    """The samples of a shard folder that a filter admits, in storage order.

    per_video: judge a video as a whole, and admit or leave out all its GOPs.

    Raises:
        ConfigurationError: there is no index.parquet.
        FormatError, SchemaVersionError: it is not what dataset.json promises.
        StorageError: a remote store failed at every attempt.
    """
    where = where or GopFilter()
    try:
        table = _read_columns(folder.index_uri, (*_PLACE_COLUMNS, *where.columns()), retry)
        found_bytes = fetch_stat(folder.index_uri, retry=retry).size_bytes
    except SourceNotFoundError as exc:
        raise _unfinished(folder.uri) from exc
    if folder.index_bytes and found_bytes != folder.index_bytes:
        raise FormatError(
            folder.index_uri,
            f"is {found_bytes} bytes, dataset.json says {folder.index_bytes}: they are of different runs",
            "Run cope-prep shard.",
        )
    shards = dictionary_codes(table["shard"])
    videos = dictionary_codes(table["video_id"])
    names = shards.dictionary.to_pylist()
    if unknown := sorted(set(names) - set(folder.shard_bytes)):
        raise FormatError(folder.index_uri, f"names shards that dataset.json does not have: {unknown[:3]}")
    catalog = Catalog(
        folders=(folder,),
        shard_uris=tuple(storage.join(folder.uri, name) for name in names),
        shard_bytes=np.array([folder.shard_bytes[name] for name in names], np.int64),
        shard_folder=np.zeros(len(names), np.int32),
        video_ids=videos.dictionary,
        shard=shards.indices.to_numpy(zero_copy_only=False).astype(np.int32),
        video=videos.indices.to_numpy(zero_copy_only=False).astype(np.int32),
        gop_index=_numpy(table, "gop_index", np.int32),
        start_s=_numpy(table, "start_s", np.float64),
        num_frames=_numpy(table, "num_frames", np.int32),
        size_px=np.stack([_numpy(table, name, np.int32) for name in ("height_px", "width_px")], axis=1),
        offset_bytes=_numpy(table, "offset_bytes", np.int64),
        size_bytes=_numpy(table, "size_bytes", np.int64),
        crc32c=_numpy(table, "crc32c", np.uint32),
    )
    _check_places(catalog, folder.index_uri)
    if not where.columns() and where.is_open():
        return catalog
    wanted = where.admits(
        table,
        video=catalog.video,
        num_videos=len(catalog.video_ids),
        fps=folder.specs.encode.fps,
        block_px=folder.specs.extract.block_px,
        per_video=per_video,
    )
    return catalog.take(wanted)


def _check_places(catalog: Catalog, index_uri: str) -> None:
    """Every sample must lie in its shard: what is read of it is asked for in one piece."""
    start, size = catalog.offset_bytes, catalog.size_bytes
    limit = catalog.shard_bytes[catalog.shard]
    # Of an index alone the sizes of its shards are not known: 0.
    is_beyond = (limit > 0) & ((size > limit) | (start > limit - size))
    is_wrong = (start < 0) | (size <= 0) | is_beyond
    if is_wrong.any():
        row = int(is_wrong.argmax())
        name = catalog.shard_uris[catalog.shard[row]].rpartition("/")[2]
        raise FormatError(
            index_uri,
            f"says that a sample of {name} is {size[row]} bytes at {start[row]}, and that shard has {limit[row]}",
            "Run cope-prep verify.",
        )


def join_catalogs(catalogs: Sequence[Catalog]) -> Catalog:
    """Several catalogs one after the other. A video id that occurs in two of them stays two videos."""
    if len(catalogs) == 1:
        return catalogs[0]
    num_shards = np.cumsum([0, *(len(catalog.shard_uris) for catalog in catalogs)])
    num_videos = np.cumsum([0, *(len(catalog.video_ids) for catalog in catalogs)])
    num_folders = np.cumsum([0, *(len(catalog.folders) for catalog in catalogs)])

    def column(name: str, shifts: Sequence[int] | None = None) -> np.ndarray:
        parts = [getattr(catalog, name) for catalog in catalogs]
        if shifts is not None:
            parts = [part + part.dtype.type(shift) for part, shift in zip(parts, shifts, strict=True)]
        return np.concatenate(parts)

    return Catalog(
        folders=tuple(folder for catalog in catalogs for folder in catalog.folders),
        shard_uris=tuple(uri for catalog in catalogs for uri in catalog.shard_uris),
        shard_bytes=column("shard_bytes"),
        shard_folder=column("shard_folder", num_folders[:-1].tolist()),
        video_ids=pa.concat_arrays([catalog.video_ids for catalog in catalogs]),
        shard=column("shard", num_shards[:-1].tolist()),
        video=column("video", num_videos[:-1].tolist()),
        gop_index=column("gop_index"),
        start_s=column("start_s"),
        num_frames=column("num_frames"),
        size_px=column("size_px"),
        offset_bytes=column("offset_bytes"),
        size_bytes=column("size_bytes"),
        crc32c=column("crc32c"),
    )


def _read_columns(uri: str, columns: Sequence[str], retry: RetryPolicy) -> pa.Table:
    names = list(dict.fromkeys(columns))
    codes = [name for name in ("shard", "video_id") if name in names]
    return read_parquet(uri, INDEX, names, dictionary=codes, retry=retry)


def read_parquet(
    uri: str,
    schema: pa.Schema,
    columns: Sequence[str],
    *,
    dictionary: Sequence[str] = (),
    retry: RetryPolicy = DEFAULT_RETRY,
) -> pa.Table:
    """Some columns of a table that must have them as `schema` does; those of `dictionary` as codes.

    Raises:
        SourceNotFoundError: there is no such table.
        FormatError: it is not a Parquet file.
        SchemaVersionError: it was written by a newer version, or lacks a column.
        StorageError: a remote store failed at every attempt.
    """
    with open_file(uri, retry=retry) as file:
        try:
            found = pq.read_schema(file)
            version = int((found.metadata or {}).get(b"cope_prep.schema_version", b"0"))
            if version > SCHEMA_VERSION:
                raise SchemaVersionError(
                    uri, f"has schema version {version}, this is {SCHEMA_VERSION}", "Update cope-prep."
                )
            for name in columns:
                if name not in found.names or found.field(name).type != schema.field(name).type:
                    raise SchemaVersionError(uri, f"has no column {name} of type {schema.field(name).type}")
            file.seek(0)
            parquet = open_parquet(file, read_dictionary=list(dictionary))
            return parquet.read(columns=list(columns), use_threads=PARQUET_THREADS)
        except (ValueError, OSError) as exc:  # Arrow's are ValueErrors; so is a version that is no number
            raise FormatError(uri, f"is not a readable Parquet table ({exc})") from exc


def dictionary_codes(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """A column that was read as codes, as one array of codes and their dictionary."""
    encoded = column.unify_dictionaries().combine_chunks()
    # combine_chunks gives an array, or a chunked one of no chunks when the table is empty
    if isinstance(encoded, pa.ChunkedArray):
        return pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), pa.array([], pa.string()))
    return encoded


def _numpy(table: pa.Table, name: str, dtype: type[np.generic]) -> np.ndarray:
    return table[name].to_numpy().astype(dtype, copy=False)
