"""The simulation against the datasets themselves (their order) and a replay in plain Python (who fetches what)."""

from __future__ import annotations

from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader import GopDataset, QADataset, ShardReader, Shuffle
from cope_prep.pipeline.loader.order import cut_chunks
from cope_prep.pipeline.loader.plan import StepPlan
from cope_prep.pipeline.loader.primitives import gop_layout
from cope_prep.pipeline.loader.samples import MAX_GAP_BYTES
from cope_prep.pipeline.loader.simulate import Cluster, simulate
from cope_prep.pipeline.loader.simulate_report import Simulation
from cope_prep.pipeline.loader.simulate_units import (
    EpochUnits,
    gop_units,
    open_index,
    order_of,
    question_units,
)
from cope_prep.pipeline.token_counts import gop_tokens
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.errors import ConfigurationError, FormatError

SHUFFLE = Shuffle(lanes=12, chunk_bytes=1 << 16, window_chunks=2)
TOKENS = {"key_frames": 1, "picture_tokens": 210, "delta_tokens": 8}


def units_of(small: Layout, kind: str, *, shuffle: Shuffle = SHUFFLE) -> EpochUnits:
    folder = open_index(small.dataset, spec=None, bare_specs=None)
    if kind == "gops":
        return gop_units(folder, shuffle=shuffle)
    return question_units(folder, small.questions, shuffle=shuffle, seed=0)


def cluster(**given: object) -> Cluster:
    values = {
        "num_ranks": 6,
        "num_workers": 2,
        "cache_bytes": 10**9,
        "bandwidth": 1e6,
        "batch_size": 2,
        "ranks_per_node": 2,
        "shuffle": SHUFFLE,
    }
    return Cluster(**(values | given))  # pyright: ignore[reportArgumentType]


def run(units: EpochUnits, **given: object) -> Simulation:
    return simulate(units, cluster(**given), **TOKENS)


def test_gops_are_in_the_datasets_own_order(small: Layout, reader: ShardReader) -> None:
    units = units_of(small, "gops")
    dataset = GopDataset(
        small.dataset, batch_size=5, shuffle=SHUFFLE, seed=3, rank=0, world_size=1, reader=reader
    )
    dataset.set_epoch(2)
    seen = [key for batch in dataset for key in batch.info.keys]
    order = order_of(units, shuffle=SHUFFLE, seed=3, epoch=2)
    assert seen == [dataset.store.key(int(sample)) for sample in units.first_sample[order]]
    assert len(seen) == len(units) == 90


def test_questions_are_in_the_datasets_own_order(small: Layout, reader: ShardReader) -> None:
    units = units_of(small, "questions")
    dataset = QADataset(
        small.dataset, batch_size=4, shuffle=SHUFFLE, seed=3, rank=0, world_size=1, reader=reader
    )
    dataset.set_epoch(1)
    seen = [question.video_id for batch in dataset for question in batch.questions]
    order = order_of(units, shuffle=SHUFFLE, seed=3, epoch=1)
    assert seen == [units.catalog.video_id(int(sample)) for sample in units.first_sample[order]]
    assert len(seen) == len(units) == 120
    np.testing.assert_array_equal(units.chunk, dataset.store.chunk)
    np.testing.assert_array_equal(units.chunk_bytes, dataset.store.chunk_bytes)


@pytest.mark.parametrize("kind", ["gops", "questions"])
@pytest.mark.parametrize("cache_bytes", [150_000, 400_000, 10**9])
def test_nodes_fetch_what_a_plain_replay_fetches(small: Layout, kind: str, cache_bytes: int) -> None:
    units = units_of(small, kind)
    found = run(units, cache_bytes=cache_bytes, num_epochs=2)
    expected = plain_replay(units, cache_bytes=cache_bytes, num_epochs=2)
    for epoch, (by_node, num_reads, num_misses) in zip(found.epochs, expected, strict=True):
        fetched = [sum(units.chunk_bytes[chunk] * count for chunk, count in node.items()) for node in by_node]
        assert epoch.node_bytes == tuple(fetched)
        assert epoch.num_fetches == sum(sum(node.values()) for node in by_node)
        assert epoch.num_reads == num_reads
        assert epoch.hit_share == pytest.approx(1 - num_misses / num_reads)
    shards = Counter()
    for node in expected[0][0]:
        for chunk, count in node.items():
            shards[shard_of(units, chunk)] += count * int(units.chunk_bytes[chunk])
    assert found.epochs[0].hottest_shard in shards
    assert found.epochs[0].egress == pytest.approx(sum(shards.values()) / found.epochs[0].wanted_bytes)


