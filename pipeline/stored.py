"""What is stored in a folder, with the time when it was written: for cleaning up.

Unlike `storage.list_files` it lists temporary files, too, and S3's unfinished uploads.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from cope_prep.pipeline import remote, storage
from cope_prep.pipeline.retries import insist_on, store_policy
from cope_prep.schemas.errors import SourceNotFoundError, StorageError

_TIME_FIELDS = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")
"""What the fsspec backends call it: s3, azure, gcs, sftp, others. Memory has only `created`, which a write sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file of the dataset."""

    uri: str
    size_bytes: int
    modified_unix_s: float | None
    """By the store's clock; None if it does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An unfinished upload in parts of S3's."""

    uri: str
    """Of the file that it would have become."""
    upload_id: str
    size_bytes: int
    """Of the parts that have arrived."""
    modified_unix_s: float | None
    """When its last part came, or it was begun."""


def look(uri: str) -> StoredFile:
    """One file.

    Raises:
        SourceNotFoundError: it is not there.
        StorageError: the store failed.
    """
    if not storage.is_local(uri):
        return _of_info(uri, remote.info(uri))
    try:
        return _of_stat(uri, os.lstat(storage.local_path(uri)))
    except FileNotFoundError as exc:
        raise SourceNotFoundError(uri, "no such file") from exc
    except OSError as exc:
        raise StorageError(uri, f"cannot be examined ({exc.strerror})") from exc


def files(folder: str) -> list[StoredFile]:
    """The regular files of a folder, by name. Links are not followed, and folders in it not looked into."""
    found = _local(folder) if storage.is_local(folder) else _remote(folder)
    return sorted(found, key=lambda one: one.uri)


def delete(found: StoredFile | Upload) -> None:
    """Delete a file, unless it was written again meanwhile; end an upload.

    Raises:
        StorageError: the store failed or refused.
    """
    if isinstance(found, StoredFile):
        with contextlib.suppress(SourceNotFoundError):
            if _is_same(look(found.uri), found):
                storage.remove(found.uri)
                _remove_empty_folder(found.uri)
        return
    fs, path = remote.filesystem(found.uri)
    bucket, key, _ = cast("Any", fs).split_path(path)
    _s3("removed", found.uri, "abort_multipart_upload", Bucket=bucket, Key=key, UploadId=found.upload_id)


def _is_same(now: StoredFile, then: StoredFile) -> bool:
    if now.modified_unix_s is None or then.modified_unix_s is None:
        return False
    # S3 lists milliseconds and examines to seconds.
    return now.size_bytes == then.size_bytes and abs(now.modified_unix_s - then.modified_unix_s) < 1.0


def uploads(folder: str) -> list[Upload]:
    """The unfinished uploads of files below a folder; none where the store is not S3."""
    if storage.is_local(folder):
        return []
    fs, path = remote.filesystem(folder)
    if not remote.is_s3(fs):
        return []
    bucket, key, _ = cast("Any", fs).split_path(path)
    prefix = key.rstrip("/") + "/" if key else ""
    found: list[Upload] = []
    markers: dict[str, str] = {}
    while True:
        page = _s3("listed", folder, "list_multipart_uploads", Bucket=bucket, Prefix=prefix, **markers)
        for one in page.get("Uploads", ()):
            if one["Key"].startswith(prefix):  # not every imitation of S3 knows the prefix
                uri = f"{folder.rstrip('/')}/{one['Key'][len(prefix) :]}"
                parts = _parts(uri, bucket, one["Key"], one["UploadId"])
                times = [one.get("Initiated"), *(part.get("LastModified") for part in parts)]
                known = [when.timestamp() for when in times if isinstance(when, datetime.datetime)]
                found.append(
                    Upload(
                        uri=uri,
                        upload_id=one["UploadId"],
                        size_bytes=sum(part["Size"] for part in parts),
                        modified_unix_s=max(known, default=None),
                    )
                )
        if not page.get("IsTruncated"):
            return found
        markers = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _parts(uri: str, bucket: str, key: str, upload_id: str) -> list[Mapping[str, Any]]:
    parts: list[Mapping[str, Any]] = []
    marker: dict[str, int] = {}
    while True:
        page = _s3("listed", uri, "list_parts", Bucket=bucket, Key=key, UploadId=upload_id, **marker)
        parts += page.get("Parts", ())
        if not page.get("IsTruncated"):
            return parts
        marker = {"PartNumberMarker": page["NextPartNumberMarker"]}


def _s3(action: str, uri: str, method: str, **arguments: Any) -> Mapping[str, Any]:
    """The answer; empty if there is no such upload any more."""

    def request(timeout_s: float) -> Mapping[str, Any]:
        fs, _ = remote.filesystem(uri)
        try:
            return remote.call(fs, "call_s3", method, timeout_s=timeout_s, **arguments)
        except FileNotFoundError:
            return {}

    return insist_on(action, request, uri, store_policy())


def _local(folder: str) -> Iterator[StoredFile]:
    path = storage.local_path(folder)
    try:
        with os.scandir(path) as scan:
            entries = list(scan)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as exc:
        raise StorageError(folder, f"cannot be listed ({exc.strerror})") from exc
    for entry in entries:
        if entry.is_file(follow_symlinks=False):
            with contextlib.suppress(FileNotFoundError):
                yield _of_stat(entry.path, entry.stat(follow_symlinks=False))


def _remote(folder: str) -> Iterator[StoredFile]:
    _, base = remote.filesystem(folder)
    for entry in remote.entries(folder):
        if entry["type"] == "file":
            uri = storage.join(folder, entry["name"].rstrip("/")[len(base.rstrip("/")) + 1 :])
            yield _of_info(uri, entry)


def _of_stat(uri: str, entry: os.stat_result) -> StoredFile:
    if not stat.S_ISREG(entry.st_mode):
        raise StorageError(uri, "is no regular file")
    return StoredFile(uri=uri, size_bytes=entry.st_size, modified_unix_s=entry.st_mtime)


def _of_info(uri: str, info: Mapping[str, Any]) -> StoredFile:
    found = next((info[name] for name in _TIME_FIELDS if info.get(name)), None)
    if isinstance(found, str):
        with contextlib.suppress(ValueError):
            found = datetime.datetime.fromisoformat(found)
    if isinstance(found, datetime.datetime):
        found = found.timestamp()
    modified_unix_s = float(found) if isinstance(found, int | float) else None
    return StoredFile(uri=uri, size_bytes=int(info.get("size") or 0), modified_unix_s=modified_unix_s)


def _remove_empty_folder(uri: str) -> None:
    """Of a part: the video's own folder, if this was the last in it."""
    folder = storage.parent(uri)
    if storage.is_local(uri) and storage.parent(folder).endswith("/parts"):
        with contextlib.suppress(OSError):
            os.rmdir(storage.local_path(folder))
