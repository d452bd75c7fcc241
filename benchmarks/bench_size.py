"""Bytes a second of video: samples by part, beside JPEGs at 1 FPS, the re-encoded bitstream and raw RGB.

    python benchmarks/bench_size.py [--variants] [--json PATH]

For every real clip and both codecs, at the default specs. `x JPEG` compares contents with contents (JPEG quality
90 of the same anchors), `in tar` a sample's share of a shard with the same JPEGs in a shard; `x bitstream`
and `x RGB` compare contents. Targets: every clip at most 0.9 of the JPEGs and 0.8 of the bitstream, from 36 dB.

`--variants` shows what else was tried, as bytes relative to the defaults, with the change of mean PSNR.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import numpy as np
from clips import machine, reencoded

from cope_prep.pipeline import extract, jpeg, tar
from cope_prep.pipeline.decode import read_frames
from cope_prep.pipeline.kernels.compensate import compensate_h264
from cope_prep.pipeline.kernels.fuse import find_still, trace_paths
from cope_prep.schemas.specs import (
    PAPER,
    DctResidual,
    EncodeSpec,
    ExtractSpec,
    Int8Residual,
    JpegIframe,
)
from cope_prep.schemas.wire import encode_gop

JPEG_QUALITY = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes of one clip's samples, by part."""

    iframe: int
    motion: int
    residual: int
    other: int
    """The .json members."""
    in_tar: int
    psnr_min_db: float
    psnr_mean_db: float

    @property
    def contents(self) -> int:
        """All members, without tar headers and padding."""
        return self.iframe + self.motion + self.residual + self.other


def sample_sizes(path: Path, spec: ExtractSpec, encode_spec: EncodeSpec) -> Sizes:
    """Extract a clip and add up."""
    parts = {"iframe": 0, "motion": 0, "intra": 0, "residual": 0, "json": 0}
    in_tar = 0
    psnr_db = []
    for record in extract.extract_gops(str(path), spec=spec, encode_spec=encode_spec, video_id="bench"):
        members = encode_gop(record)
        for name, content in members.items():
            parts[name.partition(".")[0]] += len(content)
        in_tar += len(tar.sample_bytes(record.key, members))
        psnr_db += [record.iframe_psnr_y_db, *(window.stats.psnr_y_db for window in record.windows)]
    return Sizes(
        iframe=parts["iframe"],
        motion=parts["motion"] + parts["intra"],
        residual=parts["residual"],
        other=parts["json"],
        in_tar=in_tar,
        psnr_min_db=min(psnr_db),
        psnr_mean_db=float(np.mean(psnr_db)),
    )


def compare(path: Path, encode_spec: EncodeSpec) -> dict[str, float]:
    """Duration, and the bytes of the same anchors stored in other ways."""
    num_frames = num_anchors = jpegs = jpegs_in_tar = rgb = bitstream = 0
    for frame in read_frames(str(path)):
        num_frames += 1
        bitstream += frame.packet_bytes
        if frame.index % encode_spec.gop_size % 30 == 0:
            content = jpeg.encode_picture(frame.picture(), quality=JPEG_QUALITY)
            jpegs += len(content)
            jpegs_in_tar += len(tar.sample_bytes(f"{frame.index:020d}", {"jpg": content}))
            rgb += frame.frame.height * frame.frame.width * 3
            num_anchors += 1
    return {
        "duration_s": num_frames / encode_spec.fps,
        "jpegs": jpegs,
        "jpegs_in_tar": jpegs_in_tar,
        "rgb": rgb,
        "bitstream": bitstream,
    }


def row_of(path: Path, encode_spec: EncodeSpec) -> dict:
    """One clip's line of the table."""
    sizes, other = sample_sizes(path, ExtractSpec(), encode_spec), compare(path, encode_spec)
    per_second = {
        name: round(value / other["duration_s"] / 1000, 2)
        for name, value in asdict(sizes).items()
        if not name.startswith("psnr")
    }
    return {
        "clip": path.stem,
        "kb_per_second": {
            **per_second,
            **{
                name: round(other[name] / other["duration_s"] / 1000, 2)
                for name in ("jpegs", "bitstream", "rgb")
            },
        },
        "over_jpegs": round(sizes.contents / other["jpegs"], 3),
        "over_jpegs_in_tar": round(sizes.in_tar / other["jpegs_in_tar"], 3),
        "over_bitstream": round(sizes.contents / other["bitstream"], 3),
        "over_rgb": round(sizes.contents / other["rgb"], 4),
        "psnr_min_db": round(sizes.psnr_min_db, 2),
        "psnr_mean_db": round(sizes.psnr_mean_db, 2),
    }


