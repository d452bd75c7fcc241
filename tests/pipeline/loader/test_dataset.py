"""GopDataset: one order for all ranks and workers, exact resume, equal steps, and nothing silent."""

from __future__ import annotations

import copy
import itertools
import logging
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from cope_prep.pipeline import storage, tar
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader import GopBatch, GopDataset, GopFilter, RawDataset, Shuffle, stream
from cope_prep.pipeline.loader.reader import ShardReader
from cope_prep.pipeline.rebuild import rebuild_anchors
from cope_prep.schemas import wire
from cope_prep.schemas.errors import (
    ChecksumError,
    ConfigurationError,
    FormatError,
    SourceNotFoundError,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # more workers than CPUs
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata 0.11
]

GLOBAL_BATCH = 8
SPREAD = Shuffle(lanes=8, chunk_bytes=1 << 16, window_chunks=2)
"""Many chunks even in a small dataset."""


def dataset(layout: Layout, **changes) -> GopDataset:
    return GopDataset(layout.dataset, **{"shuffle": SPREAD, **changes})


def loader(data, num_workers: int) -> Iterable[GopBatch]:
    return data if num_workers == 0 else DataLoader(data, batch_size=None, num_workers=num_workers)


def keys(batches: Iterable[GopBatch]) -> list[str]:
    return [key for batch in batches for key in batch.info.keys]


