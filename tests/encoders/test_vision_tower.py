"""The tower against transformers' own SigLIP, and what a folder may hold."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as torch has it
from transformers import SiglipConfig, SiglipModel, SiglipTextConfig, SiglipVisionConfig

from cope_prep.encoders.vision_tower import VisionTower
from cope_prep.schemas.errors import ConfigurationError

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
import small_models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    small_models.write_models(path)
    return path


def test_tokens_are_the_hidden_states_before_the_last_layer(tmp_path: Path) -> None:
    whole = small_models.siglip()
    whole.save_pretrained(tmp_path)
    tower = VisionTower.from_folder(str(tmp_path)).eval()
    rgb = torch.rand(2, 3, 42, 42)
    with torch.no_grad():
        states = whole((rgb - 0.5) / 0.5, output_hidden_states=True).hidden_states
        tokens = tower(rgb)
    assert tokens.shape == (2, 9, 32)
    assert (tower.width, tower.patches_per_side) == (32, 3)
    torch.testing.assert_close(tokens, states[-2])
    assert not torch.allclose(states[-2], states[-1])
    assert len(tower.model.encoder.layers) == 2
    assert not any("head" in name or "post_layernorm" in name for name, _ in tower.named_parameters())


def test_other_sizes_are_resized_to_the_square(folder: Path) -> None:
    """As transformers' SigLIP processor does: bicubic, aspect ratio ignored; values stay in range."""
    tower = VisionTower.from_folder(str(folder / "siglip")).eval()
    rgb = (torch.rand(2, 3, 96, 64) > 0.5).float()  # where bicubic overshoots
    square = F.interpolate(rgb, size=(42, 42), mode="bicubic", antialias=True)
    assert square.min() < 0
    with torch.no_grad():
        assert torch.equal(tower(rgb), tower(square.clamp(0, 1)))
        assert tower(rgb[:0]).shape == (0, 9, 32)


def test_whole_siglip_gives_its_vision_part(tmp_path: Path) -> None:
    text = SiglipTextConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    vision = SiglipVisionConfig(**small_models.VISION)
    whole = SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).eval()
    whole.save_pretrained(tmp_path)
    rgb = torch.rand(1, 3, 42, 42)
    with torch.no_grad():
        states = whole.vision_model(rgb * 2 - 1, output_hidden_states=True).hidden_states
        torch.testing.assert_close(VisionTower.from_folder(str(tmp_path)).eval()(rgb), states[-2])


def test_folder_without_a_siglip_fails(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"/nowhere: is not a local folder"):
        VisionTower.from_folder(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match=r"model_type is 'qwen2', not 'siglip_vision_model'"):
        VisionTower.from_folder(str(folder / "qwen2"))
    small_models.siglip(num_hidden_layers=2).save_pretrained(tmp_path / "cut")
    config = (folder / "siglip" / "config.json").read_text()
    (tmp_path / "cut" / "config.json").write_text(config)
    with pytest.raises(ConfigurationError, match=r"lacks weights \(16\): .*encoder\.layers\.2"):
        VisionTower.from_folder(str(tmp_path / "cut"))


def test_tower_of_one_layer_fails() -> None:
    with pytest.raises(ConfigurationError, match="has one layer, and the last one is not used"):
        VisionTower(SiglipVisionConfig(**(small_models.VISION | {"num_hidden_layers": 1})))
