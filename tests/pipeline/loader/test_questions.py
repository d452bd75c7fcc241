"""Questions: the rows of the table, those that a LLaVA mix takes, and one unpacked copy for all processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import re
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader import GopDataset, GopFilter, MixPart, QADataset, ShardReader
from cope_prep.pipeline.loader import questions as questions_module
from cope_prep.pipeline.loader.questions import QuestionPlan, QuestionTexts, plan_questions
from cope_prep.pipeline.loader.shared_folder import LOCK_NAME
from cope_prep.pipeline.mix_yaml import parse_sampling
from cope_prep.schemas.arrow import QUESTIONS
from cope_prep.schemas.errors import ConfigurationError, FormatError, SchemaVersionError, StorageError
from cope_prep.schemas.records import QARecord
from cope_prep.schemas.specs import SCHEMA_VERSION

CAP = "0_30_s_academic_v0_1/0_30_s_academic_v0_1_cap_processed.json"
OE = "0_30_s_academic_v0_1/0_30_s_academic_oe_v0_1_qa_processed.json"
MC = "30_60_s_youtube_v0_1/30_60_s_youtube_mc_v0_1_qa_processed.json"
"""Three of the six question files of `small`, each with 20 questions."""


def rows_of(layout: Layout) -> list[dict[str, Any]]:
    return storage.read_table(layout.questions, QUESTIONS).to_pylist()


def as_record(row: dict[str, Any]) -> QARecord:
    turns = tuple((turn["from"], turn["value"]) for turn in row["turns"])
    return QARecord(**{**row, "turns": turns})


def all_videos(layout: Layout) -> pa.Array:
    return pa.array(sorted({row["video_id"] for row in rows_of(layout)}))


def write_mix(path: Path, entries: dict[str, str]) -> str:
    datasets = [{"json_path": name, "sampling_strategy": strategy} for name, strategy in entries.items()]
    path.write_text(yaml.safe_dump({"datasets": datasets}))
    return str(path)


def questions_of_epoch(dataset: QADataset) -> list[QARecord]:
    return [question for batch in dataset for question in batch.questions]


def test_records_are_the_rows_of_the_table(small: Layout, tmp_path: Path) -> None:
    rows = rows_of(small)
    texts = QuestionTexts(
        [plan_questions(small.questions, all_videos(small), mix=None, seed=0)], str(tmp_path)
    )
    places = random.Random(1).choices(range(len(rows)), k=200)
    for row in [0, len(rows) - 1, *places]:
        assert texts.record(0, row) == as_record(rows[row])


@pytest.fixture(scope="module")
def many(small: Layout, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    """A table of 36,000 rows, and the rows."""
    rows = [
        {**row, "question_id": f"{copy}/{row['question_id']}"}
        for copy in range(300)
        for row in rows_of(small)
    ]
    uri = str(tmp_path_factory.mktemp("many") / "questions.parquet")
    storage.publish_table(uri, pa.Table.from_pylist(rows, schema=QUESTIONS))
    return uri, rows


def test_tables_larger_than_a_batch_are_found_row_by_row(
    small: Layout, many: tuple[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Rows are unpacked 16,384 at a time; each row of the table must come back from its own batch."""
    uri, rows = many
    plan = plan_questions(uri, all_videos(small), mix=None, seed=0)
    assert len(plan) == len(rows) > 2 * 16384
    texts = QuestionTexts([plan], str(tmp_path))
    some = random.Random(2).sample(range(len(rows)), 50)
    for row in [0, 16383, 16384, 32767, 32768, len(rows) - 1, *some]:
        assert texts.record(0, row) == as_record(rows[row])


