"""Any decoded picture -> I420 of the wanted size, full range, BT.601, upright. One filter graph a format.

    buffer -> [crop] -> scale -> format -> [colorspace] -> [turn] -> [pad] -> sink

`scale` changes size, layout and depth, through swscale's portable code paths (`accurate_rnd+bitexact`), so
that the same source gives the same bytes on every machine. Range and matrix are left to `colorspace`, which
is right to half a level. Left to swscale, a BT.709 picture of 384 x 384 goes through 8-bit RGB: up to 3
levels off, and 0.8 ms slower; and range alone rounds chroma down. RGB and grey have no matrix to change,
and come out of `scale` as they should.

A picture is turned last, when it is small. Where a source does not name its matrix it is BT.709 from 720p
upwards and BT.601 below, as players assume.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import av.error
from av.filter import Graph
from av.filter.context import FilterContext
from av.video.frame import VideoFrame

from cope_prep.pipeline.probe import Orientation
from cope_prep.schemas.specs import EncodeSpec

_SCALE_FLAGS = "bicubic+accurate_rnd+bitexact"

_MATRIX = {
    1: "bt709",
    4: "fcc",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    9: "bt2020ncl",
    10: "bt2020ncl",
}
"""AVColorSpace -> FFmpeg's name; everything else counts as not named."""
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG
_UNSPECIFIED = 2  # AVCOL_PRI_UNSPECIFIED and AVCOL_TRC_UNSPECIFIED

_TURN = {
    (True, True): "clock_flip",
    (True, False): "clock",
    (False, True): "cclock",
    (False, False): "cclock_flip",
}
"""(mirror_x, mirror_y) after a transposition -> what FFmpeg's transpose filter calls both together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Where the source's pixels go, before the turn: crop to `crop_px`, scale to `scaled_px`, then pad."""

    crop_px: tuple[int, int, int, int]
    """(width, height, x, y) of the part of the decoded picture that is used."""
    scaled_px: tuple[int, int]
    """(width, height) before the turn."""
    output_px: tuple[int, int]
    """(width, height) of the output, after the turn and the padding."""


