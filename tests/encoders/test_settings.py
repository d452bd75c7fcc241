"""Configurations from TOML: what is wrong with one, and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from cope_prep.encoders.pretrain import PretrainConfig
from cope_prep.encoders.settings import Settings, read_toml
from cope_prep.schemas.errors import ConfigurationError

GOOD = """
output_dir = "run"

[tower]
siglip = "models/siglip"

[delta_encoder]
resnet_widths = [8, 16]

[data]
dataset = "data"
filter = {min_duration_s = 5}

[data.shuffle]
lanes = 4

[training]
max_steps = 7
lr = 1
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    return path


def test_toml_becomes_the_configuration(tmp_path: Path) -> None:
    config = read_toml(write(tmp_path, GOOD), PretrainConfig)
    assert config.delta_encoder.resnet_widths == (8, 16)  # an array, where a tuple is wanted
    assert (config.training.max_steps, config.training.lr) == (7, 1.0)
    assert config.data.filter is not None
    assert config.data.filter.min_duration_s == 5.0
    assert config.data.shuffle is not None
    assert (config.data.shuffle.lanes, config.data.shuffle.window_chunks) == (4, 4)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lr = 1", "learning_rate = 1", r"training\.learning_rate: Extra inputs are not permitted$"),
        ("lanes = 4", "lane = 4", r"data\.shuffle\.lane: Extra inputs"),
        ("min_duration_s", "min_duration", r"data\.filter\.min_duration: Extra inputs"),
        ("max_steps = 7", 'max_steps = "7"', r"training\.max_steps: .*valid integer \(given '7'\)"),
        ("max_steps = 7", "max_steps = 0", r"training\.max_steps: .*\(given 0\)"),
        ("max_steps = 7", "max_steps = true", r"training\.max_steps: .*\(given True\)"),
        ("[8, 16]", "8", r"delta_encoder\.resnet_widths: .*\(given 8\)"),
        ("[8, 16]", '[8, "16"]', r"delta_encoder\.resnet_widths\.1: .*\(given '16'\)"),
        ('output_dir = "run"', "", r"output_dir: Field required$"),
        ('siglip = "models/siglip"', "", r"tower: give siglip or llava, one of the two"),
        ("[8, 16]", "[8]\nmotion_tokens = 60", r"delta_encoder: motion_tokens \+ residual_tokens is 64"),
        ("lr = 1", "lr = 1\nfirst = 1979-05-27", r"training\.first: Extra inputs"),
    ],
)
def test_wrong_field_fails_with_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_toml(path, PretrainConfig)
    assert str(path) in str(caught.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("lr = 1", "rate = 1").replace("lanes", "lane")
    with pytest.raises(ConfigurationError, match=r"data\.shuffle\.lane: .*; training\.rate: "):
        read_toml(write(tmp_path, text), PretrainConfig)


def test_what_is_no_toml_fails(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml: cannot be read: No such file"):
        read_toml(tmp_path / "nowhere.toml", PretrainConfig)
    with pytest.raises(ConfigurationError, match=r"cannot be read: Is a directory"):
        read_toml(tmp_path, PretrainConfig)
    with pytest.raises(ConfigurationError, match=r"config\.toml: is not TOML: .*line 2"):
        read_toml(write(tmp_path, "a = 1\nb = = 2"), PretrainConfig)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"binary\.toml: is not TOML"):
        read_toml(tmp_path / "binary.toml", PretrainConfig)


def test_a_configuration_does_not_change() -> None:
    class Small(Settings):
        value: int = 1

    with pytest.raises(ValueError, match="frozen"):
        Small().value = 2  # pyright: ignore[reportAttributeAccessIssue]
