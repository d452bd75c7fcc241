"""What killed runs leave behind in a dataset, found and deleted.

    temporary   `.tmp-*` files: writes that never ended (not in object stores)
    upload      unfinished uploads in parts: S3 keeps and bills them, and lists them nowhere else
    part        pieces of long videos, under <stage>/<hash>/parts/, that were never joined
    orphan      an output without a row in the ledger, of no video of the manifest
    removed     an output with a row, of a video that the manifest no longer lists; deleted only when asked for

An output without a row of a video that the manifest lists is kept: the next run puts its own in its place. Only the
dataset's own folders are looked at, only names that cope-prep itself gives, and never what the manifest lists as a
source. A folder that is a link to somewhere outside the dataset is left alone, and reported: it may be another
dataset's, whose runs and videos are not known here.

What was written within the last `older_than_s` is kept, by the store's own clock: a file is written to learn its
time, so no two machines' clocks are compared (but in a dry run of who may only read). While a run is alive, by its
lock, nothing is deleted.
"""

from __future__ import annotations

import os
import posixpath
import re
import time
import uuid
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fsspec.implementations.local import LocalFileSystem

from cope_prep.pipeline import remote, storage, stored
from cope_prep.pipeline.ledger import Ledger
from cope_prep.pipeline.stored import StoredFile, Upload
from cope_prep.schemas.arrow import MANIFEST
from cope_prep.schemas.errors import ConfigurationError, SourceNotFoundError, StorageError

Kind = Literal["temporary", "upload", "part", "orphan", "removed"]

ALIVE_S = 60.0
"""A run writes its lock anew every 10 s; one that is younger than this is of a run that is alive."""

_STAGES = ("reencode", "extract", "shards")
_OUTPUTS = {"reencode": ".mp4", "extract": ".tar"}
_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{32}(-.*)?", re.DOTALL)
_HASH = re.compile(r"[0-9a-f]{6,64}")
_KEY = re.compile(r"[0-9a-f]{16}")
_PART = re.compile(r"\d{6,}\.samples|\d{9,}\.packets|\.tmp-[0-9a-f]{32}(-.*)?", re.DOTALL)
_SAME_STORE = {"s3a": "s3", "gcs": "gs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """Something that no run needs."""

    kind: Kind
    uri: str
    size_bytes: int
    age_s: float
    """Since it was last written, or since its upload began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GcReport:
    """What `collect` found and did."""

    dataset: str
    dry_run: bool
    garbage: tuple[Garbage, ...]
    """Deleted, unless it is a dry run."""
    kept_removed: tuple[Garbage, ...]
    """Outputs of videos that the manifest no longer lists, which were not asked for."""
    num_unrecorded: int
    """Outputs without a row of videos that the manifest lists: the next run replaces them."""
    num_young: int
    """What would be garbage, and is too young to tell."""
    outside: tuple[str, ...]
    """Folders that are links to outside the dataset: not looked into."""
    is_clock_of_store: bool
    """False if ages are by this machine's clock: a dry run that may not write to the store."""

    @property
    def total_bytes(self) -> int:
        """Of the garbage."""
        return sum(one.size_bytes for one in self.garbage)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "dataset": self.dataset,
            "dry_run": self.dry_run,
            "total_bytes": self.total_bytes,
            "garbage": [asdict(one) for one in self.garbage],
            "kept_removed": [asdict(one) for one in self.kept_removed],
            "num_unrecorded": self.num_unrecorded,
            "num_young": self.num_young,
            "outside": list(self.outside),
            "is_clock_of_store": self.is_clock_of_store,
        }


def collect(dataset: str, *, older_than_s: float, removed: bool = False, dry_run: bool = False) -> GcReport:
    """Find what no run needs in a dataset, and delete it unless `dry_run`.

    `removed`: also delete outputs of videos that the manifest no longer lists.

    Raises:
        ConfigurationError: there is no manifest, so nothing is known to be garbage; or a run is alive.
        StorageError: the store failed, or refused to delete something.
    """
    try:
        videos = storage.read_table(
            storage.join(dataset, "manifest.parquet"), MANIFEST, columns=["video_key", "uri"]
        )
    except SourceNotFoundError as exc:
        raise ConfigurationError(
            dataset, "has no manifest, so nothing in it is known to be left over", "Check the path."
        ) from exc
    search = _Search(
        dataset,
        keys=set(videos["video_key"].to_pylist()),
        sources={_plain(uri) for uri in videos["uri"].to_pylist()},
        older_than_s=older_than_s,
        may_only_read=dry_run,
    )
    search.look()
    doomed = [*search.garbage, *(search.removed if removed else ())]
    if not dry_run:
        for _, found in doomed:
            stored.delete(found)
    return GcReport(
        dataset=dataset,
        dry_run=dry_run,
        garbage=tuple(one for one, _ in doomed),
        kept_removed=() if removed else tuple(one for one, _ in search.removed),
        num_unrecorded=search.num_unrecorded,
        num_young=search.num_young,
        outside=tuple(search.outside),
        is_clock_of_store=search.is_clock_of_store,
    )


