"""Fixtures of the encoders' tests: one small dataset for all, and helpers beside the tests."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader.batch import QABatch
from cope_prep.schemas.specs import EncodeSpec

HERE = Path(__file__).parent


def _load(path: Path, full_name: str) -> ModuleType:
    if full_name not in sys.modules:  # by path: pytest's importlib mode puts test helpers on no search path
        spec = importlib.util.spec_from_file_location(full_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full_name] = module
        spec.loader.exec_module(module)
    return sys.modules[full_name]


@pytest.fixture(scope="session")
def load_helper() -> Callable[[str], ModuleType]:
    """`load_helper("toy_task")`: a module beside the tests."""
    return lambda name: _load(HERE / f"{name}.py", name)


@pytest.fixture(scope="session")
def small(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """16 videos of 64 x 64, H.264, 36 GOPs of 8 anchors at most, 48 questions. Not to be changed."""
    datasets = _load(HERE.parent / "pipeline" / "loader" / "datasets.py", "tests_loader_datasets")
    encode = EncodeSpec(width_px=64, height_px=64, gop_size=32, preset="ultrafast")
    specs = replace(datasets.SPECS, encode=encode)
    return datasets.make_dataset(tmp_path_factory.mktemp("small"), media, num_videos=16, specs=specs)


@pytest.fixture(scope="session")
def models(load_helper: Callable[[str], ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a tiny SigLIP, a tiny Qwen2 and a tokenizer. Not to be changed."""
    folder = tmp_path_factory.mktemp("models")
    load_helper("small_models").write_models(folder)
    return folder


@pytest.fixture
def one_thread(load_helper: Callable[[str], ModuleType]) -> Iterator[None]:
    """As a mark of a module: `pytest.mark.usefixtures("one_thread")`."""
    with load_helper("small_models").one_thread():
        yield


@pytest.fixture(scope="session")
def batch(load_helper: Callable[[str], ModuleType], small: Layout) -> QABatch:
    """6 questions about videos of 1 to 4 GOPs, two of them about the same. Not to be changed."""
    found = load_helper("small_models").questions(small.dataset, questions_per_visit=2)
    videos = [question.video_id for question in found.questions]
    assert len(set(videos)) < len(videos)
    assert len({int(kinds.count_nonzero()) for kinds in found.run_kind}) > 1
    return found