def test_questions_of_several_tables_are_told_apart(small: Layout, tmp_path: Path) -> None:
    rows = rows_of(small)
    other = str(tmp_path / "other.parquet")
    storage.publish_table(other, pa.Table.from_pylist(rows[::-1], schema=QUESTIONS))
    plans = [plan_questions(uri, all_videos(small), mix=None, seed=0) for uri in (small.questions, other)]
    texts = QuestionTexts(plans, str(tmp_path / "cache"))
    assert texts.record(0, 5) == as_record(rows[5])
    assert texts.record(1, 5) == as_record(rows[-6])


def test_changed_table_is_unpacked_anew(small: Layout, tmp_path: Path) -> None:
    rows = rows_of(small)
    uri = str(tmp_path / "questions.parquet")
    found = []
    for order in (1, -1):
        storage.publish_table(uri, pa.Table.from_pylist(rows[::order], schema=QUESTIONS))
        plan = plan_questions(uri, all_videos(small), mix=None, seed=0)
        found.append(QuestionTexts([plan], str(tmp_path / "cache")).record(0, 0))
    assert found == [as_record(rows[0]), as_record(rows[-1])]


def test_texts_survive_pickling_after_use(small: Layout, tmp_path: Path) -> None:
    texts = QuestionTexts(
        [plan_questions(small.questions, all_videos(small), mix=None, seed=0)], str(tmp_path)
    )
    before = texts.record(0, 7)
    assert pickle.loads(pickle.dumps(texts)).record(0, 7) == before


def _read_last(plan: QuestionPlan, cache_dir: str, barrier: Any, results: Any) -> None:
    barrier.wait()
    results.put(QuestionTexts([plan], cache_dir).record(0, len(plan) - 1))