def output_size(spec: EncodeSpec, display_size_px: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the re-encoded video, multiples of 16.

    With fit `keep` it is the display size, scaled down where a side exceeds 4096, each side to the nearest
    multiple of 16.
    """
    if spec.fit != "keep":
        return spec.width_px, spec.height_px
    shrink = min(1.0, 4096 / max(display_size_px))
    width, height = (max(32, 16 * round(side * shrink / 16)) for side in display_size_px)
    return width, height


def plan_geometry(
    size_px: tuple[int, int],
    *,
    sample_aspect: Fraction,
    orientation: Orientation,
    fit: str,
    output_px: tuple[int, int],
) -> Geometry:
    """Fit a decoded picture of `size_px` into `output_px`: see EncodeSpec.fit.

    Crop and pad keep the shape that a player shows, sample aspect ratio and turn included.
    """
    width, height = size_px
    target = (output_px[1], output_px[0]) if orientation.transpose else output_px
    crop, scaled = (width, height, 0, 0), target
    shape = Fraction(width, height) * sample_aspect
    wanted = Fraction(target[0], target[1])
    if fit == "crop" and shape > wanted:
        used = max(1, round(height * wanted / sample_aspect))
        crop = (used, height, (width - used) // 2, 0)
    elif fit == "crop":
        used = max(1, round(width * sample_aspect / wanted))
        crop = (width, used, 0, (height - used) // 2)
    elif fit == "pad" and shape > wanted:
        scaled = (target[0], _even(target[0] / shape, target[1]))
    elif fit == "pad":
        scaled = (_even(target[1] * shape, target[0]), target[1])
    return Geometry(crop_px=crop, scaled_px=scaled, output_px=output_px)


def _even(size: Fraction, limit: int) -> int:
    """Nearest even size, for chroma: at least 2, at most the limit (itself even)."""
    return min(limit, max(2, 2 * round(size / 2)))


class Converter:
    """The filter graph for pictures of one size, format and colour description."""

    def __init__(self, frame: VideoFrame, *, geometry: Geometry, orientation: Orientation) -> None:
        graph = Graph()
        graph.threads = 1
        chain = [_source(graph, frame, Fraction(1, 1000))]

        width, height, x, y = geometry.crop_px
        if (width, height) != (frame.width, frame.height):
            # exact=1: without it FFmpeg rounds the place to whole chroma samples.
            chain.append(graph.add("crop", w=str(width), h=str(height), x=str(x), y=str(y), exact="1"))

        scaled_width, scaled_height = geometry.scaled_px
        is_yuv = not frame.format.is_rgb and len(frame.format.components) >= 3
        # Where `colorspace` follows, in and out are the same for `scale`, so that it converts neither.
        full = not is_yuv or frame.color_range == _FULL_RANGE or frame.format.name.startswith("yuvj")
        chain.append(
            graph.add(
                "scale",
                w=str(scaled_width),
                h=str(scaled_height),
                flags=_SCALE_FLAGS,
                in_color_matrix="bt601",
                out_color_matrix="bt601",
                in_range=("full" if full else "limited") if is_yuv else "auto",
                out_range="full" if full else "limited",
            )
        )
        chain.append(graph.add("format", pix_fmts="yuv420p"))
        if is_yuv:
            chain.append(graph.add("colorspace", **_colorspace_options(_matrix_of(frame), full=full)))

        if orientation.transpose:
            turn = _TURN[orientation.mirror_x, orientation.mirror_y]
            chain.append(graph.add("transpose", dir=turn))
            scaled_width, scaled_height = scaled_height, scaled_width
        else:
            if orientation.mirror_x:
                chain.append(graph.add("hflip"))
            if orientation.mirror_y:
                chain.append(graph.add("vflip"))

        output_width, output_height = geometry.output_px
        if (scaled_width, scaled_height) != geometry.output_px:
            x, y = ((output_width - scaled_width) // 4 * 2, (output_height - scaled_height) // 4 * 2)
            chain.append(
                graph.add("pad", w=str(output_width), h=str(output_height), x=str(x), y=str(y), color="black")
            )
        self._graph = graph  # owns the filters
        self._source, self._sink = _finish(graph, chain)

    def convert(self, frame: VideoFrame) -> VideoFrame:
        """The picture as the encoder wants it, its type left for the encoder to decide.

        Raises:
            av.error.FFmpegError: the filters refuse the picture.
        """
        # The graph knows all it needs; values out of range, as damaged headers have, make `scale` refuse.
        frame.color_primaries = frame.color_trc = _UNSPECIFIED
        self._source.push(frame)
        converted = self._sink.pull()
        assert isinstance(converted, VideoFrame)
        converted.pict_type = 0
        return converted


def picture_key(frame: VideoFrame) -> tuple[int, int, str, int, int]:
    """What a Converter depends on; when it changes midway, a new one is needed."""
    return frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range


class Deinterlacer:
    """BWDIF on the frames that are flagged interlaced; one picture out for one in, one picture later."""

    def __init__(self, frame: VideoFrame, *, time_base: Fraction) -> None:
        graph = Graph()
        graph.threads = 1
        chain = [_source(graph, frame, time_base)]
        chain.append(graph.add("bwdif", mode="send_frame", deint="interlaced"))
        self._graph = graph
        self._time_base = time_base
        self._source, self._sink = _finish(graph, chain)

    def push(self, frame: VideoFrame | None) -> Iterator[tuple[VideoFrame, int]]:
        """Give a frame (None at the end); yields what is ready, with its pts in the input's time base."""
        self._source.push(frame)
        while True:
            try:
                ready = self._sink.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            assert isinstance(ready, VideoFrame)
            assert ready.pts is not None
            assert ready.time_base is not None
            yield ready, round(ready.pts * ready.time_base / self._time_base)


def _source(graph: Graph, frame: VideoFrame, time_base: Fraction) -> FilterContext:
    return graph.add(
        "buffer",
        video_size=f"{frame.width}x{frame.height}",
        pix_fmt=frame.format.name,
        time_base=str(time_base),
        pixel_aspect="1/1",
    )


def _finish(graph: Graph, chain: list[FilterContext]) -> tuple[FilterContext, FilterContext]:
    chain.append(graph.add("buffersink"))
    graph.link_nodes(*chain)
    graph.configure()
    return chain[0], chain[-1]


def _matrix_of(frame: VideoFrame) -> str:
    guess = "bt709" if frame.width >= 1280 or frame.height > 576 else "smpte170m"
    return _MATRIX.get(int(frame.colorspace), guess)


def _colorspace_options(matrix: str, *, full: bool) -> dict[str, str]:
    """From a matrix and range to BT.601, full range; primaries and transfer are left alone (`fast`)."""
    same = {"iprimaries": "bt709", "primaries": "bt709", "itrc": "bt709", "trc": "bt709", "fast": "1"}
    source = {"ispace": matrix, "irange": "pc" if full else "tv"}
    return {**source, "space": "smpte170m", "range": "pc", "format": "yuv420p", **same}
