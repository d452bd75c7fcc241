"""Rebuilt anchors against the re-encoded file that they were extracted from.

The file is decoded once, front to back, in step with the samples of its video; one frame is held at a time.
PSNR is computed here from its definition, not with the extract step's own function.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from cope_prep.pipeline import storage
from cope_prep.pipeline.decode import DecodedFrame, read_frames
from cope_prep.pipeline.layout import Layout
from cope_prep.schemas.errors import CopePrepError
from cope_prep.schemas.records import GopRecord, video_key

_PSNR_TOLERANCE_DB = 0.002
"""Figures are recorded to three decimals."""
_IDENTICAL_PSNR_DB = 100.0


class SourceComparison:
    """Compares GOP after GOP; keeps the file of the current video open between them."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._gop_size = layout.specs.encode.gop_size
        self._key = ""
        self._frames: Iterator[DecodedFrame] | None = None
        self._next_index = 0

    def compare(self, record: GopRecord, anchors: np.ndarray) -> list[str] | None:
        """What is wrong with a record and its anchors uint8 [num_anchors, 3H/2, W]; None without a file."""
        first_index = record.gop_index * self._gop_size
        if video_key(record.video_id) != self._key or first_index < self._next_index:
            self._open(video_key(record.video_id))
        if self._frames is None:
            return None
        recorded = [(record.iframe_psnr_y_db, record.iframe_max_error)]
        recorded += [(window.stats.psnr_y_db, window.stats.max_error) for window in record.windows]
        wrong: list[str] = []
        for position, (anchor, (psnr_db, max_error)) in enumerate(zip(anchors, recorded, strict=True)):
            try:
                picture = self._picture(first_index + position * record.window)
            except CopePrepError as exc:
                return [*wrong, f"the re-encoded file cannot be read ({exc})"]
            if picture is None:
                return [*wrong, f"the re-encoded file ends at frame {self._next_index}"]
            if picture.shape != anchor.shape:
                return [*wrong, f"anchor {position} is {anchor.shape}, the file's frame {picture.shape}"]
            found_db, found_error = _fidelity(anchor, picture)
            if abs(found_db - psnr_db) > _PSNR_TOLERANCE_DB or found_error != max_error:
                wrong.append(
                    f"anchor {position} is at {found_db:.3f} dB and maximum error {found_error} from the"
                    f" re-encoded frame; recorded are {psnr_db} dB and {max_error}"
                )
        return wrong

    def finish_video(self, num_frames: int) -> str:
        """After the last GOP of a video, `num_frames` in all: what is wrong with that number, or nothing."""
        if self._frames is None:
            return ""
        try:
            for frame in self._frames:
                self._next_index = frame.index + 1
        except CopePrepError as exc:
            return f"the re-encoded file cannot be read to its end ({exc})"
        finally:
            self._frames, self._key = None, ""
        if self._next_index == num_frames:
            return ""
        return f"the re-encoded file has {self._next_index} frames, the samples of the video {num_frames}"

    def _open(self, key: str) -> None:
        uri = self._layout.reencoded(key)
        self._key = key
        self._next_index = 0
        self._frames = read_frames(uri) if storage.exists(uri) else None

    def _picture(self, index: int) -> np.ndarray | None:
        assert self._frames is not None
        for frame in self._frames:
            self._next_index = frame.index + 1
            if frame.index == index:
                return frame.picture()
        return None


def _fidelity(rebuilt: np.ndarray, picture: np.ndarray) -> tuple[float, int]:
    """(luma PSNR in dB, largest absolute error over Y, U and V) of two uint8 [3H/2, W]."""
    error = rebuilt.astype(np.int32) - picture
    num_luma_rows = len(picture) * 2 // 3
    mean_square = float(np.square(error[:num_luma_rows]).mean())
    psnr_db = 10 * math.log10(255 * 255 / mean_square) if mean_square else _IDENTICAL_PSNR_DB
    return min(psnr_db, _IDENTICAL_PSNR_DB), int(np.abs(error).max())
