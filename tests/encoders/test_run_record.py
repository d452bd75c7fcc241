"""run.json: what a run learned from, found again from anything in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cope_prep.encoders.run_record import (
    SEVERAL,
    check_delta_encoder,
    check_geometry,
    check_model,
    read_record,
    write_record,
)
from cope_prep.schemas.errors import ConfigurationError, FormatError

GEOMETRY = {"fps": 30, "gop_size": 240, "window": 30, "block_px": 16, "residual": "dct"}
DELTA = {
    "width": 16,
    "num_heads": 2,
    "resnet_widths": [8],
    "freeze_batch_norm": False,
    "resnet_checkpoint": None,
}
STAGE1 = {"delta_encoder": DELTA, "alignment": {"width": 32, "num_heads": 4}, "training": {"lr": 0.1}}
STAGE2 = {
    "model": {"delta_encoder": DELTA, "layout": None, "delta_frames": True, "stage1": "runs/one"},
    "training": {"lr": 0.1},
}


def test_record_is_found_from_the_run_a_checkpoint_or_a_file(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    write_record(run, config={"seed": 1}, geometry=GEOMETRY)
    checkpoint = run / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    for path in (run, str(run), checkpoint, checkpoint / "model.safetensors"):
        assert read_record(path) == {"config": {"seed": 1}, "geometry": GEOMETRY}
        check_geometry(path, GEOMETRY)
    assert read_record(tmp_path) is None
    write_record(run, config={"seed": 2}, geometry=GEOMETRY)
    record = read_record(run)
    assert record is not None
    assert record["config"] == {"seed": 2}
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "run.json"]


def test_record_has_no_credentials(tmp_path: Path) -> None:
    config = {"data": {"dataset": "s3://KEY:HUSH@bucket/dataset"}, "groups": ["http://bob:HUSH@host/a"]}
    write_record(tmp_path, config=config, geometry=GEOMETRY)
    assert "HUSH" not in (tmp_path / "run.json").read_text()
    record = read_record(tmp_path)
    assert record is not None
    assert record["config"]["data"] == {"dataset": "s3://***@bucket/dataset"}


def test_record_of_a_run_around_is_not_taken(tmp_path: Path) -> None:
    write_record(tmp_path, config={}, geometry=GEOMETRY)
    for name in ("stage1", "stage1/checkpoints/step-00000010", "stage1/kept"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        assert read_record(tmp_path / name) is None
        assert read_record(tmp_path / name / "model.safetensors") is None


def test_other_geometry_fails(tmp_path: Path) -> None:
    write_record(tmp_path, config={}, geometry=GEOMETRY)
    other = GEOMETRY | {"window": 10, "residual": "int8"}
    with pytest.raises(
        ConfigurationError, match=r"window 30 \(here 10\), residual dct \(here int8\)"
    ) as caught:
        check_geometry(tmp_path, other)
    assert str(tmp_path) in str(caught.value)
    assert "allow_other_geometry" in str(caught.value)


def test_geometry_is_compared_as_far_as_both_know_it(tmp_path: Path) -> None:
    """A record of before there were sizes in it; and one that has learned from frames of several widths."""
    write_record(tmp_path / "old", config={}, geometry=GEOMETRY)
    check_geometry(tmp_path / "old", GEOMETRY | {"width_px": 64, "residual_quality": 90})
    write_record(tmp_path / "keep", config={}, geometry=GEOMETRY | {"width_px": SEVERAL, "height_px": 64})
    check_geometry(tmp_path / "keep", GEOMETRY | {"width_px": 64})
    check_geometry(tmp_path / "keep", GEOMETRY | {"width_px": SEVERAL})
    with pytest.raises(ConfigurationError, match=r"data with height_px 64 \(here several\)\."):
        check_geometry(tmp_path / "keep", GEOMETRY | {"width_px": 96, "height_px": SEVERAL})


@pytest.mark.parametrize("config", [STAGE1, STAGE2])
def test_other_delta_encoder_of_the_same_shapes_fails(tmp_path: Path, config: dict[str, Any]) -> None:
    write_record(tmp_path / "run", config=config, geometry=GEOMETRY)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    for path in (tmp_path / "run", checkpoint):
        check_delta_encoder(path, DELTA)
        with pytest.raises(
            ConfigurationError, match=r"was trained with delta_encoder\.num_heads 2 \(here 4\)\."
        ) as caught:
            check_delta_encoder(path, DELTA | {"num_heads": 4})
        assert str(caught.value).startswith(f"{path}: ")


def test_how_a_delta_encoder_is_trained_may_change(tmp_path: Path) -> None:
    write_record(tmp_path, config=STAGE1, geometry=GEOMETRY)
    check_delta_encoder(tmp_path, DELTA | {"freeze_batch_norm": True, "resnet_checkpoint": "resnet-18"})
    check_delta_encoder(tmp_path, DELTA | {"of_a_later_version": 3})


def change(config: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """The configuration with another value at `part.part.field`."""
    first, _, rest = name.partition(".")
    return config | {first: change(config[first], rest, value) if rest else value}


@pytest.mark.parametrize(
    ("config", "name", "value", "message"),
    [
        (STAGE1, "delta_encoder.num_heads", 4, r"delta_encoder\.num_heads 2 \(here 4\)"),
        (STAGE1, "alignment.num_heads", 8, r"alignment\.num_heads 4 \(here 8\)"),
        (STAGE2, "model.delta_encoder.num_heads", 1, r"model\.delta_encoder\.num_heads 2 \(here 1\)"),
        (STAGE2, "model.delta_frames", False, r"model\.delta_frames True \(here False\)"),
        (STAGE2, "model.layout", {"pool_stride": 3}, r"model\.layout None \(here {'pool_stride': 3}\)"),
    ],
)
def test_going_on_with_another_model_fails(
    tmp_path: Path, config: dict[str, Any], name: str, value: Any, message: str
) -> None:
    write_record(tmp_path, config=config, geometry=GEOMETRY)
    check_model(tmp_path, config)
    with pytest.raises(ConfigurationError, match=rf"was begun with {message}\. Go on with the same"):
        check_model(tmp_path, change(config, name, value))


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (STAGE1, "delta_encoder.freeze_batch_norm", True),
        (STAGE1, "training.lr", 0.2),
        (STAGE2, "model.stage1", "moved/one"),
    ],
)
def test_going_on_otherwise_is_no_other_model(
    tmp_path: Path, config: dict[str, Any], name: str, value: Any
) -> None:
    write_record(tmp_path, config=config, geometry=GEOMETRY)
    check_model(tmp_path, change(config, name, value))


def test_weights_without_a_record_are_not_judged(tmp_path: Path) -> None:
    check_geometry(tmp_path / "model.safetensors", GEOMETRY)
    check_delta_encoder(tmp_path / "model.safetensors", DELTA)
    check_model(tmp_path, STAGE1)


def test_damaged_record_fails(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"geome')
    with pytest.raises(FormatError, match=r"run\.json: is not JSON"):
        check_geometry(tmp_path, GEOMETRY)
    for content, part in (("[1]", "geometry"), ('{"geometry": {}}', "config")):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(FormatError, match=rf"run\.json: is no record of a run: it has no {part}"):
            read_record(tmp_path)
