"""All input and output behind one fsspec wrapper: read anything, publish atomically.

A path is any fsspec URL or a plain local path. `publish` is the only way to create a file: the content is
written to a local temporary file first and becomes visible by one rename (local) or one PUT (object store),
so no reader ever sees part of it. Temporary names begin with `.tmp-`; listings leave them out.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from cope_prep.pipeline.parquet import read_columns
from cope_prep.schemas.errors import (
    ConfigurationError,
    CopePrepError,
    FormatError,
    SchemaVersionError,
    SourceNotFoundError,
    StorageError,
)
from cope_prep.schemas.specs import SCHEMA_VERSION

TEMPORARY_PREFIX = ".tmp-"
_DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_CHUNK_BYTES = 1 << 20

_KEPT: dict[int, AbstractFileSystem] = {}
"""The asynchronous stores in use, for good, by id().

In a forked child fsspec lets go of the parent's stores. Their finalizers would wait a second each for an event
loop that has no thread there, and take the parent's sockets out of the epoll that both share.
"""

_VERSION_FIELDS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")
"""What the fsspec backends call it, best first: s3, gcs and azure, sftp, then those without an etag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStat:
    """Size and version of a stored file; both together tell whether it has changed."""

    size_bytes: int
    version: str
    """etag where the store has one, else modification time in ns."""


def join(uri: str, *parts: str) -> str:
    """Append path components to a URL or local path."""
    return posixpath.join(uri, *parts)


def parent(uri: str, levels: int = 1) -> str:
    """The folder that holds a file or folder, or one further up."""
    for _ in range(levels):
        uri = posixpath.dirname(uri.rstrip("/"))
    return uri


def is_local(uri: str) -> bool:
    """True if the path is on this machine's file system."""
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> str:
    """The plain path of a local URI."""
    return uri.removeprefix("file://")


def filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """The store of a remote URL, and the path in it, with no answers cached from before.

    Raises:
        ConfigurationError: no such protocol, or the package for it is not installed.
    """
    try:
        fs, path = url_to_fs(uri)
    except (ImportError, ValueError) as exc:
        raise ConfigurationError(
            uri, f"this kind of URL cannot be used ({exc})", "Check the URL, or install its fsspec package."
        ) from exc
    if fs.async_impl:
        _KEPT[id(fs)] = fs
    fs.invalidate_cache(path)  # other processes write to the same store
    return fs, path


def stat(uri: str) -> FileStat:
    """Size and version of a file.

    Raises:
        SourceNotFoundError: there is no file there.
        StorageError: the store could not answer.
    """
    try:
        if is_local(uri):
            entry = os.stat(local_path(uri))
            return FileStat(size_bytes=entry.st_size, version=str(entry.st_mtime_ns))
        fs, path = filesystem(uri)
        return stat_of_info(fs.info(path))
    except FileNotFoundError as exc:
        raise SourceNotFoundError(
            uri, "no such file", "Check the path, or rebuild the manifest if files moved."
        ) from exc
    except CopePrepError:
        raise
    except Exception as exc:  # of the store: aiohttp's and botocore's are no OSErrors
        raise StorageError(uri, f"cannot be examined ({exc})") from exc


def stat_of_info(info: dict[str, Any]) -> FileStat:
    """FileStat of one fsspec listing entry."""
    version = next((info[name] for name in _VERSION_FIELDS if info.get(name)), "")
    if isinstance(version, datetime.datetime):  # some stores list a float and examine to a datetime
        version = version.timestamp()
    if isinstance(version, float):
        version = int(version * 1e9)
    return FileStat(size_bytes=int(info.get("size") or 0), version=str(version).strip('"'))


def exists(uri: str) -> bool:
    """True if a file or folder is there."""
    if is_local(uri):
        return os.path.exists(local_path(uri))
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def is_folder(uri: str) -> bool:
    """True if a folder is there; in an object store, anything with something below it."""
    if is_local(uri):
        return os.path.isdir(local_path(uri))
    fs, path = filesystem(uri)
    return bool(fs.isdir(path))


def open_read(uri: str) -> IO[bytes]:
    """Open a file for reading, seekable.

    Raises:
        SourceNotFoundError: there is no file there.
        StorageError: the store refused.
    """
    try:
        if is_local(uri):
            return open(local_path(uri), "rb")
        fs, path = filesystem(uri)
        return cast("IO[bytes]", fs.open(path, "rb"))
    except FileNotFoundError as exc:
        raise SourceNotFoundError(uri, "no such file") from exc
    except CopePrepError:
        raise
    except Exception as exc:
        raise StorageError(uri, f"cannot be opened ({exc})") from exc


def read_bytes(uri: str, offset_bytes: int = 0, size_bytes: int | None = None) -> bytes:
    """A file's content, or a range of it."""
    with open_read(uri) as file:
        file.seek(offset_bytes)
        return file.read() if size_bytes is None else file.read(size_bytes)


