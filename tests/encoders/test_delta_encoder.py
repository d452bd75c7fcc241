"""The Δ-encoder: any grid, padding that nobody notices, tokens that say what moved where."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import ResNetConfig, ResNetModel

from cope_prep.encoders.delta_encoder import DeltaEncoder, DeltaEncoderConfig
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader import GopDataset, GopFilter, MixPart, to_device
from cope_prep.pipeline.loader.device import planes_to_rgb, split_planes
from cope_prep.schemas.errors import ConfigurationError

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
import small_models

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = GopFilter(max_duration_s=2)
STD = torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def tall(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """4 videos of 32 x 96."""
    return small_models.make_tall(media, tmp_path_factory.mktemp("tall"))


def make(**values: Any) -> DeltaEncoder:
    torch.manual_seed(0)
    return DeltaEncoder(DeltaEncoderConfig(**(small_models.DELTA.model_dump() | values)))


def inputs(
    num_gops: int = 2, num_frames: int = 3, *, size: tuple[int, int] = (64, 64), block_px: int = 16
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    height, width = size
    lead, grid = (num_gops, num_frames), (height // block_px, width // block_px)
    return {
        "motion_px_BPCHW": torch.randn(*lead, 2, *grid, generator=generator) * 8,
        "intra_BPHW": torch.rand(*lead, *grid, generator=generator) > 0.8,
        "residual_y_BPCHW": torch.rand(*lead, 1, height, width, generator=generator) - 0.5,
        "residual_uv_BPCHW": torch.rand(*lead, 2, height // 2, width // 2, generator=generator) - 0.5,
        "delta_mask_BP": torch.ones(lead, dtype=torch.bool),
    }


def test_one_set_of_weights_reads_any_grid_and_size() -> None:
    encoder = make().eval()
    for size, block_px in (((64, 64), 16), ((96, 64), 8), ((64, 160), 16), ((384, 384), 16)):
        given = inputs(1, 2, size=size, block_px=block_px)
        with torch.no_grad():
            tokens = encoder(**given)
        assert tokens.shape == (1, 2, 3, 32)
        assert tokens.isfinite().all()
        assert not torch.allclose(tokens[0, 0], tokens[0, 1])


@pytest.mark.parametrize("counts", [(2, 0), (0, 2), (1, 1), (4, 4), (16, 16), (32, 0)])
def test_any_split_of_tokens(counts: tuple[int, int]) -> None:
    encoder = make(motion_tokens=counts[0], residual_tokens=counts[1]).eval()
    assert (encoder.motion is None, encoder.residual is None) == (counts[0] == 0, counts[1] == 0)
    given = inputs()
    with torch.no_grad():
        tokens = encoder(**given)
        still = encoder(**(given | {"motion_px_BPCHW": given["motion_px_BPCHW"] * 0}))
        plain = encoder(**(given | {"residual_y_BPCHW": given["residual_y_BPCHW"] * 0}))
    assert tokens.shape == (2, 3, sum(counts), 32)
    of_motion = torch.arange(sum(counts)) < counts[0]  # motion's tokens come first
    assert torch.equal((tokens != still).any(-1).all(0).all(0), of_motion)
    assert torch.equal((tokens != plain).any(-1).all(0).all(0), ~of_motion)


def test_intra_and_place_of_motion_are_seen() -> None:
    encoder = make().eval()
    given = inputs(1, 1)
    with torch.no_grad():
        tokens = encoder(**given)
        assert not torch.allclose(encoder(**(given | {"intra_BPHW": ~given["intra_BPHW"]})), tokens)
        motion = torch.zeros(1, 1, 2, 4, 4)
        motion[..., 0, 0] = 5.0
        here = encoder(**(given | {"motion_px_BPCHW": motion}))
        there = encoder(**(given | {"motion_px_BPCHW": motion.roll(2, dims=-1)}))
        residual = torch.zeros(1, 1, 1, 64, 64)
        residual[..., :16, :16] = 1.0
        low = encoder(**(given | {"residual_y_BPCHW": residual}))
        right = encoder(**(given | {"residual_y_BPCHW": residual.roll(32, dims=-1)}))
    assert (here - there)[:, :, :2].abs().max() > 1e-3
    assert (low - right)[:, :, 2:].abs().max() > 1e-3


def test_lengths_are_told_apart_by_pattern() -> None:
    """From a quarter pixel to far across the frame, whatever the direction: twice as long looks different, slightly
    longer looks alike. (With tanh at four scales, a language model could not tell 4 px from 10.)"""
    encoder = make().eval()

    def tokens(x_px: float, y_px: float) -> torch.Tensor:
        motion = torch.zeros(1, 1, 2, 4, 4)
        motion[:, :, 0, 1:3, 1:3], motion[:, :, 1, 1:3, 1:3] = x_px, y_px
        nothing = {name: value * 0 for name, value in inputs(1, 1).items() if "residual" in name}
        given = inputs(1, 1) | nothing | {"motion_px_BPCHW": motion}
        given["intra_BPHW"] = torch.zeros_like(given["intra_BPHW"])
        with torch.no_grad():
            return encoder(**given)[0, 0, : encoder.config.motion_tokens].flatten()

    def difference(one: torch.Tensor, other: torch.Tensor) -> float:
        return float((one - other).norm() / one.norm())

    assert tokens(0.0, 0.0).abs().max() < 1e-5
    for length_px in (0.25, 1.0, 4.0, 30.0, 100.0):
        for x, y in ((1.0, 0.0), (-0.6, 0.8)):
            one = tokens(x * length_px, y * length_px)
            assert difference(one, tokens(2 * x * length_px, 2 * y * length_px)) > 0.25
            assert difference(one, tokens(1.02 * x * length_px, 1.02 * y * length_px)) < 0.1
            assert difference(one, tokens(-x * length_px, -y * length_px)) > 0.25


def test_a_frame_in_which_nothing_happens_has_no_tokens() -> None:
    """Zeros, whatever the others of its batch do: a Δ-token says what is different."""
    encoder = make().eval()
    given = inputs(1, 3)
    for name in ("motion_px_BPCHW", "intra_BPHW", "residual_y_BPCHW", "residual_uv_BPCHW"):
        given[name][:, 1] = 0
    with torch.no_grad():
        tokens = encoder(**given)
    torch.testing.assert_close(tokens[:, 1], torch.zeros(1, 3, 32), atol=1e-5, rtol=0)
    assert tokens[:, ::2].abs().amax(dim=(-1, -2)).min() > 1e-3


def test_padding_is_zero_and_changes_nothing() -> None:
    """Whatever lies in frames that are not there; neither tokens nor the statistics of BatchNorm."""
    alone, padded = make().train(), make().train()
    given = inputs(2, 2)
    wide = {name: torch.cat((value, value * 3 if value.is_floating_point() else value), 1)
            for name, value in given.items()}  # fmt: skip
    wide["delta_mask_BP"] = torch.tensor([[True, True, False, False]] * 2)
    expected, found = alone(**given), padded(**wide)
    torch.testing.assert_close(found[:, :2], expected)
    assert not found[:, 2:].any()
    buffers = [(name, value) for name, value in alone.named_buffers() if "running" in name]
    assert buffers
    for name, value in buffers:
        torch.testing.assert_close(dict(padded.named_buffers())[name], value)
        assert not torch.equal(dict(make().named_buffers())[name], value)


def test_a_frames_tokens_do_not_depend_on_its_neighbours() -> None:
    encoder = make().eval()
    given = inputs(3, 2)
    with torch.no_grad():
        tokens = encoder(**given)
        for gop in range(3):
            one = {name: value[gop : gop + 1, 1:] for name, value in given.items()}
            torch.testing.assert_close(encoder(**one)[0, 0], tokens[gop, 1])


@pytest.mark.parametrize("shape", [(2, 3), (2, 0), (0, 1)])
def test_without_frames_gradients_are_zero(shape: tuple[int, int]) -> None:
    """And not None: a rank without Δ-frames meets others that have some."""
    encoder = make().train()
    given = inputs(*shape)
    given["delta_mask_BP"][:] = False
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    tokens = encoder(**given)
    assert tokens.shape == (*shape, 3, 32)
    assert not tokens.any()
    tokens.sum().backward()
    gradients = [parameter.grad for parameter in encoder.parameters()]
    assert gradients
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())


def test_every_parameter_gets_a_gradient() -> None:
    encoder = make().train()
    encoder(**inputs()).square().sum().backward()
    assert [name for name, value in encoder.named_parameters() if value.grad is None] == []


def test_tokens_are_of_pixels_not_of_stored_units(small: Layout) -> None:
    batch = next(iter(GopDataset(small.dataset, batch_size=2)))
    assert (batch.motion != 0).any()
    encoder = make().eval()
    with torch.no_grad():
        batch.motion.clamp_(-31, 31)  # 4 times as much fits into int8
        fine = encoder.encode(to_device(batch, "cpu"))
        batch.motion.mul_(4)
        batch.motion_step_px.div_(4)
        torch.testing.assert_close(encoder.encode(to_device(batch, "cpu")), fine)
        batch.motion_step_px.mul_(2)
        assert not torch.allclose(encoder.encode(to_device(batch, "cpu")), fine)


def test_residual_is_the_difference_of_normalized_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """In grey levels within range; what ImageNet's mean subtracts cancels."""
    branch = make().residual
    assert branch is not None
    generator = torch.Generator().manual_seed(2)
    planes = torch.randint(118, 138, (2, 1, 96, 64), generator=generator, dtype=torch.uint8)
    first, second = planes_to_rgb(planes)
    assert 0 < planes_to_rgb(planes).min() < planes_to_rgb(planes).max() < 1  # nothing was clamped
    luma, chroma = split_planes((planes[1].float() - planes[0].float()) / 255)
    seen: list[torch.Tensor] = []
    original = branch.resnet.forward
    monkeypatch.setattr(branch.resnet, "forward", lambda x: (seen.append(x), original(x))[1])
    branch(luma, chroma)
    moved, rest = seen[0].split(1)
    torch.testing.assert_close(moved, (second - first) / STD[:, None, None], atol=1e-5, rtol=1e-4)
    assert not rest.any()


