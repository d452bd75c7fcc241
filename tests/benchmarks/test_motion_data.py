"""The motion benchmark's data, through the commands: every answer about motion can be read from the primitives."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "motion"))  # scripts, in no package
import make_data
import oracle
import questions
import scenes

from cope_prep.pipeline.loader import GopDataset, QADataset

NUM_TRAIN, NUM_TEST = 40, 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources and datasets of a few videos."""
    folder = tmp_path_factory.mktemp("motion")
    make_data.make_sources(folder, num_train=NUM_TRAIN, num_test=NUM_TEST, seed=5, processes=1)
    make_data.make_datasets(folder, use_ray=False)
    return folder


@pytest.mark.parametrize("split", make_data.SPLITS)
def test_a_reader_of_the_vectors_answers_the_questions(folder: Path, split: str) -> None:
    found = oracle.accuracies(str(folder / "datasets" / split))
    assert set(found) == set(questions.MOTION_TYPES)
    right, total = (sum(counts) for counts in zip(*found.values(), strict=True))
    assert total >= (NUM_TRAIN if split == "train" else NUM_TEST)
    assert right / total >= 0.95


def test_every_video_is_one_whole_gop(folder: Path) -> None:
    for split, count in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        dataset = GopDataset(str(folder / "datasets" / split), batch_size=4, shuffle=None)
        batches = list(dataset)
        assert sum(map(len, batches)) == count
        for batch in batches:
            assert batch.delta_mask.shape == (4, scenes.NUM_WINDOWS)
            assert batch.delta_mask.all()
            assert batch.motion.shape[2:] == (16, 16, 2)
        (index,) = (folder / "datasets" / split / "shards").glob("*/index.parquet")
        assert pq.read_table(index)["num_frames"].to_pylist() == [scenes.NUM_FRAMES] * count


def test_test_records_are_single_questions_of_a_named_type(folder: Path) -> None:
    records = [batch.questions[0] for batch in QADataset(str(folder / "datasets/test"), shuffle=None)]
    assert Counter(len(record.turns) for record in records) == {2: len(records)}
    for record in records:
        (_, asked), (_, answered) = record.turns
        kind, _, name = record.data_source.partition("_")
        assert name == questions.type_of(asked)
        assert kind == ("still" if name in questions.CONTROL_TYPES else "motion")
        assert answered in questions.ANSWERS[name]


def test_train_records_are_conversations_with_all_questions_of_a_video(folder: Path) -> None:
    every = [batch.questions[0] for batch in QADataset(str(folder / "datasets/train"), shuffle=None)]
    records = [record for record in every if record.kind == "oe"]
    assert len(records) == len({record.video_id for record in records}) == NUM_TRAIN
    for record in records:
        index = int(record.video_id[-9:-4])
        types = [questions.type_of(text) for speaker, text in record.turns if speaker == "human"]
        answers = scenes.plan_script(index, split="train", seed=5).answers
        assert sorted(types) == sorted([*answers, *questions.CONTROL_TYPES])


def test_pictures_alone_are_asked_about_in_a_file_of_their_own(folder: Path) -> None:
    every = [batch.questions[0] for batch in QADataset(str(folder / "datasets/train"), shuffle=None)]
    records = [record for record in every if record.kind == "mc"]
    assert len(records) == len({record.video_id for record in records}) == NUM_TRAIN
    for record in records:
        types = [questions.type_of(text) for speaker, text in record.turns if speaker == "human"]
        assert sorted(types) == sorted(questions.CONTROL_TYPES)
        assert record.data_source == "still_train"


def test_what_is_there_is_not_made_again(folder: Path) -> None:
    root = folder / "sources" / "test"
    records = json.loads((root / make_data.QUESTION_FILE).read_text())
    videos = sorted((root / make_data.VIDEO_FOLDER).glob("*.mp4"))
    before = {path: path.stat().st_mtime_ns for path in videos}
    content = videos[3].read_bytes()
    videos[3].unlink()
    make_data.make_sources(folder, num_train=0, num_test=NUM_TEST, seed=5, processes=1)
    after = {path: path.stat().st_mtime_ns for path in videos}
    assert [path for path in videos if before[path] != after[path]] == [videos[3]]
    assert videos[3].read_bytes() == content
    assert json.loads((root / make_data.QUESTION_FILE).read_text()) == records


def test_a_folder_of_another_seed_fails(folder: Path) -> None:
    with pytest.raises(SystemExit, match="made with seed 5, not 6"):
        make_data.make_sources(folder, num_train=1, num_test=1, seed=6)
