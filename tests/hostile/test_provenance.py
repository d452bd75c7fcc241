"""`verify --provenance` of datasets from strangers: tables of some KB that unfold to tens of GB, odd JSON."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cope_prep.pipeline import storage
from cope_prep.pipeline.finish import describe_index
from cope_prep.pipeline.layout import Layout

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
import crafted
from crafted import VIDEO_ID
from limited import call_limited
from readers import SPECS

_MANY = 1 << 21
_LONG = "x" * (1 << 20)
_MEMBER = {"name": "json", "offset_bytes": 0, "size_bytes": 1}

Craft = Callable[[Layout], None]


def _rows(num_rows: int, **changes: Any) -> Craft:
    return lambda layout: crafted.repeat_provenance(layout, num_rows, **changes)


def _index_rows(num_rows: int, **changes: Any) -> Craft:
    def craft(layout: Layout) -> None:
        crafted.repeat_row(layout.index, num_rows, **changes)
        crafted.change_document(layout, index=describe_index(layout.index))

    return craft


def _rows_of_both(num_rows: int, **changes: Any) -> Craft:
    def craft(layout: Layout) -> None:
        _index_rows(num_rows)(layout)
        _rows(num_rows, **changes)(layout)

    return craft


def _ledger_rows(layout: Layout) -> None:
    folder = layout.ledger("extract")
    (name,) = storage.list_files(folder)
    crafted.repeat_row(storage.join(folder, name), _MANY)


CASES: dict[str, tuple[Craft, str]] = {
    "rows": (_rows(_MANY), f"has {_MANY} rows"),
    "text": (_rows_of_both(600, source_uri=_LONG), "bytes of text"),
    "text-software": (_rows_of_both(600, extract_software=f'{{"x": "{_LONG}"}}'), "bytes of text"),
    "index-rows": (_index_rows(_MANY), f"has {_MANY} rows"),
    "index-and-rows": (_rows_of_both(_MANY), f"has {_MANY} rows"),
    "index-text": (_index_rows(600, video_id=_LONG), "bytes of text"),
    "index-members": (_index_rows(1 << 10, members=[_MEMBER] * (1 << 14)), "values"),
    "software-deep": (_rows(1, extract_software="[" * 200_000), "software"),
    "software-list": (_rows(1, extract_software="[1]"), "software"),
    "software-list-inside": (_rows(1, extract_software='{"av": [1, 2]}'), "software"),
    "long-names": (_rows(1, video_id=_LONG, shard=_LONG), "has a row in provenance.parquet, and no sample"),
    "long-hash": (_rows(1, extract_hash=_LONG), "extract was done with"),
    "shard-elsewhere": (_index_rows(1, shard="../../../secret.tar"), "is not a shard's name"),
    "ledger-rows": (_ledger_rows, ""),
}
"""Case -> what makes it, and what of it must be said; nothing if it does no harm."""


@pytest.fixture(scope="module")
def said(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Case -> reader -> what it said, read in one process with 512 MiB."""
    folder, whole = tmp_path_factory.mktemp("crafted"), tmp_path_factory.mktemp("whole")
    crafted.make_dataset(media, whole)
    for name, (craft, _) in CASES.items():
        shutil.copytree(whole, folder / name)
        craft(Layout(dataset=str(folder / name), specs=SPECS))
        assert sum(path.stat().st_size for path in (folder / name).rglob("*.parquet")) < 1 << 20, name
    reader = str(Path(__file__).with_name("readers.py"))
    return call_limited(reader, "read_all", str(folder), VIDEO_ID, "verify", "provenance")


@pytest.mark.parametrize("case", CASES)
def test_crafted_provenance_is_refused_in_a_line(said: dict[str, dict[str, str]], case: str) -> None:
    for reader, text in said[case].items():
        assert "UNEXPECTED" not in text, (reader, text[:3000])
        assert len(text) < 5000, (reader, len(text), text[:3000])
    expected, found = CASES[case][1], said[case]["provenance"]
    assert expected in found if expected else not found, found
