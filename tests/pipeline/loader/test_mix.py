"""Weights of a mix, its YAML file, and an epoch of two datasets counted key by key."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.loader import GopDataset, GopFilter, MixPart, QADataset, ShardReader, read_mix_parts
from cope_prep.pipeline.loader.mix import part_sizes, unit_copies
from cope_prep.schemas.errors import ConfigurationError
from cope_prep.schemas.specs import EncodeSpec, ExtractSpec, Int8Residual

WEIGHTS = (0.25, 1.0, 2.0, 2.5)
COUNTS = (40, 13, 7, 31)
PART_OF_UNIT = np.repeat(np.arange(4), COUNTS)


@pytest.fixture(scope="module")
def other(datasets: ModuleType, media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Eight more videos, with 18 GOPs."""
    return datasets.make_dataset(tmp_path_factory.mktemp("other"), media, num_videos=8, prefix="other")


def copies(epoch: int, seed: int = 0) -> np.ndarray:
    return unit_copies(PART_OF_UNIT, WEIGHTS, seed=seed, epoch=epoch)


@pytest.mark.parametrize("epoch", [0, 1, 50])
def test_every_unit_is_shown_its_weight_rounded_down_or_up(epoch: int) -> None:
    found = copies(epoch)
    sizes = []
    for part, (weight, count) in enumerate(zip(WEIGHTS, COUNTS, strict=True)):
        of_part = found[part == PART_OF_UNIT]
        assert len(of_part) == count
        assert set(of_part.tolist()) <= {int(np.floor(weight)), int(np.ceil(weight))}
        assert of_part.sum() == round(weight * count)
        sizes.append(int(of_part.sum()))
    assert sizes == part_sizes(PART_OF_UNIT, WEIGHTS) == [10, 13, 14, 78]


def test_another_choice_in_each_epoch_and_seed_and_the_same_for_the_same() -> None:
    choices = {copies(epoch, seed).tobytes() for epoch in range(20) for seed in range(2)}
    assert len(choices) == 40
    for epoch in range(20):
        assert np.array_equal(copies(epoch), copies(epoch))


def test_every_unit_has_its_turn_about_as_often() -> None:
    shown = np.sum([copies(epoch) for epoch in range(400)], axis=0)
    of_quarter = shown[PART_OF_UNIT == 0]
    assert of_quarter.sum() == 400 * 10
    # Binomial(400, 1/4): mean 100, standard deviation 8.7.
    assert 60 < of_quarter.min() <= of_quarter.max() < 140


def test_weight_of_one_part_does_not_touch_the_others() -> None:
    changed = unit_copies(PART_OF_UNIT, (0.25, 1.0, 3.0, 2.5), seed=0, epoch=0)
    untouched = PART_OF_UNIT != 2
    assert np.array_equal(changed[untouched], copies(0)[untouched])


def keys_of_epoch(dataset: GopDataset, epoch: int) -> Counter[str]:
    dataset.set_epoch(epoch)
    return Counter(key for batch in dataset for key in batch.info.keys)


def test_epoch_of_two_datasets_is_composed_exactly(small: Layout, other: Layout, reader: ShardReader) -> None:
    parts = [MixPart(dataset=small.dataset, weight=0.5), MixPart(dataset=other.dataset, weight=2.5)]
    dataset = GopDataset(parts, reader=reader, batch_size=1)
    ours = {key for batch in GopDataset(small.dataset, reader=reader) for key in batch.info.keys}
    theirs = {key for batch in GopDataset(other.dataset, reader=reader) for key in batch.info.keys}
    assert (len(ours), len(theirs)) == (90, 18)
    choices = []
    for epoch in range(2):
        found = keys_of_epoch(dataset, epoch)
        assert set(found) <= ours | theirs
        assert sum(found[key] for key in ours) == 45
        assert {found[key] for key in ours} == {0, 1}
        assert sum(found[key] for key in theirs) == 45
        assert {found[key] for key in theirs} == {2, 3}
        assert [(row["name"], row["num_units"]) for row in dataset.composition] == [
            (small.dataset, 45),
            (other.dataset, 45),
        ]
        choices.append(found)
    assert choices[0] != choices[1]
    assert dataset.num_units == 90


