"""Stage 1's model: it begins at the baseline, and learns from Δ what the reference does not show."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cope_prep.encoders.alignment import AlignmentConfig, AlignmentModel, patch_error

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
import small_models

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 3
CONFIG = AlignmentConfig(width=32, num_heads=2, reference_layers=1, warp_layers=2)


def make(**values: int) -> AlignmentModel:
    torch.manual_seed(0)
    delta = small_models.DELTA.model_copy(update={"output_width": 8, **values})
    return AlignmentModel(CONFIG, delta, patches_per_side=SIDE)


def windows(num_windows: int, *, seed: int) -> dict[str, Any]:
    """The whole picture moves by a patch to the right or left, and the vectors say to which."""
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(num_windows, SIDE, SIDE, 8, generator=generator)
    steps = torch.tensor([(1, 0), (-1, 0)])  # (x, y) in patches of 16 px
    steps = steps[torch.randint(0, 2, (num_windows,), generator=generator)]
    target = torch.stack(
        [
            patches.roll((int(y), int(x)), dims=(0, 1))
            for patches, (x, y) in zip(reference, steps, strict=True)
        ]
    )
    motion = (-16.0 * steps)[:, None, :, None, None].expand(-1, 1, -1, SIDE, SIDE)
    return {
        "delta": {
            "motion_px_BPCHW": motion.contiguous(),
            "intra_BPHW": torch.zeros(num_windows, 1, SIDE, SIDE, dtype=torch.bool),
            "residual_y_BPCHW": torch.zeros(num_windows, 1, 1, 16 * SIDE, 16 * SIDE),
            "residual_uv_BPCHW": torch.zeros(num_windows, 1, 2, 8 * SIDE, 8 * SIDE),
            "delta_mask_BP": torch.ones(num_windows, 1, dtype=torch.bool),
        },
        "reference_FMD": reference.flatten(1, 2),
        "target_FMD": target.flatten(1, 2),
    }


def baselines(model: AlignmentModel, given: dict[str, Any]) -> dict[str, float]:
    """As the task reports them."""
    return {
        "copy_reference": float(patch_error(given["reference_FMD"], given["target_FMD"])),
        "zero_delta": float(model(**given, has_delta=False).loss_sum),
    }


@pytest.mark.parametrize("is_bf16", [False, True])
def test_training_begins_at_the_copy_of_the_reference(is_bf16: bool) -> None:
    model, given = make(), windows(5, seed=1)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_bf16):
        loss = float(model(**given).loss_sum)
        found = baselines(model, given)
        assert torch.equal(
            model.predict(given["reference_FMD"], torch.randn(5, 3, 8)), given["reference_FMD"]
        )
    assert loss == found["copy_reference"] == found["zero_delta"] > 0


def test_loss_is_a_sum_over_patches_of_the_mean_over_width() -> None:
    given = windows(3, seed=2)
    predicted, target = given["reference_FMD"], given["target_FMD"]
    slow = sum(
        float(((predicted[frame, patch] - target[frame, patch]) ** 2).mean())
        for frame in range(3)
        for patch in range(SIDE**2)
    )
    assert float(patch_error(predicted, target)) == pytest.approx(slow, rel=1e-5)
    assert patch_error(predicted.bfloat16(), target).dtype == torch.float32


def test_motion_is_learned_and_beats_both_baselines() -> None:
    model = make(residual_tokens=0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(300):
        model(**windows(32, seed=10 + step)).loss_sum.div(32 * SIDE**2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    held_out = windows(64, seed=1)
    with torch.no_grad():
        loss = float(model.eval()(**held_out).loss_sum)
        found = baselines(model, held_out)
    assert loss < 0.8 * found["copy_reference"]
    assert loss < 0.97 * found["zero_delta"]


def test_only_delta_tokens_and_reference_are_looked_at() -> None:
    """Not the target; and Δ-tokens of zero are another input than those of the window."""
    model, given = make().eval(), windows(4, seed=3)
    torch.nn.init.normal_(model.out.weight, std=0.1)
    with torch.no_grad():
        tokens = model.delta_encoder(**given["delta"]).flatten(1, 2)
        predicted = model.predict(given["reference_FMD"], tokens)
        expected = patch_error(predicted, given["target_FMD"])
        torch.testing.assert_close(model(**given).loss_sum, expected)
        zero = model.predict(given["reference_FMD"], torch.zeros_like(tokens))
        assert not torch.allclose(predicted, zero)
        found = baselines(model, given)
    assert found["zero_delta"] == pytest.approx(float(patch_error(zero, given["target_FMD"])))


def test_no_window_gives_zero_gradients() -> None:
    """A rank whose windows were all skipped meets others that have some."""
    model, given = make().train(), windows(2, seed=4)
    given["delta"] = {name: value[:0] for name, value in given["delta"].items()}
    loss = model(**given | {name: given[name][:0] for name in ("reference_FMD", "target_FMD")}).loss_sum
    loss.backward()
    assert loss.item() == 0
    gradients = {name: value.grad for name, value in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or gradient.any()] == []
