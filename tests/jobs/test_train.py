"""`cope-prep train` as a user meets it: on Ray, with a rank killed, stopped by Ctrl-C, and told nonsense.

An undisturbed run, with which the others are compared byte by byte, is made by torchrun: the same ranks, no Ray.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from cope_prep.jobs.cli import app
from cope_prep.schemas.specs import EncodeSpec

if TYPE_CHECKING:
    from cope_prep.jobs.executors import RayExecutor

TESTS = Path(__file__).parents[1]
COMMAND = [sys.executable, "-c", "from cope_prep.jobs.cli import main; main()", "train"]
NUM_STEPS = 60
LIMIT_S = 400
"""Of any one wait: Ray alone starts within seconds on an idle machine, and within minutes on a busy one."""
pytestmark = pytest.mark.timeout(3 * LIMIT_S)
CONFIG = """
output_dir = "run"
tower = {{ llava = "{llava}" }}
delta_encoder = {{ width = 16, num_heads = 2, num_layers = 1, resnet_widths = [8], output_width = 32 }}
alignment = {{ width = 16, num_heads = 2, reference_layers = 1, warp_layers = 1 }}
data = {{ dataset = "{dataset}" }}

[training]
max_steps = {num_steps}
batch_size = 4
micro_batch_size = 2
precision = "fp32"
device = "cpu"
num_workers = 0
log_every = 1
checkpoint_every = 10
tensorboard = false
"""


def _load(path: Path) -> ModuleType:
    name = f"train_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def config(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    """TOML of a tiny stage 1; output_dir is relative to the current folder."""
    folder = tmp_path_factory.mktemp("train")
    datasets = _load(TESTS / "pipeline" / "loader" / "datasets.py")
    encode = EncodeSpec(width_px=64, height_px=64, gop_size=32, preset="ultrafast")
    layout = datasets.make_dataset(
        folder, media, num_videos=8, specs=replace(datasets.SPECS, encode=encode), clip_frames=(32,)
    )
    _load(TESTS / "encoders" / "llava_checkpoint.py").write_checkpoint(folder / "llava")
    return CONFIG.format(llava=folder / "llava", dataset=layout.dataset, num_steps=NUM_STEPS)


@pytest.fixture
def address(ray_executor: RayExecutor) -> str:
    import ray

    return ray.get_runtime_context().gcs_address


def torchrun(folder: Path) -> None:
    """Two ranks to the end, without Ray; from the newest checkpoint if there is one."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "cope_prep.encoders.pretrain"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "config.toml"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def undisturbed(config: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "config.toml").write_text(config)
    torchrun(folder)
    return folder / "run"


@pytest.fixture
def folder(config: str, tmp_path: Path) -> Path:
    """With the configuration in it."""
    (tmp_path / "config.toml").write_text(config)
    return tmp_path


def begin(folder: Path, *flags: str, kind: str = "pretrain") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, kind, "config.toml", "--json", *flags],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(folder: Path, *flags: str, kind: str = "pretrain") -> tuple[int, dict, str]:
    process = begin(folder, *flags, kind=kind)
    stdout, stderr = process.communicate(timeout=LIMIT_S)
    return process.returncode, json.loads(stdout), stderr


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def steps(run: Path) -> list[int]:
    """Of the lines that are complete; the run may be writing one."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def rank_pids(folder: Path) -> dict[int, int]:
    """Processes of a run that began in a folder, by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if b"run_rank" in (path / "cmdline").read_bytes() and (path / "cwd").resolve() == folder:
                variables = (path / "environ").read_bytes().split(b"\0")
                found[next(int(v[5:]) for v in variables if v.startswith(b"RANK="))] = int(path.name)
        except OSError:  # it has ended
            continue
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def assert_same_end(run: Path, undisturbed: Path) -> None:
    """Each step once, and the same bytes, BatchNorm's running statistics among them."""
    assert steps(run) == list(range(1, NUM_STEPS + 1))
    name = f"checkpoints/step-{NUM_STEPS:08d}"
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (run / name / file).read_bytes() == (undisturbed / name / file).read_bytes()
    assert any("running_mean" in key for key in load_file(run / name / "model.safetensors"))
    assert not (run / ".ray").exists()


