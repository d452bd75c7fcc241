"""What a configuration says of its data, and what it must be."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cope_prep.encoders.data import DataConfig, ExpectedGeometry, geometry_values
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader import GopFilter, TokenCounts
from cope_prep.schemas.errors import ConfigurationError, CopePrepError, SchemaVersionError

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
import small_models

GEOMETRY = {"fps": 30, "gop_size": 32, "window": 4, "block_px": 16, "residual": "dct"}
"""Of the fixture `small`."""


def windows(config: DataConfig, **options: Any) -> Any:
    return config.windows(batch_size=4, windows_per_visit=2, **options)


def questions(config: DataConfig, **options: Any) -> Any:
    return config.questions(
        batch_size=4, key_frames=2, tokens=TokenCounts(picture=6, delta=3), max_gops=2, **options
    )


def test_windows_and_questions(small: Layout) -> None:
    config = small_models.data(small, expect=ExpectedGeometry(**GEOMETRY))
    batch = next(iter(windows(config)))
    assert batch.pictures.shape[:2] == (4, 2)
    assert batch.motion.shape[:2] == (4, 1)
    asked = next(iter(questions(config)))
    assert len(asked) == 4
    assert set(asked.run_tokens.unique().tolist()) <= {0, 3, 6}
    assert geometry_values(windows(config).geometry) == GEOMETRY


def test_merged_windows_are_what_is_expected(small: Layout) -> None:
    config = small_models.data(small, window=8, expect=ExpectedGeometry(window=8, gop_size=32))
    assert geometry_values(windows(config).geometry) == GEOMETRY | {"window": 8}


@pytest.mark.parametrize("held_out", [False, True])
def test_held_out_data_is_whole(small: Layout, held_out: bool) -> None:
    """48 questions in batches of 5: trained on, 3 are left out; held out, 2 are repeated."""
    config = small_models.data(small)
    dataset = config.questions(
        batch_size=5, key_frames=1, tokens=TokenCounts(), max_gops=None, held_out=held_out
    )
    plan = dataset.plan
    assert (plan.num_dropped, plan.num_repeated) == ((0, 2) if held_out else (3, 0))


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("fps", 25), ("gop_size", 240), ("window", 30), ("block_px", 8), ("residual", "int8")],
)
@pytest.mark.parametrize("kind", [windows, questions])
def test_other_geometry_than_expected_fails(small: Layout, kind: Any, wanted: str, found: Any) -> None:
    config = small_models.data(small, expect=ExpectedGeometry(**{wanted: found}))
    message = (
        rf"has {wanted} {GEOMETRY[wanted]}, the configuration expects {found} \(data\.expect\.{wanted}\)"
    )
    with pytest.raises(ConfigurationError, match=message) as caught:
        kind(config)
    assert small.dataset in str(caught.value)


def test_filter_and_specs(small: Layout) -> None:
    short = small_models.data(small, filter=GopFilter(max_duration_s=2))
    assert 0 < len(windows(short)) < len(windows(small_models.data(small)))
    spec = Path(small.folder("shards")).name
    assert len(windows(small_models.data(small, spec=spec[:6]))) == len(windows(small_models.data(small)))
    with pytest.raises(ConfigurationError):
        windows(small_models.data(small, spec="nothing"))


def test_mix_file(small: Layout, tmp_path: Path) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text(f"datasets:\n  - dataset: {small.dataset}\n    weight: 2\n")
    config = DataConfig(dataset=str(path))
    # One batch more than twice as many: less is dropped.
    assert len(windows(config)) >= 2 * len(windows(small_models.data(small)))
    with pytest.raises(ConfigurationError, match=r"mix\.yaml: is a mix of datasets, beside which spec"):
        windows(DataConfig(dataset=str(path), filter=GopFilter(max_duration_s=2)))
    with pytest.raises(CopePrepError, match=r"nowhere\.yaml"):
        windows(DataConfig(dataset=str(tmp_path / "nowhere.yaml")))


def test_dataset_of_another_schema_version_fails_at_once(small: Layout, tmp_path: Path) -> None:
    copied = small_models.copy_dataset(small, tmp_path)
    document = json.loads(Path(copied.dataset_json).read_text())
    document["schema_version"] = 99
    Path(copied.dataset_json).write_text(json.dumps(document))
    for kind in (windows, questions):
        with pytest.raises(SchemaVersionError, match="99"):
            kind(small_models.data(copied))
