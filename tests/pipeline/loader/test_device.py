"""to_device against plain numpy: colour, vectors in pixels, residuals in grey levels, and windows that add up."""

from __future__ import annotations

from collections import Counter
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from cope_prep.pipeline import storage
from cope_prep.pipeline.kernels.warp import warp
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.loader import (
    GopBatch,
    GopDataset,
    QADataset,
    ShardReader,
    planes_to_rgb,
    to_device,
)
from cope_prep.pipeline.rebuild import rebuild_anchors
from cope_prep.pipeline.residual import decode_residual
from cope_prep.pipeline.tar import split_sample
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.records import GopRecord
from cope_prep.schemas.specs import DctResidual, ExtractSpec, Int8Residual, LosslessIframe, LosslessResidual
from cope_prep.schemas.wire import decode_gop

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
EXTRACTS = {
    "dct": ExtractSpec(window=4),
    "int8": ExtractSpec(window=4, residual=Int8Residual(step=6, deadzone=3)),
    "lossless": ExtractSpec(window=4, residual=LosslessResidual(), iframe=LosslessIframe()),
    "every frame": ExtractSpec(window=1),
}


@pytest.fixture(scope="module", params=EXTRACTS)
def coded(
    request: pytest.FixtureRequest,
    datasets: ModuleType,
    media: ModuleType,
    tmp_path_factory: pytest.TempPathFactory,
) -> Layout:
    """Two videos of 1 and 2 GOPs, in each coding; at s = 1 with int16 motion and the codec's compensation."""
    return datasets.make_dataset(
        tmp_path_factory.mktemp("coded"),
        media,
        num_videos=2,
        clip_frames=(32, 41),
        specs=Specs(encode=datasets.SPECS.encode, extract=EXTRACTS[request.param]),
    )


def read_records(layout: Layout) -> dict[str, GopRecord]:
    """All samples by key, without the loader."""
    records = {}
    for row in storage.read_table(layout.index, INDEX).to_pylist():
        shard = storage.join(layout.folder("shards"), row["shard"])
        content = storage.read_bytes(shard, row["offset_bytes"], row["size_bytes"])
        key, members = split_sample(content, name=row["key"])
        records[key] = decode_gop(members, key=key)
    return records


