"""The benchmarks of latency and of training steps run, on tiny models, and their figures agree with one another."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts, in no package
import model_sizes
import training_step
import ttft


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, real_clips: list[Path]) -> Path:
    """Models and data of all tests here."""
    assert real_clips
    return tmp_path_factory.mktemp("efficiency")


def test_latency_of_every_density(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = folder / "ttft.json"
    ttft.main(
        [
            *("--size", "tiny", "--device", "cpu", "--seconds", "8", "--rounds", "1", "--new-tokens", "3"),
            *("--no-memory", "--folder", str(folder), "--json", str(path)),
        ]
    )
    document = json.loads(path.read_text())
    rows = document["key_frames_a_gop"]
    assert list(rows) == ["8", "4", "2", "1"]
    for density, row in rows.items():
        pictures = int(density)
        assert (row["num_pictures"], row["num_deltas"]) == (pictures, 8 - pictures)
        assert row["visual_tokens"] == 6 * pictures + 8 * (8 - pictures)
        assert row["prompt_tokens"] == rows["8"]["prompt_tokens"]
        stages = [row[f"{stage}_s"] for stage in ttft.STAGES]
        assert row["ttft_s"] == pytest.approx(sum(stages[:3]), abs=1e-3)
        assert row["end_to_end_s"] == pytest.approx(sum(stages), abs=1e-3)
        assert row["end_to_end_change"] == pytest.approx(
            row["end_to_end_s"] / rows["8"]["end_to_end_s"] - 1, abs=0.05
        )
    assert rows["8"]["ttft_change"] == 0
    assert "8 + 0" in capfd.readouterr().out


def test_an_answer_has_the_length_that_is_asked_for_and_is_the_same_again(folder: Path) -> None:
    arguments = ttft.parse(
        ["--size", "tiny", "--device", "cpu", "--seconds", "8", "--new-tokens", "5", "--folder", str(folder)]
    )
    contestant = ttft.Contestant(arguments)
    first, again = contestant.answer(1), contestant.answer(1)
    assert len(first.tokens) == 5
    assert first.tokens == again.tokens


def test_peak_memory_is_the_answering_process_own(folder: Path) -> None:
    arguments = ttft.parse(
        ["--size", "tiny", "--device", "cpu", "--seconds", "8", "--new-tokens", "2", "--folder", str(folder)]
    )
    # This process holds more than that: a peak that a child inherits would leave nothing, or give ours.
    assert 0 < ttft.peak_of_child(1, arguments) < 1 << 30


def test_video_is_a_whole_number_of_gops_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ttft.parse(["--seconds", "60"])
    assert "must be a multiple of 8" in capfd.readouterr().err


def test_small_model_has_the_proportions_of_the_true_one() -> None:
    true, small = (
        ttft.relative(model_sizes.count_flops(model_sizes.SIZES[name])) for name in ("7b", "small")
    )
    assert true["gflops_a_token"] == pytest.approx(
        13.05, abs=0.01
    )  # 2 x the 6.5 G weights of Qwen2-7B's layers
    assert true["picture_over_token"] == pytest.approx(51, abs=1)
    for name in ("picture_over_token", "attention_over_token_at_13440"):
        assert small[name] == pytest.approx(true[name], rel=0.1), name
    assert small["delta_over_token"] == pytest.approx(true["delta_over_token"], rel=0.3)


def test_training_steps_of_both_tasks(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = folder / "step.json"
    training_step.main(
        [
            *("--size", "tiny", "--device", "cpu", "--steps", "4", "--warmup", "2", "--log-every", "1"),
            *("--clips", "1", "--workers", "0", "--loader-seconds", "0"),
            *("--folder", str(folder), "--json", str(path)),
        ]
    )
    tasks = json.loads(path.read_text())["tasks"]
    assert list(tasks) == ["finetune", "pretrain"]
    for found in tasks.values():
        assert found["num_lines"] == 2
        for name in ("loader_share", "samples_per_s", "step_s"):
            spread = found[name]
            assert 0 < spread["least"] <= spread["median"] <= spread["most"], name
        assert found["loader_share"]["most"] < 1
        # Of one step: a rate and a time are the same figure.
        assert found["step_s"]["least"] * found["samples_per_s"]["most"] == pytest.approx(
            found["batch_size"], rel=0.01
        )
        assert found["gflops_a_sample"] > 0
    assert not list(folder.glob("runs-*"))
    assert "waiting for the loader" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("gpu", "peak"), [("NVIDIA H200", 989.0), ("NVIDIA H100 PCIe", 756.0), ("NVIDIA GeForce RTX 3060", None)]
)
def test_peak_of_a_gpu(gpu: str, peak: float | None) -> None:
    assert training_step.peak_tflops(gpu) == peak


def test_warm_up_that_leaves_nothing_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        training_step.parse(["--steps", "4", "--warmup", "4", "--device", "cpu"])
    assert "leaves no line" in capfd.readouterr().err