def test_processes_that_unpack_at_once_all_read_the_same(
    small: Layout, many: tuple[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    uri, rows = many
    plan = plan_questions(uri, all_videos(small), mix=None, seed=0)
    context = multiprocessing.get_context("fork")  # as torch starts its workers
    barrier, results = context.Barrier(4), context.Queue()
    arguments = (plan, str(tmp_path), barrier, results)
    processes = [context.Process(target=_read_last, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert found == [as_record(rows[-1])] * 4
    assert len(unpacked(tmp_path)) == 1  # and nothing half made


def unpacked(folder: Path) -> list[Path]:
    """All files but the lock, hidden ones too."""
    return [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_NAME]


def test_processes_that_unpack_at_once_unpack_once(
    small: Layout,
    many: tuple[str, list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = plan_questions(many[0], all_videos(small), mix=None, seed=0)
    context = multiprocessing.get_context("fork")
    barrier, results, unpackings = context.Barrier(4), context.Queue(), context.Value("i", 0)
    unpack = questions_module._unpack

    def count_and_unpack(uri: str, out_fd: int) -> None:
        with unpackings.get_lock():
            unpackings.value += 1
        unpack(uri, out_fd)

    monkeypatch.setattr(questions_module, "_unpack", count_and_unpack)
    arguments = (plan, str(tmp_path / "texts"), barrier, results)
    processes = [context.Process(target=_read_last, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [as_record(many[1][-1])] * 4
    for process in processes:
        process.join(timeout=60)
    assert unpackings.value == 1


def _unpack_until_killed(plan: QuestionPlan, folder: str, is_writing: Any) -> None:
    def write_and_hang(uri: str, out_fd: int) -> None:
        os.write(out_fd, b"half of the texts")
        is_writing.set()
        threading.Event().wait()

    questions_module._unpack = write_and_hang
    QuestionTexts([plan], folder).record(0, 0)


def test_killed_while_unpacking_leaves_nothing_and_the_next_one_unpacks(
    small: Layout, tmp_path: Path
) -> None:
    plan = plan_questions(small.questions, all_videos(small), mix=None, seed=0)
    context = multiprocessing.get_context("fork")
    is_writing = context.Event()
    process = context.Process(target=_unpack_until_killed, args=(plan, str(tmp_path), is_writing))
    process.start()
    assert is_writing.wait(timeout=60)
    process.kill()
    process.join(timeout=60)
    assert unpacked(tmp_path) == []
    assert QuestionTexts([plan], str(tmp_path)).record(0, 3) == as_record(rows_of(small)[3])
    assert len(unpacked(tmp_path)) == 1


def test_folder_that_cannot_be_made_fails(small: Layout, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    plan = plan_questions(small.questions, all_videos(small), mix=None, seed=0)
    with pytest.raises(StorageError, match=r"cannot be unpacked there .* choose another cache folder"):
        QuestionTexts([plan], str(tmp_path / "file" / "texts")).record(0, 0)


@pytest.mark.parametrize(
    "entries",
    [
        {CAP: "all"},
        {CAP: "first:7"},
        {CAP: "end:7"},
        {CAP: "random:7", OE: "random:7"},
        {CAP: "first:25%", MC: "end:1%"},
        {CAP: "random:33%", OE: "first:0", MC: "all"},
        {CAP: "first:1000"},
    ],
    ids=str,
)
def test_mix_takes_exactly_the_rows_that_its_strategies_name(
    small: Layout, reader: ShardReader, tmp_path: Path, entries: dict[str, str]
) -> None:
    mix = write_mix(tmp_path / "mix.yaml", entries)
    rows = rows_of(small)
    expected = []
    for json_path, strategy in entries.items():
        of_file = [row["question_id"] for row in rows if row["json_path"] == json_path]
        assert len(of_file) == 20
        positions = parse_sampling(strategy).positions(20, seed=5, name=json_path)
        expected += [of_file[position] for position in positions]
    dataset = QADataset(small.dataset, mix=mix, seed=5, reader=reader)
    found = [question.question_id for question in questions_of_epoch(dataset)]
    assert sorted(found) == sorted(expected)
    assert len(found) == len(set(found)) > 0
    composition = {row["name"]: row["num_units"] for row in dataset.composition}
    assert composition == {
        json_path: number
        for json_path, strategy in entries.items()
        if (number := parse_sampling(strategy).num_taken(20))
    }


def test_strategies_take_the_numbers_of_rows_that_they_say(small: Layout, tmp_path: Path) -> None:
    """Not by mix_yaml's own arithmetic: 20 rows a file, a percentage is rounded up."""
    for strategy, expected in {"first:7": range(7), "end:7": range(13, 20), "first:26%": range(6)}.items():
        mix = write_mix(tmp_path / "mix.yaml", {CAP: strategy})
        plan = plan_questions(small.questions, all_videos(small), mix=mix, seed=0)
        of_file = [index for index, row in enumerate(rows_of(small)) if row["json_path"] == CAP]
        assert plan.row.tolist() == [of_file[position] for position in expected]
    for strategy, number in {"random:7": 7, "random:26%": 6, "random:100%": 20}.items():
        mix = write_mix(tmp_path / "mix.yaml", {CAP: strategy})
        plan = plan_questions(small.questions, all_videos(small), mix=mix, seed=0)
        assert len(set(plan.row.tolist())) == number


def test_random_strategy_depends_on_the_seed_alone(small: Layout, tmp_path: Path) -> None:
    mix = write_mix(tmp_path / "mix.yaml", {CAP: "random:50%"})

    def rows(seed: int) -> list[int]:
        return plan_questions(small.questions, all_videos(small), mix=mix, seed=seed).row.tolist()

    assert rows(0) == rows(0)
    assert len({tuple(rows(seed)) for seed in range(5)}) == 5


def test_mix_that_takes_no_row_fails(small: Layout, tmp_path: Path) -> None:
    mix = write_mix(tmp_path / "mix.yaml", {CAP: "first:0"})
    with pytest.raises(ConfigurationError, match="has no questions, or the mix takes none"):
        QADataset(small.dataset, mix=mix)


def test_mix_of_another_table_fails(small: Layout, tmp_path: Path) -> None:
    mix = write_mix(
        tmp_path / "mix.yaml", {"2_3_m_youtube_v0_1/2_3_m_youtube_v0_1_cap_processed.json": "all"}
    )
    with pytest.raises(ConfigurationError, match=r"1 of its 1 datasets cannot be used: .* is not there"):
        QADataset(small.dataset, mix=mix)


def test_mix_of_datasets_has_a_mix_for_each(small: Layout, reader: ShardReader, tmp_path: Path) -> None:
    parts = [
        MixPart(dataset=small.dataset, mix=write_mix(tmp_path / "a.yaml", {CAP: "first:4"})),
        MixPart(dataset=small.dataset, mix=write_mix(tmp_path / "b.yaml", {MC: "end:3"}), weight=2.0),
    ]
    found = Counter(question.json_path for question in questions_of_epoch(QADataset(parts, reader=reader)))
    assert found == {CAP: 4, MC: 6}
    with pytest.raises(ConfigurationError, match="Give each part of the mix its own"):
        QADataset(parts, mix=str(tmp_path / "a.yaml"))


def test_questions_without_their_video_are_counted(
    copied: Layout, reader: ShardReader, tmp_path: Path, datasets: Any
) -> None:
    rows = rows_of(copied)
    absent = [datasets.question_row("absent.mp4", number, subset="0_30_s_academic") for number in range(5)]
    storage.publish_table(copied.questions, pa.Table.from_pylist(absent + rows, schema=QUESTIONS))
    dataset = QADataset(copied.dataset, reader=reader)
    assert dataset.num_questions_without_video == 5
    found = questions_of_epoch(dataset)
    assert sorted(question.question_id for question in found) == sorted(row["question_id"] for row in rows)

    # The strategies count the records of the file as it is: two of its first three are about the absent video.
    mix = write_mix(tmp_path / "mix.yaml", {CAP: "first:3"})
    of_file = [index for index, row in enumerate(absent + rows) if row["json_path"] == CAP]
    assert of_file[:3] == [0, 3, 5]
    dataset = QADataset(copied.dataset, mix=mix, reader=reader)
    assert dataset.num_questions_without_video == 2
    assert [question.question_id for question in questions_of_epoch(dataset)] == [rows[0]["question_id"]]


def test_filter_counts_the_questions_of_the_videos_that_it_leaves_out(
    small: Layout, reader: ShardReader
) -> None:
    dataset = QADataset(small.dataset, where=GopFilter(subsets=("30_60_s_youtube",)), reader=reader)
    assert dataset.num_questions_without_video == 60
    videos = {question.video_id for question in questions_of_epoch(dataset)}
    assert videos == {f"video-{index:03d}.mp4" for index in range(1, 40, 2)}


def test_what_leaves_no_question_is_named(small: Layout, copied: Layout) -> None:
    other = GopFilter(subsets=("30_60_s_youtube",))
    rows = [row for row in rows_of(copied) if int(row["video_id"][-7:-4]) % 2 == 0]
    storage.publish_table(copied.questions, pa.Table.from_pylist(rows, schema=QUESTIONS))
    with pytest.raises(
        ConfigurationError,
        match=r"none of its 60 questions is left: 60 whose video does not pass the filter. Widen the filter",
    ):
        QADataset(copied.dataset, where=other)
    with pytest.raises(
        ConfigurationError,
        match=r"none of its 120 questions is left: 60 whose video does not pass the filter, 60 whose video shows "
        r"nothing of span_s \(99.0, 100.0\). Widen the filter, or choose another span_s",
    ):
        QADataset(small.dataset, where=other, span_s=(99.0, 100.0))


def test_mix_and_filter_beside_one_part(small: Layout, reader: ShardReader, tmp_path: Path) -> None:
    mix = write_mix(tmp_path / "mix.yaml", {CAP: "first:4", MC: "first:3"})
    where = GopFilter(subsets=("30_60_s_youtube",))
    part = MixPart(dataset=small.dataset, weight=2.0)
    for source, weight in ((small.dataset, 1), (part, 2), ([part], 2)):
        dataset = QADataset(source, mix=mix, where=where, reader=reader)
        found = Counter(question.json_path for question in questions_of_epoch(dataset))
        assert found == {MC: 3 * weight}
        assert dataset.num_questions_without_video == 4
    assert len(GopDataset(part, where=where, reader=reader)) == 2 * len(
        GopDataset(small.dataset, where=where, reader=reader)
    )
    for own in ({"mix": mix}, {"filter": where}):
        with pytest.raises(ConfigurationError, match=r"of its own. Give one of the two"):
            QADataset(MixPart(dataset=small.dataset, **own), mix=mix, where=where)
    with pytest.raises(
        ConfigurationError, match=r"is for one dataset, there are 2. Give each part .* own filter"
    ):
        GopDataset([part, part], where=where)


def test_no_question_about_these_videos_fails(copied: Layout, datasets: Any) -> None:
    rows = [datasets.question_row("absent.mp4", number, subset="a") for number in range(4)]
    storage.publish_table(copied.questions, pa.Table.from_pylist(rows, schema=QUESTIONS))
    with pytest.raises(
        ConfigurationError,
        match=r"none of its 4 questions is left: 4 whose video is not in the shards. Shard the videos",
    ):
        QADataset(copied.dataset)


def test_table_elsewhere_and_folder_of_shards(
    copied: Layout, small: Layout, reader: ShardReader, tmp_path: Path
) -> None:
    assert len(QADataset(copied.folder("shards"), reader=reader)) == 120
    elsewhere = str(tmp_path / "some questions.parquet")
    storage.publish_table(elsewhere, pa.Table.from_pylist(rows_of(small)[:9], schema=QUESTIONS))
    Path(copied.questions).unlink()
    dataset = QADataset(MixPart(dataset=copied.dataset, questions=elsewhere), reader=reader)
    assert len(dataset) == 9
    assert len(questions_of_epoch(dataset)) == 9


def test_missing_table_fails(copied: Layout) -> None:
    Path(copied.questions).unlink()
    message = (
        rf"{re.escape(copied.questions)}: there is no table of questions. .* cope-prep manifest llava-video"
    )
    for uri in (copied.dataset, copied.folder("shards")):
        with pytest.raises(ConfigurationError, match=message):
            QADataset(uri)


def test_what_is_no_table_of_questions_fails(copied: Layout) -> None:
    table = pq.read_table(copied.questions)
    newer = {b"cope_prep.schema_version": str(SCHEMA_VERSION + 1).encode()}
    Path(copied.questions).write_bytes(b"questions")
    with pytest.raises(FormatError, match="is not a readable Parquet table"):
        QADataset(copied.dataset)
    for damaged, message in (
        (table.drop_columns(["kind"]), r"has no column kind of type string"),
        (table.replace_schema_metadata(newer), r"has schema version 2, this is 1. Update cope-prep"),
    ):
        pq.write_table(damaged, copied.questions)
        with pytest.raises(SchemaVersionError, match=message):
            QADataset(copied.dataset)


def test_plan_gives_each_question_its_video(small: Layout) -> None:
    rows = rows_of(small)
    wanted = all_videos(small).take(np.array([9, 3, 30]))
    plan = plan_questions(small.questions, wanted, mix=None, seed=0)
    ids = wanted.to_pylist()
    assert len(plan) == 9
    assert [ids[video] for video in plan.video] == [rows[row]["video_id"] for row in plan.row]
    assert [plan.json_path[index].as_py() for index in range(9)] == [
        rows[row]["json_path"] for row in plan.row
    ]
    assert [plan.kind[index].as_py() for index in range(9)] == [rows[row]["kind"] for row in plan.row]
    assert plan.num_without_video == 111
