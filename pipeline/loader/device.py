"""Batches -> what a model takes, on the device: numbers in pixels and grey levels, pictures as RGB.

A batch crosses to the device as it is stored, small integers in one copy; all that makes it larger happens
there. Colour is full-range BT.601, what JPEG means by YUV (ITU-T T.871, clause 7):

    R = Y + 1.402 (V - 128)
    G = Y - 0.344136 (U - 128) - 0.714136 (V - 128)
    B = Y + 1.772 (U - 128)

Chroma, at half the size, is brought to full size bilinearly between sample centres, as JPEG sites them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - as torch has it

from cope_prep.pipeline.loader.batch import GopBatch, QABatch

_RGB_OF_YUV = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceGops:
    """A batch's numbers, ready for a model; masks, times and layout are in `batch`. Letters as in batch.py."""

    rgb: torch.Tensor
    """float [B, K, 3, H, W] in [0, 1]; black where `batch.size_px` ends, or there is no picture."""
    motion_px: torch.Tensor
    """float [B, P, 2, Hb, Wb]: (x, y) in pixels, backward."""
    intra: torch.Tensor
    """bool [B, P, Hb, Wb]"""
    residual_y: torch.Tensor
    """float [B, P, 1, H, W]: luma residual in [-1, 1], grey levels / 255."""
    residual_uv: torch.Tensor
    """float [B, P, 2, H/2, W/2]: chroma residual (U, V), likewise."""
    batch: GopBatch
    """The stored numbers, on the same device."""


def to_device(
    batch: GopBatch | QABatch, device: torch.device | str, *, dtype: torch.dtype = torch.float32
) -> DeviceGops:
    """Copy a batch to a device and scale it there; of a QABatch, its GOPs."""
    gops = (batch.gops if isinstance(batch, QABatch) else batch).to(device)
    residual_y, residual_uv = split_planes(gops.residual)
    scale = gops.info.residual_scale / 255
    motion_px = gops.motion.to(dtype) * gops.motion_step_px.to(dtype)[..., None, None, None]
    return DeviceGops(
        rgb=planes_to_rgb(gops.pictures, dtype=dtype) * _inside(gops),
        motion_px=motion_px.movedim(-1, -3),
        intra=gops.intra,
        residual_y=_scaled(residual_y, gops, scale, dtype),
        residual_uv=_scaled(residual_uv, gops, scale, dtype),
        batch=gops,
    )


def _inside(gops: GopBatch) -> torch.Tensor:
    """bool [B, K, 1, H, W]: where there is a picture, and no padding."""
    height, width = gops.pictures.shape[-2] * 2 // 3, gops.pictures.shape[-1]
    rows = torch.arange(height, device=gops.size_px.device) < gops.size_px[:, :1]
    columns = torch.arange(width, device=gops.size_px.device) < gops.size_px[:, 1:]
    inside = rows[:, :, None] & columns[:, None, :]
    return gops.picture_mask[..., None, None, None] & inside[:, None, None]


def _scaled(residual: torch.Tensor, gops: GopBatch, scale: float, dtype: torch.dtype) -> torch.Tensor:
    values = (residual.to(dtype) - gops.info.residual_offset) * scale
    return values * gops.delta_mask[..., None, None, None]  # padding holds no residual


def split_planes(planes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[..., 3H/2, W] -> luma [..., 1, H, W] and chroma (U, V) [..., 2, H/2, W/2]."""
    height = planes.shape[-2] * 2 // 3
    half = planes.shape[-1] // 2
    below = planes[..., height:, :]
    return planes[..., None, :height, :], torch.stack((below[..., :half], below[..., half:]), dim=-3)


def planes_to_rgb(planes: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 [..., 3H/2, W], I420 in full range, BT.601 -> float [..., 3, H, W] in [0, 1]."""
    luma, chroma = split_planes(planes)
    lead = luma.shape[:-3]
    height, width = luma.shape[-2:]
    full = F.interpolate(
        chroma.reshape(-1, *chroma.shape[-3:]).to(dtype),
        size=(height, width),
        mode="bilinear",
        align_corners=False,
    )
    yuv = torch.cat((luma.reshape(-1, 1, height, width).to(dtype), full - 128), dim=1)
    matrix = torch.tensor(_RGB_OF_YUV, dtype=dtype, device=planes.device)
    rgb = torch.einsum("cd,ndhw->nchw", matrix, yuv)
    return (rgb / 255).clamp_(0, 1).reshape(*lead, 3, height, width)
