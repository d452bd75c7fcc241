"""Files of remote stores, behind fsspec, with the retries of `retries.py`.

What is written is examined afterwards: the stored size must be what was sent. (The bytes themselves are guarded on
their way by the CRC that botocore sends along and S3 checks.) Reading is in `remote_file.py`.

A listing has no time limit, for a folder of 200,000 files is 200 pages. But once the process is in haste
(`retries.set_haste`) whatever an asynchronous store is asked, a listing too, ends within HASTE_S.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import math
import os
import posixpath
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, cast

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from cope_prep.pipeline import retries
from cope_prep.pipeline.redact import redacted
from cope_prep.pipeline.retries import WrittenWrongError, insist_on, store_policy
from cope_prep.schemas.errors import ConfigurationError, SourceNotFoundError, StorageError

_KEPT: dict[int, AbstractFileSystem] = {}
"""The asynchronous stores in use, for good, by id().

In a forked child fsspec lets go of the parent's stores. Their finalizers would wait a second each for an event
loop that has no thread there, and take the parent's sockets out of the epoll that both share.
"""

_OBJECT_STORES = {"abfs", "abfss", "adl", "az", "gcs", "gs", "oci", "oss", "s3", "s3a"}
"""Protocols of fsspec."""

_VERSION_FIELDS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")
"""What the fsspec backends call it, best first: s3, gcs and azure, sftp, then those without an etag."""

_S3FS_RETRIES = 5
"""Its own default: each of them is five attempts of botocore."""

SLOWEST_BYTES_PER_S = 128 << 10
"""A transfer may take this long, and the time limit of a request on top: only against one that hangs for good."""

_LOOK_S = 0.25
"""A request under way looks this often whether there is haste."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStat:
    """Size and version of a stored file; both together tell whether it has changed."""

    size_bytes: int
    version: str
    """etag where the store has one, else modification time in ns."""


def filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """The store of a remote URL, and the path in it, with no answers cached from before.

    Raises:
        ConfigurationError: no such protocol, or the package for it is not installed.
    """
    try:
        fs, path = url_to_fs(uri)
    except (ImportError, ValueError) as exc:
        raise ConfigurationError(
            redacted(uri),
            f"this kind of URL cannot be used ({exc})",
            "Check the URL, or install its fsspec package.",
        ) from exc
    if fs.async_impl:
        _KEPT[id(fs)] = fs
    if is_s3(fs) and getattr(fs, "retries", None) == _S3FS_RETRIES:
        fs.retries = 1  # pyright: ignore[reportAttributeAccessIssue]
    fs.invalidate_cache(path)  # other processes write to the same store
    return fs, path


def stat_of_info(info: dict[str, Any]) -> FileStat:
    """FileStat of one fsspec listing entry."""
    version = next((info[name] for name in _VERSION_FIELDS if info.get(name)), "")
    if isinstance(version, datetime.datetime):  # some stores list a float and examine to a datetime
        version = version.timestamp()
    if isinstance(version, float):
        version = int(version * 1e9)
    return FileStat(size_bytes=int(info.get("size") or 0), version=str(version).strip('"'))


def call(
    fs: AbstractFileSystem,
    method: str,
    *args: Any,
    timeout_s: float | None,
    num_bytes: int = 0,
    **kwargs: Any,
) -> Any:
    """Call a method of a store; of an asynchronous one within the time limits of `run`."""
    if isinstance(fs, AsyncFileSystem):
        request = functools.partial(getattr(fs, f"_{method}"), *args, **kwargs)
        return run(fs, request, timeout_s=timeout_s, num_bytes=num_bytes)
    return getattr(fs, method)(*args, **kwargs)


def run(
    fs: AsyncFileSystem,
    request: Callable[[], Coroutine[Any, Any, Any]],
    *,
    timeout_s: float | None,
    num_bytes: int = 0,
) -> Any:
    """What a request of an asynchronous store gives.

    It is cancelled after `timeout_s`, and HASTE_S after there is haste; both are longer for the transfer of
    `num_bytes`.

    Raises:
        FSTimeoutError: it was cancelled.
    """
    transfer_s = num_bytes / SLOWEST_BYTES_PER_S
    limit_s = None if timeout_s is None else timeout_s + transfer_s
    return sync(fs.loop, _watched, request, retries.HASTE_S + transfer_s, timeout=limit_s)


async def _watched(request: Callable[[], Coroutine[Any, Any, Any]], haste_s: float) -> Any:
    """What a request gives, if it does so before there has been haste for `haste_s`."""
    task = asyncio.ensure_future(request())
    # asyncio logs an error that nobody asked for, as that of a task which is cancelled may be.
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    now_s = asyncio.get_running_loop().time
    until_s = math.inf
    try:
        while not task.done():
            if retries.is_in_haste():
                until_s = min(until_s, now_s() + haste_s)
            if now_s() >= until_s:
                raise TimeoutError
            await asyncio.wait({task}, timeout=min(_LOOK_S, until_s - now_s()))
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=_LOOK_S)


def info(uri: str, action: str = "examined") -> dict[str, Any]:
    """fsspec's entry of a file or folder.

    Raises:
        SourceNotFoundError: there is nothing there.
        StorageError: the store refused, or failed at every attempt.
    """

    def request(timeout_s: float) -> dict[str, Any]:
        fs, path = filesystem(uri)
        return cast("dict[str, Any]", call(fs, "info", path, timeout_s=timeout_s))

    return insist_on(action, request, uri, store_policy())