def slow_rgb(planes: np.ndarray) -> np.ndarray:
    """uint8 [3H/2, W] -> float64 [3, H, W] in [0, 1], a pixel at a time.

    Pixel x lies at x + 1/2; the centre of chroma sample i at 2 i + 1, in the middle of the two pixels it covers.
    """
    height, width = planes.shape[0] * 2 // 3, planes.shape[1]
    luma = planes[:height].astype(np.float64)
    chroma = [
        planes[height:, : width // 2].astype(np.float64),
        planes[height:, width // 2 :].astype(np.float64),
    ]
    rgb = np.empty((3, height, width))
    for y in range(height):
        for x in range(width):
            row, column = (y + 0.5 - 1) / 2, (x + 0.5 - 1) / 2
            top, left = int(np.floor(row)), int(np.floor(column))
            down, across = row - top, column - left
            values = []
            for plane in chroma:
                value = 0.0
                for dy, dx, share in (
                    (0, 0, (1 - down) * (1 - across)), (0, 1, (1 - down) * across),
                    (1, 0, down * (1 - across)), (1, 1, down * across),
                ):  # fmt: skip
                    sample_y = min(max(top + dy, 0), height // 2 - 1)
                    sample_x = min(max(left + dx, 0), width // 2 - 1)
                    value += share * plane[sample_y, sample_x]
                values.append(value)
            u, v = values
            rgb[0, y, x] = luma[y, x] + 1.402 * (v - 128)
            rgb[1, y, x] = luma[y, x] - 0.344136 * (u - 128) - 0.714136 * (v - 128)
            rgb[2, y, x] = luma[y, x] + 1.772 * (u - 128)
    return (rgb / 255).clip(0, 1)


def grey_levels(record: GopRecord, window: int) -> np.ndarray:
    """int32 [3H/2, W]: a residual as docs/format.md has it."""
    shape = (record.height_px * 3 // 2, record.width_px)
    spec = record.residual_spec
    stored = decode_residual(spec, record.windows[window].residual, shape=shape, name="residual").astype(
        np.int32
    )
    if isinstance(spec, DctResidual):
        return (stored - 128) * 2
    return stored * (spec.step if isinstance(spec, Int8Residual) else 1)


def on_host(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size_px", [(2, 2), (16, 16), (10, 24)])
def test_colours_are_those_of_the_slow_reference(device: str, size_px: tuple[int, int]) -> None:
    height, width = size_px
    planes = np.random.default_rng(0).integers(0, 256, (2, 3, height * 3 // 2, width)).astype(np.uint8)
    found = planes_to_rgb(torch.from_numpy(planes).to(device))
    assert found.dtype == torch.float32
    assert found.shape == (2, 3, 3, height, width)
    expected = np.stack([[slow_rgb(picture) for picture in row] for row in planes])
    assert {0.0, 1.0} <= {expected.min(), expected.max()}  # colours beyond the range are there too
    np.testing.assert_allclose(on_host(found), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("yuv", "rgb"),
    [
        ((0, 128, 128), (0, 0, 0)),
        ((255, 128, 128), (255, 255, 255)),
        ((128, 128, 128), (128, 128, 128)),
        ((76, 85, 255), (254, 0, 0)),  # JPEG's red, green and blue
        ((150, 44, 21), (0, 255, 1)),
        ((29, 255, 107), (0, 0, 254)),
    ],
)
def test_known_colours(yuv: tuple[int, ...], rgb: tuple[int, ...]) -> None:
    planes = np.empty((12, 8), np.uint8)
    planes[:8], planes[8:, :4], planes[8:, 4:] = yuv
    found = planes_to_rgb(torch.from_numpy(planes)) * 255
    assert found.shape == (3, 8, 8)
    np.testing.assert_allclose(
        found, np.broadcast_to(np.reshape(rgb, (3, 1, 1)), (3, 8, 8)), rtol=0, atol=0.8
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_as_exact_as_they_can_be(
    small: Layout, reader: ShardReader, dtype: torch.dtype
) -> None:
    batch = next(iter(GopDataset(small.dataset, batch_size=4, reader=reader)))
    exact, found = to_device(batch, "cpu"), to_device(batch, "cpu", dtype=dtype)
    for name, unit in (("rgb", 1.0), ("residual_y", 1.0), ("residual_uv", 1.0), ("motion_px", 16.0)):
        tensor = getattr(found, name)
        assert tensor.dtype == dtype
        atol = max(4 * torch.finfo(dtype).eps, 1e-6) * unit
        torch.testing.assert_close(tensor.float(), getattr(exact, name), rtol=0, atol=atol)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("key_frames", [1, 4])
def test_numbers_are_those_of_the_records(
    coded: Layout, reader: ShardReader, key_frames: int, device: str
) -> None:
    records = read_records(coded)
    (batch,) = GopDataset(coded.dataset, batch_size=3, key_frames=key_frames, reader=reader)
    inputs = to_device(batch, device)
    window = coded.specs.extract.window
    found: Counter[str] = Counter()
    for row, key in enumerate(batch.info.keys):
        record = records[key]
        anchors = rebuild_anchors(record)
        for picture, (is_there, time_s) in enumerate(
            zip(batch.picture_mask[row].tolist(), batch.picture_s[row].tolist(), strict=True)
        ):
            if not is_there:
                assert not inputs.rgb[row, picture].any()
                continue
            anchor = round((time_s - record.start_s) * 30 / window)
            rgb = planes_to_rgb(torch.from_numpy(anchors[anchor]))
            np.testing.assert_allclose(on_host(inputs.rgb[row, picture]), rgb, rtol=0, atol=1e-5)
            found["pictures"] += 1
        for delta, (is_there, time_s) in enumerate(
            zip(batch.delta_mask[row].tolist(), batch.delta_s[row].tolist(), strict=True)
        ):
            if not is_there:
                for name in ("motion_px", "residual_y", "residual_uv", "intra"):
                    assert not getattr(inputs, name)[row, delta].any()
                found["padding"] += 1
                continue
            index = round((time_s - record.start_s) * 30 / window) - 1
            stored = record.windows[index]
            motion_px = stored.motion.astype(np.float64) * (stored.motion_step_qpel / 4)
            np.testing.assert_array_equal(on_host(inputs.motion_px[row, delta]), motion_px.transpose(2, 0, 1))
            assert np.array_equal(inputs.intra[row, delta].cpu(), stored.intra)
            levels = grey_levels(record, index) / 255
            height, half = record.height_px, record.width_px // 2
            np.testing.assert_allclose(
                on_host(inputs.residual_y[row, delta]), levels[None, :height], rtol=0, atol=1e-6
            )
            chroma = np.stack([levels[height:, :half], levels[height:, half:]])
            np.testing.assert_allclose(on_host(inputs.residual_uv[row, delta]), chroma, rtol=0, atol=1e-6)
            found["moving"] += bool(motion_px.any())
            found["residuals"] += bool(levels.any())
    num_anchors = sum(record.num_anchors for record in records.values())
    assert found["pictures"] == int(batch.picture_mask.sum())
    assert found["pictures"] + int(batch.delta_mask.sum()) == num_anchors
    assert min(found["moving"], found["residuals"], found["padding"]) >= 3
    assert inputs.batch.pictures.device.type == device


def test_questions_bring_their_gops(small: Layout, reader: ShardReader) -> None:
    batch = next(iter(QADataset(small.dataset, batch_size=3, reader=reader)))
    found, expected = to_device(batch, "cpu"), to_device(batch.gops, "cpu")
    for name in ("rgb", "motion_px", "intra", "residual_y", "residual_uv"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert found.batch.info == batch.info


def predicted(record: GopRecord, batch: GopBatch, row: int) -> np.ndarray:
    """What a window's own numbers make of its reference anchor: uint8 [3H/2, W]."""
    prediction = np.empty_like(batch.pictures[row, 0].numpy())
    step_qpel = int(4 * batch.motion_step_px[row, 0])
    warp(batch.pictures[row, 0].numpy(), batch.motion[row, 0].numpy(), step_qpel, record.block_px, prediction)
    return prediction


@pytest.mark.parametrize("window", [4, 8])
@pytest.mark.parametrize("coding", ["dct", "int8", "lossless"])
def test_windows_lead_from_their_reference_to_their_target(
    datasets: ModuleType, media: ModuleType, tmp_path: Any, reader: ShardReader, coding: str, window: int
) -> None:
    layout = datasets.make_dataset(
        tmp_path,
        media,
        num_videos=3,
        clip_frames=(32, 41, 3),  # the last one has no window
        specs=Specs(encode=datasets.SPECS.encode, extract=EXTRACTS[coding]),
    )
    records = read_records(layout)
    seen: Counter[tuple[str, int]] = Counter()
    num_moving = 0
    for batch in GopDataset(
        layout.dataset, unit="window", window=window, batch_size=3, last="wrap", reader=reader
    ):
        assert batch.pictures.shape[1] == 2
        assert batch.motion.shape[1] == batch.residual.shape[1] == 1
        assert batch.kind.tolist() == [[1, 2]] * 3
        assert batch.num_tokens.tolist() == [[210, 8]] * 3
        assert batch.picture_mask.all()
        assert torch.equal(batch.picture_s, batch.anchor_s)
        assert torch.equal(batch.delta_s[:, 0], batch.anchor_s[:, 1])
        inputs = to_device(batch, "cpu")
        for row, key in enumerate(batch.info.keys):
            record = records[key]
            start, end = (round((time - record.start_s) * 30 / 4) for time in batch.picture_s[row].tolist())
            assert end - start == window // 4
            anchors = rebuild_anchors(record)
            assert np.array_equal(batch.pictures[row, 0], anchors[start])
            assert np.array_equal(batch.pictures[row, 1], anchors[end])

            residual = batch.residual[row, 0].numpy().astype(np.int32)
            levels = (residual - batch.info.residual_offset) * batch.info.residual_scale
            rebuilt = (predicted(record, batch, row) + levels).clip(0, 255)
            if window == 4:
                assert np.array_equal(rebuilt, anchors[end])
            else:  # a merged window's residual is coded again, with the bounds that merge.py gives
                bound = {"dct": 1, "int8": 3, "lossless": 0}[coding]
                assert np.abs(rebuilt - anchors[end].astype(np.int32)).max() <= bound
            luma = on_host(inputs.residual_y[row, 0, 0]) * 255
            np.testing.assert_allclose(luma, levels[: record.height_px], rtol=0, atol=1e-4)
            num_moving += bool(batch.motion[row].any())
            seen[key, start] += 1
    expected = {
        (key, index * window // 4)
        for key, record in records.items()
        for index in range((record.num_frames - 1) // window)
    }
    assert set(seen) == expected
    assert sum(seen.values()) == -(-len(expected) // 3) * 3
    assert num_moving > len(expected) // 2
