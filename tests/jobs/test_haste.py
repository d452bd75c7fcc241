"""A run that was told to stop does not wait for a store that is down."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.asyn import AsyncFileSystem

from cope_prep.jobs import cli_estimate, run_lock
from cope_prep.jobs.run_lock import RunLocks
from cope_prep.jobs.session import executor_session
from cope_prep.pipeline import remote, retries, storage
from cope_prep.schemas.errors import StorageError


@pytest.fixture(autouse=True)
def no_haste() -> Iterator[None]:
    yield
    retries.set_haste(False)


def test_operation_under_way_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes during the second attempt; what is begun after it gets two seconds at most."""
    monkeypatch.setattr(retries, "_MOMENT_S", 0.01)
    limits_s: list[float] = []

    def request(timeout_s: float) -> None:
        limits_s.append(timeout_s)
        if len(limits_s) > 6:
            pytest.fail("goes on as if there were time")
        if len(limits_s) == 2:
            monkeypatch.setattr(retries, "HASTE_S", 0.05)
            retries.set_haste(True)
        raise ConnectionResetError

    with pytest.raises(StorageError, match="in 2 attempts"):
        retries.insist_on("written", request, "s3://bucket/a", retries.store_policy())
    with pytest.raises(StorageError, match="in 1 attempts"):
        retries.insist_on("written", request, "s3://bucket/a", retries.store_policy())
    assert limits_s == [60.0, 60.0, 0.05]


class HangingStore(AsyncFileSystem):
    """Answers nothing; what nobody gave up meanwhile it says in the end."""

    protocol = "hangs"
    cachable = False
    begun: ClassVar[list[str]] = []
    ended: ClassVar[list[str]] = []
    given_up: ClassVar[list[str]] = []
    at_begin: ClassVar[list[Callable[[], None]]] = []

    async def _hang(self, name: str) -> Any:
        self.begun.append(name)
        for act in self.at_begin:
            act()
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            self.given_up.append(name)
            raise
        self.ended.append(name)

    async def _info(self, path: str, **options: Any) -> Any:
        return await self._hang("info")

    async def _ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        return await self._hang("ls")

    async def _isdir(self, path: str) -> Any:
        return await self._hang("isdir")

    async def _rm(self, path: Any, *rest: Any, **options: Any) -> Any:
        return await self._hang("rm")

    async def _put_file(self, lpath: str, rpath: str, *rest: Any, **options: Any) -> Any:
        return await self._hang("put_file")


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> type[HangingStore]:
    fsspec.register_implementation("hangs", HangingStore, clobber=True)
    for kept in (HangingStore.begun, HangingStore.ended, HangingStore.given_up, HangingStore.at_begin):
        kept.clear()
    monkeypatch.setenv("COPE_PREP_STORE_PATIENCE_S", "60")
    monkeypatch.setattr(retries, "HASTE_S", 0.2)
    return HangingStore


OPERATIONS: dict[str, Callable[[str], object]] = {
    "ls": storage.list_files,
    "isdir": storage.is_folder,
    "rm": remote.remove_folder,
    "info": storage.exists,
    "put_file": lambda uri: storage.publish_bytes(uri, b"x" * 100),
}


@pytest.mark.parametrize("is_before", [True, False], ids=["begun in haste", "under way"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_store_that_hangs_is_given_up(hanging: type[HangingStore], name: str, is_before: bool) -> None:
    """Listings and removals, which have no time limit else, as the others, which have a minute."""
    if is_before:
        retries.set_haste(True)
    else:
        hanging.at_begin.append(lambda: retries.set_haste(True))
    with pytest.raises(StorageError, match=r"in 1 attempts .*no answer in time"):
        OPERATIONS[name]("hangs://bucket/a")
    assert hanging.begun == [name]
    assert hanging.given_up == [name]
    assert hanging.ended == []


def test_store_that_hangs_is_not_opened_in_haste(hanging: type[HangingStore]) -> None:
    retries.set_haste(True)
    with pytest.raises(StorageError, match=r"could not be opened in 1 attempts .*no answer in time"):
        storage.open_read("hangs://bucket/a")
    assert (hanging.begun, hanging.given_up) == (["info"], ["info"])


def test_outputs_of_a_sample_stay_behind_if_the_store_hangs(
    hanging: type[HangingStore], caplog: pytest.LogCaptureFixture
) -> None:
    """The session is over when they are removed; Ctrl-C is still what ended the command."""
    with pytest.raises(KeyboardInterrupt), cli_estimate._scratch_folder("hangs://bucket"):
        raise KeyboardInterrupt
    assert hanging.given_up == ["rm"]
    assert "the sample's outputs stay behind" in caplog.text
    assert not retries.is_in_haste()


def test_pause_before_the_next_attempt_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "HASTE_S", 0.05)
    policy = retries.RetryPolicy(first_wait_s=1e6, longest_wait_s=1e6)
    moments: list[float] = []

    def sleep(seconds: float) -> None:
        moments.append(seconds)
        retries.set_haste(len(moments) > 2)
        assert len(moments) < 10, "it sleeps on"

    def request(timeout_s: float) -> None:
        raise ConnectionResetError

    monkeypatch.setattr(retries.time, "sleep", sleep)
    with pytest.raises(StorageError, match="in 2 attempts"):
        retries.insist_on("written", request, "s3://bucket/a", policy)


def test_locks_stay_behind_if_the_store_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_lock, "_RELEASE_S", 2.0)
    answers, asked, outwaited = threading.Event(), [], []

    def hang(uri: str) -> None:
        asked.append(uri)
        if not answers.wait(10):
            outwaited.append(uri)

    with RunLocks([f"{tmp_path}/{stage}/abc" for stage in ("reencode", "extract", "shards")]):
        monkeypatch.setattr(run_lock.storage, "remove", hang)
        retries.set_haste(True)
    assert len(asked) == 3, "all are tried, side by side"
    assert not outwaited
    assert caplog.text.count("stays behind; the next run removes it") == 3
    answers.set()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_brings_haste_for_the_session(tmp_path: Path, signum: int) -> None:
    session = executor_session(
        address="local",
        workers=None,
        no_ray=True,
        time_limit=None,
        wheel=None,
        outputs=[f"{tmp_path}/reencode/abc"],
    )
    seen: list[bool] = []

    def work() -> None:
        with session:
            try:
                seen.append(retries.is_in_haste())
                signal.raise_signal(signum)
            finally:
                seen.append(retries.is_in_haste())

    handler = signal.getsignal(signum)
    with pytest.raises(KeyboardInterrupt):
        work()
    assert seen == [False, True]
    assert not retries.is_in_haste()
    assert signal.getsignal(signum) is handler
    assert os.listdir(tmp_path / "locks") == []
