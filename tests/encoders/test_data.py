"""What a configuration says of its data, and what it must be."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cope_prep.encoders.data import DataConfig, ExpectedGeometry, check_held_out, geometry_values
from cope_prep.encoders.finetune import FinetuneTask
from cope_prep.encoders.pretrain import PretrainTask
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader import GopFilter, TokenCounts
from cope_prep.pipeline.loader.collate import Geometry
from cope_prep.schemas.errors import ConfigurationError, CopePrepError, SchemaVersionError
from cope_prep.schemas.specs import DctResidual, Int8Residual, LosslessResidual

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
import small_models

GEOMETRY: dict[str, Any] = {
    "fps": 30,
    "gop_size": 32,
    "window": 4,
    "block_px": 16,
    "width_px": 64,
    "height_px": 64,
    "residual": "dct",
    "residual_quality": 90,
}
"""Of the fixture `small`."""


@pytest.fixture(scope="module")
def tall(media: ModuleType, tmp_path_factory: pytest.TempPathFactory, small: Layout) -> Layout:
    """As `small`, but 32 x 96."""
    return small_models.make_tall(media, tmp_path_factory.mktemp("tall"))


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
    assert geometry_values(windows(config)) == geometry_values(questions(config)) == GEOMETRY


def test_merged_windows_are_what_is_expected(small: Layout) -> None:
    config = small_models.data(small, window=8, expect=ExpectedGeometry(window=8, gop_size=32))
    assert geometry_values(windows(config)) == GEOMETRY | {"window": 8}


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
    [
        ("fps", 25),
        ("gop_size", 240),
        ("window", 30),
        ("block_px", 8),
        ("residual", "int8"),
        ("width_px", 384),
        ("height_px", 384),
        ("residual_quality", 75),
    ],
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


def test_parameter_of_another_coding_fails(small: Layout) -> None:
    config = small_models.data(small, expect=ExpectedGeometry(residual_step=8))
    with pytest.raises(
        ConfigurationError, match=r"has residual dct, the configuration expects residual_step 8 \(data"
    ):
        windows(config)


@pytest.mark.parametrize(
    ("residual", "expected"),
    [
        (DctResidual(quality=75), {"residual": "dct", "residual_quality": 75}),
        (
            Int8Residual(step=4, deadzone=6),
            {"residual": "int8", "residual_step": 4, "residual_deadzone": 6},
        ),
        (LosslessResidual(), {"residual": "lossless"}),
    ],
)
def test_every_coding_and_its_parameters_can_be_expected(residual: Any, expected: dict[str, Any]) -> None:
    geometry = Geometry(fps=30, gop_size=32, window=4, block_px=16, residual_spec=residual, key_frames=1)
    catalog = SimpleNamespace(size_px=np.array([[48, 64]], np.int32))
    dataset: Any = SimpleNamespace(geometry=geometry, store=SimpleNamespace(catalog=catalog))
    found = geometry_values(dataset)
    assert {name: value for name, value in found.items() if name.startswith("residual")} == expected
    assert (found["height_px"], found["width_px"]) == (48, 64)
    config = DataConfig(dataset="made", expect=ExpectedGeometry(**found))
    config.check(dataset)
    assert found.keys() <= ExpectedGeometry.model_fields.keys()


def test_frames_of_several_sizes_are_said_to_be_so(small: Layout, tall: Layout, tmp_path: Path) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text(f"datasets:\n  - dataset: {small.dataset}\n  - dataset: {tall.dataset}\n")
    both = {"width_px": "several", "height_px": "several"}
    assert geometry_values(windows(DataConfig(dataset=str(path)))) == GEOMETRY | both
    assert geometry_values(windows(small_models.data(tall))) == GEOMETRY | {"width_px": 32, "height_px": 96}
    config = DataConfig(dataset=str(path), expect=ExpectedGeometry(width_px=64))
    with pytest.raises(ConfigurationError, match="has width_px several, the configuration expects 64"):
        windows(config)


def test_held_out_data_of_another_geometry_fails(small: Layout, tall: Layout, tmp_path: Path) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text(f"datasets:\n  - dataset: {small.dataset}\n  - dataset: {tall.dataset}\n")
    data, others, mixed = small_models.data(small), small_models.data(tall), DataConfig(dataset=str(path))
    check_held_out(data, windows(data), data, windows(data, held_out=True))
    check_held_out(mixed, windows(mixed), others, windows(others, held_out=True))
    for held_out, message in (
        (others, r"width_px 64 \(here 32\), height_px 64 \(here 96\)"),
        (mixed, r"width_px 64 \(here several\), height_px 64 \(here several\)"),
        (small_models.data(small, window=8), r"window 4 \(here 8\)"),
    ):
        with pytest.raises(ConfigurationError, match=message) as caught:
            check_held_out(data, windows(data), held_out, windows(held_out, held_out=True))
        assert f"{held_out.dataset}: is held-out data for {data.dataset}, which has" in str(caught.value)


@pytest.mark.parametrize(
    ("task", "make", "options"),
    [
        (PretrainTask, small_models.pretrain_config, {}),
        (FinetuneTask, small_models.finetune_config, {}),
        # That is about where a Δ-encoder comes from.
        (FinetuneTask, small_models.finetune_config, {"allow_other_geometry": True}),
    ],
)
def test_both_tasks_compare_their_held_out_data(
    small: Layout,
    models: Path,
    tmp_path: Path,
    task: Callable[[Any], Any],
    make: Callable[..., Any],
    options: dict[str, Any],
) -> None:
    task(make(small, models, tmp_path, eval_data=small_models.data(small), **options))
    merged = small_models.data(small, window=8)
    with pytest.raises(ConfigurationError, match=r"is held-out data for .*window 4 \(here 8\)"):
        task(make(small, models, tmp_path, eval_data=merged, **options))


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
