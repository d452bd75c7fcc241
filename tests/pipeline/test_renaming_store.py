"""Publishing in a remote store whose files grow as they are sent, as over SFTP: nobody sees part of one."""

from __future__ import annotations

import types
import uuid
from collections.abc import Iterator
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cope_prep.pipeline import storage
from cope_prep.pipeline.gc import collect
from cope_prep.schemas.arrow import MANIFEST
from cope_prep.schemas.errors import StorageError


class RenamingStore(MemoryFileSystem):
    """Files in memory, sent in two halves and renamed at once. What it does wrong is chosen by the test."""

    protocol = "renaming"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    cut_off: ClassVar[list[Exception | None]] = []
    """For each upload to come: how it ends after its first half; None: as if it were whole."""
    onto_files: ClassVar[str] = "replaces"
    """What a rename onto a file does; or `refuses`, or `does nothing`; `has no mv`: the client's own has to do."""
    watched: ClassVar[str] = ""
    """A path..."""
    seen: ClassVar[set[bytes | None]] = set()
    """...and what was there in the middle of uploads."""

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).removeprefix("renaming://"))

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        with open(lpath, "rb") as file:
            content = file.read()
        self.pipe_file(rpath, content[: len(content) // 2])
        self.seen.add(self.cat_file(self.watched) if self.exists(self.watched) else None)
        if self.cut_off:
            if (error := self.cut_off.pop(0)) is not None:
                raise error
            return
        self.pipe_file(rpath, content)

    @property
    def ftp(self) -> Any:
        """The client, as that of SFTP: it renames onto no file."""
        return types.SimpleNamespace(rename=self._rename) if self.onto_files == "has no mv" else None

    def _rename(self, path1: str, path2: str) -> None:
        if self.exists(path2):
            raise OSError("Failure")
        self.store[self._strip_protocol(path2)] = self.store.pop(self._strip_protocol(path1))

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        if self.onto_files == "has no mv":
            raise OSError("Operation unsupported")
        if self.exists(path2) and self.onto_files != "replaces":
            if self.onto_files == "refuses":
                raise FileExistsError(path2)
            return
        self.store[self._strip_protocol(path2)] = self.store.pop(self._strip_protocol(path1))


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder of such a store that has the file `a`, with the content `old`."""
    fsspec.register_implementation("renaming", RenamingStore, clobber=True)
    folder = f"renaming://{uuid.uuid4().hex}"
    RenamingStore().pipe_file(f"{folder}/a", b"old")
    monkeypatch.setattr(RenamingStore, "watched", f"{folder}/a")
    monkeypatch.setattr(RenamingStore, "seen", set())
    monkeypatch.setattr(RenamingStore, "cut_off", [])
    yield folder
    RenamingStore.store.clear()


def names(folder: str) -> list[str]:
    """All files, temporary ones too."""
    return [path.rpartition("/")[2] for path in RenamingStore().find(folder)]


@pytest.mark.parametrize("onto_files", ["replaces", "refuses", "does nothing", "has no mv"])
def test_file_is_replaced_at_once(folder: str, onto_files: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RenamingStore, "onto_files", onto_files)
    storage.publish_bytes(f"{folder}/a", b"new content")
    assert RenamingStore.seen == {b"old"}
    assert storage.read_bytes(f"{folder}/a") == b"new content"
    assert names(folder) == ["a"]


@pytest.mark.parametrize("onto_files", ["replaces", "has no mv"])
def test_new_file_is_not_there_before_it_is_whole(
    folder: str, onto_files: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RenamingStore, "onto_files", onto_files)
    monkeypatch.setattr(RenamingStore, "watched", f"{folder}/b")
    storage.publish_bytes(f"{folder}/b", b"new content")
    assert RenamingStore.seen == {None}
    assert names(folder) == ["a", "b"]


@pytest.mark.parametrize("end", [None, ConnectionResetError("connection reset")])
def test_upload_that_is_cut_off_is_made_again(folder: str, end: Exception | None) -> None:
    RenamingStore.cut_off.append(end)
    storage.publish_bytes(f"{folder}/a", b"new content")
    assert RenamingStore.cut_off == []
    assert RenamingStore.seen == {b"old"}
    assert storage.read_bytes(f"{folder}/a") == b"new content"
    assert names(folder) == ["a"]


def test_upload_that_never_ends_leaves_what_was_there(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPE_PREP_STORE_PATIENCE_S", "0")
    RenamingStore.cut_off.extend([None] * 100)
    with pytest.raises(StorageError, match="5 bytes are stored, 11 were sent"):
        storage.publish_bytes(f"{folder}/a", b"new content")
    assert len(RenamingStore.cut_off) < 100
    assert storage.read_bytes(f"{folder}/a") == b"old"
    assert names(folder) == ["a"]


def test_what_a_killed_upload_leaves_is_hidden_and_collected(folder: str) -> None:
    storage.publish_table(f"{folder}/manifest.parquet", pa.Table.from_pylist([], schema=MANIFEST))
    temporary = f"{folder}/.tmp-{uuid.uuid4().hex}-b"
    RenamingStore().pipe_file(temporary, b"half")
    assert storage.list_files(folder) == ["a", "manifest.parquet"]
    report = collect(folder, older_than_s=0)
    assert [(one.kind, one.uri) for one in report.garbage] == [("temporary", temporary)]
    assert names(folder) == ["a", "manifest.parquet"]
