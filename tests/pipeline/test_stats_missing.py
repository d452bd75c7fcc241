"""Statistics of a dataset that lacks something: what is left is right, and what is missing is said."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest
from stats_rows import NUM_INDEXED, NUM_LISTED, Rows, publish

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.stats import dataset_stats
from cope_prep.pipeline.stats_records import DatasetStats
from cope_prep.schemas.arrow import LEDGER, SOURCE_COLUMNS
from cope_prep.schemas.errors import ConfigurationError
from cope_prep.schemas.specs import ExtractSpec, LosslessIframe


def test_without_an_index_there_is_what_the_ledgers_know(
    rows: Rows, found: DatasetStats, copied: Rows
) -> None:
    Path(copied.layout.index).unlink()
    early = dataset_stats(copied.layout)
    assert not early.has_index
    assert any("There is no index yet" in note for note in early.notes)
    assert (early.stages, early.failures, early.sources) == (found.stages, found.failures, found.sources)
    assert early.total.num_listed == NUM_LISTED
    assert early.total.num_questions == found.total.num_questions
    assert (early.total.num_videos, early.distributions, early.tokens) == (0, (), None)
    assert not any(early.outliers.values())


@pytest.mark.parametrize("stage", ["reencode", "extract"])
def test_without_a_ledger_the_index_still_tells(stage: str, found: DatasetStats, copied: Rows) -> None:
    shutil.rmtree(copied.layout.ledger(stage))
    got = dataset_stats(copied.layout)
    assert any(f"There is no ledger of {stage}" in note for note in got.notes)
    assert [one.stage for one in got.stages] == [one.stage for one in found.stages if one.stage != stage]
    assert got.distributions == found.distributions
    assert got.total.source.other_bytes == found.total.source.other_bytes  # of the manifest
    if stage == "reencode":
        assert got.sources == ()
        assert got.total.reencoded.ratio is None


def test_without_questions_none_are_counted(found: DatasetStats, copied: Rows) -> None:
    Path(copied.layout.questions).unlink()
    got = dataset_stats(copied.layout)
    assert any("questions.parquet is missing" in note for note in got.notes)
    assert got.total == dataclasses.replace(found.total, num_questions={})


def test_without_a_manifest_index_and_ledgers_count(rows: Rows, found: DatasetStats, copied: Rows) -> None:
    Path(copied.layout.manifest).unlink()
    got = dataset_stats(copied.layout)
    assert any("manifest.parquet is missing" in note for note in got.notes)
    assert got.total.num_listed == NUM_LISTED  # all of them have a row in a ledger
    assert got.total.num_videos == NUM_INDEXED
    assert got.distributions == found.distributions
    assert sum(end.num_videos for end in got.failures) == sum(end.num_videos for end in found.failures)


def test_ledger_from_before_the_source_columns_is_unknown(found: DatasetStats, copied: Rows) -> None:
    folder = Path(copied.layout.ledger("reencode"))
    for number, path in enumerate(sorted(folder.iterdir())):
        table = storage.read_table(str(path), LEDGER).drop_columns(list(SOURCE_COLUMNS))
        path.unlink()
        storage.publish_table(str(folder / f"part-{number:013d}-old.parquet"), table)
    got = dataset_stats(copied.layout)
    number = len(copied.done("reencode"))
    assert {(share.value, share.num_videos) for share in got.sources} == {("unknown", number)}
    assert len(got.sources) == 3
    assert got.total == found.total


def test_empty_tables_are_no_error(rows: Rows, tmp_path: Path) -> None:
    layout = Layout(dataset=str(tmp_path), specs=rows.layout.specs)
    got = publish(Rows(layout=layout, manifest=[], questions=[], gops=[], ledger={}))
    assert (got.total.num_listed, got.total.num_videos, got.total.duration_s) == (0, 0, 0.0)
    assert (got.subsets, got.failures, got.sources, got.distributions) == ((), (), (), ())
    assert got.total.to_dict()["bytes_per_s"]["total"] is None
    assert got.total.rgb.ratio is None
    assert any("lists no video" in note for note in got.notes)
    assert any("index is empty" in note for note in got.notes)


def test_videos_without_a_window_have_no_figures(rows: Rows, tmp_path: Path) -> None:
    layout = Layout(dataset=str(tmp_path), specs=rows.layout.specs)
    short = [row for row in rows.gops if row["num_windows"] == 0 and row["gop_index"] == 0]
    assert short
    got = publish(dataclasses.replace(rows, layout=layout, gops=short))
    assert got.total.num_gops == len(short)
    assert {one.name for one in got.distributions} == {"duration_s"}
    assert got.outliers["motion_mean_px"] == ()
    assert got.outliers["bytes_per_s"] != ()


def test_lossless_iframes_say_nothing_of_jpegs(rows: Rows, tmp_path: Path) -> None:
    specs = dataclasses.replace(rows.layout.specs, extract=ExtractSpec(iframe=LosslessIframe()))
    got = publish(dataclasses.replace(rows, layout=Layout(dataset=str(tmp_path), specs=specs)))
    assert got.total.jpeg_estimate.ratio is None
    assert got.total.rgb.ratio is not None


def test_folder_that_is_no_dataset_fails(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is no dataset"):
        dataset_stats(Layout(dataset=str(tmp_path), specs=Specs()))


def test_missing_duckdb_says_what_to_install(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'cope-prep\[dashboard\]'"):
        dataset_stats(rows.layout)
