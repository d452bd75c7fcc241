"""Fixtures of the loader's tests: one small dataset for all, and a copy to damage."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader.reader import ShardReader


def _load(name: str) -> ModuleType:
    full_name = f"tests_loader_{name}"
    if full_name not in sys.modules:  # by path: pytest's importlib mode puts test helpers on no search path
        spec = importlib.util.spec_from_file_location(full_name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full_name] = module
        spec.loader.exec_module(module)
    return sys.modules[full_name]


@pytest.fixture(scope="session")
def load_helper() -> Callable[[str], ModuleType]:
    """`load_helper("http_faults")`: a module beside the tests."""
    return _load


@pytest.fixture(scope="session")
def datasets() -> ModuleType:
    """The module datasets.py: `datasets.make_dataset(folder, media, ...)`."""
    return _load("datasets")


@pytest.fixture(scope="session")
def small(datasets: ModuleType, media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """40 videos, 90 GOPs of 8 anchors at most, 120 questions, several shards. Not to be changed."""
    return datasets.make_dataset(tmp_path_factory.mktemp("small"), media)


@pytest.fixture
def copied(small: Layout, tmp_path: Path) -> Layout:
    """A copy of `small` to damage."""
    shutil.copytree(small.dataset, tmp_path / "dataset")
    return Layout(dataset=str(tmp_path / "dataset"), specs=small.specs)


@pytest.fixture
def reader(tmp_path: Path) -> ShardReader:
    """A reader with a cache of its own."""
    return ShardReader(cache_dir=str(tmp_path / "cache"), cache_bytes=1 << 30)
