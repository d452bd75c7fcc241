"""Versions of the programs that decide which bytes come out of a stage, as they are where the work is done.

A cluster may have nodes with different installations, so the process that makes an output says with what.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from cope_prep.pipeline.split import NeedsMemory, Split, Unfit

_PACKAGES = ("cope-prep", "av", "simplejpeg", "zstandard")
"""cope-prep, and the packages whose encoders write into the outputs."""
_LIBRARIES = ("libavcodec", "libavformat", "libavutil", "libswscale")
"""FFmpeg's libraries that a frame passes through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a call returned, and with which versions."""

    value: Any
    software: str


def recorded(call: Callable[..., Any], *args: Any) -> Recorded | Split | NeedsMemory | Unfit:
    """Perform a call, and say which versions did it.

    Of a call that goes on as others, its instruction, so that the last of those says it: of parts, the versions
    that all of them had.
    """
    value = call(*args)
    if isinstance(value, Unfit):
        return value
    if isinstance(value, NeedsMemory):
        return replace(value, call=functools.partial(recorded, value.call))
    if isinstance(value, Split):
        return replace(
            value,
            parts=tuple(functools.partial(recorded, part) for part in value.parts),
            join=functools.partial(recorded_join, value.join),
            whole=functools.partial(recorded, value.whole),
        )
    return Recorded(value=value, software=software())


def recorded_join(join: Callable[..., Any], parts: Sequence[Recorded]) -> Recorded | Unfit:
    """Join what several processes made, if all of them and this one have the same versions."""
    if any(part.software != software() for part in parts):
        return Unfit(reason="its parts were made by different versions of the software", noted=True)
    found = recorded(join, [part.value for part in parts])
    assert isinstance(found, Recorded | Unfit)  # nothing is split twice
    return found


@functools.cache
def software() -> str:
    """JSON of name -> version, its keys sorted, of this process's installation. A third of a second, once."""
    import av  # not in the driver, which only plans

    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    found |= {name: ".".join(map(str, av.library_versions[name])) for name in _LIBRARIES}
    found["ffmpeg"] = av.ffmpeg_version_info
    found["x264"] = _x264_build()
    return json.dumps(found, sort_keys=True, separators=(",", ":"))


def _x264_build() -> str:
    """The build of x264, from the SEI message that it writes into a stream; empty if there is no x264."""
    import av

    try:
        encoder: Any = av.CodecContext.create("libx264", "w")
    except ValueError:  # UnknownCodecError: PyAV was built without it
        return ""
    encoder.width = encoder.height = 16
    encoder.pix_fmt = "yuv420p"
    encoder.time_base = Fraction(1, 30)
    encoder.options = {"preset": "ultrafast", "threads": "1"}
    packets = [*encoder.encode(av.VideoFrame(16, 16, "yuv420p")), *encoder.encode(None)]
    match = re.search(rb"x264 - core (\d+(?: \w+)*)", b"".join(map(bytes, packets)))
    return match[1].decode() if match else ""
