"""The two JPEGs of a sample: the I-frame (4:2:0) and the residual (grey).

simplejpeg (libjpeg-turbo, accurate integer DCT) writes both and reads the grey one. It cannot hand out the
planes of a 4:2:0 JPEG, so FFmpeg's mjpeg decoder reads the I-frame, with its plain-integer `simple` IDCT,
which gives the same bytes on every machine. libjpeg-turbo's own reading of the same file differs from it by
at most one level in about 1 % of the pixels (docs/decisions/0004-jpeg-library.md).
"""

from __future__ import annotations

import threading

import av
import av.error
import numpy as np
import simplejpeg

from cope_prep.pipeline.decode import picture_of
from cope_prep.schemas.errors import FormatError


def encode_picture(picture: np.ndarray, *, quality: int) -> bytes:
    """uint8 [3H/2, W] (I420, full range, BT.601) -> a 4:2:0 JPEG."""
    height = picture.shape[0] * 2 // 3
    half_w = picture.shape[1] // 2
    return simplejpeg.encode_jpeg_yuv_planes(
        picture[:height],
        np.ascontiguousarray(picture[height:, :half_w]),
        np.ascontiguousarray(picture[height:, half_w:]),
        quality=quality,
    )


def decode_picture(
    content: bytes, *, shape: tuple[int, ...], name: str, out: np.ndarray | None = None
) -> np.ndarray:
    """A 4:2:0 JPEG -> uint8 [3H/2, W], in `out` if given; `shape` is the shape that it must have.

    Raises:
        FormatError: it is not such a JPEG.
    """
    try:
        height, width = map(int, simplejpeg.decode_jpeg_header(content)[:2])
    except ValueError as exc:
        raise FormatError(name, f"is not a readable JPEG ({exc})") from exc
    if (height * 3 // 2, width) != shape:  # before memory is asked for
        raise FormatError(name, f"is {width} x {height}, expected a picture of {shape}")
    # One decoder a thread: a new one for each picture is 15 % of the picture's time. It has no threads of its
    # own, so a fork may copy it. After an error it is not used again.
    decoder, _decoders.mjpeg = _decoders.mjpeg or _mjpeg_decoder(), None
    try:
        frames = decoder.decode(av.Packet(content))
    except av.error.FFmpegError as exc:
        raise FormatError(name, f"is not a readable JPEG ({exc.strerror})") from exc
    if len(frames) != 1 or frames[0].format.name not in ("yuvj420p", "yuv420p"):
        found = frames[0].format.name if frames else "no picture"
        raise FormatError(name, f"holds {found}, expected one 4:2:0 picture")
    frame = frames[0]
    if (frame.height * 3 // 2, frame.width) != shape:
        raise FormatError(name, f"is {frame.width} x {frame.height}, expected a picture of {shape}")
    _decoders.mjpeg = decoder
    return picture_of(frame, out)


class _Decoders(threading.local):
    mjpeg: av.VideoCodecContext | None = None


_decoders = _Decoders()


def _mjpeg_decoder() -> av.VideoCodecContext:
    decoder = av.CodecContext.create("mjpeg", "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.thread_count = 1
    # max_pixels: a second header within the JPEG could still say anything.
    decoder.options = {"idct": "simple", "flags": "+bitexact", "max_pixels": str(8192 * 8192)}
    return decoder


def encode_grey(plane: np.ndarray, *, quality: int) -> bytes:
    """uint8 [H, W] -> a grey JPEG."""
    return simplejpeg.encode_jpeg(plane[:, :, None], quality=quality, colorspace="GRAY")


def decode_grey(
    content: bytes, *, shape: tuple[int, ...], name: str, out: np.ndarray | None = None
) -> np.ndarray:
    """A grey JPEG -> uint8 [H, W], in `out` if given; `shape` is the shape that it must have.

    Raises:
        FormatError: it is not such a JPEG.
    """
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(content)
        if (height, width) != shape or colorspace != "Gray":
            raise FormatError(name, f"is a {colorspace} JPEG of {(height, width)}, expected grey of {shape}")
        return simplejpeg.decode_jpeg(content, "GRAY", buffer=out)[:, :, 0]
    except ValueError as exc:
        raise FormatError(name, f"is not a readable JPEG ({exc})") from exc
