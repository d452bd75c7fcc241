"""Rows of different sizes and lengths in one batch: each where it belongs, and nothing beside it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.loader import GopBatch, GopDataset, ShardReader, TokenCounts, to_device
from cope_prep.pipeline.loader.batch import DELTA, PAD, PICTURE
from cope_prep.pipeline.loader.collate import fill_gops, gop_arrays, place_planes
from cope_prep.pipeline.loader.gops import gop_row, load_sample
from cope_prep.schemas.errors import ChecksumError
from cope_prep.schemas.specs import DctResidual, EncodeSpec, ExtractSpec, Int8Residual, LosslessResidual

SIZES_PX = ((64, 96), (96, 64), (128, 80))
"""(width, height) of the clips."""
NUM_FRAMES = (32, 52, 7)
"""1 GOP of 8 anchors; one of 8 and one of 5; one of 2."""
RESIDUALS = {"dct": DctResidual(), "int8": Int8Residual(step=4, deadzone=4), "lossless": LosslessResidual()}


def colourful(index: int, width: int, height: int) -> np.ndarray:
    """A drifting texture in strong colours, up to the edges."""
    y, x = np.mgrid[0:height, 0:width]
    planes = np.empty((height * 3 // 2, width), np.float64)
    planes[:height] = 120 + 70 * np.sin((x + 2 * index) / 7) + 40 * np.cos((y - index) / 9)
    u = 60 + 130 * x[::2, ::2] / width + 20 * np.sin((y[::2, ::2] + index) / 5)
    v = 200 - 130 * y[::2, ::2] / height
    planes[height:] = np.concatenate([u.ravel(), v.ravel()]).reshape(height // 2, width)
    return planes.clip(16, 235).astype(np.uint8)


@pytest.fixture(scope="module", params=RESIDUALS)
def mixed(
    request: pytest.FixtureRequest,
    datasets: ModuleType,
    media: ModuleType,
    tmp_path_factory: pytest.TempPathFactory,
) -> Layout:
    """Three videos in their own sizes, for each coding of residuals."""

    def write_clip(path: Path, **settings: Any) -> Path:
        size_px = SIZES_PX[int(path.stem.removeprefix("clip"))]
        return media.write_clip(path, size_px=size_px, **settings)

    specs = Specs(
        encode=EncodeSpec(fit="keep", gop_size=32, preset="ultrafast"),
        extract=ExtractSpec(window=4, residual=RESIDUALS[request.param]),
    )
    in_sizes = SimpleNamespace(write_clip=write_clip, moving=colourful)
    return datasets.make_dataset(
        tmp_path_factory.mktemp(request.param), in_sizes, num_videos=3, specs=specs, clip_frames=NUM_FRAMES
    )


def one_batch(layout: Layout, reader: ShardReader, **settings: Any) -> GopBatch:
    """All four GOPs in one batch."""
    (batch,) = GopDataset(layout.dataset, reader=reader, batch_size=4, **settings)
    return batch


def single_batches(layout: Layout, reader: ShardReader, **settings: Any) -> dict[str, GopBatch]:
    """Each GOP in a batch of its own, which has no padding."""
    dataset = GopDataset(layout.dataset, reader=reader, batch_size=1, **settings)
    return {batch.info.keys[0]: batch for batch in dataset}


def planes_of(picture: np.ndarray) -> dict[str, np.ndarray]:
    """Y, U and V of [3H/2, W]."""
    height, half = picture.shape[0] * 2 // 3, picture.shape[1] // 2
    return {"Y": picture[:height], "U": picture[height:, :half], "V": picture[height:, half:]}


def assert_padded(padded: np.ndarray, own: np.ndarray, *, outside: dict[str, int], edge_px: int = 0) -> None:
    """Each plane of `own` lies at the top left of its plane in `padded`; beyond `edge_px` all is `outside`."""
    num_outside = 0
    for name, plane in planes_of(padded).items():
        height, width = planes_of(own)[name].shape
        assert np.array_equal(plane[:height, :width], planes_of(own)[name])
        edge = 0 if name == "Y" else edge_px
        beyond = np.ones(plane.shape, np.bool_)
        beyond[: height + edge, : width + edge] = False
        assert (plane[beyond] == outside[name]).all()
        num_outside += beyond.sum()
    assert num_outside > 0


@pytest.mark.parametrize("key_frames", [1, 2, 8])
def test_sizes_differ_and_every_plane_has_its_place(
    mixed: Layout, reader: ShardReader, key_frames: int
) -> None:
    batch = one_batch(mixed, reader, key_frames=key_frames)
    singles = single_batches(mixed, reader, key_frames=key_frames)
    assert batch.pictures.shape[2:] == (96 * 3 // 2, 128)
    assert batch.motion.shape[2:4] == (6, 8)
    zero = 128 if isinstance(mixed.specs.extract.residual, DctResidual) else 0
    sizes = set()
    num_deltas = 0
    for row, key in enumerate(batch.info.keys):
        own = singles[key]
        height, width = own.size_px[0].tolist()
        sizes.add((width, height))
        assert batch.size_px[row].tolist() == [height, width]
        assert own.pictures.shape[2:] == (height * 3 // 2, width)
        for picture, planes in enumerate(own.pictures[0].numpy()):
            black = {"Y": 0, "U": 128, "V": 128}
            assert_padded(batch.pictures[row, picture].numpy(), planes, outside=black, edge_px=1)
        for delta, planes in enumerate(own.residual[0].numpy()):
            outside = {"Y": zero, "U": zero, "V": zero}
            assert_padded(batch.residual[row, delta].numpy(), planes, outside=outside)
            num_deltas += 1
        count = own.motion.shape[1]
        grid = (height // 16, width // 16)
        assert own.motion.shape[2:4] == grid
        for name in ("motion", "intra"):
            padded, plain = getattr(batch, name)[row].clone(), getattr(own, name)[0]
            assert torch.equal(padded[:count, : grid[0], : grid[1]], plain)
            padded[:count, : grid[0], : grid[1]] = 0
            assert not padded.any()
        assert torch.equal(batch.motion_step_px[row, :count], own.motion_step_px[0])
        assert not batch.motion_step_px[row, count:].any()
    assert sizes == set(SIZES_PX)
    assert num_deltas == {1: 7 + 7 + 4 + 1, 2: 6 + 6 + 3 + 1, 8: 0}[key_frames]


@pytest.mark.parametrize("key_frames", [1, 4])
def test_padded_rows_look_the_same_on_the_device_and_are_black_outside(
    mixed: Layout, reader: ShardReader, key_frames: int
) -> None:
    batch = one_batch(mixed, reader, key_frames=key_frames)
    inputs = to_device(batch, "cpu")
    num_outside = 0
    for row, (key, own) in enumerate(single_batches(mixed, reader, key_frames=key_frames).items()):
        row = batch.info.keys.index(key)
        expected = to_device(own, "cpu")
        height, width = own.size_px[0].tolist()
        for name, scale in (("rgb", 1), ("residual_y", 1), ("residual_uv", 2), ("motion_px", 16)):
            count = getattr(expected, name).shape[1]
            found = getattr(inputs, name)[row]
            area = np.s_[:count, :, : height // scale, : width // scale]
            assert count > 0
            torch.testing.assert_close(found[area], getattr(expected, name)[0], rtol=0, atol=1e-6)
            outside = found.clone()
            outside[area] = 0
            assert not outside.any(), f"{name} of {key} beyond its size"
            num_outside += outside.numel() - found[area].numel()
    assert num_outside > 0


@pytest.mark.parametrize("key_frames", [1, 2, 4, 8])
def test_lengths_differ_and_masks_say_so(mixed: Layout, reader: ShardReader, key_frames: int) -> None:
    batch = one_batch(mixed, reader, key_frames=key_frames)
    num_anchors = {(0, 96): 8, (0, 64): 8, (1, 64): 5, (0, 80): 2}  # by (gop_index, height)
    found = {}
    for row in range(4):
        place = (int(batch.gop_index[row]), int(batch.size_px[row, 0]))
        count = found[place] = num_anchors[place]
        is_picture = [anchor % (8 // key_frames) == 0 for anchor in range(count)]
        padding = 8 - count
        times_s = [place[0] * 32 / 30 + anchor * 4 / 30 for anchor in range(count)]
        kinds = [PICTURE if picture else DELTA for picture in is_picture]
        tokens = [210 if picture else 8 for picture in is_picture]
        assert batch.kind[row].tolist() == kinds + [PAD] * padding
        assert batch.num_tokens[row].tolist() == tokens + [0] * padding
        assert batch.anchor_s[row].tolist() == pytest.approx(times_s + [0.0] * padding)
        for name, wanted in (("picture", True), ("delta", False)):
            of_kind = [time for time, picture in zip(times_s, is_picture, strict=True) if picture == wanted]
            width = getattr(batch, f"{name}_mask").shape[1]
            assert getattr(batch, f"{name}_mask")[row].tolist() == [
                index < len(of_kind) for index in range(width)
            ]
            expected_s = of_kind + [0.0] * (width - len(of_kind))
            assert getattr(batch, f"{name}_s")[row].tolist() == pytest.approx(expected_s)
        assert batch.is_valid[row]
        num_pictures = sum(is_picture)
        assert not batch.pictures[row, num_pictures:].any()
        assert not batch.residual[row, count - num_pictures :].any()
    assert found == num_anchors
    assert batch.picture_mask.sum() + batch.delta_mask.sum() == 8 + 8 + 5 + 2


def fill(dataset: GopDataset, garbage: int, failing: int | None = None) -> dict[str, np.ndarray]:
    """All rows of a dataset, in arrays that held garbage before."""
    geometry, catalog = dataset.geometry, dataset.store.catalog
    rows = [gop_row(catalog, sample, sample, geometry) for sample in range(len(catalog))]
    arrays = {}
    for name, (dtype, shape) in gop_arrays(rows, geometry).items():
        arrays[name] = (
            np.full(int(np.prod(shape)) * dtype.itemsize, garbage, np.uint8).view(dtype).reshape(shape)
        )
    failures = []

    def load(row: Any, out: Any) -> None:
        load_sample(dataset.store, row, geometry, out)
        if row.sample == failing:  # when all of it has been written already
            raise ChecksumError(f"sample {row.sample}", "is damaged")

    fill_gops(
        arrays,
        rows,
        geometry=geometry,
        tokens=TokenCounts(),
        load=load,
        on_failure=lambda row, exc: failures.append((row.sample, str(exc))),
    )
    assert failures == ([] if failing is None else [(failing, f"sample {failing}: is damaged")])
    return arrays


@pytest.mark.parametrize("key_frames", [1, 2])
def test_every_byte_of_a_batch_is_written(mixed: Layout, reader: ShardReader, key_frames: int) -> None:
    dataset = GopDataset(mixed.dataset, reader=reader, key_frames=key_frames)
    low, high = fill(dataset, 0x00), fill(dataset, 0x01)
    assert len(low) == 15
    for name in low:
        assert np.array_equal(low[name], high[name]), name


@pytest.mark.parametrize("failing", range(4))
def test_failed_row_is_empty_and_the_others_are_whole(
    mixed: Layout, reader: ShardReader, failing: int
) -> None:
    dataset = GopDataset(mixed.dataset, reader=reader, key_frames=2)
    whole, found = fill(dataset, 0x01), fill(dataset, 0x01, failing=failing)
    others = [row for row in range(4) if row != failing]
    assert found["is_valid"].tolist() == [row != failing for row in range(4)]
    for name, array in found.items():
        assert np.array_equal(array[others], whole[name][others]), name
        if name in ("size_px", "gop_index"):
            assert np.array_equal(array[failing], whole[name][failing])
        else:
            assert not array[failing].any(), name
    assert len(found) == 15


@pytest.mark.parametrize("size_px", [(32, 32), (32, 48), (48, 64), (64, 48), (64, 64)])
def test_place_planes_puts_pixel_by_pixel(size_px: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    height, width = size_px
    source = rng.integers(1, 256, (2, height * 3 // 2, width)).astype(np.uint8)
    for is_picture in (False, True):
        target = np.full((3, 96, 64), 77, np.uint8)
        place_planes(source, target, luma=5, chroma=9, is_picture=is_picture)
        assert (target[2] == 77).all()  # behind the row's last picture
        for index in range(2):
            planes = planes_of(target[index])
            for name, own in planes_of(source[index]).items():
                full, filling = planes[name].shape, 5 if name == "Y" else 9
                repeated = 1 if is_picture and name != "Y" else 0
                for y in range(full[0]):
                    for x in range(full[1]):
                        is_near = y < own.shape[0] + repeated and x < own.shape[1] + repeated
                        nearest = own[min(y, own.shape[0] - 1), min(x, own.shape[1] - 1)]
                        assert planes[name][y, x] == (nearest if is_near else filling)
