"""How much memory one process needs for a video: upper estimates."""

from __future__ import annotations

from av.video.frame import VideoFrame

from cope_prep.schemas.specs import DctResidual, EncodeSpec, ExtractSpec

BASE_BYTES = 320 * 1024 * 1024
"""An interpreter with all that the pipeline imports, the read buffers, and room to spare."""
_DECODER_PICTURES = 24
"""A decoder's references, 16 at most, and the pictures on their way out of it."""
_ENCODER_BYTES_PER_PX = 170
"""x264: its lookahead of 40 to 60 pictures, each with copies of half its size, and its references."""

_EXTRACTOR_PICTURES = 16
"""The decoder's, and the rebuilt, predicted and current ones, some of them as 16-bit differences."""


def reencoding_memory_bytes(first: VideoFrame, *, output_px: tuple[int, int]) -> int:
    """For re-encoding it, from its first picture; `output_px` is (width, height) of the re-encoded video."""
    picture_bytes = sum(plane.buffer_size for plane in first.planes)
    width, height = output_px
    return BASE_BYTES + _DECODER_PICTURES * picture_bytes + _ENCODER_BYTES_PER_PX * width * height


def extraction_memory_bytes(size_px: tuple[int, int], *, spec: ExtractSpec, encode_spec: EncodeSpec) -> int:
    """For extracting its samples; `size_px` is (width, height) of the re-encoded video."""
    picture_bytes = size_px[0] * size_px[1] * 3 // 2
    num_windows = (encode_spec.gop_size - 1) // spec.window
    # A GOP's residuals are held until it is complete, and once more as a sample.
    share = 0.3 if isinstance(spec.residual, DctResidual) else 1.0
    return BASE_BYTES + round(picture_bytes * (_EXTRACTOR_PICTURES + 2 * share * num_windows))
