"""A bucket, and three Ray nodes that share nothing else."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ray_nodes import RayNodes

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

NUM_CLIPS = 12


@pytest.fixture(scope="module")
def clips(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of videos, each another one."""
    folder = tmp_path_factory.mktemp("clips")
    for index in range(NUM_CLIPS):
        media.write_clip(
            folder / f"{index:02}.mp4",
            num_frames=40 + 5 * index,
            painter=media.moving,
            first_index=11 * index,
            size_px=(192, 128),
        )
    return folder


@pytest.fixture(scope="module")
def endpoint(s3_faults: ModuleType) -> Iterator[str]:
    """URL of moto's S3, over real HTTP, which is empty."""
    with s3_faults.moto() as url:
        yield url


@pytest.fixture(scope="module")
def bucket(endpoint: str, clips: Path) -> Any:
    """The store, as fsspec has it: the clips are in bucket/videos."""
    import fsspec

    store = fsspec.filesystem(
        "s3", key="test", secret="test", endpoint_url=endpoint, skip_instance_cache=True
    )
    store.mkdir("bucket")
    for clip in sorted(clips.iterdir()):
        store.put_file(str(clip), f"bucket/videos/{clip.name}")
    return store


@pytest.fixture(scope="module")
def nodes(s3_faults: ModuleType, endpoint: str, bucket: Any) -> Iterator[RayNodes]:
    """Three nodes of one CPU each."""
    from ray_nodes import RayNodes

    folder = Path(tempfile.mkdtemp(prefix="nodes-", dir="/tmp"))  # a socket's path has 107 characters at most
    # PIP_NO_DEPS: Ray has pip install a wheel of `py_modules`, which must not fetch what is there already.
    environment = {**s3_faults.login(endpoint), "PIP_NO_DEPS": "1"}
    try:
        with RayNodes(folder, num_cpus=[1, 1, 1], environment=environment, dashboard=True) as started:
            yield started
    finally:
        shutil.rmtree(folder, ignore_errors=True)
