"""Fixtures of the statistics: tables of a dataset (stats_rows.py), and what they come to."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest

from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.stats import dataset_stats
from cope_prep.pipeline.stats_records import DatasetStats
from cope_prep.schemas.specs import EncodeSpec

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
from stats_rows import GOP, Rows, make_rows, write


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    dataset = tmp_path_factory.mktemp("stats") / "data [1]*'s"
    specs = Specs(encode=EncodeSpec(width_px=64, height_px=48, gop_size=GOP))
    rows = make_rows(Layout(dataset=str(dataset), specs=specs))
    write(rows)
    return rows


@pytest.fixture(scope="module")
def found(rows: Rows) -> DatasetStats:
    return dataset_stats(rows.layout)


@pytest.fixture
def copied(rows: Rows, tmp_path: Path) -> Rows:
    """Other tables of the same content, to damage."""
    shutil.copytree(rows.layout.dataset, tmp_path / "dataset")
    return dataclasses.replace(
        rows, layout=Layout(dataset=str(tmp_path / "dataset"), specs=rows.layout.specs)
    )
