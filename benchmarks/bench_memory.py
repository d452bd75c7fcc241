"""Peak memory of one extraction, on 10 s and on 10 min of the same video: it must not grow with the length.

    python benchmarks/bench_memory.py [--json PATH]

Each extraction runs in a process of its own; the figure is the peak resident size, less that of a process that
only imports the code. Target: within 10 %.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import av
from clips import machine, real_clips

from cope_prep.pipeline.extract import extract_video
from cope_prep.pipeline.reencode import reencode_video
from cope_prep.schemas.specs import EncodeSpec, ExtractSpec

SPEC = EncodeSpec(preset="veryfast")


def main() -> None:
    """Measure and print, or be the process that is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        path, out = arguments.child
        extract_video(path, out, spec=ExtractSpec(), encode_spec=SPEC, video_id="bench")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    bikes = next(clip for clip in real_clips() if clip.stem == "bikes")
    peaks = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for duration_s in (10, 60, 600):
            source = repeated(bikes, duration_s // 10, folder / "source.mkv")
            reencode_video(str(source), str(folder / "fixed.mp4"), spec=SPEC)
            command = [
                sys.executable,
                __file__,
                "--child",
                str(folder / "fixed.mp4"),
                str(folder / "out.tar"),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[duration_s] = int(done.stdout) / 1024
            print(f"{duration_s:4d} s of video: peak {peaks[duration_s]:.1f} MiB", flush=True)
    ratio = peaks[600] / peaks[10]
    print(f"10 min over 10 s: {ratio:.3f} (target at most 1.10)")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"machine": machine(), "peak_mib": peaks, "ratio": round(ratio, 4)}, indent=1) + "\n"
        )


def repeated(clip: Path, times: int, out: Path) -> Path:
    """A clip's packets, several times over, without re-encoding."""
    with av.open(str(out), "w") as target:
        stream = None
        offset = 0
        for _ in range(times):
            with av.open(str(clip)) as source:
                video = source.streams.video[0]
                stream = stream or target.add_stream_from_template(video)
                for packet in source.demux(video):
                    if packet.dts is None:
                        continue
                    packet.pts += offset
                    packet.dts += offset
                    packet.stream = stream
                    target.mux(packet)
                offset += video.duration
    return out


if __name__ == "__main__":
    main()
