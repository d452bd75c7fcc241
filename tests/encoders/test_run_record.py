"""run.json: what a run learned from, found again from anything in its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from cope_prep.encoders.run_record import check_geometry, read_record, write_record
from cope_prep.schemas.errors import ConfigurationError, FormatError

GEOMETRY = {"fps": 30, "gop_size": 240, "window": 30, "block_px": 16, "residual": "dct"}


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


def test_other_geometry_fails(tmp_path: Path) -> None:
    write_record(tmp_path, config={}, geometry=GEOMETRY)
    other = GEOMETRY | {"window": 10, "residual": "int8"}
    with pytest.raises(
        ConfigurationError, match=r"window 30 \(here 10\), residual dct \(here int8\)"
    ) as caught:
        check_geometry(tmp_path, other)
    assert str(tmp_path) in str(caught.value)
    assert "allow_other_geometry" in str(caught.value)


def test_weights_without_a_record_are_not_judged(tmp_path: Path) -> None:
    check_geometry(tmp_path / "model.safetensors", GEOMETRY)


def test_damaged_record_fails(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"geome')
    with pytest.raises(FormatError, match=r"run\.json: is not JSON"):
        check_geometry(tmp_path, GEOMETRY)
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(FormatError, match=r"run\.json: is no record of a run"):
        read_record(tmp_path)
