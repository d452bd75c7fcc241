"""A fixed-GOP file -> one GopRecord per GOP, closed loop.

For window k of a GOP, with anchors 0, s, 2s, ...:

    motion      fuse the motion of the window's s frames; quantize it
    prediction  warp(rebuilt_{k-1}, quantized motion)
    residual    anchor_k - prediction; code it; decode it as a reader will
    rebuilt_k   clip(prediction + decoded residual)

and rebuilt_0 is the decoded stored I-frame. At s = 1 the codec's own compensation and partitions take the place
of fusing and warping. Frames after the last anchor of a GOP belong to no window.

Memory is one GOP, whatever the length of the video. Cost at 384 x 384 and s = 30: the decoder's own time, some
10 us a frame for the vectors and about 0.9 ms a window.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

import google_crc32c
import numpy as np

from cope_prep.pipeline import jpeg, storage, tar
from cope_prep.pipeline.decode import DecodedFrame, FrameReader
from cope_prep.pipeline.fuse import fuse_window
from cope_prep.pipeline.kernels.residual import compare, motion_figures
from cope_prep.pipeline.kernels.vectors import CELL_PX, scatter_vectors
from cope_prep.pipeline.quantize import quantize_motion
from cope_prep.pipeline.rebuild import checksum, predict
from cope_prep.pipeline.residual import CodedResidual, ResidualWriter
from cope_prep.schemas.errors import BitstreamError, ChecksumError, ConfigurationError
from cope_prep.schemas.records import Compensation, FusedPFrame, GopRecord, WindowStats
from cope_prep.schemas.specs import EncodeSpec, ExtractSpec, JpegIframe, LosslessResidual, spec_hash
from cope_prep.schemas.wire import encode_gop

IDENTICAL_PSNR_DB = 100.0
"""Recorded where the rebuilt luma equals the frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractReport:
    """What extract_video did."""

    num_frames: int
    num_gops: int
    num_windows: int
    duration_s: float
    output_bytes: int
    output_crc32c: int
    wall_s: float
    cpu_s: float


def extract_video(
    video_uri: str,
    out_uri: str,
    *,
    spec: ExtractSpec,
    encode_spec: EncodeSpec,
    video_id: str,
    source_crc32c: int | None = None,
) -> ExtractReport:
    """Extract a fixed-GOP file into one tar of samples, published atomically.

    `source_crc32c` is what the file's CRC-32C must be: decoders conceal most damage.

    Raises:
        ChecksumError: the file is not the one that was re-encoded.
        SourceNotFoundError, BitstreamError: as extract_gops.
        StorageError: the output cannot be written.
    """
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    check_source(video_uri, source_crc32c)
    records = extract_gops(video_uri, spec=spec, encode_spec=encode_spec, video_id=video_id)
    with storage.publish(out_uri) as path, open(path, "wb") as file:
        samples = write_samples(file, records)
        file.write(tar.END_OF_ARCHIVE)
    return ExtractReport(
        num_frames=samples.num_frames,
        num_gops=samples.num_gops,
        num_windows=samples.num_windows,
        duration_s=samples.num_frames / encode_spec.fps,
        output_bytes=samples.num_bytes + len(tar.END_OF_ARCHIVE),
        output_crc32c=google_crc32c.extend(samples.crc32c, tar.END_OF_ARCHIVE),
        wall_s=time.perf_counter() - wall_s,
        cpu_s=time.process_time() - cpu_s,
    )


