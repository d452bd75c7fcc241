"""A Ray that is there already: the wheel's code reaches its workers, and nothing listens beyond this machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from cope_prep.jobs.executors import RayExecutor
from cope_prep.schemas.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
ASK = """
import functools, importlib.metadata, inspect, json, sys
from cope_prep.jobs.executors import RayExecutor
from cope_prep.jobs.stage import Item, run_items
from cope_prep.schemas.errors import CopePrepError

executor = RayExecutor(address=sys.argv[1], wheel=sys.argv[2])
calls = [
    functools.partial(inspect.getfile, CopePrepError),
    functools.partial(importlib.metadata.version, "cope-prep"),
]
answers = {}
run_items(
    [Item(subject=str(index), weight=1.0, value=call) for index, call in enumerate(calls)],
    lambda call: call,
    executor=executor,
    emit=lambda outcome: answers.update({outcome.item.subject: outcome.reply.value}),
)
executor.close()
print(json.dumps(answers))
"""


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """As `python -m build --wheel` packs it, but with a version of its own."""
    path = tmp_path / "cope_prep-99.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for package in ("schemas", "pipeline", "jobs"):
            for source in sorted((ROOT / package).rglob("*.py")):
                archive.write(source, f"cope_prep/{source.relative_to(ROOT)}")
        archive.writestr(
            "cope_prep-99.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: cope-prep\nVersion: 99.0\n"
        )
    return path


def test_workers_run_the_code_of_the_wheel(ray_executor: RayExecutor, wheel: Path) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    # Not in the repository, where an editable install leaves cope_prep.egg-info: its version would be found first.
    command = [sys.executable, "-c", ASK, address, str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=wheel.parent)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert "py_modules_files" in answers["0"]
    assert answers["1"] == "99.0" != importlib.metadata.version("cope-prep")


def test_starts_where_ray_was_imported_before(tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(
        "import ray\n"
        "from cope_prep.jobs.executors import RayExecutor\n"
        "executor = RayExecutor(address='local', workers=1)\n"
        "executor.close()\n"
    )
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "HOME": str(tmp_path)
    }
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, env=bare)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / ".ray").exists()  # no token is left in the home


@pytest.mark.parametrize("content", [b"junk", None])
def test_file_that_is_no_wheel_of_ours_fails(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "other-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other/__init__.py", "")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"--wheel {path}: "):
        RayExecutor(address="auto", wheel=str(path))


def test_cluster_file_is_what_ray_up_accepts() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    validate_config(prepare_config(config))
    workers = config["available_node_types"]["worker"]
    assert workers["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert workers["min_workers"] == 0
    assert workers["max_workers"] <= config["max_workers"]


def test_local_ray_listens_on_the_loopback_only(ray_executor: RayExecutor) -> None:
    import ray

    (node,) = ray.nodes()
    assert node["NodeManagerAddress"] == "127.0.0.1"
    port = node["NodeManagerPort"]
    listeners = [
        line.split()[1]
        for name in ("tcp", "tcp6")
        for line in Path("/proc/net", name).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].split(":")[1], 16) == port
    ]
    assert listeners
    # 127.0.0.1, and the same as an IPv6 address, in the byte order of /proc/net.
    assert {entry.split(":")[0] for entry in listeners} <= {"0100007F", "0000000000000000FFFF00000100007F"}
