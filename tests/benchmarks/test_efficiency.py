"""The benchmarks of latency and of training steps run, on tiny models, and their figures agree with one another."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig

from cope_prep.encoders.delta_encoder import DeltaEncoder, DeltaEncoderConfig
from cope_prep.encoders.describe import LIKE, describe
from cope_prep.encoders.finetune import FinetuneTask
from cope_prep.encoders.pretrain import PretrainTask
from cope_prep.encoders.task import Task
from cope_prep.encoders.token_stream import TokenLayout
from cope_prep.encoders.video_lm import VideoLM
from cope_prep.encoders.vision_tower import VisionTower

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts, in no package
import flops
import model_sizes
import training_step
import ttft


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, real_clips: list[Path]) -> Path:
    """Models and data of all tests here."""
    assert real_clips
    return tmp_path_factory.mktemp("efficiency")


HEAD = {
    *("date", "machine", "commit", "has_uncommitted_changes"),
    *("load_average_before", "load_average_after", "size"),
}
"""What a results file says of where its figures come from, by itself."""

COLOURS = 2 * 3 * 3
"""FLOPs of a pixel from YUV to RGB."""


def median(spread: dict[str, float]) -> float:
    assert spread["least"] <= spread["median"] <= spread["most"]
    return spread["median"]


def test_latency_of_every_density(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = folder / "ttft.json"
    ttft.main(
        [
            *("--size", "tiny", "--device", "cpu", "--seconds", "8", "--rounds", "2", "--new-tokens", "3"),
            *("--no-memory", "--folder", str(folder), "--json", str(path)),
        ]
    )
    document = json.loads(path.read_text())
    assert document.keys() >= HEAD
    assert document["flops"]["7b"]["deltas_together"] == 7
    rows = document["key_frames_a_gop"]
    assert list(rows) == ["8", "4", "2", "1"]
    for density, row in rows.items():
        pictures = int(density)
        assert (row["num_pictures"], row["num_deltas"]) == (pictures, 8 - pictures)
        assert row["visual_tokens"] == 6 * pictures + 8 * (8 - pictures)
        assert row["prompt_tokens"] == rows["8"]["prompt_tokens"]
        # Of two rounds the median is the mean, which adds up.
        stages = [median(row[f"{stage}_s"]) for stage in ttft.STAGES]
        assert median(row["ttft_s"]) == pytest.approx(sum(stages[:3]), abs=1e-5)
        assert median(row["end_to_end_s"]) == pytest.approx(sum(stages), abs=1e-5)
        of_means = median(row["end_to_end_s"]) / median(rows["8"]["end_to_end_s"]) - 1
        change = row["end_to_end_change"]
        assert change["least"] - 1e-3 <= of_means <= change["most"] + 1e-3
        assert (row["flops_change_7b"] == 0) == (pictures == 8)
    assert median(rows["8"]["ttft_change"]) == 0
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
    true, small = (ttft.relative(flops.count_flops(model_sizes.SIZES[name])) for name in ("7b", "small"))
    assert true["gflops_a_token"] == pytest.approx(
        13.05, abs=0.01
    )  # 2 x the 6.5 G weights of Qwen2-7B's layers
    assert true["picture_over_token"] == pytest.approx(51, abs=1)
    for name in ("picture_over_token", "attention_over_token_at_13440"):
        assert small[name] == pytest.approx(true[name], rel=0.1), name
    assert small["delta_over_token"] == pytest.approx(true["delta_over_token"], rel=0.3)


def test_delta_flops_are_of_frames_together() -> None:
    """The frame at rest, which goes along with each batch, is a P-frame's cost once, not once for each of them."""
    size = model_sizes.SIZES["7b"]
    hidden, width = size.language["hidden_size"], size.tower["hidden_size"]
    projector = 2 * hidden * (width + hidden) * 8
    one, seven = flops.count_flops(size, num_together=1), flops.count_flops(size)
    assert (one.num_together, seven.num_together) == (1, 7)
    colours = COLOURS * 384 * 384  # of the residual, before the frame at rest is there
    one_frame = (one.delta - projector - colours) / 2
    assert seven.delta - projector - colours == pytest.approx(one_frame * 8 / 7, rel=1e-12)
    described = describe(None, like=LIKE, measure=False).delta_encoder
    assert described.num_together == seven.num_together
    assert seven.delta - projector == pytest.approx(described.flops, abs=1)


def test_prefill_counts_the_frame_at_rest_once_a_video() -> None:
    eight, one = (ttft._prefill_flops("tiny", num_gops=8, density=density, text=0) for density in (8, 1))
    costs = flops.count_flops(model_sizes.SIZES["tiny"], num_together=56)
    assert one == costs.of_prefill(num_pictures=8, num_deltas=56, num_tokens=8 * 266)
    assert eight == costs.of_prefill(num_pictures=64, num_deltas=0, num_tokens=13440)