def check_source(video_uri: str, source_crc32c: int | None) -> None:
    """Refuse a file that is not the one that was re-encoded. None: nothing was recorded of it.

    Raises:
        ChecksumError: its CRC-32C is another.
        SourceNotFoundError: there is no such file.
    """
    if source_crc32c is not None and (found := storage.crc32c(video_uri)) != source_crc32c:
        raise ChecksumError(
            video_uri,
            f"has crc32c {found:08x}, {source_crc32c:08x} was recorded when it was re-encoded",
            "It was damaged since: delete it, and run cope-prep reencode again.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What was written of some GOPs."""

    num_frames: int
    num_gops: int
    num_windows: int
    num_bytes: int
    crc32c: int


def write_samples(file: IO[bytes], records: Iterable[GopRecord]) -> Samples:
    """Write GOPs one after the other as they lie in a tar, without its end-of-archive mark."""
    num_frames = num_gops = num_windows = num_bytes = crc32c = 0
    for record in records:
        sample = tar.sample_bytes(record.key, encode_gop(record))
        num_bytes += file.write(sample)
        crc32c = google_crc32c.extend(crc32c, sample)
        num_frames += record.num_frames
        num_gops += 1
        num_windows += len(record.windows)
    return Samples(
        num_frames=num_frames,
        num_gops=num_gops,
        num_windows=num_windows,
        num_bytes=num_bytes,
        crc32c=crc32c,
    )


def extract_gops(
    video_uri: str,
    *,
    spec: ExtractSpec | None = None,
    encode_spec: EncodeSpec | None = None,
    video_id: str | None = None,
    first_gop: int = 0,
    stop_gop: int | None = None,
) -> Iterator[GopRecord]:
    """The GOPs of a fixed-GOP file in order, or those from `first_gop` to the one before `stop_gop`.

    `video_id` defaults to the URI.

    Raises:
        ConfigurationError: the window is not shorter than the GOP.
        SourceNotFoundError: there is no such file.
        BitstreamError: the file is not what `encode_spec` promises.
    """
    spec = spec or ExtractSpec()
    encode_spec = encode_spec or EncodeSpec()
    if spec.window >= encode_spec.gop_size:
        raise ConfigurationError(
            f"window {spec.window}",
            f"leaves no P-frame in a GOP of {encode_spec.gop_size}",
            "Choose a window shorter than the GOP.",
        )
    # The frames after a GOP's last anchor are in no window, and the next I-frame needs none of them.
    frames_per_gop = (encode_spec.gop_size - 1) // spec.window * spec.window + 1
    reader = FrameReader(
        video_uri,
        gop_size=encode_spec.gop_size,
        frames_per_gop=frames_per_gop,
        first=first_gop * encode_spec.gop_size,
        fps=encode_spec.fps,
    )
    builder: _GopBuilder | None = None
    for frame in reader:
        if frame.codec != encode_spec.codec:
            raise BitstreamError(
                video_uri,
                f"is {frame.codec}, expected {encode_spec.codec}",
                "Extract it with the EncodeSpec that it was made with, or re-encode it.",
            )
        if frame.is_keyframe:
            if builder is not None:
                yield builder.finish(frame.index)
            if frame.index // encode_spec.gop_size == stop_gop:
                return
            builder = _GopBuilder(frame, spec=spec, encode_spec=encode_spec, video_id=video_id or video_uri)
        else:
            assert builder is not None
            builder.add(frame)
    if builder is None:
        raise BitstreamError(video_uri, "holds no frame", "Delete it and run cope-prep reencode again.")
    yield builder.finish(reader.num_frames)


class _GopBuilder:
    """Collects the frames of one GOP; its state between anchors is the rebuilt picture and a window's motion."""

    def __init__(
        self, iframe: DecodedFrame, *, spec: ExtractSpec, encode_spec: EncodeSpec, video_id: str
    ) -> None:
        self._spec = spec
        self._encode_spec = encode_spec
        self._video_id = video_id
        self._first_index = iframe.index
        picture = iframe.picture()
        self._stored: bytes | np.ndarray
        if isinstance(spec.iframe, JpegIframe):
            self._stored = jpeg.encode_picture(picture, quality=spec.iframe.quality)
            self._rebuilt = jpeg.decode_picture(self._stored, shape=picture.shape, name="iframe")
        else:
            self._stored = picture.copy()
            self._rebuilt = picture
        self._iframe_psnr_db, self._iframe_max_error = _fidelity(self._rebuilt, picture)
        self._iframe_packet_bytes = iframe.packet_bytes
        self._crcs = [checksum(self._rebuilt)]
        self._windows: list[FusedPFrame] = []
        self._compensation: Compensation = encode_spec.codec if spec.window == 1 else "warp"
        self._height = picture.shape[0] * 2 // 3
        grid = (self._height // CELL_PX, picture.shape[1] // CELL_PX)
        self._motion = np.empty((spec.window, *grid, 2), np.int16)
        self._covered = np.empty((spec.window, *grid), np.uint8)
        self._window_bytes = 0
        self._current = np.empty_like(picture)
        self._prediction = np.empty_like(picture)
        self._writer = ResidualWriter(spec.residual, picture.shape)
        self._next = np.empty_like(picture)

    def add(self, frame: DecodedFrame) -> None:
        """Take the next P-frame; the last one of a window completes it."""
        slot = (frame.index - self._first_index - 1) % self._spec.window
        num_foreign = scatter_vectors(frame.vectors(), self._motion[slot], self._covered[slot])
        if num_foreign:
            raise BitstreamError(
                self._video_id,
                f"frame {frame.index} has {num_foreign} vectors that do not point to the frame before",
                "Re-encode it: only one reference frame can be compensated.",
            )
        self._window_bytes += frame.packet_bytes
        if slot == self._spec.window - 1:
            self._windows.append(self._close_window(frame))
            self._window_bytes = 0

    def finish(self, end_index: int) -> GopRecord:
        """The record of the GOP, whose last frame is the one before `end_index`."""
        encode_spec = self._encode_spec
        return GopRecord(
            video_id=self._video_id,
            gop_index=self._first_index // encode_spec.gop_size,
            start_s=self._first_index / encode_spec.fps,
            fps=encode_spec.fps,
            num_frames=end_index - self._first_index,
            width_px=self._prediction.shape[1],
            height_px=self._height,
            window=self._spec.window,
            block_px=self._spec.block_px,
            compensation=self._compensation,
            residual_spec=self._spec.residual,
            spec_hash=spec_hash(encode_spec, self._spec),
            iframe=self._stored,
            iframe_packet_bytes=self._iframe_packet_bytes,
            iframe_psnr_y_db=self._iframe_psnr_db,
            iframe_max_error=self._iframe_max_error,
            anchor_crc32c=tuple(self._crcs),
            windows=tuple(self._windows),
        )

    def _close_window(self, frame: DecodedFrame) -> FusedPFrame:
        current = frame.picture(self._current)
        if self._spec.window == 1:
            motion = self._motion[0].copy()
            intra = self._covered[0] == 0
            step_qpel, clipped_vectors = 1, 0
        else:
            fused, intra = fuse_window(
                self._motion,
                self._covered,
                block_px=self._spec.block_px,
                reference=self._rebuilt[: self._height],
                current=current[: self._height],
            )
            motion, step_qpel, clipped_vectors = quantize_motion(fused)
        predict(
            self._rebuilt,
            motion,
            compensation=self._compensation,
            step_qpel=step_qpel,
            block_px=self._spec.block_px,
            rounding=frame.rounding,
            out=self._prediction,
        )
        coded = self._writer.code(current=current, prediction=self._prediction, rebuilt=self._next)
        self._rebuilt, self._next = self._next, self._rebuilt
        self._crcs.append(checksum(self._rebuilt))
        return FusedPFrame(
            motion=motion,
            intra=intra,
            motion_step_qpel=step_qpel,
            rounding=frame.rounding if self._compensation == "mpeg4" else 0,
            residual=coded.payload,
            stats=self._stats(motion, intra, step_qpel, clipped_vectors, coded, current),
        )

    def _stats(
        self,
        motion: np.ndarray,
        intra: np.ndarray,
        step_qpel: int,
        clipped_vectors: int,
        coded: CodedResidual,
        current: np.ndarray,
    ) -> WindowStats:
        mean_steps, p95_steps, num_zero = motion_figures(motion, intra)
        if isinstance(self._spec.residual, LosslessResidual):
            psnr_db, max_error = IDENTICAL_PSNR_DB, 0
        else:
            psnr_db, max_error = _fidelity(self._rebuilt, current)
        step_px = step_qpel / 4
        return WindowStats(
            motion_mean_px=round(mean_steps * step_px, 4),
            motion_p95_px=round(p95_steps * step_px, 4),
            zero_motion_share=round(num_zero / intra.size, 4),
            intra_share=round(np.count_nonzero(intra) / intra.size, 4),
            residual_energy=round(coded.energy / current.size, 4),
            residual_nonzero_share=round(coded.num_nonzero / current.size, 4),
            clipped_vectors=clipped_vectors,
            clipped_residuals=coded.num_clipped,
            psnr_y_db=psnr_db,
            max_error=max_error,
            packet_bytes=self._window_bytes,
        )


def _fidelity(rebuilt: np.ndarray, current: np.ndarray) -> tuple[float, int]:
    """(luma PSNR in dB, largest absolute error over Y, U and V)."""
    squares, max_error = compare(rebuilt, current)
    if squares == 0:
        return IDENTICAL_PSNR_DB, int(max_error)
    num_luma = current.size * 2 // 3
    return round(min(10 * math.log10(255 * 255 * num_luma / squares), IDENTICAL_PSNR_DB), 3), int(max_error)
