"""List a folder of sources once: every file with its size and version, whatever the store.

Local folders are walked; remote ones are listed with one recursive listing per top-level folder, which on
an object store is one request per thousand files, instead of one `stat` per file. Left out: hidden files
and folders (temporary ones among them), and the dataset's own folder if it lies inside the source. What
cannot be used (broken links, unreadable folders, names that are not Unicode) is counted, never raised.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from cope_prep.pipeline import storage
from cope_prep.pipeline.manifest_report import Progress, SkipCounter
from cope_prep.pipeline.remote import call
from cope_prep.pipeline.retries import insist_on, store_policy
from cope_prep.pipeline.storage import FileStat
from cope_prep.schemas.errors import ConfigurationError, SourceNotFoundError, StorageError

_PROGRESS_EVERY = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTree:
    """The files below a folder."""

    root: str
    """Absolute local path, or URL, without a trailing slash."""
    files: dict[str, FileStat]
    """Path relative to the root, with forward slashes -> size and version; sorted by path."""

    def uri(self, path: str) -> str:
        """Where a listed file is."""
        return storage.join(self.root, path)


def absolute(uri: str) -> str:
    """A local path made absolute, since workers have another working directory; URLs as they are."""
    if storage.is_local(uri):
        return os.path.abspath(storage.local_path(uri))
    return uri.rstrip("/")


def list_tree(
    root: str,
    *,
    dataset: str,
    skips: SkipCounter,
    max_depth: int | None = None,
    follow_links: bool = False,
    leave_out: Callable[[str], bool] = lambda name: False,
    progress: Progress | None = None,
) -> SourceTree:
    """List the files below `root`.

    `max_depth` 1 lists the files directly in it only. `leave_out` is asked with the name of each top-level
    folder. With `follow_links` a link is what it points to; without, links that lead out of the tree, and
    links to folders, are counted and skipped.

    Raises:
        ConfigurationError: there is no such folder, or the dataset is that folder.
        StorageError: the store refused the listing.
    """
    root = absolute(root)
    own = _dataset_inside(root, absolute(dataset))
    if storage.is_local(root):
        found = _walk_local(
            root, skips=skips, max_depth=max_depth, follow_links=follow_links, leave_out=leave_out, own=own
        )
    else:
        found = _list_remote(root, max_depth=max_depth, leave_out=leave_out, own=own)
    files: dict[str, FileStat] = {}
    for path, stat in found:
        files[path] = stat
        if progress is not None and len(files) % _PROGRESS_EVERY == 0:
            progress("files listed", len(files), 0)
    return SourceTree(root=root, files={path: files[path] for path in sorted(files)})


def _dataset_inside(root: str, dataset: str) -> str | None:
    """The dataset's path relative to the root if it lies below it."""
    if storage.is_local(root) != storage.is_local(dataset):
        return None
    if storage.is_local(root):
        path, base = os.path.realpath(dataset), os.path.realpath(root)
    else:
        (fs, base), (other, path) = storage.filesystem(root), storage.filesystem(dataset)
        if fs.protocol != other.protocol:
            return None
        path, base = path.rstrip("/"), base.rstrip("/")
    if path == base:
        raise ConfigurationError(
            dataset, "is both the source and the dataset", "Give the dataset a folder of its own."
        )
    prefix = base.rstrip("/") + "/"
    return path.removeprefix(prefix) if path.startswith(prefix) else None


def _walk_local(
    root: str,
    *,
    skips: SkipCounter,
    max_depth: int | None,
    follow_links: bool,
    leave_out: Callable[[str], bool],
    own: str | None,
) -> Iterator[tuple[str, FileStat]]:
    if not os.path.isdir(root):
        raise ConfigurationError(root, "there is no such folder")
    real_root = os.path.realpath(root)
    # (path relative to the root, depth, real paths of the links that led there: where a loop would close)
    folders: list[tuple[str, int, tuple[str, ...]]] = [("", 1, (real_root,))]
    while folders:
        folder, depth, chain = folders.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as scan:
                entries = list(scan)
        except OSError as exc:
            if not folder:
                raise StorageError(root, f"cannot be listed ({exc})") from exc
            skips.add("folders", f"cannot be read ({exc.strerror})", folder)
            continue
        for entry in entries:
            path = posixpath.join(folder, entry.name)
            if entry.name.startswith(".") or path == own:
                continue
            if not is_unicode(entry.name):
                skips.add("names", "are not valid UTF-8: rename them", ascii(path))
                continue
            links = chain
            if entry.is_symlink():
                target = os.path.realpath(entry.path)
                if reason := _link_refused(target, real_root=real_root, chain=chain, follow=follow_links):
                    skips.add("links", reason, path)
                    continue
                links = (*chain, target)
            try:
                if entry.is_dir():
                    if (max_depth is None or depth < max_depth) and not (not folder and leave_out(path)):
                        folders.append((path, depth + 1, links))
                elif entry.is_file():
                    stat = entry.stat()
                    yield path, FileStat(size_bytes=stat.st_size, version=str(stat.st_mtime_ns))
                else:
                    skips.add("special files", "are pipes, sockets or devices", path)
            except OSError as exc:  # deleted meanwhile, or no permission
                skips.add("files", f"cannot be examined ({exc.strerror})", path)


def _link_refused(target: str, *, real_root: str, chain: tuple[str, ...], follow: bool) -> str | None:
    """Why a link to `target` is not used; None if it is."""
    if not os.path.exists(target):
        return "lead nowhere"
    if follow:
        return "lead back to a folder above" if target in chain else None
    if target != real_root and not target.startswith(real_root.rstrip("/") + "/"):
        return "lead out of the source folder: name their target as the source, or copy it"
    if os.path.isdir(target):
        return "lead to a folder of the source, whose files are listed under their own names"
    return None


def _list_remote(
    root: str, *, max_depth: int | None, leave_out: Callable[[str], bool], own: str | None
) -> Iterator[tuple[str, FileStat]]:
    fs, base = storage.filesystem(root)
    base = base.rstrip("/")

    def listed(method: str, path: str, **kwargs: Any) -> Any:
        def request(timeout_s: float) -> Any:
            fs.invalidate_cache()
            try:
                return call(fs, method, path, timeout_s=None, detail=True, **kwargs)
            except NotADirectoryError as exc:
                raise FileNotFoundError(path) from exc

        return insist_on("listed", request, root, store_policy())

    try:
        top = {str(entry["name"]).rstrip("/"): entry for entry in listed("ls", base)}
        for name in sorted(top):
            path = name[len(base) + 1 :]
            if not path or path.startswith(".") or path == own:
                continue
            if top[name]["type"] != "directory":
                yield path, storage.stat_of_info(top[name])
            elif max_depth != 1 and not leave_out(path):
                depth = None if max_depth is None else max_depth - 1
                below = cast(dict[str, Any], listed("find", name, maxdepth=depth))
                for full, info in sorted(below.items()):
                    path = full[len(base) + 1 :]
                    if full.endswith("/") or "/." in path or (own and path.startswith(own + "/")):
                        continue
                    yield path, storage.stat_of_info(info)
    except SourceNotFoundError as exc:
        raise ConfigurationError(root, "there is no such folder") from exc


def is_unicode(name: str) -> bool:
    """False for lone surrogates: a file name that is not UTF-8, or a bad escape in JSON."""
    if name.isascii():  # a flag of the string: costs nothing
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
