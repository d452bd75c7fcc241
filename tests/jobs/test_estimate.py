"""`cope-prep estimate`: what it says of a dataset is what a run of it makes."""

from __future__ import annotations

import functools
import json
import os
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from cope_prep.jobs.cli import app
from cope_prep.jobs.executors import InProcessExecutor
from cope_prep.jobs.meter import Meter
from cope_prep.jobs.worker import Done, Failure, Reply
from cope_prep.pipeline import encode, reencode_parts
from cope_prep.pipeline.split import Split

SPEC = ("--size", "64x48", "--no-ray", "--quiet")
NUM_CLIPS = 10


@pytest.fixture(scope="module")
def dataset(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clips of one kind, from one second to ten, and an 11th that is none."""
    folder = tmp_path_factory.mktemp("estimate")
    (folder / "clips").mkdir()
    for index in range(NUM_CLIPS):
        media.write_clip(
            folder / "clips" / f"{index}.mp4",
            num_frames=30 * (index + 1),
            painter=media.moving,
            size_px=(96, 64),
        )
    (folder / "clips" / "broken.mp4").write_bytes(os.urandom(100_000))
    call(["manifest", "files", str(folder / "clips"), str(folder / "dataset")])
    return folder / "dataset"


def call(arguments: list[str], exit_code: int = 0) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == exit_code, done.output
    return done.stdout


def estimate(dataset: Path, *arguments: str) -> dict[str, Any]:
    return json.loads(call(["estimate", str(dataset), "--json", *SPEC, *arguments]))


@pytest.fixture(scope="module")
def truth(dataset: Path) -> dict[str, dict[str, Any]]:
    """What a run over everything says of its stages."""
    done = CliRunner().invoke(app, ["run", str(dataset), "--json", *SPEC])
    assert done.exit_code == 1, done.output  # for broken.mp4
    return {stage["stage"]: stage for stage in json.loads(done.stdout)["stages"]}


def test_all_videos_give_what_the_run_gives(dataset: Path, truth: dict[str, dict[str, Any]]) -> None:
    before = sorted(dataset.rglob("*"))
    found = estimate(dataset, "--sample", "11")
    assert sorted(dataset.rglob("*")) == before
    for stage, summary in truth.items():
        figures = found["stages"][stage]
        assert figures["bytes"]["value"] == pytest.approx(summary["output_bytes"], rel=0.01)
        assert figures["bytes"]["low"] == figures["bytes"]["high"]
        assert figures["core_hours"]["value"] > 0
    assert found["video_hours"]["value"] * 3600 == pytest.approx(truth["extract"]["duration_s"])
    assert found["failed_videos"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    (failure,) = found["sample"]["failures"]
    assert (failure["subject"], failure["error_class"]) == ("broken.mp4", "NotAVideoError")


def test_a_part_of_them_comes_near(
    dataset: Path, truth: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    asked = ("--sample", "6", "--sample-seed", "5", "--nodes", "64", "--node-cores", "16", "--cores", "3")
    prices = ("--node-price", "0.32", "--storage-price-per-gb-month", "0.5")
    found = estimate(dataset, *asked, *prices, "--core-speed", "2")
    assert list(tmp_path.iterdir()) == []  # what the sample made is gone
    assert found["sample"]["videos"] == len(set(found["sample"]["video_ids"])) == 6
    for stage, summary in truth.items():
        figures = found["stages"][stage]["bytes"]
        assert figures["value"] == pytest.approx(summary["output_bytes"], rel=0.35)
        assert figures["low"] < figures["value"] < figures["high"]
    again = estimate(dataset, "--sample", "6", "--sample-seed", "5", "--cores", "3")
    assert again["sample"]["video_ids"] == found["sample"]["video_ids"]
    assert again["stages"]["shards"]["bytes"] == found["stages"]["shards"]["bytes"]
    assert again["compute_dollars"] is None
    assert [(job["cores"], job["nodes"]) for job in found["jobs"]] == [(3, None), (1024, 64)]
    core_hours = found["core_hours"]["value"]
    assert found["compute_dollars"]["value"] == pytest.approx(core_hours * 0.02)
    shard_bytes = found["stages"]["shards"]["bytes"]["value"]
    assert found["storage_dollars_per_month"]["value"] == pytest.approx(shard_bytes * 0.5e-9)
    few, many = (job["wall_s"]["value"] for job in found["jobs"])
    assert few == pytest.approx(core_hours * 3600 / 3)
    assert many == pytest.approx(found["least_wall_s"])  # a thousand cores wait for one video


def test_one_long_video_is_done_in_parts(
    dataset: Path, media: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "MIN_SEGMENT_S", 1)
    monkeypatch.setattr(reencode_parts, "_WORK_PER_FRAME_S", 100.0)  # a part is a second of video
    (tmp_path / "clips").mkdir()
    media.write_clip(tmp_path / "clips" / "long.mp4", num_frames=360, size_px=(96, 64))
    call(["manifest", "files", str(tmp_path / "clips"), str(tmp_path / "dataset")])
    found = estimate(tmp_path / "dataset", "--sample", "2", "--cores", "1000", "--gop-size", "40")
    (job,) = found["jobs"]
    assert job["wall_s"]["value"] == pytest.approx(found["least_wall_s"])
    reencode_s = found["stages"]["reencode"]["core_hours"]["value"] * 3600
    assert found["least_wall_s"] < found["longest_video_s"] - reencode_s / 2  # 9 parts


def test_meter_counts_every_attempt_and_the_slowest_part() -> None:
    class Scripted(InProcessExecutor):
        def wait(self, timeout_s: float) -> list[tuple[int, Reply]]:
            return [(token, reply) for token, reply in enumerate(replies)]

        def submit(self, token: int, call: bytes, **how: Any) -> None:
            pass

    def done(wall_s: float, value: object = None) -> Done:
        return Done(value=value, wall_s=wall_s, cpu_s=wall_s / 2)

    nothing = functools.partial(str)
    split = Split(parts=(nothing,) * 3, join=nothing, whole=nothing)
    lost = Failure(error_class="StorageError", error_message="", retriable=True, wall_s=5.0, cpu_s=0.0)
    replies: list[Reply] = [lost, done(1.0, split), done(20.0), done(30.0), done(10.0), done(2.0)]
    meter = Meter(Scripted())
    for token in range(len(replies)):
        meter.submit(token, b"", subject="long", time_limit_s=None)
    meter.wait(0.0)
    spent = meter.take()["long"]
    assert (spent.wall_s, spent.cpu_s) == (68.0, 31.5)
    assert spent.floor_s == 5.0 + 1.0 + 30.0 + 2.0
    assert meter.take() == {}


def test_sigterm_does_not_promise_to_go_on(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def terminate(*args: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("cope_prep.jobs.estimate.estimate_dataset", terminate)
    done = CliRunner().invoke(app, ["estimate", str(dataset), *SPEC])
    assert done.exit_code == 143
    assert "nothing is left of the sample" in done.stderr
    assert "go on" not in done.stderr


def test_text(dataset: Path) -> None:
    text = call(["estimate", str(dataset), "--sample", "4", "--cores", "1000", *SPEC])
    assert text.startswith("Ran 4 of 11 videos")
    for line in ("core hours", "  extract", "shards", "longest video", "1,000 cores"):
        assert line in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--memory-limit", "1MiB"), "is too little for a worker"),
        (("--nodes", "4"), "Give --node-cores, too"),
        (("--node-price", "1"), "Give --node-cores, too"),
        (("--node-price", "1", "--price-per-core-hour", "1"), "Give one"),
        (("--address", "127.0.0.1:1"), "Give --scratch"),
        (("--scratch", "/nowhere/at/all", "--no-ray"), "cannot be used"),
    ],
)
def test_wrong_options_fail(dataset: Path, arguments: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(app, ["estimate", str(dataset), *arguments])
    assert done.exit_code == 2
    assert message in done.output


def test_a_dataset_without_a_manifest_fails(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["estimate", str(tmp_path), "--no-ray"])
    assert done.exit_code == 2
    assert "has no manifest.parquet" in done.output