def crc32c(uri: str) -> int:
    """CRC-32C of a file's content.

    Raises:
        SourceNotFoundError, StorageError: as open_read.
    """
    checksum = 0
    with open_read(uri) as file:
        while chunk := file.read(_CHUNK_BYTES):
            checksum = google_crc32c.extend(checksum, chunk)
    return checksum


def list_files(uri: str) -> list[str]:
    """Names (not paths) of the files directly in a folder, sorted; empty if there is no such folder."""
    return _list(uri, "file")


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly in a folder, sorted; empty if there is no such folder."""
    return _list(uri, "directory")


def _list(uri: str, kind: str) -> list[str]:
    try:
        if is_local(uri):
            with os.scandir(local_path(uri)) as entries:
                names = [entry.name for entry in entries if entry.is_dir() == (kind == "directory")]
        else:
            fs, path = filesystem(uri)
            base = path.rstrip("/")
            names = [
                posixpath.basename(entry["name"].rstrip("/"))
                for entry in fs.ls(path, detail=True)
                # a store may list the folder's own marker, or the file itself when it is not a folder
                if entry["type"] == kind and entry["name"].rstrip("/") != base
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except CopePrepError:
        raise
    except Exception as exc:
        raise StorageError(uri, f"cannot be listed ({exc})") from exc
    return sorted(name for name in names if name and not name.startswith(TEMPORARY_PREFIX))


def remove(uri: str) -> None:
    """Delete a file; no error if it is not there."""
    with contextlib.suppress(FileNotFoundError):
        if is_local(uri):
            os.remove(local_path(uri))
        else:
            fs, path = filesystem(uri)
            fs.rm_file(path)


@contextlib.contextmanager
def publish(uri: str) -> Iterator[str]:
    """Yield a local path to write to; on success the file appears at `uri` at once, on error never.

    Raises:
        StorageError: the store refused the write, or the disk is full, also when the caller's own write says so.
    """
    try:
        with _publish(uri) as path:
            yield path
    except OSError as exc:
        if exc.errno in _DISK_ERRNOS:
            raise StorageError(
                uri, f"cannot be written ({exc.strerror})", "Make room and run again."
            ) from exc
        raise


@contextlib.contextmanager
def _publish(uri: str) -> Iterator[str]:
    if is_local(uri):
        target = os.path.abspath(local_path(uri))
        folder = os.path.dirname(target)
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as exc:
            raise StorageError(uri, f"its folder cannot be made ({exc})") from exc
        temporary = os.path.join(folder, f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-{os.path.basename(target)}")
        try:
            yield temporary
            try:
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, target)
            except OSError as exc:
                raise StorageError(uri, f"cannot be written ({exc})") from exc
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.remove(temporary)
            raise
        return
    folder = tempfile.mkdtemp(prefix="cope-prep-")
    try:
        temporary = os.path.join(folder, posixpath.basename(uri))
        yield temporary
        fs, path = filesystem(uri)
        try:
            if isinstance(fs, LocalFileSystem):  # a chained or aliased local URL
                raise StorageError(uri, "is a local path under another name", "Give the plain path.")
            fs.makedirs(posixpath.dirname(path), exist_ok=True)
            fs.put_file(temporary, path)
        except OSError as exc:
            raise StorageError(uri, f"cannot be written ({exc})") from exc
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish_bytes(uri: str, content: bytes) -> None:
    """Publish a small file atomically."""
    with publish(uri) as path, open(path, "wb") as file:
        file.write(content)


def publish_table(uri: str, table: pa.Table) -> None:
    """Publish an Arrow table as Parquet (zstd), atomically."""
    with publish(uri) as path:
        pq.write_table(table, path, compression="zstd")


def read_table(uri: str, schema: pa.Schema) -> pa.Table:
    """Read a Parquet table and check it against the schema that it must have.

    Raises:
        SourceNotFoundError: there is no such table.
        FormatError: it is not a Parquet file.
        SchemaVersionError: it was written by a newer version, or has other columns.
    """
    with open_read(uri) as file:
        try:
            table = read_columns(file)
        except (pa.ArrowInvalid, OSError) as exc:
            raise FormatError(uri, f"is not a readable Parquet table ({exc})") from exc
    found = (table.schema.metadata or {}).get(b"cope_prep.schema_version", b"0")
    if int(found) > SCHEMA_VERSION:
        raise SchemaVersionError(
            uri, f"has schema version {int(found)}, this is {SCHEMA_VERSION}", "Update cope-prep."
        )
    if not table.schema.equals(schema):
        missing = sorted(set(schema.names) - set(table.schema.names))
        extra = sorted(set(table.schema.names) - set(schema.names))
        raise SchemaVersionError(
            uri, f"is not the expected table (missing columns {missing}, unknown columns {extra})"
        )
    return table
