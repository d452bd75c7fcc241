"""Datasets on remote stores: the same batches as from the disk, through faults, with each byte fetched once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import fsspec
import pytest
from torch.utils.data import DataLoader

from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader import GopDataset, GopFilter, QADataset, Shuffle
from cope_prep.pipeline.loader.fetch import RetryPolicy
from cope_prep.pipeline.loader.reader import ShardReader
from cope_prep.schemas.errors import ConfigurationError, StorageError

SPREAD = Shuffle(lanes=8, chunk_bytes=1 << 16, window_chunks=2)
QUICK = RetryPolicy(attempts=4, first_wait_s=0.01, longest_wait_s=0.05, timeout_s=5.0)


@pytest.fixture(scope="module")
def http_faults(load_helper) -> ModuleType:
    return load_helper("http_faults")


@pytest.fixture
def remote_reader(tmp_path: Path) -> ShardReader:
    return ShardReader(cache_dir=str(tmp_path / "cache"), cache_bytes=1 << 30, retry=QUICK)


@pytest.fixture
def server(small: Layout, http_faults: ModuleType) -> Iterator:
    """The dataset behind HTTP."""
    root = Path(small.dataset)
    files = {f"/{path.relative_to(root)}": path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with http_faults.serve(files) as running:
        yield running


def shards_url(server, layout: Layout) -> str:
    return f"{server.url}/{Path(layout.folder('shards')).relative_to(layout.dataset)}"


def keys(batches) -> list[str]:
    return [key for batch in batches for key in batch.info.keys]


def shard_files(server) -> dict[str, bytes]:
    return {
        path: content
        for path, content in sorted(server.files.items())
        if "/shard-" in path and path.endswith(".tar")
    }


def shard_requests(server) -> list[tuple[str, str]]:
    return [request for request in server.requests if request[0].endswith(".tar")]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_http_gives_the_batches_of_the_disk_and_fetches_each_chunk_once(
    small: Layout, server, remote_reader: ShardReader, num_workers: int
):
    local = GopDataset(small.dataset, batch_size=4, shuffle=SPREAD)
    data = GopDataset(shards_url(server, small), batch_size=4, shuffle=SPREAD, reader=remote_reader)
    batches = DataLoader(data, batch_size=None, num_workers=num_workers)
    for epoch in range(2):
        local.set_epoch(epoch)
        data.set_epoch(epoch)
        pairs = list(zip(local, batches, strict=True))
        assert len(pairs) == 22
        for ours, theirs in pairs:
            assert ours.info.keys == theirs.info.keys
            assert (ours.pictures == theirs.pictures).all()
            assert (ours.residual == theirs.residual).all()
        # The second epoch comes from the cache.
        asked = shard_requests(server)
        assert len(set(asked)) == len(asked) == len(data.store.chunk_first)
    remote_reader.close()


def test_faults_are_ridden_out(small: Layout, server, remote_reader: ShardReader):
    expected = keys(GopDataset(small.dataset, batch_size=4, shuffle=SPREAD))
    data = GopDataset(shards_url(server, small), batch_size=4, shuffle=SPREAD, reader=remote_reader)
    server.faults = [500, "reset", None, "short", 503, None, "less", "reset", None, 500, None, 502]
    assert keys(data) == expected
    assert not server.faults  # all of them were met
    remote_reader.close()


def test_fault_that_stays_is_an_error_that_names_the_shard(small: Layout, server, remote_reader: ShardReader):
    data = GopDataset(shards_url(server, small), batch_size=4, shuffle=SPREAD, reader=remote_reader)
    server.forever = 500
    with pytest.raises(StorageError, match=r"(?s)shard-0000\d\.tar.*4 attempts"):
        keys(data)
    remote_reader.close()


def test_fault_that_stays_is_skipped_if_asked_to(small: Layout, server, remote_reader: ShardReader):
    expected = keys(GopDataset(small.dataset, batch_size=4, shuffle=SPREAD))
    data = GopDataset(
        shards_url(server, small), batch_size=4, shuffle=SPREAD, reader=remote_reader, on_error="skip"
    )
    gone = list(shard_files(server))[1]
    del server.files[gone]
    batches = list(data)
    assert keys(batches) == expected
    skipped = [skip for batch in batches for skip in batch.info.skipped]
    assert skipped
    assert {skip.shard for skip in skipped} == {server.url + gone}
    remote_reader.close()


def test_only_what_is_wanted_is_fetched(small: Layout, server, remote_reader: ShardReader):
    """Range requests, from the first wanted sample of a piece to its last."""
    data = GopDataset(
        shards_url(server, small),
        shuffle=SPREAD,
        reader=remote_reader,
        where=GopFilter(min_duration_s=3),  # the clips of 100 frames
    )
    wanted_bytes = data.store.catalog.size_bytes.sum()
    assert len(keys(data)) == 40
    fetched = remote_reader.counters.bytes_fetched
    assert wanted_bytes <= fetched < sum(map(len, shard_files(server).values()))
    remote_reader.close()


def test_cache_keeps_its_limit(small: Layout, server, tmp_path: Path):
    reader = ShardReader(cache_dir=str(tmp_path / "cache"), cache_bytes=300_000, retry=QUICK)
    data = GopDataset(shards_url(server, small), batch_size=4, shuffle=SPREAD, reader=reader)
    total = sum(map(len, shard_files(server).values()))
    assert total > 2 * 300_000
    for epoch in range(2):
        data.set_epoch(epoch)
        for _ in data:
            used = 0
            for path in (tmp_path / "cache").rglob("*"):
                with contextlib.suppress(FileNotFoundError):  # evicted just now
                    used += path.stat().st_size if path.is_file() else 0
            assert used < 300_000 + 4 * (1 << 17)
    assert reader.counters.bytes_fetched > total
    reader.close()


def test_texts_of_questions_are_not_evicted(small: Layout, server, tmp_path: Path):
    """They lie beside the chunks, whose cache must make room again and again here."""
    url = shards_url(server, small)
    reader = ShardReader(cache_dir=str(tmp_path / "cache"), cache_bytes=300_000, retry=QUICK)
    data = QADataset(url, batch_size=4, shuffle=SPREAD, reader=reader)
    local = QADataset(small.dataset, batch_size=4, shuffle=SPREAD)
    num_batches = 0
    for epoch in range(2):
        local.set_epoch(epoch)
        data.set_epoch(epoch)
        for ours, theirs in zip(local, data, strict=True):
            assert ours.questions == theirs.questions
            assert not any(path.is_dir() for path in (tmp_path / "cache").iterdir())
            num_batches += 1
    assert num_batches == 60
    assert reader.counters.bytes_fetched > 2 * 300_000
    assert [path.suffix for path in sorted((tmp_path / "cache-questions").iterdir())] == ["", ".arrow"]
    reader.close()


def metadata_requests(server) -> list[str]:
    return [path.rpartition("/")[2] for path, _ in server.requests if not path.endswith(".tar")]


def test_faults_are_ridden_out_before_the_first_shard_too(
    small: Layout, server, remote_reader: ShardReader, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(RetryPolicy, "wait_s", lambda policy, attempt: 0.0)
    server.head_fault = 405  # sizes are asked for by GET, too
    local = QADataset(small.dataset, batch_size=4, shuffle=SPREAD)
    QADataset(shards_url(server, small), batch_size=4, shuffle=SPREAD, reader=remote_reader)
    num_without_faults = len(server.requests)
    assert {"dataset.json", "spec.json", "index.parquet", "questions.parquet"} == set(
        metadata_requests(server)
    )
    faults = [500, None, "reset", "short", None, 503]
    server.faults = (faults * num_without_faults)[: 2 * num_without_faults]
    num_faults = len(server.faults)
    data = QADataset(shards_url(server, small), batch_size=4, shuffle=SPREAD, reader=remote_reader)
    assert len(server.faults) < num_faults - num_without_faults
    server.faults = [503, "short", "reset"]  # the texts
    assert [batch.questions for batch in data] == [batch.questions for batch in local]
    assert not server.faults
    remote_reader.close()


@pytest.mark.parametrize("fault", [500, "reset", "short"])
@pytest.mark.parametrize("name", ["dataset.json", "spec.json", "index.parquet", "questions.parquet"])
def test_metadata_that_cannot_be_read_is_not_missing_nor_malformed(
    small: Layout, server, fault: int | str, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(RetryPolicy, "wait_s", lambda policy, attempt: 0.0)
    server.head_fault = 405
    answer = server.answer

    def answer_or_fail(handler) -> None:
        server.forever = fault if name in handler.path else None
        answer(handler)

    monkeypatch.setattr(server, "answer", answer_or_fail)
    with pytest.raises(StorageError, match=rf"{name}.*in 5 attempts"):
        QADataset(shards_url(server, small), shuffle=SPREAD)


def test_metadata_that_is_not_there_is_missing(small: Layout, server):
    folder = shards_url(server, small)
    for name, message in (
        ("index.parquet", "holds no finished shards"),
        ("spec.json", "holds no finished shards"),
        ("dataset.json", "lists|listed"),
    ):
        del server.files[f"{folder.removeprefix(server.url)}/{name}"]
        with pytest.raises(ConfigurationError, match=message):
            GopDataset(folder)


def test_dataset_over_http_without_listings_is_to_be_named_by_its_shards(server):
    with pytest.raises(ConfigurationError, match=r"plain HTTP .* DATASET/shards/<hash>") as caught:
        GopDataset(server.url)
    assert "cope-prep shard" not in str(caught.value)


@pytest.mark.parametrize("fault", [500, "reset"])
def test_dataset_that_cannot_be_listed_now_is_not_without_shards(
    server, fault: int | str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COPE_PREP_STORE_PATIENCE_S", "0")
    answer = server.answer

    def answer_or_fail(handler) -> None:
        server.forever = fault if handler.path == "/shards" else None
        answer(handler)

    monkeypatch.setattr(server, "answer", answer_or_fail)
    with pytest.raises(StorageError, match=r"/shards: could not be listed"):
        GopDataset(server.url)


def test_what_makes_a_cluster_fetch_twice_is_said(
    small: Layout, server, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    url = shards_url(server, small)
    reader = ShardReader(cache_dir=str(tmp_path / "cache"), cache_bytes=100_000)
    GopDataset(url, batch_size=3, rank=0, world_size=2, shuffle=SPREAD, reader=reader)
    assert "8 lanes and a global batch of 6 do not divide each other" in caplog.text
    assert "Shuffle(lanes=12)" in caplog.text
    assert "chunks are fetched again and again" in caplog.text
    caplog.clear()
    reader = ShardReader(cache_dir=str(tmp_path / "cache"), cache_bytes=10_000_000)
    GopDataset(url, batch_size=2, rank=0, world_size=2, shuffle=SPREAD, reader=reader)
    assert not caplog.text


def test_s3(small: Layout, tmp_path: Path, moto_s3: str):
    store = fsspec.filesystem("s3")
    store.mkdir("training")
    for folder, _, names in os.walk(small.dataset):
        for name in names:
            path = Path(folder) / name
            store.put_file(str(path), f"training/data/{path.relative_to(small.dataset)}")
    reader = ShardReader(cache_dir=str(tmp_path / "cache"), cache_bytes=1 << 30)
    data = GopDataset("s3://training/data", batch_size=4, shuffle=SPREAD, reader=reader)
    local = GopDataset(small.dataset, batch_size=4, shuffle=SPREAD)
    assert keys(DataLoader(data, batch_size=None, num_workers=2)) == keys(local)
    questions = QADataset("s3://training/data", batch_size=4, shuffle=SPREAD, reader=reader)
    assert sum(len(batch) for batch in questions) == 120
    reader.close()