class _Search:
    def __init__(
        self, dataset: str, *, keys: set[str], sources: set[str], older_than_s: float, may_only_read: bool
    ) -> None:
        self._dataset = dataset
        self._keys = keys
        self._sources = sources
        self._older_than_s = older_than_s
        self.is_clock_of_store = True
        self._now_s = self._time(may_only_read=may_only_read)
        self.garbage: list[tuple[Garbage, StoredFile | Upload]] = []
        self.removed: list[tuple[Garbage, StoredFile | Upload]] = []
        self.num_unrecorded = 0
        self.num_young = 0
        self.outside: list[str] = []

    def look(self) -> None:
        self._refuse_while_a_run_is_alive()
        self._temporaries(self._dataset)
        for name in ("locks", "quarantine", *_STAGES):
            self._temporaries(storage.join(self._dataset, name))
        for stage in _STAGES:
            for folder in self._folders(storage.join(self._dataset, stage), _HASH):
                self._output_folder(stage, folder)
        for upload in stored.uploads(self._dataset):
            if self._is_own(upload.uri):
                self._add("upload", upload)

    def _folders(self, folder: str, names: re.Pattern[str]) -> list[str]:
        """The folders in a folder that are named so, and are inside the dataset."""
        if not self._is_inside(folder):
            return []
        found = [storage.join(folder, name) for name in storage.list_folders(folder) if names.fullmatch(name)]
        return [one for one in found if self._is_inside(one)]

    def _is_inside(self, folder: str) -> bool:
        """False, and noted, for a link that leads out of the dataset."""
        if not storage.is_local(folder):
            return True
        base = _plain(self._dataset)
        if os.path.commonpath([base, _plain(folder)]) == base:
            return True
        if folder not in self.outside:
            self.outside.append(folder)
        return False

    def _time(self, *, may_only_read: bool) -> float:
        """Now, by the store's clock."""
        try:
            return self._store_time()
        except StorageError:
            if not may_only_read:
                raise
            self.is_clock_of_store = False
            return time.time()

    def _store_time(self) -> float:
        uri = storage.join(self._dataset, f"{storage.TEMPORARY_PREFIX}{uuid.uuid4().hex}-clock")
        try:
            storage.publish_bytes(uri, b"cope-prep gc")
            modified_s = stored.look(uri).modified_unix_s
        finally:
            storage.remove(uri)
        if modified_s is None:
            raise StorageError(self._dataset, "its store does not say when a file was written")
        return modified_s

    def _refuse_while_a_run_is_alive(self) -> None:
        for lock in stored.files(storage.join(self._dataset, "locks")):
            age_s = self._age_s(lock)
            if lock.uri.endswith(".json") and (age_s is None or age_s < ALIVE_S):
                raise ConfigurationError(
                    self._dataset,
                    f"a run is working on it ({posixpath.basename(lock.uri)})",
                    "Wait until it ends; if it was killed, try again in a minute.",
                )

    def _output_folder(self, stage: str, folder: str) -> None:
        self._temporaries(folder)
        for name in ("ledger", "index"):
            self._temporaries(storage.join(folder, name))
        for parts in self._folders(storage.join(folder, "parts"), _KEY):
            for part in stored.files(parts):
                if _PART.fullmatch(posixpath.basename(part.uri)):
                    self._add("part", part)
        suffix = _OUTPUTS.get(stage)
        if suffix is None:
            return
        # The files first: a row that comes after them is of a run that began meanwhile, and it is young anyway.
        outputs = [
            (posixpath.basename(found.uri).removesuffix(suffix), found)
            for found in stored.files(folder)
            if found.uri.endswith(suffix)
        ]
        recorded = set(Ledger(storage.join(folder, "ledger")).read(["video_key"])["video_key"].to_pylist())
        for key, found in outputs:
            if not _KEY.fullmatch(key):
                continue
            if key in self._keys:
                self.num_unrecorded += key not in recorded
            else:
                self._add("removed" if key in recorded else "orphan", found)

    def _temporaries(self, folder: str) -> None:
        # An object store shows nothing before it is whole.
        if self._is_inside(folder) and (storage.is_local(folder) or remote.writes_aside(folder)):
            for found in stored.files(folder):
                if _TEMPORARY.fullmatch(os.path.basename(found.uri)):
                    self._add("temporary", found)

    def _add(self, kind: Kind, found: StoredFile | Upload) -> None:
        age_s = self._age_s(found)
        if _plain(found.uri) in self._sources:
            return
        if age_s is None or age_s < self._older_than_s:
            self.num_young += 1
            return
        entry = Garbage(kind=kind, uri=found.uri, size_bytes=found.size_bytes, age_s=age_s)
        (self.removed if kind == "removed" else self.garbage).append((entry, found))

    def _age_s(self, found: StoredFile | Upload) -> float | None:
        return None if found.modified_unix_s is None else max(self._now_s - found.modified_unix_s, 0.0)

    def _is_own(self, uri: str) -> bool:
        """True for a path that cope-prep writes: uploads of other files below the dataset's URL are not ours."""
        base = self._dataset.rstrip("/") + "/"
        top, *rest = uri.removeprefix(base).split("/")
        if not uri.startswith(base):
            return False
        if not rest:
            return top in ("manifest.parquet", "questions.parquet")
        return top == "locks" or (top in _STAGES and _HASH.fullmatch(rest[0]) is not None)


def _plain(uri: str) -> str:
    """One spelling of a path, to compare by."""
    if storage.is_local(uri):
        return os.path.realpath(storage.local_path(uri))
    protocol, _, rest = uri.partition("://")
    if protocol in LocalFileSystem.protocol:
        return os.path.realpath(rest)
    return f"{_SAME_STORE.get(protocol, protocol)}://{rest.rstrip('/')}"