def test_run_goes_on_after_a_rank_is_killed(folder: Path, address: str, undisturbed: Path) -> None:
    process = begin(folder, "--workers", "2", "--address", address)
    wait_until(lambda: len(steps(folder / "run")) >= 13, process)
    # A whole Ray worker: with it goes the process that it watches.
    os.kill(parent_of(rank_pids(folder)[1]), signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["num_steps"] == NUM_STEPS
    assert "attempt 2 goes on from the newest checkpoint" in stderr
    assert "going on from run/checkpoints/step-000000" in stderr
    assert f"step {NUM_STEPS}/{NUM_STEPS}  loss" in stderr
    assert_same_end(folder / "run", undisturbed)
    assert rank_pids(folder) == {}


def test_ctrl_c_leaves_a_checkpoint_of_the_step(folder: Path, address: str, undisturbed: Path) -> None:
    process = begin(folder, "--workers", "2", "--address", address)
    wait_until(lambda: len(steps(folder / "run")) >= 13, process)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert json.loads(stdout)["error"]["class"] == "Interrupted"
    assert rank_pids(folder) == {}
    done = steps(folder / "run")[-1]
    assert 13 <= done < NUM_STEPS
    assert (folder / "run" / f"checkpoints/step-{done:08d}").is_dir()
    torchrun(folder)
    assert_same_end(folder / "run", undisturbed)


def test_error_of_a_rank_is_one_line(folder: Path, address: str) -> None:
    code, document, stderr = run(
        folder, "--workers", "2", "--address", address, "--set", "data.expect.fps=25"
    )
    assert code == 2
    assert document["error"]["class"] == "ConfigurationError"
    assert "has fps 30, the configuration expects 25" in document["error"]["message"]
    assert "Traceback" not in stderr
    assert rank_pids(folder) == {}


def test_rank_that_dies_too_often_is_named(folder: Path, address: str) -> None:
    process = begin(folder, "--workers", "1", "--address", address, "--max-failures", "0")
    wait_until(lambda: len(steps(folder / "run")) >= 1, process)
    os.kill(rank_pids(folder)[0], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1, stderr
    assert json.loads(stdout)["error"]["class"] == "WorkerDiedError"
    assert "rank 0: its process was killed by SIGKILL" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        ("finetune", [], "is a configuration of pretrain, not of finetune. Run: cope-prep train pretrain"),
        ("pretrain", ["--set", "training.lr=fast"], "training.lr: Input should be a valid number"),
        ("pretrain", ["--set", "training.learning_rate=1"], "training.learning_rate: Extra inputs"),
        ("pretrain", ["--set", "alignment.num_heads=7"], "must be a multiple of 4 and of num_heads 7"),
        ("pretrain", ["--set", "max_steps"], "--set max_steps: is not KEY=VALUE"),
        ("pretrain", ["--workers", "3"], "batch_size 4: is not a multiple of 3 ranks"),
        ("pretrain", ["--no-ray", "--workers", "2"], "--no-ray: trains one rank in this process"),
    ],
)
def test_wrong_configuration_fails_before_ray(
    kind: str, flags: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("cope_prep.jobs.train.RayExecutor", None)
    done = CliRunner().invoke(app, ["train", kind, "config.toml", *flags])
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert not (folder / "run").exists()


def test_without_ray_it_trains_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    flags = ["--no-ray", "--set", "training.max_steps=2", "--set", "output_dir=other", "--json"]
    done = CliRunner().invoke(app, ["train", "pretrain", "config.toml", *flags])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["num_steps"] == 2
    assert steps(folder / "other") == [1, 2]


def test_missing_transformers_says_what_to_install(folder: Path) -> None:
    script = "import sys; sys.modules['transformers'] = None; from cope_prep.jobs.cli import main; main()"
    command = [sys.executable, "-c", script, "train", "pretrain", "config.toml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 2, done.stderr
    assert "transformers is not installed. Run: pip install 'cope-prep[train]'" in done.stderr
    assert "Traceback" not in done.stderr
