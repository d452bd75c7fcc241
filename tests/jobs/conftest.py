"""One Ray for all tests, and the module whose functions its workers run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cope_prep.jobs.executors import RayExecutor

HERE = str(Path(__file__).parent)
# Calls are pickled by reference: this process, Ray's workers and their children all must find stage_work.
sys.path.insert(0, HERE)


@pytest.fixture(scope="session")
def ray_executor() -> Iterator[RayExecutor]:
    from cope_prep.jobs.executors import RayExecutor

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", HERE)  # Ray hands this to its workers, but not the search path
        executor = RayExecutor(address="local", workers=2)
    yield executor
    executor.close()


@pytest.fixture(autouse=True)
def same_main() -> Iterator[None]:
    """Streamlit's AppTest puts its script in the place of __main__, and processes that are spawned later run it."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main