def is_folder(uri: str) -> bool:
    """True if something is below it."""

    def request(timeout_s: float) -> bool:
        fs, path = filesystem(uri)
        if isinstance(fs, AsyncFileSystem):  # it may list a large folder to the end: no time limit
            return bool(call(fs, "isdir", path, timeout_s=None))
        return bool(fs.isdir(path))

    return insist_on("examined", request, uri, store_policy())


def entries(uri: str) -> list[dict[str, Any]]:
    """fsspec's entries of what is directly in a folder; empty if there is no such folder."""

    def request(timeout_s: float) -> list[dict[str, Any]]:
        fs, path = filesystem(uri)
        try:  # no time limit: a folder of 200,000 files is 200 pages
            found = call(fs, "ls", path, timeout_s=None, detail=True)
        except NotADirectoryError:
            return []
        base = path.rstrip("/")
        # A store may list the folder's own marker, or the file itself when it is not a folder.
        return [entry for entry in found if entry["name"].rstrip("/") != base]

    try:
        return insist_on("listed", request, uri, store_policy())
    except SourceNotFoundError:
        return []


def remove(uri: str) -> None:
    """Delete a file; no error if it is not there."""

    def request(timeout_s: float) -> None:
        fs, path = filesystem(uri)
        with contextlib.suppress(FileNotFoundError):
            call(fs, "rm_file", path, timeout_s=timeout_s)

    insist_on("removed", request, uri, store_policy())


def remove_folder(uri: str) -> None:
    """Delete a folder with all that is in it; no error if it is not there.

    Raises:
        StorageError: the store refused, or failed at every attempt.
    """

    def request(timeout_s: float) -> None:
        fs, path = filesystem(uri)  # no time limit: it may hold any number of files
        with contextlib.suppress(FileNotFoundError):
            call(fs, "rm", path, timeout_s=None, recursive=True)

    insist_on("removed", request, uri, store_policy())


def put(local: str, uri: str, *, aside: str) -> None:
    """Store a local file under a URL: all of it or nothing becomes visible.

    An object store shows nothing before its PUT has ended. Where files are renamed, as over SFTP, SMB or in HDFS, a
    file grows as it is sent: there it gets the name `aside` in the same folder first, and its own when it is whole.

    Raises:
        StorageError: the store refused, or failed at every attempt.
    """

    def request(timeout_s: float) -> None:
        fs, path = filesystem(uri)
        if isinstance(fs, LocalFileSystem):  # a chained or aliased local URL
            raise StorageError(redacted(uri), "is a local path under another name", "Give the plain path.")
        if not is_object_store(fs):  # there are no folders there, and s3fs would make the bucket
            fs.makedirs(posixpath.dirname(path), exist_ok=True)
        if not _renames(fs):
            _send(fs, local, path, timeout_s)
            return
        beside = posixpath.join(posixpath.dirname(path), aside)
        try:
            _send(fs, local, beside, timeout_s)
            _rename(fs, beside, path)
        except BaseException:
            with contextlib.suppress(Exception):  # as a rule it is not there
                fs.rm_file(beside)
            raise

    try:
        insist_on("written", request, uri, store_policy())
    except SourceNotFoundError as exc:
        raise StorageError(redacted(uri), f"cannot be written ({exc.found})", exc.remedy) from exc


def _send(fs: AbstractFileSystem, local: str, path: str, timeout_s: float) -> None:
    size_bytes = os.path.getsize(local)
    call(fs, "put_file", local, path, timeout_s=timeout_s, num_bytes=size_bytes)
    fs.invalidate_cache(path)
    try:
        stored_bytes = stat_of_info(call(fs, "info", path, timeout_s=timeout_s)).size_bytes
    except FileNotFoundError as exc:
        raise WrittenWrongError("it is not there after it was written") from exc
    if stored_bytes != size_bytes:
        raise WrittenWrongError(f"{stored_bytes} bytes are stored, {size_bytes} were sent")


def _rename(fs: AbstractFileSystem, beside: str, path: str) -> None:
    try:
        _move(fs, beside, path)
        fs.invalidate_cache()
        if not fs.exists(beside):
            return
    except (ConnectionError, TimeoutError, FileNotFoundError):
        raise
    except Exception:
        if not fs.exists(path):
            raise
    # HDFS and SMB rename onto no file that is there, some without a word. For a moment there is none.
    fs.rm_file(path)
    _move(fs, beside, path)
    fs.invalidate_cache()
    if fs.exists(beside):
        raise WrittenWrongError("its temporary name could not be changed")


def _move(fs: AbstractFileSystem, beside: str, path: str) -> None:
    try:
        fs.mv(beside, path)
    except (ConnectionError, TimeoutError, FileNotFoundError):
        raise
    except Exception:
        # fsspec asks SFTP servers for an extension of OpenSSH's, which others lack; this they all have.
        rename = getattr(getattr(fs, "ftp", None), "rename", None)
        if rename is None:
            raise
        rename(beside, path)


def writes_aside(uri: str) -> bool:
    """True of a remote URL in whose folders a write that never ended may leave a temporary file."""
    return _renames(filesystem(uri)[0])


def _renames(fs: AbstractFileSystem) -> bool:
    """True for stores of files that have a way to rename one; fsspec's own is to copy and delete."""
    return not is_object_store(fs) and type(fs).mv is not AbstractFileSystem.mv


def is_object_store(fs: AbstractFileSystem) -> bool:
    """True for stores without folders."""
    return not _protocols(fs).isdisjoint(_OBJECT_STORES)


def is_s3(fs: AbstractFileSystem) -> bool:
    """True for s3fs."""
    return not _protocols(fs).isdisjoint({"s3", "s3a"})


def _protocols(fs: AbstractFileSystem) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