def test_parts_are_mixed_with_one_another(small: Layout, other: Layout, reader: ShardReader) -> None:
    parts = [MixPart(dataset=small.dataset), MixPart(dataset=other.dataset, weight=5.0)]
    order = [batch.info.video_ids[0].partition("-")[0] for batch in GopDataset(parts, reader=reader)]
    changes = sum(before != after for before, after in itertools.pairwise(order))
    assert Counter(order) == {"video": 90, "other": 90}
    assert changes > 60  # 90 on average if no order is preferred, and 1 if the parts came one after the other


def test_each_part_has_its_own_filter(small: Layout, other: Layout, reader: ShardReader) -> None:
    parts = [
        MixPart(dataset=small.dataset, filter=GopFilter(subsets=("0_30_s_academic",))),
        MixPart(dataset=other.dataset, filter=GopFilter(subsets=("30_60_s_youtube",))),
    ]
    videos = {batch.info.video_ids[0] for batch in GopDataset(parts, reader=reader)}
    assert videos == {f"video-{index:03d}.mp4" for index in range(0, 40, 2)} | {
        f"other-{index:03d}.mp4" for index in range(1, 8, 2)
    }


def test_one_part_alone_is_a_mix(small: Layout, reader: ShardReader) -> None:
    alone = GopDataset(MixPart(dataset=small.dataset, weight=2.0), reader=reader)
    assert set(keys_of_epoch(alone, 0).values()) == {2}
    assert len(alone) == 180


OTHER_SPECS = {
    "window": {"extract": ExtractSpec(window=8)},
    "block_px": {"extract": ExtractSpec(window=4, motion_block_px=8)},
    "residual": {"extract": ExtractSpec(window=4, residual=Int8Residual())},
    "gop_size": {"encode": EncodeSpec(width_px=96, height_px=64, gop_size=64, preset="ultrafast")},
    "fps": {"encode": EncodeSpec(width_px=96, height_px=64, gop_size=32, preset="ultrafast", fps=15)},
}


@pytest.mark.parametrize("name", OTHER_SPECS)
def test_parts_of_different_geometry_fail(
    small: Layout, datasets: ModuleType, media: ModuleType, tmp_path: Path, name: str
) -> None:
    settings: dict[str, Any] = {"encode": datasets.SPECS.encode, "extract": datasets.SPECS.extract}
    specs = Specs(**(settings | OTHER_SPECS[name]))
    layout = datasets.make_dataset(tmp_path, media, num_videos=1, specs=specs)
    parts = [MixPart(dataset=small.dataset), MixPart(dataset=layout.dataset)]
    for make in (GopDataset, QADataset):
        with pytest.raises(ConfigurationError, match=rf"has {name} .* cannot be in one batch") as caught:
            make(parts)
        assert small.dataset in str(caught.value)
        assert layout.dataset in str(caught.value)


def test_mix_of_nothing_fails() -> None:
    with pytest.raises(ConfigurationError, match="has no parts"):
        GopDataset([])


def test_filter_beside_a_mix_fails(small: Layout) -> None:
    with pytest.raises(ConfigurationError, match="Give each part of the mix its own filter"):
        GopDataset(
            [MixPart(dataset=small.dataset), MixPart(dataset=small.dataset)], where=GopFilter(min_motion_px=1)
        )


def write(path: Path, document: object) -> str:
    if isinstance(document, bytes):
        path.write_bytes(document)
    else:
        path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return str(path)


