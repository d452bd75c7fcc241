"""Fixtures for all tests: the media factory, real clips, and a browser."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from s3_faults import FaultyS3

os.environ.setdefault(
    "COPE_PREP_STORE_PATIENCE_S", "1"
)  # a store that fails for good would cost each test a minute

hypothesis.settings.register_profile("any machine", deadline=None)  # a busy one is no failure
hypothesis.settings.load_profile("any machine")


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


@pytest.fixture(scope="session")
def s3_faults() -> ModuleType:
    """The module tests/s3_faults.py: `s3_faults.Faults(kinds=..., share=...)` and so on."""
    return sys.modules.get("tests_s3_faults") or _load("s3_faults")


@pytest.fixture
def moto_s3(s3_faults: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a new, empty S3 of moto's; s3fs is led to it."""
    import fsspec

    store = fsspec.get_filesystem_class("s3")
    with s3_faults.moto() as url:
        for name, value in s3_faults.login(url).items():
            monkeypatch.setenv(name, value)
        store.clear_instance_cache()
        yield url
        store.clear_instance_cache()


@pytest.fixture(scope="module")
def faulty_s3(s3_faults: ModuleType) -> Iterator[FaultyS3]:
    """moto's S3 with an empty bucket `bucket`, behind the proxy that spoils requests; s3fs is led to it."""
    import fsspec
    from fsspec.config import conf

    store = fsspec.get_filesystem_class("s3")
    with s3_faults.serve() as proxy, pytest.MonkeyPatch.context() as patch:
        environment = s3_faults.environment(proxy.url)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setitem(conf, "s3", json.loads(environment["FSSPEC_S3"]))
        patch.setenv("COPE_PREP_STORE_PATIENCE_S", "30")
        store.clear_instance_cache()
        fsspec.filesystem("s3").mkdir("bucket")
        yield proxy
        store.clear_instance_cache()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's chromium (/usr/bin/chromium, or $CHROMIUM).

    Until the end of a file: Playwright leaves an event loop in the main thread, and starts once at a time.
    """
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    if not os.path.exists(program):
        pytest.fail(f"{program} is missing: install the Debian package chromium (make test does)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
