"""Fixtures for all tests: the media factory, and real clips."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str) -> ModuleType:
    # By path, because in pytest's importlib mode test helpers are on no search path.
    spec = importlib.util.spec_from_file_location(f"tests_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def media() -> ModuleType:
    """The module tests/media.py: `media.write_clip(...)`, `media.ffprobe(...)` and so on."""
    return sys.modules.get("tests_media") or _load("media")


@pytest.fixture(scope="session")
def real_clips(media: ModuleType) -> list[Path]:
    """Four real clips: two H.264 films of 5 and 10 s, and two small ones of 4 s."""
    return media.real_clips()