def tiny_task(folder: Path, name: str, train: str = "all") -> Task:
    arguments = training_step.parse(
        [
            *("--size", "tiny", "--device", "cpu", "--clips", "1", "--tasks", name, "--train", train),
            *("--folder", str(folder)),
        ]
    )
    training_step.prepare(arguments).rmdir()
    config = training_step.config_of(name, arguments, folder / "unused")
    return FinetuneTask(config) if name == "finetune" else PretrainTask(config)


def test_configuration_is_written_once_for_all_ranks(folder: Path) -> None:
    """Each rank makes its own from the files of the first, which others may be reading."""
    arguments = training_step.parse(["--size", "tiny", "--device", "cpu", "--folder", str(folder)])
    arguments.clips = 1
    training_step.prepare(arguments).rmdir()
    files = [path for path in (folder / "models-tiny").rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    for name in ("finetune", "pretrain"):
        training_step.config_of(name, arguments, folder / "unused")
    assert any(path.name == "tokenizer.json" for path in before)
    assert {path: path.stat().st_mtime_ns for path in files} == before


def flops_of_a_real_step(task: Task, batch: Any) -> int:
    """Forward and backward, computed. The counter does not know the fused attention of a CPU."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            prepared = task.prepare(batch, torch.device("cpu"))
        task.loss(task.model, prepared).loss_sum.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(("name", "train"), [("finetune", "all"), ("finetune", "delta"), ("pretrain", "all")])
def test_step_is_counted_as_it_is_computed(folder: Path, name: str, train: str) -> None:
    """Not about as many: the same number, but for the colours of pictures, which are no part of a model."""
    task = tiny_task(folder, name, train)
    batch = next(iter(training_step.loader_of(task)))
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    shape = flops.shape_of(task, batch)
    counted = flops.count_step(task, shape)
    assert all(parameter.grad is None for parameter in task.model.parameters())
    for key, value in task.model.state_dict().items():
        assert torch.equal(value, before[key]), key
    colours = COLOURS * 64 * 64 * shape.num_pictures  # in to_device
    assert counted == flops_of_a_real_step(task, batch) - colours
    assert shape.num_pictures > 0
    assert any(parameter.grad is not None for parameter in task.model.parameters())


def test_step_of_a_model_that_no_memory_holds_is_counted() -> None:
    """7B parameters that are nowhere: what counts them makes no tensor either, on a GPU or beside it."""
    size = model_sizes.SIZES["7b"]
    with torch.device("meta"):
        model = VideoLM(
            vision_tower=VisionTower(SiglipVisionConfig.from_dict(dict(size.tower))),
            delta_encoder=DeltaEncoder(DeltaEncoderConfig()),
            language_model=Qwen2ForCausalLM(Qwen2Config.from_dict(dict(size.language))),
            layout=TokenLayout(),
        )
    shape = flops.StepShape(
        num_samples=1, num_pictures=8, num_deltas=56, num_slots=56, frame_px=(384, 384),
        num_sequences=1, length=2628, num_answer_tokens=10,
    )  # fmt: skip
    costs = flops.count_flops(size, num_together=56)
    forward = (
        costs.picture * 8 + costs.delta * 56 + costs.token * 2628 + costs.attention * 2628**2
        + 2 * model.language_model.lm_head.weight.numel() * 10
    )  # fmt: skip
    counted = flops.count_finetune_step(model, shape)
    # A backward is two forwards, but for what would be the gradient of pixels and vectors.
    assert counted == pytest.approx(3 * forward, rel=0.01)
    model.vision_tower.requires_grad_(False)
    frozen = flops.count_finetune_step(model, shape)
    projector = 2 * 3584 * (1152 + 3584) * 27 * 27
    assert counted - frozen == pytest.approx(2 * (costs.picture - projector) * 8, rel=0.01)


def test_training_steps_of_both_tasks(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = folder / "step.json"
    training_step.main(
        [
            *("--size", "tiny", "--device", "cpu", "--rounds", "2", "--steps", "3", "--warmup", "1"),
            *("--clips", "1", "--workers", "0", "--loader-seconds", "0"),
            *("--folder", str(folder), "--json", str(path)),
        ]
    )
    document = json.loads(path.read_text())
    assert document.keys() >= HEAD
    tasks = document["tasks"]
    assert list(tasks) == ["finetune", "pretrain"]
    # Two questions of one video of two GOPs, at 4 I + 4 P; two windows.
    assert [found["deltas_together"] for found in tasks.values()] == [8, 2]
    for found in tasks.values():
        assert (found["rounds"], found["num_steps_measured"]) == (2, 4)
        assert len(found["loader_share_of_rounds"]) == 2
        for name in ("loader_share", "samples_per_s", "step_s", "loader_alone_samples_per_s"):
            assert found[name]["least"] > 0
            assert median(found[name]) > 0, name
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
    assert "leaves no step" in capfd.readouterr().err
