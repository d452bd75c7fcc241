"""All input and output behind one fsspec wrapper: read anything, publish atomically.

A path is any fsspec URL or a plain local path. `publish` is the only way to create a file: the content is
written to a local temporary file first and becomes visible by one rename (local, SFTP, SMB, HDFS) or one PUT
(object store), so no reader ever sees part of it. Temporary names begin with `.tmp-`; listings leave them out.

What a remote store fails at is tried again for about a minute (`retries.py`) before it is a StorageError.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import shutil
import stat as stat_module
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from typing import IO

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq

from cope_prep.pipeline import remote
from cope_prep.pipeline.parquet import PARQUET_THREADS, check_schema, open_parquet
from cope_prep.pipeline.remote import FileStat as FileStat
from cope_prep.pipeline.remote import filesystem as filesystem
from cope_prep.pipeline.remote import stat_of_info as stat_of_info
from cope_prep.pipeline.remote_file import open_remote
from cope_prep.schemas.errors import FormatError, SourceNotFoundError, StorageError, StoreRefusedError

TEMPORARY_PREFIX = ".tmp-"
_DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_CHUNK_BYTES = 1 << 20


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


def stat(uri: str) -> FileStat:
    """Size and version of a file.

    Raises:
        SourceNotFoundError: there is no file there.
        StorageError: the store could not answer.
    """
    if not is_local(uri):
        return stat_of_info(remote.info(uri))
    try:
        entry = os.stat(local_path(uri))
    except FileNotFoundError as exc:
        raise SourceNotFoundError(
            uri, "no such file", "Check the path, or rebuild the manifest if files moved."
        ) from exc
    except (OSError, ValueError) as exc:
        raise _failure(uri, "cannot be examined", exc) from exc
    return FileStat(size_bytes=entry.st_size, version=str(entry.st_mtime_ns))


def _failure(uri: str, found: str, exc: Exception) -> StorageError:
    """What an error of a disk is."""
    if not _is_for_good(exc):
        return StorageError(uri, f"{found} ({exc})")
    remedy = "Check its permissions." if isinstance(exc, PermissionError) else "Choose a shorter name."
    return StoreRefusedError(uri, f"{found} ({exc})", remedy)


def _is_for_good(exc: Exception) -> bool:
    return isinstance(exc, PermissionError) or getattr(exc, "errno", None) == errno.ENAMETOOLONG


def exists(uri: str) -> bool:
    """True if a file or folder is there, False only if the store says that it is not.

    Raises:
        StorageError: the store could not answer.
    """
    if is_local(uri):
        return os.path.exists(local_path(uri))
    try:
        remote.info(uri)
    except SourceNotFoundError:
        return False
    return True


def is_folder(uri: str) -> bool:
    """True if a folder is there; in an object store, anything with something below it.

    Raises:
        StorageError: the store could not answer.
    """
    return os.path.isdir(local_path(uri)) if is_local(uri) else remote.is_folder(uri)


def open_read(uri: str) -> IO[bytes]:
    """Open a file for reading, seekable. A remote one raises StorageError also when it is read.

    Raises:
        SourceNotFoundError: there is no file there.
        StorageError: the store refused, or it is no plain file: a pipe would hang, and a device never ends.
    """
    if not is_local(uri):
        return open_remote(uri)
    try:
        return open(local_path(uri), "rb", opener=_open_plain)
    except FileNotFoundError as exc:
        raise SourceNotFoundError(uri, "no such file") from exc
    except (OSError, ValueError) as exc:
        raise _failure(uri, "cannot be opened", exc) from exc


def _open_plain(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    mode = os.fstat(descriptor).st_mode
    if not (stat_module.S_ISREG(mode) or stat_module.S_ISDIR(mode)):  # open() has its own error for folders
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a plain file")
    return descriptor


def read_small(uri: str, max_bytes: int) -> bytes:
    """The content of a file that is small if it is what it should be.

    Raises:
        SourceNotFoundError, StorageError: as open_read.
        FormatError: it is larger; a little more than `max_bytes` has been read then.
    """
    with open_read(uri) as file:
        size_bytes = min(file.seek(0, os.SEEK_END), max_bytes)
        file.seek(0)
        content = file.read(size_bytes + 1)
    if len(content) > size_bytes:
        raise FormatError(uri, f"is larger than {size_bytes} bytes, and cannot be what it should be")
    return content


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
    if not is_local(uri):
        entries = remote.entries(uri)
        names = [posixpath.basename(one["name"].rstrip("/")) for one in entries if one["type"] == kind]
    else:
        try:
            with os.scandir(local_path(uri)) as scan:
                names = [entry.name for entry in scan if entry.is_dir() == (kind == "directory")]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except (OSError, ValueError) as exc:
            raise _failure(uri, "cannot be listed", exc) from exc
    return sorted(name for name in names if name and not name.startswith(TEMPORARY_PREFIX))


def remove(uri: str) -> None:
    """Delete a file; no error if it is not there.

    Raises:
        StorageError: the store refused.
    """
    if not is_local(uri):
        remote.remove(uri)
        return
    try:
        os.remove(local_path(uri))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as exc:
        raise _failure(uri, "cannot be removed", exc) from exc


@contextlib.contextmanager
def publish(uri: str) -> Iterator[str]:
    """Yield a local path to write to; on success the file appears at `uri` at once, on error never.

    Raises:
        StorageError: the store refused the write, or the disk is full, also when the caller's own write says so.
    """
    temporary = None
    try:
        with _publish(uri) as temporary:
            yield temporary
    except OSError as exc:
        if exc.errno in _DISK_ERRNOS:
            raise StorageError(
                uri, f"cannot be written ({exc.strerror})", "Make room and run again."
            ) from exc
        if exc.filename != temporary:
            raise
        raise (StoreRefusedError if _is_for_good(exc) else StorageError)(
            uri, f"cannot be written ({exc.strerror})", "Choose another folder or a shorter name."
        ) from exc


@contextlib.contextmanager
def _publish(uri: str) -> Iterator[str]:
    if is_local(uri):
        target = os.path.abspath(local_path(uri))
        folder = os.path.dirname(target)
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as exc:
            raise _failure(uri, "its folder cannot be made", exc) from exc
        temporary = os.path.join(folder, _temporary_name(target))
        try:
            yield temporary
            try:
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, target)
            except OSError as exc:
                raise _failure(uri, "cannot be written", exc) from exc
        except BaseException:
            with contextlib.suppress(OSError):  # as a rule it is not there
                os.remove(temporary)
            raise
        return
    folder = tempfile.mkdtemp(prefix="cope-prep-")
    try:
        temporary = os.path.join(folder, posixpath.basename(uri))
        yield temporary
        remote.put(temporary, uri, aside=_temporary_name(uri))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _temporary_name(uri: str) -> str:
    return f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-{posixpath.basename(uri)[-64:]}"


def publish_bytes(uri: str, content: bytes) -> None:
    """Publish a small file atomically."""
    with publish(uri) as path, open(path, "wb") as file:
        file.write(content)


def publish_table(uri: str, table: pa.Table) -> None:
    """Publish an Arrow table as Parquet (zstd), atomically."""
    with publish(uri) as path:
        pq.write_table(table, path, compression="zstd")


def read_table(uri: str, schema: pa.Schema, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet table, or some columns of it, and check it against the schema that it must have.

    A nullable column that is missing, because the table was written before it was thought of, is null.

    Raises:
        SourceNotFoundError: there is no such table.
        StorageError: the disk or the store failed.
        FormatError: it is not a Parquet file.
        SchemaVersionError: it was written by a newer version, or has other columns.
    """
    with open_read(uri) as file:
        try:
            parquet = open_parquet(file)
            found = parquet.schema_arrow
            check_schema(uri, found, schema)
            wanted = None if columns is None else [name for name in columns if name in found.names]
            table = parquet.read(columns=wanted, use_threads=PARQUET_THREADS)
        except OSError as exc:
            if exc.errno is not None:  # of the disk or the store: Arrow's own errors have no number
                raise StorageError(uri, f"cannot be read ({exc})") from exc
            raise FormatError(uri, f"is not a readable Parquet table ({exc})") from exc
        except pa.ArrowInvalid as exc:
            raise FormatError(uri, f"is not a readable Parquet table ({exc})") from exc
    expected = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    for index, field in enumerate(expected):
        if field.name not in table.schema.names:
            table = table.add_column(index, field, pa.nulls(len(table), field.type))
    return table if columns is None else table.select(expected.names)
