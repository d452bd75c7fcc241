"""Questions with the GOPs of their videos: which, in what layout, and read how often."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader import GopFilter, MixPart, QABatch, QADataset, ShardReader, TokenCounts
from cope_prep.pipeline.loader.batch import DELTA, PICTURE, RUN_FIELDS, GopBatch
from cope_prep.pipeline.rebuild import rebuild_anchors
from cope_prep.pipeline.tar import split_sample
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.errors import ChecksumError, ConfigurationError
from cope_prep.schemas.records import GopRecord
from cope_prep.schemas.wire import decode_gop

Row = dict[str, Any]
NUM_QUESTIONS = 120
FULL_ANCHORS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of tokens, by the slow reference."""

    kind: int
    key: str
    slot: int
    time_s: float
    num_tokens: int


@pytest.fixture(scope="module")
def lengths(datasets: ModuleType, media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Nine videos of 1, 2, ... 9 GOPs."""
    return datasets.make_dataset(
        tmp_path_factory.mktemp("lengths"),
        media,
        num_videos=9,
        clip_frames=[32 * num_gops for num_gops in range(1, 10)],
        questions_per_video=1,
    )


def gops_by_video(layout: Layout) -> dict[str, list[Row]]:
    """The index's rows of each video, in order of their GOPs."""
    found: dict[str, list[Row]] = {}
    for row in storage.read_table(layout.index, INDEX).to_pylist():
        found.setdefault(row["video_id"], []).append(row)
    return {video_id: sorted(rows, key=lambda row: row["gop_index"]) for video_id, rows in found.items()}


def read_record(layout: Layout, row: Row) -> GopRecord:
    shard = storage.join(layout.folder("shards"), row["shard"])
    content = storage.read_bytes(shard, row["offset_bytes"], row["size_bytes"])
    key, members = split_sample(content, name=row["key"])
    return decode_gop(members, key=key)


def slow_runs(
    rows: list[Row], *, key_frames: int, window: int = 4, tokens: tuple[int, int] = (210, 8)
) -> list[Run]:
    """Anchors in order of time: every (8 / key_frames)-th of a GOP is a picture."""
    anchors_of_full = (32 - 1) // window + 1
    runs = []
    for row in rows:
        num_pictures = num_deltas = 0
        for anchor in range((row["num_frames"] - 1) // window + 1):
            time_s = round(row["start_s"] + anchor * window / 30, 6)
            if anchor % (anchors_of_full // key_frames) == 0:
                runs.append(
                    Run(
                        kind=PICTURE,
                        key=row["key"],
                        slot=num_pictures,
                        time_s=time_s,
                        num_tokens=tokens[0],
                    )
                )
                num_pictures += 1
            else:
                runs.append(
                    Run(kind=DELTA, key=row["key"], slot=num_deltas, time_s=time_s, num_tokens=tokens[1])
                )
                num_deltas += 1
    return runs


def runs_of(batch: QABatch, question: int) -> list[Run]:
    """The runs of a question of a batch, whose padding is checked to be zeros."""
    num_runs = int((batch.run_kind[question] != 0).sum())
    for name in RUN_FIELDS[:-2]:
        assert not getattr(batch, name)[question, num_runs:].any()
    return [
        Run(
            kind=int(batch.run_kind[question, run]),
            key=batch.info.keys[int(batch.run_gop[question, run])],
            slot=int(batch.run_slot[question, run]),
            time_s=round(float(batch.run_s[question, run]), 6),
            num_tokens=int(batch.run_tokens[question, run]),
        )
        for run in range(num_runs)
    ]


def gops_of(batch: QABatch, question: int) -> list[int]:
    """gop_index of the GOPs of a question, in the order of its runs."""
    rows = list(dict.fromkeys(batch.run_gop[question][batch.run_kind[question] != 0].tolist()))
    video_id = batch.questions[question].video_id
    assert {batch.info.video_ids[row] for row in rows} <= {video_id}
    return batch.gops.gop_index[rows].tolist()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_each_question_comes_once_with_all_gops_of_its_video(
    small: Layout, reader: ShardReader, batch_size: int
) -> None:
    gops = gops_by_video(small)
    seen: Counter[str] = Counter()
    for batch in QADataset(small.dataset, batch_size=batch_size, reader=reader):
        assert len(batch) == len(batch.questions) == batch_size
        assert batch.question_is_valid.all()
        for question, record in enumerate(batch.questions):
            seen[record.question_id] += 1
            assert gops_of(batch, question) == list(range(len(gops[record.video_id])))
    assert len(seen) == NUM_QUESTIONS
    assert set(seen.values()) == {1}


@pytest.mark.parametrize(("key_frames", "window"), [(1, 4), (2, 4), (4, 4), (8, 4), (1, 8), (4, 8), (2, 16)])
def test_runs_are_those_of_a_slow_reading(
    small: Layout, reader: ShardReader, key_frames: int, window: int
) -> None:
    gops = gops_by_video(small)
    dataset = QADataset(small.dataset, batch_size=8, key_frames=key_frames, window=window, reader=reader)
    num_seen = num_kinds = 0
    for batch in dataset:
        for question, record in enumerate(batch.questions):
            expected = slow_runs(gops[record.video_id], key_frames=key_frames, window=window)
            assert runs_of(batch, question) == expected
            num_kinds = max(num_kinds, len({run.kind for run in expected}))
            num_seen += 1
    assert num_seen == NUM_QUESTIONS
    assert num_kinds == (1 if key_frames == (32 - 1) // window + 1 else 2)


@pytest.mark.parametrize(("key_frames", "num_tokens"), [(1, 266), (2, 468), (4, 872), (8, 1680)])
def test_tokens_of_a_full_gop(small: Layout, reader: ShardReader, key_frames: int, num_tokens: int) -> None:
    gops = gops_by_video(small)
    num_full = 0
    for batch in QADataset(small.dataset, batch_size=8, key_frames=key_frames, reader=reader):
        for question, record in enumerate(batch.questions):
            if [row["num_frames"] for row in gops[record.video_id]] == [32]:
                assert batch.run_tokens[question].sum() == num_tokens
                num_full += 1
        for row, key in enumerate(batch.info.keys):
            if (batch.gops.kind[row] != 0).sum() == FULL_ANCHORS:
                assert batch.gops.num_tokens[row].sum() == num_tokens, key
    assert num_full == 30


def test_token_counts_can_be_others(small: Layout, reader: ShardReader) -> None:
    gops = gops_by_video(small)
    tokens = TokenCounts(picture=197, delta=4)
    batch = next(iter(QADataset(small.dataset, tokens=tokens, key_frames=2, reader=reader)))
    expected = slow_runs(gops[batch.questions[0].video_id], key_frames=2, tokens=(197, 4))
    assert runs_of(batch, 0) == expected


@pytest.mark.parametrize("key_frames", [1, 4])
def test_runs_lead_to_the_pictures_and_deltas_of_their_time(
    small: Layout, reader: ShardReader, key_frames: int
) -> None:
    gops = gops_by_video(small)
    rows = {row["key"]: row for of_video in gops.values() for row in of_video}
    dataset = QADataset(small.dataset, batch_size=5, key_frames=key_frames, reader=reader)
    found: Counter[int] = Counter()
    for batch, _ in zip(dataset, range(3), strict=False):
        for question in range(5):
            is_run = batch.run_kind[question] != 0
            for kind, row, slot, time_s in zip(
                *(getattr(batch, name)[question][is_run].tolist() for name in RUN_FIELDS[:4]), strict=True
            ):
                about = rows[batch.info.keys[row]]
                record = read_record(small, about)
                anchor = round((time_s - about["start_s"]) * 30 / 4)
                if kind == PICTURE:
                    assert batch.gops.picture_s[row, slot] == time_s
                    assert np.array_equal(batch.gops.pictures[row, slot], rebuild_anchors(record)[anchor])
                else:
                    assert batch.gops.delta_s[row, slot] == time_s
                    window = record.windows[anchor - 1]
                    assert np.array_equal(batch.gops.motion[row, slot], window.motion)
                    assert batch.gops.motion_step_px[row, slot] == window.motion_step_px
                found[kind] += 1
    assert min(found[PICTURE], found[DELTA]) > 15


@pytest.mark.parametrize(
    "span_s", [(0.0, 0.1), (1.0, 1.1), (32 / 30, 64 / 30), (0.5, 2.5), (2.2, 100.0), (0.0, 1000.0)]
)
def test_span_takes_the_gops_that_show_something_of_it(
    small: Layout, reader: ShardReader, span_s: tuple[float, float]
) -> None:
    expected = {}
    for video_id, rows in gops_by_video(small).items():
        frames_s = [
            (row["gop_index"], row["start_s"] + frame / 30)
            for row in rows
            for frame in range(row["num_frames"])
        ]
        # A frame is shown from its time until the next one's, 1/30 s later.
        shown = {
            gop for gop, at_s in frames_s if at_s + 1 / 30 > span_s[0] + 1e-9 and at_s < span_s[1] - 1e-9
        }
        expected[video_id] = sorted(shown)
    dataset = QADataset(small.dataset, batch_size=1, span_s=span_s, reader=reader)
    found = {batch.questions[0].video_id: gops_of(batch, 0) for batch in dataset}
    assert found == {video_id: gops for video_id, gops in expected.items() if gops}
    num_without = 3 * sum(not gops for gops in expected.values())
    assert dataset.num_questions_outside_span == num_without
    assert dataset.num_questions_without_video == 0
    assert len(dataset) == NUM_QUESTIONS - num_without


@pytest.mark.parametrize("max_gops", range(1, 11))
def test_max_gops_are_spread_evenly(lengths: Layout, reader: ShardReader, max_gops: int) -> None:
    dataset = QADataset(lengths.dataset, max_gops=max_gops, reader=reader)
    found = {batch.questions[0].video_id: gops_of(batch, 0) for batch in dataset}
    assert len(found) == 9
    duration_s = {batch.questions[0].video_id: float(batch.duration_s[0]) for batch in dataset}
    for video_id, rows in gops_by_video(lengths).items():
        count = len(rows)
        taken = min(count, max_gops)
        assert duration_s[video_id] == pytest.approx(sum(row["num_frames"] for row in rows) / 30)
        gops = found[video_id]
        assert len(gops) == taken
        assert gops[0] == 0
        # Going round, neighbours are as far apart as whole numbers allow.
        gaps = np.diff([*gops, count])
        assert set(gaps.tolist()) <= {count // taken, -(-count // taken)}
        assert gops == [-(-place * count // taken) for place in range(taken)]


def test_max_gops_of_a_span(lengths: Layout, reader: ShardReader) -> None:
    start_s = 3 * 32 / 30
    dataset = QADataset(lengths.dataset, span_s=(start_s, 1000), max_gops=2, reader=reader)
    found = {len(gops_by_video(lengths)[batch.questions[0].video_id]): gops_of(batch, 0) for batch in dataset}
    assert found == {4: [3], 5: [3, 4], 6: [3, 5], 7: [3, 5], 8: [3, 6], 9: [3, 6]}


def test_gops_left_out_are_not_read(lengths: Layout, reader: ShardReader) -> None:
    sizes = {
        (video_id, row["gop_index"]): row["size_bytes"]
        for video_id, rows in gops_by_video(lengths).items()
        for row in rows
    }
    wanted = 0
    for batch in QADataset(lengths.dataset, max_gops=2, reader=reader):
        wanted += sum(sizes[batch.questions[0].video_id, gop] for gop in gops_of(batch, 0))
    assert reader.counters.bytes_read == wanted < sum(sizes.values())


def test_questions_of_one_video_share_its_gops(small: Layout, reader: ShardReader) -> None:
    gops = gops_by_video(small)
    dataset = QADataset(small.dataset, batch_size=6, questions_per_visit=3, reader=reader)
    num_shared = 0
    for batch in dataset:
        videos = list(dict.fromkeys(question.video_id for question in batch.questions))
        assert len(videos) == 2
        assert len(batch.info.keys) == len(set(batch.info.keys)) == sum(len(gops[video]) for video in videos)
        for question, other in ((0, 1), (0, 2), (3, 4), (3, 5)):
            assert torch.equal(batch.run_gop[question], batch.run_gop[other])
            num_shared += 1
    assert num_shared == 80


def test_all_tensors_of_a_batch_are_views_of_one_block(small: Layout, reader: ShardReader) -> None:
    batch = next(iter(QADataset(small.dataset, batch_size=6, questions_per_visit=3, reader=reader)))
    block = batch.gops.buffer.memory.untyped_storage()
    tensors = [getattr(batch.gops, name) for name in GopBatch.tensor_names()]
    tensors += [getattr(batch, name) for name in RUN_FIELDS]
    assert {tensor.untyped_storage().data_ptr() for tensor in tensors} == {block.data_ptr()}
    # Each tensor has its place, and the places do not overlap: nothing is there twice.
    places = sorted(
        (tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors if tensor.nbytes
    )
    assert len(places) == len(tensors)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))
    assert sum(tensor.nbytes for tensor in tensors) <= block.nbytes()
    assert block.nbytes() < sum(tensor.nbytes + 64 for tensor in tensors)


@pytest.mark.parametrize(
    "settings",
    [
        {"questions_per_visit": 3},
        {"questions_per_visit": 3, "batch_size": 2},
        {"shuffle": None},
        {"shuffle": None, "batch_size": 3, "keep_bytes": 0},
        {"questions_per_visit": 3, "batch_size": 3, "keep_bytes": 0},
        {"questions_per_visit": 3, "keep_bytes": 100_000},
    ],
    ids=str,
)
def test_a_video_is_read_once_for_its_neighbouring_questions(
    small: Layout, reader: ShardReader, settings: dict[str, Any]
) -> None:
    size_bytes = sum(row["size_bytes"] for rows in gops_by_video(small).values() for row in rows)
    num_batches = sum(1 for _ in QADataset(small.dataset, reader=reader, **settings))
    assert num_batches == NUM_QUESTIONS // settings.get("batch_size", 1)
    assert reader.counters.bytes_read == size_bytes


def test_a_video_is_read_for_each_question_where_nothing_is_kept(small: Layout, reader: ShardReader) -> None:
    """The test above can fail: without keeping, and one question a batch, it is three times the bytes."""
    size_bytes = sum(row["size_bytes"] for rows in gops_by_video(small).values() for row in rows)
    assert len(list(QADataset(small.dataset, reader=reader, keep_bytes=0))) == NUM_QUESTIONS
    assert reader.counters.bytes_read == 3 * size_bytes


@pytest.mark.parametrize(("visit", "sizes"), [(2, {(2, 20), (1, 20)}), (3, {(3, 40)}), (7, {(3, 40)})])
def test_questions_per_visit_stay_side_by_side(
    small: Layout, reader: ShardReader, visit: int, sizes: set[tuple[int, int]]
) -> None:
    order = [
        batch.questions[0] for batch in QADataset(small.dataset, questions_per_visit=visit, reader=reader)
    ]
    assert len({question.question_id for question in order}) == NUM_QUESTIONS
    place = {question.question_id: index for index, question in enumerate(order)}
    num_beside = 0
    for video_id in {question.video_id for question in order}:
        numbers = sorted(
            (int(question.question_id.rpartition("#")[2]), place[question.question_id])
            for question in order
            if question.video_id == video_id
        )
        assert [number for number, _ in numbers] == [0, 1, 2]
        for (number, index), (_, following) in itertools.pairwise(numbers):
            if (number + 1) % visit:
                assert following == index + 1
                num_beside += 1
    assert num_beside == {2: 40, 3: 80, 7: 80}[visit]


def test_single_questions_are_apart(small: Layout, reader: ShardReader) -> None:
    order = [batch.questions[0].video_id for batch in QADataset(small.dataset, reader=reader)]
    num_beside = sum(before == after for before, after in itertools.pairwise(order))
    assert num_beside < 12  # 2 on average for a random order, 80 in storage order


def damage(layout: Layout, row: Row, *, at: float = 0.5) -> str:
    """Flip a bit in the middle of a sample; returns the shard."""
    shard = Path(layout.folder("shards"), row["shard"])
    content = bytearray(shard.read_bytes())
    content[row["offset_bytes"] + int(at * row["size_bytes"])] ^= 0x10
    shard.write_bytes(content)
    return str(shard)


def test_damaged_gop_leaves_out_the_questions_about_its_video(
    small: Layout, copied: Layout, reader: ShardReader, tmp_path: Path
) -> None:
    gops = gops_by_video(copied)
    video_id = max(gops, key=lambda name: (len(gops[name]), name))
    row = gops[video_id][1]
    assert len(gops[video_id]) == 4
    shard = damage(copied, row)

    settings: dict[str, Any] = {"batch_size": 4, "key_frames": 2}
    intact = list(QADataset(small.dataset, reader=reader, **settings))
    other_reader = ShardReader(cache_dir=str(tmp_path / "other"))
    damaged = list(QADataset(copied.dataset, on_error="skip", reader=other_reader, **settings))
    assert len(damaged) == len(intact) == 30
    num_hit = 0
    for before, after in zip(intact, damaged, strict=True):
        assert after.questions == before.questions
        assert after.info.keys == before.info.keys
        is_about_it = [question.video_id == video_id for question in after.questions]
        assert after.question_is_valid.tolist() == [not hit for hit in is_about_it]
        bad_row = after.info.keys.index(row["key"]) if any(is_about_it) else -1
        assert after.gops.is_valid.tolist() == [index != bad_row for index in range(len(after.info.keys))]
        for question, hit in enumerate(is_about_it):
            for name in RUN_FIELDS[:-2]:
                values = getattr(after, name)[question]
                assert torch.equal(
                    values, torch.zeros_like(values) if hit else getattr(before, name)[question]
                )
        for name in GopBatch.tensor_names():
            for index in range(len(after.info.keys)):
                if index != bad_row:
                    assert torch.equal(getattr(after.gops, name)[index], getattr(before.gops, name)[index])
        if any(is_about_it):
            num_hit += sum(is_about_it)
            (skipped,) = after.info.skipped
            assert (skipped.key, skipped.shard) == (row["key"], shard)
            assert skipped.offset_bytes == row["offset_bytes"]
            assert skipped.position in after.info.positions
            assert "damaged" in skipped.reason
            assert not after.gops.picture_mask[bad_row].any()
            assert not after.gops.pictures[bad_row].any()
        else:
            assert after.info.skipped == ()
    assert num_hit == 3


def test_damaged_gop_fails(copied: Layout, reader: ShardReader) -> None:
    row = next(iter(gops_by_video(copied).values()))[0]
    shard = damage(copied, row)
    with pytest.raises(ChecksumError) as caught:
        list(QADataset(copied.dataset, reader=reader))
    text = str(caught.value)
    assert shard in text
    assert row["key"] in text
    assert f"byte {row['offset_bytes']}" in text


def test_filter_judges_videos_and_keeps_all_their_gops(
    copied: Layout, reader: ShardReader, datasets: ModuleType
) -> None:
    table = storage.read_table(copied.index, INDEX).to_pylist()
    rng = np.random.default_rng(11)
    for row in table:
        row["motion_mean_px"] = [float(rng.integers(0, 9))] * row["num_windows"]
    datasets.write_index(copied, pa.Table.from_pylist(table, schema=INDEX))
    gops = gops_by_video(copied)
    expected, num_beyond = {}, 0
    for video_id, rows in gops.items():
        figures_px = [value for row in rows for value in row["motion_mean_px"]]
        if np.mean(figures_px) <= 4.5:
            expected[video_id] = list(range(len(rows)))
            num_beyond += max(figures_px) > 4.5
    assert 0 < len(expected) < 40
    assert num_beyond > 0  # GOPs that would be left out on their own
    dataset = QADataset(copied.dataset, where=GopFilter(max_motion_px=4.5), reader=reader)
    assert {batch.questions[0].video_id: gops_of(batch, 0) for batch in dataset} == expected


def test_mix_of_two_datasets_keeps_questions_with_their_own_videos(
    small: Layout, reader: ShardReader, datasets: ModuleType, media: ModuleType, tmp_path: Path
) -> None:
    """Both have videos of the same names; those of the second one are all of two GOPs."""
    other = datasets.make_dataset(tmp_path, media, num_videos=6, clip_frames=(64,), questions_per_video=2)
    parts = [MixPart(dataset=small.dataset, weight=0.5), MixPart(dataset=other.dataset, weight=2.5)]
    dataset = QADataset(parts, batch_size=2, questions_per_visit=2, key_frames=4, reader=reader)
    gops = {name: gops_by_video(layout) for name, layout in ((small.dataset, small), (other.dataset, other))}
    assert set(gops[other.dataset]) < set(gops[small.dataset])
    for epoch in range(2):
        dataset.set_epoch(epoch)
        composition: Counter[str] = Counter()
        for row in dataset.composition:
            composition[str(row["dataset"])] += row["num_units"]
        assert composition == {small.dataset: 60, other.dataset: 30}
        fitting: Counter[str] = Counter()
        for batch in dataset:
            for question, record in enumerate(batch.questions):
                runs = runs_of(batch, question)
                fits = [
                    name
                    for name in gops
                    if runs == slow_runs(gops[name].get(record.video_id, []), key_frames=4)
                ]
                assert len(fits) == 1
                fitting[fits[0]] += 1
        assert fitting == composition


def test_a_visit_does_not_hold_a_question_twice(small: Layout, reader: ShardReader) -> None:
    part = MixPart(dataset=small.dataset, weight=2.0)
    dataset = QADataset(part, batch_size=3, questions_per_visit=3, reader=reader)
    num_distinct = [len({question.question_id for question in batch.questions}) for batch in dataset]
    assert num_distinct == [3] * 80


def test_state_of_other_questions_of_the_same_number_fails(
    small: Layout, reader: ShardReader, tmp_path: Path
) -> None:
    path = "0_30_s_academic_v0_1/0_30_s_academic_v0_1_cap_processed.json"
    datasets = []
    for strategy in ("first:7", "end:7"):
        mix = tmp_path / f"{strategy}.yaml"
        mix.write_text(f"datasets: [{{json_path: {path}, sampling_strategy: '{strategy}'}}]")
        datasets.append(QADataset(small.dataset, mix=str(mix), reader=reader))
    with pytest.raises(ConfigurationError, match="belongs to another order"):
        datasets[1].load_state_dict(datasets[0].state_dict())


def test_workers_hand_over_the_same_batches(small: Layout, reader: ShardReader) -> None:
    dataset = QADataset(small.dataset, batch_size=8, key_frames=2, reader=reader)
    alone = list(dataset)
    loaded = list(DataLoader(dataset, batch_size=None, num_workers=2))
    assert len(alone) == len(loaded) == 15
    for before, after in zip(alone, loaded, strict=True):
        assert after.questions == before.questions
        assert after.info == before.info
        for name in GopBatch.tensor_names():
            assert torch.equal(getattr(after.gops, name), getattr(before.gops, name)), name
        for name in RUN_FIELDS:
            assert torch.equal(getattr(after, name), getattr(before, name)), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_gops": 0}, "max_gops 0: must be 1 or more"),
        ({"questions_per_visit": 0}, "questions_per_visit 0: must be 1 or more"),
        ({"span_s": (2.0, 2.0)}, r"span_s \(2.0, 2.0\): must be \(start, end\)"),
        ({"span_s": (1000.0, 1001.0)}, r"120 whose video shows nothing of span_s \(1000.0, 1001.0\)"),
        ({"key_frames": 3}, "key_frames 3: does not divide the 8 anchors .* Choose one of 1, 2, 4, 8"),
        ({"window": 6}, "window 6: is not a multiple of the 4 frames"),
    ],
)
def test_arguments_that_do_not_fit_fail(small: Layout, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        QADataset(small.dataset, **settings)
