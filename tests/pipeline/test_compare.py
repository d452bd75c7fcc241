"""Two outputs beside each other: settings, figures and videos are those of each."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import clip_dataset
from clip_dataset import BIKES, BUNNY

from cope_prep.pipeline import storage
from cope_prep.pipeline.compare import (
    MaxErrors,
    common_videos,
    distribution_of,
    figure_lines,
    max_errors,
    spec_lines,
)
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.stats import dataset_stats
from cope_prep.pipeline.video_list import read_video_list
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.errors import FormatError
from cope_prep.schemas.specs import ExtractSpec, Int8Residual

pytest.importorskip("duckdb")
OTHER = Specs(
    encode=clip_dataset.SPECS.encode, extract=ExtractSpec(residual=Int8Residual(step=16, deadzone=16))
)


@pytest.fixture(scope="module")
def pair(real_clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, Layout]:
    folder = tmp_path_factory.mktemp("compare")
    return (
        clip_dataset.make(folder / "dct", real_clips),
        clip_dataset.make(folder / "int8", real_clips, specs=OTHER),
    )


def test_settings_that_differ_are_named() -> None:
    lines = spec_lines(clip_dataset.SPECS, OTHER)
    differing = [line for line in lines if line.differs]
    assert [(line.name, line.left, line.right) for line in differing] == [
        ("extract.residual", "dct quality=90", "int8 step=16 deadzone=16")
    ]
    assert {line.name for line in lines} >= {"encode.codec", "encode.quality", "extract.window", "shard.seed"}
    assert not any(line.differs for line in spec_lines(OTHER, OTHER))


def test_figures_are_those_of_the_indexes(pair: tuple[Layout, Layout]) -> None:
    stats = [dataset_stats(layout) for layout in pair]
    errors = [max_errors(layout) for layout in pair]
    lines = {line.name: line for line in figure_lines(*stats, errors=(errors[0], errors[1]))}
    for side, layout in zip(("left", "right"), pair, strict=True):
        rows = storage.read_table(layout.index, INDEX).to_pylist()
        seconds = sum(row["num_frames"] for row in rows) / 30
        windows = [value for row in rows for value in row["max_error"]]
        assert getattr(lines["Samples"], side) == sum(row["size_bytes"] for row in rows)
        assert getattr(lines["Residuals, a second"], side) == pytest.approx(
            sum(row["residual_bytes"] for row in rows) / seconds
        )
        assert getattr(lines["PSNR of the rebuilt luma, worst"], side) == pytest.approx(
            min(value for row in rows for value in row["psnr_y_db"]), rel=1e-5
        )
        assert getattr(lines["Largest error of all"], side) == max(windows)
        assert (
            getattr(lines["Largest error of a window, median"], side)
            == sorted(windows)[(len(windows) - 1) // 2]
        )
    assert lines["Residuals, a second"].ratio == pytest.approx(
        lines["Residuals, a second"].right / lines["Residuals, a second"].left  # type: ignore[operator]
    )
    # int8 of 16 bounds the error; the DCT does not.
    assert lines["Largest error of all"].right <= 16  # type: ignore[operator]


def test_videos_of_both_are_those_with_samples(pair: tuple[Layout, Layout]) -> None:
    lists = [read_video_list(layout) for layout in pair]
    assert common_videos(*lists).to_pylist() == [BUNNY, BIKES]
    nothing = read_video_list(Layout(dataset=pair[0].dataset, specs=Specs()))
    assert len(nothing) == 4
    assert common_videos(lists[0], nothing).to_pylist() == []


def test_without_an_index_nothing_is_known(pair: tuple[Layout, Layout]) -> None:
    there, empty = pair[0], Layout(dataset=pair[0].dataset, specs=Specs())
    assert max_errors(empty) is None
    stats = dataset_stats(there), dataset_stats(empty)
    assert distribution_of(stats[1], "psnr_y_db") is None
    lines = {line.name: line for line in figure_lines(*stats, errors=(max_errors(there), None))}
    for name in ("PSNR of the rebuilt luma, median", "Samples, a second", "Largest error of all"):
        assert lines[name].left is not None
        assert lines[name].right is None
        assert lines[name].ratio is None


def test_a_damaged_index_fails(pair: tuple[Layout, Layout], tmp_path: Path) -> None:
    layout = Layout(dataset=str(tmp_path), specs=pair[0].specs)
    storage.publish_bytes(layout.index, b"no table")
    with pytest.raises(FormatError, match="is not a readable index"):
        max_errors(layout)


def test_the_median_of_errors() -> None:
    assert MaxErrors(counts=np.zeros(256, np.int64)).median is None
    assert MaxErrors(counts=np.zeros(256, np.int64)).largest is None
    rng = np.random.default_rng(0)
    for number in range(1, 12):
        values = rng.integers(0, 20, number)
        found = MaxErrors(counts=np.bincount(values, minlength=256))
        assert found.median == sorted(values)[(number - 1) // 2]
        assert found.largest == values.max()