def test_imagenet_weights_are_taken_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(3)
    whole = ResNetModel(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic")
    )
    for buffer in whole.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    whole.save_pretrained(tmp_path)
    for widths in ((8,), (8, 16)):
        branch = make(resnet_widths=widths, resnet_checkpoint=str(tmp_path)).residual
        assert branch is not None
        state, stored = branch.resnet.state_dict(), whole.state_dict()
        assert len(state) > 20
        assert all(torch.equal(value, stored[name]) for name, value in state.items())


def test_what_is_no_resnet_fails(tmp_path: Path) -> None:
    small_models.write_models(tmp_path)
    with pytest.raises(ConfigurationError, match="is not a local folder"):
        make(resnet_checkpoint=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match="model_type is 'qwen2', not 'resnet'"):
        make(resnet_checkpoint=str(tmp_path / "qwen2"))
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path / "resnet")
    with pytest.raises(
        ConfigurationError, match=r"other weights than ResNet-18 with widths \(4,\): embedder"
    ):
        make(resnet_checkpoint=str(tmp_path / "resnet"), resnet_widths=(4,))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"motion_tokens": 1, "residual_tokens": 0}, r"is 1: must be 2 to 32"),
        ({"motion_tokens": 30, "residual_tokens": 3}, r"is 33: must be 2 to 32"),
        ({"motion_tokens": -1, "residual_tokens": 4}, "must not be negative"),
        ({"resnet_widths": ()}, "has 0 stages: must be 1 to 4"),
        ({"width": 18, "num_heads": 2}, "width 18 must be a multiple of 4 and of num_heads 2"),
        ({"width": 16, "num_heads": 3}, "width 16 must be a multiple of 4 and of num_heads 3"),
        ({"num_layer": 2}, "num_layer"),
    ],
)
def test_impossible_sizes_fail(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeltaEncoderConfig(**values)


@pytest.mark.parametrize("how", ["frozen statistics", "frozen encoder"])
def test_batch_norm_statistics_stay(how: str) -> None:
    encoder = make(freeze_batch_norm=how == "frozen statistics")
    encoder.requires_grad_(how != "frozen encoder")
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    given = inputs()
    with torch.no_grad():
        assert torch.equal(encoder.train()(**given), encoder.eval()(**given))
    assert len(before) > 3
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())