def global_keys(layout: Layout, *, world_size: int, num_workers: int, state=None, **changes) -> list[str]:
    """Keys of all global batches, one after the other: what all ranks together see."""
    per_rank: list[Iterator[GopBatch]] = []
    for rank in range(world_size):
        values = {"batch_size": GLOBAL_BATCH // world_size, "rank": rank, "world_size": world_size}
        data = dataset(layout, **values, **changes)
        if state is not None:
            data.load_state_dict(state)
        per_rank.append(iter(loader(data, num_workers)))
    return [key for step in zip(*per_rank, strict=True) for batch in step for key in batch.info.keys]


@pytest.fixture(scope="module")
def expected(small: Layout) -> list[str]:
    """The order of epoch 0, as one process sees it."""
    return keys(dataset(small, batch_size=GLOBAL_BATCH))


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_order_depends_on_neither_ranks_nor_workers(
    small: Layout, expected: list[str], world_size: int, num_workers: int
):
    assert len(expected) == 88
    assert global_keys(small, world_size=world_size, num_workers=num_workers) == expected


def test_order_depends_on_epoch_and_seed(small: Layout, expected: list[str]):
    data = dataset(small, batch_size=GLOBAL_BATCH)
    orders = [expected]
    for epoch in (1, 2):
        data.set_epoch(epoch)
        orders.append(keys(data))
    orders.append(keys(dataset(small, batch_size=GLOBAL_BATCH, seed=1)))
    assert len({tuple(order) for order in orders}) == 4
    data.set_epoch(0)
    assert keys(data) == expected


def test_every_sample_is_seen_once(small: Layout):
    seen = keys(dataset(small, batch_size=1))
    table = pq.read_table(small.index, columns=["key"])
    assert sorted(seen) == sorted(table["key"].to_pylist())
    assert len(seen) == 90


def test_persistent_workers_follow_set_epoch(small: Layout):
    data = dataset(small, batch_size=4)
    batches = DataLoader(data, batch_size=None, num_workers=2, persistent_workers=True)
    seen = []
    for epoch in range(3):
        data.set_epoch(epoch)
        seen.append(keys(batches))
    del batches
    alone = dataset(small, batch_size=4)
    for epoch in range(3):
        alone.set_epoch(epoch)
        assert seen[epoch] == keys(alone)


# Content


def records(layout: Layout) -> dict[str, wire.GopRecord]:
    """All samples of a dataset, by key, read without the loader."""
    found = {}
    for path in sorted(Path(layout.folder("shards")).glob("*.tar")):
        with path.open("rb") as file:
            for span in tar.scan(file, name=path.name):
                found[span.key] = wire.decode_gop(tar.read_members(file, span), key=span.key)
    return found


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("key_frames", [1, 2, 4, 8])
def test_batches_hold_what_the_shards_hold(small: Layout, key_frames: int, num_workers: int):
    stored = records(small)
    num_checked = 0
    for batch in loader(dataset(small, batch_size=5, key_frames=key_frames), num_workers):
        for row, key in enumerate(batch.info.keys):
            record = stored[key]
            anchors = rebuild_anchors(record)
            is_picture = np.arange(len(anchors)) % (8 // key_frames) == 0
            times = record.start_s + np.arange(len(anchors)) * 4 / 30
            num_pictures, num_deltas = int(is_picture.sum()), int((~is_picture).sum())
            assert np.array_equal(batch.pictures[row, :num_pictures].numpy(), anchors[is_picture])
            deltas = [record.windows[index - 1] for index in np.flatnonzero(~is_picture)]
            for p, window in enumerate(deltas):
                assert np.array_equal(batch.motion[row, p].numpy(), window.motion)
                assert np.array_equal(batch.intra[row, p].numpy(), window.intra)
                assert batch.motion_step_px[row, p] == window.motion_step_px
            assert batch.picture_mask[row].sum() == num_pictures
            assert batch.delta_mask[row].sum() == num_deltas
            assert np.allclose(batch.anchor_s[row, : len(anchors)].numpy(), times)
            assert np.allclose(batch.picture_s[row, :num_pictures].numpy(), times[is_picture])
            assert np.allclose(batch.delta_s[row, :num_deltas].numpy(), times[~is_picture])
            assert batch.num_tokens[row].sum() == num_pictures * 210 + num_deltas * 8
            assert not batch.pictures[row, num_pictures:].any()
            assert not batch.residual[row, num_deltas:].any()
            num_checked += 1
    assert num_checked == 90


def test_raw_batches_hold_the_bytes_of_the_shards_in_the_same_order(small: Layout, expected: list[str]):
    data = RawDataset(small.dataset, batch_size=GLOBAL_BATCH, shuffle=SPREAD)
    seen = []
    for batch in DataLoader(data, batch_size=None, num_workers=2):
        for index, key in enumerate(batch.info.keys):
            found, members = tar.split_sample(bytes(batch.sample(index)), name=key)
            assert found == key
            assert wire.decode_gop(members).key == key
            seen.append(key)
    assert seen == expected


# State


@pytest.mark.parametrize("stop", [1, 4, 10])
@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (4, 2), (8, 1), (2, 3)])
def test_training_goes_on_exactly_with_other_ranks_and_workers(
    small: Layout, expected: list[str], stop: int, world_size: int, num_workers: int
):
    """Stopped after some batches of 2 ranks with 2 workers each."""
    data = dataset(small, batch_size=GLOBAL_BATCH // 2, rank=1, world_size=2)
    batches = DataLoader(data, batch_size=None, num_workers=2)
    *_, last = itertools.islice(batches, stop)
    rest = global_keys(
        small, world_size=world_size, num_workers=num_workers, state=data.state_dict(after=last)
    )
    assert rest == expected[stop * GLOBAL_BATCH :]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("stop", [1, 2, 5, 11])
def test_stateful_dataloader_resumes(
    small: Layout, expected: list[str], num_workers: int, every: int, stop: int
):
    def make() -> tuple[GopDataset, StatefulDataLoader]:
        data = dataset(small, batch_size=GLOBAL_BATCH)
        return data, StatefulDataLoader(
            data, batch_size=None, num_workers=num_workers, snapshot_every_n_steps=every
        )

    _, batches = make()
    begun = iter(batches)
    assert keys(itertools.islice(begun, stop)) == expected[: stop * GLOBAL_BATCH]
    state = batches.state_dict()
    _, resumed = make()
    resumed.load_state_dict(state)
    assert keys(resumed) == expected[stop * GLOBAL_BATCH :]
    # The same state, with other workers and another batch size: through the dataset.
    other = dataset(small, batch_size=GLOBAL_BATCH // 2)
    other.load_state_dict(state)
    assert keys(DataLoader(other, batch_size=None, num_workers=1)) == expected[stop * GLOBAL_BATCH :]


def test_stateful_dataloader_goes_on_to_the_next_epochs_after_resuming(small: Layout):
    def epochs(data: GopDataset, batches: Iterable[GopBatch], first: int) -> list[list[str]]:
        seen = []
        for epoch in range(first, 3):
            data.set_epoch(epoch)
            seen.append(keys(batches))
        return seen

    data = dataset(small, batch_size=GLOBAL_BATCH)
    expected = epochs(data, data, 0)
    data = dataset(small, batch_size=GLOBAL_BATCH)
    batches = StatefulDataLoader(data, batch_size=None, num_workers=2)
    data.set_epoch(1)
    seen = keys(itertools.islice(batches, 4))
    state = batches.state_dict()
    data = dataset(small, batch_size=GLOBAL_BATCH)
    batches = StatefulDataLoader(data, batch_size=None, num_workers=2)
    batches.load_state_dict(state)
    rest = epochs(data, batches, 1)
    assert seen + rest[0] == expected[1]
    assert rest[1] == expected[2]


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("changes", [{"batch_size": 4}, {"rank": 0, "world_size": 2}])
def test_stateful_dataloader_of_another_global_batch_is_refused(
    small: Layout, expected: list[str], num_workers: int, changes: dict
):
    """By itself it would go on at another place; through the dataset it goes on at the right one."""
    batches = StatefulDataLoader(
        dataset(small, batch_size=GLOBAL_BATCH), batch_size=None, num_workers=num_workers
    )
    assert len(list(itertools.islice(batches, 3))) == 3
    state = batches.state_dict()
    other = StatefulDataLoader(
        dataset(small, **{"batch_size": GLOBAL_BATCH, **changes}), batch_size=None, num_workers=num_workers
    )
    other.load_state_dict(state)
    with pytest.raises(ConfigurationError, match="global batch of 8"):
        next(iter(other))
    data = dataset(small, **{"batch_size": GLOBAL_BATCH, **changes})
    data.load_state_dict(state)
    assert next(iter(data)).info.positions[0] == 24


@pytest.mark.parametrize("num_workers", [0, 2])
def test_state_of_a_finished_epoch_leads_to_the_next(small: Layout, num_workers: int):
    def make() -> tuple[GopDataset, StatefulDataLoader]:
        data = dataset(small, batch_size=GLOBAL_BATCH)
        return data, StatefulDataLoader(data, batch_size=None, num_workers=num_workers)

    data, batches = make()
    assert len(keys(batches)) == 88
    state = batches.state_dict()
    data, batches = make()
    batches.load_state_dict(state)
    data.set_epoch(1)
    alone = dataset(small, batch_size=GLOBAL_BATCH)
    alone.set_epoch(1)
    assert keys(batches) == keys(alone)


@pytest.mark.parametrize("every", [1, 4])
def test_states_of_persistent_workers_are_those_of_their_epoch(small: Layout, every: int):
    alone = dataset(small, batch_size=4)
    alone.set_epoch(1)
    order = keys(alone)
    data = dataset(small, batch_size=4)
    batches = StatefulDataLoader(
        data, batch_size=None, num_workers=2, persistent_workers=True, snapshot_every_n_steps=every
    )
    keys(batches)
    data.set_epoch(1)
    begun = iter(batches)
    for stop in range(1, 6):
        next(begun)
        other = dataset(small, batch_size=4)
        other.load_state_dict(batches.state_dict())
        assert other.epoch == 1
        assert keys(other) == order[4 * stop :]


def test_beginning_before_the_epoch_of_a_state_is_refused(small: Layout):
    data = dataset(small, batch_size=4)
    data.set_epoch(2)
    batches = StatefulDataLoader(data, batch_size=None, num_workers=1)
    next(iter(batches))
    state = batches.state_dict()
    data = dataset(small, batch_size=4)
    batches = StatefulDataLoader(data, batch_size=None, num_workers=1)
    batches.load_state_dict(state)
    data.set_epoch(0)
    with pytest.raises(ConfigurationError, match="the state is of epoch 2"):
        next(iter(batches))


def test_setting_the_epoch_after_workers_have_begun_does_not_split_it(small: Layout):
    order = keys(dataset(small, batch_size=4))
    for _ in range(3):
        data = dataset(small, batch_size=4)
        begun = iter(DataLoader(data, batch_size=None, num_workers=2))
        data.set_epoch(1)
        assert keys(begun) == order


@pytest.mark.parametrize("copy_of", [lambda data: pickle.loads(pickle.dumps(data)), copy.deepcopy])
def test_copies_of_a_dataset_follow_set_epoch_in_persistent_workers(small: Layout, copy_of: Callable):
    data = copy_of(dataset(small, batch_size=4))
    batches = DataLoader(data, batch_size=None, num_workers=1, persistent_workers=True)
    orders = []
    for epoch in range(2):
        data.set_epoch(epoch)
        orders.append(keys(batches))
    assert orders[0] != orders[1]
    alone = dataset(small, batch_size=4)
    alone.set_epoch(1)
    assert orders[1] == keys(alone)


def test_state_after_a_look_at_the_first_batch(small: Layout):
    """To see shapes, say: it must not be taken for where training is."""
    data = dataset(small, batch_size=4)
    next(iter(data))
    list(itertools.islice(DataLoader(data, batch_size=None, num_workers=1), 5))
    with pytest.raises(ConfigurationError, match=r"state_dict\(after=batch\)"):
        data.state_dict()
    data.set_epoch(1)
    state = data.state_dict()
    assert (state["epoch"], state["consumed"], state["num_steps"]) == (1, 0, 0)


def test_resuming_reads_nothing_of_what_went_before(small: Layout, tmp_path: Path):
    """Stopped at 95 % of the epoch: the bytes read afterwards are those of the samples that are left."""
    order = keys(dataset(small, batch_size=1))
    data = dataset(small, batch_size=1)
    *_, last = itertools.islice(data, 85)
    reader = ShardReader(cache_dir=str(tmp_path))
    resumed = dataset(small, batch_size=1, reader=reader)
    resumed.load_state_dict(last.info.state)
    assert keys(resumed) == order[85:]
    table = pq.read_table(small.index, columns=["key", "size_bytes"]).to_pydict()
    size_bytes = dict(zip(table["key"], table["size_bytes"], strict=True))
    assert reader.counters.bytes_read == sum(size_bytes[key] for key in order[85:])


def test_state_of_this_process_after_its_own_iteration(small: Layout, expected: list[str]):
    data = dataset(small, batch_size=GLOBAL_BATCH)
    list(itertools.islice(data, 3))
    state = data.state_dict()
    other = dataset(small, batch_size=GLOBAL_BATCH)
    other.load_state_dict(state)
    assert keys(other) == expected[3 * GLOBAL_BATCH :]
    assert state["composition"] == [{"name": small.dataset, "weight": 1.0, "num_units": 90}]


def test_state_without_a_batch_fails_where_workers_iterate(small: Layout):
    data = dataset(small, batch_size=4)
    next(iter(DataLoader(data, batch_size=None, num_workers=1)))
    with pytest.raises(ConfigurationError, match=r"state_dict\(after=batch\)"):
        data.state_dict()


def test_state_of_other_settings_fails_and_names_them(small: Layout):
    state = next(iter(dataset(small, seed=1))).info.state
    with pytest.raises(ConfigurationError, match="seed was 1, is 0"):
        dataset(small).load_state_dict(state)
    with pytest.raises(ConfigurationError, match="filter"):
        dataset(small, seed=1, where=GopFilter(min_duration_s=2)).load_state_dict(state)


# Equal steps


def test_what_does_not_fill_a_batch_is_dropped_or_wrapped_and_said(
    small: Layout, caplog: pytest.LogCaptureFixture
):
    dropping = dataset(small, batch_size=4, rank=0, world_size=4)
    wrapping = dataset(small, batch_size=4, rank=3, world_size=4, last="wrap")
    assert (len(dropping), dropping.plan.num_dropped, dropping.plan.num_repeated) == (5, 10, 0)
    assert (len(wrapping), wrapping.plan.num_dropped, wrapping.plan.num_repeated) == (6, 0, 6)
    with caplog.at_level(logging.INFO, logger="cope_prep.loader"):
        assert len(list(dropping)) == 5
    assert "5 steps of 16; 10 dropped, 0 repeated" in caplog.text
    order = keys(dataset(small, batch_size=1))
    assert list(wrapping)[-1].info.keys == tuple(order[2:6])


def test_a_dataset_smaller_than_a_global_batch_fails_unless_it_wraps(small: Layout):
    with pytest.raises(ConfigurationError, match="fewer than one global batch"):
        dataset(small, batch_size=91)
    assert len(dataset(small, batch_size=91, last="wrap")) == 1


def test_rank_comes_from_the_environment(small: Layout, monkeypatch: pytest.MonkeyPatch):
    order = keys(dataset(small, batch_size=4))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert keys(itertools.islice(dataset(small, batch_size=2), 1)) == order[2:4]


# Arguments


def test_arguments_that_do_not_fit_fail(small: Layout):
    for match, changes in {
        "key_frames 3": {"key_frames": 3},
        "window 6": {"window": 6},
        "unit 'frame'": {"unit": "frame"},
        "key_frames 4: is for unit='gop'": {"unit": "window", "key_frames": 4},
        "windows_per_visit 2": {"windows_per_visit": 2},
        "on_error": {"on_error": "ignore"},
        "must be given both": {"rank": 1},
        "passes the filter": {"where": GopFilter(min_duration_s=1e6)},
    }.items():
        with pytest.raises(ConfigurationError, match=match):
            dataset(small, **changes)


def test_dataset_without_shards_fails_and_says_what_to_run(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="cope-prep shard"):
        GopDataset(str(tmp_path))


# Windows


def test_windows_are_read_longer_than_they_are_stored(small: Layout):
    batches = list(dataset(small, batch_size=5, window=8, key_frames=4))
    full = [batch for batch in batches if batch.kind.shape[1] == 4]
    assert full
    assert full[0].pictures.shape[1] == 4
    assert full[0].residual.shape[1] == 0
    one = next(iter(dataset(small, batch_size=30, window=8)))
    assert one.kind.shape[1] == 4
    assert one.residual.shape[1] == 3


def test_single_windows_come_with_both_their_anchors(small: Layout):
    stored = {key: rebuild_anchors(record) for key, record in records(small).items()}
    data = dataset(small, batch_size=3, unit="window", last="wrap")
    assert data.num_units == sum(len(anchors) - 1 for anchors in stored.values())
    seen = set()
    for batch in data:
        for row, key in enumerate(batch.info.keys):
            index = round((batch.picture_s[row, 0].item() - 32 / 30 * batch.gop_index[row].item()) * 30 / 4)
            assert np.array_equal(batch.pictures[row].numpy(), stored[key][index : index + 2])
            seen.add((key, index))
    assert len(seen) == data.num_units


def test_windows_of_a_gop_are_apart_unless_asked_to_stay_together(small: Layout):
    for per_visit in (1, 8):
        batches = dataset(small, batch_size=4, unit="window", windows_per_visit=per_visit)
        are_together = [len(set(batch.info.keys)) <= 2 for batch in batches]
        assert len(are_together) > 100
        assert np.mean(are_together) < 0.2 if per_visit == 1 else np.mean(are_together) > 0.7


def test_windows_of_a_gop_are_read_once(small: Layout, tmp_path: Path):
    reader = ShardReader(cache_dir=str(tmp_path))
    data = dataset(small, batch_size=1, unit="window", windows_per_visit=8, reader=reader)
    assert sum(len(batch) for batch in data) == data.num_units
    table = pq.read_table(small.index, columns=["num_windows", "size_bytes"]).to_pydict()
    with_windows = sum(size for size, n in zip(table["size_bytes"], table["num_windows"], strict=True) if n)
    assert reader.counters.bytes_read == with_windows


# Faults


def damage(layout: Layout, shard: str = "shard-00001.tar") -> tuple[str, int]:
    """Flip one bit in the middle of a sample. Returns its key and offset."""
    table = pq.read_table(layout.index)
    rows = [row for row in table.to_pylist() if row["shard"] == shard]
    row = rows[len(rows) // 2]
    path = Path(layout.folder("shards")) / shard
    content = bytearray(path.read_bytes())
    content[row["offset_bytes"] + row["size_bytes"] // 2] ^= 0x10
    path.write_bytes(content)
    return row["key"], row["offset_bytes"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_flipped_bit_raises_with_shard_key_and_offset(copied: Layout, num_workers: int):
    key, offset = damage(copied)
    with pytest.raises(ChecksumError, match=rf"(?s)shard-00001\.tar.*{key}.*{offset}"):
        keys(loader(dataset(copied, batch_size=4), num_workers))


def test_truncated_shard_raises(copied: Layout):
    path = Path(copied.folder("shards")) / "shard-00001.tar"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(FormatError, match=r"shard-00001\.tar.*truncated"):
        keys(dataset(copied, batch_size=4))


def test_missing_shard_raises(copied: Layout):
    (Path(copied.folder("shards")) / "shard-00001.tar").unlink()
    with pytest.raises(SourceNotFoundError, match=r"shard-00001\.tar"):
        keys(dataset(copied, batch_size=4))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("fault", ["flip", "truncate", "delete"])
def test_skipping_keeps_order_and_steps(
    copied: Layout, expected: list[str], num_workers: int, fault: str, caplog: pytest.LogCaptureFixture
):
    path = Path(copied.folder("shards")) / "shard-00001.tar"
    table = pq.read_table(copied.index, columns=["key", "shard"]).to_pylist()
    lost = {row["key"] for row in table if row["shard"] == path.name}
    if fault == "flip":
        lost = {damage(copied)[0]}
    elif fault == "truncate":
        path.write_bytes(path.read_bytes()[:-5000])
    else:
        path.unlink()
    data = dataset(copied, batch_size=GLOBAL_BATCH, on_error="skip")
    batches = list(loader(data, num_workers))
    assert keys(batches) == expected
    lost &= set(expected)
    assert lost
    invalid = {
        key
        for batch in batches
        for key, valid in zip(batch.info.keys, batch.is_valid, strict=True)
        if not valid
    }
    skipped = [skip for batch in batches for skip in batch.info.skipped]
    assert invalid == {skip.key for skip in skipped} == lost
    assert len(skipped) == len(lost)
    for skip in skipped:
        assert skip.shard.endswith("shard-00001.tar")
        assert skip.reason
        assert expected[skip.position] == skip.key
    for batch in batches:
        gone = ~batch.is_valid
        assert not batch.pictures[gone].any()
        assert not batch.picture_mask[gone].any()
        assert not batch.delta_mask[gone].any()
    assert data.num_skipped == len(lost)
    if num_workers == 0:
        keys(data)  # said once, however often it is met
        assert caplog.text.count("samples that cannot be read are skipped") == 1


def test_what_is_no_samples_fault_is_not_skipped(copied: Layout, tmp_path: Path):
    """A cache without room, say: an epoch of empty batches would be worse than none."""
    store = fsspec.filesystem("memory")
    store.put(copied.dataset, "/no-room", recursive=True)
    reader = ShardReader(cache_dir=str(tmp_path / "cache"), cache_bytes=10)
    data = GopDataset("memory://no-room", batch_size=4, on_error="skip", reader=reader)
    with pytest.raises(ConfigurationError, match="10"):
        next(iter(data))
    store.rm("/no-room", recursive=True)


def test_a_store_that_is_gone_is_not_skipped(copied: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stream, "MAX_FAILURES_IN_ROW", 20)
    for path in Path(copied.folder("shards")).glob("*.tar"):
        path.unlink()
    with pytest.raises(SourceNotFoundError):
        keys(dataset(copied, batch_size=4, on_error="skip"))


def test_shard_of_another_spec_is_told_from_damage(copied: Layout, datasets, media, tmp_path: Path):
    """Put there by hand: the same videos, another quality."""
    folder = tmp_path / "other"
    folder.mkdir()
    other = datasets.make_dataset(folder, media, specs=datasets.OTHER_SPECS)
    name = "shard-00000.tar"
    path = Path(copied.folder("shards")) / name
    content = (Path(other.folder("shards")) / name).read_bytes()
    size = path.stat().st_size
    path.write_bytes(content[:size].ljust(size, b"\0"))
    with pytest.raises(FormatError, match=r"replaced|another"):
        keys(dataset(copied, batch_size=1))


def test_index_of_a_newer_version_fails(copied: Layout):
    table = pq.read_table(copied.index)
    newer = table.replace_schema_metadata({"cope_prep.schema_version": "99"})
    storage.publish_table(copied.index, newer)
    with pytest.raises(FormatError, match="99"):
        dataset(copied)


def test_torch_generator_state_is_left_alone(small: Layout):
    """Augmentation of the user's own must not depend on the loader."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    keys(dataset(small, batch_size=4))
    assert torch.equal(torch.rand(3), expected)