def plain_replay(
    units: EpochUnits, *, cache_bytes: int, num_epochs: int
) -> list[tuple[list[Counter[int]], int, int]]:
    """Each epoch: what every node fetched how often, the samples read, and those reads that fetched."""
    catalog = units.catalog
    chunk = cut_chunks(
        catalog.shard,
        catalog.offset_bytes,
        catalog.size_bytes,
        chunk_bytes=SHUFFLE.chunk_bytes,
        max_gap_bytes=MAX_GAP_BYTES,
        group=catalog.video if units.name == "questions" else None,
    )
    caches: list[OrderedDict[int, int]] = [OrderedDict() for _ in range(3)]
    epochs = []
    for epoch in range(num_epochs):
        order = order_of(units, shuffle=SHUFFLE, seed=0, epoch=epoch)
        fetched: list[Counter[int]] = [Counter() for _ in caches]
        num_reads = num_misses = 0
        plans = [
            StepPlan(num_units=len(units), consumed=0, batch_size=2, world_size=6, rank=rank, last="drop")
            for rank in range(6)
        ]
        for step in range(plans[0].num_steps):
            for rank, plan in enumerate(plans):
                cache = caches[rank // 2]
                for unit in order[plan.positions(step)]:
                    first = units.first_sample[unit]
                    for sample in range(first, first + units.num_samples[unit]):
                        num_reads += 1
                        wanted = int(chunk[sample])
                        if wanted in cache:
                            cache.move_to_end(wanted)
                            continue
                        num_misses += 1
                        fetched[rank // 2][wanted] += 1
                        size_bytes = int(units.chunk_bytes[wanted])
                        if sum(cache.values()) + size_bytes > cache_bytes:
                            while cache and sum(cache.values()) > int(cache_bytes * 0.9) - size_bytes:
                                cache.popitem(last=False)
                        cache[wanted] = size_bytes
        epochs.append((fetched, num_reads, num_misses))
    return epochs


def shard_of(units: EpochUnits, chunk: int) -> str:
    first = int(np.flatnonzero(units.chunk == chunk)[0])
    return units.catalog.shard_uris[units.catalog.shard[first]]


def test_one_node_with_room_fetches_every_byte_once(small: Layout) -> None:
    units = units_of(small, "gops")
    found = run(units, num_ranks=2, batch_size=3, num_epochs=2)
    assert found.num_nodes == 1
    assert found.num_dropped == 0
    first, second = found.epochs
    assert first.egress == first.hottest_shard_egress == 1.0
    assert first.node_bytes == (int(units.catalog.size_bytes.sum()),)
    assert second.node_bytes == (0,)
    assert second.hit_share == 1.0


def test_first_batch_is_what_the_busiest_node_fetches_for_it(small: Layout) -> None:
    units = units_of(small, "questions")
    found = run(units, num_ranks=2, ranks_per_node=1, batch_size=3)
    order = order_of(units, shuffle=SHUFFLE, seed=0, epoch=0)
    needed = []
    for rank in range(2):
        samples = [
            sample
            for unit in order[rank * 3 : rank * 3 + 3]
            for sample in range(units.first_sample[unit], units.first_sample[unit] + units.num_samples[unit])
        ]
        needed.append(sum(units.chunk_bytes[chunk] for chunk in {units.chunk[sample] for sample in samples}))
    assert found.first_batch.fetch_bytes == max(needed)
    assert found.first_batch.total_s == pytest.approx(found.plan.total_s + max(needed) / 1e6)
    assert found.first_batch.all_workers_bytes >= found.first_batch.fetch_bytes


def test_balance_is_that_of_the_ranks_samples(small: Layout) -> None:
    units = units_of(small, "questions")
    found = run(units)
    order = order_of(units, shuffle=SHUFFLE, seed=0, epoch=0)
    specs = small.specs
    rank_bytes, step_tokens = np.zeros(6), np.zeros((found.num_steps, 6))
    for place, unit in enumerate(order[: found.num_steps * 12]):
        step, rank = place // 12, place % 12 // 2
        for sample in range(units.first_sample[unit], units.first_sample[unit] + units.num_samples[unit]):
            rank_bytes[rank] += units.catalog.size_bytes[sample]
            layout = gop_layout(
                num_frames=int(units.catalog.num_frames[sample]),
                gop_size=specs.encode.gop_size,
                fps=specs.encode.fps,
                start_s=0.0,
                window=specs.extract.window,
                key_frames=1,
            )
            step_tokens[step, rank] += layout.num_pictures * 210 + layout.num_deltas * 8
    balance = found.balance
    assert balance.rank_bytes_max_over_mean == pytest.approx(rank_bytes.max() / rank_bytes.mean())
    assert balance.longest_step_tokens == step_tokens.max()
    assert balance.mean_step_tokens == pytest.approx(step_tokens.mean())
    slowest = (step_tokens.max(axis=1) / step_tokens.mean(axis=1)).mean()
    assert balance.slowest_over_mean == pytest.approx(slowest)
    assert balance.slowest_over_mean > 1


@pytest.mark.parametrize("key_frames", [1, 2, 4, 8])
def test_tokens_are_those_of_the_layout(key_frames: int) -> None:
    num_frames = np.arange(1, 241)
    found = gop_tokens(
        num_frames, gop_size=240, window=30, key_frames=key_frames, picture_tokens=210, delta_tokens=8
    )
    layouts = [
        gop_layout(num_frames=int(n), gop_size=240, fps=30, start_s=0.0, window=30, key_frames=key_frames)
        for n in num_frames
    ]
    assert found.tolist() == [layout.num_pictures * 210 + layout.num_deltas * 8 for layout in layouts]
    assert found[-1] == {1: 266, 2: 468, 4: 872, 8: 1680}[key_frames]


def test_tokens_at_an_impossible_density_fails() -> None:
    with pytest.raises(ConfigurationError, match="8 anchors"):
        gop_tokens(np.array([240]), gop_size=240, window=30, key_frames=3, picture_tokens=210, delta_tokens=8)


def test_bare_index_is_enough(small: Layout, tmp_path: Path) -> None:
    bare = str(tmp_path / "some.parquet")
    storage.publish_bytes(bare, storage.read_bytes(small.index))
    folder = open_index(bare, spec=None, bare_specs=small.specs)
    units = question_units(folder, small.questions, shuffle=SHUFFLE, seed=0)
    whole = run(units_of(small, "questions"), num_epochs=2)
    found = run(units, num_epochs=2)
    assert [epoch.node_bytes for epoch in found.epochs] == [epoch.node_bytes for epoch in whole.epochs]
    assert found.balance == whole.balance
    assert found.num_shards == whole.num_shards > 1


def test_index_beside_its_dataset_json_knows_its_settings(small: Layout) -> None:
    assert open_index(small.index, spec=None, bare_specs=None).specs == small.specs
    with pytest.raises(ConfigurationError, match="Leave out --fps"):
        open_index(small.index, spec=None, bare_specs=small.specs)


def test_lanes_that_the_batch_divides_save_fetches(small: Layout) -> None:
    fits, does_not = Shuffle(lanes=12, chunk_bytes=1 << 16), Shuffle(lanes=11, chunk_bytes=1 << 16)
    good = run(units_of(small, "questions", shuffle=fits), shuffle=fits)
    bad = run(units_of(small, "questions", shuffle=does_not), shuffle=does_not)
    assert good.warnings == ()
    assert "every node meets every shard" in bad.warnings[0]
    assert "--lanes 12" in bad.warnings[0]
    assert bad.epochs[0].egress > good.epochs[0].egress
    few = Shuffle(lanes=6, chunk_bytes=1 << 16)
    assert "2 times the 6 lanes" in run(units_of(small, "gops", shuffle=few), shuffle=few).warnings[0]
    assert run(units_of(small, "gops", shuffle=does_not), shuffle=does_not, ranks_per_node=6).warnings == ()


def test_cache_smaller_than_what_is_open_is_warned_of(small: Layout) -> None:
    units = units_of(small, "gops")
    open_bytes = int(12 / 3 * (2 + 1) * units.chunk_bytes.mean())
    enough, too_small = (run(units, cache_bytes=num_bytes) for num_bytes in (open_bytes, open_bytes // 2))
    assert enough.warnings == ()
    assert "reads from 12 chunks at a time" in too_small.warnings[0]
    assert too_small.epochs[0].egress > enough.epochs[0].egress


def test_slow_line_makes_the_model_wait(small: Layout) -> None:
    units = units_of(small, "gops")
    fast = run(units, bandwidth=1e15, step_time_s=0.5).epochs[0].needed
    slow = run(units, bandwidth=1e4, step_time_s=0.5).epochs[0].needed
    assert fast is not None
    assert slow is not None
    assert fast.epoch_s == pytest.approx(0.5 * 7)
    assert fast.wait_s == pytest.approx(0, abs=1e-6)
    busiest = max(run(units).epochs[0].node_bytes)
    assert slow.mean_bytes_per_s == pytest.approx(busiest / 3.5)
    assert busiest / 1e4 <= slow.epoch_s <= busiest / 1e4 + 3.5 + 0.5
    assert slow.wait_s == pytest.approx(slow.epoch_s - 3.5)
    assert run(units).epochs[0].needed is None


def test_dropped_units_and_questions_without_video_are_said(small: Layout, tmp_path: Path) -> None:
    assert run(units_of(small, "gops")).num_dropped == 90 % 12
    index = storage.read_table(small.index, INDEX)
    half = index.filter(np.isin(index["shard"].to_pylist(), index["shard"].unique().to_pylist()[:2]))
    bare = str(tmp_path / "half.parquet")
    storage.publish_table(bare, half)
    folder = open_index(bare, spec=None, bare_specs=small.specs)
    units = question_units(folder, small.questions, shuffle=SHUFFLE, seed=0)
    num_videos = len(half["video_id"].unique())
    assert 0 < num_videos < 40
    assert run(units, num_ranks=2).num_without_video == 120 - 3 * num_videos


def test_too_few_units_fails(small: Layout) -> None:
    with pytest.raises(ConfigurationError, match="fewer than one global batch of 1200"):
        run(units_of(small, "gops"), batch_size=200)


def test_cache_smaller_than_a_chunk_fails(small: Layout) -> None:
    with pytest.raises(ConfigurationError, match="cannot hold a chunk"):
        run(units_of(small, "gops"), cache_bytes=1000)


def test_file_that_is_no_index_fails(small: Layout) -> None:
    with pytest.raises(FormatError, match="not an index"):
        open_index(small.questions, spec=None, bare_specs=None)