def test_frames_of_two_sizes_each_alone(small: Layout, tall: Layout) -> None:
    """Smaller frames lie in the corner of larger ones: their tokens are as without the padding."""
    parts = [MixPart(dataset=layout.dataset, filter=SHORT) for layout in (small, tall)]
    mixed = next(iter(GopDataset(parts, batch_size=12, last="wrap")))
    assert mixed.size_px.unique(dim=0).tolist() == [[64, 64], [96, 32]]
    assert mixed.residual.shape[-2:] == (144, 64)
    encoder = make().eval()
    num_seen = 0
    with torch.no_grad():
        gops = to_device(mixed, "cpu")
        tokens = encoder.encode(gops)
        padded = gops.motion_px, gops.intra, gops.residual_y, gops.residual_uv
        assert not torch.allclose(tokens, encoder(*padded, mixed.delta_mask))
        for part in parts:
            alone = next(iter(GopDataset(part, batch_size=12, last="wrap")))
            expected = encoder.encode(to_device(alone, "cpu"))
            for row, key in enumerate(mixed.info.keys):
                if key in alone.info.keys:
                    other = alone.info.keys.index(key)
                    num_frames = int(alone.delta_mask[other].sum())
                    torch.testing.assert_close(tokens[row, :num_frames], expected[other, :num_frames])
                    num_seen += num_frames
    assert num_seen > 12
