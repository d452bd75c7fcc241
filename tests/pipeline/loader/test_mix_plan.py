"""What a plan says of a mix, against what QADataset shows and against sums over single records."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader import QADataset, ShardReader
from cope_prep.pipeline.loader.catalog import Catalog, open_shards, read_catalog
from cope_prep.pipeline.loader.mix_plan import MixPlan, plan_mix, read_any_mix
from cope_prep.pipeline.loader.mix_published import PUBLISHED, PUBLISHED_TOTAL, check_published
from cope_prep.pipeline.loader.primitives import gop_layout
from cope_prep.schemas.arrow import QUESTIONS
from cope_prep.schemas.errors import ConfigurationError

LLAVA_MIX = """
datasets:
  - json_path: /data/0_30_s_academic_v0_1/0_30_s_academic_v0_1_cap_processed.json
  - json_path: /data/0_30_s_academic_v0_1/0_30_s_academic_oe_v0_1_qa_processed.json
    sampling_strategy: first:7
  - json_path: /data/30_60_s_youtube_v0_1/30_60_s_youtube_mc_v0_1_qa_processed.json
    sampling_strategy: random:50%
  - json_path: /data/llava_hound/sharegptvideo_qa_255k_processed.json
"""


def write(folder: Path, text: str) -> str:
    path = folder / "mix.yaml"
    path.write_text(text)
    return str(path)


def plan_of(mix: str, *, dataset: str | None = None, seed: int = 0) -> MixPlan:
    parts = read_any_mix(mix, dataset=dataset)
    return plan_mix(parts, seed=seed, picture_tokens=210, delta_tokens=8)


def counts(plan: MixPlan) -> Counter[tuple[str, str]]:
    return Counter(
        {(source.source, kind.kind): kind.num_records for source in plan.sources for kind in source.kinds}
    )


def composition(dataset: QADataset) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for row in dataset.composition:
        found[row["name"].partition("/")[0], row["kind"]] += row["num_units"]
    return found


def all_questions(dataset: QADataset) -> list[Any]:
    return [question for batch in dataset for question in batch.questions]


def check_sums(plan: MixPlan, questions: list[Any], catalog: Catalog, layout: Layout) -> None:
    """Tokens, bytes and distinct videos, record by record."""
    samples: dict[str, list[int]] = {}
    for sample in range(len(catalog)):
        samples.setdefault(catalog.video_id(sample), []).append(sample)
    videos = [question.video_id for question in questions]
    assert plan.num_records == len(videos) > 0
    assert plan.num_videos == len(set(videos))
    video_bytes = {video: sum(catalog.size_bytes[of_video]) for video, of_video in samples.items()}
    assert plan.bytes_per_record == sum(video_bytes[video] for video in videos)
    assert plan.bytes_once == sum(video_bytes[video] for video in set(videos))
    assert [density.key_frames for density in plan.densities] == [1, 2, 4, 8]
    for density in plan.densities:
        num_tokens = 0
        for video in videos:
            for sample in samples[video]:
                gop = gop_layout(
                    num_frames=int(catalog.num_frames[sample]),
                    gop_size=layout.specs.encode.gop_size,
                    fps=layout.specs.encode.fps,
                    start_s=0.0,
                    window=layout.specs.extract.window,
                    key_frames=density.key_frames,
                )
                num_tokens += gop.num_pictures * 210 + gop.num_deltas * 8
        assert density.num_tokens == num_tokens
        assert density.tokens_per_record == pytest.approx(num_tokens / len(videos))
    by_kind: dict[tuple[str, str], set[str]] = {}
    for question in questions:
        by_kind.setdefault((question.subset, question.kind), set()).add(question.video_id)
    found = {(s.source, kind.kind): kind.num_videos for s in plan.sources for kind in s.kinds}
    assert found == {pair: len(videos) for pair, videos in by_kind.items()}
    for source in plan.sources:
        of_source = {q.video_id for q in questions if q.subset == source.source}
        assert source.num_videos == len(of_source)


def test_llava_mix_is_what_the_dataset_shows(small: Layout, reader: ShardReader, tmp_path: Path) -> None:
    mix = write(tmp_path, LLAVA_MIX)
    plan = plan_of(mix, dataset=small.dataset, seed=5)
    dataset = QADataset(small.dataset, mix=mix, seed=5, rank=0, world_size=1, reader=reader)
    assert counts(plan) == composition(dataset)
    assert plan.num_records == 20 + 7 + 10
    catalog = read_catalog(open_shards(small.dataset))
    check_sums(plan, all_questions(dataset), catalog, small)
    assert plan.not_video == ("/data/llava_hound/sharegptvideo_qa_255k_processed.json",)
    assert plan.left_out == ()
    assert plan.published is not None
    assert plan.published.status == "not compared"


def test_weighted_mix_is_what_the_dataset_shows(small: Layout, reader: ShardReader, tmp_path: Path) -> None:
    shutil.copytree(small.dataset, tmp_path / "other")
    mix = write(
        tmp_path,
        f"datasets:\n"
        f"  - {{dataset: {small.dataset}, weight: 0.35}}\n"
        f"  - {{dataset: other, weight: 1.5, filter: {{subsets: 30_60_s_youtube}}}}\n",
    )
    plan = plan_of(mix, seed=2)
    parts = read_any_mix(mix, dataset=None)
    dataset = QADataset(parts, seed=2, rank=0, world_size=1, reader=reader)
    assert counts_by_dataset(plan) == Counter(
        {
            (row["dataset"], row["name"].partition("/")[0], row["kind"]): row["num_units"]
            for row in dataset.composition
        }
    )
    assert plan.num_records == round(120 * 0.35) + 90
    left_out = plan.left_out[0]
    assert (left_out.reason, left_out.num_records, left_out.num_videos) == (
        "does not pass the filter",
        60,
        20,
    )
    assert left_out.examples[0].startswith("video-")


def counts_by_dataset(plan: MixPlan) -> Counter[tuple[str, str, str]]:
    return Counter(
        {
            (source.dataset, source.source, kind.kind): kind.num_records
            for source in plan.sources
            for kind in source.kinds
        }
    )


def test_sums_follow_weights(small: Layout, reader: ShardReader, tmp_path: Path) -> None:
    mix = write(tmp_path, f"datasets: [{{dataset: {small.dataset}, weight: 2.25}}]")
    plan = plan_of(mix)
    dataset = QADataset(read_any_mix(mix, dataset=None), rank=0, world_size=1, reader=reader)
    check_sums(plan, all_questions(dataset), read_catalog(open_shards(small.dataset)), small)
    assert plan.num_records == 270


def test_videos_that_are_not_in_the_shards_are_named(copied: Layout, datasets: ModuleType) -> None:
    lost = [
        datasets.question_row(f"lost-{index}.mp4", number, subset="0_30_s_academic")
        for index in range(2)
        for number in range(3)
    ]
    table = storage.read_table(copied.questions, QUESTIONS)
    storage.publish_table(
        copied.questions, pa.concat_tables([table, pa.Table.from_pylist(lost, schema=QUESTIONS)])
    )
    mix = write(Path(copied.dataset), f"datasets: [{{dataset: {copied.dataset}}}]")
    plan = plan_of(mix)
    assert plan.num_records == 120
    (left_out,) = plan.left_out
    assert (left_out.reason, left_out.num_records, left_out.num_videos) == ("not in the shards", 6, 2)
    assert sorted(left_out.examples) == ["lost-0.mp4", "lost-1.mp4"]
    assert plan.published is not None
    assert sum(plan.published.records.values()) == 126


def test_without_shards_tokens_and_bytes_are_not_known(copied: Layout, tmp_path: Path) -> None:
    shutil.rmtree(Path(copied.dataset, "shards"))
    plan = plan_of(write(tmp_path, LLAVA_MIX), dataset=copied.dataset)
    assert (plan.num_records, plan.num_videos) == (37, 37 - 7)
    assert (plan.densities, plan.bytes_once, plan.bytes_per_record) == ((), None, None)
    assert "no output of shards" in plan.unknown[0]
    assert plan.left_out == ()


def test_records_do_not_depend_on_shards(small: Layout, copied: Layout, tmp_path: Path) -> None:
    mix = write(tmp_path, LLAVA_MIX)
    with_shards = plan_of(mix, dataset=small.dataset, seed=9)
    shutil.rmtree(Path(copied.dataset, "shards"))
    assert counts(plan_of(mix, dataset=copied.dataset, seed=9)) == counts(with_shards)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LLAVA_MIX, "--dataset DATASET"),
        ("datasets: [{path: a}]", "is not a mix"),
        ("just text", "is not a mix"),
        ("datasets: [", "not valid YAML"),
    ],
)
def test_mix_that_cannot_be_read_fails(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        plan_of(write(tmp_path, text))


def test_dataset_beside_a_mix_that_names_its_own_fails(small: Layout, tmp_path: Path) -> None:
    mix = write(tmp_path, f"datasets: [{{dataset: {small.dataset}}}]")
    with pytest.raises(ConfigurationError, match="Leave out --dataset"):
        plan_of(mix, dataset=small.dataset)


def test_missing_mix_fails(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such mix file"):
        plan_of(str(tmp_path / "none.yaml"))


def test_filter_that_leaves_nothing_fails(small: Layout, tmp_path: Path) -> None:
    mix = write(
        tmp_path,
        f"datasets: [{{dataset: {small.dataset}}}, {{dataset: {small.dataset}, filter: {{min_motion_px: 1e6}}}}]",
    )
    with pytest.raises(ConfigurationError, match=r"has no GOP that passes the filter. Widen the filter"):
        plan_of(mix)


def test_dataset_without_questions_fails(copied: Layout, tmp_path: Path) -> None:
    Path(copied.questions).unlink()
    with pytest.raises(ConfigurationError, match="no table of questions"):
        plan_of(write(tmp_path, LLAVA_MIX), dataset=copied.dataset)


def published_records() -> dict[tuple[str, str], int]:
    """The published counts, spread over all folders."""
    folders = [
        f"{d}_{s}_v0_1" for d in ("0_30_s", "30_60_s", "1_2_m", "2_3_m") for s in ("academic", "youtube")
    ]
    records = {(folder, "cap"): 20_000 for folder in folders}
    records["0_30_s_youtube_v0_1", "cap"] += PUBLISHED["cap"] - 160_000
    records["1_2_m_youtube_v0_1", "oe"] = 960_792
    records["1_2_m_youtube_v0_1", "mc"] = 196_198
    records |= {("0_30_s_nextqa", "oe"): 17_090, ("0_30_s_nextqa", "mc"): 17_024}
    records |= {("1_2_m_activitynetqa", "oe"): 23_530, ("0_30_s_perceptiontest", "mc"): 2_403}
    return records


def test_published_counts_match() -> None:
    records = published_records()
    assert sum(PUBLISHED.values()) == sum(records.values()) == PUBLISHED_TOTAL == 1_395_547
    check = check_published(records | {("my_own_videos", "oe"): 17}, is_whole=True)
    assert check is not None
    assert check.status == "matches"
    assert check.records == PUBLISHED


def test_published_counts_differ_by_kind() -> None:
    records = published_records()
    records["0_30_s_nextqa", "mc"] -= 24
    check = check_published(records, is_whole=True)
    assert check is not None
    assert check.status == "differs"
    assert check.detail == "mc 215,601 of 215,625; together 1,395,523 of 1,395,547"


def test_part_of_it_is_not_compared() -> None:
    records = published_records()
    sampled = check_published(records, is_whole=False)
    assert sampled is not None
    assert sampled.status == "not compared"
    del records["2_3_m_academic_v0_1", "cap"], records["0_30_s_perceptiontest", "mc"]
    lacking = check_published(records, is_whole=True)
    assert lacking is not None
    assert lacking.detail == "there are no records of 2_3_m_academic, perceptiontest"
    assert check_published({("my_own_videos", "oe"): 5}, is_whole=True) is None
