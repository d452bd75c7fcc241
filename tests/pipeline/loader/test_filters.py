"""Filters against a slow reading of the index's rows, in a folder that has an index and not one shard."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader import GopDataset, GopFilter, QADataset, ShardReader
from cope_prep.pipeline.loader.catalog import open_shards, read_catalog
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.errors import ConfigurationError

Row = dict[str, Any]
FIELDS = tuple(GopFilter.model_fields)
SETTINGS = [
    {},
    {"subsets": ("30_60_s_youtube",)},
    {"subsets": ("30_60_s_youtube", "0_30_s_academic")},
    {"subsets": ("no such subset",)},
    {"min_duration_s": 2.0},
    {"max_duration_s": 2.0},
    {"min_motion_px": 4.0},
    {"max_motion_px": 4.0},
    {"min_residual_energy": 300.0},
    {"max_residual_energy": 300.0},
    {"max_clipped_share": 0.1},
    {"max_clipped_share": 0.0},
    {"subsets": ("0_30_s_academic",), "min_duration_s": 1.0, "max_duration_s": 3.0, "min_motion_px": 3.0,
     "max_motion_px": 6.0, "min_residual_energy": 100.0, "max_residual_energy": 400.0,
     "max_clipped_share": 0.3},
]  # fmt: skip


@pytest.fixture(scope="module")
def indexed(small: Layout, datasets: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """`small` with random figures in its index, and without its shards."""
    layout = Layout(dataset=str(tmp_path_factory.mktemp("indexed")), specs=small.specs)
    Path(layout.folder("shards")).mkdir(parents=True)
    for name in ("dataset.json", "spec.json"):
        shutil.copy(Path(small.folder("shards"), name), layout.folder("shards"))
    rows = rows_of(small)
    rng = np.random.default_rng(7)
    for row in rows:
        size = row["num_windows"]
        # The level of a GOP varies more than that of its windows, so that both sides of a bound are met.
        row["motion_mean_px"] = (rng.uniform(0, 8) + rng.uniform(0, 1, size)).tolist()
        row["residual_energy"] = (rng.uniform(0, 600) + rng.uniform(0, 50, size)).tolist()
        row["clipped_vectors"] = (rng.integers(0, 2) * rng.integers(0, 12, size)).tolist()
    datasets.write_index(layout, pa.Table.from_pylist(rows, schema=INDEX))
    return layout


def rows_of(layout: Layout) -> list[Row]:
    return storage.read_table(layout.index, INDEX).to_pylist()


def admitted(layout: Layout, where: GopFilter, *, per_video: bool = False) -> list[tuple[str, int]]:
    catalog = read_catalog(open_shards(layout.dataset), where=where, per_video=per_video)
    return [(catalog.video_id(sample), int(catalog.gop_index[sample])) for sample in range(len(catalog))]


def slowly_admitted(layout: Layout, where: GopFilter, *, per_video: bool = False) -> list[tuple[str, int]]:
    """What docs/loader.md says of a filter, a row at a time."""
    rows = rows_of(layout)
    video_of: dict[str, list[Row]] = {}
    for row in rows:
        video_of.setdefault(row["video_id"], []).append(row)
    found = []
    for row in rows:
        video = video_of[row["video_id"]]
        judged = video if per_video else [row]
        num_blocks = (row["height_px"] // 16) * (row["width_px"] // 16)
        num_windows = sum(part["num_windows"] for part in judged)

        def mean(name: str, judged: list[Row] = judged, num_windows: int = num_windows) -> float:
            values = [value for part in judged for value in part[name]]
            assert len(values) == num_windows
            return sum(values) / num_windows if values else 0.0

        duration_s = sum(part["num_frames"] for part in video) / layout.specs.encode.fps
        figures = {
            "duration_s": duration_s,
            "motion_px": mean("motion_mean_px"),
            "residual_energy": mean("residual_energy"),
            "clipped_share": mean("clipped_vectors") / num_blocks,
        }
        is_wanted = where.subsets is None or row["subset"] in where.subsets
        for name, figure in figures.items():
            low, high = getattr(where, f"min_{name}", None), getattr(where, f"max_{name}", None)
            is_wanted = is_wanted and (low is None or figure >= low) and (high is None or figure <= high)
        if is_wanted:
            found.append((row["video_id"], row["gop_index"]))
    return found


@pytest.mark.parametrize("per_video", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "+".join(settings) or "open")
def test_filter_admits_what_a_slow_reading_admits(
    indexed: Layout, settings: dict[str, Any], per_video: bool
) -> None:
    where = GopFilter(**settings)
    found = admitted(indexed, where, per_video=per_video)
    assert found == slowly_admitted(indexed, where, per_video=per_video)
    is_all = settings in ({}, {"subsets": ("30_60_s_youtube", "0_30_s_academic")})
    is_none = settings == {"subsets": ("no such subset",)}
    assert len(found) == 90 if is_all else not found if is_none else 0 < len(found) < 90


def test_settings_try_every_field() -> None:
    assert {name for settings in SETTINGS for name in settings} == set(FIELDS)


def test_judging_videos_differs_from_judging_gops_and_keeps_videos_whole(indexed: Layout) -> None:
    where = GopFilter(min_motion_px=4.0)
    by_gop, by_video = admitted(indexed, where), admitted(indexed, where, per_video=True)
    assert by_gop != by_video
    videos = {video_id for video_id, _ in by_video}
    assert by_video == [place for place in admitted(indexed, GopFilter()) if place[0] in videos]


def test_gops_without_windows_have_figures_of_zero(indexed: Layout) -> None:
    without = {(row["video_id"], row["gop_index"]) for row in rows_of(indexed) if row["num_windows"] == 0}
    assert without
    for bounds in ({"max_motion_px": 0.0}, {"max_residual_energy": 0.0}):
        assert set(admitted(indexed, GopFilter.model_validate(bounds))) == without
    for bounds in ({"min_motion_px": 1e-6}, {"min_residual_energy": 1e-6}):
        assert without.isdisjoint(admitted(indexed, GopFilter.model_validate(bounds)))
    assert without <= set(admitted(indexed, GopFilter(max_clipped_share=0.0)))


def test_bounds_are_inclusive(indexed: Layout) -> None:
    durations_s = {70 / 30, 100 / 30}
    for duration_s in durations_s:
        where = GopFilter(min_duration_s=duration_s, max_duration_s=duration_s)
        frames = {video_id: 0 for video_id, _ in admitted(indexed, where)}
        assert len(frames) == 10
        for row in rows_of(indexed):
            if row["video_id"] in frames:
                frames[row["video_id"]] += row["num_frames"]
        assert set(frames.values()) == {round(duration_s * 30)}


def test_one_subset_may_be_a_string(indexed: Layout) -> None:
    assert GopFilter.model_validate({"subsets": "a"}) == GopFilter(subsets=("a",))


def test_filter_with_a_wrong_field_fails() -> None:
    with pytest.raises(ValidationError, match="min_motion"):
        GopFilter.model_validate({"min_motion": 1.0})
    with pytest.raises(ValidationError, match="max_clipped_share"):
        GopFilter.model_validate({"max_clipped_share": "little"})


@pytest.mark.parametrize("make", [GopDataset, QADataset])
def test_datasets_are_made_without_a_shard(indexed: Layout, small: Layout, make: Callable[..., Any]) -> None:
    """`indexed` has no tar at all: what it takes to know the epoch is in the index (and the questions)."""
    assert not list(Path(indexed.folder("shards")).glob("*.tar"))
    shutil.copy(small.questions, indexed.questions)
    where = GopFilter(min_motion_px=4.0)
    dataset = make(indexed.dataset, where=where)
    by_gop = slowly_admitted(indexed, where)
    by_video = slowly_admitted(indexed, where, per_video=True)
    num_questions = 3 * len({video_id for video_id, _ in by_video})
    assert len(dataset) == (len(by_gop) if make is GopDataset else num_questions)


def test_epoch_is_what_the_filter_admits(small: Layout, reader: ShardReader) -> None:
    means_px = {np.mean(row["motion_mean_px"]) for row in rows_of(small) if row["num_windows"]}
    where = GopFilter(subsets=("30_60_s_youtube",), max_motion_px=float(np.median(list(means_px))))
    dataset = GopDataset(small.dataset, where=where, reader=reader, batch_size=4, last="wrap")
    keys = [
        (video_id, gop)
        for batch in dataset
        for video_id, gop in zip(batch.info.video_ids, batch.gop_index.tolist(), strict=True)
    ]
    expected = slowly_admitted(small, where)
    assert 0 < len(expected) < 45
    assert sorted(set(keys)) == sorted(expected)
    assert len(keys) == -(-len(expected) // 4) * 4


def test_nothing_admitted_fails(indexed: Layout) -> None:
    with pytest.raises(ConfigurationError, match=r"has no GOP that passes the filter. Widen the filter"):
        GopDataset(indexed.dataset, where=GopFilter(min_motion_px=1000))


def test_a_figure_that_is_no_number_stays_in_its_own_gop(
    indexed: Layout, datasets: ModuleType, tmp_path: Path
) -> None:
    layout = Layout(dataset=str(tmp_path), specs=indexed.specs)
    shutil.copytree(indexed.folder("shards"), layout.folder("shards"))
    rows = rows_of(layout)
    spoilt = next(index for index, row in enumerate(rows) if row["num_windows"] > 1)
    rows[spoilt]["motion_mean_px"][1] = float("nan")
    datasets.write_index(layout, pa.Table.from_pylist(rows, schema=INDEX))
    of_spoilt = (rows[spoilt]["video_id"], rows[spoilt]["gop_index"])
    bounds = GopFilter(min_motion_px=0.0)
    assert set(admitted(indexed, bounds)) - set(admitted(layout, bounds)) == {of_spoilt}
    video = {key for key in admitted(indexed, bounds, per_video=True) if key[0] == of_spoilt[0]}
    assert (
        set(admitted(indexed, bounds, per_video=True)) - set(admitted(layout, bounds, per_video=True))
        == video
    )