def test_mix_file_is_read(tmp_path: Path) -> None:
    uri = write(
        tmp_path / "mix.yaml",
        {
            "datasets": [
                {"dataset": "first"},
                {"dataset": "../second/shards/abc", "weight": 0.5, "filter": {"min_motion_px": 0.5},
                 "mix": "mixes/llava.yaml", "questions": "/elsewhere/questions.parquet", "spec": "0123"},
                {"dataset": "s3://bucket/third", "weight": 3, "filter": {"subsets": "a"}},
            ]
        },
    )  # fmt: skip
    assert read_mix_parts(uri) == [
        MixPart(dataset=f"{tmp_path}/first"),
        MixPart(
            dataset=f"{tmp_path}/../second/shards/abc",
            weight=0.5,
            filter=GopFilter(min_motion_px=0.5),
            mix=f"{tmp_path}/mixes/llava.yaml",
            questions="/elsewhere/questions.parquet",
            spec="0123",
        ),
        MixPart(dataset="s3://bucket/third", weight=3.0, filter=GopFilter(subsets=("a",))),
    ]


def test_paths_are_relative_to_the_file_wherever_one_is(
    tmp_path: Path, small: Layout, reader: ShardReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mixes").mkdir()
    (tmp_path / "here").symlink_to(small.dataset)
    monkeypatch.chdir(tmp_path)
    for place, dataset in (("mixes/mix.yaml", "../here"), ("mix.yaml", "here")):
        write(tmp_path / place, {"datasets": [{"dataset": dataset, "weight": 0.5}]})
        for uri in (str(tmp_path / place), place):
            assert len(GopDataset(read_mix_parts(uri), reader=reader)) == 45


MISTAKES = {
    "no YAML": ("datasets: [", r"is not valid YAML"),
    "no UTF-8": (b"datasets: [{dataset: \xfa}]", r"is not valid YAML"),
    "empty": ("", r"has no list of datasets. Write datasets:"),
    "a list": ([{"dataset": "a"}], r"has no list of datasets"),
    "no datasets": ({"dataset": "a"}, r"has no list of datasets"),
    "datasets empty": ({"datasets": []}, r"has no list of datasets"),
    "datasets a mapping": ({"datasets": {"dataset": "a"}}, r"has no list of datasets"),
    "entry a string": ({"datasets": ["a"]}, r"dataset 0: .*[Ii]nput should be a valid dictionary"),
    "no dataset": ({"datasets": [{"weight": 1}]}, r"dataset 0: dataset: Field required"),
    "unknown key": ({"datasets": [{"dataset": "a", "wieght": 1}]}, r"dataset 0: wieght: Extra inputs"),
    "weight zero": ({"datasets": [{"dataset": "a", "weight": 0}]}, r"weight: .* greater than 0"),
    "weight negative": ({"datasets": [{"dataset": "a", "weight": -1}]}, r"weight: .* greater than 0"),
    "weight infinite": ("datasets: [{dataset: a, weight: .inf}]", r"weight: .* less than or equal to 1000"),
    "weight no number": ("datasets: [{dataset: a, weight: .nan}]", r"weight: Input should be"),
    "weight in words": ({"datasets": [{"dataset": "a", "weight": "half"}]}, r"weight: .* valid number"),
    "filter unknown": (
        {"datasets": [{"dataset": "a", "filter": {"min_motion": 1}}]},
        r"dataset 0: filter\.min_motion: Extra inputs",
    ),
    "filter in words": (
        {"datasets": [{"dataset": "a", "filter": {"min_motion_px": "much"}}]},
        r"dataset 0: filter\.min_motion_px: .* valid number",
    ),
}


@pytest.mark.parametrize(("document", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mix_file_with_a_mistake_fails(tmp_path: Path, document: object, message: str) -> None:
    uri = write(tmp_path / "mix.yaml", document)
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_mix_parts(uri)
    assert caught.value.subject == uri


def test_all_mistakes_of_a_mix_file_are_listed(tmp_path: Path) -> None:
    entries = [{"dataset": "a"}, {"dataset": "b", "weight": 0, "mixx": "c"}, {"weight": 1}]
    uri = write(tmp_path / "mix.yaml", {"datasets": entries})
    with pytest.raises(ConfigurationError) as caught:
        read_mix_parts(uri)
    text = str(caught.value)
    assert "dataset 0" not in text
    assert all(part in text for part in ("dataset 1: weight", "dataset 1: mixx", "dataset 2: dataset"))


def test_missing_mix_file_fails(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no such mix file"):
        read_mix_parts(str(tmp_path / "mix.yaml"))
