"""Whole files to damage, and the process that reads what becomes of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
import corpus
from supervised import Sandbox


@pytest.fixture(scope="module")
def contents(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Name -> a whole file of each container."""
    return corpus.write_sources(media, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """Where nothing is left, whatever is read there."""
    sandbox = Sandbox(tmp_path_factory.mktemp("sandbox"))
    yield sandbox
    sandbox.stop()
