"""The encoder's bytes depend on the pictures and the spec: not on the CPU, not on what memory held before."""

from __future__ import annotations

import numpy as np
import pytest

from cope_prep.pipeline import encode
from cope_prep.schemas.specs import EncodeSpec

SIZE_PX = (96, 64)
"""Not a multiple of 128 wide: x264's AVX-512 code reads past the rows of such pictures (decision 17)."""
SPEC = EncodeSpec(gop_size=10, preset="medium")


class Packets(list[bytes]):
    """A sink that keeps them."""

    def add(self, packet: bytes) -> None:
        self.append(packet)


@pytest.fixture(scope="module")
def pictures(media):
    return [media.make_frame(media.moving(index, *SIZE_PX)) for index in range(30)]


def encoded(pictures) -> Packets:
    packets = Packets()
    with encode.SegmentEncoder(packets, spec=SPEC, size_px=SIZE_PX) as encoder:
        for index, picture in enumerate(pictures):
            encoder.write(picture, range(index, index + 1))
    return packets


def test_bytes_are_those_of_x264_without_the_cpus_own_code(pictures, monkeypatch) -> None:
    with_all_that_the_cpu_has = encoded(pictures)
    options_of = encode._codec_options

    def portable(spec: EncodeSpec) -> tuple[str, dict[str, str]]:
        name, options = options_of(spec)
        return name, options | {"x264-params": options["x264-params"] + ":asm=0"}

    monkeypatch.setattr(encode, "_codec_options", portable)
    assert encoded(pictures) == with_all_that_the_cpu_has


def test_bytes_do_not_depend_on_what_freed_memory_holds(pictures) -> None:
    rng = np.random.default_rng(0)
    first = encoded(pictures)
    for _ in range(8):
        # Numbers that pass for motion vectors into the picture and for costs, in blocks of many sizes.
        noise = [rng.integers(-200, 200, int(size), np.int16) for size in 2 ** rng.uniform(8, 17, 300)]
        del noise
        assert encoded(pictures) == first