def median_of_paths(motion, covered, *, block_px, reference, current):
    """Instead of fuse_window: the component-wise median of the sixteen 4 x 4 paths of a block."""
    height, width = current.shape
    paths = np.empty((height // 4, width // 4, 2), np.int32)
    broken = np.empty(paths.shape[:2], np.uint8)
    still = np.empty(covered.shape[1:], np.uint8)
    find_still(motion.view(np.int32)[..., 0], covered, still)
    trace_paths(motion, covered, still, 4, paths, broken)
    rows, cols, side = height // block_px, width // block_px, block_px // 4
    by_block = paths.reshape(rows, side, cols, side, 2).transpose(0, 2, 1, 3, 4).reshape(rows, cols, -1, 2)
    lost = broken.reshape(rows, side, cols, side).mean(axis=(1, 3)) >= 0.5
    fused = np.where(lost[..., None], 0, np.median(by_block, axis=2)).astype(np.int32)
    return fused, lost


def six_tap(reference, motion, *, compensation, step_qpel, block_px, rounding, out):
    """Instead of the bilinear warp: H.264's own luma filter."""
    cells = motion.astype(np.int16).repeat(block_px // 8, 0).repeat(block_px // 8, 1) * np.int16(step_qpel)
    compensate_h264(reference, cells, out)


@contextmanager
def replaced(name: str, function: Callable) -> Iterator[None]:
    """Put another function in a place of the extraction."""
    with mock.patch.object(extract, name, function):
        yield


def variants() -> dict[str, Callable[[Path, EncodeSpec], Sizes]]:
    """What else was tried, by name."""

    def with_spec(spec: ExtractSpec) -> Callable[[Path, EncodeSpec], Sizes]:
        return lambda path, encode_spec: sample_sizes(path, spec, encode_spec)

    def with_function(name: str, function: Callable) -> Callable[[Path, EncodeSpec], Sizes]:
        def run(path: Path, encode_spec: EncodeSpec) -> Sizes:
            with replaced(name, function):
                return sample_sizes(path, ExtractSpec(), encode_spec)

        return run

    return {
        "median of the 4 x 4 paths": with_function("fuse_window", median_of_paths),
        "6-tap warp": with_function("predict", six_tap),
        "8 x 8 blocks": with_spec(ExtractSpec(motion_block_px=8)),
        "4 x 4 blocks": with_spec(ExtractSpec(motion_block_px=4)),
        **{
            f"residual quality {q}": with_spec(ExtractSpec(residual=DctResidual(quality=q)))
            for q in (88, 80, 95)
        },
        **{f"I-frame quality {q}": with_spec(ExtractSpec(iframe=JpegIframe(quality=q))) for q in (95, 92)},
        "int8, step 8": with_spec(ExtractSpec(residual=Int8Residual(step=8, deadzone=8))),
        "int8, step 4": with_spec(ExtractSpec(residual=Int8Residual(step=4, deadzone=4))),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows, tried = [], {}
    with tempfile.TemporaryDirectory() as name:
        for encode_spec in (EncodeSpec(), PAPER):
            paths = reencoded(Path(name), encode_spec)
            rows += [row_of(path, encode_spec) for path in paths]
            if arguments.variants and encode_spec == EncodeSpec():
                base = [sample_sizes(path, ExtractSpec(), encode_spec) for path in paths]
                for label, run in variants().items():
                    found = [run(path, encode_spec) for path in paths]
                    tried[label] = [
                        {
                            "bytes": round(new.contents / old.contents - 1, 3),
                            "db": round(new.psnr_mean_db - old.psnr_mean_db, 2),
                        }
                        for new, old in zip(found, base, strict=True)
                    ]
    print("KB a second of video      I-frame motion residual other | JPEGs bitstream   RGB |", end="")
    print(" x JPEG (in tar)  x bitstream  x RGB | dB, worst and mean")
    for row in rows:
        kb = row["kb_per_second"]
        print(
            f"{row['clip']:25s} {kb['iframe']:7.1f} {kb['motion']:6.1f} {kb['residual']:8.1f} {kb['other']:5.1f} |"
            f" {kb['jpegs']:5.1f} {kb['bitstream']:9.1f} {kb['rgb']:5.0f} |"
            f" {row['over_jpegs']:6.2f} ({row['over_jpegs_in_tar']:.2f}) {row['over_bitstream']:12.2f}"
            f" {row['over_rgb']:7.3f} | {row['psnr_min_db']:.1f} {row['psnr_mean_db']:.1f}"
        )
    if tried:
        print(
            "\nbytes and mean dB relative to the defaults, H.264:",
            *(row["clip"].split(".")[0] for row in rows[:4]),
        )
        for label, changes in tried.items():
            print(f"{label:28s}", *(f"{change['bytes']:+7.1%} {change['db']:+.2f} dB " for change in changes))
    if arguments.json:
        document = {"machine": machine(), "clips": rows, "variants": tried}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
