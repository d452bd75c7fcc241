"""The records that flow through the pipeline, in the order in which the data meets them.

    VideoRecord -> (re-encode) -> FusedPFrame per window -> GopRecord per GOP
    MotionField: one frame's motion as the codec coded it, for those who read a re-encoded file themselves
    QARecord: one question, joined to its video by `video_id`

Pictures are I420 in full range, BT.601, as one uint8 array [3H/2, W]: Y above, U (left) and V (right) side
by side below. A vector points backward, `prediction(p) = reference(p + motion(p))`, as (x, y), x to the
right and y down.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cope_prep.schemas.errors import FormatError
from cope_prep.schemas.specs import DctResidual, Int8Residual, LosslessResidual

Compensation = Literal["warp", "h264", "mpeg4"]
"""How a reader predicts an anchor from the one before: `warp` for fused windows, else the codec's own."""


def video_key(video_id: str) -> str:
    """16 hex digits that name a video in file and sample names."""
    return hashlib.sha256(video_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def sample_key(key: str, gop_index: int) -> str:
    """WebDataset key of one GOP: `<video_key>_<gop:05d>`."""
    return f"{key}_{gop_index:05d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRecord:
    """One source video: a row of manifest.parquet."""

    video_id: str
    """What questions refer to: the path relative to the dataset's root, with forward slashes."""
    uri: str
    """Where the source is; any fsspec URL or local path."""
    subset: str
    """For instance `0_30_s_academic`; empty for plain folders."""
    size_bytes: int
    version: str
    """etag, or modification time in ns: with the size, tells whether the source has changed."""

    @property
    def video_key(self) -> str:
        """16 hex digits of a hash of the video id."""
        return video_key(self.video_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class QARecord:
    """One record of a question file: a row of questions.parquet."""

    question_id: str
    """Unique in the table: source file, position in it."""
    video_id: str
    subset: str
    """Folder of the question file, for instance `0_30_s_academic_v0_1`."""
    data_source: str
    """The record's own `data_source`, or the subset without version when it has none."""
    kind: str
    """`cap`, `oe` or `mc`."""
    turns: tuple[tuple[str, str], ...]
    """(speaker, text) with speaker `human` or `gpt`, in order; all turns are kept."""
    json_path: str
    json_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionField:
    """The motion of one decoded frame, as the codec coded it."""

    motion: np.ndarray
    """int16 [H/8, W/8, 2] quarter pixels (x, y), relative to the previous frame; 0 where intra."""
    intra: np.ndarray
    """bool [H/8, W/8]: no vector covers the block. All True in an I-frame."""
    coverage: float
    """Share of the blocks that have a vector, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowStats:
    """Figures of one fused P-frame; columns of index.parquet (lists, one value a window)."""

    motion_mean_px: float
    """Mean length of the stored vectors; intra blocks left out, here and in the 95th percentile."""
    motion_p95_px: float
    zero_motion_share: float
    """Share of blocks whose stored vector is zero (intra blocks not counted as zero motion)."""
    intra_share: float
    residual_energy: float
    """Mean square of the residual before coding, grey levels squared."""
    residual_nonzero_share: float
    """Share of values of the decoded residual that are not zero."""
    clipped_vectors: int
    """Vectors beyond what int8 holds at the coarsest step: clamped, counted."""
    clipped_residuals: int
    """Residuals beyond the coding's range: clamped, counted."""
    psnr_y_db: float
    """Rebuilt luma against the re-encoded frame; 100 when identical."""
    max_error: int
    """Largest absolute error of the rebuilt anchor over Y, U and V, grey levels."""
    packet_bytes: int
    """Bytes of the re-encoded packets of the window's frames, matched by pts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedPFrame:
    """One window of s frames, fused: motion from its last frame back to the anchor before, and residual."""

    motion: np.ndarray
    """int8 [Hb, Wb, 2] (int16 when s = 1), in units of `motion_step_qpel` quarter pixels, (x, y)."""
    intra: np.ndarray
    """bool [Hb, Wb]: intra, or a path that meets an intra block; motion there is 0."""
    motion_step_qpel: int
    """1, 2, 4, 8, ...: quarter pixels per unit of `motion`."""
    rounding: int
    """MPEG-4 rounding control of this P-frame (0 or 1); 0 for other compensations."""
    residual: bytes
    """As stored. dct: grey JPEG. int8, lossless: .npy.zst; decoded by pipeline.residual.decode_residual."""
    stats: WindowStats

    @property
    def motion_step_px(self) -> float:
        """Pixels per unit of `motion`."""
        return self.motion_step_qpel / 4


def check_counts(key: str, *, num_frames: int, window: int, num_windows: int, num_checksums: int) -> None:
    """Check that the parts of a GOP are as many as its frames make.

    Raises:
        FormatError: they are not.
    """
    if num_checksums != num_windows + 1:
        raise FormatError(key, f"{num_checksums} anchor checksums for {num_windows} windows")
    expected = (num_frames - 1) // window
    if num_windows != expected:
        raise FormatError(
            key, f"{num_windows} windows, but {num_frames} frames at s = {window} make {expected}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GopRecord:
    """One GOP: its I-frame and its fused P-frames. Everything a reader needs to rebuild the anchors."""

    video_id: str
    gop_index: int
    start_s: float
    """Time of the I-frame in the re-encoded video."""
    fps: int
    num_frames: int
    """Frames of the GOP in the re-encoded file; the last GOP of a video may be short."""
    width_px: int
    height_px: int
    window: int
    """s: frames per window."""
    block_px: int
    compensation: Compensation
    residual_spec: DctResidual | Int8Residual | LosslessResidual
    spec_hash: str
    """Hash of EncodeSpec and ExtractSpec."""
    iframe: bytes | np.ndarray
    """JPEG bytes, or uint8 [3H/2, W]."""
    iframe_packet_bytes: int
    iframe_psnr_y_db: float
    iframe_max_error: int
    anchor_crc32c: tuple[int, ...]
    """CRC-32C of each rebuilt anchor's bytes, [num_anchors]."""
    windows: tuple[FusedPFrame, ...]

    def __post_init__(self) -> None:
        check_counts(
            self.key,
            num_frames=self.num_frames,
            window=self.window,
            num_windows=len(self.windows),
            num_checksums=len(self.anchor_crc32c),
        )
        grid = (-(-self.height_px // self.block_px), -(-self.width_px // self.block_px))
        for index, window in enumerate(self.windows):
            if window.motion.shape != (*grid, 2) or window.intra.shape != grid:
                raise FormatError(
                    self.key,
                    f"window {index} has motion {window.motion.shape} and intra {window.intra.shape},"
                    f" the grid is {grid}",
                )

    @property
    def key(self) -> str:
        """WebDataset key of the sample."""
        return sample_key(video_key(self.video_id), self.gop_index)

    @property
    def num_anchors(self) -> int:
        """Frames 0, s, 2s, ... of the GOP."""
        return len(self.windows) + 1
